"""Document sections: distributions and examples."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from governance.reports.facts.citations import cite, cite_each
from governance.reports.facts.distributions import write_edge
from governance.reports.html.markup import Html, fold, foreign, table, tag
from governance.reports.html.svg_figures import histogram, key


def documents_folded(found: Mapping[str, Any]) -> Iterator[Html]:
    """Histograms with medians, and examples of kept documents."""
    shown = found["distributions"]
    if shown:
        cites = [cite(found, f"/distributions/{index}") for index in range(len(shown))]
        drawn = [histogram(one, write_edge, cited) for one, cited in zip(shown, cites, strict=True)]
        rows = [[one["name"].replace("_", " "), one["stage"], *_medians(one)] for one in shown]
        head = ["measure", "stage", "kept", "median between", "removed", "median between"]
        note = "Sizes in bins of twice the width of the one before; shares and scores in twentieths."
        yield fold(
            f"Distributions of {len(shown)} measures",
            tag("p", key("a", "kept by the stage"), key("gone", "removed by it"), class_="legend"),
            tag("p", note, class_="note"),
            tag("div", drawn, class_="multiples"),
            table("Medians", head, rows, numeric=(2, 3, 4, 5), cited=cite_each(found, "/distributions", len(shown))),
        )
    examples = [
        tag("div", tag("p", tag("code", foreign(row["id"])), class_="note"), tag("p", foreign(row["text"])),
            class_="sample")
        for row in found["kept"]
    ]  # fmt: skip
    if examples:
        yield fold("Examples of kept documents", tag("p", "Masked as the removed ones are.", cite(found, "/kept"),
                                                     class_="note"), *examples)  # fmt: skip


def _medians(one: Mapping[str, Any]) -> list[str]:
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
