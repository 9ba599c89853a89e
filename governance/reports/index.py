"""Index of runs: verdict, loss, energy and links."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from governance.errors import ManifestError, MissingInput
from governance.gate.explanation import counted
from governance.log import get_logger
from governance.manifest import FILE_NAME
from governance.reports.documents.all_documents import read_report
from governance.reports.html.markup import UNKNOWN, compact, digest, energy, foreign, number, table, tag, visible
from governance.reports.recompute import newest_report
from governance.reports.sections.energy_sections import bounds
from governance.reports.sections.page import runs_page
from governance.reports.sections.page_one import BADGES
from governance.reports.terminal import aligned

_DEPTH = 3

Row = dict[str, Any]


def runs_below(folder: Path, base: Path) -> list[Row]:
    """Newest report of each root below a folder, newest first.

    An unreadable report is skipped with a warning. Links are relative to the folder `base`.
    """
    rows = []
    for root in dict.fromkeys(_roots(folder)):
        try:
            manifest = newest_report(root)
            found = read_report(manifest, root)
            row = _row(found, root, folder, os.path.relpath(root / manifest.folder / "report.html", base))
        except (ManifestError, MissingInput, OSError, ValueError, KeyError) as error:
            get_logger(__name__).warning("index: %s is skipped: %s", root, error)
            continue
        rows.append({**row, "finished": str(manifest.run.get("finished") or UNKNOWN), "digest": manifest.digest})
    return sorted(rows, key=lambda row: (row["finished"], row["name"]), reverse=True)


def _roots(folder: Path) -> Iterator[Path]:
    for depth in range(_DEPTH + 1):
        for path in sorted(folder.glob("*/" * depth + f"report/*/{FILE_NAME}")):
            yield path.parents[2]


def _row(found: dict[str, Any], root: Path, folder: Path, link: str) -> Row:
    name = root.relative_to(folder).as_posix()
    first = found.get("first") or []
    return {"name": folder.resolve().name if name == "." else name, "link": link, "summary": found["summary"],
            "first": first[0]["what"] if first else ""}  # fmt: skip


def index_lines(rows: Sequence[Row]) -> list[str]:
    """The table on a terminal."""
    head = ("run", "verdict", "steps", "val. loss", "energy", "wasted", "finished")
    return aligned([head, *(tuple(map(visible, _cells(row))) for row in rows)])


def _cells(row: Row) -> list[str]:
    summary = row["summary"]
    return [
        row["name"],
        summary["verdict"],
        number(summary["steps"]) if summary["steps"] is not None else "not trained",
        compact(summary["validation_loss"]) if summary["validation_loss"] is not None else "–",
        energy(summary["energy_joules"]),
        energy(summary["energy_wasted_joules"]),
        row["finished"],
    ]


def index_page(rows: Sequence[Row], name: str) -> str:
    """Index page: one row per run, with links."""
    lines = [
        [
            [tag("a", foreign(row["name"]), href=quote(row["link"])), tag("br"), digest(row["digest"])],
            tag("span", row["summary"]["verdict"], class_=f"pill {BADGES.get(row['summary']['verdict'], 'bad')}"),
            foreign(row["first"]),
            *_cells(row)[2:6],
            UNKNOWN if low is None else bounds(low, row["summary"]["energy_high_joules"]),
            row["finished"],
        ]
        for row in rows
        for low in [row["summary"]["energy_low_joules"]]
    ]
    head = ["run, report digest", "verdict", "main finding", "steps", "validation loss", "energy",
            "of which wasted", "energy bounds", "report written"]  # fmt: skip
    body = [
        tag("p", f"{counted(len(rows), 'run')}, each with its newest report; the newest first.", class_="lead"),
        table("Runs", head, lines, numeric=(3, 4, 5, 6, 7, 8)),
    ]
    return runs_page(f"Runs in {name}", body)
