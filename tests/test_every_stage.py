"""A run with every optional stage, from lists to packed rows, and training on the result."""

import itertools
import json
import re
import shutil

import numpy as np
import pytest

from assay.cli.main import main
from data_pipeline.tokens.token_shards import TokenShard
from data_pipeline.trace import trace
from governance.manifest import read_manifest, write_manifest
from tests.altered_files import flip
from tests.assay.test_data_commands import only
from tests.conftest import with_every_stage, write_project


def test_every_stage_and_then_training(copied, capsys):
    root, words = copied[0] / "made", copied[1]
    assert main(["run", *words]) == 0
    assert only(root, "clean").stats["removed"]["blocked"] == 1
    assert only(root, "clean").stats["removed"]["listed_words"] == 1
    assert only(root, "decontaminate").stats["removed"] == {"contaminated": 1}
    assert only(root, "paragraphs").stats["cut"]["paragraphs"] == 1
    assert only(root, "substrings").stats["cut"]["repeats"] >= 1
    stages = ("ingest", "clean", "classify", "dedup", "paragraphs", "substrings", "decontaminate", "redact", "encode")
    for before, after in itertools.pairwise(stages):
        assert only(root, before).stats["documents_kept"] == only(root, after).stats["documents_in"], after
    train = only(root, "train")
    assert [item.stage for item in train.inputs] == ["pack"]
    report = json.loads(next(root.glob("report/*/report.json")).read_bytes())
    assert report["summary"]["verdict"] == "PASS"
    assert [row["stage"] for row in report["funnel"]][: len(stages)] == [*stages[:8], "mix"]
    assert main(["data", "show", *words[:3]]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{stage}" in f"\n{shown}" for stage in stages)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The project with every stage, its corpus prepared and its gate passed; tests use copies."""
    folder = with_every_stage(write_project(tmp_path_factory.mktemp("judged") / "project"))
    words = [str(folder / "run.toml"), "--root", str(folder / "made"), "--data-workers", "1"]
    assert main(["data", "prepare", *words]) == 0
    assert main(["governance", "check", *words]) == 0
    return folder


@pytest.fixture
def copied(judged, tmp_path):
    """A copy of it: the folder and the words of a command."""
    folder = shutil.copytree(judged, tmp_path / "copy")
    return folder, [str(folder / "run.toml"), "--root", str(folder / "made"), "--data-workers", "1"]


def test_copies_by_quality_are_shown_traced_and_found_by_a_takedown(copied, capsys):
    root, words = copied[0] / "made", copied[1]
    more = ["--set", "data.mix.quality={score='quality', drop=0.3, top=0.2}"]
    assert main(["data", "prepare", *words, *more]) == 0
    [mixed] = [made for made in map(read_manifest, root.glob("mix/*/manifest.json")) if "quality" in made.config]
    made = map(read_manifest, root.glob("encode/*/manifest.json"))
    [tokens] = [one for one in made if mixed.digest in [item.digest for item in one.inputs]]
    total = tokens.stats["train_tokens"] + tokens.stats["validation_tokens"]
    assert sum(tokens.stats["tokens_by_bucket"].values()) == total
    assert main(["data", "show", *words[:3], *more]) == 0
    shown = capsys.readouterr().out
    assert "mix: copies by quality bucket" in shown
    assert "encode: tokens by quality bucket" in shown
    shard = max(tokens.files("train", root), key=lambda path: path.stat().st_size)
    traced = trace(shard, len(TokenShard.open(shard).tokens) - 1)  # the last pass writes the most copies
    copies = int(traced.mixed.split()[0])
    assert copies > 1
    assert int((TokenShard.open(shard).identities == np.frombuffer(bytes.fromhex(traced.identity), np.uint8)).all(
        axis=1).sum()) == copies  # fmt: skip
    assert main(["data", "trace", str(shard), "0"]) == 0
    assert re.search(r"\nmixed      \d cop.*, quality bucket \d", capsys.readouterr().out)
    assert main(["governance", "impact", traced.document.id, "--root", str(root)]) == 0
    assert f"{traced.document.id}: {traced.mixed} in {mixed.folder}" in capsys.readouterr().out


@pytest.mark.parametrize("role", ["pack", "encode"])
def test_the_trainer_refuses_an_altered_shard_or_index(copied, role, capsys):
    root, words = copied[0] / "made", copied[1]
    victim = only(root, role).files("train", root)[0]
    flip(victim)
    assert main(["train", *words]) == 65
    assert victim.name in capsys.readouterr().err
    assert not list(root.glob("train/*/manifest.json"))


def test_rows_of_token_shards_that_were_not_judged_are_refused(copied):
    root, words = copied[0] / "made", copied[1]
    approved = only(root, "pack")
    assert main(["data", "prepare", *words, "--set", "data.encode.validation_share=0.3"]) == 0
    [other] = [m for m in map(read_manifest, root.glob("pack/*/manifest.json")) if m.key != approved.key]
    write_manifest(approved.model_copy(update={"inputs": other.inputs, "outputs": other.outputs}), root)
    assert main(["train", *words]) == 77


def test_nothing_held_out_is_reported_and_trained_all_the_same(project, capsys):
    text = (project / "run.toml").read_text().replace("validation_share = 0.1", "validation_share = 0")
    (project / "run.toml").write_text(text)
    words = [str(project / "run.toml"), "--root", str(project / "made"), "--data-workers", "1"]
    assert main(["run", *words]) == 0
    assert "no validation loss is measured" in capsys.readouterr().err
    assert main(["governance", "takedown", words[0], "tales/a.jsonl#5", "--plan", *words[1:]]) == 0


def test_rows_packed_for_another_length_are_refused(everything, capsys):
    words = [str(everything / "run.toml"), "--root", str(everything / "made"), "--set", "data.pack.sequence_length=32"]
    assert main(["data", "prepare", *words]) == 78
    assert "packed for one length" in capsys.readouterr().err
