"""Representation: shares of languages, sources, licences, years, countries, dialects.

    share          = documents of the value / documents           in 0 .. 1
    share_of_words = words of the value / words                   in 0 .. 1
    hhi            = sum over values of share^2                   in 0 .. 1; 1 / hhi is a number of equally large values

The Herfindahl-Hirschman index is that of Hirschman 1964, "The Paternity of an Index", American Economic Review 54(5),
761-762. Documents of the value "unknown" have a share, and are left out of the index.

Intervals: delete-a-group jackknife (Kott 2001) over 64 buckets of domains, on the logit scale. Where each value is in
one bucket (as a domain is) the numbers only describe this corpus and have no interval. A dimension shows its `most`
largest values, the rest as "(others)"; the index is of all. In a row the dimension is the `axis`, the value the
`group`; `n` is the documents (words) of the dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from governance.checks.bias.interval_rows import Row, interval_rows
from governance.checks.bias.statistics import BUCKETS, LOGIT, Estimates, Floats, Integers, jackknife, share_estimates

Flags = npt.NDArray[np.bool_]

MOST = 50
UNKNOWN = "unknown"
REST = "(others)"
_ONE_BUCKET = "each value is in one bucket: a description of this corpus, without an interval"


@dataclass(frozen=True)
class Cells:
    """Counts of one dimension by value and bucket."""

    values: list[str]
    places: Integers
    """[cells] of `values`"""
    buckets: Integers
    numbers: Integers

    def by_bucket(self, chosen: Flags) -> Integers:
        """Bucket sums of the cells whose value is in `chosen`."""
        sums = np.zeros(BUCKETS, np.int64)
        places = chosen[self.places]
        np.add.at(sums, self.buckets[places], self.numbers[places])
        return sums


def share_rows(table: pa.Table, most: int = MOST) -> list[Row]:
    """The rows of the suite `shares`.

    `table` is the count table, `most` the values shown of a dimension.
    """
    rows: list[Row] = []
    for dimension in sorted(pc.unique(table["dimension"]).to_pylist()):
        part = table.filter(pc.equal(table["dimension"], dimension))
        for unit, suffix in (("documents", ""), ("words", "_of_words")):
            cells = _cells(part, unit)
            if cells.values:
                rows += _dimension_rows(dimension, suffix, cells, most)
    return rows


def _cells(part: pa.Table, unit: str) -> Cells:
    grouped = part.group_by(["value", "bucket"], use_threads=False).aggregate([(unit, "sum")])
    grouped = grouped.filter(pc.greater(grouped[f"{unit}_sum"], 0)).sort_by(
        [("value", "ascending"), ("bucket", "ascending")]
    )
    encoded = pc.dictionary_encode(grouped["value"]).combine_chunks()
    return Cells(
        encoded.dictionary.to_pylist(),
        encoded.indices.to_numpy().astype(np.int64),
        grouped["bucket"].to_numpy().astype(np.int64),
        grouped[f"{unit}_sum"].to_numpy().astype(np.int64),
    )


def _dimension_rows(dimension: str, suffix: str, cells: Cells, most: int) -> list[Row]:
    known = np.array([value != UNKNOWN for value in cells.values])
    buckets_of = np.bincount(cells.places, minlength=len(known))[known]
    note = _ONE_BUCKET if len(buckets_of) > 1 and (buckets_of == 1).all() else ""
    shown = _largest(cells, most)
    part = np.array(list(shown.values()), np.int64)
    whole = part.sum(axis=0, keepdims=True)
    names: list[dict[str, str | None]] = [
        {"metric": f"share{suffix}", "axis": dimension, "group": value} for value in shown
    ]
    found = _described(share_estimates(part, whole), note)
    rows = interval_rows(names, found, [int(whole.sum())] * len(names), [note] * len(names))
    if known.any():
        index = _described(concentration(cells, known), note)
        name = {"metric": f"hhi{suffix}", "axis": dimension}
        rows += interval_rows([name], index, [int(cells.by_bucket(known).sum())], [note])
    return rows


def _largest(cells: Cells, most: int) -> dict[str, Integers]:
    totals = np.bincount(cells.places, cells.numbers, minlength=len(cells.values))
    order = np.argsort(-totals, kind="stable")
    number = np.arange(len(totals))
    shown = {cells.values[place]: cells.by_bucket(number == place) for place in order[:most].tolist()}
    if len(order) > most:
        shown[REST] = cells.by_bucket(np.isin(number, order[most:]))
    return shown


def concentration(cells: Cells, known: Flags) -> Estimates:
    """Concentration over the known values, [values] of booleans; one row."""
    rows_here = known[cells.places]
    places, buckets, numbers = (
        cells.places[rows_here],
        cells.buckets[rows_here],
        cells.numbers[rows_here].astype(np.float64),
    )
    totals = np.bincount(places, numbers, minlength=len(known))
    # the sum of (total - part)^2 over values, for each bucket, from the cells that are not 0
    change = np.bincount(buckets, numbers**2 - 2 * totals[places] * numbers, minlength=BUCKETS)
    squares = np.concatenate(([0.0], change)) + float(np.dot(totals, totals))
    wholes = cells.by_bucket(known)[None, :]

    def index(whole: Floats) -> Floats:
        return np.asarray(squares[None, :] / whole**2)

    return jackknife(index, (wholes,), wholes, LOGIT)


def _described(found: Estimates, note: str) -> Estimates:
    if not note:
        return found
    unknown = np.full_like(found.value, np.nan)
    return Estimates(found.value, unknown, unknown, unknown, found.error, found.degrees)
