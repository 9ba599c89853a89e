"""Laws of the token shard: it is read as written, torn files are refused, every token is a target once."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.tokens.token_shards import (
    NO_TARGET,
    EncodedDocument,
    TokenShard,
    document_identity,
    group_name,
    read_row,
    row_count,
    write_token_shard,
)
from governance.errors import ManifestError, MissingInput

END = 0
BODIES = st.lists(st.lists(st.integers(1, 99), max_size=12), max_size=8)


def find_document(shard, document_id):
    """Indices of documents with this id in the shard."""
    identity = np.frombuffer(document_identity(document_id), dtype=np.uint8)
    return [int(index) for index in np.flatnonzero((shard.identities == identity).all(axis=1))]


def documents(bodies, dtype=np.uint16):
    return [
        EncodedDocument(f"s/f#{place}", np.array([*body, END], dtype=dtype), 3 * len(body))
        for place, body in enumerate(bodies)
    ]


def written(tmp_path_factory, bodies, vocabulary=100):
    path = tmp_path_factory.mktemp("shards") / "a.tokens"
    write_token_shard(path, documents(bodies), vocabulary, END)
    return TokenShard.open(path)


@settings(max_examples=60)
@given(bodies=BODIES, wide=st.booleans())
def test_what_is_written_is_read(tmp_path_factory, bodies, wide):
    shard = written(tmp_path_factory, bodies, 1 << 20 if wide else 100)
    stream = [token for body in bodies for token in [*body, END]]
    assert shard.tokens.tolist() == stream
    assert shard.tokens.dtype.itemsize == (4 if wide else 2)
    assert np.diff(shard.document_ends.astype(np.int64), prepend=0).tolist() == [len(body) + 1 for body in bodies]
    assert shard.document_bytes.tolist() == [3 * len(body) for body in bodies]
    for place in range(len(bodies)):
        assert find_document(shard, f"s/f#{place}") == [place]
    assert find_document(shard, "absent") == []


def plain_row(stream, owners, index, length):
    """The slow reference: position by position."""
    rows = []
    for at in range(index * length, (index + 1) * length):
        if at >= len(stream):
            rows.append((END, NO_TARGET, None))
            continue
        follows = at + 1 < len(stream) and owners[at + 1] == owners[at]
        rows.append((stream[at], stream[at + 1] if follows else NO_TARGET, owners[at]))
    segments, positions, segment, position = [], [], -1, 0
    for place, (_, _, owner) in enumerate(rows):
        if place == 0 or owner != rows[place - 1][2]:
            segment, position = segment + 1, 0
        segments.append(segment)
        positions.append(position)
        position += 1
    return [row[0] for row in rows], [row[1] for row in rows], segments, positions


@settings(max_examples=150)
@given(bodies=BODIES, length=st.integers(1, 17))
def test_rows_equal_the_reference_and_every_token_is_a_target_once(tmp_path_factory, bodies, length):
    shard = written(tmp_path_factory, bodies)
    stream = [token for body in bodies for token in [*body, END]]
    owners = [place for place, body in enumerate(bodies) for _ in range(len(body) + 1)]
    seen, targets = [], []
    for index in range(row_count(shard, length)):
        row = read_row(shard, index, length)
        assert (row.tokens.dtype, row.targets.dtype) == (np.int64, np.int64)
        assert (row.segments.dtype, row.positions.dtype) == (np.int32, np.int32)
        columns = (row.tokens, row.targets, row.segments, row.positions)
        assert tuple(column.tolist() for column in columns) == plain_row(stream, owners, index, length)
        seen += row.tokens.tolist()
        targets += [(index * length + place + 1) for place in np.flatnonzero(row.targets != NO_TARGET)]
    assert seen[: len(stream)] == stream
    assert set(seen[len(stream) :]) <= {END}
    assert targets == [at for at in range(1, len(stream)) if owners[at] == owners[at - 1]]


def test_a_row_outside_is_an_error(tmp_path_factory):
    shard = written(tmp_path_factory, [[1, 2]])
    with pytest.raises(IndexError):
        read_row(shard, 1, 3)
    with pytest.raises(IndexError):
        read_row(shard, -1, 3)


def test_the_bytes_are_those_of_the_modules_example(tmp_path):
    path = tmp_path / "a.tokens"
    two = [
        EncodedDocument("a", np.array([17, 34, 0]), 9, group_name("a", "en")),
        EncodedDocument("b", np.array([51, 0]), 4, group_name("b", "en")),
    ]
    write_token_shard(path, two, 32_000, END)
    data = path.read_bytes()
    assert len(data) == 162
    assert data[:16] == b"ASSAYTOK\x02\0\0\0\x02\0\0\0"
    assert data[64:74] == bytes.fromhex("11002200000033000000")
    assert data[112:128] == document_identity("a") == hashlib.sha256(b"a").digest()[:16]
    assert data[144:] == bytes.fromhex("0000000001000000") + b"a/en\nb/en\n"
    assert hashlib.sha256(data).hexdigest() == GOLDEN


GOLDEN = "a5577040b56409a5431ea29c49775257ebc57a4bc9b5c9eadfc194805d2edb5d"


@pytest.mark.parametrize("cut", [0, 7, 63, 64, 100, 143, 151, 160])
def test_a_torn_shard_is_refused_by_name(tmp_path, cut):
    path = tmp_path / "torn.tokens"
    write_token_shard(path, documents([[1, 2], [3]]), 100, END)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ManifestError, match=r"torn\.tokens"):
        TokenShard.open(path)


@given(st.lists(st.sampled_from(["a/en", "a/de", "web/und", "é/en"]), max_size=9))
def test_groups_are_read_as_they_were_written(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("groups") / "a.tokens"
    made = [EncodedDocument(str(place), np.array([END]), 0, name) for place, name in enumerate(names)]
    write_token_shard(path, made, 100, END)
    shard = TokenShard.open(path)
    assert [shard.group_names[group] for group in shard.groups] == names
    assert shard.group_names == tuple(sorted(set(names)))


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [
        (144, b"\x01", "of group 1, and 1 groups"),
        (0, b"X", "not a token shard"),
        (8, b"\x09", "format 9"),
        (12, b"\x03", "contradicts"),
        (80, b"\xff", "do not increase"),
    ],
)
def test_an_altered_header_is_refused(tmp_path, offset, value, words):
    path = tmp_path / "a.tokens"
    write_token_shard(path, documents([[1, 2], [3]]), 100, END)
    data = bytearray(path.read_bytes())
    data[offset : offset + 1] = value
    path.write_bytes(data)
    with pytest.raises(ManifestError, match=words):
        TokenShard.open(path)


def test_longer_files_missing_files_and_bad_documents_are_refused(tmp_path):
    path = tmp_path / "a.tokens"
    write_token_shard(path, documents([[1]]), 100, END)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ManifestError, match="overlong"):
        TokenShard.open(path)
    with pytest.raises(MissingInput, match="absent"):
        TokenShard.open(tmp_path / "absent.tokens")
    with pytest.raises(ValueError, match="does not end"):
        write_token_shard(path, [EncodedDocument("x", np.array([1]), 1)], 100, END)
    with pytest.raises(ValueError, match="has token 100"):
        write_token_shard(path, [EncodedDocument("x", np.array([100, END]), 1)], 100, END)
