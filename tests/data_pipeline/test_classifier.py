"""Linear classifiers learn a real difference, refuse a missing one, and remove with score and name."""

import json
import random
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.filters.classifier import (
    ClassifierConfig,
    classify,
    load_weights,
    measure,
    scores_of,
    train_classifier,
)
from data_pipeline.kernels.linear import score
from governance.config import validate
from governance.errors import ConfigError, ManifestError, MissingInput, PipelineError
from governance.files import sha256_bytes
from governance.kernels.buffers import text_buffers
from governance.manifest import Manifest
from governance.stage import Runtime
from tests.data_pipeline import test_fasttext_scores as fasttext_models
from tests.data_pipeline.document_artifacts import documents_of, rows_of
from tests.data_pipeline.test_fasttext_scores import model_bytes
from tests.data_pipeline.tokenizer_kinds import KINDS
from tests.given_data import given_data, given_rows

KIND = ["garden", "morning", "letter", "river", "bread", "teacher", "window", "gentle", "music", "harvest"]
RUDE = ["idiot", "stupid", "garbage", "loser", "trash", "moron", "fool", "worthless", "pathetic", "clown"]


def text_of(seed: int, rude: bool) -> str:
    chance = random.Random(seed)
    words = [chance.choice(KIND) for _ in range(30)]
    if rude:
        words[chance.randrange(30)] = chance.choice(RUDE)
    return " ".join(words)


def labels_file(path: Path, count: int = 400) -> None:
    rows = [{"text": text_of(i, i % 2 == 0), "label": i % 2 == 0} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def corpus(root: Path, texts: list[str]) -> Manifest:
    rows = [{"id": f"web/f#{i}", "text": text, "file": "f", "position": i} for i, text in enumerate(texts)]
    shards = {f"{shard:05d}": rows[first : first + 3] for shard, first in enumerate(range(0, len(rows), 3))}
    return documents_of(root, "clean", shards, "b")


def config(**changes) -> ClassifierConfig:
    return ClassifierConfig(**{"name": "toxic", "paths": ("labels*.jsonl",), "buckets": 1 << 14, **changes})


def test_it_learns_what_the_labels_say_and_says_how_well(tmp_path):
    labels_file(tmp_path / "labels.jsonl")
    model = train_classifier(config(), tmp_path, Runtime(tmp_path / "root"))
    assert model.stats["documents"] == 400
    assert model.stats["positive"] == 200
    assert model.stats["auc"] > 0.9
    assert model.stats["auc_low"] < model.stats["auc"] <= model.stats["auc_high"] <= 1
    assert model.inputs[0].path == "labels.jsonl"
    weights = load_weights(model, tmp_path / "root")
    unseen = pa.array([text_of(9_000 + i, i < 50) for i in range(100)], pa.large_string())
    scores = score(*text_buffers(unseen), weights, 2)
    assert np.mean(scores[:50] > 0.5) > 0.8
    assert np.mean(scores[50:] < 0.5) > 0.8


def test_the_same_labels_give_the_same_model_wherever_they_are(tmp_path):
    digests = set()
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        labels_file(tmp_path / place / "labels.jsonl")
        digests.add(train_classifier(config(max_score=0.5), tmp_path / place, Runtime(tmp_path / place / "r")).digest)
    labels_file(tmp_path / "here" / "labels2.jsonl", 50)
    digests.add(train_classifier(config(), tmp_path / "here", Runtime(tmp_path / "here" / "r")).digest)
    assert len(digests) == 2


def test_labels_without_meaning_are_refused(tmp_path):
    # Rude texts carry either label, but the held-out rude ones carry the other: the learnt rule is wrong.
    rows = []
    for i in range(400):
        text = text_of(i, i % 2 == 0)
        held_out = int(sha256_bytes(text.encode())[:8], 16) < 0.2 * 2**32
        rows.append({"text": text, "label": (i % 2 == 0) != held_out})
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(ConfigError, match="does not separate the labels"):
        train_classifier(config(), tmp_path, Runtime(tmp_path / "root"))


@pytest.mark.parametrize("line", [b"{", b"[1]", b'{"text": 1, "label": 2}', b'{"text": "a"}', b'{"label": "\xff"}'])
def test_a_bad_line_is_named(tmp_path, line):
    labels_file(tmp_path / "labels.jsonl", 10)
    with (tmp_path / "labels.jsonl").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(ManifestError, match="line 11"):
        train_classifier(config(), tmp_path, Runtime(tmp_path / "root"))


def test_one_label_only_and_no_file(tmp_path):
    labels_file(tmp_path / "labels.jsonl")
    with pytest.raises(ConfigError, match="both labels"):
        train_classifier(config(positive=("rude",)), tmp_path, Runtime(tmp_path / "root"))
    with pytest.raises(MissingInput):
        train_classifier(config(paths=("none.jsonl",)), tmp_path, Runtime(tmp_path / "root"))


def test_documents_outside_the_bounds_go_with_their_score(tmp_path):
    labels_file(tmp_path / "labels.jsonl")
    root = tmp_path / "root"
    judge = config(max_score=0.5)
    model = train_classifier(judge, tmp_path, Runtime(root))
    documents = corpus(root, [text_of(7_000 + i, i % 4 == 0) for i in range(40)])
    digests = set()
    for workers in (1, 2):
        made = classify(documents, [(judge, model)], Runtime(root, workers=workers))
        digests.add(made.digest)
        (root / made.path).unlink()
        for record in (root / "classify" / "records").iterdir():
            record.unlink()
    assert len(digests) == 1
    removed = rows_of(made, "removed", root)
    assert {row["reason"] for row in removed} == {"classifier:toxic"}
    assert made.stats["documents_kept"] + len(removed) == made.stats["documents_in"] == 40
    rude = {f"web/f#{i}" for i in range(0, 40, 4)}
    assert len(rude & {row["id"] for row in removed}) >= 9
    scores = rows_of(made, "scores", root)
    assert len(scores) == 40
    for row in removed:
        assert float(row["evidence"].removeprefix("score=")) > 0.5


def test_two_models_of_one_name_are_refused(tmp_path):
    labels_file(tmp_path / "labels.jsonl")
    model = train_classifier(config(), tmp_path, Runtime(tmp_path / "root"))
    documents = corpus(tmp_path / "root", [text_of(1, False)])
    with pytest.raises(ConfigError, match="one name"):
        classify(documents, [(config(), model), (config(min_score=0.1), model)], Runtime(tmp_path / "root"))


@settings(max_examples=100)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=40))
def test_auc_is_the_share_of_ordered_pairs(rows):
    scores, positive = np.array([s for s, _ in rows]), np.array([p for _, p in rows])
    if positive.all() or not positive.any():
        return
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert measure(scores, positive)["auc"] == pytest.approx(np.mean(pairs), abs=1e-6)


@settings(max_examples=50)
@given(st.text(max_size=60))
def test_a_score_does_not_depend_on_the_neighbours(text):
    weights = np.random.default_rng(0).normal(size=(1 << 12) + 1).astype(np.float32)
    alone = score(*text_buffers(pa.array([text], pa.large_string())), weights, 3)
    amid = score(*text_buffers(pa.array(["before", text, "after it"], pa.large_string())), weights, 3)
    assert alone[0] == amid[1]
    folded = "".join(c.lower() if c.isascii() else c for c in text)
    assert score(*text_buffers(pa.array([folded], pa.large_string())), weights, 3)[0] == alone[0]


def test_real_labels(tmp_path):
    first = next(given_rows("evals/hatecheck"))
    label = next(name for name in ("label_gold", "label", "gold") if name in first)
    text = "test_case" if "test_case" in first else "text"
    hate = config(
        paths=(str(given_data("evals/hatecheck.jsonl.gz")),), text_field=text, label_field=label,
        positive=("hateful", "1", "true"),
    )  # fmt: skip
    assert train_classifier(hate, tmp_path, Runtime(tmp_path / "root")).stats["auc"] > 0.7


@pytest.mark.parametrize("name", ["id", "source", "language", "kept"])
def test_a_model_is_not_named_as_a_column_next_to_its_scores(name):
    with pytest.raises(ConfigError, match="choose another"):
        validate({"name": name, "paths": ["labels.jsonl"]}, ClassifierConfig, "run.toml")


def judged(tmp_path, settings, texts):
    """The scores of the texts, and the documents that remain."""
    runtime = Runtime(tmp_path / "root")
    model = train_classifier(settings, tmp_path, runtime)
    manifest = classify(corpus(tmp_path / "root", texts), [(settings, model)], runtime)
    tables = [pq.read_table(path) for path in manifest.files("scores", tmp_path / "root")]
    assert scores_of(model, tmp_path / "root", texts) == [value for table in tables for value in table["m"].to_pylist()]
    return model, pa.concat_tables(tables), manifest


@pytest.mark.parametrize(("name", "shape"), [
    ("q.bin", {}), ("q.ftz", {"quantised": True, "norm": True, "output_quantised": True}),
    ("q.ftz", {"quantised": True, "pruned": 40, "buckets": 64}),
])  # fmt: skip
def test_a_fasttext_model_that_exists_scores_and_removes(tmp_path, name, shape):
    fasttext = pytest.importorskip("fasttext", reason="needs fasttext-predict, of the extra `dev`")
    path = tmp_path / name
    path.write_bytes(model_bytes(**{"labels": 3, "word_grams": 2, "buckets": 200, **shape}))
    settings = ClassifierConfig(name="m", model=name, positive=("__label__l1", "l2"), min_score=0.5)
    texts = ["the cat\nsat on a mat", "über été 猫", "dog's", "", "a a a the"]
    model, scores, manifest = judged(tmp_path, settings, texts)
    library = fasttext.load_model(str(path))
    for text, score_, kept in zip(texts, scores["m"].to_pylist(), scores["kept"].to_pylist(), strict=True):
        found = dict(zip(*library.predict(text.replace("\n", " "), k=3), strict=True))
        assert score_ == pytest.approx(found["__label__l1"] + found["__label__l2"], abs=2e-6)
        assert kept == (score_ >= 0.5)
    assert 0 < manifest.stats["documents_kept"] < 5 or shape
    assert model.inputs[0].digest == sha256_bytes(path.read_bytes())
    assert path.stat().st_nlink == 1, "a copy, no link"
    before = scores_of(model, tmp_path / "root", ["the cat"])
    path.unlink()  # the artifact has the model
    assert scores_of(model, tmp_path / "root", ["the cat"]) == before


def test_a_score_that_is_no_number_ends_the_stage(tmp_path, monkeypatch):
    """NaN is outside no bounds, so a filter that passes it would keep every document."""

    def huge(end):
        """Finite weights, but the sum of two of them is not; those of the first row, a text's end, are `end`."""

        def matrix(_, rows, columns):
            values = np.full((rows, columns), 3e38, "<f4")
            values[0] = end
            return struct.pack("<qq", rows, columns) + values.tobytes()

        monkeypatch.setattr(fasttext_models, "matrix", matrix)
        return model_bytes()

    (tmp_path / "q.bin").write_bytes(huge(end=3e38))
    settings = ClassifierConfig(name="m", model="q.bin", positive=("l1",), min_score=0.5)
    runtime = Runtime(tmp_path / "root")
    with pytest.raises(PipelineError, match="classifier m: the score of a plain sentence is nan"):
        train_classifier(settings, tmp_path, runtime)
    (tmp_path / "q.bin").write_bytes(huge(end=0.0))
    model = train_classifier(settings, tmp_path, runtime)
    with pytest.raises(PipelineError, match="classifier m: the score of web/f#0 is nan"):
        classify(corpus(tmp_path / "root", ["the cat", "sat"]), [(settings, model)], runtime)
    with pytest.raises(PipelineError, match="the score of text 1 is nan"):
        scores_of(model, tmp_path / "root", ["the cat", "sat"])


def save_classifier(folder, labels=2, deviation=0.02):
    """A folder with a small classifier of random weights, as `transformers` saves it; the model and its tokenizer."""
    transformers = pytest.importorskip("transformers", reason="needs transformers, of the extra `dev`")
    import torch

    folder.mkdir()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=KINDS["bert"][0](), unk_token="[UNK]", pad_token="[SEP]", model_max_length=16
    )
    tokenizer.save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    shape["initializer_range"] = deviation
    torch.manual_seed(3)
    theirs = transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=len(tokenizer), num_labels=labels, max_position_embeddings=16, **shape)
    ).eval()
    theirs.save_pretrained(folder)
    return theirs, tokenizer


@pytest.mark.parametrize("labels", [1, 2])
def test_a_transformers_classifier_scores_and_removes(tmp_path, labels):
    theirs, tokenizer = save_classifier(tmp_path / "m", labels)
    texts = [" ".join(KIND[:count]) for count in range(1, 10)] + ["the quick brown fox " * 40]
    negative = ("LABEL_0",) if labels == 2 else ()
    settings = ClassifierConfig(name="m", model="m", positive=("LABEL_1",), negative=negative, max_score=5.0)
    model, scores, _ = judged(tmp_path, settings, texts)
    assert model.stats == {"kind": "transformers", "file": "", "labels": labels}
    for text, score_ in zip(texts, scores["m"].to_pylist(), strict=True):
        logits = theirs(**tokenizer(text, truncation=True, max_length=16, return_tensors="pt")).logits[0]
        expected = logits[0] if labels == 1 else logits.softmax(0)[1] - logits.softmax(0)[0]
        assert score_ == pytest.approx(float(expected), abs=2e-5)
    assert np.isfinite(scores_of(model, tmp_path / "root", ["", " ", "\n"])).all()


@pytest.mark.parametrize(
    ("files", "settings", "words"),
    [
        ({}, {"model": "m"}, "no such file or folder"),
        ({"m/weights.pt": b""}, {"model": "m"}, "has no config.json"),
        ({"m/config.json": b"{}", "m/pytorch_model.bin": b""}, {"model": "m"}, "no weights as safetensors"),
        ({"m/config.json": b"{}", "m/model.safetensors": b""}, {"model": "m"}, "has no tokenizer.json"),
        (
            {
                "m/config.json": b"{}",
                "m/model.safetensors": b"",
                "m/tokenizer.json": b"",
                "m/tokenizer_config.json": b"",
            },
            {"model": "m"},
            "transformers cannot load",
        ),
        ({"m.pkl": b""}, {"model": "m.pkl"}, "neither a fastText model"),
        ({"m.bin": b"PK\x03\x04" * 50}, {"model": "m.bin"}, "not a fastText model"),
        ({"m.bin": model_bytes()}, {"model": "m.bin", "positive": ("hq",)}, "the model's labels are .'l0', 'l1'."),
    ],
)
def test_models_that_cannot_be_used_are_reported(tmp_path, files, settings, words):
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(PipelineError, match=words):
        train_classifier(ClassifierConfig(name="m", **settings), tmp_path, Runtime(tmp_path / "root"))
    assert not (tmp_path / "root" / "classifier").exists() or not list(tmp_path.glob("root/classifier/*/manifest.json"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "give either paths"),
        ({"paths": ["a"], "model": "b"}, "give either paths"),
        ({"paths": ["a"], "max_score": 1.5}, "not within 0 and 1"),
        ({"model": "b", "positive": ["hq", "__label__hq"]}, "name a label twice"),
        ({"model": "b", "positive": ["hq"], "negative": ["hq"]}, "name a label twice"),
        ({"paths": ["a"], "negative": ["0"]}, "negative is for a model made elsewhere"),
    ],
)
def test_settings_that_exclude_one_another_are_reported(values, words):
    with pytest.raises(ConfigError, match=words):
        validate({"name": "m", **values}, ClassifierConfig, "run.toml")
