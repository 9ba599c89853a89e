import json
import socket

import pytest

from governance.energy.attribution import ROLLED_BACK, add, added_by, by_checkpoint, settle, wasted_by_cause
from governance.energy.ledger import MAX_SAMPLE_SECONDS, EnergySample, Interval, host_ledger, read_ledger
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


def test_what_still_runs_is_unknown_not_wasted(tmp_path):
    path = host_ledger(tmp_path / "energy.jsonl")
    write_line(path, "begin", "a", 0, 0)
    write_line(path, "beat", "a", 5, 70)
    total = add(settle(read_ledger(path, alive=lambda line: True)))
    assert (total.measured, total.unknown, total.surviving, total.wasted) == (70, 70, 0, 0)
    total = add(settle(read_ledger(path)))  # process 1 of this host did not start at tick 0
    assert (total.wasted, total.unknown) == (70, 0)


def test_histories_without_marks(tmp_path):
    path = host_ledger(tmp_path / "energy.jsonl")
    write_line(path, "begin", "a", 0, 3, stage="clean")
    write_line(path, "end", "a", 5, 70, stage="clean", outcome="surviving", cause="")
    write_line(path, "begin", "b", 6, 0, stage="train")
    write_line(path, "end", "b", 9, 30, stage="train", outcome="wasted", cause="OSError")
    pieces = settle(read_ledger(path))
    stages = added_by("stage", pieces)
    assert list(stages) == ["clean", "train"]
    assert (stages["clean"].surviving, stages["clean"].measured) == (70, 70)
    assert wasted_by_cause(pieces) == {"OSError": 30}
    assert by_checkpoint(pieces, ARTIFACT) == []


def test_unknown_is_never_zero(tmp_path):
    path = host_ledger(tmp_path / "energy.jsonl")
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
    path = host_ledger(tmp_path / "energy.jsonl")
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
    path = host_ledger(tmp_path / "energy.jsonl")
    write_line(path, "begin", "a", 0, 0, every=5.0)
    write_line(path, "beat", "a", 5, 70, every=5.0)
    write_line(path, "begin", "b", 20, 0)  # without the interval of its samples
    write_line(path, "end", "c", 30, 5, every=5.0, outcome="surviving", cause="")
    intervals = read_ledger(path, alive=lambda line: False)
    assert [interval.unseen_seconds for interval in intervals] == [5.0, MAX_SAMPLE_SECONDS, 0.0]
    assert add(settle(intervals)).unseen_seconds == 5.0 + MAX_SAMPLE_SECONDS
    assert read_ledger(path, alive=lambda line: True)[0].unseen_seconds == 0.0


def test_rollback_on_one_node_leaves_the_attempt_of_another_node_alone():
    """Two nodes of one attempt begin at slightly different times, which does not roll back their later work."""

    def interval(name, host, start, resumed, checkpoint):
        marks = {"artifact": ARTIFACT, "resumed_from": resumed}
        later = {**marks, "checkpoint": checkpoint, "step": checkpoint}
        samples = (EnergySample(stamp(start), 0, 0, 0, marks), EnergySample(stamp(start + 60), 10, 10, 10, later))
        return Interval(name, name, "train", host, "RAPL", "surviving", "", samples)

    both = [interval("a", "n1", 0, 0, 20), interval("b", "n2", 2, 0, 20)]
    assert add(settle(both)).wasted == 0
    again = [*both, interval("c", "n1", 100, 10, 20), interval("d", "n2", 101, 10, 20)]
    pieces = settle(again)
    assert wasted_by_cause(pieces) == {ROLLED_BACK: 20}
    assert add(pieces).surviving == 20


def phased(name, counts, outcome="surviving", cause=""):
    """An interval whose samples are (second, millijoules, phases in milliseconds, step)."""
    marks = {"artifact": ARTIFACT, "resumed_from": 0}
    samples = tuple(
        EnergySample(stamp(second), energy, energy, energy, {**marks, "step": step, "phases": phases})
        for second, energy, phases, step in counts
    )
    return Interval(name, "attempt", "train", "n1", "RAPL", outcome, cause, samples)


def test_each_sample_intervals_energy_goes_to_its_own_phases():
    counts = [
        (0, 0, {"start-up": 0}, 0),
        (5, 100, {"start-up": 5000}, 0),
        (10, 1101, {"start-up": 6000, "compute": 3000, "communication": 1000}, 7),
        (15, 1201, {"start-up": 6000, "compute": 3000, "communication": 1000, "checkpoint": 5000}, 7),
    ]
    pieces = settle([phased("a", counts)])
    output = {piece.phase: (piece.millijoules, piece.seconds, piece.steps, piece.attempt) for piece in pieces}
    assert output == {
        "start-up": (300, 6.0, (0, 7), "attempt"),
        "compute": (600, 3.0, (0, 7), "attempt"),
        "communication": (201, 1.0, (0, 7), "attempt"),
        "checkpoint": (100, 5.0, (0, 7), "attempt"),
    }
    assert sum(row.measured for row in added_by("phase", pieces).values()) == add(pieces).measured == 1201


def test_a_hang_is_a_phase_and_a_cause_of_waste(tmp_path):
    path = host_ledger(tmp_path / "energy.jsonl")
    marks = {"artifact": ARTIFACT, "resumed_from": 0, "step": 3}
    for tick, energy, phases in [(0, 0, {}), (5, 50, {"compute": 5000}), (9, 90, {"compute": 6000, "hang": 3000})]:
        write_line(path, "beat" if tick else "begin", "a", tick, energy, marks={**marks, "phases": phases}, every=5.0)
    pieces = settle(read_ledger(path, alive=lambda line: False))
    assert wasted_by_cause(pieces) == {"hang": 90}
    assert {phase: row.wasted for phase, row in added_by("phase", pieces).items()} == {"compute": 60, "hang": 30}
    assert add(pieces).unseen_seconds == 5.0


def test_each_host_has_its_own_file_and_all_are_read(tmp_path):
    ledger = tmp_path / "energy.jsonl"
    assert host_ledger(ledger, "n1") == ledger
    assert host_ledger(ledger, "n1") == ledger
    other = host_ledger(ledger, "n2")
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
        host_ledger(ledger)
    assert read_ledger(tmp_path / "none.jsonl") == []


def test_a_restart_is_wasted_up_to_its_first_step_and_one_start_up_is_not(tmp_path):
    """Killed before a checkpoint, in training, in start-up: one start-up is needed, the others are not."""
    path, tick = host_ledger(tmp_path / "energy.jsonl"), 0

    def attempt(name, resumed_from, *lines, end="", host="node1", at=None):
        nonlocal tick
        marks, about = {"artifact": ARTIFACT, "resumed_from": resumed_from}, {"host": host}
        for index, (millijoules, phases, more) in enumerate(((0, {}, {}), *lines)):
            tick, second = tick + 1, tick if at is None else at + index
            values = {"marks": {**marks, **more, "phases": phases}, **about}
            last = end and index == len(lines)
            fate = {"outcome": "surviving", "cause": end} if last else {}
            write_line(path, "end" if last else "beat", name, second, millijoules, **values, **fate)

    started, trained = {"start-up": 8000}, {"start-up": 8000, "compute": 4000}
    attempt("a", 0, (500_000, started, {}), (700_000, trained, {"step": 9}))  # killed before the first checkpoint
    attempt("b", 0, (510_000, started, {}), (900_000, trained, {"step": 20, "checkpoint": 20}))
    attempt("c", 20, (941_000, started, {}), (1_141_000, trained, {"step": 30, "checkpoint": 30}))
    attempt("d", 30, (77_000, started, {}))  # killed in start-up
    begun = tick
    attempt("e", 30, (668_000, started, {}), (968_000, trained, {"step": 40, "checkpoint": 40}), end="preempted")
    attempt("f", 30, (660_000, started, {}), (960_000, trained, {"step": 40}), end="", host="node2", at=begun + 1)
    pieces = settle(read_ledger(path, alive=lambda line: False))
    causes = wasted_by_cause(pieces)
    assert causes == {"killed": 700_000 + 77_000 + 960_000, "restart": 941_000 + 668_000}
    total = add(pieces)
    assert total.surviving == 510_000 + 390_000 + 200_000 + 300_000  # a start-up and the work up to step 40
    assert total.measured == total.surviving + total.wasted
