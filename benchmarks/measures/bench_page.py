"""Every measured figure against its goal: a page without scripts, and a section of RESULTS.md."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from governance.reports.html.markup import Html, table, tag
from governance.reports.html.svg_figures import interval_about
from governance.reports.sections.page import runs_page

_RANGE = 1.0
"""Ends of the scale: the figure is ten times as good as its goal, or a tenth of it."""


def margin(value: float | None, bound: float, kind: str) -> float:
    """Decimal logarithm of how many times better than its goal a figure is, within the scale.

    A figure or goal that is not positive has no ratio: the end of the scale.
    """
    if value is None:
        return -_RANGE
    if value > 0 and bound > 0:
        better = math.log10(value / bound)
        return max(-_RANGE, min(_RANGE, better if kind == ">=" else -better))
    return _RANGE if (value >= bound if kind == ">=" else value <= bound) else -_RANGE


def bench_page(found: Mapping[str, Any]) -> str:
    """Goals that fall short first, then each script with a mark for each goal and its other figures."""
    goals = [row for script in found["scripts"] for row in script["figures"] if row["goal"] is not None]
    short = [row for row in goals if not row["holds"]]
    failed = [line for script in found["scripts"] for line in script["failed"]]
    first = tag(
        "section",
        tag("p", f"{len(goals) - len(short)} of {len(goals)} goals hold; {len(failed)} measurements failed.",
            class_="lead"),
        tag("p", f"{found['machine']}; started {found['started']}.", class_="note"),
        _goals("Goals that fall short", short) if short else None,
        [tag("p", line, class_="note") for line in failed],
        table("Numbers of the README", ["figure, stated, measured, tolerance"], [[line] for line in found["readme"]],
              shown=len(found["readme"])),
        class_="reader",
    )  # fmt: skip
    closing = (
        "Each mark is a figure over its goal on a logarithmic scale from a tenth to ten times as good; the line is the "
        "goal. All figures: figures.json."
    )
    return runs_page("Benchmarks", [first, *map(_script, found["scripts"])], closing)


def _script(script: Mapping[str, Any]) -> Html:
    rows = script["figures"]
    others = [[row["name"], _value(row), row["note"]] for row in rows if row["goal"] is None]
    return tag(
        "section",
        tag("h2", script["script"]),
        tag("p", f"{script['command']}; {script['seconds']:,.0f} s", class_="note"),
        _goals(f"Goals of {script['script']}", [row for row in rows if row["goal"] is not None]),
        table(f"Other figures of {script['script']}", ["figure", "measured", "note"], others, numeric=(1,))
        if others else None,
    )  # fmt: skip


def _goals(caption: str, rows: Sequence[Mapping[str, Any]]) -> Html:
    cells = []
    for row in rows:
        at = margin(row["value"], row["goal"], row["kind"])
        words = f"{row['name']}: {_value(row)}, goal {row['kind']} {row['goal']:g}"
        mark = interval_about((at, at, at), (-_RANGE, _RANGE), 0.0, words, hit=not row["holds"])
        cells.append([row["name"], _value(row), f"{row['kind']} {row['goal']:g}", mark,
                      "holds" if row["holds"] else "falls short", row["note"]])  # fmt: skip
    head = ["figure", "measured", "goal", "against the goal", "", "note"]
    return table(caption, head, cells, numeric=(1, 2, 4), shown=len(cells))  # numbers, and so the verdict, do not wrap


def _value(row: Mapping[str, Any]) -> str:
    return "not a number" if row["value"] is None else f"{row['value']:.6g}"


def with_section(results: str, found: Mapping[str, Any]) -> str:
    """RESULTS.md with its section "make bench" renewed, or added at the end."""
    before, heading, after = results.partition("### make bench\n")
    next_heading = re.search(r"^#{2,3} ", after, re.MULTILINE) if heading else None
    rest = after[next_heading.start() :] if next_heading else ""
    return f"{before.rstrip()}\n\n{_section(found)}" + (f"\n{rest}" if rest else "")


def _section(found: Mapping[str, Any]) -> str:
    lines = [
        "### make bench", "", f"Written by `make bench` on {found['machine']}, started {found['started'][-5:]}.", "",
        "| command | minutes | goals | fell short: measured, goal |", "|---|---|---|---|",
    ]  # fmt: skip
    for script in found["scripts"]:
        goals = [row for row in script["figures"] if row["goal"] is not None]
        short = [f"`{row['name']}` {_value(row)}, {row['kind']} {row['goal']:g}" for row in goals if not row["holds"]]
        named = "; ".join([*short, *script["failed"]]).replace("|", "\\|") or "-"
        lines.append(f"| `{script['command']}` | {script['seconds'] / 60:.1f} | {len(goals)} | {named} |")
    lines += ["", "The README's numbers, each with its tolerance:", "", *(f"- {line}" for line in found["readme"])]
    return "\n".join(lines) + "\n"
