"""Energy meter of a node: `with meter("clean") as energy:`.

Sources in order of trust: RAPL or hwmon for processors, with NVML for NVIDIA GPUs; else a meter of the whole board
(ACPI, IPMI, Slurm); else a model for the processors. Promises: a figure carries its method and its bounds, and an
estimate is marked "estimated"; an unknown value is None, never 0; one meter per node, however many ranks; a kill loses
at most one sample interval; the meter never stops the run that it measures. Its price: one wake-up per sample interval
(docs/energy.md has the measurement).

The scope is the node: other processes on it are in the figure. Where a job was allotted a part of the node, the scope
is its share (`governance.energy.cgroup`).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from governance.config import Section
from governance.energy.cgroup import Allotment, Shared, allotment, open_processor_model
from governance.energy.codecarbon import CodeCarbon, require_codecarbon
from governance.energy.counters import GreatestPower
from governance.energy.cpu_model import cpu_times
from governance.energy.factors import FactorsConfig
from governance.energy.hwmon import open_board, open_hwmon
from governance.energy.ledger import (
    MARKS,
    MAX_SAMPLE_SECONDS,
    PHASES,
    Announce,
    announce_nothing,
    append,
    host_ledger,
    joules_of,
)
from governance.energy.node_lock import Turn, node_turn, seconds_alive, start_time
from governance.energy.nvml import open_nvml
from governance.energy.rapl import EnergyPart, EnergySource, open_rapl
from governance.errors import BudgetReached, PipelineError, Preempted
from governance.hooks import ELSEWHERE, UNKNOWN_ENERGY, UNMEASURED, LineSigner, Meter, SignLine, no_meter, sign_nothing
from governance.log import get_logger
from governance.phases import CLOCK, DATA_STAGE, EVALUATION, INTERVAL, START_UP, PhaseClock
from governance.stage import ShareDone

_UNMETERED = "mainboard, disks, network, fans, power supply, cooling: no meter"
_OUTSIDE = "network and cooling outside the node: no meter"
_FIRST_PHASES = {"train": START_UP}
_FIRST_PHASES |= dict.fromkeys(
    ("model_audit", "generate", "interpret", "memorisation", "training_audit", "verbatim"), EVALUATION
)
PREEMPTED = "preempted"
RUNNING = "running"  # the last reading, while it measures
READ = "read"  # takes a reading now
OUT_OF_BUDGET = "energy budget"
_TRANSIENT = (*MARKS, RUNNING, READ, INTERVAL, CLOCK)
_STAND_SECONDS = 1.0  # between two elections while another measures the node; what is spent meanwhile has no meter
_FIRST_SECONDS = 0.25  # until the first sample: a process killed right after its start has recorded its artifact
_MIN_SPAN_SECONDS = 1.0  # least span of readings from which a maximum power is taken; shorter ones are noise


class EnergyConfig(Section):
    """The meter's settings; none of them changes a byte of an artifact."""

    enabled: bool = True
    """Measure the node; False leaves energy unknown."""
    sample_seconds: float = Field(default=5.0, ge=0.1, le=MAX_SAMPLE_SECONDS)
    """Seconds between two readings: what a kill can lose, and the fineness of a checkpoint's energy."""
    cpu_tdp_watts: float | None = Field(default=None, gt=0)
    """Thermal design power of all processors of a node, in watts, for the estimate; None looks it up by name."""
    method: Literal["auto", "codecarbon"] = "auto"
    """Meter: the best source of this node, or codecarbon's offline tracker, which always measures the whole node."""
    scope: Literal["auto", "node"] = "auto"
    """Scope: the node, or under "auto" this job's share where it was allotted a part of the node."""
    factors: FactorsConfig = FactorsConfig()
    """Factors that turn the energy into carbon and water, for the report."""


def meter(
    config: EnergyConfig, ledger: Path, announce: Announce = announce_nothing, signer: LineSigner = sign_nothing
) -> Meter:
    """The meter of a run.

    It is a factory of contexts that measure the node and record in `ledger`. `announce` is called, in any thread,
    before this host begins a file of it, and `signer` before an interval's first line.

    While the context lasts the yielded dictionary holds under "running" the joules of the last sample with method,
    time and bounds (`_Measuring.publish`), under "read" what takes a sample now, under "interval" its name in the
    ledger, and under "clock" the clock of phases; at its end joules, low, high (None: unknown), method, scope,
    seconds, coverage and parts. A body that raises counts as wasted, but for `Preempted`, `BudgetReached` and
    `ShareDone`: those saved their work first.
    """
    if not config.enabled:
        return no_meter
    if config.method == "codecarbon":
        require_codecarbon()
    attempt = uuid.uuid4().hex[:12]
    counter = itertools.count(1)
    ended = [0.0]  # when this process measured last, in seconds of its life

    @contextlib.contextmanager
    def measure(stage: str) -> Iterator[dict[str, Any]]:
        about = {
            "interval": f"{attempt}.{next(counter)}",
            "attempt": attempt,
            "stage": stage,
            "host": socket.gethostname(),
            "process": [os.getpid(), start_time(os.getpid())],
            "every": config.sample_seconds,
        }
        energy = {**UNKNOWN_ENERGY, CLOCK: PhaseClock(_FIRST_PHASES.get(stage, DATA_STAGE))}
        allotted = _allotted(config)
        with _turn(ledger, allotted.job if allotted else None) as turn:
            measuring = _Measuring(config, (ledger, announce, signer), about, energy, turn, allotted)
            measuring.begin(before=round(max(0.0, seconds_alive() - ended[0]), 3))
            outcome = "surviving", ""
            try:
                yield energy
            except BaseException as error:
                outcome = _outcome(error)
                raise
            finally:
                try:
                    measuring.end(*outcome)
                finally:
                    ended[0] = seconds_alive()

    return measure


def _outcome(error: BaseException) -> tuple[str, str]:
    """Outcome and cause of a body that raised.

    One that saved its work first survives.
    """
    for kind, cause in ((Preempted, PREEMPTED), (ShareDone, "left"), (BudgetReached, OUT_OF_BUDGET)):
        if isinstance(error, kind):
            return "surviving", cause
    by_signal = getattr(error, "exit_code", None) == Preempted.exit_code
    return "wasted", PREEMPTED if by_signal else type(error).__name__


def _allotted(config: EnergyConfig) -> Allotment | None:
    """The part of the node that is this job's.

    Returns None where the whole node is measured.
    """
    try:
        return allotment(cpu_times()[2]) if config.scope == "auto" and config.method == "auto" else None
    except (OSError, ValueError, StopIteration):  # not Linux
        return None


@contextlib.contextmanager
def _turn(ledger: Path, job: str | None) -> Iterator[Turn]:
    """The node's lock.

    A node whose runtime directory cannot be used is measured without it, with a warning.
    """
    with contextlib.ExitStack() as stack:
        try:
            turn = stack.enter_context(node_turn(ledger, job))
        except (OSError, PipelineError) as error:
            get_logger(__name__).warning("energy: no lock, so another meter of this node may count the same: %s", error)
            turn = Turn(ours=True)
        yield turn


class _Measuring:
    """One interval: sources, sampling thread, ledger lines, result."""

    def __init__(
        self,
        config: EnergyConfig,
        place: tuple[Path, Announce, LineSigner],
        about: dict[str, Any],
        energy: dict[str, Any],
        turn: Turn,
        allotted: Allotment | None,
    ):
        self.config, self.energy, self.turn, self.allotted = config, energy, turn, allotted
        self.scope = str(allotted) if allotted else "node"
        self.path, self.announce, self.signer = place
        self.sources, self.missing = _open_sources(config, allotted) if turn.ours else ([], [])
        shared = f"shared: measured by pid {turn.pid}" if turn.pid else "shared: measured by another meter"
        self.about = {**about, "method": _method(self._parts()) if turn.ours else shared}
        if not turn.ours:
            self.missing = [f"everything: the node is {shared.removeprefix('shared: ')}"]
        # Where another meter of this ledger holds the turn, its lines count these joules.
        self.ledger = self.path if turn.ours or not self._same_ledger() else None
        self.file: Path | None = None
        self.sign: SignLine = dict
        self.started = self.began = time.monotonic()
        self.late = not turn.ours
        self.stopping = False
        self.clock: PhaseClock = energy[CLOCK]
        self.guard = threading.Lock()
        span = min(_MIN_SPAN_SECONDS, config.sample_seconds / 2)
        self.power = {"central": GreatestPower(span), "upper": GreatestPower(span)}
        energy.update({READ: self._read, INTERVAL: about["interval"]})
        self.thread = threading.Thread(target=self._sample, name="energy meter", daemon=True)

    def _same_ledger(self) -> bool:
        return self.turn.ledger == str(self.path.resolve())

    def begin(self, before: float) -> None:
        """Open the interval and start sampling, or stand for election.

        `before` is the seconds that this process has run without a meter.
        """
        self._record(before=before)
        if self.sources or not self.turn.ours:
            self.thread.start()

    def _record(self, **values: Any) -> None:
        """Open the interval in the ledger if no other line counts it."""
        try:
            self.file = None
            if self.ledger:
                file = host_ledger(self.ledger, announce=self.announce)
                self.sign, self.file = self.signer(file, self.about["interval"]), file
        except (OSError, PipelineError) as error:
            get_logger(__name__).warning("energy: this interval is not in the ledger: %s", error)
        self._write("begin", **values)

    def end(self, outcome: str, cause: str) -> None:
        """Read again, close the interval, and fill the caller's dictionary."""
        self.stopping = True
        self.clock.hung.set()  # wakes the thread
        if self.thread.is_alive():
            self.thread.join()
        self.missing = [*self.missing, *self.energy.pop(UNMEASURED, ())]
        parts = self._write("end", outcome=outcome, cause=cause)
        for name in _TRANSIENT:
            self.energy.pop(name, None)
        self.energy.update(self._measurement(parts))

    def _sample(self) -> None:
        every, due = self.config.sample_seconds, _FIRST_SECONDS
        while True:
            wait = min(due, every) if self.turn.ours else min(due, every, _STAND_SECONDS)
            self.clock.hung.wait(wait)
            self.clock.hung.clear()
            if self.stopping:
                return
            due -= wait
            if not self.turn.ours:
                self._stand()
            if due <= 0 or self.turn.ours:  # who only waits writes its marks, so that a kill leaves them
                self._write("beat")
                due = every

    def _stand(self) -> None:
        """Hold the election again.

        The winner measures from now on, and records since when.
        """
        if not self.turn.elect():
            if self.ledger is None and not self._same_ledger():  # no later line of ours may hold these joules
                self.ledger = self.path
                self._record()
            return
        sources, missing = _open_sources(self.config, self.allotted)
        if self.ledger is not None:
            self._write("beat")  # up to here nothing is known; `attribution` cuts the interval at this line
        waited = time.monotonic() - self.started
        with self.guard:
            self.sources, self.began = sources, time.monotonic()
            self.missing = [*missing, f"the first {waited:.1f} s: another process measured the node"]
            self.about["method"] = _method(self._parts())
        if self.ledger is None:
            self.ledger = self.path
            self._record()
        else:
            self._write("beat")

    def _parts(self) -> list[EnergyPart]:
        return [part for source in self.sources for part in source.read()]

    def _read(self) -> None:
        with self.guard:
            self.publish(*_total(self._parts(), self.missing))

    def publish(self, joules: int | None, low: int | None, high: int | None) -> None:
        """Publish a reading under "running".

        It has joules, method, the monotonic time, and by bound the millijoules and the greatest power so far in
        milliwatts. `elsewhere` states that this node's joules are in another line of the same ledger; `began` is when
        this process began to measure.
        """
        at, values = time.monotonic(), {"central": joules, "upper": high}
        for bound, value in values.items():
            self.power[bound].note(at, value)
        self.energy[RUNNING] = {
            "joules": joules_of(joules),
            "method": self.about["method"],
            "at": at,
            "bounds": {bound: (value, self.power[bound].milliwatts) for bound, value in values.items()},
            "elsewhere": self.ledger is None,
            "began": self.began,
        }

    def _write(self, kind: str, **values: Any) -> list[EnergyPart]:
        """Read the sources and append a line.

        A ledger that cannot be written is one warning and never stops the run.
        """
        with self.guard:
            parts = self._parts()
            joules, low, high = _total(parts, self.missing)
            self.publish(joules, low, high)
            if self.file is None:
                return parts
            marks = {name: self.energy[name] for name in MARKS if name in self.energy}
            marks[PHASES] = self.clock.milliseconds()
            try:
                figures = {"millijoules": joules, "low": low, "high": high, "marks": marks, **values}
                append(self.file, kind, self.about, self.sign, **figures)
            except (OSError, PipelineError) as error:
                get_logger(__name__).warning("energy: the ledger lacks the end of %s: %s", self.about["stage"], error)
                self.file = None
            return parts

    def _measurement(self, parts: list[EnergyPart]) -> dict[str, Any]:
        """The dictionary of a manifest's `run.energy`."""
        joules, low, high = _total(parts, self.missing)
        return {
            "joules": joules_of(joules),
            "low": joules_of(low),
            "high": None if self.late else joules_of(high),
            "method": self.about["method"],
            "scope": self.scope,
            "seconds": round(time.monotonic() - self.started, 3),
            "coverage": {
                "measured": [part.name for part in parts if "estimated" not in part.method],
                "estimated": [part.name for part in parts if "estimated" in part.method],
                "missing": [*self.missing, *(f"{p.name}: {p.detail}" for p in parts if p.high is None)],
            },
            "parts": [
                {
                    "name": part.name,
                    "joules": joules_of(part.millijoules),
                    "low": joules_of(part.low),
                    "high": joules_of(part.high),
                    "method": part.method,
                    "detail": part.detail,
                }
                for part in parts
            ],
        }


def _total(parts: list[EnergyPart], missing: list[str]) -> tuple[int | None, int | None, int | None]:
    """Millijoules of all parts as (measured, low, high).

    Without parts the total is unknown, which is not zero.
    """
    if not parts:
        return None, None, None
    highs = [part.high for part in parts]
    unbounded = None in highs or any(text.startswith(("GPU", ELSEWHERE)) for text in missing)
    high = None if unbounded else sum(value for value in highs if value is not None)
    return sum(part.millijoules for part in parts), sum(part.low for part in parts), high


def _method(parts: list[EnergyPart]) -> str:
    return " + ".join(dict.fromkeys(part.method for part in parts)) or "unknown"


def _open_sources(config: EnergyConfig, allotted: Allotment | None) -> tuple[list[EnergySource], list[str]]:
    """Sources that can be read here, and text on what cannot.

    A board's meter covers everything, so it is used alone.
    """
    if config.method == "codecarbon":
        model, reason = open_processor_model(config.cpu_tdp_watts)
        tracker = CodeCarbon(model)
        return [tracker], [*([reason] if reason else []), *tracker.missing(), _UNMETERED]
    rapl, reason = open_rapl()
    missing = [] if rapl else [reason]
    processors: EnergySource | None = rapl or open_hwmon()
    if processors is None and allotted is None and (board := open_board()) is not None:
        return [board], [*missing, _OUTSIDE]
    if processors is None:
        processors, reason = open_processor_model(config.cpu_tdp_watts, allotted)
        missing += [reason] if reason else []
    elif allotted is not None:
        processors = Shared(processors, allotted)
    gpus, reason = open_nvml(os.environ.get("SLURM_JOB_GPUS") if allotted else None)
    missing += [reason] if reason else []
    return [source for source in (processors, gpus) if source is not None], [*missing, _UNMETERED]
