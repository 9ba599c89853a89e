"""Arrow, ORC, WET, WACZ and MediaWiki dumps: every record is read or refused, torn and hostile files are counted."""

import base64
import bz2
import contextlib
import errno
import gzip
import hashlib
import io
import json
import random
import zipfile
from collections import Counter

import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.documents import read_documents
from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.readers import parquet, streams
from data_pipeline.readers.file_types import arrow_files
from data_pipeline.readers.file_types.mediawiki import read_mediawiki
from data_pipeline.readers.file_types.wikitext import plain_text
from data_pipeline.readers.hub import read_json
from data_pipeline.readers.record import Fields, RecordFault
from data_pipeline.readers.sources import MediawikiSource, Source
from governance.config import Section, validate
from governance.errors import MissingInput, StorageError
from governance.stage import Runtime
from tests.data_pipeline.test_delimited import made

ROWS = [{"text": f"row {number} größer", "doc": {"n": number}} for number in range(300)]
KINDS = {"string": pa.string(), "dictionary": pa.dictionary(pa.int32(), pa.string()), "view": pa.string_view()}
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


# --- Arrow and ORC


def arrow(path, rows=ROWS, form="stream", kind="string", packed=None):
    schema = pa.schema([("text", KINDS[kind]), ("doc", pa.struct([("n", pa.int64())]))])
    options = pa.ipc.IpcWriteOptions(compression=packed)
    new = pa.ipc.new_stream if form == "stream" else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, new(sink, schema, options=options) as out:
        for begin in range(0, len(rows), 100):
            out.write_batch(pa.RecordBatch.from_pylist(rows[begin : begin + 100], schema))


@pytest.mark.parametrize("packed", [None, "zstd", "lz4"])
@pytest.mark.parametrize("form", ["stream", "file"])
@pytest.mark.parametrize("kind", ["string", "dictionary", "view"])
def test_arrow_rows_become_documents(tmp_path, form, packed, kind):
    rows = 100 if (kind, form) == ("dictionary", "file") else 300  # a file has one dictionary for all batches
    arrow(tmp_path / "x.arrow", ROWS[:rows], form=form, packed=packed, kind=kind)
    documents, faults, _ = made(tmp_path, type="arrow", paths=["x.arrow"], columns=["doc.n"])
    assert [d.text for d in documents] == [row["text"] for row in ROWS[:rows]]
    assert ([json.loads(d.columns)["doc.n"] for d in documents], faults) == ([*range(rows)], [])


@pytest.mark.parametrize("form", ["stream", "file"])
def test_a_torn_arrow_file_keeps_the_rows_before(tmp_path, form):
    arrow(tmp_path / "x.arrow", form=form)
    data = (tmp_path / "x.arrow").read_bytes()
    (tmp_path / "x.arrow").write_bytes(data[: int(len(data) * 0.7)])
    documents, faults, stats = made(tmp_path, type="arrow", paths=["x.arrow"])
    assert [d.text for d in documents] == [row["text"] for row in ROWS[:200]]
    assert ([fault[1] for fault in faults], stats["torn_files"]) == (["unreadable_rows"], 1)
    (tmp_path / "x.arrow").write_bytes(b"no Arrow at all, but some bytes")
    assert [fault[1] for fault in made(tmp_path, type="arrow", paths=["x.arrow"])[1]] == ["unreadable_rows"]


def test_an_arrow_bomb_is_stopped_before_it_unpacks(tmp_path, monkeypatch):
    rows = [{"text": "a"}, {"text": "0" * 30_000_000}]
    schema = pa.schema([("text", pa.string())])
    with (
        pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as out,
    ):
        for row in rows:
            out.write_batch(pa.RecordBatch.from_pylist([row], schema))
    monkeypatch.setattr(streams, "BOMB_BYTES", 10_000_000)
    documents, faults, stats = made(tmp_path, type="arrow", paths=["x.arrow"])
    assert ([d.text for d in documents], [fault[:2] for fault in faults]) == (["a"], [(1, "decompression_bomb")])
    assert stats["torn_files"] == 1
    one = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["z" * 100_000]))
    batch = pa.record_batch({"text": one})
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as out:
        out.write_batch(batch)
    documents, faults, _ = made(tmp_path, type="arrow", paths=["x.arrow"])
    assert sum(len(d.text) for d in documents) < 30_000_000
    assert [fault[1] for fault in faults] == ["decompression_bomb"]


def batches(path, *parts, form="file"):
    """Write batches; returns the file's length after each."""
    ends = []
    new = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as sink, new(sink, parts[0].schema) as out:
        for part in parts:
            out.write_batch(part)
            ends.append(sink.tell())
    return ends


@pytest.mark.parametrize("form", ["stream", "file"])
def test_an_arrow_file_cut_between_batches_is_torn(tmp_path, form):
    parts = [pa.record_batch({"text": [f"a{number}", f"b{number}"]}) for number in range(3)]
    ends = batches(tmp_path / "x.arrow", *parts, form=form)
    (tmp_path / "x.arrow").write_bytes((tmp_path / "x.arrow").read_bytes()[: ends[1]])
    documents, faults, stats = made(tmp_path, type="arrow", paths=["x.arrow"])
    assert [d.text for d in documents] == ["a0", "b0", "a1", "b1"]
    assert ([fault[:2] for fault in faults], stats["torn_files"]) == ([(4, "unreadable_rows")], 1)


@pytest.mark.parametrize("kind", ["arrow", "orc"])
def test_rows_without_a_byte_of_their_own_are_a_bomb(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(streams, "BOMB_BYTES", 1_000_000)
    if kind == "arrow":
        batch = pa.record_batch({"text": pa.nulls(30_000)})
        batches(tmp_path / "x.arrow", batch)
        data = (tmp_path / "x.arrow").read_bytes()
        data = data.replace((30_000).to_bytes(8, "little"), (1 << 40).to_bytes(8, "little"))
        (tmp_path / "x.arrow").write_bytes(data)
    else:
        pa.orc.write_table(pa.table({"text": pa.nulls(30_000, pa.string())}), tmp_path / "x.orc", compression="zlib")
    faults = made(tmp_path, type=kind, paths=[f"x.{kind}"])[1]
    assert faults[-1][:2] == (1_000_000 // 64, "decompression_bomb")


def invalid(kind):
    """Two values of which the second is not UTF-8."""
    texts = pa.array([b"a", b"\xff"], pa.binary()).view(pa.string())
    if kind == "dictionary":
        return pa.DictionaryArray.from_arrays(pa.array([0, 1]), texts)
    if kind == "list":
        return pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), texts)
    return texts


@pytest.mark.parametrize("kind", ["string", "dictionary", "list"])
def test_bytes_that_are_not_utf8_spoil_no_other_row(tmp_path, kind):
    batch = pa.record_batch({"text": ["x", "y"], "other": invalid(kind)})
    later = pa.record_batch({"text": ["z"], "other": batch["other"].slice(0, 1)})
    batches(tmp_path / "x.arrow", batch, later, form="stream" if kind == "dictionary" else "file")
    documents, faults, _ = made(tmp_path, type="arrow", paths=["x.arrow"])
    assert ([d.text for d in documents], faults) == (["x", "y", "z"], [])
    if kind != "list":
        documents, faults, _ = made(tmp_path, type="arrow", paths=["x.arrow"], text_field="other")
        assert ([d.text for d in documents], [fault[:2] for fault in faults]) == (["a", "a"], [(1, "not_utf8")])


def repeated(kind, count, text):
    """One list of the value `count` times."""
    if kind == "view":
        values = pa.array([text] * count, pa.string_view())
    elif kind == "ranges":
        values = pa.ListViewArray.from_arrays(
            pa.array([0] * count, pa.int32()), pa.array([1] * count, pa.int32()), pa.array([text])
        )
    else:
        values = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int16()), pa.array([text]))
    turns = pa.StructArray.from_arrays([pa.array(["user"] * count), values], names=["role", "content"])
    turns = values if kind == "plain" else turns
    return pa.record_batch({"chat": pa.ListArray.from_arrays(pa.array([0, 1, count], pa.int32()), turns)})


@pytest.mark.parametrize("kind", ["dictionary", "ranges", "plain"])
def test_a_value_repeated_in_one_list_is_a_bomb(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(streams, "BOMB_BYTES", 10_000_000)
    batches(tmp_path / "x.arrow", repeated(kind, 4000, "z" * 5_000))
    monkeypatch.setattr(arrow_files, "_SLICE_BYTES", 1 << 20)
    _, faults, _ = made(tmp_path, type="arrow", paths=["x.arrow"], messages_field="chat")
    assert faults[-1][:2] == (1, "decompression_bomb")


@pytest.mark.parametrize("kind", ["dictionary", "view"])
def test_chats_with_shared_values_are_read(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(arrow_files, "_SLICE_BYTES", 1000)
    batches(tmp_path / "x.arrow", repeated(kind, 50, "a long enough value"))
    documents, faults, _ = made(tmp_path, type="arrow", paths=["x.arrow"], messages_field="chat")
    assert ([d.text.count("a long enough value") for d in documents], faults) == ([1, 49], [])


@pytest.mark.parametrize("packed", ["uncompressed", "zlib", "zstd"])
def test_orc_rows_become_documents_and_damage_is_counted(tmp_path, packed):
    pa.orc.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.orc", compression=packed)
    values = {"type": "orc", "paths": ["x.orc"], "columns": ["doc.n"]}
    documents, faults, _ = made(tmp_path, **values)
    assert [d.text for d in documents] == [row["text"] for row in ROWS]
    assert ([json.loads(d.columns)["doc.n"] for d in documents], faults) == ([*range(300)], [])
    data = (tmp_path / "x.orc").read_bytes()
    for damaged in (data[:-100], data[: len(data) // 2], b"ORC" + data[40:], b"no"):
        (tmp_path / "x.orc").write_bytes(damaged)
        _, faults, stats = made(tmp_path, **values)
        assert ([fault[1] for fault in faults], stats["torn_files"]) == (["unreadable_rows"], 1)


@pytest.mark.parametrize("kind", ["arrow", "orc"])
def test_a_map_among_the_kept_columns_costs_no_row(tmp_path, kind):
    maps = pa.array([[("a", "x")], None, [], [("b", "y"), ("c", None)]], pa.map_(pa.string(), pa.string()))
    table = pa.table({"text": list("abcd"), "facts": maps})
    if kind == "orc":
        pa.orc.write_table(table, tmp_path / "x.orc")
    else:
        with pa.ipc.new_file(tmp_path / "x.arrow", table.schema) as file:
            file.write_table(table)
    documents, faults, _ = made(tmp_path, type=kind, paths=["x.*"], columns=["facts"])
    assert ([json.loads(one.columns)["facts"] for one in documents], faults) == (
        [[["a", "x"]], None, [], [["b", "y"], ["c", None]]], [],
    )  # fmt: skip
    sliced = [arrow_files._bytes(maps.slice(place, 1)) for place in range(4)]
    assert sliced[3] > sliced[0] > sliced[2]


def test_long_rows_of_an_orc_file_are_read_few_at_a_time(tmp_path, monkeypatch):
    """Batches follow the packed size of a row, and pieces of a batch the size that its values take."""
    batches, pieces, chance = [], [], random.Random(1)
    opened, read = arrow_files.open_orc, arrow_files.read_batch

    @contextlib.contextmanager
    def noted(*given):
        with opened(*given) as found:
            yield found._replace(batches=(batches.append(one.num_rows) or one for one in found.batches))

    monkeypatch.setattr(arrow_files, "open_orc", noted)
    monkeypatch.setattr(arrow_files, "read_batch", lambda one, *more: pieces.append(one.num_rows) or read(one, *more))
    for texts, a_batch, a_piece in (
        ([f"{number} {'a' * (4 << 20)}" for number in range(20)], 64, 4),
        ([chance.randbytes(20_000).hex() for _ in range(40)], 16, 16),
        ([f"{number} short" for number in range(200)], 64, 64),
    ):
        pa.orc.write_table(pa.table({"text": texts}), tmp_path / "x.orc", compression="zlib")
        del batches[:], pieces[:]
        documents, faults, _ = made(tmp_path, type="orc", paths=["x.orc"])
        assert ([document.text for document in documents], faults) == (texts, [])
        assert sum(batches) == sum(pieces) == len(texts)
        assert (max(batches) <= a_batch, max(pieces) <= a_piece) == (True, True)
    assert max(pieces) == 64


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError(), pa.ArrowMemoryError("x")])
@pytest.mark.parametrize("kind", ["arrow", "orc", "parquet"])
def test_a_fault_of_the_machine_ends_the_run_and_is_no_torn_file(tmp_path, monkeypatch, kind, error):
    path = tmp_path / f"x.{kind}"
    table = pa.Table.from_pylist(ROWS)
    {"arrow": lambda: arrow(path), "orc": lambda: pa.orc.write_table(table, path),
     "parquet": lambda: pyarrow.parquet.write_table(table, path)}[kind]()  # fmt: skip

    def fails(*_):
        raise error

    monkeypatch.setattr(parquet if kind == "parquet" else arrow_files, "read_batch", fails)
    with pytest.raises(MissingInput, match=rf"cannot read .*x\.{kind}: (Input/output error|not enough memory)"):
        made(tmp_path, type=kind, paths=[path.name])


@pytest.mark.parametrize("form", ["stream", "file"])
def test_a_damaged_length_of_an_arrow_file_asks_for_no_memory(tmp_path, form):
    """Rows that are lost with one machine's memory are lost with any."""
    arrow(tmp_path / "x.arrow", form=form)
    data = (tmp_path / "x.arrow").read_bytes()
    start = 8 if form == "file" else 0
    reasons = set()
    for at in range(start + 4, start + 700):
        (tmp_path / "x.arrow").write_bytes(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])
        pieces = arrow_files.read_arrow_file(tmp_path / "x.arrow", "x.arrow", Fields("text"))
        reasons |= {piece.reason for piece in pieces if isinstance(piece, RecordFault)}
    assert "unreadable_rows" in reasons


# --- WET and WACZ


def record(kind, block, url="http://a.example/", **fields):
    lines = ["WARC/1.0", f"WARC-Type: {kind}", f"WARC-Target-URI: {url}", "WARC-Date: 2024-05-01T10:00:00Z"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, f"Content-Length: {len(block)}", "", ""]).encode() + block + b"\r\n\r\n"


def digest(block):
    return "sha1:" + base64.b32encode(hashlib.sha1(block).digest()).decode()


def test_wet_records_are_documents_with_url_and_date(tmp_path):
    good = "Größe\n\nHTTP/1.1 is a protocol.\n".encode()
    parts = [record("warcinfo", b"software: x\r\n"), record("conversion", good, WARC_Block_Digest=digest(good)),
             record("conversion", b"changed", WARC_Block_Digest=digest(good)), record("conversion", b"\xff\xfe"),
             record("conversion", b"  \n"), record("conversion", b"last", "http://b.example/")]  # fmt: skip
    (tmp_path / "x.warc.wet.gz").write_bytes(b"".join(map(gzip.compress, parts)))
    values = {"type": "wet", "paths": ["*.wet.gz"], "columns": ["WARC-Date", "absent"]}
    documents, faults, stats = made(tmp_path, **values)
    assert [(d.text, d.url) for d in documents] == [(good.decode(), "http://a.example/"), ("last", "http://b.example/")]
    assert json.loads(documents[0].columns) == {"WARC-Date": "2024-05-01T10:00:00Z", "absent": None}
    assert [fault[1] for fault in faults] == ["warc_digest_mismatch", "not_utf8", "no_text"]
    assert stats["passed_over"] == {"not_a_conversion": 1}
    data = b"".join(map(gzip.compress, parts))
    (tmp_path / "x.warc.wet.gz").write_bytes(data[:-10])
    documents, faults, stats = made(tmp_path, **values)
    assert (len(documents), faults[-1][1], stats["torn_files"]) == (1, "warc_torn_record", 1)


def page(text, url):
    body = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n{text}".encode()
    return gzip.compress(record("response", body, url, Content_Type="application/http; msgtype=response"))


def wacz(path, files, package="{}"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("datapackage.json", package)
        archive.writestr("pages/pages.jsonl", "{}")
        for name, (data, how) in files.items():
            archive.writestr(name, data, how)


def test_a_wacz_is_read_as_its_web_archives(tmp_path):
    first = page("one", "http://a.example/1") + page("two", "http://a.example/2")
    second = page("three", "http://b.example/")
    long = "b" * 240 + ".warc.gz"
    wacz(tmp_path / "x.wacz", {"archive/a.warc.gz": (first, STORED), f"archive/{long}": (second, STORED)})
    documents, faults, _ = made(tmp_path, type="warc", paths=["x.wacz"])
    assert [(d.text, d.url, d.file) for d in documents] == [
        ("one", "http://a.example/1", "x.wacz/archive/a.warc.gz"),
        ("two", "http://a.example/2", "x.wacz/archive/a.warc.gz"),
        ("three", "http://b.example/", f"x.wacz/archive/{long}"),
    ]
    assert faults == []


def test_torn_and_hostile_wacz_archives_are_counted(tmp_path, monkeypatch):
    path, values = tmp_path / "x.wacz", {"type": "warc", "paths": ["x.wacz"]}
    wacz(path, {"archive/a.warc.gz": (page("one", "http://a.example/1"), STORED)})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    _, faults, stats = made(tmp_path, **values)
    assert ([fault[1] for fault in faults], stats["torn_files"]) == (["unreadable_member"], 1)
    at = data.index(b"\x1f\x8b") + 60
    path.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
    _, faults, stats = made(tmp_path, **values)
    assert ("unreadable_member" in [fault[1] for fault in faults], stats["torn_files"] > 0) == (True, True)
    monkeypatch.setattr(streams, "BOMB_BYTES", 1_000_000)
    second = page("two", "http://b.example/")
    wacz(path, {"archive/a.warc": (b"0" * 30_000_000, DEFLATED), "archive/b.warc.gz": (second, STORED)})
    documents, faults, stats = made(tmp_path, **values)
    assert ([d.text for d in documents], [fault[1] for fault in faults]) == (["two"], ["decompression_bomb"])
    assert stats["torn_files"] == 1
    wacz(path, {"archive/notes.txt": (b"not a web archive", STORED)})
    assert made(tmp_path, **values)[2]["torn_files"] == 1


class Failing(io.FileIO):
    """A file on a device that fails in one place."""

    fails = range(1001, 4000)

    def readinto(self, buffer):
        if self.tell() in self.fails:
            raise OSError(errno.EIO, "Input/output error")
        return super().readinto(memoryview(buffer)[:500])


@pytest.mark.parametrize("name", ["x.warc", "x.warc.gz", "x.warc.zst", "x.wacz"])
def test_a_failing_device_is_no_damage_of_a_web_archive(tmp_path, monkeypatch, name):
    parts = [record("response", f"HTTP/1.1 200 OK\r\n\r\n{random.Random(n).randbytes(900)}".encode()) for n in range(9)]
    pack = {"x.warc": bytes, "x.warc.zst": zstandard.compress}.get(name, gzip.compress)
    data = b"".join(map(pack, parts))
    if name == "x.wacz":
        wacz(tmp_path / name, {"archive/a.warc.gz": (data, STORED)})
    else:
        (tmp_path / name).write_bytes(data)
    module = "archive" if name == "x.wacz" else "warc_stream"
    monkeypatch.setattr(
        f"data_pipeline.readers.{module}.open_source", lambda path, *_: io.BufferedReader(Failing(path), 512)
    )
    with pytest.raises(MissingInput, match="Input/output error"):
        made(tmp_path, type="warc", paths=[name])
    if name == "x.wacz":  # in its end record, when it is sought and when it is read
        monkeypatch.setattr(Failing, "fails", range((tmp_path / name).stat().st_size - 400, 1 << 20))
        for module in ("archive", "file_types.web_captures"):
            with pytest.raises(MissingInput, match="Input/output error"):
                made(tmp_path, type="warc", paths=[name])
            monkeypatch.setattr(f"data_pipeline.readers.{module}.is_zip", lambda path: True)
        with pytest.raises(MissingInput, match="Input/output error"):
            made(tmp_path, type="warc", paths=[name])


def test_a_full_disk_of_temporary_files_is_no_property_of_an_archive(tmp_path, monkeypatch):
    """The rows must not be counted as lost: with room on the disk, another run reads them all."""

    def full(*_):
        yield b"a"
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("data_pipeline.readers.file_types.web_captures.read_blocks", full)
    monkeypatch.setattr("data_pipeline.readers.hub.blocks", full)
    wacz(tmp_path / "x.wacz", {"archive/a.warc.gz": (page("one", "http://a.example/1"), STORED)})
    with pytest.raises(StorageError, match="no space left"):
        made(tmp_path, type="warc", paths=["x.wacz"])
    (tmp_path / "x.json.lz4").touch()
    with pytest.raises(StorageError, match="no space left"):
        list(read_json(tmp_path / "x.json.lz4", "x.json.lz4", Fields("text")))


def test_a_wacz_with_another_file_than_it_states_is_not_read(tmp_path):
    good, other = page("one", "http://a.example/1"), page("two", "http://b.example/")
    stated = {name: f"sha256:{hashlib.sha256(good).hexdigest()}" for name in ("a.warc.gz", "b.warc.gz", "c.warc.gz")}
    resources = [{"path": f"archive/{name}", "hash": text} for name, text in stated.items()]
    files = {"archive/a.warc.gz": (good, STORED), "archive/b.warc.gz": (other, STORED)}
    wacz(tmp_path / "x.wacz", files, json.dumps({"resources": resources}))
    documents, faults, stats = made(tmp_path, type="warc", paths=["x.wacz"])
    assert [d.text for d in documents] == ["one"]
    assert [fault[1] for fault in faults] == ["wacz_digest_mismatch", "missing_member"]
    assert stats["torn_files"] == 1  # the archive
    for package in ("not json", "[]", '{"resources": [1]}', '{"resources": [{"path": 1, "hash": "md5:0"}]}'):
        wacz(tmp_path / "x.wacz", files, package)
        assert len(made(tmp_path, type="warc", paths=["x.wacz"])[0]) == 2


# --- MediaWiki


def test_names_of_namespaces_cost_a_page_a_bounded_amount(tmp_path, monkeypatch):
    """Each page went to its reader with all of them: 600 KB of a dump were 370 MB."""
    sent = []

    def read_pages(pages, kind):
        sent.extend(len(data) for data, _ in pages)
        return ["no_text"] * len(pages)

    monkeypatch.setattr("data_pipeline.readers.file_types.mediawiki.read_pages", read_pages)
    names = "".join(f'<namespace key="6">{name}</namespace>' for name in ("x" * 300, *map(str, range(5000))))
    page = "<page><title>a</title><ns>0</ns><revision><text>b</text></revision></page>"
    (tmp_path / "x.xml").write_text(f"<mediawiki><siteinfo>{names}</siteinfo>{page}</mediawiki>")
    source = MediawikiSource(type="mediawiki", name="w", licence="MIT", paths=("x.xml",))
    assert len(list(read_mediawiki(tmp_path / "x.xml", "x.xml", source, Counter()))) == len(sent) == 1
    assert 100 < sent[0] < 1000


ARTICLE = """{{Infobox|a=1}}'''Quine''' is a [[computer program|program]]<ref>x</ref> by [[Douglas Hofstadter]].
<!-- no --> See [http://a.example this page] &amp; more.

[[Datei:a.png|thumb|Caption]]
== History ==
{| class="wikitable"
|-
| cell
|}
* first
* second
[[Category:Programs]] [[Kategorie:Y]] [[:Category:Shown]]
__NOTOC__"""
PLAIN = """Quine is a program by Douglas Hofstadter.
See this page & more.

History

first
second
Category:Shown"""


def dump(pages, head=""):
    site = "<siteinfo><base>https://de.wiki.example/wiki/Hauptseite</base><namespaces>"
    site += '<namespace key="0" case="first-letter" /><namespace key="6">Datei</namespace>'
    site += '<namespace key="14">Kategorie</namespace></namespaces></siteinfo>'
    body = ""
    for number, (title, space, extra, text) in enumerate(pages):
        text = text.replace("&", "&amp;").replace("<", "&lt;")
        body += f"<page><title>{title}</title><ns>{space}</ns><id>{number + 10}</id>{extra}<revision>"
        body += f"<id>{number + 20}</id><timestamp>2024-05-01T10:00:00Z</timestamp>"
        body += f"<text bytes='1' xml:space='preserve'>{text}</text></revision></page>\n"
    return f'{head}<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/">{site}{body}</mediawiki>'.encode()


PAGES = [("Das Quine", 0, "", ARTICLE), ("Old", 0, '<redirect title="Das Quine" />', "#REDIRECT [[Das Quine]]"),
         ("Talk:Quine", 1, "", "chat"), ("Empty", 0, "", "{{only|a template}}"),
         ("Last", 0, "", "The end.")]  # fmt: skip


@pytest.mark.parametrize("packed", ["", ".bz2"])
def test_pages_of_a_dump_become_plain_text(tmp_path, packed):
    pack = bz2.compress if packed else bytes
    (tmp_path / f"w.xml{packed}").write_bytes(pack(dump(PAGES)))
    columns = ["title", "page_id", "revision_id", "timestamp"]
    documents, faults, stats = made(tmp_path, type="mediawiki", paths=["w.xml*"], columns=columns)
    assert [d.text for d in documents] == [PLAIN, "The end."]
    assert [d.url for d in documents] == ["https://de.wiki.example/wiki/Das_Quine", "https://de.wiki.example/wiki/Last"]
    assert json.loads(documents[0].columns) == {
        "title": "Das Quine", "page_id": "10", "revision_id": "20", "timestamp": "2024-05-01T10:00:00Z"
    }  # fmt: skip
    assert ([fault[:2] for fault in faults], stats["passed_over"]) == (
        [(3, "no_text")],
        {"redirect": 1, "other_namespace": 1},
    )


ODD_ENCODINGS = ("gb2312", "utf-7", "foo")


def test_torn_and_hostile_dumps_are_counted(tmp_path):
    whole = dump(PAGES)
    laughs = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    for data, reason, read in (
        (whole[: whole.index(b"<title>Empty")], "truncated_xml", 1),
        (whole[: whole.index(b"</mediawiki>")] + b"</wrong>", "corrupt_xml", 2),
        (dump(PAGES, laughs), "hostile_xml", 0),
        (whole[: whole.index(b"<page>")] + b"<a>" * 200, "hostile_xml", 0),
        (whole.replace(b"The end.", b"&unknown;"), "corrupt_xml", 1),
        (b"", "truncated_xml", 0),
        (b"not XML", "corrupt_xml", 0),
        *((f"<?xml version='1.0' encoding='{name}'?>".encode() + whole, "corrupt_xml", 0) for name in ODD_ENCODINGS),
    ):
        (tmp_path / "w.xml").write_bytes(data)
        documents, faults, stats = made(tmp_path, type="mediawiki", paths=["w.xml"])
        assert (len(documents), faults[-1][1], stats["torn_files"]) == (read, reason, 1)
    (tmp_path / "w.xml.bz2").write_bytes(bz2.compress(whole)[:-30])
    _, faults, stats = made(tmp_path, type="mediawiki", paths=["w.xml.bz2"])
    assert (faults[-1][1], stats["torn_files"]) == ("truncated_bzip2", 1)


def test_a_page_that_is_slow_to_parse_costs_itself_alone(tmp_path, monkeypatch):
    for name, seconds in (("SECONDS", 0.05), ("SECONDS_PER_MIB", 0)):
        monkeypatch.setattr(f"data_pipeline.readers.page_process.{name}", seconds)
    slow = [("Slow", 0, "", "[http://a b] " * 1_000_000), ("Good", 0, "", "The end.")]
    (tmp_path / "w.xml").write_bytes(dump(slow))
    documents, faults, _ = made(tmp_path, type="mediawiki", paths=["w.xml"])
    assert ([d.text for d in documents], [fault[:2] for fault in faults]) == (["The end."], [(0, "wikitext_too_slow")])


PIECES = {
    "word": "word", "''slanted''": "slanted", "'''''both'''''": "both", "[[Title|words]]": "words",
    "[[Title]]": "Title", "[[File:a.png|thumb|A [[b|c]] {{d}}]]": "", "[[:File:shown]]": "File:shown",
    "[http://a.example named]": "named", "{{a|{{b|{{{c|d}}}}}|[[e]]}}": "", "{{{x|y}}}": "",
    "<ref name=a>{{cite}}</ref>": "", "<ref name=a />": "", "<!-- [[ {{ -->": "", "<math>a</math>": "",
    "<nowiki>''{{x}}[[</nowiki>": "''{{x}}[[", "<b>bold</b>": "bold", "a&nbsp;b &amp; c": "a\xa0b & c",
    "5 < 6": "5 < 6", "&ampamp;": "&ampamp;", "<unknown>": "<unknown>", "[[http://a.example words]]": "[words]",
}  # fmt: skip
LINES = ("", "* ", "##", ":;")


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(LINES)), st.lists(st.sampled_from(sorted(PIECES)), min_size=1)), min_size=1
    )
)
def test_each_construct_leaves_its_words_wherever_it_is(lines):
    text = "\n".join(f"{marker}. {' '.join(pieces)} ." for marker, pieces in lines)
    expected = "\n".join(f". {' '.join(PIECES[piece] for piece in pieces)} ." for _, pieces in lines)
    assert plain_text("file\n" + text) == expected
    table = "{| class=x\n|-\n| " + text.replace("\n", " ") + "\n{|\n| inner\n|}\n|}"
    assert plain_text(f"file\n{text}\n{table}\nend") == expected + "\n\nend"


@pytest.mark.parametrize(
    ("text", "plain"),
    [("''Star'''s news", "Star's news"), ("l'''amour''", "l'amour"), ("''''a''''", "'a'"), ("a ''open", "a open"),
     ("''a''{{b}}''c''", "ac"), ("== A ==\n;term : words", "A\nterm\nwords"), ("{|\n| cell\nkept\n! cell", "kept"),
     ("a<br />b", "a\nb"), ("x\n<!-- line -->\ny", "x\ny"), ("a <!-- open", "a"), ("{{open [[a|b]]", "{{open b"),
     ("[[a]b]]", "[[a]b]]"), ("<pre>[[a]]\n b</pre>", "[[a]]\nb"), ("<ref>open", "<ref>open"), ("__TOC__ a", "a"),
     ("<ce>a <center>b</center>", "<ce>a b"), ("a<ref>b</refs>c</ref >d", "ad"),
     ("[[a|[http://b.example c]]]d", "cd"), ("[[File:a|b [[c]] [http://d.example e]]]f", "f"), ("[[a]]]", "a]"),
     ("a\n\n[[de:Titel]]\n[[zh-min-nan:B C]] \n[[simple:D]]\n", "a"), ("[[:de:Titel]]", "de:Titel"),
     ("[[WP:About]]\n[[de:T|b]]\n[[std::vector]]\n[[en:x]] y", "WP:About\nb\nstd::vector\nen:x y"),
     ("-{zh-hans:计算机;zh-hant:電腦}-是-{R|原文}-和-{字}-", "计算机是原文和字"),
     ("-{H|zh-cn:a;zh-tw:b}-x<languages />", "x"),
     ("1-{2-chloroethyl}-3", "1-{2-chloroethyl}-3")],
)  # fmt: skip
def test_wikitext_as_mediawiki_reads_it(text, plain):
    assert plain_text("file\n" + text) == plain


@pytest.mark.parametrize("text", ["[[" * 900, "{{{a|" * 300, "'''''" * 500, "<b><i>" * 200, "[[Datei:x|[[a]]|b]] c"])
def test_odd_wikitext_has_a_text(text):
    assert isinstance(plain_text("file|datei\n" + text), str)


class Sources(Section):
    sources: tuple[Source, ...]


@pytest.mark.slow
def test_the_formats_share_one_artifact(tmp_path):
    arrow(tmp_path / "x.arrow", ROWS[:3], form="file")
    pa.orc.write_table(pa.Table.from_pylist(ROWS[:3]), tmp_path / "x.orc")
    (tmp_path / "w.xml").write_bytes(dump(PAGES))
    (tmp_path / "x.wet").write_bytes(record("conversion", b"text of a page"))
    files = {"arrow": "x.arrow", "orc": "x.orc", "mediawiki": "w.xml", "wet": "x.wet"}
    values = [{"type": kind, "name": kind, "licence": "MIT", "paths": [name]} for kind, name in files.items()]
    sources = validate({"sources": values}, Sources, "run.toml").sources
    digests = set()
    for workers in (1, 2):
        found = ingest(sources, IngestConfig(), tmp_path, Runtime(tmp_path / f"root{workers}", workers))
        digests.add(found.digest)
        read = read_documents(found.files("documents", tmp_path / f"root{workers}"))
        assert Counter(document.source for document in read) == {"arrow": 3, "orc": 3, "mediawiki": 2, "wet": 1}
    assert len(digests) == 1
