"""No half-written file ever has a final name."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.errors import MissingInput, StorageError, require_writable, storage_errors
from governance.files import (
    append_line,
    atomic_path,
    json_text,
    nameless_memory,
    place,
    put_in_place,
    read_lines,
    sha256_bytes,
    sha256_file,
    sweep_temporaries,
    write_bytes,
    write_json,
    write_private,
)

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(), inner, max_size=4)
        | st.dictionaries(st.integers(), inner, max_size=2)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_json_has_the_bytes_of_the_library_with_an_indent(value):
    assert json_text(value) == json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("value", [float("nan"), [1.0, float("inf")], {"a": {"b": [float("-inf"), {}]}}])
def test_json_refuses_what_is_no_number(value):
    with pytest.raises(ValueError, match=r"not JSON compliant: (nan|-?inf)"):
        json_text(value)


def _half_then_fail(path):
    path.write_bytes(b"half")
    raise ZeroDivisionError


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    target = tmp_path / "file"
    write_bytes(target, b"old")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
        _half_then_fail(temporary)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@given(data=st.binary(max_size=5000))
def test_file_and_bytes_have_one_digest(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("d") / "file"
    write_bytes(path, data)
    assert sha256_file(path) == sha256_bytes(data)


def test_missing_file_is_missing_input(tmp_path):
    with pytest.raises(MissingInput, match="nothing-here"):
        sha256_file(tmp_path / "nothing-here")


def test_file_size_limit_is_a_storage_error_and_leaves_nothing(tmp_path):
    code = (
        "import resource,signal,sys;from pathlib import Path;from governance.files import write_bytes;"
        "from governance.errors import StorageError;signal.signal(signal.SIGXFSZ,signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE,(1000,1000));\n"
        "try: write_bytes(Path(sys.argv[1])/'big',b'x'*5000)\n"
        "except StorageError as e: print(e); sys.exit(e.exit_code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == StorageError.exit_code
    assert "file-size limit" in done.stdout
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("small_disk", ["256k"], indirect=True)
def test_full_disk_is_a_storage_error_and_finished_files_stay(small_disk):
    write_bytes(small_disk / "first", b"x" * 100_000)
    with pytest.raises(StorageError, match="no space left"):
        write_bytes(small_disk / "second", b"y" * 400_000)
    assert os.listdir(small_disk) == ["first"]
    assert (small_disk / "first").read_bytes() == b"x" * 100_000


@pytest.mark.parametrize("small_disk", ["256k"], indirect=True)
def test_full_disk_under_arrow_is_a_storage_error(small_disk):
    import pyarrow as pa

    from data_pipeline.documents import write_table

    table = pa.table({"text": [os.urandom(2000).hex() for _ in range(400)]})
    with pytest.raises(StorageError, match="no space left"):
        write_table(small_disk / "shard.parquet", table)
    assert os.listdir(small_disk) == []


def test_nameless_memory_keeps_what_is_written_and_leaves_no_file(tmp_path):
    room = nameless_memory(tmp_path / "new", 10_000)
    room[:3], room[-1:] = b"abc", b"z"
    assert os.listdir(tmp_path / "new") == []
    assert (len(room), room[:3], room[-1:], room[5000:5001]) == (10_000, b"abc", b"z", bytes(1))


@pytest.mark.parametrize("small_disk", ["256k"], indirect=True)
def test_nameless_memory_that_the_disk_has_no_room_for_is_refused_at_once(small_disk):
    with pytest.raises(StorageError, match="no space left"):
        nameless_memory(small_disk, 1 << 20)
    assert os.listdir(small_disk) == []


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert os.listdir(tmp_path) == []


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_line(path, '{"a": 1}')
    append_line(path, '{"a": 2}')
    with open(path, "ab") as handle:
        handle.write(b'{"a": 3')
    assert read_lines(path) == [{"a": 1}, {"a": 2}]
    append_line(path, '{"a": 4}')
    assert read_lines(path) == [{"a": 1}, {"a": 2}, {"a": 4}]


def test_sweep_leaves_living_writers_alone(tmp_path):
    with atomic_path(tmp_path / "mine") as temporary:
        temporary.write_bytes(b"at work")
        dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
        orphan = tmp_path / temporary.name.replace(f"~{os.getpid()}~", f"~{int(dead.stdout)}~")
        orphan.write_bytes(b"half")
        assert sweep_temporaries(tmp_path) == 1
        assert temporary.exists()
    assert os.listdir(tmp_path) == ["mine"]


def test_place_links_and_private_is_private(tmp_path):
    write_bytes(tmp_path / "a", b"data")
    place(tmp_path / "a", tmp_path / "below" / "b")
    assert os.path.samefile(tmp_path / "a", tmp_path / "below" / "b")
    assert write_private(tmp_path / "key", b"secret")
    assert not write_private(tmp_path / "key", b"other")
    assert (tmp_path / "key").read_bytes() == b"secret"
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_put_in_place_replaces_what_is_there(tmp_path):
    write_bytes(tmp_path / "new", b"new")
    write_bytes(tmp_path / "b", b"old")
    for _ in range(2):
        put_in_place(tmp_path / "new", tmp_path / "b")
        assert (tmp_path / "b").read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["b", "new"]


def test_a_link_to_nowhere_on_the_way_is_a_storage_error(tmp_path):
    """Scratch space that is not mounted."""
    (tmp_path / "runs").symlink_to(tmp_path / "unmounted" / "runs")
    with pytest.raises(StorageError, match="or a link to a folder that does not exist"):
        write_bytes(tmp_path / "runs" / "a" / "b.json", b"{}")


def test_a_place_that_takes_no_folders_or_is_one_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match=r"no folder can be made there\. .*Name another folder"):
        write_bytes(Path("/proc/runs/mine/journal.json"), b"{}")
    with pytest.raises(StorageError, match=r"it is a folder\. .*Name a file in it"):
        write_bytes(tmp_path, b"{}")
    with pytest.raises(FileNotFoundError), storage_errors(Path("/proc/version")):
        Path("/proc/nothing").read_bytes()


@pytest.mark.parametrize(("readable_only", "words"), [(True, "the file system is read-only"), (False, "no permission")])
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, readable_only, words):
    require_writable(tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="a part of its path is a file"):
        require_writable(tmp_path / "file" / "folder")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_RDONLY if readable_only else 0))
    with pytest.raises(StorageError, match=f"{words}.*folder"):
        require_writable(tmp_path / "new")
