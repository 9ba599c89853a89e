"""Shares of origins and groups, and coverage of the word lists.

Suite `shares`: languages, sources, licences, years, countries, dialects.

    share          = documents of the value / documents           in 0 .. 1
    share_of_words = words of the value / words                   in 0 .. 1
    hhi            = sum over values of share^2                   in 0 .. 1; 1 / hhi is a number of equally large values

The Herfindahl-Hirschman index is that of Hirschman 1964, "The Paternity of an Index", American Economic Review 54(5),
761-762. Documents of the value "unknown" have a share, and are left out of the index.

Intervals: delete-a-group jackknife (Kott 2001) over 64 buckets of domains, on the logit scale. Where each value is in
one bucket (as a domain is) the numbers only describe this corpus and have no interval. A dimension shows its `most`
largest values, the rest as "(others)"; the index is of all. In a row the dimension is the `axis`, the value the
`group`; `n` is the documents (words) of the dimension.

Suite `representation`: the documents that mention each group, by language.

    share             = documents that mention the group / documents of the language             in 0 .. 1
    axis_share        = documents that mention the group / documents that mention any of its axis   in 0 .. 1
    per_million_words = mentions x 10^6 / words of the language                               mentions per million words

Intervals: delete-a-group jackknife (Kott 2001) over 64 buckets of domains, on the logit scale for shares and on the log
scale for the rate; a rate of fewer than 10 mentions has the interval of a Poisson count of effective units. `n` is the
denominator. A listed group without a mention has a row of zeros, with the upper bound
for that many clusters. The numbers count mentions, not what a text states about a group.

The same suite, of all languages:

    coverage = documents in languages with identity terms / documents                       in 0 .. 1

One row of all languages for the identity terms (`instrument` is None), one for each word list or classifier that scores
sentences, and one for the attributes of associations. The whole corpus is known, so this is not an estimate: [lower,
upper] are the worst and the best case for uncounted documents (Manski 1989, "Anatomy of the Selection Problem", Journal
of Human Resources 24(3)): statements about mentioned groups cover at least `lower` of the documents and at most all of
them. A gate with the rule `whole_ci` and a minimum is therefore inconclusive, never passed, if too many documents were
not counted; the note lists their languages.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from governance.checks.bias.count_tables import by_bucket, stacked
from governance.checks.bias.interval_rows import ALL, Row, interval_row, interval_rows
from governance.checks.bias.statistics import (
    BUCKETS,
    LOGIT,
    Estimates,
    Floats,
    Integers,
    jackknife,
    rate_estimates,
    share_estimates,
)

Flags = npt.NDArray[np.bool_]

MAX_SHARES = 50
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


def share_rows(table: pa.Table, most: int = MAX_SHARES) -> list[Row]:
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
    places, buckets = cells.places[rows_here], cells.buckets[rows_here]
    numbers = cells.numbers[rows_here].astype(np.float64)
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


Groups = Mapping[str, Sequence[tuple[str, str]]]
"""language -> the (axis, group) of its term list."""


def known_groups(table: pa.Table, listed: Groups) -> dict[str, list[tuple[str, str]]]:
    """Groups listed or counted in a table, sorted."""
    found: dict[str, set[tuple[str, str]]] = {language: set(groups) for language, groups in listed.items()}
    for language, axis, group in by_bucket(table, ("language", "axis", "group"), "documents"):
        found.setdefault(language, set()).add((axis, group))
    return {language: sorted(found[language]) for language in sorted(found)}


def representation_rows(counts: Mapping[str, pa.Table], listed: Groups) -> list[Row]:
    """The rows of the suite `representation`.

    Args:
        counts: the tables documents, axes, groups.
        listed: groups with terms, so that one without a mention has rows as well.
    """
    documents = by_bucket(counts["documents"], ("language",), "documents")
    words = by_bucket(counts["documents"], ("language",), "words")
    axes = by_bucket(counts["axes"], ("language", "axis"), "documents")
    mentioning = by_bucket(counts["groups"], ("language", "axis", "group"), "documents")
    mentions = by_bucket(counts["groups"], ("language", "axis", "group"), "mentions")
    rows: list[Row] = []
    for language, groups in known_groups(counts["groups"], listed).items():
        if (language,) not in documents or not groups:
            continue
        keys = [(language, axis, group) for axis, group in groups]
        part = stacked(mentioning, keys)
        whole = np.broadcast_to(documents[(language,)], part.shape)
        on_axis = stacked(axes, [key[:2] for key in keys])
        all_words = np.broadcast_to(words[(language,)], part.shape)
        for metric, found, of in (
            ("share", share_estimates(part, whole), whole),
            ("axis_share", share_estimates(part, on_axis), on_axis),
            ("per_million_words", rate_estimates(stacked(mentions, keys), all_words), all_words),
        ):
            names = [{"metric": metric, "language": language, "axis": axis, "group": group} for axis, group in groups]
            rows += interval_rows(names, found, of.sum(axis=1))
    return rows


COVERAGE = "coverage"
_NAMED = 8  # languages that a note names


def coverage_rows(
    documents: pa.Table,
    listed: Collection[str],
    scored: Mapping[str, Collection[str]],
    classified: Mapping[str, Collection[str]] | None = None,
) -> list[Row]:
    """The rows of the metric `coverage`; none for a corpus without documents.

    Args:
        documents: the count table of that name.
        listed: the languages with identity terms.
        scored: scoring list -> its languages.
        classified: classifier of sentences -> its languages.
    """
    sizes: dict[str, int] = {}
    for code, number in zip(documents["language"].to_pylist(), documents["documents"].to_pylist(), strict=True):
        sizes[code] = sizes.get(code, 0) + number
    whole = sum(sizes.values())
    rows: list[Row] = []
    if not whole:
        return rows
    models = classified or {}
    lists: list[tuple[str | None, Collection[str]]] = [(None, listed), *sorted({**scored, **models}.items())]
    for instrument, languages in lists:
        without = {code: number for code, number in sizes.items() if code not in languages and number}
        share = 1 - sum(without.values()) / whole
        numbers = {"value": share, "lower": share, "upper": 1.0, "n": whole}
        names = {"metric": COVERAGE, "language": ALL, "instrument": instrument}
        kind = "word list" if instrument is None else f"{instrument} {'classifier' if instrument in models else 'list'}"
        rows.append(interval_row(names, numbers, uncovered_note(without, whole, kind)))
    return rows


def uncovered_note(without: Mapping[str, int], whole: int, kind: str = "word list") -> str:
    """Documents that no word list (`kind`) covers, by language; "" if none."""
    if not without:
        return ""
    ordered = sorted(without.items(), key=lambda item: (-item[1], item[0]))
    named = [
        f"{'language unknown' if code == 'und' else code} {_percent(number / whole)}"
        for code, number in ordered[:_NAMED]
    ]
    if rest := ordered[_NAMED:]:
        named.append(f"{len(rest)} more {_percent(sum(number for _, number in rest) / whole)}")
    share = _percent(sum(without.values()) / whole)
    return f"{share} of documents are in languages that no {kind} covers: {', '.join(named)}"


def _percent(share: float) -> str:
    """Percentage of two digits, never 0 for little or 100 for most."""
    percent = 100 * share
    if percent < 0.1:
        return "< 0.1 %"
    if 99.9 < percent < 100:
        return "> 99.9 %"
    return f"{percent:.1f} %" if percent < 10 or 99.5 <= percent < 100 else f"{percent:.0f} %"
