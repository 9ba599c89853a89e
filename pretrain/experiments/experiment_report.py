"""Files of an experiment's report: <name>.json with every figure, report.html for readers."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from governance.files import write_json, write_text
from governance.manifest import Output, describe
from governance.reports.html.markup import Child, Html, fold, tag
from governance.reports.sections.page import runs_page

Found = Mapping[str, Any]
"""Every figure of a report, as in its JSON file."""


_PAGE_STYLE = "main>section{padding-top:1.1rem}pre{white-space:pre-wrap;overflow-wrap:anywhere}"


def write_report(target: Path, name: str, found: Found, page: Callable[[Found], str], root: Path) -> list[Output]:
    """Write both files; return them with their digests."""
    write_json(target / f"{name}.json", found)
    write_text(target / "report.html", page(found))
    return [describe(target / file, root) for file in (f"{name}.json", "report.html")]


def read_report(folder: Path, name: str) -> dict[str, Any]:
    """The figures of a report."""
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_bytes())
    return found


def report_page(title: str, name: str, body: Sequence[Child]) -> str:
    """A page that needs no network and no script."""
    return runs_page(title, body, f"Every figure is in {name}.json; the page loads no external resources.", _PAGE_STYLE)


def method_section(texts: Sequence[str], rungs: Sequence[Found]) -> Html:
    """Method in words, and each training's command."""
    commands = [
        tag(
            "pre",
            shlex.join(["assay", "train", "CONFIG", *(part for word in row["settings"] for part in ("--set", word))]),
        )
        for row in rungs
    ]
    return tag(
        "section", tag("h2", "Method"), [tag("p", text) for text in texts], fold("Commands of the trainings", *commands)
    )
