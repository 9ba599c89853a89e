"""Laws of packing: every prediction once, rows full, the same bytes for any number of workers, torn files refused."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.kernels.packing import pack_items
from data_pipeline.tokens import pack as stage
from data_pipeline.tokens.pack import PackConfig, group_shards, pack, pack_pieces, pieces_of
from data_pipeline.tokens.packed_rows import PIECE, PackedRows, locate, read_packed_row, shards_of, write_packed_rows
from data_pipeline.tokens.token_shards import NO_TARGET, EncodedDocument, TokenShard, write_token_shard
from governance.errors import AlteredFile, ManifestError, MissingInput, PipelineError
from governance.manifest import describe, write_manifest
from governance.stage import Runtime
from tests.given_data import given_data, given_rows
from tests.manifests import manifest_of

END = 0
SIZES = st.lists(st.integers(1, 40), max_size=30)


def encoded(root, roles):
    """An encode-like artifact: role -> shards -> lengths of documents; tokens count up, so that each is known."""
    outputs, token = [], 0
    for role, shards in roles.items():
        for number, sizes in enumerate(shards):
            documents = []
            for size in sizes:
                ids = np.arange(token + 1, token + size + 1, dtype=np.uint32)
                ids[-1] = END
                token += size
                documents.append(EncodedDocument(f"{role}/{number}#{len(documents)}", ids, 3 * size))
            path = root / "encode" / ("e" * 16) / role / f"{number:05d}.tokens"
            write_token_shard(path, documents, 1 << 24, END)
            outputs.append(describe(path, root))
    manifest = manifest_of("encode", outputs, key="e")
    write_manifest(manifest, root)
    return manifest


def predictions(shards):
    """The slow reference: every (token, next token) within a document."""
    found = []
    for shard in shards:
        start = 0
        for end in shard.document_ends.tolist():
            ids = shard.tokens[start:end].tolist()
            found += itertools.pairwise(ids)
            start = end
    return sorted(found)


def rows_of(made, tokens, role, root):
    digests = {output.sha256: TokenShard.open(root / output.path) for output in tokens.outputs}
    for path in made.files(role, root):
        index = PackedRows.open(path)
        for number in range(index.count):
            yield read_packed_row(index, shards_of(index, digests), number)


def plain_best_fit(sizes, length):
    """The slow reference: the row with the least room that holds the piece, among equals the one filled last."""
    rooms, touched = [], []
    for clock, size in enumerate(sorted(sizes, reverse=True)):
        fitting = [row for row in range(len(rooms)) if rooms[row] >= size]
        if fitting:
            row = min(fitting, key=lambda r: (rooms[r], -touched[r]))
        else:
            row = len(rooms)
            rooms.append(length)
            touched.append(0)
        rooms[row] -= size
        touched[row] = clock
    return sorted(rooms)


@settings(max_examples=75)
@given(sizes=st.lists(st.integers(1, 70), max_size=80), length=st.integers(1, 70))
def test_best_fit_equals_the_reference(sizes, length):
    sizes = np.array([min(size, length) for size in sizes], np.int64)
    packing = pack_items(sizes, length, 0)
    starts = np.concatenate(([0], packing.row_ends[:-1])) if len(packing.row_ends) else []
    rooms = [length - int(packing.lengths[a:b].sum()) for a, b in zip(starts, packing.row_ends, strict=True)]
    assert sorted(rooms) == plain_best_fit(sizes.tolist(), length)
    assert sorted(packing.items.tolist()) == list(range(len(sizes)))
    assert not packing.offsets.any()
    assert packing.cuts == 0


@settings(max_examples=100)
@given(
    sizes=st.lists(st.integers(1, 70), max_size=60),
    length=st.integers(1, 70),
    share=st.sampled_from([0.5, 0.9, 0.995, 1.0]),
)
def test_cuts_fill_rows_and_lose_nothing(sizes, length, share):
    sizes = np.array([min(size, length) for size in sizes], np.int64)
    packing = pack_items(sizes, length, share)
    rows, total = len(packing.row_ends), int(sizes.sum())
    assert total >= share * rows * length or rows == -(-total // length)
    covered = {
        (int(item), at)
        for item, offset, n in zip(packing.items, packing.offsets, packing.lengths, strict=True)
        for at in range(offset, offset + n)
    }
    assert covered == {(item, at) for item, size in enumerate(sizes) for at in range(size)}
    assert int(packing.lengths.sum()) == total
    starts = np.concatenate(([0], packing.row_ends[:-1])) if rows else []
    for first, stop in zip(starts, packing.row_ends, strict=True):
        assert 0 < packing.lengths[first:stop].sum() <= length


@settings(max_examples=30)
@given(shards=st.lists(SIZES, min_size=1, max_size=3), length=st.integers(1, 20), share=st.sampled_from([0, 0.995]))
def test_every_prediction_is_in_one_row(tmp_path_factory, shards, length, share):
    root = tmp_path_factory.mktemp("root")
    tokens = encoded(root, {"train": shards})
    opened = [TokenShard.open(path) for path in tokens.files("train", root)]
    wanted = predictions(opened)
    config = PackConfig(sequence_length=length, min_used_share=share)
    if not wanted:
        with pytest.raises(PipelineError, match="predict nothing"):
            pack(tokens, config, Runtime(root))
        return
    made = pack(tokens, config, Runtime(root))
    seen = []
    for row in rows_of(made, tokens, "train", root):
        assert [len(row.tokens), len(row.targets), len(row.segments), len(row.positions)] == [length] * 4
        assert (row.tokens.dtype, row.segments.dtype) == (np.int64, np.int32)
        used = row.targets != NO_TARGET
        seen += zip(row.tokens[used].tolist(), row.targets[used].tolist(), strict=True)
        borders = np.flatnonzero(np.diff(row.segments)) + 1
        assert row.positions[0] == 0
        assert not row.positions[borders].any()
        assert (np.diff(row.positions)[np.diff(row.segments) == 0] == 1).all()
        inside = np.flatnonzero((np.diff(row.segments) == 0) & used[:-1])
        assert (row.targets[inside] == row.tokens[inside + 1]).all()
        assert not used[int(used.sum()) :].any()
        assert used.all() or row.segments[-1] > row.segments[int(used.sum()) - 1]
    assert sorted(seen) == wanted
    assert made.stats["train_predictions"] == len(wanted)
    assert made.stats["train_positions"] == length * made.stats["train_rows"]


def test_long_documents_are_cut_at_multiples_of_the_row(tmp_path):
    tokens = encoded(tmp_path, {"train": [[11, 5, 9, 1]]})
    shards = [TokenShard.open(path) for path in tokens.files("train", tmp_path)]
    pieces = [tuple(map(int, piece)) for piece in pieces_of(shards, 4)]
    assert pieces == [(0, 4, 0), (4, 4, 0), (8, 2, 0), (11, 4, 0), (16, 4, 0), (20, 4, 0)]


def test_documents_that_fit_a_row_stay_whole_where_rows_are_full_enough(tmp_path):
    tokens = encoded(tmp_path, {"train": [[6, 4, 7, 3, 9, 5, 5, 1]]})
    pieces = pieces_of([TokenShard.open(path) for path in tokens.files("train", tmp_path)], 8)
    laid, ends, cuts = pack_pieces(pieces, 8, 0.995)
    assert (len(laid), len(ends), cuts) == (7, 4, 0)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_groups_cover_all_shards_in_order(sizes):
    groups = list(group_shards((tokens << 26, documents) for tokens, documents in sizes))
    assert [shard for first, stop in groups for shard in range(first, stop)] == list(range(len(sizes)))
    for first, stop in groups[:-1]:
        assert sum(tokens << 26 for tokens, _ in sizes[first:stop]) >= stage.GROUP_TOKENS
        assert sum(tokens << 26 for tokens, _ in sizes[first : stop - 1]) < stage.GROUP_TOKENS


def test_any_number_of_workers_gives_the_same_bytes(tmp_path):
    generator = np.random.default_rng(1)
    shards = {"train": [generator.integers(1, 50, 40).tolist() for _ in range(3)], "validation": [[7, 9], []]}
    digests, sums = set(), set()
    for name, workers in (("one", 1), ("two", 2)):
        made = pack(encoded(tmp_path / name, shards), PackConfig(sequence_length=16), Runtime(tmp_path / name, workers))
        digests.add(made.digest)
        sums.add(tuple(output.sha256 for output in made.outputs))
    assert len(digests) == len(sums) == 1
    assert [Path(output.path).parts[2:] for output in made.outputs] == [
        ("train", "00000.rows"),
        ("validation", "00000.rows"),
    ]


def example(path):
    pieces = np.array([(0, 2, 0), (3, 1, 0)], PIECE)
    write_packed_rows(path, 4, ["ab" * 32], np.array([2]), pieces)


def test_the_bytes_are_those_of_the_modules_example(tmp_path):
    path = tmp_path / "a.rows"
    example(path)
    data = path.read_bytes()
    assert len(data) == 136
    assert data[:24] == b"ASSAYROW\x01\0\0\0\x04\0\0\0\x01\0\0\0\0\0\0\0"
    assert data[64:96] == bytes.fromhex("ab" * 32)
    assert data[96:] == bytes.fromhex(
        "02000000000000000000000000000000020000000000000003000000000000000100000000000000"
    )
    assert hashlib.sha256(data).hexdigest() == GOLDEN
    index = PackedRows.open(path)
    assert (index.sequence_length, index.used, index.shards, index.count) == (4, 3, ("ab" * 32,), 1)
    assert [locate(index, place) for place in range(4)] == [(0, 0), (0, 1), (0, 3), None]
    with pytest.raises(IndexError):
        locate(index, 4)
    with pytest.raises(IndexError):
        read_packed_row(index, [], 1)


GOLDEN = "b515eb6af9344ef1a1c64769516ccfad9e8d203eb58e06fd2f8d47a79fe90a0a"
STAGE_GOLDEN = "58bef0053447dcfa83a3c40a3a06e5fe685e2f918e222acf63f6346703b5fbf5"


def test_the_stage_has_not_changed_without_its_version(tmp_path):
    made = pack(encoded(tmp_path, {"train": [[9, 30, 4], [12, 1]]}), PackConfig(sequence_length=8), Runtime(tmp_path))
    assert (stage.VERSION, made.outputs[0].sha256) == (1, STAGE_GOLDEN)


@pytest.mark.parametrize("cut", [0, 63, 64, 100, 135])
def test_a_torn_index_is_refused_by_name(tmp_path, cut):
    path = tmp_path / "torn.rows"
    example(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ManifestError, match=r"torn\.rows"):
        PackedRows.open(path)


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [
        (0, b"X", "not an index"),
        (8, b"\x09", "format 9"),
        (12, b"\0", "contradicts"),
        (12, b"\x02", "more than 2 positions"),
        (48, b"\x61", "contradicts"),
        (96, b"\x03", "do not hold"),
        (112, b"\x09", "do not hold"),
        (116, b"\x01", "does not list"),
    ],
)
def test_an_altered_index_is_refused(tmp_path, offset, value, words):
    path = tmp_path / "a.rows"
    example(path)
    data = bytearray(path.read_bytes())
    data[offset : offset + 1] = value
    path.write_bytes(data)
    with pytest.raises(ManifestError, match=words):
        PackedRows.open(path)


def test_an_altered_token_shard_is_not_packed(tmp_path):
    """Put back afterwards, nothing would show that rows cross the ends of its documents."""
    tokens = encoded(tmp_path, {"train": [[9, 5, 30]]})
    [path] = tokens.files("train", tmp_path)
    documents = [EncodedDocument("a", np.append(np.arange(1, size), END), 1) for size in (20, 14, 10)]
    write_token_shard(path, documents, 1 << 24, END)
    with pytest.raises(AlteredFile, match=f"{path.name}: has "):
        pack(tokens, PackConfig(sequence_length=8), Runtime(tmp_path))


def test_an_index_of_other_shards_is_refused(tmp_path):
    with pytest.raises(MissingInput, match=r"absent\.rows"):
        PackedRows.open(tmp_path / "absent.rows")
    example(tmp_path / "a.rows")
    index = PackedRows.open(tmp_path / "a.rows")
    with pytest.raises(ManifestError, match="not there now"):
        shards_of(index, {})
    tokens = encoded(tmp_path, {"train": [[4]]})
    short = TokenShard.open(tokens.files("train", tmp_path)[0])
    with pytest.raises(ManifestError, match="beyond the end"):
        shards_of(index, {"ab" * 32: short})


@pytest.fixture(scope="module")
def real_tokens():
    """Approximate tokens of real documents that a row can predict."""
    names = sorted(path.name.removesuffix(".jsonl.gz") for path in given_data("corpora").glob("*.jsonl.gz"))
    rows = itertools.chain.from_iterable(given_rows(f"corpora/{name}") for name in names)
    return np.array([len(row["text"].encode()) // 4 + 1 for row in rows], np.int64)


@pytest.mark.parametrize("length", [512, 2048, 8192])
def test_real_documents_use_995_of_1000_positions(real_tokens, length):
    tokens = real_tokens
    chunks = np.concatenate((np.full(int((tokens // length).sum()), length), tokens[tokens % length > 0] % length))
    whole, filled = (pack_items(chunks, length, share) for share in (0, 0.995))
    assert len(whole.row_ends) == len(filled.row_ends)
    assert filled.cuts == 0
    assert int(chunks.sum()) >= 0.995 * length * len(filled.row_ends)
