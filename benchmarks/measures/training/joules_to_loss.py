"""Joules of whole processes to the loss of nanoGPT's recipe.

The text is that of `configs/speedrun.toml`, from the package index with its SHA-256. It is prepared before anything is
measured, and all contestants read the same tokens. What is measured is a whole process: the meter of Assay's energy
ledger opens before it starts and closes when it has ended, so imports, saving and validation count, and so does the
node's idle power, in the same way for all. Other processes would count too: a run in which they took more than 5 % of
the node's processor time is marked, and its goal falls short.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measures import rivals
from benchmarks.measures.children import Ended, whole
from benchmarks.measures.goals import Goal, figure, machine
from benchmarks.measures.training.training_setting import HERE, THREADS, assay
from benchmarks.measures.training.training_speed import rival
from benchmarks.measures.training.training_to_loss import held_out_arrays, own_run
from governance.energy.cpu_model import cpu_times
from governance.energy.meters import EnergyConfig, meter
from governance.reports.html.markup import table, tag
from governance.reports.sections.page import runs_page
from pretrain.config.model import padded_vocabulary

OURS, FIRST = "assay", "nanogpt"
SEEDS, QUICK_SEEDS = (1, 2, 3, 4, 5), (1,)
SHARE = 0.12
"""Share of nanoGPT's joules."""
MAX_OTHER_LOAD = 0.05
"""Share of the node's processor time that other processes take while a contestant runs."""
TARGET = HERE / "build" / "joules"
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Run:
    """One whole process, as the referee saw it."""

    contestant: str
    seed: int
    loss: float
    """Nats per token on the held-out rows."""
    joules: float | None
    low: float | None
    high: float | None
    method: str
    seconds: float
    cpu_seconds: float
    others: float
    """Share of the node's processor time that other processes took."""


def contestants(file: Path = HERE / "benchmarks" / "contestants.toml") -> dict[str, dict[str, Any]]:
    """Entries by name.

    Raises:
        ValueError: an entry lacks a field, or its script is not there.
    """
    entries = tomllib.loads(file.read_text(encoding="utf-8"))
    for name, entry in entries.items():
        if lacking := {"about", "packages", "environment", "command"} - set(entry):
            raise ValueError(f"{file}: [{name}] lacks {', '.join(sorted(lacking))}")
        if not Path(rival(entry["command"][0])).exists():
            raise ValueError(f"{file}: [{name}] names {entry['command'][0]}, which is not in benchmarks/rivals")
    return entries


def rivals_but_the_first() -> list[str]:
    """Entries that run against the first one, which sets the loss."""
    return [name for name in contestants() if name != FIRST]


def prepare_text(folder: Path) -> Path:
    """Make and judge the shipped preset's corpus; its run file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("speedrun.toml", "policy.toml"):
        shutil.copy(HERE / "configs" / name, folder / name)
    path = folder / "speedrun.toml"
    assay("data", "prepare", path, "--root", folder / "root")
    assay("governance", "check", path, "--root", folder / "root")
    return path


def refereed(name: str, seed: int, ledger: Path, start: Callable[[], tuple[Ended, float]]) -> Run:
    """Run one contestant under the meter.

    `start` gives the process that ended and the loss that it reached.
    """
    busy = cpu_times()[0]
    with meter(EnergyConfig(sample_seconds=1.0, scope="node"), ledger)(name) as energy:
        ended, loss = start()
    spent = (cpu_times()[0] - busy) / _TICKS_PER_SECOND
    others = max(0.0, 1 - ended.cpu_seconds / spent) if spent else 0.0
    bounds = (energy["joules"], energy["low"], energy["high"])
    return Run(name, seed, loss, *bounds, energy["method"], ended.seconds, ended.cpu_seconds, others)


class Match:
    """Runs of one start: the first contestant runs once for each seed."""

    def __init__(self, quick: bool, target: Path = TARGET) -> None:
        self.seeds = QUICK_SEEDS if quick else SEEDS
        self.target, self.runs = target, dict[tuple[str, int], Run]()
        self.scratch = tempfile.TemporaryDirectory()
        self.path: Path | None = None
        self.arrays: list[Path] = []

    def against(self, name: str) -> Iterator[Goal]:
        """Goals of one entry, seed by seed."""
        for seed in self.seeds:
            first, entry = self.run(FIRST, seed), self.run(name, seed)
            yield from goals(first, entry)
        yield from mean_goals(name, [(self.runs[FIRST, seed], self.runs[name, seed]) for seed in self.seeds])

    def run(self, name: str, seed: int) -> Run:
        """The run of a contestant with a seed, made once."""
        if (name, seed) not in self.runs:
            if self.path is None:
                self.path = prepare_text(Path(self.scratch.name) / "text")
                self.arrays = held_out_arrays(self.path)
            self.runs[name, seed] = refereed(name, seed, self.target / "energy.jsonl", self._start(name, seed))
            write_table(list(self.runs.values()), self.target)
            print(f"# {self.runs[name, seed]}", file=sys.stderr, flush=True)
        return self.runs[name, seed]

    def _start(self, name: str, seed: int) -> Callable[[], tuple[Ended, float]]:
        path, arrays = self.path, self.arrays
        assert path is not None
        if name == OURS:
            return lambda: own_run(path, [f"train.seed={seed}"])
        entry = contestants()[name]
        python = str(rivals.environment(entry["environment"], tuple(entry["packages"])))
        script, *more = entry["command"]
        words = [python, rival(script), *more, *map(str, (seed, THREADS, padded_vocabulary(257), *arrays))]

        def start() -> tuple[Ended, float]:
            ended = whole(words)
            return ended, float(json.loads(ended.printed.splitlines()[-1])["loss"])

        return start


def goals(first: Run, entry: Run) -> Iterator[Goal]:
    """Goals of one entry against the first contestant, with one seed."""
    end = f"{entry.contestant}_seed_{entry.seed}"
    note = f"{entry.loss:.4f}, {first.contestant} {first.loss:.4f}"
    yield Goal(f"joules_loss_difference_{end}", entry.loss - first.loss, 0.0, "<=", note)
    if entry.joules is None or first.joules is None:
        method = entry.method if entry.joules is None else first.method
        yield Goal(f"joules_share_{end}", float("nan"), SHARE, "<=", f"not metered here: {method}")
        return
    note = f"{entry.joules:.1f} of {first.joules:.1f} J; {entry.method}"
    if entry.contestant == OURS:
        yield Goal(f"joules_share_{end}", entry.joules / first.joules, SHARE, "<=", note)
        disjoint = entry.high / first.low if entry.high is not None and first.low else float("inf")
        yield Goal(f"joules_upper_bound_over_lower_{end}", disjoint, 1.0, "<=", "below 1 the bounds are disjoint")
    else:
        yield figure(f"joules_share_{end}", entry.joules / first.joules, note)
    yield figure(f"joules_cpu_share_{end}", entry.cpu_seconds / first.cpu_seconds)
    yield Goal(f"joules_other_processes_{end}", max(first.others, entry.others), MAX_OTHER_LOAD, "<=")


def mean_goals(name: str, pairs: Sequence[tuple[Run, Run]]) -> Iterator[Goal]:
    """The share of all seeds together."""
    if len(pairs) > 1 and all(first.joules and entry.joules for first, entry in pairs):
        ours, theirs = (sum(pair[at].joules or 0.0 for pair in pairs) for at in (1, 0))
        all_seeds = f"joules_share_{name}_{len(pairs)}_seeds"
        yield Goal(all_seeds, ours / theirs, SHARE, "<=") if name == OURS else figure(all_seeds, ours / theirs)


HEAD = ("contestant", "seed", "loss", "joules", "low", "high", "seconds", "CPU-seconds", "other processes", "valid")


def write_table(runs: Sequence[Run], target: Path) -> None:
    """Write the table as JSON, Markdown and HTML.

    Valid runs come first, by joules.
    """
    losses = {run.seed: run.loss for run in runs if run.contestant == FIRST}

    def valid(run: Run) -> str:
        known = run.joules is not None and run.seed in losses
        reached = known and run.loss <= losses[run.seed]
        reasons = ["unmeasured"] * (not known) + ["loss not reached"] * (known and not reached)
        return ", ".join(reasons + ["other processes"] * (run.others > MAX_OTHER_LOAD)) or "yes"

    def cell(value: float | None, digits: int = 1) -> str:
        return "unknown" if value is None else f"{value:.{digits}f}"

    ranked = sorted(runs, key=lambda run: (valid(run) != "yes", run.joules or 0.0))
    rows = [
        [run.contestant, str(run.seed), cell(run.loss, 4), cell(run.joules), cell(run.low), cell(run.high),
         cell(run.seconds), cell(run.cpu_seconds), f"{run.others:.1%}", valid(run)]
        for run in ranked
    ]  # fmt: skip
    found = {
        "machine": machine(),
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "methods": sorted({r.method for r in runs}),
    }
    target.mkdir(parents=True, exist_ok=True)
    data = {**found, "runs": [asdict(run) | {"valid": valid(run)} for run in ranked]}
    (target / "table.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}", *(f"| {' | '.join(row)} |" for row in rows)]
    note = f"{found['machine']}; {found['written']}; {'; '.join(found['methods'])}"
    (target / "table.md").write_text("\n".join([*lines, "", note, ""]), encoding="utf-8")
    numbers = tuple(range(1, len(HEAD) - 1))
    page = [
        tag("section", tag("p", note, class_="note"), table("Joules to a loss", HEAD, rows, numeric=numbers, shown=99))
    ]
    (target / "page.html").write_text(runs_page("Joules to a loss", page, "Rules: docs/joules.md."), encoding="utf-8")
