"""What went wrong while the run ran: updates left out, attempts and why they ended, hangs, slow ranks.

Read from the record of the training and the ledger of energy; what a cluster's jobs left is in the section on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from governance.energy.ancestry import RECORD
from governance.energy.ledger import FILE_NAME as LEDGER
from governance.energy.ledger import files_of, read_ledger
from governance.files import read_lines
from governance.manifest import Manifest
from governance.phases import HANG
from governance.reports.markup import Html, compact, energy, foreign, join, number, table, tag
from governance.reports.origins import cite

_REASONS = {
    "loss": "loss that was not finite",
    "gradient": "gradient that was not finite",
    "spike": "spike of the loss",
    "overflow": "overflow in fp16, as its loss scale is found",
}
_REPORTS = ("report", "documents")


def fault_facts(
    train: Manifest | None, root: Path, alive: Callable[[Mapping[str, Any]], bool] | None = None
) -> dict[str, Any]:
    """Updates left out by reason, attempts of the training, ends of measured attempts by stage and cause, slow ranks.

    `ledger` says whether there is one: without it nothing is known of attempts of other stages, nor of hangs.

    Args:
        train: the training, if there is one.
        root: where its record and the ledger lie.
        alive: as `read_ledger` takes it.
    """
    lines = read_lines(root / train.folder / RECORD) if train else []
    lines = [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]
    ends: Counter[tuple[str, str]] = Counter()
    for interval in read_ledger(root / LEDGER, alive):
        if interval.outcome == "wasted" and interval.stage not in _REPORTS:
            ends[interval.stage, interval.cause] += 1
    return {
        "skipped": _skipped([line for line in lines if line.get("event") == "skipped"]),
        "attempts": _attempts(lines),
        "ledger": bool(files_of(root / LEDGER)),
        "ended": [{"stage": stage, "cause": cause, "count": count} for (stage, cause), count in sorted(ends.items())],
        "stragglers": [
            {name: line.get(name) for name in ("step", "rank", "ratio", "windows")}
            for line in lines
            if line.get("event") == "stragglers"
        ],
    }


def _skipped(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By reason: how many updates were left out, at which steps, the greatest z-score."""
    rows = []
    for reason in sorted({str(line.get("reason")) for line in lines}):
        mine = [line for line in lines if str(line.get("reason")) == reason]
        scores = [line["z"] for line in mine if isinstance(line.get("z"), (int, float))]
        steps = [line["step"] for line in mine]
        rows.append({"reason": reason, "count": len({*steps}), "first": min(steps), "last": max(steps),
                     "greatest_z": max(scores, default=None)})  # fmt: skip
    return rows


def _attempts(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each attempt: from which step, how far it came, how many of its steps were computed again later, how it ended."""
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


def hangs(found: Mapping[str, Any]) -> int:
    """Attempts that ended in a hang."""
    return sum(row["count"] for row in found["faults"]["ended"] if row["cause"] == HANG)


def faults(found: Mapping[str, Any]) -> Html:
    """The section."""
    data, wasted = found["faults"], found["energy"]["wasted_by_cause"]
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
    cited = cite(found, "/faults")
    unknown = None if data["ledger"] else (
        "Whether an attempt failed or hung is unknown: there is no ledger of energy, which tells how attempts ended."
    )  # fmt: skip
    if not (skipped or ended or slow) and len(attempts) < 2:
        failed = "" if unknown else "no attempt failed, nothing hung, "
        told = f"No update was left out, {failed}no rank was slow."
        return tag("p", f"{told} {unknown}" if unknown else told, cited, class_="none")
    return join([
        tag("p", unknown, class_="note") if unknown else None,
        table("Attempts that failed, by cause", ["stage", "cause", "how often", "energy wasted by the cause"], ended,
              numeric=(2, 3), cites=[cited] * len(ended)),
        table("Attempts of the training", ["attempt", "from step", "to step", "steps computed again", "end"], attempts,
              numeric=(1, 2, 3), cites=[cited] * len(attempts)),
        table("Updates left out", ["reason", "updates", "first step", "last step", "greatest z-score"], skipped,
              numeric=(1, 2, 3, 4), cites=[cited] * len(skipped)),
        table("Ranks that kept the others waiting", ["rank", "step", "times the others' own work", "windows"], slow,
              numeric=(1, 2, 3), cites=[cited] * len(slow)),
    ])  # fmt: skip


def _end(row: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    if row["left"]:
        return "saved and left, as it was told to"
    return "went on to the end" if row is data["attempts"][-1] else "ended before its goal; the next one went on"
