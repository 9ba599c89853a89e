"""HTML by functions that escape all external text.

Documents, ids, file names and reasons are untrusted: they may contain tags, control characters, lone surrogates or
direction marks. All of them pass through `escape`.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
_VOID = frozenset({"meta", "br", "hr", "col", "wbr"})

UNKNOWN = "unknown"
_FEW, _MIDDLE = 3, 6  # columns that fit on a phone, in a narrow window


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def visible(text: str) -> str:
    """Make control characters, surrogates and direction marks visible.

    The result can neither control a terminal nor reverse adjacent text.
    """
    return _CONTROL.sub("\ufffd", text.encode("utf-8", "replace").decode("utf-8"))


def escape(text: str) -> Html:
    """Escape any text for a page, control characters made visible."""
    return Html(html.escape(visible(text), quote=True))


Child = str | Html | None | Iterable[Any]


def tag(name: str, /, *children: Child, **attributes: str | None) -> Html:
    """An element; `class_` gives `class`, `data_x` gives `data-x`.

    An attribute that is None is left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Html:
    """Children one after the other.

    Text is escaped, None is omitted, lists are flattened.
    """
    parts = []
    for child in children:
        if isinstance(child, Html):
            parts.append(str(child))
        elif isinstance(child, str):
            parts.append(str(escape(child)))
        elif child is not None:
            parts.append(str(join(child)))
    return Html("".join(parts))


def foreign(text: str) -> Html:
    """Text from a corpus, isolated from the direction of its neighbours."""
    return tag("bdi", text, dir="auto")


def digest(value: str) -> Html:
    """First 16 digits of a digest; the title holds all of it."""
    return tag("code", value[:16], title=value) if value else Html("")


ROWS_SHOWN = 10
"""Rows of a table that are open; a longer table is folded below them."""
_SPARE = 2  # rows too few to fold


def fold(summary: Child, *inner: Child, id_: str | None = None, open_: bool = False) -> Html:
    """A closed section that the reader can open."""
    return tag("details", tag("summary", summary), *inner, id=id_, open="" if open_ else None)


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[Child]],
    numeric: Sequence[int] = (),
    citation: Html | None = None,
    shown: int = ROWS_SHOWN,
) -> Html:
    """A table with a caption and headed columns.

    The first cell of a row heads it; `numeric` columns align right.

    Ten rows are open; a longer table is folded below them and replaces them when unfolded. On a narrow screen a row
    becomes a block with column names next to its values (`--c2` to `--c9`), so that nothing is cut off.

    Args:
        caption: what the table holds.
        head: names of the columns.
        rows: cells.
        numeric: columns of numbers.
        citation: mark that links to the table's evidence.
        shown: number of open rows.
    """
    body = list(rows)
    if not body:
        return tag("p", f"{caption}: none.", class_="none")
    if len(body) <= shown + _SPARE:
        return _grid([caption, citation], head, body, numeric)
    first = _grid(
        [caption, tag("span", f" {shown} of {len(body):,}", class_="unit"), citation], head, body[:shown], numeric
    )
    whole = _grid([caption, citation], head, body, numeric)
    return tag("div", first, fold(f"All {len(body):,} rows", whole), class_="rows")


def _grid(caption: Child, head: Sequence[str], rows: Sequence[Sequence[Child]], numeric: Sequence[int]) -> Html:
    def cell(index: int, child: Child) -> Html:
        kind = "n" if index in numeric else None
        return tag("th", child, scope="row") if index == 0 else tag("td", child, class_=kind)

    body = [tag("tr", [cell(index, child) for index, child in enumerate(row)]) for row in rows]
    header = [tag("th", name, scope="col", class_="n" if index in numeric else None) for index, name in enumerate(head)]
    names = ";".join(f"--c{index + 1}:'{name}'" for index, name in enumerate(head) if index)
    width = "few" if len(head) <= _FEW else "mid" if len(head) <= _MIDDLE else "many"
    return tag("table", tag("caption", caption), tag("thead", tag("tr", header)), tag("tbody", body),
               class_=width, style=names or None)  # fmt: skip


def number(value: float | None, digits: int | None = None) -> str:
    """A number with thousands separators.

    `digits` after the point; by default 3 for a float, 0 for an integer.
    """
    if value is None:
        return UNKNOWN
    if isinstance(value, int) and digits is None:
        return f"{value:,}"
    return f"{value:,.{3 if digits is None else digits}f}"


def compact(value: float | None) -> str:
    """Number with four significant digits: 3.2e-05, 12,340."""
    if value is None:
        return UNKNOWN
    if value and not 1e-3 <= abs(value) < 1e7:
        return f"{value:.3g}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def alike(*values: float) -> list[str]:
    """Numbers of one measure with equal decimals, enough for their spread."""
    most, spread = max(map(abs, values)), max(values) - min(values)
    if not 1e-3 <= most < 1e7:
        return [compact(value) for value in values]
    least = min(most, 10 * spread or most)
    decimals = min(max(0, 2 - math.floor(math.log10(least))), 6)
    while decimals and all(f"{value:.{decimals}f}".endswith("0") for value in values):
        decimals -= 1
    return [f"{value:,.{decimals}f}" for value in values]


def chance(value: float) -> str:
    """A p or q value: "< 0.001" below that, else three decimals."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def with_unit(value: float, units: Sequence[str]) -> str:
    """Value in the unit that fits it.

    Each unit is a thousand times the one before. The value as written decides: 999.97 Wh is 1 kWh.
    """
    for unit in units[:-1]:
        if _three_digits(value) < 1000:
            return f"{decimal(value)} {unit}"
        value /= 1000
    return f"{decimal(value)} {units[-1]}"


def _three_digits(value: float) -> float:
    return abs(float(f"{value:.3g}"))


def size(value: int | None) -> str:
    """Bytes in powers of 1000: 1.23 GB."""
    return UNKNOWN if value is None else with_unit(value, ("B", "kB", "MB", "GB", "TB", "PB"))


def energy(joules: float | None) -> str:
    """Joules as watt-hours: 0.234 Wh, 1.2 kWh."""
    return UNKNOWN if joules is None else with_unit(joules / 3600, ("Wh", "kWh", "MWh"))


def kilowatt_hours(joules: float | None) -> str:
    """Joules as kilowatt-hours, whatever their size: 0.000234 kWh, 1,250 kWh."""
    return UNKNOWN if joules is None else f"{decimal(joules / 3.6e6)} kWh"


def decimal(value: float) -> str:
    """Number with three significant digits, without exponent where readable."""
    if value and _three_digits(value) < 1e-6:
        return f"{value:.2e}"
    if _three_digits(value) >= 1000:
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):.10f}".rstrip("0").rstrip(".")


def share(value: float | None) -> str:
    """A share as a percentage; 100 % is the whole."""
    if value is None:
        return UNKNOWN
    digits = 3
    while value < 1 and digits < 15 and float(f"{100 * value:.{digits}g}") == 100:
        digits += 1
    return f"{100 * value:.{max(digits, 4 if value >= 1 else 3)}g} %"


def meters(methods: Sequence[str]) -> str:
    """Methods of measurement, without process numbers; "" for none."""
    own = [method for method in methods if not method.startswith("shared: ")]
    other = "another command on the node metered some of the work"
    return "; ".join([*own, other] if len(own) < len(methods) else own)


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours."""
    if seconds is None:
        return UNKNOWN
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
