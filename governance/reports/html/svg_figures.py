"""Figures as inline SVG, with HTML labels.

Each drawing stretches to its box (`preserveAspectRatio="none"`) with strokes that do not scale, and has a text
alternative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from governance.reports.html.markup import Child, Html, compact, foreign, tag

Point = tuple[float, float]
_INTERVALS = 5  # most between the marks of an axis


@dataclass(frozen=True)
class Curve:
    """A named curve: its line, its points (`dots`), or both."""

    name: str
    points: Sequence[Point]
    style: str = "a"
    dots: bool = False
    line: bool = True


def svg(inner: Sequence[Html], label: str, height: int, class_: str) -> Html:
    """A drawing on a canvas 1000 wide."""
    return tag(
        "svg",
        tag("title", label),
        inner,
        viewBox=f"0 0 1000 {height}",
        preserveAspectRatio="none",
        role="img",
        aria_label=label,
        class_=class_,
    )


def histogram(facts: Mapping[str, Any], write: Callable[[float], str], citation: Html | None = None) -> Html:
    """Stacked histogram: kept documents below removed ones.

    Labels give the first and last edge and the highest count. `citation` links to the evidence, as in `chart`.
    """
    kept, removed, edges = facts["kept"], facts["removed"], facts["edges"]
    most = max(a + b for a, b in zip(kept, removed, strict=True))
    width = 1000 / len(kept)
    drawn = []
    for place, parts in enumerate(zip(kept, removed, strict=True)):
        top = 110.0
        text = f"{write(edges[place])} to {write(edges[place + 1])}: {parts[0]:,} kept, {parts[1]:,} removed"
        bars = []
        for style, count in zip(("a", "gone"), parts, strict=True):
            height = 105 * count / most
            top -= height
            if count:
                bars.append(
                    tag("rect", x=f"{place * width + 1:.1f}", y=f"{top:.1f}", width=f"{width - 2:.1f}",
                        height=f"{max(height, 0.6):.1f}", class_=f"f-{style}")
                )  # fmt: skip
        drawn.append(tag("g", tag("title", text), bars))
    label = f"{facts['stage']}: {facts['name']}: {sum(kept):,} documents kept, {sum(removed):,} removed"
    axis = tag("line", x1="0", x2="1000", y1="110", y2="110", class_="grid")
    ends = tag("p", tag("span", write(edges[0])), tag("span", write(edges[-1])), class_="ends")
    unit = tag("span", f"highest bar: {most:,} documents", class_="unit")
    title = tag("figcaption", tag("b", f"{facts['stage']}: {facts['name']}".replace("_", " ")), citation, unit)
    return tag("figure", title, svg([*drawn, axis], label, 112, "hist"), ends, class_="chart")


def interval_about(
    estimate: tuple[float, float, float],
    scale: tuple[float, float],
    neutral: float | None,
    label: str,
    *,
    hit: bool,
    goal: float | None = None,
    mark: str = "grid",
) -> Html:
    """Interval (low, value, high) on a scale with a neutral mark.

    Another mark is at `goal`. With `hit` it is drawn in the warning colour. `mark` is the class of the marks.
    """
    (low, value, high), (least, most) = estimate, scale

    def at(value: float) -> str:
        return f"{1000 * min(1.0, max(0.0, (value - least) / (most - least))):.0f}" if most > least else "0"

    style = "w" if hit else "f"
    span = tag("line", x1=at(low), x2=at(high), y1="5", y2="5", class_=f"span s-{style}")
    dot = tag("path", d=f"M{at(value)} 5h.01", class_=f"dot s-{style}")
    marks = [tag("line", x1=at(place), x2=at(place), y1="0", y2="10", class_=mark)
             for place in (neutral, goal) if place is not None]  # fmt: skip
    return svg([*marks, span, dot], label, 10, "bar")


def ticks(low: float, high: float) -> list[float]:
    """Round values that span [low, high].

    The steps are 1, 2 or 5 times a power of ten.
    """
    largest = max(abs(low), abs(high))
    span = high - low if high - low > 1e-9 * largest else largest  # equal but for rounding
    span = span if span > 1e-250 else 1.0
    power = 10 ** math.floor(math.log10(span / _INTERVALS))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if span / (power * factor) <= _INTERVALS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, max(last, first + 1) + 1)]


def chart(
    title: str,
    curves: Sequence[Curve],
    x_name: str,
    y_name: str,
    write: Callable[[float], str] = compact,
    citation: Html | None = None,
    ends: tuple[str, str] | None = None,
) -> Html:
    """Line chart of one or more non-empty curves.

    Args:
        title: the figure's caption.
        curves: one or more.
        x_name: what x is, with its unit.
        y_name: what y is, with its unit.
        write: how a value of y is written at the axis.
        citation: links to the evidence.
        ends: words at the ends of the axis of x; without them its least and largest value.
    """
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    left, right = min(xs), max(xs)
    marks = ticks(min(ys), max(ys))
    bottom, top = marks[0], marks[-1]
    height = 300

    def place(point: Point) -> str:
        x = 1000 * (point[0] - left) / ((right - left) or 1)
        y = height * (1 - (point[1] - bottom) / ((top - bottom) or 1))
        return f"{x:.1f} {y:.1f}"

    drawn = []
    for mark in marks:
        y = f"{height * (1 - (mark - bottom) / (top - bottom)):.1f}"
        drawn.append(tag("line", x1="0", x2="1000", y1=y, y2=y, class_="grid"))
    for curve in curves:
        points = curve.points
        if curve.line:
            drawn.append(tag("path", d="M" + "L".join(map(place, points)), class_=f"line s-{curve.style}"))
        if curve.dots or len(points) == 1:
            drawn.append(tag("path", d="".join(f"M{place(p)}h.01" for p in points), class_=f"dot s-{curve.style}"))
    ranges = "; ".join(
        f"{curve.name} from {write(curve.points[0][1])} to {write(curve.points[-1][1])}" for curve in curves
    )
    begin, end = ends or (compact(left), compact(right))
    label = f"{title}: {ranges}; {x_name} {begin} to {end}"
    axis = [tag("span", write(mark)) for mark in reversed(marks)]
    keys = [tag("span", tag("i", class_=f"key k-{curve.style}"), curve.name) for curve in curves]
    legend = tag("span", keys, class_="legend") if len(curves) > 1 else None
    return tag(
        "figure",
        tag("figcaption", tag("b", title), citation, " ", tag("span", y_name, class_="unit"), legend),
        tag(
            "div",
            tag("div", axis, class_="y", aria_hidden="true"),
            svg(drawn, label, height, "plot"),
            tag("div", [tag("span", begin), tag("span", x_name), tag("span", end)], class_="x", aria_hidden="true"),
            class_="axes",
        ),
        class_="chart",
    )


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


def bars(title: Child, lines: Sequence[Bar], keys: Sequence[Html] = (), citation: Html | None = None) -> Html:
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
    return tag("figure", tag("figcaption", tag("b", title), citation, legend), tag("div", drawn, class_="steps"),
               class_="chart")  # fmt: skip


def key(style: str, name: str) -> Html:
    """An entry of a legend."""
    return tag("span", tag("i", class_=f"key k-{style}"), foreign(name))
