"""From any layout to any other, exactly, and with the losses of an uninterrupted run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from governance.files import read_lines
from governance.manifest import describe, read_manifest
from governance.stage import commit
from tests.pretrain.planted_faults import script
from tests.pretrain.rank_runs import run_ranks
from tests.pretrain.resume_layouts import STAGES

PROGRAM = str(Path(__file__).parents[1] / "resume_layouts.py")


def on_ranks(count: int, folder: Path, *acts: str) -> None:
    well, message = run_ranks(folder, [PROGRAM, str(folder), *acts], count)
    assert well, message[-6000:]


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """For every precision: checkpoints of one and two ranks, read by one and two ranks."""
    folder = tmp_path_factory.mktemp("layouts")
    for count, acts in ((2, ["write"]), (1, ["write", "read"]), (2, ["read", "hpz"])):
        on_ranks(count, folder, *acts)
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
def test_weights_kept_twice_are_both_those_of_the_native_shards(layouts):
    values = json.loads((layouts / "hpz" / "read-2.json").read_text())["hpz"]
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


SAY = "import sys; print('--', {name!r}, file=sys.stderr, flush=True)\n"


def trained(count: int, stages: dict[Path, int]) -> dict[str, str]:
    """Train at a stage in each of these roots, one after the other in one start; the files of each, by name."""
    text = "".join(SAY.format(name=root.name) + script(root, zero_stage=stage) for root, stage in stages.items())
    well, message = run_ranks(next(iter(stages)).with_suffix(".ranks"), ["-c", text], count)
    assert well, message[-6000:]
    parts = [part.partition("\n") for part in re.split("^-- ", message, flags=re.MULTILINE)[1:]]
    return {root.name: "".join(said for name, _, said in parts if name == root.name) for root in stages}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Two ranks at stage 1: "whole" to the end, "killed" until step 4 was saved; tests use copies."""
    folder = tmp_path_factory.mktemp("runs")
    text = script(folder / "whole", zero_stage=1) + CRASH + script(folder / "killed", zero_stage=1)
    well, message = run_ranks(folder / "ranks", ["-c", text], 2)
    assert not well
    assert "killed" in message
    return {name: folder / name for name in ("whole", "killed")}


def part_otherwise(root: Path) -> None:
    """Exchange the native shards of two ranks, and state that."""
    manifest = read_manifest(next(root.glob("checkpoint-native/*/manifest.json")))
    first, second = (root / output.path for output in manifest.outputs)
    first.rename(spare := root.with_name("spare"))
    second.rename(first)
    spare.rename(second)
    outputs = tuple(describe(path, root) for path in (first, second))
    (root / manifest.path).unlink()
    commit(manifest.model_copy(update={"outputs": outputs}), root)


@pytest.mark.slow
def test_killed_and_resumed_at_other_ranks_and_stages_the_losses_are_the_same(tmp_path, runs, run_training, losses_of):
    """Shards divided in another way than the manifest states are reported, and the canonical form is read."""
    roots = {name: shutil.copytree(runs["killed"], tmp_path / name) for name in ("same", "stage", "parted", "other")}
    part_otherwise(roots["parted"])
    message = trained(2, {roots["same"]: 1, roots["stage"]: 3, roots["parted"]: 1}) | trained(1, {roots["other"]: 3})
    assert "partitioned them differently" in message["parted"]
    assert not any("partitioned them differently" in message[name] for name in ("same", "stage", "other"))
    losses = {}
    for name, root in roots.items():
        assert ("canonical form" in message[name]) == (name != "same")
        assert ("native form" in message[name]) == (name in ("same", "parted"))  # before it is read
        losses[name] = losses_of(run_training(root, make=False), root)
        attempts = {line["attempt"] for line in read_lines(next(root.glob("train/*/metrics.jsonl")))}
        assert attempts == {1, 2}
    expected = losses_of(run_training(runs["whole"], make=False), runs["whole"])
    assert losses["same"] == losses["stage"] == losses["parted"] == expected
    # The first step afterwards uses the same weights; on another number of ranks the next may be summed otherwise.
    assert losses["other"][:5] == expected[:5]
    assert losses["other"] == pytest.approx(expected, rel=1e-6)
