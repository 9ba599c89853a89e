"""Masters, moments and weights in files: losses, checkpoints and skipped steps equal those of a run in memory.

DeepSpeed leaves in memory state smaller than 1 MiB: all state of matrices is larger in `NARROW`, a matrix in bf16 in
`WIDE`. Most tests replace the compiled extension with `plain_aio.py`; one uses the real one, where it is built.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import shutil
from pathlib import Path

import pytest
import torch

from governance.errors import PipelineError
from governance.files import read_lines
from pretrain import loop
from pretrain.engine import engine as engine_module
from pretrain.engine.extensions import ASYNC_IO_OP, extension_folder
from pretrain.engine.fragments import local_state
from pretrain.engine.nvme import in_files, lock_swap_folder
from pretrain.engine.state import optimizer_of
from tests.pretrain.checkpoint.test_resuming import CRASH
from tests.pretrain.plain_aio import plant
from tests.pretrain.planted_faults import script
from tests.pretrain.rank_runs import run_ranks

NARROW = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "zero_stage": 3, "validate_every_steps": 0,
    "steps": 5, "every_steps": 2, "warmup_steps": 1, "decay_steps": 2, "precision": "bf16",
}  # fmt: skip
WIDE = {**NARROW, "intermediate_size": 2304}
STATE = {"offload_optimizer": "nvme", **NARROW}
WEIGHTS = {"offload_optimizer": "cpu", "offload_parameters": "nvme", **WIDE}
BOTH = {**WEIGHTS, "offload_optimizer": "nvme"}
CASES = [
    pytest.param(STATE, id="state"),
    pytest.param(WEIGHTS, id="weights", marks=pytest.mark.slow),
    pytest.param(BOTH, id="both", marks=pytest.mark.slow),
]


@pytest.fixture
def plain_aio(monkeypatch):
    plant(monkeypatch.setattr)


@pytest.fixture(scope="module")
def in_memory_run(tmp_path_factory, run_training):
    """The root and the run of the same settings with state and weights in memory."""

    @functools.cache
    def run(width: int):
        root = tmp_path_factory.mktemp("memory")
        return root, run_training(root, **{**NARROW, "offload_optimizer": "cpu", "intermediate_size": width})

    return lambda where: run(where["intermediate_size"])


def in_swap(folder: Path) -> set[str]:
    """Kinds of state with files of more than 1 MiB."""
    files = [path for path in folder.rglob("*.swp") if path.stat().st_size > 1 << 20]
    return {path.relative_to(folder / "zero_stage_3").parts[0] for path in files}


@pytest.fixture
def engines(monkeypatch):
    """Engines that training opens, in order."""
    found, real = [], loop.open_saver

    def noting(store, settings, engine, *more):
        found.append(engine)
        return real(store, settings, engine, *more)

    monkeypatch.setattr(loop, "open_saver", noting)
    return found


@pytest.mark.parametrize("where", CASES)
def test_state_and_weights_in_files_learn_what_they_learn_in_memory(
    tmp_path, plain_aio, run_training, losses_of, in_memory_run, engines, where
):
    run = run_training(tmp_path, nvme_path=str(tmp_path / "swap"), **where)
    root, expected = in_memory_run(where)
    assert losses_of(run, tmp_path) == losses_of(expected, root)
    assert run.digest == expected.digest  # it covers every byte of the last checkpoint
    wanted = {"optimizer": where["offload_optimizer"] == "nvme", "bfloat16params": "offload_parameters" in where}
    assert in_swap(tmp_path / "swap") == {name for name, there in wanted.items() if there}
    assert in_files(engines[0], 0) is wanted["optimizer"]
    if in_files(engines[0], 0):
        state = optimizer_of(engines[0]).state
        [flat] = [flat for flat in state if not flat.numel()]
        assert not state[flat]["exp_avg"].numel()
    for ours, theirs in zip(norms(run, tmp_path), norms(expected, root), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


def norms(run, root: Path) -> list[dict[str, float]]:
    lines = [line for line in read_lines(root / run.folder / "metrics.jsonl") if line["event"] == "step"]
    return [{"": line["grad_norm"], **line["gradient_norms"]} for line in lines]


@pytest.mark.parametrize("where", CASES[::2])
def test_a_run_goes_on_from_files_to_memory_and_back(tmp_path, plain_aio, run_training, in_memory_run, kill_at, where):
    files = {**where, "nvme_path": str(tmp_path / "swap")}
    memory = {**where, "offload_optimizer": "cpu", "offload_parameters": "none"}
    for step, settings in ((3, files), (5, memory)):  # after the checkpoints of steps 2 and 4
        kill_at(step, tmp_path, **settings)
        shutil.rmtree(tmp_path / "swap", ignore_errors=True)  # useless for the next start
    assert run_training(tmp_path, **files).digest == in_memory_run(where)[1].digest


def test_a_step_that_is_skipped_changes_no_bit_of_state_in_files(tmp_path, plain_aio, run_training, monkeypatch):
    states, update = [], engine_module.Engine.update

    def noting(engine, factor, skip):
        messages = update(engine, factor, torch.full_like(skip, float(len(states) == 3)))
        states.append(
            {(part.name, kind): one.clone() for part in local_state(engine) for kind, one in part.tensors.items()}
        )
        return messages

    monkeypatch.setattr(engine_module.Engine, "update", noting)
    run_training(tmp_path, nvme_path=str(tmp_path / "swap"), **STATE)
    same = [all(torch.equal(one[key], other[key]) for key in one) for one, other in itertools.pairwise(states)]
    assert [index for index, unchanged in enumerate(same, 1) if unchanged] == [3]


def _hold(folder: str, messages) -> None:
    try:
        lock_swap_folder(Path(folder))
    except PipelineError as error:
        messages.put(str(error))


def test_two_runs_of_a_node_never_share_a_folder_of_files(tmp_path):
    assert lock_swap_folder(tmp_path) == lock_swap_folder(tmp_path)  # one process, even if it opens several
    context = multiprocessing.get_context("fork")
    messages = context.Queue()
    other = context.Process(target=_hold, args=(str(tmp_path / ".." / tmp_path.name), messages))
    lock_swap_folder.cache_clear()
    other.start()
    assert "give each run its own folder" in messages.get(timeout=300)
    other.join()


@pytest.mark.slow
def test_two_ranks_go_on_from_their_native_shards_with_state_in_files(tmp_path, run_training):
    def trained(root: Path, crash: str = "", **settings) -> tuple[bool, str]:
        words = "from tests.pretrain.plain_aio import plant\nplant()\n" + crash + script(root, **settings)
        return run_ranks(root.with_suffix(".ranks"), ["-c", words], 2)

    files = {**STATE, "every_steps": 4, "nvme_path": str(tmp_path / "swap")}
    well, messages = trained(tmp_path / "files", CRASH, **files)
    assert not well
    assert "killed" in messages
    well, messages = trained(tmp_path / "files", **files)
    assert well, messages[-6000:]
    assert "native form" in messages
    well, messages = trained(tmp_path / "memory", **{**files, "offload_optimizer": "cpu"})
    assert well, messages[-6000:]
    runs = [run_training(tmp_path / name, make=False, **files) for name in ("files", "memory")]
    assert runs[0].digest == runs[1].digest


@pytest.mark.slow
@pytest.mark.skipif(
    not (extension_folder() / ASYNC_IO_OP / f"{ASYNC_IO_OP}.so").exists(),
    reason="async_io is not built in TORCH_EXTENSIONS_DIR: it needs libaio-dev and about six CPU minutes",
)
def test_with_the_real_extension_the_same_is_learned(tmp_path, run_training, in_memory_run):
    run = run_training(tmp_path, nvme_path=str(tmp_path / "swap"), **BOTH)
    assert run.digest == in_memory_run(BOTH)[1].digest
    assert len(in_swap(tmp_path / "swap")) == 2
