"""`assay inspect` reads samples: of every format, evenly spread, within their bound."""

import bz2
import csv
import gzip
import json
import lzma
import random
import subprocess
import sys
import zipfile
from typing import get_args

import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from assay.inspect import sampling
from assay.inspect.formats import find_inputs
from assay.inspect.inspection import inspect_path
from assay.inspect.sampling import sample_files
from data_pipeline.readers.file_types import orc_process
from data_pipeline.readers.file_types.endings import SOURCE_TYPES
from data_pipeline.readers.sources import Source
from data_pipeline.readers.streams import PACKED
from tests.assay.inspected import prose, tables, wiki
from tests.data_pipeline.packed_files import lz4_frame


def test_every_type_of_files_has_an_ending():
    """The table of `inspect` is complete.

    Own readers, code, which has an ending per language, and pairs of texts, which lie in two files, are not in it.
    """
    types = {name for kind in get_args(get_args(Source)[0]) if "paths" in kind.model_fields
             for name in get_args(kind.model_fields["type"].annotation)}  # fmt: skip
    assert types - {"own", "code", "parallel"} == set(SOURCE_TYPES.values())


def test_a_large_input_is_sampled_evenly_and_says_so(tmp_path):
    for number in range(3):
        rows = (json.dumps({"text": f"{number} {line} " + prose(line % 50, 2)}) for line in range(20_000))
        (tmp_path / f"{number}.jsonl").write_text("\n".join(rows))
    result = inspect_path(tmp_path, sample_bytes=2_000_000)
    assert result.sampled.startswith("A sample of about 2 MB of ")
    came = tables(result)["Funnel under the usual rules"].rows[0]
    assert came[1] == came[2] > 4_000, "whole lines only"


def some(folder, ending, count=3, rows=130):
    """Files of one kind with rows of about 4 KB; compressed ones hardly shrink, and no digits cost a look for ids."""
    draw, letters = random.Random(1), str.maketrans("0123456789", "ghijklmnop")
    folder.mkdir()
    for number in range(count):
        texts = [
            f"{number} {row} {prose(row, 2)} {draw.randbytes(2000).hex().translate(letters)}" for row in range(rows)
        ]
        plain = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
        path = folder / f"{number}{ending}"
        if ending == ".csv":
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([["text"], *([text] for text in texts)])
        elif ending == ".parquet":
            pq.write_table(pa.table({"text": texts}), path, row_group_size=33)
        elif ending == ".arrow":
            batches = pa.table({"text": texts}).to_batches(17)
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, batches[0].schema) as out:
                [out.write_batch(batch) for batch in batches]
        elif ending == ".orc":
            pyarrow.orc.write_table(pa.table({"text": texts}), path, stripe_size=66_000, compression="zstd")
        elif ".xml" in ending:
            path.write_bytes((bz2.compress if ending.endswith(".bz2") else bytes)(wiki(texts)))
        elif ".warc" in ending or ending == ".wacz":
            body = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"
            head = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http; msgtype=response\r\n"
            head += b"WARC-Target-URI: http://a.example/%d\r\nContent-Length: %d\r\n\r\n"
            records = [(body + text.encode(), row) for row, text in enumerate(texts)]
            records = [head % (row, len(data)) + data + b"\r\n\r\n" for data, row in records]
            pack = {".zst": zstandard.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
            if ending != ".wacz":
                path.write_bytes(pack(b"".join(records)))
                continue
            with zipfile.ZipFile(path, "w") as out:
                out.writestr("datapackage.json", "{}")
                out.writestr("archive/a.warc", b"".join(records[:9]))
                out.writestr("archive/b.warc.gz", b"".join(map(gzip.compress, records[9:])))
        else:
            plain = "\n".join(texts).encode() if ending.startswith(".txt") else plain
            packs = {".gz": gzip.compress, ".zst": zstandard.compress, ".xz": lzma.compress, ".bz2": bz2.compress}
            pack = packs.get(path.suffix, lz4_frame if path.suffix == ".lz4" else bytes)
            path.write_bytes(pack(plain))
    return folder


ENDINGS = (
    ".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.xz", ".jsonl.lz4", ".csv", ".txt", ".txt.gz", ".txt.bz2", ".parquet",
    ".arrow", ".warc", ".warc.zst", ".warc.xz", ".wacz", ".orc", ".xml", ".xml.bz2",
)  # fmt: skip


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_sample_of_every_format_is_read_and_within_its_bound(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(sampling, "_WHOLE_BYTES", 33_000)
    monkeypatch.setattr(sampling, "_STRETCH_BYTES", 16_000)
    folder = some(tmp_path / "in", ending)
    [group], _ = find_inputs(folder)
    read, partly = sample_files(group, 0.2, tmp_path / "copies")
    assert partly
    assert {file.name.split("-", 1)[1] for file in read.files} <= {f"{number}{ending}" for number in range(3)}
    # A quarter is expected of a packed file; here it has a half, of LZ4 all.
    bound = 0.85 if ending.endswith(".lz4") else 0.6 if ending.endswith(PACKED) else 0.3
    assert 0 < read.bytes <= bound * group.bytes
    came = tables(inspect_path(folder, sample_bytes=group.text_bytes // 5))["Funnel under the usual rules"].rows[0]
    assert came[1] > 0
    assert came[2] == came[1], "no record is cut"


def test_a_file_whose_reader_is_killed_is_sampled_as_a_damaged_one(tmp_path, monkeypatch):
    """The system kills the process that reads ORC where the machine's memory ends."""
    monkeypatch.setattr(sampling, "_WHOLE_BYTES", 33_000)
    monkeypatch.setattr(sampling, "_STRETCH_BYTES", 16_000)
    [group], _ = find_inputs(some(tmp_path / "in", ".orc"))
    killed = "import os; os.write(1, b'ready\\n'); os.kill(os.getpid(), 9)"
    monkeypatch.setattr(orc_process, "_CHILD", killed)
    read, _ = sample_files(group, 0.2, tmp_path / "copies")
    assert 0 < read.bytes < group.bytes


def test_one_stripe_that_unpacks_to_much_takes_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "_WHOLE_BYTES", 1000)
    monkeypatch.setattr(sampling, "_STRETCH_BYTES", 1000)
    texts = [f"{row} {'a' * 1_000_000}" for row in range(200)]
    pyarrow.orc.write_table(pa.table({"text": texts}), tmp_path / "a.orc", compression="zstd", stripe_size=1 << 30)
    [group], _ = find_inputs(tmp_path)
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(pool)
    try:
        read, _ = sample_files(group, 0.1, tmp_path / "copies")
    finally:
        pa.set_memory_pool(usual)
    assert pool.max_memory() < 150_000_000
    assert pyarrow.orc.ORCFile(read.files[0]).nrows in range(15, 25)


@given(st.lists(st.integers(1, 90), min_size=1, max_size=200), st.floats(0.05, 1.0))
def test_evenly_spaced_stretches_hold_each_line_at_most_once(tmp_path_factory, lengths, share):
    texts = [b"%d %s\n" % (number, b"x" * length) for number, length in enumerate(lengths)]
    file = tmp_path_factory.mktemp("lines") / "a.jsonl"
    file.write_bytes(b"".join(texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_STRETCH_BYTES", 100)
        taken = b"".join(sampling._stretches(file, max(1, int(share * file.stat().st_size))))
    numbers = [int(line.split()[0]) for line in taken.splitlines()]
    assert numbers == sorted(set(numbers))
    assert set(taken.splitlines(keepends=True)) <= set(texts)


def test_one_line_longer_than_the_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "_WHOLE_BYTES", 1000)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 20_000_000}))
    [group], _ = find_inputs(tmp_path)
    read, _ = sample_files(group, 0.01, tmp_path / "copies")
    assert read.bytes < 2_500_000


def test_one_file_of_many_row_groups_and_many_small_files(tmp_path):
    rows = pa.table({"text": [f"{number} {'x' * 6000}" for number in range(10_000)]})
    pq.write_table(rows, tmp_path / "a.parquet", row_group_size=500, compression="none", use_dictionary=False)
    [group], _ = find_inputs(tmp_path)
    read, partly = sample_files(group, 0.1, tmp_path / "copies")
    assert partly
    assert pq.read_metadata(read.files[0]).num_rows in range(1000, 2100)
    many = tmp_path / "many"
    many.mkdir()
    for number in range(6_000):
        (many / f"{number}.txt").write_text("a text")
    [group], _ = find_inputs(many)
    read, partly = sample_files(group, 1.0, tmp_path / "few")
    assert partly
    assert 4_900 <= len(read.files) <= 5_000


@pytest.mark.slow
def test_a_hundred_thousand_files(tmp_path):
    for number in range(100):
        (folder := tmp_path / f"{number:03d}").mkdir()
        (folder / "0.txt").write_text(f"{prose(number)} {number}")
        for other in range(1, 1000):
            (folder / f"{other}.txt").hardlink_to(folder / "0.txt")
    done = subprocess.run(
        [sys.executable, "-m", "assay", "inspect", str(tmp_path), "--output", str(tmp_path / "out")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "100,000" in done.stdout
    assert "A sample of about" in done.stdout
