"""Expectations of gates: name, required fields, and meaning of the observed result.

A new expectation is an entry of `Expectation` and a row of `NEEDS` here, and its evaluation in
`governance/checks/evaluations.py`. Policy, approvals, preconditions, results, waivers and report read these two tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Expectation = Literal[
    "between", "quantile_between", "mean_between", "not_null", "in_set", "unique", "match_regex", "row_count_between",
    "columns_present", "interval_between", "gx",
]  # fmt: skip


@dataclass(frozen=True)
class Needs:
    """Requirements of an expectation."""

    judges: Literal["rows", "column", "table", "intervals", "named"]
    """Each value of a column; a statistic of a column; the table itself; rows with an interval; or what `gx` names."""
    bounds: bool = False
    """It needs `min`, `max` or both."""
    field: Literal["", "quantile", "regex", "values"] = ""
    """The gate's field that it cannot do without."""
    numbers: Literal["", "compared", "computed"] = ""
    """Finite numbers are required; where a number is computed of them, integers that float64 holds exactly."""
    missing: bool = False
    """Missing values are judged as well."""
    observes: Literal["number", "share", "names", ""] = ""
    """Observed value: a number to compare with the bounds, a share of rows, names of what is absent, or unknown. Where
    each row is judged and not all must hold, it is a share."""
    subject: str = "{column}"
    """Pattern over the gate's fields of what is compared, for the reader of a threshold."""

    @property
    def column(self) -> bool:
        """Return whether the gate names a column."""
        return self.judges in ("rows", "column")

    @property
    def allows_values(self) -> bool:
        """Return whether rows may have only the gate's `values`.

        Otherwise `values` are columns that the table must have.
        """
        return self.field == "values" and self.judges == "rows"


NEEDS: Mapping[Expectation, Needs] = {
    "between": Needs("rows", bounds=True, numbers="compared", observes="number"),
    "quantile_between": Needs(
        "column", bounds=True, field="quantile", numbers="computed", observes="number",
        subject="{quantile:g} quantile of {column}",
    ),
    "mean_between": Needs("column", bounds=True, numbers="computed", observes="number", subject="mean of {column}"),
    "not_null": Needs("rows", missing=True, observes="share"),
    "in_set": Needs("rows", field="values", observes="share"),
    "unique": Needs("rows", observes="share"),
    "match_regex": Needs("rows", field="regex", observes="share"),
    "row_count_between": Needs("table", bounds=True, observes="number", subject="rows"),
    "columns_present": Needs("table", field="values", observes="names", subject="columns"),
    "interval_between": Needs("intervals", bounds=True, observes="number"),
    "gx": Needs("named"),
}  # fmt: skip


def bound_text(bound: float) -> str:
    """A bound as its shortest exact decimal: 0.3333333, 1000001.

    Fewer digits would name a bound that a result beyond it meets.
    """
    return repr(float(bound)).removesuffix(".0")
