"""The report's section on documents: how they are distributed, and examples of those that stayed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from governance.reports.distributions import write_edge
from governance.reports.figures import histogram
from governance.reports.markup import Html, foreign, join, table, tag
from governance.reports.origins import cite


def documents(found: Mapping[str, Any]) -> Html:
    """Histograms of what the stages measured, the same in numbers, and examples."""
    shown = found["distributions"]
    if not shown:
        return tag("p", "No stage has measured its documents.", class_="none")
    keys = [
        tag("span", tag("i", class_="key k-a"), "kept by the stage"),
        tag("span", tag("i", class_="key k-gone"), "removed by it"),
    ]
    cites = [cite(found, f"/distributions/{index}") for index in range(len(shown))]
    drawn = [histogram(one, write_edge, cited) for one, cited in zip(shown, cites, strict=True)]
    rows = [[one["stage"], one["name"], *_middle(one)] for one in shown]
    head = ["stage", "measure", "documents kept", "middle one between", "removed", "middle one between"]
    examples = [
        tag(
            "div",
            tag("p", tag("code", foreign(row["id"])), class_="note"),
            tag("p", foreign(row["text"])),
            class_="sample",
        )
        for row in found["kept"]
    ]
    return join(
        [
            tag("p", keys, class_="legend"),
            tag(
                "p",
                "Sizes in bins of twice the width of the one before; shares and scores in twentieths.",
                class_="note",
            ),
            tag("div", drawn, class_="multiples"),
            table("The middle document of each", head, rows, numeric=(2, 3, 4, 5), cites=cites),
            tag("h3", "Documents that stayed, for example", cite(found, "/kept")) if examples else None,
            *examples,
        ]
    )


def _middle(one: Mapping[str, Any]) -> list[str]:
    cells = []
    for side in ("kept", "removed"):
        counts = one[side]
        total = sum(counts)
        seen = list(itertools.accumulate(counts))
        place = next((place for place, count in enumerate(seen) if 2 * count >= total), 0)
        cells.append(f"{total:,}")
        between = f"{write_edge(one['edges'][place])} and {write_edge(one['edges'][place + 1])}"
        cells.append(between if total else "")
    return cells
