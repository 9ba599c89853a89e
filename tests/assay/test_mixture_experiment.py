"""`assay experiment mixture`: trainings behind the gate, weights, and lines for the run's file."""

import json
import random

import pytest

from assay.cli.main import main
from tests.conftest import tale, write_project, write_tales

RUN = """base = "run.toml"

[[data.sources]]
type = "jsonl"
name = "tales"
paths = ["a.jsonl"]
licence = "CC0-1.0"

[[data.sources]]
type = "jsonl"
name = "narrow"
paths = ["narrow.jsonl"]
licence = "CC0-1.0"

[train]
steps = 300
validate_every_steps = 0

[optim]
warmup_steps = 30
decay_steps = 60

[mixture]
budget = 0.5
trainings = 5
resamples = 100
"""


def narrow(seed):
    """A tale of thirty words, which says nothing about the others."""
    chance = random.Random(seed)
    pool = sorted({word.strip(".").lower() for word in tale(0, 60).split()})[:30]
    words = (chance.choice(("the", "of", "and", "to") if number % 3 == 1 else pool) for number in range(90))
    return " ".join(words).capitalize() + "."


@pytest.mark.slow
def test_weights_are_chosen_and_a_training_takes_them(tmp_path, capsys, caplog):
    project = write_project(tmp_path / "project")
    write_tales(project / "a.jsonl", range(120))
    lines = [json.dumps({"text": narrow(seed)}) for seed in range(120)]
    (project / "narrow.jsonl").write_text("\n".join(lines) + "\n")
    (project / "mixed.toml").write_text(RUN)
    words = [str(project / "mixed.toml"), "--root", str(project / "root")]
    assert main(["experiment", "mixture", *words, "--dry-run"]) == 66
    assert "assay data prepare" in capsys.readouterr().err + caplog.text
    assert main(["data", "prepare", *words, "--data-workers", "1"]) == 0
    capsys.readouterr()
    assert main(["experiment", "mixture", *words, "--dry-run", "--json"]) == 0
    dry = json.loads(capsys.readouterr().out)
    assert len(dry["plan"]) == 5
    assert dry["share_of_run"] == pytest.approx(0.5)
    assert main(["experiment", "mixture", *words]) == 77  # no verdict yet
    assert not (project / "root" / "train").exists()
    assert main(["governance", "check", *words, "--data-workers", "1"]) == 0
    capsys.readouterr()

    assert main(["experiment", "mixture", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    trained = sorted(path.name for path in (project / "root" / "train").iterdir())
    assert len(trained) == 5
    folder = project / "root" / "mixture"
    report = json.loads(next(folder.glob("*/mixture.json")).read_text())
    assert report["sources"] == found["sources"]
    assert sum(row["best"] for row in report["sources"]) == pytest.approx(1, abs=1e-9)
    assert {row["training"] for row in report["rungs"]} == {f"train/{name}" for name in trained}
    ends = {row["weights"][0]: row["loss"] for row in report["rungs"]}  # of the narrow source, the first by name
    assert min(ends.values()) < ends[max(ends)] - 0.05  # alone it teaches little about tales
    narrowest = report["sources"][0]
    assert (narrowest["name"], narrowest["best"] < 0.7) == ("narrow", True)
    page = next(folder.glob("*/report.html")).read_text()
    assert f"{narrowest['best']:.4f}" in page

    assert main(["experiment", "mixture", *words, "--json"]) == 0  # everything is found
    assert json.loads(capsys.readouterr().out)["gain"] == found["gain"]
    assert sorted(path.name for path in (project / "root" / "train").iterdir()) == trained

    (project / "best.toml").write_text('base = "mixed.toml"\n' + "\n".join(found["proposal"]) + "\n")
    best = [str(project / "best.toml"), "--root", str(project / "root"), "--set", "train.steps=2"]
    assert main(["train", *best, "--set", "optim.warmup_steps=1", "--set", "optim.decay_steps=1", "--json"]) == 0
