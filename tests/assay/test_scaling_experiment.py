"""`assay experiment scaling`: small trainings behind the gate, a law, and a plan that uses it."""

import json
import re
import shutil

import pytest

from assay.cli.main import main
from assay.config import load_run
from assay.experiments.scaling_experiment import _best_at_an_edge, expected_loss
from pretrain.experiments.scaling.scaling_law import Trained
from tests.conftest import write_project

LARGER = """base = "run.toml"

[model]
hidden_size = 64
intermediate_size = 128
num_attention_heads = 8
num_key_value_heads = 4

[train]
steps = 400
validate_every_steps = 0

[optim]
warmup_steps = 40
decay_steps = 100

[scaling]
hidden_sizes = [8, 16, 24]
budgets = [0.02, 0.04, 0.08]
resamples = 100
"""


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    folder = write_project(tmp_path_factory.mktemp("scaling") / "project")
    (folder / "larger.toml").write_text(LARGER)
    return folder


@pytest.mark.slow
def test_a_ladder_predicts_the_run_and_its_plan_says_so(ladder, capsys, caplog):
    words = [str(ladder / "larger.toml"), "--root", str(ladder / "root")]
    assert main(["experiment", "scaling", *words, "--dry-run", "--json"]) == 0
    dry = json.loads(capsys.readouterr().out)
    assert len(dry["plan"]) == 9
    assert dry["share_of_run"] == pytest.approx(3 * 0.14, rel=0.05)
    assert main(["experiment", "scaling", *words]) == 66
    assert "assay data prepare" in capsys.readouterr().err + caplog.text
    assert main(["data", "prepare", *words, "--data-workers", "1"]) == 0
    assert main(["experiment", "scaling", *words]) == 77
    assert not (ladder / "root" / "train").exists()
    assert main(["governance", "check", *words, "--data-workers", "1"]) == 0
    capsys.readouterr()

    assert main(["experiment", "scaling", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    trained = sorted(path.name for path in (ladder / "root" / "train").iterdir())
    assert len(trained) == 9
    folder = ladder / "root" / "scaling"
    report = json.loads(next(folder.glob("*/scaling.json")).read_text())
    assert found["target"] == report["target"]
    assert report["target"]["low"] < report["target"]["loss"] < report["target"]["high"]
    assert report["best"]["loss"] <= report["target"]["loss"]
    assert {row["training"] for row in report["rungs"]} == {f"train/{name}" for name in trained}
    assert sum(row["loss"] - row["fitted"] for row in report["rungs"]) == pytest.approx(0, abs=1e-6)
    page = next(folder.glob("*/report.html")).read_text()
    assert f"{report['target']['loss']:.3f} nats per token for this run" in page

    assert main(["experiment", "scaling", *words, "--json"]) == 0  # everything is found
    assert json.loads(capsys.readouterr().out)["target"] == found["target"]
    assert sorted(path.name for path in (ladder / "root" / "train").iterdir()) == trained

    plan = ["plan", *words, "--cluster", "cpu", "--set", "engine.micro_batch_size=2", "--json"]
    assert main(plan) == 0
    loss = json.loads(capsys.readouterr().out)["loss"]
    assert {name: loss[name] for name in report["target"]} == report["target"]
    assert not loss["other_corpus"]
    run, vocabulary = load_run(ladder / "larger.toml", [], needs="model"), report["vocabulary_size"]
    for tokens, other in (("", False), ("0" * 64, True)):
        assert expected_loss(run, vocabulary, ladder / "root", tokens)["other_corpus"] == other
    assert main([*plan, "--set", "data.tokenizer.vocabulary_size=600"]) == 0
    assert "loss" not in json.loads(capsys.readouterr().out)  # losses per token of two tokenizers do not compare
    altered = next(folder.glob("*/scaling.json"))
    text = altered.read_text()
    altered.write_text(text.replace('"loss": 2', '"loss": 1').replace('"loss": 3', '"loss": 1'))
    assert main(plan) == 65
    assert "assay experiment scaling CONFIG" in capsys.readouterr().err + caplog.text
    altered.write_text(text)

    # A rung that is missing is trained again, here in two ranks: the same key, nearly the same loss, the same law.
    rung = report["rungs"][0]
    shutil.rmtree(ladder / "root" / rung["training"])
    assert not expected_loss(run, vocabulary, ladder / "root", "0" * 64)["other_corpus"]  # its corpus is unknown now
    ranks = ["--nproc", "2", "--set", "engine.micro_batch_size=2"]
    assert main(["experiment", "scaling", *words, *ranks, "--json"]) == 0
    in_two = json.loads(capsys.readouterr().out)
    manifest = json.loads((ladder / "root" / rung["training"] / "manifest.json").read_text())
    assert manifest["run"]["execution"]["world_size"] == 2
    assert manifest["stats"]["validation_loss"] == pytest.approx(rung["loss"], abs=1e-3)
    assert sorted(path.name for path in (ladder / "root" / "train").iterdir()) == trained
    assert in_two["target"]["loss"] == pytest.approx(found["target"]["loss"], abs=0.02)


@pytest.mark.parametrize(
    ("best", "words"), [((0, 0), "the smallest model .* smaller widths"), ((2, 2), "the largest"), ((0, 1), "")]
)
def test_a_best_size_beyond_the_ladder_is_named(best, words):
    curves = [[Trained(size, 100.0, 2.0 - (at == place)) for at, size in enumerate((1.0, 2.0, 3.0))] for place in best]
    found = " ".join(_best_at_an_edge(curves))
    assert re.search(words, found) if words else not found
