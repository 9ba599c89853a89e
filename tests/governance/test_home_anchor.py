"""The head of a journal outlives a cut of its lines, and follows a root that is moved or copied."""

import itertools
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from governance.errors import ManifestError
from governance.gate.verdict import GovernanceConfig, Keyring
from governance.lineage.attest import open_journal
from governance.signing.dsse import create_key
from governance.signing.home_anchor import state_folder
from governance.signing.journal_lines import FILE_NAME, read_journal

_COUNT = itertools.count()  # the same statement in the same second would be the same line
CONFIG = GovernanceConfig(signing_key="key.pem")


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    create_key(tmp_path / "key.pem")
    return tmp_path / "state"


def journal(root):
    return open_journal(Keyring(CONFIG, root.parent), root)


def grow(root, lines):
    """State so many more entries; the journal as another process finds it."""
    root.mkdir(exist_ok=True)
    ours = journal(root)
    for _ in range(lines):
        ours.state("made", {f"{next(_COUNT)}": "0" * 64}, [])
    return journal(root)


def lines_of(root):
    path = root / FILE_NAME
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def cut(root, lines):
    (root / FILE_NAME).write_bytes(b"".join(lines_of(root)[:-lines]))


def test_a_journal_that_was_cut_is_behind_however_long_it_grows(tmp_path, caplog):
    root = tmp_path / "root"
    assert (grow(root, 5).behind(), journal(root).anchored()) == ("", True)
    cut(root, 2)
    assert "lacks line 4 that it had" in journal(root).behind()
    with caplog.at_level("WARNING", "assay"):
        assert "lacks line 4" in grow(root, 9).behind()
    assert caplog.text.count("lacks line 4") == 1, "reported once per process"


def test_a_journal_that_was_written_anew_over_the_same_first_line_is_behind(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    grow(root, 2)
    shutil.copytree(root, other)
    grow(root, 3)
    grow(other, 6)
    shutil.copy(other / FILE_NAME, root / FILE_NAME)
    assert "lacks line 4" in journal(root).behind()


def test_a_root_made_anew_is_another_one(tmp_path):
    root = tmp_path / "root"
    grow(root, 5)
    shutil.rmtree(root)
    assert (journal(root).behind(), journal(root).anchored()) == ("", False)
    assert grow(root, 1).behind() == ""


def test_a_cut_journal_gains_nothing_by_a_move(tmp_path):
    root, before = tmp_path / "root", tmp_path / "before"
    grow(before, 3)
    shutil.copytree(before, root)
    grow(root, 4)
    cut(root, 2)
    root.rename(tmp_path / "moved")
    shutil.rmtree(before)
    assert "lacks line 6" in journal(tmp_path / "moved").behind()
    assert "lacks line 6" in grow(tmp_path / "moved", 5).behind()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_roots_that_are_moved_copied_and_go_on_are_never_behind(tmp_path_factory, data):
    """No false alarm for any order of appending, moving, copying and reaching through a symbolic link."""
    folder = tmp_path_factory.mktemp("roots")
    create_key(folder / "key.pem")
    roots = [folder / "r0"]
    grow(roots[0], 2)
    for number in range(1, data.draw(st.integers(1, 6)) + 1):
        root = data.draw(st.sampled_from(roots))
        step, target = data.draw(st.sampled_from(["grow", "move", "copy", "link"])), folder / f"r{number}"
        if step == "grow":
            grow(root, data.draw(st.integers(1, 3)))
        elif step == "move":
            root.rename(target)
            roots[roots.index(root)] = target
            assert grow(target, 1).behind() == ""
        elif step == "copy":
            shutil.copytree(root, target)
            roots.append(target)
        else:
            target.symlink_to(root)
            assert grow(target, 1).behind() == ""
            target.unlink()
        assert [journal(item).behind() for item in roots] == [""] * len(roots)


def test_a_cut_journal_gains_nothing_by_a_link_in_its_stead(tmp_path):
    root = tmp_path / "root"
    grow(root, 5)
    cut(root, 2)
    root.rename(tmp_path / "aside")
    root.symlink_to(tmp_path / "aside")
    assert "lacks line 4" in journal(root).behind()


def test_copies_of_a_root_that_come_and_go_are_not_behind(tmp_path):
    original = tmp_path / "original"
    grow(original, 3)
    for name in ("first", "second"):
        shutil.copytree(original, tmp_path / name)
        assert grow(tmp_path / name, 2).behind() == ""
        shutil.rmtree(tmp_path / name)
    assert journal(original).behind() == ""


def test_lines_are_given_up_by_a_trusted_key_and_leave_a_trace(tmp_path):
    root = tmp_path / "root"
    head = grow(root, 5).head()
    cut(root, 2)
    create_key(tmp_path / "other.pem")
    stranger = GovernanceConfig(signing_key="other.pem", trusted_keys=("key.pem.pub",))
    before, owners = (root / FILE_NAME).read_bytes(), Keyring(CONFIG, tmp_path).trusted()
    with pytest.raises(ManifestError, match="the signing key: no trusted key"):
        open_journal(Keyring(stranger, tmp_path), root).accept("it is mine", Keyring(stranger, tmp_path).trusted())
    assert (root / FILE_NAME).read_bytes() == before
    assert journal(root).accept("restored from a backup", owners) == [head]
    assert (journal(root).behind(), journal(root).accept("again", owners)) == ("", [])
    last = journal(root).verified()[-1].statement["predicate"]
    assert (last["given_up"], last["reason"]) == ([head], "restored from a backup")
    assert read_journal(root / FILE_NAME, owners)[1] == []
    [kept] = state_folder().glob("*.json")
    assert head in kept.read_text()
    cut(root, 1)
    assert journal(root).behind() != "", "nor can the statement itself be cut"


def test_without_a_state_folder_nothing_is_refused_and_it_is_reported(tmp_path, monkeypatch, caplog):
    root = tmp_path / "root"
    grow(root, 3)
    shutil.rmtree(tmp_path / "state")
    cut(root, 1)
    assert (journal(root).behind(), journal(root).anchored()) == ("", False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with caplog.at_level("WARNING", "assay"):
        assert grow(root, 2).behind() == ""
    assert caplog.text.count("cannot be kept") == 1
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    [path] = [path for _ in [grow(root, 1)] for path in state_folder().glob("*.json")]
    path.write_text("torn")
    assert journal(root).behind() == ""
