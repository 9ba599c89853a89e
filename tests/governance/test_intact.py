"""A file is read only while it matches its manifest."""

import os

import pytest

from governance.errors import AlteredFile, MissingInput
from governance.manifest import describe
from governance.verified_files import intact


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "clean" / "0" / "features" / "0.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"as it was written")
    return describe(path, tmp_path)


def test_what_is_as_it_was_written_is_read(listed, tmp_path):
    with intact(listed, tmp_path) as path:
        assert path.read_bytes() == b"as it was written"
        os.link(path, tmp_path / "a second name")


def rewritten(path):
    path.write_bytes(b"as it was WRITTEN")


def with_its_time(path):
    state = path.stat()
    rewritten(path)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def replaced(path):
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.rename(path)


@pytest.mark.parametrize("change", [rewritten, with_its_time])
def test_what_was_altered_is_not_opened(listed, tmp_path, change):
    change(tmp_path / listed.path)
    with pytest.raises(AlteredFile, match=r"0\.parquet: has sha256") as caught, intact(listed, tmp_path):
        pytest.fail("it was opened")
    assert caught.value.exit_code == 65


@pytest.mark.parametrize("change", [rewritten, with_its_time, replaced])
def test_what_changes_while_it_is_read_is_found(listed, tmp_path, change):
    with pytest.raises(AlteredFile, match=r"0\.parquet"), intact(listed, tmp_path) as path:
        change(path)


def test_what_is_gone_is_missing(listed, tmp_path):
    (tmp_path / listed.path).unlink()
    with pytest.raises(MissingInput), intact(listed, tmp_path):
        pytest.fail("it was opened")
