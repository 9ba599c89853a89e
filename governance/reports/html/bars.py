"""Labelled horizontal bars on a common scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from governance.reports.html.markup import Child, Html, foreign, tag
from governance.reports.html.svg_figures import svg

STYLES = "abcdef"


@dataclass(frozen=True)
class Bar:
    """One line of a bar chart."""

    name: str
    parts: Sequence[tuple[str, float]]
    """Style and amount of each part."""
    amount: str
    """Text to the right of the bar."""


def bar(parts: Sequence[tuple[str, float]], whole: float, label: str) -> Html:
    """One horizontal bar.

    Each part is a style and an amount, and `whole` fills the width.
    """
    left = 0.0
    drawn = []
    for style, amount in parts:
        width = 1000 * amount / whole if whole > 0 else 0.0
        if width > 0:
            x, w = f"{left:.1f}", f"{max(width, 1.5):.1f}"
            drawn.append(tag("rect", x=x, y="0", width=w, height="10", class_=f"f-{style}"))
        left += width
    track = tag("rect", x="0", y="0", width="1000", height="10", class_="track")
    return svg([track, *drawn], label, 10, "bar")


def bars(title: Child, lines: Sequence[Bar], keys: Sequence[Html] = (), cited: Html | None = None) -> Html:
    """Bars on the scale of the longest, with a legend."""
    whole = max((sum(amount for _, amount in line.parts) for line in lines), default=0.0)
    drawn = [
        tag(
            "div",
            tag("b", foreign(line.name)),
            bar(line.parts, whole, f"{line.name}: {line.amount}"),
            tag("span", line.amount),
        )
        for line in lines
    ]
    legend = tag("span", keys, class_="legend") if len(keys) > 1 else None
    return tag("figure", tag("figcaption", tag("b", title), cited, legend), tag("div", drawn, class_="steps"),
               class_="chart")  # fmt: skip


def key(style: str, name: str) -> Html:
    """An entry of a legend."""
    return tag("span", tag("i", class_=f"key k-{style}"), foreign(name))
