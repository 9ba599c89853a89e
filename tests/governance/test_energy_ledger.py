import json
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.energy.attribution import ROLLED_BACK, add, by_checkpoint, by_stage, settle, wasted_by_cause
from governance.energy.ledger import MOST_SAMPLE_SECONDS, Interval, Sample, own_file, read_ledger
from governance.errors import ManifestError
from governance.files import append_line

ARTIFACT = "train/0123456789abcdef"


def stamp(tick: int) -> str:
    return f"2026-01-01T{tick // 3600:02d}:{tick // 60 % 60:02d}:{tick % 60:02d}.000Z"


def write_line(path, kind, interval, tick, millijoules, **values):
    line = {
        "kind": kind,
        "interval": interval,
        "attempt": interval,
        "stage": values.pop("stage", "train"),
        "host": socket.gethostname(),
        "process": [1, 0],
        "method": "RAPL",
        "at": stamp(tick),
        "millijoules": millijoules,
        "low": millijoules,
        "high": millijoules,
        **values,
    }
    append_line(path, json.dumps(line))


attempt = st.fixed_dictionaries(
    {
        "work": st.lists(st.tuples(st.integers(0, 500), st.sampled_from(["step", "checkpoint", "torn"])), max_size=12),
        "end": st.sampled_from(["surviving", "KeyError", "killed"]),
        "back": st.integers(0, 3),
    }
)


@settings(max_examples=150, deadline=None)
@given(st.lists(attempt, max_size=6))
def test_surviving_and_wasted_are_what_was_measured(tmp_path_factory, attempts):
    """Random trainings with kills, errors, torn lines and rollbacks, against a simulation with a stack of live work."""
    path = own_file(tmp_path_factory.mktemp("ledger") / "energy.jsonl")
    tick, measured, wasted = 0, 0, 0
    live: list[tuple[int, int]] = []  # (checkpoint step, millijoules) on the path to the newest checkpoint
    for number, plan in enumerate(attempts):
        for _ in range(min(plan["back"], len(live))):
            wasted += live.pop()[1]
        step = live[-1][0] if live else 0
        marks = {"artifact": ARTIFACT, "resumed_from": step, "step": step}
        count = pending = read = 0
        tick += 1
        write_line(path, "begin", str(number), tick, 0, marks=marks)
        for millijoules, what in plan["work"]:
            tick += 1
            count += millijoules
            step += 1
            marks = {**marks, "step": step}
            if what == "torn":
                with path.open("ab") as handle:
                    handle.write(b'{"kind": "beat", "interv\n')
                continue
            pending += count - read
            read = count
            if what == "checkpoint":
                marks["checkpoint"] = step
                live.append((step, pending))
                pending = 0
            write_line(path, "beat", str(number), tick, count, marks=marks)
        tick += 1
        if plan["end"] != "killed":
            pending += count - read
            read = count
            good = plan["end"] == "surviving"
            outcome = {"outcome": "surviving" if good else "wasted", "cause": "" if good else plan["end"]}
            write_line(path, "end", str(number), tick, count, marks=marks, **outcome)
            if good:
                live.append((step, pending))
                pending = 0
        wasted += pending
        measured += read
    intervals = read_ledger(path, alive=lambda line: False)
    total = add(settle(intervals))
    assert total.measured == sum(interval.millijoules for interval in intervals) == measured
    assert total.surviving + total.wasted == measured
    assert total.unknown == 0
    assert (total.wasted, total.surviving) == (wasted, sum(work for _, work in live))
    assert sum(wasted_by_cause(settle(intervals)).values()) == wasted
    rows = by_checkpoint(settle(intervals), ARTIFACT)
    assert sum(row["marginal_millijoules"] for row in rows) == total.surviving
    assert not rows or rows[-1]["cumulative_millijoules"] == total.surviving


def test_what_still_runs_is_unknown_not_wasted(tmp_path):
    path = own_file(tmp_path / "energy.jsonl")
    write_line(path, "begin", "a", 0, 0)
    write_line(path, "beat", "a", 5, 70)
    total = add(settle(read_ledger(path, alive=lambda line: True)))
    assert (total.measured, total.unknown, total.surviving, total.wasted) == (70, 70, 0, 0)
    total = add(settle(read_ledger(path)))  # process 1 of this host did not start at tick 0
    assert (total.wasted, total.unknown) == (70, 0)


def test_histories_without_marks(tmp_path):
    path = own_file(tmp_path / "energy.jsonl")
    write_line(path, "begin", "a", 0, 3, stage="clean")
    write_line(path, "end", "a", 5, 70, stage="clean", outcome="surviving", cause="")
    write_line(path, "begin", "b", 6, 0, stage="train")
    write_line(path, "end", "b", 9, 30, stage="train", outcome="wasted", cause="OSError")
    pieces = settle(read_ledger(path))
    stages = by_stage(pieces)
    assert list(stages) == ["clean", "train"]
    assert (stages["clean"].surviving, stages["clean"].measured) == (70, 70)
    assert wasted_by_cause(pieces) == {"OSError": 30}
    assert by_checkpoint(pieces, ARTIFACT) == []


def test_unknown_is_never_zero(tmp_path):
    path = own_file(tmp_path / "energy.jsonl")
    write_line(path, "begin", "a", 0, None)
    write_line(path, "end", "a", 60, None, outcome="surviving", cause="")
    write_line(path, "begin", "b", 61, 0)
    write_line(path, "end", "b", 62, 5, outcome="surviving", cause="", high=None)
    first, second = settle(read_ledger(path))
    assert first.millijoules is None
    assert second.high is None
    total = add([first, second])
    assert (total.measured, total.high, total.unmeasured_seconds) == (5, None, 60.0)
    alone = add([first])
    assert (alone.measured, alone.surviving, alone.wasted, alone.unknown) == (None, None, 0, 0)


def test_waste_and_checkpoints_without_a_meter_are_unknown_not_zero(tmp_path):
    path = own_file(tmp_path / "energy.jsonl")
    marks = {"artifact": ARTIFACT, "resumed_from": 0}
    write_line(path, "begin", "a", 0, None, marks=marks)
    write_line(path, "beat", "a", 5, None, marks={**marks, "step": 10, "checkpoint": 10})
    write_line(
        path, "end", "a", 9, None, outcome="wasted", cause="KeyError", marks={**marks, "step": 12, "checkpoint": 10}
    )
    pieces = settle(read_ledger(path))
    assert wasted_by_cause(pieces) == {"KeyError": None}
    unknown = {"step": 10, "marginal_millijoules": None, "cumulative_millijoules": None}
    assert by_checkpoint(pieces, ARTIFACT) == [unknown]


def test_a_kill_says_how_much_it_may_have_lost(tmp_path):
    path = own_file(tmp_path / "energy.jsonl")
    write_line(path, "begin", "a", 0, 0, every=5.0)
    write_line(path, "beat", "a", 5, 70, every=5.0)
    write_line(path, "begin", "b", 20, 0)  # a line of an earlier release
    write_line(path, "end", "c", 30, 5, every=5.0, outcome="surviving", cause="")
    intervals = read_ledger(path, alive=lambda line: False)
    assert [interval.unseen_seconds for interval in intervals] == [5.0, MOST_SAMPLE_SECONDS, 0.0]
    assert add(settle(intervals)).unseen_seconds == 5.0 + MOST_SAMPLE_SECONDS
    assert read_ledger(path, alive=lambda line: True)[0].unseen_seconds == 0.0


def test_rollback_on_one_node_leaves_the_attempt_of_another_node_alone():
    """Two nodes of one attempt begin at slightly different times; what they do later is not rolled back by that."""

    def interval(name, host, start, resumed, checkpoint):
        marks = {"artifact": ARTIFACT, "resumed_from": resumed}
        later = {**marks, "checkpoint": checkpoint, "step": checkpoint}
        samples = (Sample(stamp(start), 0, 0, 0, marks), Sample(stamp(start + 60), 10, 10, 10, later))
        return Interval(name, name, "train", host, "RAPL", "surviving", "", samples)

    both = [interval("a", "n1", 0, 0, 20), interval("b", "n2", 2, 0, 20)]
    assert add(settle(both)).wasted == 0
    again = [*both, interval("c", "n1", 100, 10, 20), interval("d", "n2", 101, 10, 20)]
    pieces = settle(again)
    assert wasted_by_cause(pieces) == {ROLLED_BACK: 20}
    assert add(pieces).surviving == 20


def test_each_host_has_its_own_file_and_all_are_read(tmp_path):
    ledger = tmp_path / "energy.jsonl"
    assert own_file(ledger, "n1") == ledger
    assert own_file(ledger, "n1") == ledger
    other = own_file(ledger, "n2")
    assert other == tmp_path / "energy.n2.jsonl"
    for index, path in enumerate((ledger, other)):
        write_line(path, "begin", str(index), index, 0)
        write_line(path, "end", str(index), index + 1, 10, outcome="surviving", cause="")
    assert add(settle(read_ledger(ledger))).measured == 20
    assert not list(tmp_path.glob(".*"))


def test_a_foreign_file_is_refused(tmp_path):
    ledger = tmp_path / "energy.jsonl"
    ledger.write_text('{"kind": "ledger", "schema": 2}\n')
    with pytest.raises(ManifestError, match="schema 1"):
        read_ledger(ledger)
    ledger.write_text("hello\n")
    with pytest.raises(ManifestError, match="Move the file away"):
        own_file(ledger)
    assert read_ledger(tmp_path / "none.jsonl") == []
