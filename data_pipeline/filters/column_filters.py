"""Bounds on a kept column of a document.

    [[data.filters]]
    name = "recent"
    column = "date"          # one that `columns` of a source keeps
    min = "2015-01-01"
    missing = "keep"         # default "remove"

Conditions are `min`, `max` (both inclusive), `one_of` and `present`; a document must meet all. A bound that is a number
compares numbers, and text that is one (all values of a CSV file are text). A bound that is an ISO date or time compares
dates: a day holds all its hours, and a time without an offset is in UTC. Any other bound compares text by code points;
`min` and `max` that are a year or a month as text ("2015", "2015-06") are refused.

A document outside the bounds is removed as `column:<name>`. One whose value is missing, or of another type than the
bound, is removed as `column_missing:<name>`, unless `missing` is "keep".
"""

from __future__ import annotations

import datetime
import json
import re
from typing import Any, Literal

import pyarrow as pa

from data_pipeline.documents import date_of, number_of
from governance.config import Section

Bound = bool | int | float | str
_YEAR_OR_MONTH = re.compile(r"[0-9]{4}(-[0-9]{2})?")


class ColumnBounds(Section):
    """Conditions on the value of a kept column."""

    column: str = ""
    """The kept column that decides: a name in `columns` of a source; "": `filter` decides."""
    min: Bound | None = None
    """The least value that stays: a number, an ISO date or time, or text."""
    max: Bound | None = None
    """The greatest value that stays."""
    one_of: tuple[Bound, ...] = ()
    """The values that stay; none: all."""
    present: bool | None = None
    """true: documents with a value stay; false: those without one."""
    missing: Literal["keep", "remove"] = "remove"
    """Decision on a document without a value, or with one of another type than the bounds."""

    def conditions(self) -> dict[str, Any]:
        """Conditions that are set, by field."""
        unset: dict[str, Any] = {"min": None, "max": None, "one_of": [], "present": None, "missing": "remove"}
        values = self.model_dump(mode="json", include=set(unset))
        return {name: value for name, value in values.items() if value != unset[name]}


def require_bounds(bounds: ColumnBounds) -> None:
    """Refuse conditions that no value could be compared with.

    Raises:
        ValueError: there is none, or they exclude one another.
    """
    given = [bound for bound in (bounds.min, bounds.max) if bound is not None]
    if not given and not bounds.one_of and bounds.present is None:
        raise ValueError(f"column {bounds.column!r} has no condition: give min, max, one_of or present")
    if bounds.present is not None and (given or bounds.one_of or bounds.missing == "keep"):
        raise ValueError('present excludes bounds: for bounds on a value give missing = "keep" or "remove" instead')
    numbers = [*given, *(one for one in bounds.one_of if not isinstance(one, bool))]
    if any(isinstance(bound, int | float) and number_of(bound) is None for bound in numbers):
        raise ValueError(
            "min and max are finite numbers of at most 308 digits, dates or text; for true and false give one_of"
        )
    if parts := [bound for bound in given if isinstance(bound, str) and _YEAR_OR_MONTH.fullmatch(bound)]:
        year = parts[0][:4]
        raise ValueError(
            f'min or max = "{parts[0]}" would compare text, not dates: give a whole date, such as "{year}-01-01" as '
            f'min or "{year}-12-31" as max, or for a column of years the number {year}, unquoted'
        )
    if len(given) == 2:
        kinds = {_kind(bound) for bound in given}
        if len(kinds) > 1:
            raise ValueError(f"min is a {_kind(given[0])} and max a {_kind(given[1])}; give two of one kind")
        if _within(given[0], given[1], lower=False) is False:
            raise ValueError(f"min = {given[0]!r} is above max = {given[1]!r}: no document could stay")


def column_reasons(name: str, bounds: ColumnBounds, batch: pa.RecordBatch) -> tuple[list[str], int]:
    """Reasons of removed documents, and how many had no value to compare.

    The reason is "" where a document stays.
    """
    if "columns" not in batch.schema.names:
        values: list[Any] = [None] * batch.num_rows
    else:
        rows = batch.column("columns").to_pylist()
        values = [json.loads(row).get(bounds.column) if row else None for row in rows]
    found = [_reason(name, bounds, value) for value in values]
    missing = "" if bounds.missing == "keep" else f"column_missing:{name}"
    return [missing if reason is None else reason for reason in found], found.count(None)


def _reason(name: str, bounds: ColumnBounds, value: Any) -> str | None:
    """Reason to remove a value; "" to keep it, None if incomparable."""
    if bounds.present is not None:
        return "" if (value is not None) == bounds.present else f"column:{name}"
    fits = [
        *([] if bounds.min is None else [_within(value, bounds.min, lower=True)]),
        *([] if bounds.max is None else [_within(value, bounds.max, lower=False)]),
        *([_among(value, bounds.one_of)] if bounds.one_of else []),
    ]
    if None in fits:
        return None
    return "" if all(fits) else f"column:{name}"


def _within(value: Any, bound: Bound, *, lower: bool) -> bool | None:
    """Return whether a value is within a bound; None if incomparable."""
    kind = _kind(bound)
    found, limit = _as(kind, value), _as(kind, bound)
    if found is None:
        return None
    if kind == "date" and isinstance(limit, datetime.date) and not isinstance(limit, datetime.datetime):
        found = found.date() if isinstance(found, datetime.datetime) else found
    elif kind == "date" and not isinstance(found, datetime.datetime):
        found = datetime.datetime.combine(found, datetime.time(), datetime.UTC)
    return bool(found >= limit if lower else found <= limit)


def _among(value: Any, listed: tuple[Bound, ...]) -> bool | None:
    at_least = [_within(value, one, lower=True) for one in listed]
    if at_least == [None] * len(listed):
        return None
    return any(above and _within(value, one, lower=False) for above, one in zip(at_least, listed, strict=True))


def _kind(bound: Bound) -> str:
    if isinstance(bound, bool):
        return "truth value"
    if isinstance(bound, int | float):
        return "number"
    return "text" if date_of(bound) is None else "date"


def _as(kind: str, value: Any) -> Any:
    """The value as this kind; None if it is of another kind."""
    if kind == "truth value":
        return value if isinstance(value, bool) else None
    if kind == "number":
        return number_of(value)
    if not isinstance(value, str):
        return None
    return date_of(value.strip()) if kind == "date" else value
