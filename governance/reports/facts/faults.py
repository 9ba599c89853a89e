"""Faults of a run: skipped updates, attempts, hangs, stragglers.

They are read from the training's record and the energy ledger; `cluster_jobs.py` covers a cluster's jobs.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from governance.energy.ancestry import RECORD
from governance.energy.ledger import FILE_NAME as LEDGER
from governance.energy.ledger import files_of, read_ledger
from governance.files import read_lines
from governance.manifest import Manifest
from governance.reports.facts.citations import cite
from governance.reports.html.markup import Html, compact, energy, foreign, join, number, table, tag

_REASONS = {
    "loss": "non-finite loss",
    "gradient": "non-finite gradient",
    "spike": "loss spike",
    "overflow": "fp16 overflow while the loss scale adapts",
}
_VERDICTS = {
    "not finite": "several consecutive steps were not finite, so the batches are not the cause",
    "too many": "more skipped steps than train.skip.most_skips allows",
}
_REPORTS = ("report", "documents")
_SLOWEST = 8  # ranks whose own work is listed
_NAMED = 6  # documents of a divergence; the record has more


def fault_facts(
    train: Manifest | None, root: Path, alive: Callable[[Mapping[str, Any]], bool] | None = None, begun: str = ""
) -> dict[str, Any]:
    """Skipped updates, verdicts, attempts, failures, stragglers and own work times.

    `ledger` states whether there is a ledger; without one, attempts of other stages and hangs are unknown. `finished`
    states whether the training is finished, `planned` how many steps its newest attempt is to compute.

    Args:
        train: the training, if it is finished.
        root: folder of its record and of the ledger.
        alive: as `read_ledger` takes it.
        begun: folder of an unfinished training.
    """
    folder = train.folder if train else begun
    lines = read_lines(root / folder / RECORD) if folder else []
    lines = [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]
    ends: Counter[tuple[str, str]] = Counter()
    for interval in read_ledger(root / LEDGER, alive):
        if interval.outcome == "wasted" and interval.stage not in _REPORTS:
            ends[interval.stage, interval.cause] += 1
    return {
        "skipped": _skipped([line for line in lines if line.get("event") == "skipped"]),
        "diverged": [
            {
                name: line.get(name)
                for name in ("attempt", "step", "reason", "skipped", "window", "by_reason", "documents")
            }
            for line in lines
            if line.get("event") == "diverged"
        ],
        "attempts": _attempts(lines),
        "planned": next((line.get("steps") for line in reversed(lines) if line.get("event") == "start"), None),
        "finished": train is not None,
        "ledger": bool(files_of(root / LEDGER)),
        "ended": [{"stage": stage, "cause": cause, "count": count} for (stage, cause), count in sorted(ends.items())],
        "stragglers": [
            {name: line.get(name) for name in ("step", "rank", "ratio", "windows")}
            for line in lines
            if line.get("event") == "stragglers"
        ],
        "own_work": _own_work([line for line in lines if line.get("event") == "ranks"]),
    }


def _own_work(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Own work per step of the newest attempt's ranks, slowest first."""
    newest = [line for line in lines if line.get("attempt") == lines[-1].get("attempt")]
    steps = sum(line["steps"] for line in newest)
    if not steps:
        return []
    means = [
        sum(line["steps"] * seconds for line, seconds in zip(newest, rank, strict=True)) / steps
        for rank in zip(*(line["seconds"] for line in newest), strict=True)
    ]
    median = statistics.median(means)
    order = sorted(range(len(means)), key=lambda rank: (-means[rank], rank))
    return [
        {"rank": rank, "seconds": means[rank], "ratio": means[rank] / median if median else None}
        for rank in order[:_SLOWEST]
    ]


def _skipped(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Skipped updates by reason: count, steps, greatest z-score."""
    rows = []
    for reason in sorted({str(line.get("reason")) for line in lines}):
        mine = [line for line in lines if str(line.get("reason")) == reason]
        scores = [line["z"] for line in mine if isinstance(line.get("z"), (int, float))]
        steps = [line["step"] for line in mine]
        rows.append({"reason": reason, "count": len({*steps}), "first": min(steps), "last": max(steps),
                     "greatest_z": max(scores, default=None)})  # fmt: skip
    return rows


def _attempts(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Attempts: first and last step, repeated steps, end."""
    rows: list[dict[str, Any]] = []
    for attempt in sorted({line["attempt"] for line in lines if isinstance(line.get("attempt"), int)}):
        mine = [line for line in lines if line.get("attempt") == attempt]
        steps = [line["step"] for line in mine if line.get("event") == "step"]
        starts = [line["step"] for line in mine if line.get("event") == "start"]
        left = any(line.get("event") == "left" for line in mine)
        begun = starts[0] if starts else min(steps, default=1) - 1
        if rows:
            rows[-1]["lost"] = max(0, rows[-1]["to"] - begun)
        rows.append({"attempt": attempt, "from": begun, "to": max(steps, default=begun), "lost": 0, "left": left})
    return rows


def faults(facts: Mapping[str, Any]) -> Html:
    """Section on faults."""
    data, wasted = facts["faults"], facts["energy"]["wasted_by_cause"]
    skipped = [
        [_REASONS.get(row["reason"], row["reason"]), number(row["count"]), number(row["first"]), number(row["last"]),
         "–" if row["greatest_z"] is None else compact(row["greatest_z"])]
        for row in data["skipped"]
    ]  # fmt: skip
    attempts = [
        [number(row["attempt"]), number(row["from"]), number(row["to"]), number(row["lost"]), _end(row, data)]
        for row in data["attempts"]
    ]
    ended = [
        [row["stage"], foreign(row["cause"]), number(row["count"]), energy(wasted.get(row["cause"]))]
        for row in data["ended"]
    ]
    slow = [
        [f"rank {row['rank']}", number(row["step"]), compact(row["ratio"]), number(row["windows"])]
        for row in data["stragglers"]
    ]
    work = [[f"rank {row['rank']}", compact(row["seconds"]), compact(row["ratio"])] for row in data["own_work"]]
    verdicts = [_verdict(row) for row in data["diverged"]]
    citation = cite(facts, "/faults")
    unknown = None if data["ledger"] else (
        "Whether an attempt failed or hung is unknown: there is no energy ledger, which records how attempts ended."
    )  # fmt: skip
    if not (skipped or verdicts or ended or slow) and len(attempts) < 2:
        failed = "" if unknown else "no attempt failed, nothing hung, "
        text = f"No update was skipped, {failed}no rank was slow."
        return join(
            [tag("p", f"{text} {unknown}" if unknown else text, citation, class_="none"), _work(work, citation)]
        )
    return join([
        tag("p", unknown, class_="note") if unknown else None,
        table("Divergence",
              ["attempt", "step", "why", "steps skipped", "by reason", "documents"], verdicts,
              numeric=(0, 1), citation=citation),
        table("Failed attempts, by cause", ["stage", "cause", "count", "energy wasted"], ended,
              numeric=(2, 3), citation=citation),
        table("Attempts of the training", ["attempt", "from step", "to step", "repeated steps", "end"], attempts,
              numeric=(1, 2, 3), citation=citation),
        table("Skipped updates", ["reason", "updates", "first step", "last step", "largest z-score"], skipped,
              numeric=(1, 2, 3, 4), citation=citation),
        table("Slow ranks", ["rank", "step", "own work / median", "windows"], slow,
              numeric=(1, 2, 3), citation=citation),
        _work(work, citation),
    ])  # fmt: skip


def _work(rows: Sequence[Sequence[Any]], citation: Html) -> Html | None:
    if not rows:
        return None  # one rank alone, or no window was whole
    name = "Own work per rank, newest attempt, slowest first"
    return table(name, ["rank", "seconds per step", "ratio to median"], rows, numeric=(1, 2), citation=citation)


def _verdict(row: Mapping[str, Any]) -> list[Any]:
    reasons = ", ".join(f"{_REASONS.get(name, name)}: {count}" for name, count in (row["by_reason"] or {}).items())
    documents, more = (row["documents"] or [])[:_NAMED], len(row["documents"] or []) - _NAMED
    names = ", ".join(map(str, documents)) + (f" and {number(more)} more" if more > 0 else "")
    left_out = f"{number(row['skipped'])} of {number(row['window'])}"
    why = _VERDICTS.get(row["reason"], row["reason"])
    return [number(row["attempt"]), number(row["step"]), why, left_out, foreign(reasons), foreign(names or "unknown")]


def _end(row: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    if any(verdict["attempt"] == row["attempt"] for verdict in data["diverged"]):
        return "stopped: diverged"
    if row["left"]:
        return "saved and stopped on request"
    if row is not data["attempts"][-1]:
        return "ended early; the next attempt continued"
    return "finished" if data["finished"] else "running, or ended early"
