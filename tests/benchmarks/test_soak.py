"""`make soak`: a run under faults ends as one without, and a difference is seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measures.goals import read_line
from benchmarks.measures.soak import differences
from governance.manifest import Manifest, write_manifest

ROOT = Path(__file__).parents[2]


def finished(root, losses=(2.0, 1.0), tokens=5, stages=("encode", "train", "checkpoint")):
    for stage in stages:
        manifest = Manifest(
            stage=stage, version=1, key="0123456789abcdef" * 4, config={}, inputs=(), outputs=(),
            stats={"tokens": tokens if stage == "encode" else 0}, run={"host": root.name},
        )  # fmt: skip
        (root / manifest.folder).mkdir(parents=True)
        write_manifest(manifest, root)
        if stage == "train":
            (root / manifest.folder / "losses.json").write_text(json.dumps({"losses": list(losses)}))
    return root


def test_other_digests_losses_and_missing_artifacts_are_differences(tmp_path):
    calm = finished(tmp_path / "calm")
    assert differences(calm, finished(tmp_path / "same")) == []
    assert differences(calm, finished(tmp_path / "pruned", stages=("encode", "train"))) == []
    [digest] = differences(calm, finished(tmp_path / "tokens", tokens=6))
    assert digest.startswith("encode/0123456789abcdef: ")
    assert differences(calm, finished(tmp_path / "losses", losses=(2.0, 1.5))) == ["losses.json differs"]
    missing, losses = differences(calm, finished(tmp_path / "untrained", stages=("encode",)))
    assert "train/0123456789abcdef: missing" in missing
    assert losses == "losses.json differs"


@pytest.mark.slow
def test_a_cycle_of_faults_loses_nothing(tmp_path):
    words = [sys.executable, "-m", "benchmarks.measures.soak", "--cycles", "1", "--seed", "114"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    found = {goal.name: goal for goal in map(read_line, done.stdout.splitlines()) if goal}
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert found["soak.cycles"].value == 1
    assert found["soak.lost"].value == 0
    assert sum(found[f"soak.{fault}"].value for fault in ("kill", "flip", "full", "back", "ahead")) >= 1
