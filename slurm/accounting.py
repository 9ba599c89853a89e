"""Slurm's own accounting of a run's jobs.

Where a site measures its nodes' energy, accounting has it for each start of each job (`ConsumedEnergyRaw`, joules of
the whole nodes); a value behind a counter that was reset is left out. Our own figure is the ledger's
(`energy.jsonl`). Both are kept in `<root>/slurm/accounting.jsonl`, a line for each answer; the last line counts: what
a report was written from is never changed, only added to. They are two meters of the same nodes, and a difference is
a finding, not an error. Slurm counts the energy of a node from the start to the end of a job, including the
interpreter's start and idle time; ours counts the stages.

    {"asked": "2026-11-25T10:00:00Z", "core_seconds": 5120, "jobs": {"train": {"core_seconds": 4096, "joules": 81000}},
     "ours": 79000.5, "slurm": 81000}
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from governance.config import canonical_json
from governance.errors import StorageError
from governance.files import append_line, read_lines
from governance.log import get_logger
from governance.stage import now
from slurm.job_states import View

ACCOUNTING_FILE = "accounting.jsonl"
_LAST_BYTES = 1 << 16  # hold the last line of a run of some hundred jobs; a longer line is only written again
_TOLERANCE = 0.1
"""Two meters that differ by less than this share agree."""
_MIN_JOULES = 1000.0
"""Below this the start of the interpreter, which only Slurm counts, outweighs the rest."""


@dataclass(frozen=True)
class Energy:
    """Two meters of the same nodes, in joules; None: unknown."""

    slurm: int | None
    ours: float | None
    core_seconds: int
    ended: bool = True
    """True once all jobs have ended; only then are the meters compared."""


def account(view: View, ours: float | None, root: Path) -> Energy:
    """Sum up Slurm's accounting, store it with `ours`, return both."""
    measured = {row.name: row.joules for row in view.rows if row.joules is not None}
    energy = Energy(sum(measured.values()) if measured else None, ours, sum(row.core_seconds for row in view.rows))
    energy = replace(energy, ended=not any(row.live for row in view.rows))
    if energy.core_seconds or measured:
        jobs: dict[str, Any] = {
            row.name: {"core_seconds": row.core_seconds, "joules": row.joules} for row in view.rows if row.core_seconds
        }
        values = {"core_seconds": energy.core_seconds, "jobs": jobs, "ours": ours, "slurm": energy.slurm}
        path = root / "slurm" / ACCOUNTING_FILE
        try:
            kept = [line for line in read_lines(path, _LAST_BYTES) if isinstance(line, dict)][-1:]
            if [{**line, "asked": None} for line in kept] != [{**values, "asked": None}]:  # the same answer is one line
                append_line(path, canonical_json({"asked": now(), **values}).decode())
        except StorageError as error:  # a status must still appear when the disk is full
            get_logger(__name__).warning("%s", error)
    return energy


def in_words(energy: Energy) -> list[str]:
    """Both meters on a line, and their difference."""
    parts = []
    if energy.core_seconds:
        hours = energy.core_seconds / 3600
        parts = [f"{hours:,.2f} core hours" if hours >= 1 else f"{energy.core_seconds:,} core seconds"]
    if energy.slurm is not None:
        parts.append(f"energy by Slurm {_kilojoules(energy.slurm)}")
    if energy.ours is not None:
        parts.append(f"energy by our meters {_kilojoules(energy.ours)}")
    if energy.ended and energy.slurm is not None and energy.ours and energy.ours >= _MIN_JOULES:
        apart = energy.slurm / energy.ours - 1
        parts.append(
            "they agree within 10 %" if abs(apart) <= _TOLERANCE else f"they disagree: Slurm's is {apart:+.0%} of ours"
        )
    return [", ".join(parts)] if parts else []


def _kilojoules(joules: float) -> str:
    return f"{joules / 1000:,.1f} kJ"
