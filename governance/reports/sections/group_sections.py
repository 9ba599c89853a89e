"""Group sections: findings, dot plots, tables.

The plots have a panel for each axis. A dot is an estimate, a line its 95 % interval, an upright mark the value of no
difference (Cleveland, 1984). Significant rows have the warning colour. Intervals beyond the scale end at its edge.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from governance.gate.explanation import counted
from governance.reports.facts.citations import cite
from governance.reports.facts.problems import uncovered
from governance.reports.html.markup import Html, chance, compact, fold, foreign, join, number, share, table, tag
from governance.reports.html.svg_figures import interval_about
from governance.reports.sections.bias_sections import NEUTRAL, extent, is_significant, significant_rows
from governance.reports.sections.group_words import (
    bounds,
    detailed,
    language_of,
    named,
    phrase,
    place,
    spaced,
    theme,
    written,
)

Row = Mapping[str, Any]

PANEL_ROWS = 10
_TAIL = 0.02  # share of interval ends that the scale may cut off on either side
_MIN_RATIO = 1e-3  # least ratio whose logarithm is taken
_WIDEST = math.log(8)  # on either side of a ratio of 1: wider intervals are uninformative
_MAX_ROWS = 1000  # rows of a table of the page; report.json holds all
_TERMS = 3
_TITLES = {
    "impact": "Adverse impact of the filters",
    "tone": "Sentiment and insults by group",
    "association": "Associations of groups with themes",
    "intersections": "Intersections of two axes",
    "shares": "Composition",
    "parity": "Tokenizer parity",
    "privacy": "Personal data",
    "instruments": "Bias of the word lists and classifiers",
}
_NOTES = {
    "impact": "Keep rate of documents that mention a group, divided by that of the reference. The adjusted ratio "
    "compares documents within source, language, length and site (Mantel-Haenszel); the raw ratio mostly reflects "
    "differences between sources. Below 0.8 is adverse impact by the four-fifths rule.",
    "association": "Normalised pointwise mutual information of group and theme within a sentence (-1 to 1), and its "
    "gap to the other groups of the axis, compared within source.",
    "tone": "Sentiment gap: positive minus negative words per sentence that mentions the group, or a classifier's mean "
    "score of such sentences, minus the same for other groups. Ratio of insults: share of such sentences with a listed "
    "insult, divided by that of other groups. Both are compared within source; notes give the pooled values.",
    "instruments": "Scores of neutral template sentences about each group, by word list or classifier. A biased one "
    "cannot decide a gate.",
    "shares": "Shares of the corpus. There is no target value, so none of them is tested.",
}
_DRAWN = ("impact", "tone", "association", "intersections")
_MAIN = {"impact": "keep_ratio_adjusted", "association": "npmi_gap"}
"""Metric that is plotted where a suite has several."""


def panels(rows: Sequence[Row], citation: Html | None = None, *, by_theme: bool = False) -> Html | None:
    """One panel per axis for rows of one measure.

    The result is None where no row has an interval.

    Args:
        rows: of one metric; rows of several languages share the scale.
        citation: evidence mark of the first panel.
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
        made.append(_panel(axis, mine, scale, citation if axis == axes[0] else None, by_theme))
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
    return math.log(max(value, _MIN_RATIO)) if neutral == 1.0 else value - (neutral or 0.0)


def _back(place: float, row: Row) -> str:
    neutral = _neutral(row)
    if row["metric"] == "share":
        return share(place)
    return f"{math.exp(place):.3g}" if neutral == 1.0 else f"{place + (neutral or 0.0):.2g}"


def _panel(axis: str, rows: Sequence[Row], scale: tuple[float, float], citation: Html | None, by_theme: bool) -> Html:
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
    title = tag("figcaption", tag("b", foreign(spaced(axis) or "all")), citation)
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


def groups(facts: Mapping[str, Any]) -> Html:
    """Significant differences, and keep ratios as a dot plot."""
    if not facts["bias"]:
        return tag("p", "This corpus has no bias audit.", class_="none")
    notes = [
        tag("p", foreign(f"{words}; {unmeasured}."), cite(facts, "/bias/representation"), class_="note")
        for words, unmeasured, _ in uncovered(facts)
    ]
    return join([*notes, _findings(facts), _open_plot(facts)])


def groups_folded(facts: Mapping[str, Any]) -> list[Html]:
    """One fold per suite, with dot plots and tables; mentions first."""
    folds = []
    if mentions := mentions_of(facts["representation"]):
        folds.append(fold(f"Mentions of {len({row['group'] for row in mentions}):,} groups with 95 % intervals",
                          *_mentions(facts, mentions)))  # fmt: skip
    others: list[Html] = []
    for suite, title in _TITLES.items():
        rows = facts["bias"].get(suite, [])
        if rows and suite in _DRAWN:
            tested = test_counts([row for row in rows if row["metric"] == _MAIN.get(suite, row["metric"])])
            folds.append(fold([title, tag("span", f" {tested}", class_="unit")], *_suite(facts, suite, rows)))
        elif rows:
            others += [tag("h4", title), *filter(None, _suite(facts, suite, rows))]
    return (
        [*folds, fold("Composition, tokenizer parity, personal data, bias of word lists", *others)] if others else folds
    )


def _suite(facts: Mapping[str, Any], suite: str, rows: Sequence[Row]) -> Iterable[Html | None]:
    citation = cite(facts, f"/bias/{suite}")
    yield tag("p", _NOTES[suite], class_="note") if suite in _NOTES else None
    known = facts.get("instruments") or {}
    used = [name for name in dict.fromkeys(row["instrument"] for row in rows) if name in known]
    if used:
        shown = [f"{name} ({known[name]['kind']}, digest {known[name]['digest'][:12]})" for name in used]
        yield tag("p", foreign(f"Measured by {', '.join(shown)}."), class_="note")
    for metric in sorted({row["metric"] for row in rows}, key=lambda name: (name != _MAIN.get(suite), name)):
        mine = [row for row in rows if row["metric"] == metric]
        if suite in _DRAWN and _MAIN.get(suite, metric) == metric:
            yield from _plots(mine, citation)
        yield _table(mine, citation)


def _plots(rows: Sequence[Row], citation: Html) -> Iterable[Html]:
    """Dot plots of a metric, one block per language and reference."""
    whole = [row for row in rows if row["stage"] in (None, "(all)")] or list(rows)
    themes = rows[0]["metric"] == "npmi_gap"
    blocks: dict[tuple[Any, Any], list[Row]] = {}
    for row in whole:
        blocks.setdefault((row["language"], None if themes else row["against"]), []).append(row)
    for (_, against), mine in blocks.items():
        drawn = panels(mine, citation, by_theme=themes)
        if drawn is not None:
            about = [named(rows[0]["metric"]), language_of(mine[0]), f"against {theme(mine[0])}" if against else ""]
            title = ", ".join(filter(None, about))
            yield tag("h4", foreign(f"{title[:1].upper()}{title[1:]}"))
            yield drawn


def _open_plot(facts: Mapping[str, Any]) -> Html | None:
    """Dot plot of adjusted keep ratios over all stages and languages."""
    rows = [row for row in facts["bias"].get("impact", []) if row["metric"] == _MAIN["impact"]]
    whole = [row for row in rows if row["stage"] == "(all)"] or rows
    mine = [row for row in whole if row["language"] == "(all)"] or whole
    drawn = panels(mine, cite(facts, "/bias/impact"))
    if drawn is None:
        return None
    return join([
        tag("h4", "Keep rate relative to documents that mention no group of the axis"),
        tag("p", f"Compared within source, language, length and site; 1 means no difference. {test_counts(mine)}.",
            class_="note"),
        drawn,
    ])  # fmt: skip


def _findings(facts: Mapping[str, Any]) -> Html:
    rows = _ordered(facts)
    if not rows:
        return tag("p", "No difference between groups is significant.", class_="none")
    with_words = any(row.get("examples") or row.get("terms") for row in rows)
    head = ["group", "finding", "value (95 % interval)", "n", "q", *(["words and example"] if with_words else [])]
    lines = [
        [
            [
                tag("b", foreign(spaced(row["group"] or row["axis"]))),
                tag("br"),
                tag("span", foreign(place(row)), class_="note"),
            ],
            foreign(phrase(row)),
            [f"{written(row)} ({bounds(row)})", _effect(row)],
            number(row["n"]) if row["n"] is not None else None,
            chance(row["q"]) if row["q"] is not None else None,
            *([_case(row)] if with_words else []),
        ]
        for row in rows[:_MAX_ROWS]
    ]
    citation = cite(facts, *(f"/bias/{suite}" for suite in significant_rows(facts["bias"])))
    title = f"{counted(len(rows), 'significant difference')}, the best supported first"
    note = tag("p", "Words are counted, not senses: “gay” is merry in older texts. Read the words and the example "
                    "before you use a finding; imprecise ones are probably overstated.", class_="note")  # fmt: skip
    return join([table(title, head, lines, numeric=(3, 4), citation=citation, shown=3), note])


def _ordered(facts: Mapping[str, Any]) -> list[Row]:
    """Findings, the precise ones before the others, each alternating between suites.

    Within a suite those that concern the most text come first (`bias_sections.extent`).
    """
    tested = [[row for row in rows if row["q"] is not None] for rows in significant_rows(facts["bias"]).values()]
    known = [detailed(facts, rows) for rows in tested]
    split = [[[row for row in rows if row.get("precise", True) is well] for rows in known] for well in (True, False)]
    return [row for turns in split for turn in itertools.zip_longest(*turns) for row in turn if row is not None]


def _effect(row: Row) -> Html | None:
    effect = row.get("effect") or {}
    words = [str(effect[name]) for name in ("size", "words") if effect.get(name)]
    rough = "" if row.get("precise", True) else "; imprecise"
    return tag("span", f" {': '.join(words)}{rough}", class_="note") if words or rough else None


def _case(row: Row) -> Html:
    """Words that drive a finding, with an example; the others unfold."""
    terms = [str(item["term"]) for item in (row.get("terms") or {}).get("words", [])[:_TERMS]]
    quoted = [tag("q", foreign(str(example["text"]))) for example in row.get("examples") or []]
    return join([
        tag("span", foreign(", ".join(terms)), class_="note") if terms else None,
        fold(quoted[0], *quoted[1:]) if len(quoted) > 1 else join(quoted),
    ])  # fmt: skip


def _table(rows: Sequence[Row], citation: Html) -> Html:
    """All rows of a metric: significant ones first, then the largest samples.

    Significant ones are in the order of the text that they concern.
    """

    def order(row: Row) -> tuple[bool, float, float, str, str]:
        return not is_significant(row), -extent(row), -(row["n"] or 0), place(row), str(row["group"])

    mine = sorted(rows, key=order)
    lines = [
        [
            foreign(spaced(row["group"] or row["axis"] or "all")),
            foreign(place(row)),
            foreign(theme(row)) if row["against"] else None,
            written(row),
            bounds(row),
            number(row["n"]) if row["n"] is not None else None,
            chance(row["q"]) if row["q"] is not None else None,
            foreign(str(row["note"])) if row["note"] else None,
        ]
        for row in mine[:_MAX_ROWS]
    ]
    head = ["group", "where", "against", "value", "95 % interval", "n", "q", "note"]
    more = f", {_MAX_ROWS:,} of {len(mine):,} rows; report.json has all" if len(mine) > _MAX_ROWS else ""
    title = named(rows[0]["metric"])
    return table(f"{title[:1].upper()}{title[1:]}{more}", head, lines, numeric=(3, 5, 6), citation=citation)


def mentions_of(data: Any) -> list[dict[str, Any]]:
    """Rows of the mention counts in the form of the plots."""
    rows = (data.get("rows", []) if isinstance(data, Mapping) else data) or []
    return [
        {**dict.fromkeys(("stage", "instrument", "against", "p", "q", "note")), "metric": "share",
         "language": row["language"], "axis": row["axis"], "group": row["group"], "value": row["share"],
         "lower": row["share_low"], "upper": row["share_high"], "n": row["documents"], "mentions": row["mentions"],
         "per_million_words": row["per_million_words"], "conclusive": row.get("conclusive", True)}
        for row in rows
    ]  # fmt: skip


def _mentions(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterable[Html]:
    citation = cite(facts, "/representation")
    yield tag("p", "Share of the language's documents that mention the group, with 95 % jackknife intervals. A mention "
                   "is a listed word, whatever is said about the group.", class_="note")  # fmt: skip
    for language in dict.fromkeys(row["language"] for row in rows):
        drawn = panels([row for row in rows if row["language"] == language and row["n"]], citation)
        if drawn is not None:
            yield tag("h4", foreign(f"Documents that mention a group, {language}"))
            yield drawn
    lines = [
        [
            foreign(str(row["group"])),
            foreign(place(row)),
            number(row["n"]),
            number(row["mentions"]),
            written(row),
            bounds(row) if row["value"] is not None else "too few",
            compact(row["per_million_words"]),
            None if row["conclusive"] else "inconclusive",
        ]
        for row in sorted(rows, key=lambda row: -(row["n"] or 0))[:_MAX_ROWS]
    ]
    head = ["group", "where", "documents", "mentions", "share", "95 % interval", "per million words", "note"]
    yield table("Mentions of groups", head, lines, numeric=(2, 3, 4, 6), citation=citation)
