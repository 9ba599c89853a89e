"""Findings: significant rows with effect, terms and example sentences.

A row is significant when it was tested, q is below 0.05, and its whole 95 % interval is on one side of no difference: 0
for a gap, 1 for a ratio. Keep rates count only where adjusted, and only for groups that are kept less often. Terms:

    tone, sentiment   contribution(t) = weight (scored of t / n - scored of t with the others / n of the others), within
                      sources as the row is; the contributions of all terms are the value of the row; no words where a
                      classifier scored the sentences
    association       occurrences of a word in sentences that mention the group
    impact            documents removed, by reason

Effect sizes are named by Assay's own scale, on the value: a ratio (or its inverse) is small below 1.25 (beyond four
fifths), medium below 2, large from 2 on; a gap in words per sentence is small below 0.2, medium below 0.5, large from
there. A gap in points of a scored list is divided by the mean size of its scores first; a classifier's is judged as it
is, where 1 is the whole way from neutral to certain praise.

A finding is `precise` when its effective sample size could detect the smallest medium effect with 80 % power at the 5 %
level: n >= (z_.975 + z_.80)^2 sigma^2 / delta^2 (Cohen 1988, "Statistical Power Analysis"), where the interval's width
gives sigma^2 / n. A significant difference of a smaller sample exaggerates its effect (Gelman & Carlin 2014,
"Beyond Power Calculations", Perspectives on Psychological Science 9(6), type M error), so it is not a headline.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from governance.checks.bias.count_tables import CELL
from governance.checks.bias.crossed import CROSS
from governance.checks.bias.interval_rows import ALL, NOBODY, Row
from governance.checks.bias.sentence_tables import ABOVE, BELOW, KEPT
from governance.checks.bias.word_lists.lexicons import Lexicons, scale_of

NEUTRAL = {"npmi_gap": 0.0, "sentiment_gap": 0.0, "toxicity_ratio": 1.0, "keep_ratio_adjusted": 1.0}
"""Metric of a finding -> its value when groups do not differ."""
SUITES = ("impact", "association", "tone", "intersections")
TERMS = 5
MAX_Q = 0.05
RATIO_SIZES, GAP_SIZES = (1.25, 2.0), (0.2, 0.5)
_INTERVAL, _POWER = 1.959964, 0.841621  # quantiles of the normal distribution: 97.5 %, 80 %

Effect = dict[str, Any]
"""`size`, `words`, and `ratio` (None where it is 0 or infinite) or `unit` (of the gap's size)."""

Sums = dict[tuple[str, ...], int]


@dataclass(frozen=True)
class Behind:
    """Terms and examples from the count tables."""

    terms: Sums
    """stage, language, term, family, category -> mentions."""
    beside: dict[tuple[str, ...], dict[str, dict[str, tuple[int, int]]]]
    """language, axis, group -> term -> source -> words, scored."""
    sentences: dict[tuple[str, ...], dict[str, int]]
    """language, axis, group -> source -> sentences that mention it; axis and group "": no mention."""
    pairs: dict[tuple[str, ...], dict[str, int]]
    """language, axis, group, family, category -> source -> sentences."""
    removed: Sums
    """stage, language, axis, group, reason -> documents."""
    examples: dict[tuple[str, ...], list[dict[str, Any]]]
    """A cell -> its examples."""


def is_significant(row: Mapping[str, Any], equal: Mapping[str, float] = NEUTRAL) -> bool:
    """Return whether a row was tested and its interval excludes equality.

    `equal` maps a metric to its value when groups do not differ; rows of other metrics are not judged.
    """
    neutral = equal.get(str(row["metric"]))
    if neutral is None or None in (row["lower"], row["upper"], row["q"]) or row["q"] >= MAX_Q:
        return False
    if str(row["note"] or "").startswith("biased instrument"):
        return False
    below, above = row["upper"] < neutral, row["lower"] > neutral
    return bool(below or (above and row["metric"] != "keep_ratio_adjusted"))


def findings_of(
    tables: Mapping[str, Sequence[Row]], counts: Mapping[str, pa.Table], lexicons: Lexicons
) -> list[dict[str, Any]]:
    """All findings by suite, the largest effect first.

    Args:
        tables: the interval tables, suite -> rows.
        counts: the count tables behind them.
        lexicons: the word lists of the counts.
    """
    behind = _behind(counts)
    return [
        _finding(suite, row, behind, lexicons)
        for suite in SUITES
        for row in sorted(filter(is_significant, tables.get(suite, ())), key=_order)
    ]


def precise(row: Mapping[str, Any], effect: Effect) -> bool:
    """Return whether the sample could detect a medium effect (80 % power)."""
    lower, upper, smallest = row["lower"], row["upper"], math.log(RATIO_SIZES[0])
    if row["metric"] == "sentiment_gap":
        margin, smallest = (upper - lower) / 2, GAP_SIZES[0] * effect["unit"]
    elif row["metric"] == "npmi_gap":  # on the scale of its ratio of rates, by the same relative error
        margin = (
            abs(math.log(effect["ratio"])) * (upper - lower) / 2 / abs(row["value"]) if effect["ratio"] else math.inf
        )
    else:
        margin = math.log(upper / lower) / 2 if lower > 0 else math.inf
    return bool((_INTERVAL + _POWER) * margin / _INTERVAL <= smallest)


def _order(row: Row) -> tuple[Any, ...]:
    neutral = NEUTRAL[row["metric"]]
    size = abs(row["value"]) if neutral == 0 else abs(math.log(max(row["value"], 1e-9)))
    return (-size, *(str(row[name] or "") for name in ("metric", "language", "axis", "group", "against", "stage")))


def _behind(counts: Mapping[str, pa.Table]) -> Behind:
    beside: dict[tuple[str, ...], dict[str, dict[str, tuple[int, int]]]] = {}
    for row in counts["beside"].to_pylist():
        evidence = beside.setdefault((row["language"], row["axis"], row["group"]), {}).setdefault(row["term"], {})
        evidence[row["source"]] = (row["words"], row["scored"])
    examples: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in counts["examples"].to_pylist():
        examples.setdefault(tuple(row[name] for name in CELL), []).append(row)
    scores = _summed(counts["scores"], ("language", "axis", "group", "instrument", "source"), "sentences")
    pairs = _summed(counts["pairs"], ("language", "axis", "group", "family", "category", "source"), "sentences")
    removed = counts["fates"].filter(pa.compute.not_equal(counts["fates"]["stage"], KEPT))
    return Behind(
        terms=_summed(counts["terms"], ("stage", "language", "term", "family", "category"), "mentions"),
        beside=beside,
        sentences=_by_source({(*key[:3], key[4]): number for key, number in scores.items()}),  # the same in each list
        pairs=_by_source(pairs),
        removed=_summed(removed, ("stage", "language", "axis", "group", "reason"), "documents"),
        examples=examples,
    )


def _summed(table: pa.Table, keys: Sequence[str], count: str) -> Sums:
    added = table.group_by(list(keys), use_threads=False).aggregate([(count, "sum")])
    columns = [added[name].to_pylist() for name in (*keys, f"{count}_sum")]
    return dict(sorted((tuple(row[:-1]), row[-1]) for row in zip(*columns, strict=True)))


def _by_source(sums: Sums) -> dict[tuple[str, ...], dict[str, int]]:
    """Sums by their keys but the last, then by that, the source."""
    found: dict[tuple[str, ...], dict[str, int]] = {}
    for key, number in sums.items():
        found.setdefault(key[:-1], {})[key[-1]] = number
    return found


@dataclass(frozen=True)
class _Source:
    """A source in which a group and its reference both have sentences."""

    own: int
    others: int
    share: float
    """Share of the comparison: its weight over all weights (`within_source.py`)."""


def _sources(own: Mapping[str, int], others: Sequence[Mapping[str, int]]) -> dict[str, _Source]:
    reference = {source: sum(of.get(source, 0) for of in others) for source in own}
    weight = {source: n * reference[source] / (n + reference[source]) for source, n in own.items() if reference[source]}
    whole = math.fsum(weight.values())
    return {source: _Source(own[source], reference[source], of / whole) for source, of in weight.items()}


def _finding(suite: str, row: Row, behind: Behind, lexicons: Lexicons) -> dict[str, Any]:
    names = [row[name] for name in ("language", "axis", "group", "metric", "against", "stage", "instrument")]
    make: dict[str, Callable[[Row, Behind, Lexicons], tuple[Effect, Any, Any, list[tuple[str, ...]]]]] = {
        "npmi_gap": _association,
        "sentiment_gap": _tone,
        "toxicity_ratio": _tone,
        "keep_ratio_adjusted": _impact,
    }
    effect, own, words, cells = make[row["metric"]](row, behind, lexicons)
    return {
        "id": "/".join([suite, *(str(name) for name in names if name)]),
        "suite": suite,
        **row,
        "neutral": NEUTRAL[row["metric"]],
        "effect": effect,
        "precise": precise(row, effect),
        "terms": {"group": own, "words": words},
        "examples": _examples(behind, cells),
    }


def _examples(behind: Behind, cells: Sequence[tuple[str, ...]]) -> list[dict[str, Any]]:
    """The sentences of least priority in these cells, each of another document."""
    from governance.kernels.behind_counts import EXAMPLES

    rows = sorted(
        (row for cell in cells for row in behind.examples.get(cell, ())), key=lambda row: (row["priority"], row["id"])
    )
    first = {row["id"]: row for row in reversed(rows)}
    chosen = sorted(first.values(), key=lambda row: (row["priority"], row["id"]))[:EXAMPLES]
    return [{name: row[name] for name in ("id", "source", "stage", "reason", "text")} for row in chosen]


def _others(row: Row, keys: Mapping[tuple[str, ...], Any]) -> list[tuple[str, ...]]:
    """Keys of a row's reference: the axis' other groups, or no mention."""
    if row["against"] == NOBODY:
        return [(row["language"], "", "")]
    language, axis, group = row["language"], row["axis"], row["group"]
    return [key for key in keys if key[:2] == (language, axis) and key[2] != group]


@functools.lru_cache(maxsize=4096)
def _terms_of_group(lexicons: Lexicons, language: str, axis: str, group: str) -> list[str]:
    lexicon = lexicons.languages[language]
    groups = {number for number, name in enumerate(lexicon.groups) if name == (axis, group)}
    return sorted({" ".join(term) for term, of in lexicon.identity.items() if not groups.isdisjoint(of)})


@functools.lru_cache(maxsize=4096)
def _terms_of_category(lexicons: Lexicons, language: str, family: str, category: str) -> set[str]:
    lexicon = lexicons.languages[language]
    number = lexicon.categories.index((family, category))
    return {" ".join(term) for term, of in lexicon.others.items() if any(k == 0 and c == number for k, c, _ in of)}


def _own_terms(
    row: Row, behind: Behind, lexicons: Lexicons, stages: Sequence[str], cell: tuple[str, str]
) -> list[dict[str, Any]]:
    """The group's identity terms by mentions; none for an intersection."""
    if CROSS in row["axis"]:
        return []
    languages = sorted(lexicons.languages) if row["language"] == ALL else [row["language"]]
    mentions: dict[str, int] = {}
    for code in languages:
        for term in _terms_of_group(lexicons, code, row["axis"], row["group"]):
            number = sum(behind.terms.get((stage, code, term, *cell), 0) for stage in stages)
            if number:
                mentions[term] = mentions.get(term, 0) + number
    first = sorted(mentions.items(), key=lambda item: (-item[1], item[0]))[:TERMS]
    return [{"term": term, "count": number} for term, number in first]


def _association(row: Row, behind: Behind, lexicons: Lexicons) -> tuple[Effect, Any, Any, list[tuple[str, ...]]]:
    family, _, category = row["against"].partition("/")
    key = (row["language"], row["axis"], row["group"])
    others = _others({**row, "against": ""}, behind.sentences)
    sources = _sources(behind.sentences.get(key, {}), [behind.sentences[other] for other in others])
    pairs = behind.pairs.get((*key, family, category), {})
    pooled = [behind.pairs.get((*other, family, category), {}) for other in others]
    own = sum(of.share * pairs.get(source, 0) / of.own for source, of in sources.items())
    rate = sum(of.share * sum(one.get(source, 0) for one in pooled) / of.others for source, of in sources.items())
    effect = ratio_effect(own / rate if rate else math.inf)
    effect["words"] += (
        f": in {100 * own:.2g} % of the sentences that mention the group, and in {100 * rate:.2g} % of those that "
        "mention other groups"
    )
    listed = _terms_of_category(lexicons, row["language"], family, category)
    words = _words(behind, key, others, lambda term: term in listed, 0)
    cell = (KEPT, *key, family, category)
    return effect, _own_terms(row, behind, lexicons, [KEPT], (family, category)), words, [cell]


def _words(
    behind: Behind, key: tuple[str, ...], others: Sequence[tuple[str, ...]], listed: Callable[[str], bool], column: int
) -> list[dict[str, Any]]:
    """Listed words that occur most often with the group."""
    own = {term: _total(values, column) for term, values in behind.beside.get(key, {}).items() if listed(term)}
    own = {term: number for term, number in own.items() if number}
    first = sorted(own.items(), key=lambda item: (-item[1], item[0]))[:TERMS]
    pooled = [behind.beside.get(other, {}) for other in others]
    return [
        {
            "term": term,
            "count": number,
            "against": sum(_total(of.get(term, {}), column) for of in pooled),
            "contribution": None,
        }
        for term, number in first
    ]


def _total(by_source: Mapping[str, tuple[int, int]], column: int) -> int:
    return sum(values[column] for values in by_source.values())


def weights_of(lexicons: Lexicons, language: str, instrument: str) -> dict[str, float]:
    """Term -> its weight in an instrument, in points."""
    number = lexicons.instruments.index(instrument)
    return {
        " ".join(term): weight / scale_of(instrument)
        for term, labels in lexicons.languages[language].others.items()
        for kind, of, weight in labels
        if kind == 1 and of == number
    }


def contributions(row: Row, behind: Behind, weights: Mapping[str, float]) -> Iterator[tuple[str, int, int, float]]:
    """Contributions of the terms to a gap, which they add up to.

    Yields term, count with the group, count with the others, contribution.
    """
    key = (row["language"], row["axis"], row["group"])
    others = _others(row, behind.sentences)
    sources = _sources(behind.sentences[key], [behind.sentences[other] for other in others])
    for term, weight in sorted(weights.items()):
        mine = behind.beside.get(key, {}).get(term, {})
        theirs = [of[term] for other in others if term in (of := behind.beside.get(other, {}))]
        gap = math.fsum(
            of.share * (mine.get(source, (0, 0))[1] / of.own
                        - sum(one.get(source, (0, 0))[1] for one in theirs) / of.others)
            for source, of in sources.items()
        )  # fmt: skip
        count, against = _total(mine, 1), sum(_total(one, 1) for one in theirs)
        if count or against:
            yield term, count, against, weight * gap


def _tone(row: Row, behind: Behind, lexicons: Lexicons) -> tuple[Effect, Any, Any, list[tuple[str, ...]]]:
    key, instrument = (row["language"], row["axis"], row["group"]), row["instrument"]
    if instrument not in lexicons.instruments:
        own, side = _own_terms(row, behind, lexicons, [KEPT], ("", "")), BELOW if row["value"] < 0 else ABOVE
        return gap_effect(row["value"], instrument), own, [], [(KEPT, *key, instrument, side)]
    weights = weights_of(lexicons, row["language"], instrument)
    if row["metric"] == "sentiment_gap":
        side = BELOW if row["value"] < 0 else ABOVE
        a_word = math.fsum(map(abs, weights.values())) / len(weights)
        effect, sign = gap_effect(row["value"], instrument, a_word), math.copysign(1, row["value"])
        driving = sorted(contributions(row, behind, weights), key=lambda item: (-sign * item[3], item[0]))[:TERMS]
        words: list[dict[str, Any]] = [
            {"term": term, "count": count, "against": against, "contribution": round(share, 6)}
            for term, count, against, share in driving
            if sign * share > 0
        ]
    else:
        side, effect = ABOVE, ratio_effect(row["value"])
        words = _words(behind, key, _others(row, behind.sentences), weights.__contains__, 1)
    own = _own_terms(row, behind, lexicons, [KEPT], (instrument, side))
    return effect, own, words, [(KEPT, *key, instrument, side)]


def _impact(row: Row, behind: Behind, lexicons: Lexicons) -> tuple[Effect, Any, Any, list[tuple[str, ...]]]:
    name, _, only = row["stage"].partition("/")
    stages = sorted({key[0] for key in behind.removed}) if name == ALL else [name]
    languages = sorted(lexicons.languages) if row["language"] == ALL else [row["language"]]
    reasons: dict[str, int] = {}
    for (stage, language, axis, group, reason), number in behind.removed.items():
        mine = stage in stages and language in languages and (axis, group) == (row["axis"], row["group"])
        if mine and only in ("", reason):
            reasons[reason] = reasons.get(reason, 0) + number
    first = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:TERMS]
    words = [{"term": reason, "count": number, "contribution": None} for reason, number in first]
    cells: list[tuple[str, ...]] = [
        (stage, language, row["axis"], row["group"], "", "") for stage in stages for language in languages
    ]
    return ratio_effect(row["value"], "kept"), _own_terms(row, behind, lexicons, stages, ("", "")), words, cells


def ratio_effect(ratio: float, what: str = "") -> Effect:
    """Size and text of a ratio, such as "half as often"."""
    size = max(ratio, 1 / ratio) if ratio > 0 else math.inf
    if ratio == 0:
        words = "never"
    elif not math.isfinite(ratio):
        words = "only here"
    elif 0.45 <= ratio <= 0.55:
        words = "half as often"
    elif 1.9 <= ratio <= 2.1:
        words = "twice as often"
    else:
        words = f"{ratio:.2g} times as often"
    known = round(ratio, 9) if ratio and math.isfinite(ratio) else None
    return {"size": _size(size, RATIO_SIZES), "words": f"{what} {words}".strip(), "ratio": known}


def gap_effect(gap: float, instrument: str = "sentiment", a_word: float = 1.0) -> Effect:
    """Size and text of a sentiment gap, in units of `a_word`."""
    amount = f"{abs(gap):.2g}"
    unit, of = ("listed word", "") if instrument == "sentiment" else ("point", f" of {instrument}")
    words = f"{'lower' if gap < 0 else 'higher'} by {amount} {unit}{'s' * (amount != '1')}{of} per sentence"
    return {"size": _size(abs(gap) / a_word, GAP_SIZES), "words": words, "unit": round(a_word, 9)}


def _size(value: float, bounds: tuple[float, float]) -> str:
    return "small" if value < bounds[0] else "medium" if value < bounds[1] else "large"
