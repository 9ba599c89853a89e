"""A classifier learns planted labels from a checkpoint, under the same gates; it is cross-validated and exported."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import transformers

from assay.classifier_runs import _file
from assay.cli.main import main
from assay.config import load_run
from benchmarks.measures.small_run import SMALL_RUN
from data_pipeline.tokens.labels import ClassificationConfig
from governance.errors import AlteredFile, ConfigError
from governance.files import sha256_file
from governance.manifest import read_manifest
from pretrain.checkpoint.format import identity_of
from tests.conftest import tale, write_project

PAGE = Path(__file__).parents[2] / "docs" / "classification.md"
SMALLER = "data.encode.classification.folds=2"


def newest(root, stage: str):
    paths = sorted(root.glob(f"{stage}/*/manifest.json"), key=lambda path: path.stat().st_mtime)
    return read_manifest(paths[-1])


def rows(count: int, seed: int = 0) -> list[dict[str, object]]:
    """Notes whose label is the number of a word in them; ten authors."""
    draw, made = random.Random(seed), []
    for number in range(count):
        label = draw.choice(("storm", "calm"))
        words = tale(1000 * seed + number + 300, 20).split()
        words[-3:] = ["storm" if label == "storm" else "river"] * 3
        made.append(
            {"text": " ".join(words), "label": label, "author": f"a{number % 10}", "date": f"20{number % 20 + 10}"}
        )
    return made


def write_rows(path, made) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in made))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = write_project(tmp_path_factory.mktemp("classes") / "project")
    root, run = folder / "root", folder / "my.toml"
    run.write_text(SMALL_RUN)
    assert main(["run", str(run), "--root", str(root), "--data-workers", "1"]) == 0
    parent = root / newest(root, "checkpoint").folder
    assert main(list(map(str, ["export", run, parent, folder / "parent", "--root", root]))) == 0
    (folder / "notes").mkdir()
    write_rows(folder / "notes" / "a.jsonl", rows(120))
    [example] = re.findall(r"```toml\n(base.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (folder / "labels.toml").write_text(example)
    return folder


def command(project, *words) -> int:
    where = ["--root", project / "root", "--data-workers", "1", "--set", SMALLER]
    return main([*map(str, words), *map(str, where)])


@pytest.mark.slow
def test_folds_are_trained_tested_and_joined(project, capsys):
    """Under the gates of each fold, on weights that the journal states; every document is tested once."""
    root, run = project / "root", project / "labels.toml"
    assert command(project, "classify", "folds", run, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["test"] for row in found["folds"]] == [60, 60]
    assert found["mean"]["accuracy"]["value"] > 0.9
    trained = newest(root, "train")
    assert [item.stage for item in trained.inputs] == ["pack", "file"]
    assert trained.run["origin"]["verified"]
    joined = newest(root, "cross_validation")
    assert [item.stage for item in joined.inputs] == ["classification"] * 2
    last = newest(root, "classification")
    assert [item.stage for item in last.inputs] == ["checkpoint", "encode"]
    predicted = json.loads((root / last.folder / "predictions.json").read_bytes())
    assert len(predicted) == 60
    assert len({row["id"] for row in predicted}) == 60

    of_last_fold = root / newest(root, "checkpoint").folder
    assert command(project, "classify", "evaluate", run, of_last_fold) == 65  # the run's fold is the first
    assert "these test documents may have trained it" in capsys.readouterr().err
    assert command(project, "export", run, of_last_fold, project / "fold") == 65
    assert "labels may have other numbers" in capsys.readouterr().err
    made = root.glob("checkpoint/*/manifest.json")
    base = next(path.parent for path in made if not identity_of(read_manifest(path)).recipe.model.num_labels)
    assert command(project, "export", run, base, project / "base") == 0
    assert "pipeline_tag: text-generation" in (project / "base" / "README.md").read_text(encoding="utf-8")

    write_rows(project / "copy.jsonl", rows(5))
    assert command(project, "classify", "evaluate", run, "last", "--test", project / "copy.jsonl") == 1
    assert "is in training as notes/a.jsonl#" in capsys.readouterr().err
    write_rows(project / "unlabelled.jsonl", [{"text": "a fresh text"}])
    assert command(project, "classify", "evaluate", run, "last", "--test", project / "unlabelled.jsonl") == 1
    assert "unlabelled.jsonl#1 has no 'label'" in capsys.readouterr().err
    write_rows(project / "fresh.jsonl", rows(40, seed=5))
    words = ["classify", "evaluate", run, "last", "--test", project / "fresh.jsonl"]
    assert command(project, *words, "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["accuracy"]["value"] > 0.9
    assert "20 of 40 documents belong to a group (author) in the training data" in printed.err
    assert command(project, *words) == 0
    assert "storm" in capsys.readouterr().out

    assert command(project, "evaluate", run, "last") == 0
    assert re.search(r"^loss [\d.]+( ± [\d.]+)? nats/label, \d+ labels", capsys.readouterr().out, re.M)
    assert command(project, "report", run) == 0
    page = (root / newest(root, "report").folder / "report.html").read_text(encoding="utf-8")
    assert re.search(r"<dt>Validation.*?nats per label", page)
    assert "nats per token" not in page
    assert "Validation by language" in page
    assert "bits per byte" not in page  # a label spells no bytes

    assert command(project, "generate", run, "last", "The") == 65
    assert "is a classifier of 2 labels" in capsys.readouterr().err
    assert command(project, "export", run, "last", project / "out") == 0
    model = transformers.AutoModelForSequenceClassification.from_pretrained(project / "out")
    assert model.config.id2label == {0: "storm", 1: "calm"}


def test_a_mean_without_a_head_or_whole_rows_is_refused(tmp_path):
    run = write_project(tmp_path / "project") / "my.toml"
    run.write_text(SMALL_RUN)
    mean = "model.pooling='mean'"
    with pytest.raises(ConfigError, match="belongs to a classification head, and there is no"):
        load_run(run, [mean])
    run.write_text(
        SMALL_RUN.replace(
            "validation_share = 0.1", "validation_share = 0.1\n[data.pack]\nsequence_length = 64\nmin_used_share = 0"
        )
    )
    labels = [
        "data.encode.classification.labels=['storm', 'calm']",
        "data.sources=[{type='jsonl', name='tales', paths=['*.jsonl'], licence='CC0-1.0', columns=['label']}]",
    ]
    assert load_run(run, [mean, *labels]).config.model.pooling == "mean"
    with pytest.raises(ConfigError, match="whole rows"):
        load_run(run, [mean, *labels, "engine.sequence_parallel_size=2"])


def test_a_test_file_that_was_exchanged_since_it_was_hashed_tests_nothing(tmp_path):
    """The evaluation of one file must not be stored as that of another."""
    config = ClassificationConfig(label="label", labels=("storm", "calm"))
    write_rows(tmp_path / "test.jsonl", rows(3))
    digest = sha256_file(tmp_path / "test.jsonl")
    assert len(_file(tmp_path / "test.jsonl", digest, config)[1].numbers) == 3
    write_rows(tmp_path / "test.jsonl", rows(4))
    with pytest.raises(AlteredFile, match="was changed since the command began"):
        _file(tmp_path / "test.jsonl", digest, config)
