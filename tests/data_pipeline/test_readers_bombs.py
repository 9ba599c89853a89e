"""Bombs: a file that unpacks absurdly is a fault with its name, within the bound; honest files pass."""

import bz2
import gzip
import io
import lzma
import random
import tarfile
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.readers.archive import MAX_DEPTH, members, read_blocks
from data_pipeline.readers.sources import JsonlSource, TextSource
from data_pipeline.readers.streams import BOMB_BYTES, BOMB_RATIO, TornStream, blocks, is_bomb, unpacked_file
from governance.manifest import verify
from governance.stage import Runtime
from tests.data_pipeline.packed_files import lz4_frame, zip_of


@pytest.fixture
def small(monkeypatch):
    """The bound at 1 MB instead of 128 MiB."""
    monkeypatch.setattr("data_pipeline.readers.streams.BOMB_BYTES", 1_000_000)


def until_tear(pieces):
    size = 0
    try:
        for piece in pieces:
            size += len(piece)
    except TornStream as error:
        return size, error.reason
    return size, ""


def zeros(count, compress):
    """`count` MB of zeros, packed piece by piece."""
    piece = bytes(1_000_000)
    return b"".join(compress.compress(piece) for _ in range(count)) + compress.flush()


def gzip_of(count):
    return zeros(count, zlib.compressobj(9, zlib.DEFLATED, 31))


def zstd_of(count):
    return zeros(count, zstandard.ZstdCompressor(level=19).compressobj())


# LZ4 packs 255 times at most, so no file of it is far above the bound.
PACKS = {
    ".gz": gzip_of, ".zst": zstd_of,
    ".xz": lambda count: zeros(count, lzma.LZMACompressor()), ".bz2": lambda count: zeros(count, bz2.BZ2Compressor()),
}  # fmt: skip


@pytest.mark.parametrize(("ending", "pack"), PACKS.items())
def test_a_bomb_ends_at_the_bound(tmp_path, small, ending, pack):
    path = tmp_path / f"x.jsonl{ending}"
    path.write_bytes(pack(100))
    size, reason = until_tear(blocks(path))
    assert reason == "decompression_bomb"
    assert size <= max(1_000_000, BOMB_RATIO * path.stat().st_size)


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip_of), (".zst", zstd_of)])
def test_zeros_and_repetitive_logs_below_the_bound_are_honest(tmp_path, ending, pack):
    path = tmp_path / f"x{ending}"
    path.write_bytes(pack(100))
    assert until_tear(blocks(path)) == (100_000_000, "")
    if ending == ".gz":  # zstd packs such a log as small as a bomb
        lines = (b"2026-01-01T00:00:%02d INFO worker %d is alive\n" % (i % 60, i % 7) for i in range(420))
        log = b"".join(lines) * 9600
        path.write_bytes(gzip.compress(log, 6))
        assert len(log) > BOMB_BYTES
        assert until_tear(blocks(path)) == (len(log), ""), "a log above 128 MiB that packs 100 times"


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_what_is_called_a_bomb(packed, unpacked):
    assert is_bomb(packed, unpacked) == (unpacked > 128 << 20 and unpacked > 250 * packed)


def test_a_bomb_is_quarantined_with_its_file_and_the_rest_is_read(tmp_path, small):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n')
    (tmp_path / "b.jsonl.gz").write_bytes(gzip_of(50))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "same"}\n' * 500_000, 19))
    (tmp_path / "d.txt.zst").write_bytes(zstd_of(50))
    sources = (
        JsonlSource(type="jsonl", name="rows", licence="MIT", paths=("*.jsonl*",)),
        TextSource(type="text", name="pages", licence="MIT", paths=("*.txt.zst",)),
    )
    manifest = ingest(sources, IngestConfig(), tmp_path, Runtime(tmp_path / "root"))
    stats = manifest.stats
    assert stats["removed"] == {"quarantine:decompression_bomb": 3}
    assert stats["torn_files"] == 3
    assert 10_000 < stats["documents_kept"] < 100_000, "the records in front of the bound are read"
    assert stats["documents_in"] == stats["documents_kept"] + 3
    assert verify(manifest, tmp_path / "root") == []


# --- archives


def found(path):
    return [(member.name, *until_tear(read_blocks(member))) for member in members(path, ["*"])]


def test_a_bomb_in_a_zip_is_never_opened(tmp_path, small):
    path = tmp_path / "x.zip"
    path.write_bytes(zip_of({"a.txt": b"1", "b.txt": bytes(5_000_000), "c.txt": b"33"}))
    assert found(path) == [("a.txt", 1, ""), ("b.txt", 0, "decompression_bomb"), ("c.txt", 2, "")]


def test_many_members_that_are_a_bomb_together(tmp_path, small):
    path = tmp_path / "x.zip"
    path.write_bytes(zip_of({f"{i}.txt": bytes(900_000) for i in range(50)}))
    sizes = [size for _, size, _ in found(path)]
    assert {reason for _, _, reason in found(path)} == {"", "decompression_bomb"}
    assert sum(sizes) <= max(1_000_000, BOMB_RATIO * path.stat().st_size)


def nested(depth, name="end.txt", content=b"end"):
    for level in range(depth):
        name, content = f"{level}.zip", zip_of({name: content})
    return zip_of({name: content})


@pytest.mark.parametrize("depth", range(6))
def test_zips_in_zips_are_read_to_the_stated_depth(tmp_path, depth):
    path = tmp_path / "x.zip"
    path.write_bytes(nested(depth))
    ((name, size, reason),) = found(path)
    assert name.count(".zip/") == min(depth, MAX_DEPTH)
    assert (size, reason) == ((3, "") if depth <= MAX_DEPTH else (0, "nested_too_deep"))


def test_zips_that_each_unpack_a_hundred_times_are_a_bomb_together(tmp_path, small):
    path = tmp_path / "x.zip"
    path.write_bytes(nested(2, content=bytes(50_000_000)))
    ((_, size, reason),) = found(path)
    assert (size, reason) == (0, "decompression_bomb")


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2"])
def test_a_tar_that_is_a_bomb_is_read_up_to_it(tmp_path, small, mode):
    path = tmp_path / f"x.tar.{mode[2:]}"
    with tarfile.open(path, mode) as archive:
        for name, size in (("a.txt", 10), ("bomb.bin", 60_000_000), ("c.txt", 10)):
            info = tarfile.TarInfo(name)
            info.size = size
            archive.addfile(info, io.BytesIO(bytes(size)))
    names = found(path)
    assert names[0] == ("a.txt", 10, "")
    assert names[1] == ("bomb.bin", 0, "decompression_bomb")
    assert [(name, reason) for name, _, reason in names[2:]] == [(path.name, "decompression_bomb")]
    only = [(member.name, member.fault) for member in members(path, ["*.txt"])]
    assert only == [("a.txt", ""), (path.name, "decompression_bomb")], "passing over it is not a way round the bound"


def test_the_holes_of_a_sparse_member_are_a_bomb(tmp_path, small):
    path = tmp_path / "x.tar"
    info = tarfile.TarInfo("holes.txt")
    info.size = 1 << 40
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))  # `addfile` requires the bytes since Python 3.13
    member = next(members(path, ["*"]))
    assert (member.name, member.fault) == ("holes.txt", "decompression_bomb")


@settings(max_examples=40)
@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=4), st.sampled_from(["", "gz", "zst", "xz", "bz2"]))
def test_packed_streams_are_known_by_their_first_bytes(tmp_path_factory, parts, kind):
    pack = {"gz": gzip.compress, "zst": zstandard.compress, "xz": lzma.compress, "bz2": bz2.compress, "": bytes}[kind]
    path = tmp_path_factory.mktemp("s") / "x"
    parts = parts if kind else [b"plain" + part for part in parts]
    path.write_bytes(b"head" + b"".join(pack(part) for part in parts) + b"tail")
    with path.open("rb") as source:
        source.seek(4)
        length = path.stat().st_size - 8
        got = unpacked_file(source, path, length)
        assert b"".join(iter(lambda: got.read(700), b"")) == b"".join(parts)
    if kind:
        path.write_bytes(pack(parts[0])[:-1])
        with path.open("rb") as source, pytest.raises(TornStream):
            unpacked_file(source, path).readall()


def test_an_xz_header_that_asks_for_gibibytes_is_refused(tmp_path):
    greedy = lzma.compress(b"x" * 100, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}])
    (tmp_path / "x.jsonl.xz").write_bytes(greedy)
    assert until_tear(blocks(tmp_path / "x.jsonl.xz")) == (0, "dictionary_too_large")


@pytest.mark.parametrize(("ending", "kind"), [(".xz", "xz"), (".bz2", "bzip2"), (".lz4", "lz4")])
def test_packed_files_are_read_and_torn_ones_accounted_for(tmp_path, ending, kind):
    lines = b"".join(b'{"text": "%d %s"}\n' % (number, bytes(random.Random(number).choices(b"abcdef", k=400)))
                     for number in range(3000))  # fmt: skip
    pack = {".xz": lzma.compress, ".bz2": bz2.compress}.get(ending) or lz4_frame
    whole = pack(lines)
    (tmp_path / f"a.jsonl{ending}").write_bytes(whole + pack(b'{"text": "last"}\n'))
    (tmp_path / f"b.jsonl{ending}").write_bytes(whole[: len(whole) * 9 // 10])
    (tmp_path / f"c.jsonl{ending}").write_bytes(b"nonsense" * 9)
    stats = {}
    for name in "abc":
        source = JsonlSource(type="jsonl", name=name, licence="MIT", paths=(f"{name}.jsonl{ending}",))
        stats[name] = ingest((source,), IngestConfig(), tmp_path, Runtime(tmp_path / "root")).stats
        assert stats[name]["documents_in"] == stats[name]["documents_kept"] + stats[name]["quarantined"]
    assert (stats["a"]["documents_kept"], stats["a"]["torn_files"]) == (3001, 0)
    assert 100 < stats["b"]["documents_kept"] < 3000
    assert stats["b"]["removed"] == {f"quarantine:truncated_{kind}": 1}
    assert (stats["c"]["removed"], stats["c"]["torn_files"]) == ({f"quarantine:corrupt_{kind}": 1}, 1)


@pytest.mark.parametrize("zeros", [4, 5000])
def test_zeros_that_pad_an_xz_file_are_no_tear(tmp_path, monkeypatch, zeros):
    stream = lzma.compress(b"first")
    monkeypatch.setattr("data_pipeline.readers.streams._STEP_BYTES", len(stream))  # the zeros come in the next step
    path = tmp_path / "x.xz"
    path.write_bytes(stream + bytes(zeros) + lzma.compress(b"last"))
    assert b"".join(blocks(path)) == b"firstlast"
    path.write_bytes(stream + bytes(zeros))
    assert b"".join(blocks(path)) == b"first"


def test_a_damaged_lz4_file_gives_what_precedes_the_damage(tmp_path):
    whole = lz4_frame(random.Random(0).randbytes(100_000))
    path = tmp_path / "x.lz4"
    path.write_bytes(whole[:90_000])
    assert until_tear(blocks(path)) == (86_016, "truncated_lz4")
    path.write_bytes(whole + b"garbage behind it")
    assert until_tear(blocks(path)) == (98_304, "corrupt_lz4")
