"""The encode stage: every document in one split, its tokens whole, the counts true, the bytes the same everywhere."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import DOCUMENT_SCHEMA, read_table, write_table
from data_pipeline.encode import FEATURES_SCHEMA, SPLITS, EncodeConfig, content_digest, encode, split_of
from data_pipeline.token_shards import TokenShard, find_document
from data_pipeline.tokenizer import TokenizerConfig, load_encoder, train_tokenizer
from governance.config import validate
from governance.errors import ConfigError, PipelineError
from governance.manifest import Manifest, describe, write_manifest
from governance.stage import Runtime

PHRASES = ["the quick brown fox isn't here. ", "Der schnelle Fuchs läuft über 12 Wiesen.\n", "中文 <|endoftext|> é "]
CORPUS = [[PHRASES[place % 3] * (1 + place % 5) + str(place) for place in range(60)], ["", "one", "one"], []]
CONFIG = EncodeConfig(validation_share=0.25)


def artifact(root, texts_by_shard):
    outputs = []
    for number, texts in enumerate(texts_by_shard):
        rows = [
            {
                "id": f"s/f{number}#{place}", "text": text, "source": f"s{place % 3}", "url": "", "language": "en",
                "licence": "CC0-1.0", "sha256": "", "file": "f", "position": place,
            }
            for place, text in enumerate(texts)
        ]  # fmt: skip
        path = root / "redact" / ("0" * 16) / "documents" / f"{number:05}.parquet"
        write_table(path, pa.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA))
        outputs.append(describe(path, root))
    manifest = Manifest(
        stage="redact", version=1, key="0" * 64, config={}, inputs=(), outputs=tuple(outputs), stats={}, run={}
    )
    write_manifest(manifest, root)
    return manifest


def made(root, workers=1, config=CONFIG):
    documents = artifact(root, CORPUS)
    tokenizer = train_tokenizer(documents, TokenizerConfig(vocabulary_size=400), Runtime(root))
    return tokenizer, encode(documents, tokenizer, config, Runtime(root, workers=workers))


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
    assert stats["round_trip_checked"] >= 2
    assert stats["round_trip_failed"] == stats["ids_above_vocabulary"] == stats["documents_without_end"] == 0
    assert (stats["vocabulary_size"], stats["end_of_document"]) == (tokenizer.stats["vocabulary_size"], 0)

    rows = [
        row for path in manifest.files("token_features", root) for row in read_table(path, FEATURES_SCHEMA).to_pylist()
    ]
    assert len(rows) == 63
    assert sum(row["tokens"] for row in rows if row["split"] == "train") == stats["train_tokens"]
    assert all(row["first_token_ok"] and row["ends_with_eod"] for row in rows)
    assert max(row["max_id"] for row in rows) < stats["vocabulary_size"]
    assert manifest.digest == GOLDEN, "bytes changed: raise VERSION in data_pipeline/encode.py"


GOLDEN = "1241e15a837d0e9b36fa37bdb436c1734ff8c9e24cb6b9fc084326bc88289c99"


def test_workers_do_not_change_a_byte(encoded, tmp_path):
    _, _, one = encoded
    assert made(tmp_path, workers=2)[1].digest == one.digest


@settings(max_examples=200, deadline=None)
@given(st.text(), st.floats(0, 0.99))
def test_equal_contents_fall_on_one_side(text, share):
    spaced = f" \n{text}\t"
    assert split_of(content_digest(text), share) == split_of(content_digest(spaced), share)
    assert split_of(content_digest(text.casefold()), share) == split_of(content_digest(text), share)
    assert split_of(content_digest(text), 0.0) == "train"


def test_the_share_is_what_was_asked():
    sides = [split_of(content_digest(f"text {number}"), 0.1) for number in range(20_000)]
    assert sides.count("validation") == pytest.approx(2_000, abs=4 * np.sqrt(1_800))  # four standard deviations


def test_a_split_without_documents_is_an_empty_shard(tmp_path):
    _, manifest = made(tmp_path, config=EncodeConfig(validation_share=0))
    opened = [TokenShard.open(path) for path in manifest.files("validation", tmp_path)]
    assert [len(shard.tokens) for shard in opened] == [0, 0, 0]
    assert manifest.stats["validation_documents"] == 0


def test_an_empty_corpus_is_told(tmp_path):
    tokenizer, _ = made(tmp_path)
    with pytest.raises(PipelineError, match="no documents"):
        encode(artifact(tmp_path, [[]]), tokenizer, CONFIG, Runtime(tmp_path))
    with pytest.raises(PipelineError, match="no documents"):
        encode(artifact(tmp_path, []), tokenizer, CONFIG, Runtime(tmp_path))


@pytest.mark.parametrize("share", [-0.1, 1.0, "0.1"])
def test_an_impossible_share_is_told(share):
    with pytest.raises(ConfigError, match="validation_share"):
        validate({"validation_share": share}, EncodeConfig, "run.toml")
