"""From any layout to any other, exactly; and the same losses as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from governance.files import read_lines
from governance.manifest import describe, read_manifest
from governance.stage import commit
from tests.pretrain.test_train import script

HERE = Path(__file__).parent


def on_ranks(count: int, *arguments: str) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    done = subprocess.run([*launcher, *arguments], capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_layout_goes_on_exactly_from_every_other(tmp_path, precision):
    program = str(HERE / "resume_layouts.py")
    for count in (1, 2):
        on_ranks(count, program, str(tmp_path), precision, "write")
    stages = 4 if precision == "fp32" else 3
    for count in (1, 2):
        on_ranks(count, program, str(tmp_path), precision, "read")
        found = json.loads((tmp_path / f"read-{count}.json").read_text())
        assert len(found) == 2 * stages * stages
        for name, values in found.items():
            assert values["digest"] == values["first"], name
            before, after = name.split("-")
            same = before == after
            assert values["native"] == (same and count == 2), name
            assert values["loss"] == pytest.approx(values["learned"], rel=0 if same else 1e-6), name


@pytest.mark.slow
def test_weights_kept_twice_are_both_those_of_the_native_shards(tmp_path):
    on_ranks(2, str(HERE / "resume_layouts.py"), str(tmp_path), "fp32", "hpz")
    values = json.loads((tmp_path / "read-2.json").read_text())["hpz"]
    assert values["native"]
    assert values["digest"] == values["first"]
    assert values["loss"] == pytest.approx(values["learned"], rel=0)


CRASH = """
from pretrain.saving import Saver
save = Saver.save
def once(self, state):
    save(self, state)
    self.wait()
    if state.step == 4:
        raise SystemExit("killed")
Saver.save = once
"""


def trained(tmp_path: Path, root: Path, count: int, crash: bool, **settings) -> subprocess.CompletedProcess:
    file = tmp_path / "run_it.py"
    file.write_text((CRASH if crash else "") + script(root, **settings))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return subprocess.run([*launcher, str(file)], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_shards_that_were_parted_otherwise_are_told_and_the_canonical_form_is_read(tmp_path, run_training, losses_of):
    done = trained(tmp_path, tmp_path / "whole", 2, False, zero_stage=1)
    assert done.returncode == 0, done.stderr[-3000:]
    root = tmp_path / "parted"
    assert trained(tmp_path, root, 2, True, zero_stage=1).returncode != 0
    manifest = read_manifest(next(root.glob("checkpoint-native/*/manifest.json")))
    first, second = (root / output.path for output in manifest.outputs)
    first.rename(spare := tmp_path / "spare")
    second.rename(first)
    spare.rename(second)
    outputs = tuple(describe(path, root) for path in (first, second))
    (root / manifest.path).unlink()
    commit(manifest.model_copy(update={"outputs": outputs}), root)
    done = trained(tmp_path, root, 2, False, zero_stage=1)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "parted them otherwise" in done.stderr
    assert "canonical form" in done.stderr
    assert losses_of(run_training(root, make=False), root) == losses_of(
        run_training(tmp_path / "whole", make=False), tmp_path / "whole"
    )


@pytest.mark.slow
def test_killed_and_resumed_at_other_ranks_and_stages_the_losses_are_the_same(tmp_path, run_training, losses_of):
    layouts = {"same": (2, 2, 1, 1), "other": (2, 1, 1, 3)}
    runs = {}
    done = trained(tmp_path, tmp_path / "whole", 2, False, zero_stage=1)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, (before, after, stage, then) in layouts.items():
        root = tmp_path / name
        assert trained(tmp_path, root, before, True, zero_stage=stage).returncode != 0
        done = trained(tmp_path, root, after, False, zero_stage=then)
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("native form" if name == "same" else "canonical form") in done.stderr
        runs[name] = losses_of(run_training(root, make=False), root)
        attempts = {line["attempt"] for line in read_lines(next(root.glob("train/*/metrics.jsonl")))}
        assert attempts == {1, 2}
    whole = losses_of(run_training(tmp_path / "whole", make=False), tmp_path / "whole")
    assert runs["same"] == whole
    assert runs["other"] == pytest.approx(whole, rel=1e-5)
