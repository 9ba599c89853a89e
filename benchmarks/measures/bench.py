"""Every benchmark script in turn: goal lines, figures as JSON, a page of plots, and the README's numbers checked.

    make bench [FULL=1] [ONLY="data:chain,rates scale"]

Without FULL every script runs with `--quick`. `ONLY` names scripts, each with its groups after a colon. The figures go
to build/bench/figures.json and build/bench/page.html after each script, and a run of all scripts renews the section
"make bench" of RESULTS.md. Exits 1 when a goal falls short, a group or
script fails, or a number of the README's table is not within its tolerance of the figure that it comes from; with ONLY,
numbers whose figure was not measured are named and fail nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measures.goals import Goal, machine, read_line

HERE = Path(__file__).resolve().parents[2]
SCORE, RATIO, RATE = 0.005, 0.3, 0.65
"""Tolerances: of a score, absolute; of a ratio in one run and of a rate on another machine, as a share of either."""


@dataclass(frozen=True)
class Source:
    """Figure that a number of the README comes from."""

    name: str
    tolerance: float

    def agrees(self, stated: float, measured: float) -> bool:
        """Return whether a stated number is the measured one within the tolerance."""
        room = self.tolerance * (1.0 if self.tolerance == SCORE else max(abs(stated), abs(measured)))
        return abs(stated - measured) <= room


_HELD_OUT = "html.public.held_out_half"
SOURCES = (
    Source("chain.mb_a_core_second", RATE),
    Source("chain.times_datatrove", RATE),
    Source(f"{_HELD_OUT}.assay.f1", SCORE),
    Source(f"{_HELD_OUT}.assay.mb_a_core_second", RATE),
    Source(f"{_HELD_OUT}.trafilatura.f1", SCORE),
    Source(f"{_HELD_OUT}.trafilatura.mb_a_core_second", RATE),
    Source("tokenize.mb_a_core_second", RATE),
    Source("tokenize.encode_batch_mb_a_core_second", RATE),
    Source("training_times_gpt_bf16_compiled", RATIO),
    Source("ranks.four_over_one", RATIO),
    Source("ranks.codecarbon_four_over_one", RATIO),
)
"""The numbers of the README's table "Measured" in its order, dates and links left out."""


def readme_numbers(text: str) -> list[float]:
    """Numbers of the second and third column of the table under "Measured"."""
    rows = [line for line in text.partition("## Measured")[2].partition("\n## ")[0].splitlines() if line[:2] == "| "]
    cells = " ".join(cell for row in rows[1:] for cell in row.split("|")[2:4])
    plain = re.sub(r"\]\([^)]*\)|\d{4}-\d\d-\d\d", " ", cells)
    return [float(number) for number in re.findall(r"(?<![\w.])\d*\.?\d+(?![\w])", plain)]


def readme_lines(text: str, found: Mapping[str, float]) -> Iterator[tuple[bool | None, str]]:
    """Each number of the table: whether it holds (None: not measured), and a line.

    Raises:
        ValueError: the table has other numbers than SOURCES.
    """
    numbers = readme_numbers(text)
    if len(numbers) != len(SOURCES):
        raise ValueError(f"README: {len(numbers)} numbers under Measured, {len(SOURCES)} sources in {__name__}")
    for stated, source in zip(numbers, SOURCES, strict=True):
        measured = found.get(source.name)
        if measured is None:
            yield None, f"readme {source.name} {stated:g} not measured"
            continue
        agrees, way = source.agrees(stated, measured), "" if source.tolerance == SCORE else " of the larger"
        words = f"readme {source.name} {stated:g} is {measured:.6g} +-{source.tolerance:g}{way}"
        yield agrees, f"{words} {'holds' if agrees else 'falls short'}"


@dataclass
class Ran:
    """A script's run."""

    script: str
    command: str
    seconds: float = 0.0
    status: int = 0
    goals: list[Goal] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """Lines of groups that ended with an exception."""


def run_script(script: str, groups: Sequence[str], quick: bool) -> Ran:
    """Run a script, pass its lines on as they come, and keep its goals."""
    words = [f"benchmarks/{script}.py", *(["--quick"] if quick else []), *groups]
    ran, started = Ran(script, " ".join(["python", *words])), time.monotonic()
    print(f"## {ran.command}", flush=True)
    with subprocess.Popen([sys.executable, *words], cwd=HERE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", flush=True)
            if goal := read_line(line):
                ran.goals.append(goal)
            elif re.match(r"\S+ failed: ", line):
                ran.failed.append(line.strip())
    ran.status, ran.seconds = running.returncode, time.monotonic() - started
    if ran.status and not ran.failed and all(goal.holds for goal in ran.goals):
        ran.failed.append(f"{script} failed: exit status {ran.status}")
        print(ran.failed[-1], flush=True)
    return ran


def as_json(ran: Sequence[Ran], started: str, readme: Sequence[str]) -> dict[str, Any]:
    """Everything that was measured; a number that is not finite is null."""
    return {
        "machine": machine(),
        "started": started,
        "readme": list(readme),
        "scripts": [
            {
                "script": one.script, "command": one.command, "seconds": round(one.seconds, 1), "status": one.status,
                "failed": one.failed,
                "figures": [
                    {"name": goal.name, "value": goal.value if math.isfinite(goal.value) else None, "kind": goal.kind,
                     "goal": None if goal.kind == "info" else goal.bound, "holds": goal.holds, "note": goal.note}
                    for goal in one.goals
                ],
            }
            for one in ran
        ],
    }  # fmt: skip


def main() -> int:
    """Run the scripts; the exit status says whether everything holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="whole samples; hours")
    parser.add_argument("only", nargs="*", metavar="SCRIPT[:GROUP,...]", help="only these")
    arguments = parser.parse_args()
    scripts = sorted(path.stem for path in (HERE / "benchmarks").glob("*.py"))
    chosen = [word.partition(":") for word in arguments.only or scripts]
    if unknown := sorted({name for name, _, _ in chosen} - {*scripts}):
        parser.error(f"no script {', '.join(unknown)}; there are {', '.join(scripts)}")
    from benchmarks.measures.bench_page import bench_page, with_section

    target, started = HERE / "build" / "bench", time.strftime("%Y-%m-%d %H:%M")
    target.mkdir(parents=True, exist_ok=True)
    text = (HERE / "README.md").read_text(encoding="utf-8")
    list(readme_lines(text, {}))  # a table without sources is found before an hour of measuring
    ran: list[Ran] = []
    numbers: list[tuple[bool | None, str]] = []
    found: dict[str, Any] = {}
    for name, _, groups in chosen:
        ran.append(run_script(name, groups.split(",") if groups else [], not arguments.full))
        numbers = list(readme_lines(text, {goal.name: goal.value for one in ran for goal in one.goals}))
        found = as_json(ran, started, [line for _, line in numbers])
        (target / "figures.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (target / "page.html").write_text(bench_page(found), encoding="utf-8")
    results = HERE / "benchmarks" / "RESULTS.md"
    if not arguments.only and results.is_file():
        results.write_text(with_section(results.read_text(encoding="utf-8"), found), encoding="utf-8")
    print("## README, Measured")
    for _, line in numbers:
        print(line)
    goals = [goal for one in ran for goal in one.goals if goal.kind != "info"]
    short, failed = sum(not goal.holds for goal in goals), [line for one in ran for line in one.failed]
    apart = sum(agrees is False or (agrees is None and not arguments.only) for agrees, _ in numbers)
    print(
        f"## {len(goals)} goals, {short} short; {len(failed)} failed; {len(numbers)} numbers of the README, {apart} "
        f"short; {target / 'page.html'}"
    )
    return int(bool(short or failed or apart or any(one.status for one in ran)))


if __name__ == "__main__":
    raise SystemExit(main())
