"""Energy budget: stop a run before it would be exceeded.

    [energy_budget]
    kilowatt_hours = 1200.0

At each look (a training step, a batch of a validation, a shard of a data stage) all that counts is added up: what the
root's ledger holds of earlier and other attempts, and what the meters of this start's nodes have read. Added to that is
what it takes to go on to the next look and then to leave in good order, a checkpoint's save included:

    used + 1.1 x (greatest mean power so far) x (seconds to the next look and of leaving) > budget  ->  save, and leave

The promise holds as far as that assumption does: no power between now and the end is greater than 1.1 times the
greatest mean between two readings so far, no step or shard longer than the longest of late, no save longer than the
longest. The first shard of a stage and the first step of a training have nothing before them: they are begun if
anything is left, unless an earlier start recorded their need (the mark "needs").

The upper bound of the meters counts, not what is likely, unless the policy sets otherwise. Energy that no meter
measured stops everything, unless the policy allows it. All ranks decide on the same sums, so they leave after
the same step.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from governance.energy.ledger import MILLIJOULES_PER_KWH, NEEDS, still_runs
from governance.energy.ledger_tail import MAX_UNSEEN_SECONDS, Counts, Spending, Use, projected, training_counts
from governance.energy.meters import READ, RUNNING
from governance.errors import BudgetReached
from governance.gate.policy import EnergyBudget
from governance.hooks import Budget, Watch, Watched
from governance.phases import INTERVAL

_TRAINING = "train"
_FREE = ("report", "documents")  # a run without energy left may still be reported
_LEDGER_SECONDS = 10.0  # between two looks at what others have appended
_NEAR_SECONDS = 60.0  # this long before the end the meter is read at each check; until then, at its own pace
_ANOTHER = ("another node's meter gives no figure; see its log",)


def open_budget(budget: EnergyBudget | None, ledger: Path, policy: str = "the policy") -> Budget:
    """The keeper of a policy's budget.

    `policy` names the file to change in its messages.
    """
    return Budget() if budget is None else Keeper(budget, ledger, policy)


class Keeper(Budget):
    """Keeps a budget in this process.

    It keeps a watch over what is being measured.
    """

    def __init__(self, budget: EnergyBudget, ledger: Path, policy: str, clock: Callable[[], float] = time.monotonic):
        self.budget, self.ledger, self.policy, self.clock = budget, ledger, policy, clock
        self._watch: NodeWatch | None = None

    def check(self, stage: str, artifact: str) -> None:
        """Check that a start of `stage` has room, before anything is opened.

        Raises:
            BudgetReached: there is none, or the use is unknown.
            ManifestError: a file of the ledger has another schema.
        """
        if not self._bounds(stage):
            return
        spending = Spending(self.ledger)
        spending.read()
        counts = self.counts(artifact)

        def same(line: Mapping[str, Any]) -> bool:
            return bool(line["stage"] == stage and line.get("marks", {}).get("artifact", artifact) == artifact)

        # What runs of this very stage is of this start, or of another of its workers, and is looked at as it goes on:
        # some ranks' meters have begun when others come here, and all must answer alike.
        def here(line: Mapping[str, Any]) -> bool:
            return same(line) and line["kind"] != "end" and still_runs(line)

        use = spending.use(self.budget.bound, lambda line: counts(line) and not here(line))
        needs = spending.use(self.budget.bound, same).needs
        if use.unknown and self.budget.unknown == "refuse":
            raise self.unknown(f"{stage} is not started", use.unknown)
        limit = limit_millijoules(self.budget)
        if use.millijoules >= limit or use.millijoules + needs > limit:
            more = f", and it would use about {kwh(needs)} kWh before it had gone a step further" if needs else ""
            raise self.reached(f"{stage} is not started{more}", use.millijoules)

    @contextlib.contextmanager
    def watching(self, stage: str, artifact: str, energy: dict[str, Any]) -> Iterator[None]:
        """While the context lasts, `energy` holds the meter's figures.

        Raises:
            BudgetReached: energy is unknown, and the policy refuses that.
        """
        if not self._bounds(stage):
            yield
            return
        before, self._watch = self._watch, self.watch(Watched(energy, artifact))
        try:
            self._watch.start(self._watch.words(0.0))
            yield
        finally:
            self._watch = before

    def look(self, ahead_seconds: float) -> None:
        """Check between two shards that this many more seconds fit.

        Finished shards are kept in any case.

        Raises:
            BudgetReached: they do not fit.
        """
        if self._watch is not None and self._watch.over(self._watch.words(ahead_seconds)):
            raise self._watch.reached("the shards that are made are kept")

    def watch(self, watched: Watched) -> NodeWatch:
        """The watch of one rank; see `NodeWatch`."""
        return NodeWatch(self, watched)

    def _bounds(self, stage: str) -> bool:
        return stage not in _FREE and (self.budget.scope == "root" or stage == _TRAINING)

    def counts(self, artifact: str) -> Counts:
        """Filter of the ledger's intervals that count for a budget."""
        if self.budget.scope == "training":
            return training_counts(artifact)
        return lambda line: line["stage"] not in _FREE

    def reached(self, what: str, used: int) -> BudgetReached:
        """The error of an exhausted budget."""
        bound = "by the meters' upper bound" if self.budget.bound == "upper" else "by the meters"
        where = self.ledger.parent if self.budget.scope == "root" else "this training"
        return BudgetReached(
            f"energy budget: {kwh(used)} of {self.budget.kilowatt_hours:g} kWh are used {bound}, in all attempts of "
            f"{where}; {what}. To go on, raise kilowatt_hours in [energy_budget] of {self.policy}; that is another "
            "policy, so the corpus needs a new verdict (assay governance check CONFIG)"
        )

    def unknown(self, what: str, why: Sequence[str]) -> BudgetReached:
        """The error of unknown energy."""
        return BudgetReached(
            f"energy budget: the energy used is unknown: {'; '.join(why)}. {what[0].upper()}{what[1:]}. Enable "
            "the meter ([energy] enabled = true; nvidia-ml-py for GPUs; what a meter lacks is listed under "
            'coverage.missing in its manifest), or accept what is unknown: unknown = "allow" in [energy_budget] of '
            f"{self.policy}"
        )


class NodeWatch(Watch):
    """The budget as one rank sees it.

    `over` takes the sum of all ranks' `words` and returns the same on each.
    """

    def __init__(self, keeper: Keeper, watched: Watched):
        self._keeper, self._watched, self._clock = keeper, watched, keeper.clock
        self._bound, self._counts = keeper.budget.bound, keeper.counts(watched.artifact)
        self._own = watched.own | ({watched.energy[INTERVAL]} if INTERVAL in watched.energy else frozenset())
        self._spending = Spending(keeper.ledger)
        self._ledger_at: float | None = None
        self._others = Use()
        self._known: tuple[float, int, int] | None = None
        self._seen, self._gaps = self._clock(), 0  # when another's meter was last seen to run here; earlier gaps in mJ
        self._gone = self._waits = False
        self._near, self._unknown = True, False
        self._start: int | None = None  # energy used in this start before the first check
        self._why: tuple[str, ...] = ()
        self._last_look = (0, 0)

    def words(self, ahead_seconds: float) -> list[int]:
        """Energy words of this rank for the collective.

        They are the millijoules of its node in this start, those of the ledger, what `ahead_seconds` more would take,
        the power in milliwatts, and how much is unknown.
        """
        self._why = ()
        now, milliwatts = self._node() if self._watched.measures else (0, 0)
        earlier, others = self._ledger() if self._watched.first else (0, 0)
        power = milliwatts + others
        return [now, earlier, projected(power, ahead_seconds), power, len(self._why)]

    def _node(self) -> tuple[int, int]:
        """Millijoules of this node until now, and its power."""
        reading = self._watched.energy.get(RUNNING)
        if reading is None:
            self._why = ("no meter measures this node",)
            return 0, 0
        if reading["elsewhere"]:
            return self._beside()
        self._end_gap(reading)
        stale = self._clock() - reading["at"] > MAX_UNSEEN_SECONDS / 2  # the meter's own thread may come late
        if self._near or stale or not reading["bounds"][self._bound][1]:
            self._watched.energy[READ]()
            reading = self._watched.energy[RUNNING]
        value, milliwatts = reading["bounds"][self._bound]
        if value is not None:
            self._known = (reading["at"], value, milliwatts or self._spending.max_power(self._bound))
        if self._known is None or self._clock() - self._known[0] > MAX_UNSEEN_SECONDS:
            self._why = (f"this node's meter ({reading['method']}) gives no bound",)
            return 0, 0
        at, value, milliwatts = self._known
        return self._gaps + value + projected(milliwatts, self._clock() - at), milliwatts

    def _end_gap(self, reading: Mapping[str, Any]) -> None:
        """Fill the gap where this process took over the meter."""
        if self._waits:
            self._gaps += projected(self._spending.max_power(self._bound), max(0.0, reading["began"] - self._seen))
            self._waits = False

    def _beside(self) -> tuple[int, int]:
        """As `_node`, where another process's meter measures this node.

        The lines of that meter in the same ledger count there.

        Between two of its intervals, and after its last, no meter runs: the gap is estimated as for a silent meter.
        Soon after its last this process takes the meter over (`governance.energy.node_lock`).
        """
        self._waits = True
        if self._keeper.budget.scope == "training":
            self._why = ("another run's meter has this node",)
            return 0, 0
        at, power = self._read(), self._spending.max_power(self._bound)
        if self._spending.runs_here(self._counts):
            if self._gone:
                self._gaps += projected(power, at - self._seen)
            self._seen, self._gone = at, False
            return self._gaps, 0
        self._gone, unseen = True, self._clock() - self._seen
        if unseen > (MAX_UNSEEN_SECONDS if power else _LEDGER_SECONDS):
            self._why = ("the meter that had this node has ended; start again, so that this run measures it",)
        return self._gaps + projected(power, unseen), power

    def _read(self) -> float:
        """Read the ledger when it is time.

        Return the time of the last reading.
        """
        if self._ledger_at is None or self._clock() - self._ledger_at >= _LEDGER_SECONDS:
            self._spending.read()
            self._ledger_at = self._clock()
            self._others = self._spending.use(self._bound, self._counts, self._own)
        return self._ledger_at

    def _ledger(self) -> tuple[int, int]:
        """Energy that others have used, and the power of running ones."""
        at, use = self._read(), self._others
        self._why = (*self._why, *use.unknown)
        return use.millijoules + projected(use.milliwatts, self._clock() - at), use.milliwatts

    def start(self, words: Sequence[int]) -> None:
        """Refuse unknown energy; `words` are the sums of all ranks'.

        Raises:
            BudgetReached: something is unknown, and the policy refuses that.
        """
        if words[-1] and self._keeper.budget.unknown == "refuse":
            raise self._keeper.unknown("nothing is started", self._why or _ANOTHER)

    def over(self, words: Sequence[int]) -> bool:
        """Return whether it is time to save and leave.

        `words` are the sums of all ranks'.
        """
        now, earlier, reserve, power, unknown = words
        limit, used = limit_millijoules(self._keeper.budget), now + earlier
        self._start = now if self._start is None else self._start
        self._near = used + reserve + projected(power, _NEAR_SECONDS) > limit
        self._last_look = (used, reserve)
        self._unknown = bool(unknown and self._keeper.budget.unknown == "refuse")
        if self._watched.measures and RUNNING in self._watched.energy:
            self._watched.energy[NEEDS] = self._start + reserve
        return used + reserve > limit or self._unknown

    def reached(self, what: str) -> BudgetReached:
        """The error to raise then."""
        if self._unknown:
            return self._keeper.unknown(what, self._why or _ANOTHER)
        used, reserve = self._last_look
        return self._keeper.reached(f"{kwh(reserve)} kWh were reserved for stopping in good order; {what}", used)

    def facts(self) -> dict[str, Any]:
        """The figures of the last look, for the record.

        Figures are in kWh, with their scope and bound.
        """
        used, reserve = self._last_look
        budget = self._keeper.budget
        return {
            "kilowatt_hours": budget.kilowatt_hours,
            "used_kilowatt_hours": used / MILLIJOULES_PER_KWH,
            "reserve_kilowatt_hours": reserve / MILLIJOULES_PER_KWH,
            "scope": budget.scope,
            "bound": budget.bound,
        }


def limit_millijoules(budget: EnergyBudget) -> int:
    """The budget in whole millijoules."""
    return int(budget.kilowatt_hours * MILLIJOULES_PER_KWH)


def kwh(millijoules: int) -> str:
    """Kilowatt-hours with four significant digits."""
    return f"{millijoules / MILLIJOULES_PER_KWH:.4g}"
