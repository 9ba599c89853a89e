"""Data sets of the hub, and those of `save_to_disk`: streamed, pinned, never cached whole."""

import bz2
import lzma
import os
import subprocess
import sys

import pyarrow as pa
import pytest

from data_pipeline.documents import read_documents
from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.readers.file_types.arrow_files import read_arrow_file
from data_pipeline.readers.hub import local_files, read_hub, read_json
from data_pipeline.readers.record import Fields, Record, RecordFault
from data_pipeline.readers.sources import HubSource
from governance.errors import ConfigError, MissingInput
from governance.stage import Runtime


def hub(dataset, **values):
    return HubSource(type="hub", name="h", licence="MIT", dataset=dataset, **values)


def made(source, folder, root):
    return ingest((source,), IngestConfig(), folder, Runtime(root))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders that the library itself saves: one data set in two files, and one of two splits."""
    folder = tmp_path_factory.mktemp("saved")
    script = """
import sys, datasets
datasets.disable_progress_bars()
one = datasets.Dataset.from_dict({"text": [f"{i} ä" for i in range(2500)], "key": list(range(2500))})
one.save_to_disk(sys.argv[1] + "/one", num_shards=2)
test = datasets.Dataset.from_dict({"text": ["held out"]})
datasets.DatasetDict({"train": one.select([3, 1]), "test": test}).save_to_disk(sys.argv[1] + "/both")
"""
    environment = {**os.environ, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, env=environment)
    return folder


def test_a_saved_data_set_is_read_in_the_order_of_its_files(saved, tmp_path):
    (saved / "one" / "cache-0123.arrow").write_bytes(b"a left-over of the library's cache")
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    assert [file.name for file in local_files(hub("one"), saved).files] == names
    manifest = made(hub("one", id_field="key"), saved, tmp_path)
    documents = list(read_documents(manifest.files("documents", tmp_path)))
    assert [(d.id, d.text) for d in documents] == [(f"h/{i}", f"{i} ä") for i in range(2500)]
    assert [d.position for d in documents] == [*range(1250), *range(1250)]


def test_packed_json_files_of_a_folder_are_read(tmp_path):
    rows = b'{"text": "a"}\n{"text": "b"}\n'
    with pa.CompressedOutputStream(str(tmp_path / "1.json.lz4"), "lz4") as out:
        out.write(rows)
    (tmp_path / "2.json.xz").write_bytes(lzma.compress(rows))
    (tmp_path / "3.json.bz2").write_bytes(bz2.compress(rows))
    found = local_files(hub("."), tmp_path)
    assert ([file.name for file in found.files], found.unread) == (["1.json.lz4", "2.json.xz", "3.json.bz2"], [])
    for file in found.files:
        assert [piece.text for piece in read_json(file.path, file.name, Fields("text"))] == ["a", "b"]


def test_the_split_of_a_saved_data_set(saved, tmp_path):
    for split, texts in (("train", ["3 ä", "1 ä"]), ("test", ["held out"])):
        manifest = made(hub("both", split=split), saved, tmp_path)
        assert [d.text for d in read_documents(manifest.files("documents", tmp_path))] == texts
    with pytest.raises(MissingInput, match="has the splits test, train, not 'validation'"):
        local_files(hub("both", split="validation"), saved)
    with pytest.raises(ConfigError, match="was not saved with several splits"):
        local_files(hub("one", split="test"), saved)


def test_a_state_that_is_damaged_or_names_what_is_gone(saved, tmp_path):
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    with pytest.raises(MissingInput, match="names no file"):
        local_files(hub(str(tmp_path)), saved)
    for state in ("{", "[]", '{"_data_files": [1]}'):
        (tmp_path / "state.json").write_text(state)
        with pytest.raises(MissingInput, match="is not what save_to_disk writes"):
            local_files(hub(str(tmp_path)), saved)


def test_a_torn_arrow_file_gives_all_batches_in_front_of_the_tear(tmp_path):
    path = tmp_path / "x.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, pa.schema([("text", pa.string())])) as stream:
        for number in range(5):
            stream.write_batch(pa.record_batch({"text": [f"{number} {i}" for i in range(10)]}))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    *rows, fault = read_arrow_file(path, "x", Fields("text"))
    assert isinstance(fault, RecordFault)
    assert (fault.reason, fault.position) == ("unreadable_rows", len(rows))
    assert [row.text for row in rows] == [f"{n} {i}" for n in range(5) for i in range(10)][: len(rows)]
    assert len(rows) >= 10
    path.write_bytes(whole[: whole.index(b"4 0") // 8 * 8 - 8])  # the last batch is torn
    *rows, fault = read_arrow_file(path, "x", Fields("text"))
    assert (len(rows), fault.reason) == (40, "unreadable_rows")
    path.write_bytes(whole[:-8])  # all batches, but not the mark behind them
    *rows, fault = read_arrow_file(path, "x", Fields("text"))
    assert (len(rows), fault.reason) == (50, "unreadable_rows")
    path.write_bytes(b"nothing")
    (fault,) = read_arrow_file(path, "x", Fields("text"))
    assert fault.reason == "unreadable_rows"


def test_the_hub_is_streamed_at_its_commit(monkeypatch):
    asked = []

    class Library:
        @staticmethod
        def load_dataset(*names, **values):
            asked.append((names, values))
            return iter([{"text": "a"}, {"text": 1}, {"text": "c"}])

    monkeypatch.setattr("data_pipeline.readers.hub._door", lambda: Library)
    source = hub("owner/name", revision="0" * 40, config_name="en", split="test")
    pieces = list(read_hub(source))
    assert pieces[0] == Record("a", "owner/name", 0)
    assert (pieces[1].reason, pieces[2].text, pieces[2].position) == ("text_not_string", "c", 2)
    assert asked == [(("owner/name", "en"), {"split": "test", "revision": "0" * 40, "streaming": True})]
