"""Huge files: cut between records, or read by one into several shards; every record once, with its own number."""

import gzip
import json
import random
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import QUARANTINE_SCHEMA, read_documents, read_table
from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.readers.items import SourceItem
from data_pipeline.readers.parts import is_stream, line_parts, plan
from data_pipeline.readers.record import Fields
from data_pipeline.readers.sources import JsonlSource, PackageSource, ParquetSource
from data_pipeline.readers.streams import byte_range
from data_pipeline.readers.text import read_jsonl
from governance.manifest import verify
from governance.stage import Runtime
from governance.workers import take_turns


def slow_cuts(data, target):
    """The plain rule: as many whole lines as fit, but at least one."""
    lines = data.split(b"\n")
    lines = [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    parts, begin, first, size = [], 0, 0, 0
    for number, line in enumerate(lines):
        if size and size + len(line) > target:
            parts.append((begin, begin + size, first))
            begin, first, size = begin + size, number, 0
        size += len(line)
    return [*parts, (begin, begin + size, first)] if size else []


@settings(max_examples=150)
@given(
    st.lists(st.binary(max_size=12).map(lambda data: data.replace(b"\n", b"")), max_size=30),
    st.integers(1, 60),
    st.integers(1, 20),
    st.booleans(),
)
def test_a_plain_file_is_cut_as_the_plain_rule_says(tmp_path_factory, rows, target, block, ended):
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    data = b"\n".join(rows) + b"\n" * ended
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_pipeline.readers.streams.BLOCK_BYTES", block)
        parts = line_parts(path, target)
        pieces = [b"".join(byte_range(path, part.begin, part.end)) for part in parts]
    if not data.strip(b" \t\n\r\x0b\f"):
        assert len(parts) <= 1
    else:
        assert [(part.begin, part.end, part.first) for part in parts] == slow_cuts(data, target)
    assert b"".join(pieces) == data


@settings(max_examples=60)
@given(st.lists(st.one_of(st.binary(max_size=9), st.text(max_size=9).map(lambda t: json.dumps({"text": t}).encode()))))
def test_parts_have_the_records_and_faults_of_the_whole(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(rows))
    whole = list(read_jsonl([path.read_bytes()], "f", Fields("text")))
    for target in (1, 30, 1000):
        parts = line_parts(path, target)
        pieces = [
            piece
            for part in parts
            for piece in read_jsonl(byte_range(path, part.begin, part.end), "f", Fields("text"), part.first)
        ]
        assert pieces == whole


def rows_of(count, seed=0):
    generator = random.Random(seed)
    return [{"text": f"{i} " + "ä" * generator.randrange(80), "id": i % (count * 3 // 4)} for i in range(count)]


def write(folder, rows, kind):
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    folder.mkdir()
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "x.parquet", row_group_size=100)
        return ParquetSource
    packed = {"plain": bytes, "gz": gzip.compress, "zst": zstandard.compress}[kind](lines)
    (folder / f"x.jsonl{'' if kind == 'plain' else '.' + kind}").write_bytes(packed)
    (folder / "y.jsonl").write_bytes(b'{"text": "small", "id": "y"}\nnonsense\n')
    return JsonlSource


@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("kind", ["plain", "gz", "zst", "parquet"])
def test_a_huge_file_becomes_several_shards(tmp_path, kind, with_ids):
    rows = rows_of(1000)
    source = write(tmp_path / "in", rows, kind)
    values = {"type": source.model_fields["type"].annotation.__args__[0], "name": "a", "licence": "MIT"}
    values |= {"paths": ("in/*",), "id_field": "id" if with_ids else ""}
    one = None
    for workers in (1, 2):
        root = tmp_path / f"root{workers}"
        manifest = ingest((source(**values),), IngestConfig(shard_bytes=8000), tmp_path, Runtime(root, workers))
        assert verify(manifest, root) == []
        assert one in (None, manifest.digest)
        one = manifest.digest
    shards = manifest.files("documents", root)
    assert len(shards) >= 10
    sizes = [sum(len(text.encode()) for text in read_table(path)["text"].to_pylist()) for path in shards]
    assert max(sizes) <= 8000
    documents = [document for document in read_documents(shards) if document.file.startswith("x.")]
    unique = 750 if with_ids else 1000
    assert [(d.position, d.text) for d in documents] == [(i, row["text"]) for i, row in enumerate(rows[:unique])]
    faults = [
        (row["file"].partition(".")[0], row["position"], row["reason"])
        for path in manifest.files("quarantine", root)
        for row in read_table(path, QUARANTINE_SCHEMA).to_pylist()
    ]
    small = kind != "parquet"
    assert sorted(faults) == [("x", i, "duplicate_id") for i in range(unique, 1000)] + [("y", 1, "not_json")] * small
    stats = manifest.stats
    assert stats["files"] == 1 + small
    assert stats["documents_in"] == 1000 + 2 * small == stats["documents_kept"] + sum(stats["removed"].values())
    assert stats["bytes_kept"] == sum(sizes)


def test_an_array_of_workers_makes_the_same_bytes(tmp_path):
    import threading

    source = write(tmp_path / "in", rows_of(300), "plain")
    listed = (source(type="jsonl", name="a", licence="MIT", paths=("in/*",), id_field="id"),)
    config = IngestConfig(shard_bytes=4000)
    alone = ingest(listed, config, tmp_path, Runtime(tmp_path / "r1"))
    found = {}

    def work(number):
        runtime = Runtime(tmp_path / "r2", worker=(number, 2))
        found[number] = take_turns(runtime, lambda turn: ingest(listed, config, tmp_path, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {manifest.digest for manifest in found.values()} == {alone.digest}


def test_a_file_of_white_space_is_one_empty_file_however_large(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b" \n" * 5000)
    source = JsonlSource(type="jsonl", name="a", licence="MIT", paths=("x.jsonl",))
    manifest = ingest((source,), IngestConfig(shard_bytes=1000), tmp_path, Runtime(tmp_path / "root"))
    assert manifest.stats["removed"] == {"quarantine:empty_file": 1}


def test_a_tar_is_unpacked_once_and_a_zip_is_shared(tmp_path):
    source = PackageSource(type="package", name="p", licence="MIT", index="debian", package="p", files=("*",))
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.add(__file__, "a.txt")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    for name, stream in (("x.tar.gz", True), ("x.zip", False)):
        archive = SourceItem(name, tmp_path / name, "0" * 64, 1)
        members = [SourceItem(f"{i}.txt", archive.path, archive.digest, 100, i) for i in range(5)]
        assert is_stream(source, archive) is stream
        assert len(plan(source, members, 100, whole=stream)) == (1 if stream else 5)
