"""From any layout to any other, exactly; and the same losses as if nothing had happened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from governance.files import read_lines
from governance.manifest import describe, read_manifest
from governance.stage import commit
from tests.pretrain.rank_runs import run_ranks
from tests.pretrain.resume_layouts import STAGES
from tests.pretrain.test_train import script

PROGRAM = str(Path(__file__).parents[1] / "resume_layouts.py")


def on_ranks(count: int, folder: Path, act: str) -> None:
    well, message = run_ranks(folder, [PROGRAM, str(folder), act], count)
    assert well, message[-6000:]


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """Of every precision, what one and two ranks wrote, read by one and two ranks: each a start of its own."""
    folder = tmp_path_factory.mktemp("layouts")
    for act in ("write", "read"):
        for count in (1, 2):
            on_ranks(count, folder, act)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_layout_goes_on_exactly_from_every_other(layouts, precision):
    stages = len(STAGES[precision])
    for count in (1, 2):
        found = json.loads((layouts / precision / f"read-{count}.json").read_text())
        assert len(found) == 2 * stages * stages
        for name, values in found.items():
            assert values["digest"] == values["first"], name
            before, after = name.split("-")
            assert values["native"] == (before == after and count == 2), name
            assert values["loss"] == values["learned"], name
            assert values["read"] == (0.0 if values["native"] else 1.0), name  # what a rank owns, and no other byte
            halved = {"scale": 2.0**15, "step": 4, "last_overflow": 3, "hysteresis": 1}
            assert values["scale"] == (halved if precision == "fp16" else None), name


@pytest.mark.slow
def test_weights_kept_twice_are_both_those_of_the_native_shards(tmp_path):
    on_ranks(2, tmp_path, "hpz")
    values = json.loads((tmp_path / "fp32" / "read-2.json").read_text())["hpz"]
    assert values["native"]
    assert values["digest"] == values["first"]
    assert values["loss"] == pytest.approx(values["learned"], rel=0)


CRASH = """
from pretrain.checkpoint.save import Saver
save = Saver.save
def once(self, state):
    save(self, state)
    self.wait()
    if state.step == 4:
        raise SystemExit("killed")
Saver.save = once
"""


def trained(root: Path, count: int, crash: bool, **settings) -> tuple[bool, str]:
    return run_ranks(root.with_suffix(".ranks"), ["-c", (CRASH if crash else "") + script(root, **settings)], count)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two ranks at stage 1, to the end."""
    root = tmp_path_factory.mktemp("whole") / "root"
    well, message = trained(root, 2, False, zero_stage=1)
    assert well, message[-6000:]
    return root


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The same, killed when step 4 was saved. Tests go on in copies."""
    root = tmp_path_factory.mktemp("killed") / "root"
    well, message = trained(root, 2, True, zero_stage=1)
    assert not well
    assert "killed" in message
    return root


@pytest.mark.slow
def test_shards_that_were_parted_otherwise_are_reported_and_the_canonical_form_is_read(
    tmp_path, whole, killed, run_training, losses_of
):
    root = shutil.copytree(killed, tmp_path / "parted")
    manifest = read_manifest(next(root.glob("checkpoint-native/*/manifest.json")))
    first, second = (root / output.path for output in manifest.outputs)
    first.rename(spare := tmp_path / "spare")
    second.rename(first)
    spare.rename(second)
    outputs = tuple(describe(path, root) for path in (first, second))
    (root / manifest.path).unlink()
    commit(manifest.model_copy(update={"outputs": outputs}), root)
    well, message = trained(root, 2, False, zero_stage=1)
    assert well, message[-6000:]
    assert "partitioned them differently" in message
    assert "canonical form" in message
    assert losses_of(run_training(root, make=False), root) == losses_of(run_training(whole, make=False), whole)


@pytest.mark.slow
def test_killed_and_resumed_at_other_ranks_and_stages_the_losses_are_the_same(
    tmp_path, whole, killed, run_training, losses_of
):
    runs = {}
    for name, (ranks, stage) in {"same": (2, 1), "stage": (2, 3), "other": (1, 3)}.items():
        root = shutil.copytree(killed, tmp_path / name)
        well, message = trained(root, ranks, False, zero_stage=stage)
        assert well, message[-6000:]
        assert ("native form" if name == "same" else "canonical form") in message
        runs[name] = losses_of(run_training(root, make=False), root)
        attempts = {line["attempt"] for line in read_lines(next(root.glob("train/*/metrics.jsonl")))}
        assert attempts == {1, 2}
    expected = losses_of(run_training(whole, make=False), whole)
    assert runs["same"] == runs["stage"] == expected
    # The first step after it is of the same weights; on another number of ranks the next may be summed otherwise.
    assert runs["other"][:5] == expected[:5]
    assert runs["other"] == pytest.approx(expected, rel=1e-6)
