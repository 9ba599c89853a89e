"""A token that begins each document is trained on, read back, counted, and disturbs nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import read_table
from data_pipeline.tokens.encode import FEATURES_SCHEMA, SPLITS, EncodeConfig, encode
from data_pipeline.tokens.token_shards import TokenShard
from data_pipeline.tokens.tokenizer import TokenizerConfig, load_encoder, train_tokenizer
from data_pipeline.trace import trace
from governance.checks.tokens import TokenReaders, shards_of, token_row
from governance.config import validate
from governance.errors import ConfigError
from governance.stage import Runtime
from pretrain.data.dataset import open_rows
from tests.data_pipeline.test_encode import CORPUS, artifact

TOKENS = ("<|endoftext|>", "<|begin|>")
BOS = TokenizerConfig(vocabulary_size=400, special_tokens=TOKENS, bos="<|begin|>")
END, BEGIN = 0, 1


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("begun")
    documents = artifact(root, CORPUS)
    tokenizer = train_tokenizer(documents, BOS, Runtime(root))
    return root, documents, tokenizer, encode(documents, tokenizer, EncodeConfig(validation_share=0.4), Runtime(root))


@pytest.fixture(scope="module")
def encoder(corpus):
    root, _, tokenizer, _ = corpus
    return load_encoder(tokenizer, root)


@settings(max_examples=50)
@given(st.lists(st.text(max_size=12), max_size=5))
def test_every_text_begins_and_ends_once_and_comes_back(encoder, texts):
    for text, ids in zip(texts, encoder.encode_documents(texts), strict=True):
        assert (ids[0], ids[-1]) == (BEGIN, END)
        assert all(encoder.is_text(index) for index in ids[1:-1].tolist())
        assert encoder.decode(ids) == text
        assert encoder.encode(text).tolist() == ids[:-1].tolist()
        assert ids.dtype == encoder.dtype


def test_documents_begin_with_it_and_their_first_token_is_predicted(corpus):
    root, _, _, tokens = corpus
    assert (tokens.stats["begin_of_document"], tokens.stats["end_of_document"]) == (BEGIN, END)
    assert tokens.stats["round_trip_failed"] == tokens.stats["documents_without_end"] == 0
    for split in SPLITS:
        rows = open_rows(tokens, split, root, 16)
        spelled = documents = 0
        for shard in rows.shards:
            starts = np.append(0, shard.document_ends.astype(np.int64))[:-1]
            assert np.all(shard.tokens[starts] == BEGIN)
            assert np.count_nonzero(shard.tokens == BEGIN) == len(starts)
            documents += len(starts)
            spelled += len(shard.tokens) - len(starts)
        assert rows.targets == spelled  # each token of each text, and its end
        batch = rows.batch(list(range(rows.count)))
        firsts = np.count_nonzero((batch.tokens.numpy() == BEGIN) & (batch.targets.numpy() >= 0))
        assert firsts == documents > 0
        assert BEGIN not in batch.targets.numpy()
    table = [
        row for path in tokens.files("token_features", root) for row in read_table(path, FEATURES_SCHEMA).to_pylist()
    ]
    assert all(row["first_token_ok"] and row["ends_with_eod"] for row in table)
    assert any(row["tokens"] == 2 for row in table) == any(not text for texts in CORPUS for text in texts)


def test_the_audit_counts_it_as_no_unknown_id(corpus):
    root, documents, tokenizer, tokens = corpus
    readers = TokenReaders(TokenShard.open, load_encoder)
    rows = [token_row(shard) for shard in shards_of(tokens, tokenizer, documents, root, readers)]
    assert sum(row["documents"] for row in rows) == sum(map(len, CORPUS))
    assert {(row["unknown"], row["round_trip_failed"], row["problem"]) for row in rows} == {(0, 0, None)}


def test_it_leads_to_no_character(corpus):
    root, _, _, tokens = corpus
    path = next(path for path in tokens.files("train", root) if len(TokenShard.open(path).tokens))
    begin, first = trace(path, 0, root), trace(path, 1, root)
    assert (begin.token, begin.span, begin.problem) == (BEGIN, None, "")
    assert first.span is None or first.span[0] == 0


def test_without_it_the_section_is_what_it_was():
    assert "bos" not in TokenizerConfig().model_dump(mode="json")
    assert BOS.model_dump(mode="json")["bos"] == "<|begin|>"
    with pytest.raises(ConfigError, match="not one of special_tokens"):
        validate({"bos": "<|begin|>"}, TokenizerConfig, "run.toml")


def test_the_end_may_begin_documents_too(tmp_path):
    documents = artifact(tmp_path, CORPUS)
    config = TokenizerConfig(vocabulary_size=400, bos="<|endoftext|>")
    tokenizer = train_tokenizer(documents, config, Runtime(tmp_path))
    tokens = encode(documents, tokenizer, EncodeConfig(validation_share=0.4), Runtime(tmp_path))
    readers = TokenReaders(TokenShard.open, load_encoder)
    rows = [token_row(shard) for shard in shards_of(tokens, tokenizer, documents, tmp_path, readers)]
    assert {row["unknown"] for row in rows} == {0}
    assert load_encoder(tokenizer, tmp_path).encode_documents([""])[0].tolist() == [0, 0]
