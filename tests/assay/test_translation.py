"""Translations from the command line: averaged checkpoints, and scores against references."""

from __future__ import annotations

import json

import pytest
import torch
from sacrebleu.metrics import BLEU, CHRF

from assay.cli.main import main
from assay.cli.model_commands import references_of
from governance.errors import CheckpointError, ConfigError
from governance.files import remove_tree
from governance.lineage.lineage_graph import read_graph
from governance.manifest import read_manifest
from pretrain.checkpoint.averaged_weights import averaged_weights, last_checkpoints
from pretrain.checkpoint.format import weights
from pretrain.data.dataset import open_rows
from pretrain.evaluation.validation import load_decoder
from pretrain.inference.translation_scores import corpus_scores
from tests.conftest import tale, write_project

PAIRS = """base = "run.toml"

[[data.sources]]
type = "parallel"
name = "pairs"
licence = "MIT"
language = "en"
source_language = "en"
target_language = "de"
paths = ["pairs.en", "pairs.de"]

[data.clean]
presets = []
min_language_confidence = 0.0

[data.encode]
loss_on = "targets"
validation_share = 0.1

[data.pack]
sequence_length = 128
min_used_share = 0

[model]
encoder_layers = 1
num_hidden_layers = 1
num_key_value_heads = 2
position_embedding = "sinusoidal"
norm_position = "post"
max_position_embeddings = 128

[train]
sequence_length = 128
steps = 6

[checkpoint]
every_steps = 2
keep_last = 3
"""


def losses_of(model, rows):
    """Mean nats of a model's targets, row by row."""
    nats = count = 0.0
    for number in range(rows.count):
        batch = rows.batch([number])
        with torch.no_grad():
            nats += float(model(batch.tokens, batch.targets, batch.segments, batch.positions)[1].sum())
        count += int((batch.targets >= 0).sum())
    return nats / count


def test_references_go_with_the_lines_of_a_file(tmp_path):
    sources, references = tmp_path / "a.en", tmp_path / "a.de"
    sources.write_text("one\ntwo\n")
    references.write_text("eins\nzwei\n")
    assert references_of(references, sources, ["one", "two"], []) == ["eins", "zwei"]
    assert references_of(None, sources, ["one", "two"], []) is None
    for file, words in ((None, ["one"]), (sources, ["one"])):
        with pytest.raises(ConfigError, match="give --file, and no other texts"):
            references_of(references, file, ["one"], words)
    references.write_text("eins\n")
    with pytest.raises(ConfigError, match=r"a.de: has 1 lines, --file .*a.en has 2 texts"):
        references_of(references, sources, ["one", "two"], [])
    references.write_text("\neins\n")
    with pytest.raises(ConfigError, match=r"--reference .*a.de, line 1: is empty; remove this line from both"):
        references_of(references, sources, ["one", "two"], [])
    sources.write_text("one\n\n")
    with pytest.raises(ConfigError, match=r"--file .*a.en, line 2: is empty"):
        references_of(references, sources, ["one"], [])


def test_scores_are_those_of_sacrebleu():
    references = [f"the {word} cat sat on the mat of its house" for word in ("grey", "old", "small", "wild")]
    written = ["the grey cat sat on a mat", "the old cat is in its house", *references[2:]]
    found = corpus_scores(written, references, "13a")
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        assert found[name].score == pytest.approx(metric.corpus_score(written, [references]).score, abs=1e-9)
        assert 0 <= found[name].lower < found[name].score < found[name].upper <= 100
    assert "|bs:1000|" in found["bleu"].signature
    assert "|tok:13a|" in found["bleu"].signature
    assert corpus_scores(references, references, "char")["bleu"].score == pytest.approx(100)
    with pytest.raises(ValueError, match="1 translations of 4 references"):
        corpus_scores(written[:1], references, "13a")


def test_the_last_checkpoints_are_averaged_and_their_translations_scored(tmp_path, capsys, caplog):
    folder = write_project(tmp_path / "project")
    sides = [(text := tale(seed, 9), " ".join(reversed(text.split()))) for seed in range(150)]
    for side, language in enumerate(("en", "de")):
        (folder / f"pairs.{language}").write_text("".join(f"{pair[side]}\n" for pair in sides))
        (folder / f"test.{language}").write_text("".join(f"{pair[side]}\n" for pair in sides[:3]))
    (folder / "pairs.toml").write_text(PAIRS)
    root = folder / "root"
    words = ["--root", str(root), "--data-workers", "1"]
    run = str(folder / "pairs.toml")
    assert main(["run", run, *words]) == 0, capsys.readouterr().err + caplog.text
    kept = sorted(map(read_manifest, root.glob("checkpoint/*/manifest.json")), key=lambda one: one.config["step"])
    assert [one.config["step"] for one in kept] == [2, 4, 6]

    newest = last_checkpoints(kept[2], 3, root)
    assert [one.digest for one in newest] == [one.digest for one in reversed(kept)]
    assert [one.digest for one in last_checkpoints(kept[1], 2, root)] == [kept[1].digest, kept[0].digest]
    with averaged_weights(newest, root) as read, weights(kept[0], root) as files:
        for name in files.names():
            values = []
            for one in kept:
                with weights(one, root) as other:
                    values.append(other.read(name).clone())
            assert torch.equal(read(name, values[0].shape), torch.stack(values).double().mean(0).float())
            assert name.endswith("bias") or not torch.equal(values[0], values[2])
        with pytest.raises(CheckpointError):
            read(name, (*values[0].shape, 2))
    capsys.readouterr()
    assert main(["evaluate", run, "last", "--average", "3", "--json", *words]) == 0, caplog.text
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["averaged"] == [one.digest for one in newest[1:]]
    mean = load_decoder(newest[0], root, newest[1:])
    [rows] = map(read_manifest, root.glob("pack/*/manifest.json"))
    held = open_rows(rows, "validation", root, 128)
    assert evaluated["loss"] == pytest.approx(losses_of(mean, held), rel=1e-4)
    foreign = kept[0].model_copy(update={"config": {**kept[0].config, "train_key": "b" * 64}})
    with (
        pytest.raises(CheckpointError, match="are of 2 trainings; average checkpoints of one"),
        averaged_weights([kept[2], foreign], root),
    ):
        pass

    capsys.readouterr()
    scored = ["--file", str(folder / "test.en"), "--reference", str(folder / "test.de"), "--json"]
    assert main(["translate", run, "last", "--average", "3", *scored, *words]) == 0, caplog.text
    found = json.loads(capsys.readouterr().out)
    assert (found["segments"], found["steps"]) == (3, [6, 4, 2])
    assert found["checkpoints"] == [one.digest for one in newest]
    written = [row["text"] for row in found["translations"]]
    again = BLEU().corpus_score(written, [[pair[1] for pair in sides[:3]]])
    assert found["scores"]["bleu"]["score"] == pytest.approx(again.score)
    graph = read_graph(root)
    stated = [node for node in graph.nodes.values() if node.stage == "evaluation"]
    assert len(stated) == 2  # of the loss and of the translations
    for scores in stated:
        assert {one.digest for one in kept} <= {node.digest for _, node in graph.ancestors(scores)}
    (folder / "blank.en").write_text("\n" + (folder / "test.en").read_text().replace("\n", "\n\n"))
    assert main(["translate", run, "last", "--average", "3", "--file", str(folder / "blank.en"), "--json", *words]) == 0
    lines = json.loads(capsys.readouterr().out)["translations"]
    assert [row["text"] for row in lines] == ["", *(line for text in written for line in (text, ""))]
    assert [row["source"] for row in lines] == (folder / "blank.en").read_text().removesuffix("\n").split("\n")
    assert main(["translate", run, "last", "--average", "4", *scored, *words]) == 78
    assert "3 are kept (step 2, 4, 6)" in capsys.readouterr().out
    remove_tree(root / kept[1].folder)
    assert [one.digest for one in last_checkpoints(kept[2], 2, root)] == [kept[2].digest, kept[0].digest]
