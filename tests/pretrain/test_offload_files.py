"""Masters, moments and weights in files: the losses, checkpoints and skipped steps of a run that keeps them in memory.

Matrices of this model are more than 1 MiB of state, below which DeepSpeed leaves them in memory. Most tests replace the
compiled extension with `plain_aio.py`; one uses the real one, where libaio is installed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch

from governance.errors import PipelineError
from pretrain import engine as engine_module
from pretrain import loop
from pretrain.engine_fragments import local_state
from pretrain.engine_state import optimizer_of
from pretrain.engine_swap import hold_folder_of_files, in_files
from tests.pretrain.plain_aio import PlainModule
from tests.pretrain.test_train import Crash, crash

SIZES = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "zero_stage": 3, "validate_every_steps": 0,
    "steps": 8, "every_steps": 3, "precision": "bf16",
}  # fmt: skip
STATE, WEIGHTS = {"offload_optimizer": "nvme"}, {"offload_parameters": "nvme"}


@pytest.fixture
def plain_aio(monkeypatch):
    from deepspeed.ops.op_builder import AsyncIOBuilder

    monkeypatch.setattr(AsyncIOBuilder, "load", lambda self, verbose=False: PlainModule)
    monkeypatch.setattr(engine_module, "build_async_io", lambda ranks, limit, device: None)


@pytest.fixture(scope="module")
def in_memory_run(tmp_path_factory, run_training):
    root = tmp_path_factory.mktemp("memory")
    return root, run_training(root, offload_optimizer="cpu", **SIZES)


def swapped(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.swp"))


@pytest.fixture
def engines(monkeypatch):
    """Each engine that training opens."""
    found, real = [], loop.open_saver

    def noting(job, engine, run):
        found.append(engine)
        return real(job, engine, run)

    monkeypatch.setattr(loop, "open_saver", noting)
    return found


@pytest.mark.parametrize("where", [STATE, WEIGHTS, {**STATE, **WEIGHTS}], ids=["state", "weights", "both"])
def test_state_and_weights_in_files_learn_what_they_learn_in_memory(
    tmp_path, plain_aio, run_training, losses_of, in_memory_run, engines, where
):
    run = run_training(tmp_path, nvme_path=str(tmp_path / "swap"), **where, **SIZES)
    root, expected = in_memory_run
    assert losses_of(run, tmp_path) == losses_of(expected, root)
    assert run.digest == expected.digest  # the last checkpoint's bytes are in it
    assert swapped(tmp_path / "swap") > 1 << 20
    [engine] = engines
    if "offload_optimizer" in where:
        assert in_files(engine, 0)
        [flat] = optimizer_of(engine).state.keys() - [
            flat for flat in optimizer_of(engine).state if flat.numel()
        ]
        assert flat.numel() == optimizer_of(engine).state[flat]["exp_avg"].numel() == 0
    norms = [json.loads(line) for line in (tmp_path / run.folder / "metrics.jsonl").read_text().splitlines()]
    known = [json.loads(line) for line in (root / expected.folder / "metrics.jsonl").read_text().splitlines()]
    for name in ("grad_norm", "gradient_norms"):
        ours, theirs = ([line[name] for line in lines if line["event"] == "step"] for lines in (norms, known))
        for one, other in zip(ours, theirs, strict=True):
            assert one == pytest.approx(other, rel=1e-5)
