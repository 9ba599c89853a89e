"""The table of `assay slurm status`.

The arrays and joins of one stage (`clean`, `clean-join`) are folded into a row under the stage's name: its tasks, and
the state of what is not done. A wait for another job is shown only where its row has nothing more informative.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from slurm.job_states import JobRow, UnitState

_HEAD = ("job", "id", "state", "tasks", "elapsed", "nodes", "excluded", "why")
_ORDER = ("failed", "lost", "running", "unknown", "waiting", "done")
_IDS_SHOWN = 24


def table(rows: Sequence[JobRow]) -> list[str]:
    """The lines of the table.

    A column that is empty in all rows is omitted.
    """
    cells = [_HEAD, *(_cells(name, of_stage) for name, of_stage in folded(rows).items())]
    shown = [column for column in range(len(_HEAD)) if any(line[column] for line in cells[1:])]
    widths = {column: max(len(line[column]) for line in cells) for column in shown}
    return ["  ".join(line[column].ljust(widths[column]) for column in shown).rstrip() for line in cells]


def folded(rows: Sequence[JobRow]) -> dict[str, list[JobRow]]:
    """Name of a stage or job -> its rows, in order.

    Rows that no longer matter are kept only where nothing took their place.
    """
    found: dict[str, list[JobRow]] = {}
    for row in rows:
        found.setdefault(stage_of(row), []).append(row)
    return found


def stage_of(row: JobRow) -> str:
    """Data stage of a share or join, else the job's name."""
    if row.kind not in ("share", "join"):
        return row.name
    return re.sub(r"-\d+$", "", row.name.removesuffix("-join"))


def _cells(name: str, rows: Sequence[JobRow]) -> tuple[str, ...]:
    parts = [part for row in rows for part in row.parts]
    tasks = [part for part in parts if part.number is not None]
    jobs = list(dict.fromkeys(part.unit.split("_")[0] for part in parts))
    nodes = list(dict.fromkeys(part.nodes for part in parts if part.nodes and (part.kind != "done" or len(parts) == 1)))
    left_out = list(dict.fromkeys(part.excluded for part in parts if part.excluded and part.kind != "done"))
    done = sum(part.kind == "done" for part in tasks)
    return (
        name,
        _short(",".join(jobs), _IDS_SHOWN),
        _state(rows, parts),
        f"{done}/{len(tasks)}" if tasks else "",
        clock(max(part.elapsed for part in parts)),
        _short(",".join(nodes), 30),
        _short(",".join(left_out), 30),
        _short(_why(parts), 100),
    )


def _state(rows: Sequence[JobRow], parts: Sequence[UnitState]) -> str:
    """States of unfinished parts, the worst first.

    A stage that has not begun or is done has one word.
    """
    if all(row.superseded for row in rows) and not all(part.kind == "done" for part in parts):
        return "superseded"
    left = [part for part in parts if part.kind != "done"] or list(parts)
    if any(part.kind not in ("done", "waiting") for part in parts):  # parts that only wait for these are omitted
        left = [part for part in left if part.reason != "Dependency"] or left
    states: dict[str, int] = {}
    for part in sorted(left, key=lambda part: _ORDER.index(part.kind)):
        states[part.state] = states.get(part.state, 0) + 1
    if len(states) == 1:
        return next(iter(states))
    return ", ".join(f"{count} {state}" for state, count in states.items())


def _why(parts: Sequence[UnitState]) -> str:
    """Reason why a job waits or failed."""
    failed = [part for part in parts if part.kind in ("failed", "lost")]
    if failed:
        causes = list(dict.fromkeys(ended(part) for part in failed))
        named = [cause for cause in causes if not cause.startswith("because ")]
        return "; ".join(named or causes)
    waiting = [part for part in parts if part.kind == "waiting"]
    reasons = list(dict.fromkeys(part.reason for part in waiting if part.reason))
    others = [reason for reason in reasons if reason != "Dependency"]
    if not waiting or (not others and any(part.kind == "running" for part in parts)):
        return ""
    begins = min((part.starts for part in waiting if part.starts), default="")
    return ", ".join(others or reasons) + (f"; expected {begins}" if begins else "")


def ended(part: UnitState) -> str:
    """End of a job in words: exit status and cause."""
    status = f"exit {part.status}: " if part.status else ""
    return f"{status}{part.cause}" if part.cause else f"{status}Slurm says {part.state}"


def clock(seconds: int) -> str:
    """Seconds as "1-02:03:04"."""
    days, rest = divmod(seconds, 86_400)
    return (f"{days}-" if days else "") + f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
