"""Labels travel beside the tokens; no group and no text is on two sides; bad rows are refused by name."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.config import DataConfig
from data_pipeline.documents import DOCUMENT_SCHEMA, with_kept_columns, write_table
from data_pipeline.tokens.encode import EncodeConfig, encode
from data_pipeline.tokens.labels import ClassificationConfig, assign_folds, refuse_overlap, split_documents
from data_pipeline.tokens.pack import PackConfig, pack
from data_pipeline.tokens.token_shards import NO_TARGET, EncodedDocument, TokenShard, write_token_shard
from data_pipeline.tokens.tokenizer import TokenizerConfig, load_encoder, train_tokenizer
from governance.config import validate
from governance.errors import ConfigError, PipelineError
from governance.manifest import Manifest, describe, write_manifest
from governance.stage import Runtime
from pretrain.data.dataset import open_rows
from tests.conftest import tale
from tests.data_pipeline.test_tokenizer import artifact
from tests.manifests import manifest_of

LABELS = ("storm", "calm")
SCHEMA = with_kept_columns(DOCUMENT_SCHEMA, pa.schema([pa.field("columns", pa.large_string(), nullable=False)]))


def documents(root, rows) -> Manifest:
    """A shard of every ten rows (text, columns)."""
    outputs = []
    for number, first in enumerate(range(0, len(rows), 10)):
        held = [
            {
                "id": f"s/f#{first + place}", "text": text, "source": "s", "url": "", "language": "en",
                "licence": "CC0-1.0", "sha256": "0" * 64, "file": "f", "position": place, "opt_out": "",
                "opt_out_fetched": "", "columns": json.dumps(columns),
            }
            for place, (text, columns) in enumerate(rows[first : first + 10])
        ]  # fmt: skip
        path = root / "redact" / ("1" * 16) / "documents" / f"{number:05}.parquet"
        write_table(path, pa.Table.from_pylist(held, schema=SCHEMA))
        outputs.append(describe(path, root))
    made = manifest_of("redact", outputs, key="1")
    write_manifest(made, root)
    return made


def notes(count: int, **more) -> list[tuple[str, dict]]:
    return [
        (
            tale(number, 20),
            {"label": LABELS[number % 2], "author": f"a{number % 7}", "date": f"20{number + 10}-03", **more},
        )
        for number in range(count)
    ]


def split(root, rows, share: float = 0.0, **settings):
    made = documents(root, rows)
    config = validate({"labels": LABELS, **settings}, ClassificationConfig, "test")
    parts = split_documents(made.files("documents", root), config, share)
    return [np.concatenate([getattr(part, name) for part in parts]) for name in ("numbers", "sides", "units")]


def test_labelled_documents_reach_the_rows_of_training(tmp_path):
    """Each row's only targets are the labels, at the last token of each text, or of the row that a long text fills."""
    rows = notes(30)
    rows[3] = (tale(3, 300), rows[3][1])
    runtime = Runtime(tmp_path)
    tokenizer = train_tokenizer(
        artifact(tmp_path, [[text for text, _ in rows]]), TokenizerConfig(vocabulary_size=300), runtime
    )
    config = EncodeConfig(
        validation_share=0.0, classification=ClassificationConfig(labels=LABELS, test_from="2035", date="date")
    )
    tokens = encode(documents(tmp_path, rows), tokenizer, config, runtime)
    assert tokens.stats["label_counts"]["test"] == {"storm": 2, "calm": 3}
    assert tokens.stats["removed"] == {"test_set": 5}
    shards = [TokenShard.open(path) for path in tokens.files("train", tmp_path)]
    encoder = load_encoder(tokenizer, tmp_path)
    expected = {}
    packed = pack(tokens, PackConfig(sequence_length=128, min_used_share=0), runtime)
    assert packed.stats["train_truncated"] == 1
    for number, (text, columns) in enumerate(rows[:25]):
        expected[number] = encoder.encode(text).tolist()[:128], LABELS.index(columns["label"])
    found, data = [], open_rows(packed, "train", tmp_path, 128)
    assert data.targets == 25
    for index in range(data.count):
        batch = data.batch([index])
        targets, segments = batch.targets[0].numpy(), batch.segments[0].numpy()
        for place in np.flatnonzero(targets != NO_TARGET).tolist():
            mine = np.flatnonzero(segments == segments[place])
            assert mine[-1] == place
            found.append((batch.tokens[0].numpy()[mine].tolist(), int(targets[place])))
    assert sorted(found) == sorted(expected.values())
    assert sum(len(shard.document_ends) for shard in shards) == 25


def test_unpacked_labelled_shards_are_refused(tmp_path):
    rows, runtime = notes(20), Runtime(tmp_path)
    tokenizer = train_tokenizer(
        artifact(tmp_path, [[text for text, _ in rows]]), TokenizerConfig(vocabulary_size=300), runtime
    )
    config = EncodeConfig(validation_share=0.0, classification=ClassificationConfig(labels=LABELS))
    with pytest.raises(ConfigError, match="packed rows"):
        open_rows(encode(documents(tmp_path, rows), tokenizer, config, runtime), "train", tmp_path, 32)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=12))
def test_a_labelled_shard_reads_as_it_was_written(tmp_path_factory, made):
    path = tmp_path_factory.mktemp("shard") / "0.tokens"
    texts = [np.append(np.arange(1, length + 1), 0) for length, _ in made]
    write_token_shard(
        path, [EncodedDocument(str(n), text, 5, label=made[n][1]) for n, text in enumerate(texts)], 100, 0
    )
    shard = TokenShard.open(path)
    assert shard.labels.tolist() == [label for _, label in made]
    assert shard.answers is None
    assert shard.tokens.tolist() == np.concatenate(texts).tolist()
    assert shard.document_targets().tolist() == [1] * len(made)
    assert shard.group_names == ("unknown/und",)


SIZES = st.lists(st.integers(1, 30), min_size=2, max_size=15)


@given(SIZES, st.integers(2, 5))
def test_grouped_folds_have_the_sizes_of_scikit_learn(sizes, folds):
    """GroupKFold of scikit-learn 1.9.1; no group is in two folds."""
    from sklearn.model_selection import GroupKFold

    groups = [f"g{number}" for number, size in enumerate(sizes) for _ in range(size)]
    folds = min(folds, len(sizes))
    ours = assign_folds(groups, np.zeros(len(groups), np.int64), folds, grouped=True)
    assert all(
        len({fold for fold, one in zip(ours.tolist(), groups, strict=True) if one == group}) == 1 for group in groups
    )
    theirs = [len(test) for _, test in GroupKFold(folds).split(groups, groups=groups)]
    assert sorted(Counter(ours.tolist()).values()) == sorted(theirs)


@given(st.lists(st.integers(0, 2), min_size=6, max_size=60), st.integers(2, 5))
def test_folds_without_groups_deal_each_label_evenly(labels, folds):
    """As StratifiedKFold of scikit-learn 1.9.1 promises: within one document of the even share."""
    ours = assign_folds([f"u{n}" for n in range(len(labels))], np.array(labels), folds, grouped=False)
    for label in set(labels):
        counts = [
            sum(1 for fold, one in zip(ours.tolist(), labels, strict=True) if (fold, one) == (k, label))
            for k in range(folds)
        ]
        assert max(counts) - min(counts) <= 1
    sizes = np.bincount(ours, minlength=folds)
    assert sizes.max() - sizes.min() <= 1


@settings(max_examples=20)
@given(st.integers(0, 2))
def test_no_group_is_on_two_sides(tmp_path_factory, fold):
    root = tmp_path_factory.mktemp("groups")
    _, sides, _ = split(root, notes(70), 0.3, group="author", folds=3, fold=fold)
    groups = [f"a{number % 7}" for number in range(70)]
    assert len(set(zip(groups, sides.tolist(), strict=True))) == 7
    assert set(sides.tolist()) >= {"train", "test"}


def test_every_document_is_tested_in_exactly_one_fold(tmp_path):
    tested = np.stack([split(tmp_path, notes(40), 0.2, folds=4, fold=fold)[1] == "test" for fold in range(4)])
    assert (tested.sum(0) == 1).all()


def test_a_time_split_trains_before_and_tests_after(tmp_path):
    _, sides, _ = split(tmp_path, notes(40), date="date", test_from="2040")
    assert [side == "test" for side in sides] == [number + 10 >= 40 for number in range(40)]


def test_copies_stay_on_one_side(tmp_path):
    rows = notes(30)
    rows += [(text.upper(), columns) for text, columns in rows]
    _, sides, _ = split(tmp_path, rows, 0.3, test_share=0.3)
    assert sides[:30].tolist() == sides[30:].tolist()


def changed(place: int, **values):
    rows = notes(40)
    rows[place] = (rows[place][0], {**rows[place][1], **values})
    return rows


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (changed(13, label=None), {}, "document s/f#13 has no 'label'"),
        (changed(7, label="fog"), {}, "document s/f#7 has the label 'fog'"),
        (changed(9, author=""), {"group": "author", "test_share": 0.2}, "document s/f#9 has no 'author'"),
        (changed(5, date=None), {"date": "date", "test_from": "2030"}, "document s/f#5 has no 'date'"),
        (changed(5, date="May"), {"date": "date", "test_from": "2030"}, "document s/f#5 has the date 'May'"),
        (changed(5, date="2030"), {"date": "date", "test_from": "2030-06"}, "write dates as YYYY-MM"),
        (changed(5, date="2031-99"), {"date": "date", "test_from": "2030"}, "document s/f#5 has the date '2031-99'"),
        (changed(5, date="2031-02-29"), {"date": "date", "test_from": "2030"}, "has the date '2031-02-29'"),
        (notes(40, label="storm"), {}, "no training document has the label 'calm'"),
        (notes(40), {"date": "date", "test_from": "2099"}, "the test side has no document"),
        (notes(3), {"folds": 5}, "there are 3 distinct texts"),
    ],
)  # fmt: skip
def test_bad_rows_are_refused_by_name(tmp_path, rows, settings, message):
    with pytest.raises(PipelineError, match=message):
        split(tmp_path, rows, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_from": "2030"}, "set date to the column"),
        ({"test_from": "2031-99", "date": "date"}, "'2031-99' is not a calendar date"),
        ({"test_from": "2031-02-30", "date": "date"}, "is not a calendar date"),
        ({"test_from": "2030", "date": "date", "group": "author"}, "would split a group"),
        ({"test_from": "2030", "date": "date", "folds": 3}, "three ways to split"),
        ({"folds": 3, "fold": 3}, "fold below folds"),
        ({"labels": ["storm", "storm"]}, "twice"),
        ({"labels": ["storm"]}, "at least 2"),
    ],
)
def test_a_wrong_section_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        validate({"labels": LABELS, **settings}, ClassificationConfig, "test")


def test_a_test_text_of_the_training_set_is_refused():
    train = [tale(number, 60) for number in range(20)]
    near = train[4].split()
    near[30] = "zebra"
    test = [tale(99, 60), train[7].upper().replace(" ", "  "), " ".join(near)]
    with pytest.raises(PipelineError) as error:
        refuse_overlap((["t0", "t1", "t2"], pa.array(test)), ([f"d{n}" for n in range(20)], pa.array(train)))
    assert "2 test document(s)" in str(error.value)
    assert "t1 is in training as d7\n" in str(error.value)
    assert "t2 is in training as d4 (similarity" in str(error.value)
    refuse_overlap((["t0"], pa.array(test[:1])), ([f"d{n}" for n in range(20)], pa.array(train)))


def test_a_column_that_is_not_kept_is_met_with_those_that_are():
    source = {"type": "jsonl", "name": "notes", "licence": "MIT", "paths": ["a.jsonl"], "columns": ["label", "date"]}
    values = {"sources": [source], "encode": {"classification": {"label": "lable", "labels": ["storm", "calm"]}}}
    with pytest.raises(ConfigError, match=r"reads 'lable', .* of the source notes; .*\(sources keep: label, date\)"):
        validate({**values, "pack": {"sequence_length": 64, "min_used_share": 0}}, DataConfig, "run.toml")
