"""Group sections: findings, dot plots, tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from governance.gate.explanation import counted
from governance.reports.facts.citations import cite
from governance.reports.facts.problems import uncovered
from governance.reports.html.markup import Html, chance, compact, fold, foreign, join, number, table, tag
from governance.reports.sections.bias_sections import is_significant, significant_rows
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
from governance.reports.sections.interval_plots import panels, test_counts

Row = Mapping[str, Any]

_MOST = 1000  # rows of a table of the page; report.json holds all
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


def groups(found: Mapping[str, Any]) -> Html:
    """Significant differences, and keep ratios as a dot plot."""
    if not found["bias"]:
        return tag("p", "This corpus has no bias audit.", class_="none")
    gap = uncovered(found)
    note = tag("p", foreign(f"{gap[1]['note']}."), cite(found, f"/bias/{gap[0]}"), class_="note") if gap else None
    return join([note, _findings(found), _open_plot(found)])


def groups_folded(found: Mapping[str, Any]) -> list[Html]:
    """One fold per suite, with dot plots and tables; mentions first."""
    folds = []
    if mentions := mentions_of(found["representation"]):
        folds.append(fold(f"Mentions of {len({row['group'] for row in mentions}):,} groups with 95 % intervals",
                          *_mentions(found, mentions)))  # fmt: skip
    others: list[Html] = []
    for suite, title in _TITLES.items():
        rows = found["bias"].get(suite, [])
        if rows and suite in _DRAWN:
            tested = test_counts([row for row in rows if row["metric"] == _MAIN.get(suite, row["metric"])])
            folds.append(fold([title, tag("span", f" {tested}", class_="unit")], *_suite(found, suite, rows)))
        elif rows:
            others += [tag("h4", title), *filter(None, _suite(found, suite, rows))]
    return (
        [*folds, fold("Composition, tokenizer parity, personal data, bias of word lists", *others)] if others else folds
    )


def _suite(found: Mapping[str, Any], suite: str, rows: Sequence[Row]) -> Iterable[Html | None]:
    cited = cite(found, f"/bias/{suite}")
    yield tag("p", _NOTES[suite], class_="note") if suite in _NOTES else None
    known = found.get("instruments") or {}
    used = [name for name in dict.fromkeys(row["instrument"] for row in rows) if name in known]
    if used:
        shown = [f"{name} ({known[name]['kind']}, digest {known[name]['digest'][:12]})" for name in used]
        yield tag("p", foreign(f"Measured by {', '.join(shown)}."), class_="note")
    for metric in sorted({row["metric"] for row in rows}, key=lambda name: (name != _MAIN.get(suite), name)):
        mine = [row for row in rows if row["metric"] == metric]
        if suite in _DRAWN and _MAIN.get(suite, metric) == metric:
            yield from _plots(mine, cited)
        yield _table(mine, cited)


def _plots(rows: Sequence[Row], cited: Html) -> Iterable[Html]:
    """Dot plots of a metric, one block per language and reference."""
    whole = [row for row in rows if row["stage"] in (None, "(all)")] or list(rows)
    themes = rows[0]["metric"] == "npmi_gap"
    blocks: dict[tuple[Any, Any], list[Row]] = {}
    for row in whole:
        blocks.setdefault((row["language"], None if themes else row["against"]), []).append(row)
    for (_, against), mine in blocks.items():
        drawn = panels(mine, cited, by_theme=themes)
        if drawn is not None:
            about = [named(rows[0]["metric"]), language_of(mine[0]), f"against {theme(mine[0])}" if against else ""]
            title = ", ".join(filter(None, about))
            yield tag("h4", foreign(f"{title[:1].upper()}{title[1:]}"))
            yield drawn


def _open_plot(found: Mapping[str, Any]) -> Html | None:
    """Dot plot of adjusted keep ratios over all stages and languages."""
    rows = [row for row in found["bias"].get("impact", []) if row["metric"] == _MAIN["impact"]]
    whole = [row for row in rows if row["stage"] == "(all)"] or rows
    mine = [row for row in whole if row["language"] == "(all)"] or whole
    drawn = panels(mine, cite(found, "/bias/impact"))
    if drawn is None:
        return None
    return join([
        tag("h4", "Keep rate relative to documents that mention no group of the axis"),
        tag("p", f"Compared within source, language, length and site; 1 means no difference. {test_counts(mine)}.",
            class_="note"),
        drawn,
    ])  # fmt: skip


def _findings(found: Mapping[str, Any]) -> Html:
    rows = _ordered(found)
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
        for row in rows[:_MOST]
    ]
    cited = cite(found, *(f"/bias/{suite}" for suite in significant_rows(found["bias"])))
    title = f"{counted(len(rows), 'significant difference')}, the gravest kind first"
    note = tag("p", "Words are counted, not senses: “gay” is merry in older texts. Read the words and the example "
                    "before you use a finding.", class_="note")  # fmt: skip
    return join([table(title, head, lines, numeric=(3, 4), cited=cited, shown=3), note])


def _ordered(found: Mapping[str, Any]) -> list[Row]:
    """Findings, alternating between suites."""
    tested = [[row for row in rows if row["q"] is not None] for rows in significant_rows(found["bias"]).values()]
    turns = [detailed(found, rows) for rows in tested]
    most = max(map(len, turns), default=0)
    return [rows[turn] for turn in range(most) for rows in turns if turn < len(rows)]


def _effect(row: Row) -> Html | None:
    effect = row.get("effect") or {}
    words = [str(effect[name]) for name in ("size", "words") if effect.get(name)]
    return tag("span", f" {': '.join(words)}", class_="note") if words else None


def _case(row: Row) -> Html:
    """Words that drive a finding, with an example; the others unfold."""
    terms = [str(item["term"]) for item in (row.get("terms") or {}).get("words", [])[:_TERMS]]
    quoted = [tag("q", foreign(str(example["text"]))) for example in row.get("examples") or []]
    return join([
        tag("span", foreign(", ".join(terms)), class_="note") if terms else None,
        fold(quoted[0], *quoted[1:]) if len(quoted) > 1 else join(quoted),
    ])  # fmt: skip


def _table(rows: Sequence[Row], cited: Html) -> Html:
    """All rows of a metric: significant ones first, then by sample size."""
    mine = sorted(rows, key=lambda row: (not is_significant(row), -(row["n"] or 0), place(row), str(row["group"])))
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
        for row in mine[:_MOST]
    ]
    head = ["group", "where", "against", "value", "95 % interval", "n", "q", "note"]
    more = f", {_MOST:,} of {len(mine):,} rows; report.json has all" if len(mine) > _MOST else ""
    title = named(rows[0]["metric"])
    return table(f"{title[:1].upper()}{title[1:]}{more}", head, lines, numeric=(3, 5, 6), cited=cited)


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


def _mentions(found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterable[Html]:
    cited = cite(found, "/representation")
    yield tag("p", "Share of the language's documents that mention the group, with 95 % jackknife intervals. A mention "
                   "is a listed word, whatever is said about the group.", class_="note")  # fmt: skip
    for language in dict.fromkeys(row["language"] for row in rows):
        drawn = panels([row for row in rows if row["language"] == language and row["n"]], cited)
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
        for row in sorted(rows, key=lambda row: -(row["n"] or 0))[:_MOST]
    ]
    head = ["group", "where", "documents", "mentions", "share", "95 % interval", "per million words", "note"]
    yield table("Mentions of groups", head, lines, numeric=(2, 3, 4, 6), cited=cited)
