"""Instruction texts: training predicts the answers' tokens and no others, and what has no answer is refused."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.config import DataConfig
from data_pipeline.normalised_text import normalise
from data_pipeline.readers.file_types.chats import messages_fault, messages_text
from data_pipeline.tokens.encode import EncodeConfig, encode, encode_table
from data_pipeline.tokens.pack import PackConfig, pack, pieces_of
from data_pipeline.tokens.packed_rows import PackedRows, read_packed_row, shards_of
from data_pipeline.tokens.token_shards import EncodedDocument, TokenShard, group_name, read_row, write_token_shard
from data_pipeline.tokens.tokenizer import TokenizerConfig, load_encoder, train_tokenizer
from governance.config import validate
from governance.errors import ConfigError, PipelineError
from governance.stage import Runtime
from tests.data_pipeline.test_tokenizer import artifact

ASK, TELL = "user", "assistant"
WORDS = [
    "quine",
    " läuft",
    "\n",
    "12",
    "中文 ",
    " a  program",
    "<|im",
    "<|im_start",
    "é",
    "\ufeff",
    "\x00",
    "\r",
    "e\u0301",
]
CONTENTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map("".join)
CHATS = st.lists(
    st.tuples(st.sampled_from(["system", ASK]), CONTENTS, CONTENTS.map(lambda text: text + "x")), min_size=1, max_size=3
)
ANSWERS = EncodeConfig(validation_share=0.0, loss_on="answers")


def text_of(turns):
    """The text of a chat, and the byte ranges of its answers, written out by hand.

    The last ends behind the text, where the end-of-document token is.
    """
    text, spans = b"", []
    for role, question, answer in turns:
        text += f"<|im_start|>{role}\n{question}<|im_end|>\n<|im_start|>assistant\n".encode()
        spans.append((len(text), len(text) + len(f"{answer}<|im_end|>".encode())))
        text += f"{answer}<|im_end|>\n".encode()
    return text.decode(), [*spans[:-1], (spans[-1][0], len(text) + 1)]


def messages(turns):
    return [message for role, question, answer in turns for message in
            ({"role": role, "content": question}, {"role": TELL, "content": answer})]  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizer")
    texts = [text_of([(ASK, word * 3, word + "\n\n")])[0] for word in WORDS if "<|im_" not in word]
    return load_encoder(
        train_tokenizer(artifact(root, [texts]), TokenizerConfig(vocabulary_size=330), Runtime(root)), root
    )


OTHER_COLUMNS = {"url": "", "licence": "CC0-1.0", "sha256": "0" * 64}


def table_of(texts):
    names = [f"s/{place}" for place in range(len(texts))]
    return pa.table(
        {
            "id": pa.array(names, pa.large_string()),
            "text": pa.array(texts, pa.large_string()),
            "source": pa.array(["s"] * len(texts), pa.large_string()),
            "language": pa.array(["en"] * len(texts), pa.large_string()),
            **{name: [value] * len(texts) for name, value in OTHER_COLUMNS.items()},
        }
    )


@settings(max_examples=40)
@given(st.lists(CHATS, min_size=1, max_size=3))
def test_a_token_is_predicted_if_its_first_byte_is_of_an_answer(encoder, chats):
    chats = [turns for turns in chats if messages_text(messages(turns), "instructions") is not None]
    texts = [messages_text(messages(turns), "instructions") for turns in chats]
    chats = [[(role, normalise(question), normalise(answer)) for role, question, answer in turns] for turns in chats]
    assert texts == [text_of(turns)[0] for turns in chats] == list(map(normalise, texts))
    made = encode_table(table_of(texts), encoder, ANSWERS, np.ones(len(texts), np.int64))
    for turns, document in zip(chats, made.documents, strict=True):
        place, expected, size = 0, [], 0
        for index in document.tokens.tolist():
            held = any(start <= place < stop for start, stop in text_of(turns)[1])
            expected.append(held)
            size += held * len(encoder.pieces[index])
            place += len(encoder.pieces[index])
        assert document.answers.tolist() == expected
        assert document.bytes == size
    assert made.stats["answer_tokens"] == sum(int(one.answers.sum()) for one in made.documents)


@pytest.mark.parametrize(
    ("chat", "fault"),
    [
        ([{"role": ASK, "content": "Why?"}], "no_answer"),
        ([{"role": TELL, "content": "Because."}], "no_answer"),
        ([{"role": ASK, "content": "Why?"}, {"role": TELL, "content": " \n"}], "no_answer"),
        (
            [{"role": ASK, "content": "a<|im_end|>\n<|im_start|>assistant\nb"}, {"role": TELL, "content": "c"}],
            "no_answer",
        ),
        (
            [
                {"role": ASK, "content": "a<|\ufeffim_end|>\n<|\x00im_start|>assistant\nb"},
                {"role": TELL, "content": "c"},
            ],
            "no_answer",
        ),
        ([{"role": "user\nassistant", "content": "a"}, {"role": TELL, "content": "c"}], "no_answer"),
        ([{"role": "assistant\x0ba", "content": "b"}, {"role": TELL, "content": "c"}], "no_answer"),
        ([{"role": "assis\ufefftant", "content": "b"}, {"role": TELL, "content": "c"}], "no_answer"),
        ([{"role": ASK, "content": "Why?"}, {"role": TELL, "content": "\ufeff\x00"}], "no_answer"),
        ([{"role": ASK}, {"role": TELL, "content": "c"}], "not_messages"),
    ],
)
def test_a_chat_without_an_answer_or_with_a_marker_is_no_instruction(chat, fault):
    assert messages_text(chat, "instructions") is None
    assert messages_fault(chat) == fault


def test_nothing_behind_the_last_answer_is_predicted_where_a_prompt_ends_the_chat(encoder):
    turns = [(ASK, "Why?", "Because.")]
    chat = [*messages(turns), {"role": ASK, "content": "Is it?"}]
    [document] = encode_table(
        table_of([messages_text(chat, "instructions")]), encoder, ANSWERS, np.ones(1, np.int64)
    ).documents
    assert document.bytes == len("Because.<|im_end|>")
    assert not document.answers[-1]


def test_names_of_other_formats_are_the_roles():
    chat = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]
    assert messages_text(chat, "instructions") == text_of([(ASK, "Why?", "Because.")])[0]


def test_a_text_without_an_answer_is_refused_by_name(encoder):
    with pytest.raises(PipelineError, match=r"document s/0 has no answer.*messages_form = 'instructions'"):
        encode_table(table_of(["A plain text."]), encoder, ANSWERS, np.ones(1, np.int64))


@pytest.mark.parametrize(("old", "new"), [(b"|", b"!"), (b"(", b"<")])
def test_a_tokenizer_that_changes_the_markers_is_refused(encoder, old, new):
    """A normaliser may lose a marker, or make one of other characters."""
    other = dataclasses.replace(encoder, pieces=tuple(piece.replace(old, new) for piece in encoder.pieces))
    text = text_of([(ASK, "(|im_start|>assistant\nx<|im_end|>", "b")])[0]
    text = text.replace("x<|im_end|>", "x(|im_end|>")
    assert encode_table(table_of([text]), encoder, ANSWERS, np.ones(1, np.int64)).stats["answer_tokens"]
    with pytest.raises(ConfigError, match=r"has 1 answers or targets, and [02] after the tokenizer"):
        encode_table(table_of([text]), other, ANSWERS, np.ones(1, np.int64))


def prepared(root, chats, length):
    """Chats encoded and packed."""
    texts = [text_of(turns)[0] for turns in chats]
    documents = artifact(root, [texts[::2], texts[1::2]])
    tokenizer = train_tokenizer(documents, TokenizerConfig(vocabulary_size=330), Runtime(root))
    tokens = encode(documents, tokenizer, ANSWERS, Runtime(root, workers=1))
    return tokens, pack(tokens, PackConfig(sequence_length=length, min_used_share=0.0), Runtime(root, workers=1))


def test_rows_predict_each_token_of_an_answer_once(tmp_path):
    chats = [[(ASK, f"Question {n}?", f"Answer {n}." * (1 + n % 3))] * (1 + n % 2) for n in range(9)]
    tokens, packed = prepared(tmp_path, chats, 160)
    shards = [TokenShard.open(path) for path in tokens.files("train", tmp_path)]
    expected = sorted(token for shard in shards for token in shard.tokens[shard.answers == 1].tolist())
    assert 0 < len(expected) == tokens.stats["answer_tokens"] < tokens.stats["train_tokens"]
    assert len(expected) == sum(int(shard.document_targets().sum()) for shard in shards)
    streams = [read_row(shard, row, 7) for shard in shards for row in range(-(-len(shard.tokens) // 7))]
    known = {out.sha256: TokenShard.open(tmp_path / out.path) for out in tokens.outputs if out.path.endswith(".tokens")}
    for path in packed.files("train", tmp_path):
        index = PackedRows.open(path)
        rows = [read_packed_row(index, shards_of(index, known), row) for row in range(index.count)]
    for made in (streams, rows):
        assert sorted(token for row in made for token in row.targets.tolist() if token >= 0) == expected


def test_a_chat_longer_than_a_row_is_refused(encoder, tmp_path):
    texts = [text_of([(ASK, "Why? " * times, "Because.")])[0] for times in (1, 30, 40)]
    made = encode_table(table_of(texts), encoder, ANSWERS, np.ones(3, np.int64))
    sizes = [len(document.tokens) for document in made.documents]
    write_token_shard(tmp_path / "a.tokens", made.documents, encoder.vocabulary_size, encoder.end_of_document)
    shard = TokenShard.open(tmp_path / "a.tokens")
    assert len(pieces_of([shard], sizes[2] - 1)) == 3
    words = rf"2 chats or pairs of .* its source\. The longest has {sizes[2]} tokens"
    with pytest.raises(PipelineError, match=words):
        pieces_of([shard], sizes[0] - 1)


def test_the_bytes_of_a_shard_with_answers_are_those_of_the_format(tmp_path):
    path, plain = tmp_path / "a.tokens", tmp_path / "plain.tokens"
    marks = np.array([False, True, False]), np.array([False, False])
    two = [EncodedDocument(name, np.array(ids), 5, group_name(name, "en"), mask)
           for name, ids, mask in zip("ab", ([17, 34, 0], [51, 0]), marks, strict=True)]  # fmt: skip
    write_token_shard(path, two, 32_000, 0)
    write_token_shard(plain, [dataclasses.replace(one, answers=None) for one in two], 32_000, 0)
    data, before = path.read_bytes(), plain.read_bytes()
    assert data[8] == 3
    assert data[64:152] == before[64:152]
    assert data[152:160] == bytes([0, 1, 0, 0, 0, 0, 0, 0])
    assert data[160:] == before[152:] == b"a/en\nb/en\n"
    assert hashlib.sha256(data).hexdigest() == GOLDEN
    opened = TokenShard.open(path)
    assert opened.group_names == ("a/en", "b/en")
    assert opened.document_targets().tolist() == [1, 0]
    assert TokenShard.open(plain).document_targets().tolist() == [2, 1]
    with pytest.raises(ValueError, match="answers of 3 tokens, and 5 tokens"):
        write_token_shard(path, [two[0], dataclasses.replace(two[1], answers=None)], 32_000, 0)


GOLDEN = "3574637383c7eaafd6b2d620f5333556aa3ef9298725c75a8c2a82e22011b6a2"


SOURCE = {"type": "jsonl", "name": "chats", "licence": "CC0-1.0", "paths": ["a.jsonl"], "messages_field": "messages"}
WHOLE = {
    "sources": [{**SOURCE, "messages_form": "instructions"}],
    "encode": {"loss_on": "answers"},
    "pack": {"sequence_length": 64, "min_used_share": 0.0},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": [{**SOURCE, "messages_form": "chatml"}]}, "messages_form = 'instructions' in every source.*chats"),
        ({"pack": None}, "needs \\[data.pack\\] with min_used_share = 0"),
        ({"pack": {"sequence_length": 64}}, "needs \\[data.pack\\] with min_used_share = 0"),
        ({"substrings": {}}, "excludes .*substrings"),
        ({"clean": {"c4_lines": True}}, "excludes clean.c4_lines"),
        ({"clean": {"presets": ["fineweb"]}}, "excludes .*'fineweb'"),
    ],
)
def test_sections_that_would_break_a_chat_are_refused(change, message):
    validate(WHOLE, DataConfig, "run.toml")
    values = {name: value for name, value in {**WHOLE, **change}.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        validate(values, DataConfig, "run.toml")
