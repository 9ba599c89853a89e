"""Random histories of branches, rollbacks, restarts, hangs, kills and missing meters, against a simulation."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from governance.energy.attribution import add, added_by, by_checkpoint, settle, wasted_by_cause
from governance.energy.ledger import host_ledger, read_ledger
from tests.governance.test_energy_ledger import write_line

PHASES = ("compute", "communication", "checkpoint", "evaluation", "idle")

work = st.tuples(
    st.integers(0, 500),
    st.sampled_from(["step", "step", "checkpoint", "torn"]),
    st.dictionaries(st.sampled_from(PHASES), st.integers(0, 4000), max_size=3),
)
attempt = st.fixed_dictionaries(
    {
        "training": st.integers(0, 2),
        "start": st.integers(0, 300),
        "work": st.lists(work, max_size=10),
        "end": st.sampled_from(["surviving", "KeyError", "killed", "hang"]),
        "back": st.integers(0, 3),
        "metered": st.sampled_from([True, True, True, False]),
        "late": st.sampled_from([None, None, 0, 1, 4, 9]),
    }
)


@dataclass
class Training:
    """A training's (step, millijoules or None) on the way to its newest checkpoint, and the place where it began."""

    artifact: str
    base: int
    live: list[tuple[int, int | None]] = field(default_factory=list)
    ended: bool = False

    @property
    def step(self) -> int:
        return self.live[-1][0] if self.live else self.base

    def roll_back(self, checkpoints: int) -> list[int | None]:
        """Give up so many checkpoints, and what was spent on them."""
        steps = sorted({step for step, _ in self.live})
        keep = ([self.base, *steps])[-1 - min(checkpoints, len(steps))]
        lost = [energy for step, energy in self.live if step > keep]
        self.live = [(step, energy) for step, energy in self.live if step <= keep]
        return lost


def added(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known or not values else None


class History:
    """Writes a ledger as the meter would, and keeps separate books."""

    def __init__(self, path, fall=(0, 0)):
        self.path, self.tick, self.fall = path, 0, fall
        self.trainings: dict[int, Training] = {}
        self.read: list[int | None] = []
        self.wasted: list[int | None] = []

    def attempt(self, number: int, plan: dict) -> None:
        training = self.trainings.get(plan["training"])
        if training is None:  # a branch: it begins at the newest checkpoint of whichever training there is
            base = next((other.step for other in self.trainings.values()), 0)
            training = self.trainings[plan["training"]] = Training(f"train/{plan['training']:016x}", base)
        self.wasted += training.roll_back(plan["back"])
        step, read, pending = training.step, 0, 0
        dark, waited = plan["late"] is not None, False
        count, phases = 0, {}
        restart = training.ended and step > training.base
        marks = {"artifact": training.artifact, "resumed_from": step, "step": step}

        def known(value):
            return value if plan["metered"] and not dark else None

        def write(kind, **values):
            nonlocal phases
            if "start-up" in phases and kind != "start":  # the time after the start-up is never zero
                phases = {**phases, "compute": phases.get("compute", 0) + 1}
            kind = "beat" if kind == "start" else kind
            self.tick += 1
            after, by = self.fall
            at = 100 + self.tick - (by if self.tick > after else 0)
            output = {"marks": {**marks, "phases": dict(phases)}, "every": 1.0, **values}
            write_line(self.path, kind, str(number), at, known(count), **output)

        def segment():
            """Energy since the last checkpoint, without and with the time when another process held the meter."""
            return [*([None] if waited else []), known(pending)]

        write("begin")
        phases, count = {"start-up": 1000}, 0 if dark else plan["start"]
        write("start")
        read = count
        if restart:
            self.wasted.append(known(count))
        else:
            pending = count
        for index, (millijoules, what, spent) in enumerate(plan["work"]):
            if dark and plan["late"] == index:
                write("beat")
                dark, waited, count = False, True, 0
                write("beat")
            count, step = count + (0 if dark else millijoules), step + 1
            marks["step"] = step
            phases = {**phases, **{name: phases.get(name, 0) + more for name, more in spent.items()}}
            if what == "torn":
                with self.path.open("ab") as handle:
                    handle.write(b'{"kind": "beat", "interv\n')
                continue
            pending, read = pending + count - read, count
            if what == "checkpoint":
                marks["checkpoint"] = step
                training.live += [(step, energy) for energy in segment()]
                pending, waited = 0, False
            write("beat")
        if plan["end"] == "hang":
            phases = {**phases, "hang": 2000}
            count += 0 if dark else 70
            pending, read = pending + count - read, count
            write("beat")
        elif plan["end"] != "killed":
            pending, read = pending + count - read, count
            good = plan["end"] == "surviving"
            write("end", outcome="surviving" if good else "wasted", cause="" if good else plan["end"])
        if plan["end"] == "surviving":
            training.live += [(step, energy) for energy in segment()]
        else:
            self.wasted += segment()
        self.read.append(known(read))
        training.ended = True


@settings(max_examples=160)
@given(st.lists(attempt, max_size=7), st.tuples(st.integers(0, 40), st.sampled_from([0, 0, 3, 90])))
def test_surviving_and_wasted_are_what_was_measured(tmp_path_factory, attempts, fall):
    """Also where the node's clock is set back: after so many lines, by so many seconds."""
    path = host_ledger(tmp_path_factory.mktemp("ledger") / "energy.jsonl")
    history = History(path, fall)
    for number, plan in enumerate(attempts):
        history.attempt(number, plan)
    intervals = read_ledger(path, alive=lambda line: False)
    pieces = settle(intervals)
    total = add(pieces)
    surviving = [energy for training in history.trainings.values() for _, energy in training.live]
    assert total.measured == added(history.read)
    assert (total.surviving, total.wasted, total.unknown) == (added(surviving), added(history.wasted), 0)
    assert (total.surviving or 0) + (total.wasted or 0) == (total.measured or 0)
    assert all(interval.seconds >= 0 for interval in intervals)
    for groups in (added_by("phase", pieces), by_steps(pieces)):
        assert sum(row.measured or 0 for row in groups.values()) == (total.measured or 0)
        assert sum(row.wasted or 0 for row in groups.values()) == (total.wasted or 0)
    causes = wasted_by_cause(pieces)
    assert sum(energy or 0 for energy in causes.values()) == (total.wasted or 0)
    ends = [plan["end"] for plan in attempts]
    assert {"hang", "killed", "KeyError"} & set(ends) == set(causes) - {"rolled back", "restart"}
    assert total.unseen_seconds == ends.count("killed") + ends.count("hang")
    for training in history.trainings.values():
        rows = by_checkpoint(pieces, training.artifact)
        spent = {step: [e for s, e in training.live if s == step] for step, _ in training.live}
        assert [row["step"] for row in rows] == sorted(spent)
        for row in rows:
            here = spent[row["step"]]
            assert row["marginal_millijoules"] == (None if None in here else sum(here))


def by_steps(pieces):
    groups = {}
    for piece in pieces:
        groups.setdefault((piece.attempt, piece.host, piece.steps), []).append(piece)
    return {steps: add(members) for steps, members in groups.items()}
