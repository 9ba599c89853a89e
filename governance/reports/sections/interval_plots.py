"""Dot plots with intervals, one panel per axis.

A dot is an estimate, a line its 95 % interval, an upright mark the value of no difference (Cleveland, 1984).
Significant rows have the warning colour. Intervals beyond the scale end at its edge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from governance.reports.html.markup import Html, compact, foreign, share, tag
from governance.reports.html.svg_figures import interval_about
from governance.reports.sections.bias_sections import NEUTRAL, is_significant
from governance.reports.sections.group_words import bounds, spaced, theme, written

PANEL_ROWS = 10
_TAIL = 0.02  # of the interval ends on either side that the scale may cut off
_LEAST = 1e-3  # of a ratio, for its logarithm
_WIDEST = math.log(8)  # of a ratio on either side of 1: wider intervals are uninformative

Row = Mapping[str, Any]


def panels(rows: Sequence[Row], cited: Html | None = None, *, by_theme: bool = False) -> Html | None:
    """One panel per axis for rows of one measure.

    The result is None where no row has an interval.

    Args:
        rows: of one metric; rows of several languages share the scale.
        cited: evidence mark of the first panel.
        by_theme: label rows with the theme as well.
    """
    shown = [row for row in rows if None not in (row["value"], row["lower"], row["upper"])]
    if not shown:
        return None
    scale = scale_of(shown)
    axes = sorted({str(row["axis"] or "") for row in shown})
    made = []
    for axis in axes:
        mine = [row for row in shown if str(row["axis"] or "") == axis]
        made.append(_panel(axis, mine, scale, cited if axis == axes[0] else None, by_theme))
    return tag("div", made, class_="panels")


def scale_of(rows: Sequence[Row]) -> tuple[float, float]:
    """Ends of the scale, without the longest tails of intervals."""
    neutral = _neutral(rows[0])
    lows = sorted(_at(row["lower"], row) for row in rows)
    highs = sorted(_at(row["upper"], row) for row in rows)
    dots = [_at(row["value"], row) for row in rows]
    cut = int(_TAIL * len(rows))
    middle = [] if neutral is None else [0.0]
    low, high = min([lows[cut], *dots, *middle]), max([highs[len(highs) - 1 - cut], *dots, *middle])
    if neutral == 1.0:
        low, high = max(low, -_WIDEST), min(high, _WIDEST)
    pad = 0.0 if neutral == 1.0 else 0.03 * ((high - low) or 1.0)
    return (low - pad if neutral is not None or low < 0 else 0.0), high + pad


def _neutral(row: Row) -> float | None:
    return NEUTRAL.get(row["metric"])


def _at(value: float, row: Row) -> float:
    """Position of a value: log ratio, difference or share."""
    neutral = _neutral(row)
    return math.log(max(value, _LEAST)) if neutral == 1.0 else value - (neutral or 0.0)


def _back(place: float, row: Row) -> str:
    neutral = _neutral(row)
    if row["metric"] == "share":
        return share(place)
    return f"{math.exp(place):.3g}" if neutral == 1.0 else f"{place + (neutral or 0.0):.2g}"


def _panel(axis: str, rows: Sequence[Row], scale: tuple[float, float], cited: Html | None, by_theme: bool) -> Html:
    hits = {id(row) for row in rows if is_significant(row)}
    kept = sorted(rows, key=lambda row: (id(row) not in hits, -(row["n"] or 0)))[:PANEL_ROWS]
    kept.sort(key=lambda row: (row["value"], str(row["group"])))
    neutral = 0.0 if _neutral(rows[0]) is not None else None
    lines = []
    for row in kept:
        name = (
            f"{spaced(row['group'] or row['axis'])} · {theme(row)}" if by_theme else spaced(row["group"] or row["axis"])
        )
        label = f"{name}: {written(row)}, 95 % interval {bounds(row)}, n = {row['n'] or 0:,}"
        estimate = (_at(row["lower"], row), _at(row["value"], row), _at(row["upper"], row))
        drawn = interval_about(estimate, scale, neutral, label, hit=id(row) in hits)
        lines.append(tag("div", tag("span", foreign(name)), drawn, class_="hit" if id(row) in hits else None))
    rest = len(rows) - len(kept)
    ends = [tag("span", _back(scale[0], rows[0])), tag("span", _back(scale[1], rows[0]))]
    if neutral is not None and scale[0] < 0 < scale[1]:
        place = 100 * -scale[0] / (scale[1] - scale[0])
        if 15 < place < 85:  # otherwise it would overlap an end label
            ends.insert(1, tag("span", _back(0.0, rows[0]), class_="at", style=f"left:{place:.1f}%"))
    axis_line = tag("div", tag("span", f"{rest:,} more in the table" if rest else ""),
                    tag("div", ends, class_="ends"), class_="axis", aria_hidden="true")  # fmt: skip
    title = tag("figcaption", tag("b", foreign(spaced(axis) or "all")), cited)
    return tag("figure", title, tag("div", lines, axis_line, class_="dots"), class_="panel")


def test_counts(rows: Sequence[Row]) -> str:
    """Number of tested and significant rows, in words."""
    tested = [row for row in rows if row["q"] is not None]
    hits = sum(is_significant(row) for row in tested)
    return (
        f"{hits:,} of {len(tested):,} tested differences are significant (q below {compact(0.05)})"
        if tested
        else "not tested"
    )
