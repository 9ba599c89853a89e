"""Coverage: share of documents in languages that the word lists cover.

    coverage = documents in languages with identity terms / documents                       in 0 .. 1

One row of all languages for the identity terms (`instrument` is None), one for each word list or classifier that scores
sentences, and one for the attributes of associations. The whole corpus is known, so this is not an estimate: [lower,
upper] are the worst and the best case for uncounted documents (Manski 1989, "Anatomy of the Selection Problem", Journal
of Human Resources 24(3)): statements about mentioned groups cover at least `lower` of the documents and at most all of
them. A gate with the rule `whole_ci` and a minimum is therefore inconclusive, never passed, if too many documents were
not counted; the note lists their languages.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pyarrow as pa

from governance.checks.bias.interval_rows import ALL, Row, interval_row

METRIC = "coverage"
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
        names = {"metric": METRIC, "language": ALL, "instrument": instrument}
        kind = "word list" if instrument is None else f"{instrument} {'classifier' if instrument in models else 'list'}"
        rows.append(interval_row(names, numbers, uncovered_note(without, whole, kind)))
    return rows


def uncovered_note(without: Mapping[str, int], whole: int, kind: str = "word list") -> str:
    """Documents that no word list (`kind`) covers, by language; "" if none."""
    if not without:
        return ""
    ordered = sorted(without.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{_language(code)} {_percent(number / whole)}" for code, number in ordered[:_NAMED]]
    if rest := ordered[_NAMED:]:
        named.append(f"{len(rest)} more {_percent(sum(number for _, number in rest) / whole)}")
    share = _percent(sum(without.values()) / whole)
    return f"{share} of documents are in languages that no {kind} covers: {', '.join(named)}"


def _language(code: str) -> str:
    return "language unknown" if code == "und" else code


def _percent(share: float) -> str:
    """Percentage of two digits, never 0 for little or 100 for most."""
    percent = 100 * share
    if percent < 0.1:
        return "< 0.1 %"
    if 99.9 < percent < 100:
        return "> 99.9 %"
    return f"{percent:.1f} %" if percent < 10 or 99.5 <= percent < 100 else f"{percent:.0f} %"
