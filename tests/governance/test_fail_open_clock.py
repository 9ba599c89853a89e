"""A wrong clock must not lock a root for good, and the repair must revive no expired verdict."""

from __future__ import annotations

import datetime

import pytest

from assay.cli.main import main
from governance.errors import GateClosed
from governance.gate.policy import load_policy
from governance.gate.verdict import Keyring, verdict_path
from governance.signing.dsse import private_key
from governance.signing.journal import Journal
from governance.signing.journal_lines import CLOCK, FILE_NAME, JournalEntry, read_journal, read_times, void
from governance.verification import verify_root
from tests.conftest import CONFIG
from tests.governance.yard import Yard, move_clock

DAY = datetime.timedelta(days=1)
OWN = {"signing_key": "stranger.pem", "trusted_keys": ()}
WHY = "node7 booted with the clock of another year"


@pytest.fixture
def yard(tmp_path, monkeypatch):
    monkeypatch.setattr("governance.gate.site_policy.SYSTEM", tmp_path / "nowhere" / "policy.toml")
    made = Yard(tmp_path)
    (tmp_path / "run.toml").write_text(CONFIG.replace("key.pem", "stranger.pem"))
    return made


def clock(yard, *words):
    return main(["governance", "clock", str(yard.root / "run.toml"), "--root", str(yard.root), *words])


def accept(yard, day=None):
    today = datetime.datetime.now(datetime.UTC).date()
    return clock(yard, "--accept", str(day or today), "--reason", WHY)


def file_of(yard):
    return verdict_path(yard.tokens, load_policy(yard.root / "policy.toml"), yard.root)


def closed(yard, words):
    with pytest.raises(GateClosed, match=words):
        yard.open(**OWN)


@pytest.fixture
def ahead(yard, monkeypatch):
    """A root in which a check ran forty days ahead, with the clock right again."""
    yard.judge(**OWN)
    with monkeypatch.context() as patch:
        move_clock(patch, 40 * DAY)
        yard.judge(**OWN)
    return yard


def test_a_check_dated_ahead_is_reported_undone_by_its_owner_and_opens_again(ahead, capsys):
    closed(ahead, "a clock was moved")
    with pytest.raises(GateClosed, match="assay governance clock CONFIG"):
        ahead.judge(**OWN)
    assert clock(ahead) == 77
    output = capsys.readouterr().out
    assert "journal line 3 (verdict): is dated" in output
    assert f"verdicts/{file_of(ahead).name}: is signed at" in output
    assert accept(ahead) == 0
    assert "the times of 1 line(s) of the journal are void" in capsys.readouterr().out
    closed(ahead, "undid a wrong clock, and it was given before that")
    ahead.judge(**OWN)
    assert ahead.open(**OWN)["verdict"] == "PASS"
    assert clock(ahead) == 0
    assert "nothing is dated ahead" in capsys.readouterr().out
    entries, problems = read_journal(ahead.root / FILE_NAME, [private_key(ahead.root / "stranger.pem").public_key()])
    [line] = [entry for entry in entries if entry.kind == CLOCK]
    said = line.statement["predicate"]
    assert problems == []
    assert (said["void"], said["reason"]) == (void([entries[3]]), WHY)
    assert said["verdicts"] == [f"verdicts/{file_of(ahead).name}"]


def test_verify_says_what_is_dated_ahead_until_it_is_undone(ahead):
    folder = ahead.root / "encode" / ("0" * 16)
    (folder / "manifest.json").write_text(ahead.tokens.model_dump_json())

    def output():
        _, problems, *_ = verify_root(ahead.root, Keyring(ahead.config(**OWN), ahead.root), deep=True)
        return [problem for problem in problems if "ahead of this machine's clock" in problem]

    assert len(output()) == 1
    assert accept(ahead) == 0
    assert output() == []


def test_what_runs_out_runs_out_after_a_clock_was_undone(ahead, monkeypatch):
    accept(ahead)
    ahead.judge(**OWN)
    move_clock(monkeypatch, 31 * DAY)
    closed(ahead, "it expired on")


@pytest.mark.parametrize("attack", ["the future", "the past"])
def test_no_verdict_from_before_comes_back(ahead, monkeypatch, attack):
    """The verdict of the wrong clock would hold for 70 days; neither that one nor the one before it opens."""
    future = file_of(ahead).read_bytes()
    accept(ahead)
    ahead.judge(**OWN)
    file_of(ahead).write_bytes(future)
    closed(ahead, "undid a wrong clock")
    if attack == "the future":
        move_clock(monkeypatch, 45 * DAY)
    closed(ahead, "undid a wrong clock")


def test_a_clock_set_back_brings_no_expired_verdict_back(yard, monkeypatch):
    """The owner's own statement, requested because of a wrong clock, does not open: the verdict must be given again."""
    yard.judge(**OWN)
    with monkeypatch.context() as patch:
        move_clock(patch, 31 * DAY)
        closed(yard, "it expired on")
        open_it = Journal(yard.root, lambda: private_key(yard.root / "stranger.pem"))
        open_it.state("evaluation", {"a": "0" * 64}, [])
    move_clock(monkeypatch, 29 * DAY)
    closed(yard, "a clock was moved")
    assert accept(yard) == 0
    closed(yard, "it was given before that")


@pytest.mark.parametrize("who", ["a stranger", "a key that the stranger certified", "nobody"])
def test_without_a_key_that_is_believed_nothing_is_undone(ahead, who):
    journal = ahead.root / FILE_NAME
    if who == "nobody":  # a statement of another root, copied
        (ahead.root / "other").mkdir()
        Journal(ahead.root / "other", lambda: private_key(ahead.root / "stranger.pem")).state_clock([], WHY, "eve")
        journal.write_bytes(journal.read_bytes() + (ahead.root / "other" / FILE_NAME).read_bytes())
    else:
        name = "site/ann.pem"
        if who != "a stranger":
            ahead.certify("eve", ahead.site / "ann.pem")
            name = "eve.pem"
        Journal(ahead.root, lambda: private_key(ahead.root / name)).state_clock([], WHY, "eve")
    for door in (ahead.open, ahead.judge):
        with pytest.raises(GateClosed, match="the journal cannot be trusted"):
            door(**OWN)


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["--accept", "2020-01-01", "--reason", WHY], "this machine's clock shows"),
        (["--accept", "today", "--reason", WHY], "this machine's clock shows"),
        (["--accept", None, "--reason", "oops"], "ten characters or more"),
        (["--accept", None], "ten characters or more"),
    ],
)
def test_the_owner_says_what_day_it_is_and_why(ahead, capsys, words, output):
    before = (ahead.root / FILE_NAME).read_bytes()
    today = str(datetime.datetime.now(datetime.UTC).date())
    assert clock(ahead, *(today if word is None else word for word in words)) == 78
    assert output in capsys.readouterr().err
    assert (ahead.root / FILE_NAME).read_bytes() == before


def test_a_clock_that_runs_ahead_again_is_found_again(ahead, monkeypatch):
    accept(ahead)
    with monkeypatch.context() as patch:
        move_clock(patch, 40 * DAY)
        ahead.judge(**OWN)
    closed(ahead, "a clock was moved")
    accept(ahead)
    ahead.judge(**OWN)
    assert ahead.open(**OWN)["verdict"] == "PASS"


def lines(*times):
    """Entries of these times; a tuple is a statement that voids the lines of these numbers."""
    made = []
    for index, time in enumerate(times):
        said = {}
        if isinstance(time, tuple):
            time, numbers = time
            said = {"void": [item for item in void(made) if item["line"] in numbers] if numbers else numbers}
        kind = CLOCK if said else "made"
        made.append(JournalEntry(index, f"{index:064x}", kind, time, {"predicate": said, "predicateType": "x"}))
    return made


@pytest.mark.parametrize(
    ("given", "counting", "faults"),
    [
        (lines("1", "2", "9", ("3", [2]), "4"), [0, 1, 3, 4], 0),
        (lines("1", "8", "9", ("3", [1, 2])), [0, 3], 0),
        (lines("1", "8", "9", ("3", [2])), [0, 1, 3], 1),
        (lines("1", "9", "3"), [0, 1, 2], 1),
        (lines("1", "9", ("3", [1]), "2"), [0, 2, 3], 1),
        (lines("1", "9", ("3", None), "4"), [0, 1, 2, 3], 2),
    ],
)
def test_times_fall_only_where_a_statement_says_so(given, counting, faults):
    """A statement that leaves one of the lines dated ahead, or names none, repairs nothing."""
    kept, found = read_times(given)
    assert ([line.index for line in kept], len(found) >= faults, bool(found)) == (counting, True, bool(faults))
