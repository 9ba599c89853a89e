"""ORC: what a file states takes no memory beyond the bound, ends no run, and is counted where it is not there."""

import signal
import subprocess

import pyarrow as pa
import pyarrow.orc
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.readers.file_types import arrow_files
from data_pipeline.readers.record import Fields
from governance.config import validate
from governance.errors import MissingInput
from governance.stage import Runtime
from tests.data_pipeline.test_delimited import made

ROWS = [{"text": f"row {number} größer"} for number in range(300)]


def test_lengths_that_an_orc_file_states_take_no_memory_and_end_no_run(tmp_path):
    """The lengths of texts are apart from them: here five of 2 ** 40 bytes, in place of those that were written."""
    sizes = [70_000, 90_000, 71_000, 88_000, 72_000]
    path = tmp_path / "x.orc"
    pa.orc.write_table(pa.table({"text": ["a" * size for size in sizes]}), path, compression="uncompressed")
    data = path.read_bytes()
    at = data.index(b"".join(size.to_bytes(3, "big") for size in sizes)) - 2
    path.write_bytes(data[:at] + b"\x3a" + (1 << 40).to_bytes(8, "big") + data[at + 9 :])
    documents, faults, stats = made(tmp_path, type="orc", paths=["x.orc"])
    assert (documents, [fault[:2] for fault in faults]) == ([], [(0, "unreadable_rows")])
    assert stats["torn_files"] == 1


def test_a_list_of_nulls_of_an_orc_file_is_a_bomb_before_it_is_a_list(tmp_path):
    count = 3_000_000
    lists = pa.ListArray.from_arrays(pa.array([0, 1, count], pa.int32()), pa.nulls(count, pa.string()))
    pa.orc.write_table(pa.table({"text": ["a", "b"], "chat": lists}), tmp_path / "x.orc", compression="zlib")
    values = {"type": "orc", "paths": ["x.orc"]}
    documents, faults, _ = made(tmp_path, **values, columns=["chat"])
    assert ([d.columns for d in documents], [fault[:2] for fault in faults]) == (
        ['{"chat":[null]}'], [(1, "decompression_bomb")],
    )  # fmt: skip
    assert [d.text for d in made(tmp_path, **values)[0]] == ["a", "b"]


def test_rows_that_an_orc_file_states_and_does_not_hold_are_counted(tmp_path):
    path = tmp_path / "x.orc"
    pa.orc.write_table(pa.Table.from_pylist(ROWS), path, compression="uncompressed")
    data = path.read_bytes()
    at = data.rindex(b"\x30\xac\x02")  # the footer's field 6: 300 rows
    path.write_bytes(data[:at] + b"\x30\xad\x02" + data[at + 3 :])
    documents, faults, _ = made(tmp_path, type="orc", paths=["x.orc"])
    assert (len(documents), [fault[:2] for fault in faults]) == (300, [(300, "unreadable_rows")])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_was_killed_is_not_the_files_fault_and_a_broken_parser_is(tmp_path, monkeypatch, number):
    rows = [{"text": f"{n} {'a' * 20_000}"} for n in range(300)]
    pa.orc.write_table(pa.Table.from_pylist(rows), tmp_path / "x.orc")
    children, start = [], subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *more, **options: children.append(start(*more, **options)) or children[0]
    )
    pieces = arrow_files.read_orc(tmp_path / "x.orc", "x.orc", Fields("text"))
    assert next(pieces).text == rows[0]["text"]
    children[0].send_signal(number)
    if number == signal.SIGKILL:
        with pytest.raises(MissingInput, match=r"cannot read .*x\.orc: not enough memory"):
            list(pieces)
    else:
        *kept, fault = pieces
        assert [piece.position for piece in kept] == [*range(1, fault.position)]
        assert (fault.reason, len(kept) < 299) == ("unreadable_rows", True)
    assert children[0].poll() == -number


@pytest.mark.parametrize("name", ["x.orc", "x.json", "x.json.lz4", "x.parquet", "x.arrow"])
def test_a_damaged_file_has_one_digest_wherever_it_is(tmp_path, name):
    """Libraries name the file in their errors, with the folder that it is in today."""
    broken = b'[{"text": "a"}, {"text": "b"' * 9
    data = pa.compress(broken, codec="lz4", asbytes=True) if name.endswith(".lz4") else broken
    kind = name.split(".")[1].replace("json", "hub")
    digests = set()
    for folder in (tmp_path / "a", tmp_path / "some" / "other place"):
        (folder / "files").mkdir(parents=True)
        (folder / "files" / name).write_bytes(data)
        place = {"dataset": "./files"} if kind == "hub" else {"paths": [f"files/{name}"]}
        config = validate({"sources": [{"type": kind, "name": "x", "licence": "MIT", **place}]}, DataConfig, "run.toml")
        found = ingest(config.sources, IngestConfig(), folder, Runtime(folder / "root"))
        assert found.stats["quarantined"] == 1
        digests.add(found.digest)
    assert len(digests) == 1
