"""The encode stage: every document in one split, its tokens whole, the counts true, the bytes the same everywhere."""

import dataclasses
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.receipts.corpus_names import read_names
from data_pipeline.documents import read_table, write_table
from data_pipeline.tokens.encode import FEATURES_SCHEMA, SPLITS, EncodeConfig, encode, encode_table, split_of
from data_pipeline.tokens.labels import content_digests
from data_pipeline.tokens.mix import PLAN_SCHEMA
from data_pipeline.tokens.token_shards import TokenShard, group_name
from data_pipeline.tokens.tokenizer import TokenizerConfig, load_encoder, train_tokenizer
from governance.config import validate
from governance.errors import ConfigError, ManifestError, PipelineError
from governance.manifest import describe, write_manifest
from governance.receipts.verify_receipt import KINDS as NAME_KINDS
from governance.receipts.verify_receipt import name_of
from governance.stage import Runtime
from tests.data_pipeline.test_token_shards import find_document
from tests.data_pipeline.test_tokenizer import artifact
from tests.data_pipeline.tokenizer_kinds import KINDS, WORDS
from tests.manifests import manifest_of

PHRASES = ["the quick brown fox isn't here. ", "Der schnelle Fuchs läuft über 12 Wiesen.\n", "中文 <|endoftext|> é "]
CORPUS = [[PHRASES[place % 3] * (1 + place % 5) + str(place) for place in range(60)], ["", "one", "one"], []]
CONFIG = EncodeConfig(validation_share=0.25)


def content_digest(text):
    return content_digests(pa.array([text], pa.large_string()))[0]


def made(root, workers=1, config=CONFIG):
    documents = artifact(root, CORPUS)
    tokenizer = train_tokenizer(documents, TokenizerConfig(vocabulary_size=400), Runtime(root))
    return tokenizer, encode(documents, tokenizer, config, Runtime(root, workers=workers))


def test_texts_within_a_wordpiece_vocabulary_pass_the_round_trip(tmp_path):
    """The decoder of WordPiece does not restore the spaces of a text, but the result has the same ids."""
    texts = [["the quick  brown fox isn't here, do n't re-read", f"{WORDS}", "The Cat SAT 2026"]]
    documents = artifact(tmp_path, texts)
    (tmp_path / "tokenizer.json").write_text(KINDS["bert"][0]().to_str(), encoding="utf-8")
    config = TokenizerConfig(path="tokenizer.json", special_tokens=("[SEP]",))
    tokenizer = train_tokenizer(documents, config, Runtime(tmp_path), tmp_path)
    stats = encode(documents, tokenizer, CONFIG, Runtime(tmp_path, workers=1)).stats
    assert tokenizer.stats["round_trip"] == "ids"
    assert (stats["round_trip_checked"] > 0, stats["round_trip_failed"]) == (True, 0)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    root = tmp_path_factory.mktemp("encode")
    return root, *made(root)


def test_each_document_is_in_one_split_and_comes_back(encoded):
    root, tokenizer, manifest = encoded
    encoder = load_encoder(tokenizer, root)
    shards = {split: [TokenShard.open(path) for path in manifest.files(split, root)] for split in SPLITS}
    assert {split: len(opened) for split, opened in shards.items()} == dict.fromkeys(SPLITS, len(CORPUS))
    for number, texts in enumerate(CORPUS):
        for place, text in enumerate(texts):
            found = [
                (split, shard, index)
                for split, opened in shards.items()
                for shard in opened
                for index in find_document(shard, f"s/f{number}#{place}")
            ]
            assert len(found) == 1
            split, shard, index = found[0]
            assert split == split_of(content_digest(text), CONFIG.validation_share)
            ends = [0, *shard.document_ends.tolist()]
            ids = shard.tokens[ends[index] : ends[index + 1]]
            assert ids[-1] == shard.end_of_document == 0
            assert encoder.decode(ids) == text
            assert shard.document_bytes[index] == len(text.encode())
            assert shard.vocabulary_size == encoder.vocabulary_size


def test_the_counts_agree_with_the_shards_and_the_features(encoded):
    root, tokenizer, manifest = encoded
    stats = manifest.stats
    for split in SPLITS:
        opened = [TokenShard.open(path) for path in manifest.files(split, root)]
        assert stats[f"{split}_tokens"] == sum(len(shard.tokens) for shard in opened)
        assert stats[f"{split}_documents"] == sum(len(shard.document_ends) for shard in opened) > 0
        assert stats[f"{split}_bytes"] == sum(int(shard.document_bytes.sum()) for shard in opened)
    size = sum(len(text.encode()) for texts in CORPUS for text in texts)
    assert (stats["documents_in"], stats["documents_kept"], stats["bytes_in"], stats["bytes_kept"]) == (
        63,
        63,
        size,
        size,
    )
    assert stats["removed"] == {}
    assert sum(row["documents_kept"] for row in stats["by_source"].values()) == 63
    assert sum(stats["tokens_by_source"].values()) == stats["train_tokens"] + stats["validation_tokens"]
    languages = stats["by_language"].values()
    for unit in ("tokens", "documents", "bytes"):
        assert sum(entry[unit] for entry in languages) == stats[f"train_{unit}"] + stats[f"validation_{unit}"]
    assert stats["round_trip_checked"] >= 2
    assert stats["round_trip_failed"] == stats["ids_above_vocabulary"] == stats["documents_without_end"] == 0
    assert (stats["vocabulary_size"], stats["end_of_document"]) == (tokenizer.stats["vocabulary_size"], 0)

    rows = [
        row for path in manifest.files("token_features", root) for row in read_table(path, FEATURES_SCHEMA).to_pylist()
    ]
    assert len(rows) == 63
    for code, entry in stats["by_language"].items():
        assert entry["tokens"] == sum(row["tokens"] for row in rows if row["language"] == code)
    for split in SPLITS:
        shards = [TokenShard.open(path) for path in manifest.files(split, root)]
        groups = [shard.group_names[group] for shard in shards for group in shard.groups]
        assert groups == [group_name(row["source"], row["language"]) for row in rows if row["split"] == split]
    assert sum(row["tokens"] for row in rows if row["split"] == "train") == stats["train_tokens"]
    assert all(row["first_token_ok"] and row["ends_with_eod"] for row in rows)
    assert max(row["max_id"] for row in rows) < stats["vocabulary_size"]
    assert manifest.digest == GOLDEN, "bytes changed: raise VERSION in data_pipeline/tokens/encode.py"


GOLDEN = "b51dcf261ba1dd08725ccb4d6cb1847af9b2b52afc46926390460898f4577d75"


def test_workers_do_not_change_a_byte(encoded, tmp_path):
    _, _, one = encoded
    assert made(tmp_path, workers=2)[1].digest == one.digest


@settings(max_examples=200)
@given(st.text(), st.floats(0, 0.99))
def test_equal_contents_fall_on_one_side(text, share):
    digest = content_digest(text)
    assert content_digest(f" \n{text}\t") == digest
    assert content_digest(text.casefold()) == digest
    assert content_digest(text.casefold().upper().casefold()) == content_digest(text.upper())
    assert split_of(digest, 0.0) == "train"
    assert split_of(digest, share) in SPLITS


def test_the_share_is_what_was_requested():
    sides = [split_of(content_digest(f"text {number}"), 0.1) for number in range(20_000)]
    assert sides.count("validation") == pytest.approx(2_000, abs=4 * np.sqrt(1_800))  # four standard deviations


def test_a_split_without_documents_is_an_empty_shard(tmp_path):
    _, manifest = made(tmp_path, config=EncodeConfig(validation_share=0))
    opened = [TokenShard.open(path) for path in manifest.files("validation", tmp_path)]
    assert [len(shard.tokens) for shard in opened] == [0, 0, 0]
    assert manifest.stats["validation_documents"] == 0


def test_an_empty_corpus_is_reported(tmp_path):
    tokenizer, _ = made(tmp_path)
    with pytest.raises(PipelineError, match="no documents"):
        encode(artifact(tmp_path, [[]]), tokenizer, CONFIG, Runtime(tmp_path))
    with pytest.raises(PipelineError, match="no documents"):
        encode(artifact(tmp_path, []), tokenizer, CONFIG, Runtime(tmp_path))


@pytest.mark.parametrize("share", [-0.1, 1.0, "0.1"])
def test_an_impossible_share_is_reported(share):
    with pytest.raises(ConfigError, match="validation_share"):
        validate({"validation_share": share}, EncodeConfig, "run.toml")


def planned(root, copies_by_shard, names=None):
    outputs = []
    for number, copies in enumerate(copies_by_shard):
        name = names[number] if names else f"{number:05}"
        path = root / "mix" / ("1" * 16) / "plan" / f"{name}.parquet"
        rows = {"row": list(range(len(copies))), "copies": copies}
        write_table(path, pa.Table.from_pydict(rows, schema=PLAN_SCHEMA))
        outputs.append(describe(path, root))
    manifest = manifest_of("mix", outputs, key="1")
    write_manifest(manifest, root)
    return manifest


@pytest.mark.parametrize("group_rows", [7, 1000])
def test_a_plan_says_how_often_each_document_is_written(tmp_path, monkeypatch, group_rows):
    documents = artifact(tmp_path, CORPUS)
    for path in documents.files("documents", tmp_path):  # in several row groups
        pq.write_table(pq.read_table(path), path, row_group_size=group_rows)
    listed = tuple(describe(tmp_path / output.path, tmp_path) for output in documents.outputs)
    documents = documents.model_copy(update={"outputs": listed})
    tokenizer = train_tokenizer(documents, TokenizerConfig(vocabulary_size=400), Runtime(tmp_path))
    copies = [[place % 4 for place in range(60)], [0, 2, 1], []]
    plan = planned(tmp_path, copies)
    manifest = encode(documents, tokenizer, CONFIG, Runtime(tmp_path), plan)
    assert plan.as_input() in manifest.inputs
    encoder = load_encoder(tokenizer, tmp_path)
    written = {split: [] for split in SPLITS}
    for number, texts in enumerate(CORPUS):
        opened = {split: TokenShard.open(manifest.files(split, tmp_path)[number]) for split in SPLITS}
        for place, text in enumerate(texts):
            split = split_of(content_digest(text), CONFIG.validation_share)
            found = {side: find_document(shard, f"s/f{number}#{place}") for side, shard in opened.items()}
            assert {side: len(places) for side, places in found.items()} == {
                side: copies[number][place] * (side == split) for side in SPLITS
            }
            if len(CORPUS[number]) > 3 and copies[number][place] > 1:
                assert np.diff(found[split]).min() > 1  # its copies are apart
            written[split] += [text] * copies[number][place]
    stats = manifest.stats
    for split in SPLITS:
        ids = encoder.encode_documents(written[split])
        assert stats[f"{split}_documents"] == len(ids)
        assert stats[f"{split}_tokens"] == sum(map(len, ids))
        assert stats[f"{split}_bytes"] == sum(len(text.encode()) for text in written[split])
    assert stats["removed"] == {"mix_quota": 16}
    assert (stats["documents_in"], stats["documents_kept"]) == (63, 47)
    kept = [text for texts, row in zip(CORPUS, copies, strict=True) for text, k in zip(texts, row, strict=True) if k]
    assert stats["bytes_kept"] == sum(len(text.encode()) for text in kept)
    assert sum(stats["tokens_by_source"].values()) == stats["train_tokens"] + stats["validation_tokens"]
    features = [read_table(path, FEATURES_SCHEMA) for path in manifest.files("token_features", tmp_path)]
    assert sum(table.num_rows for table in features) == sum(map(sum, copies))
    names = read_names(manifest, tmp_path)
    found = dict(zip(map(bytes, names.identities), zip(names.copies, names.held_out, strict=True), strict=True))
    opened = {split: [TokenShard.open(path) for path in manifest.files(split, tmp_path)] for split in SPLITS}
    counted = {split: Counter(bytes(one) for shard in opened[split] for one in shard.identities) for split in SPLITS}
    assert found == {one: tuple(counted[split][one] for split in SPLITS) for split in SPLITS for one in counted[split]}
    assert list(names.shard_tokens) == [len(shard.tokens) for shard in opened["train"]]
    known = {(kind, bytes(name), bytes(names.identities[of])) for kind, name, of in zip(
        names.kinds, names.names, names.documents, strict=True)}  # fmt: skip
    expected = set()
    for number, texts in enumerate(CORPUS):
        for place, text in enumerate(texts):
            if copies[number][place]:
                own = name_of("id", f"s/f{number}#{place}")
                expected |= {(NAME_KINDS["text"], name_of("text", text), own), (NAME_KINDS["id"], own, own),
                             (NAME_KINDS["raw text"], bytes(16), own)}  # fmt: skip
    assert known == expected  # no document of this corpus has a URL


def test_one_copy_of_each_gives_the_shards_of_no_plan(encoded, tmp_path):
    _, _, without = encoded
    documents = artifact(tmp_path, CORPUS)
    tokenizer = train_tokenizer(documents, TokenizerConfig(vocabulary_size=400), Runtime(tmp_path))
    plan = planned(tmp_path, [[1] * len(texts) for texts in CORPUS])
    manifest = encode(documents, tokenizer, CONFIG, Runtime(tmp_path), plan)
    assert [output.sha256 for output in manifest.outputs] == [output.sha256 for output in without.outputs]
    assert manifest.stats == without.stats
    assert manifest.key != without.key


@pytest.mark.parametrize(
    ("copies", "names", "message"),
    [
        ([[1] * 59, [1] * 3, []], None, "must have one row for each document"),
        ([[1] * 61, [1] * 3, []], None, "must have one row for each document"),
        ([[-1] * 60, [1] * 3, []], None, "is not a plan"),
        ([[1] * 60, [1] * 3, []], ["00000", "00001", "00009"], "no plan for"),
        ([[0] * 60, [0] * 3, []], None, "in the plan"),
    ],
)
def test_a_plan_of_other_documents_is_reported(tmp_path, copies, names, message):
    documents = artifact(tmp_path, CORPUS)
    tokenizer = train_tokenizer(documents, TokenizerConfig(vocabulary_size=400), Runtime(tmp_path))
    with pytest.raises((ManifestError, PipelineError), match=message):
        encode(documents, tokenizer, CONFIG, Runtime(tmp_path), planned(tmp_path, copies, names))


def test_row_groups_do_not_change_a_byte(encoded, tmp_path):
    root, tokenizer, _ = encoded
    [path] = [path for path in (root / "redact").rglob("*.parquet") if path.stem == "00000"]
    encoder = load_encoder(tokenizer, root)
    table = read_table(path)
    whole = encode_table(table, encoder, CONFIG, np.ones(60, np.int64))
    halves = [encode_table(table.slice(at, 30), encoder, CONFIG, np.ones(30, np.int64)) for at in (0, 30)]
    assert pa.concat_tables(half.features for half in halves) == whole.features
    together = [document for half in halves for document in half.documents]
    for left, right in zip(together, whole.documents, strict=True):
        assert (left.id, left.bytes, left.tokens.tolist()) == (right.id, right.bytes, right.tokens.tolist())


def test_damaged_ids_are_counted(encoded):
    """An engine that gives an id beyond the vocabulary, and no end token, is found by the features and the counts."""
    root, tokenizer, _ = encoded
    encoder = load_encoder(tokenizer, root)

    def damaged(texts):
        ids, ends = encoder.run(texts)
        ids = ids.copy()
        ids[0], ids[ends[1] - 1] = encoder.vocabulary_size, 5
        return ids, ends

    broken = dataclasses.replace(encoder, run=damaged, pieces=(*encoder.pieces, b"?"))
    [path] = [path for path in (root / "redact").rglob("*.parquet") if path.stem == "00000"]
    found = encode_table(read_table(path), broken, CONFIG, np.ones(60, np.int64))
    assert found.stats["ids_above_vocabulary"] == found.stats["documents_without_end"] == 1
    assert found.stats["round_trip_failed"] == 1
    row = found.features.to_pylist()[0]
    assert row["max_id"] == encoder.vocabulary_size
    assert not row["ends_with_eod"]
