"""The report's section on bias: what stands out, then the interval tables of the audit, the most telling rows first.

A row stands out when its whole 95 % interval lies on one side of what "no difference" would be: 1 for a ratio, 0 for a
gap. Where many rows were tested at once (`q` is there), q must be below 0.05 as well. Shares have no such value: they
say who is there, and nobody here knows who should be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from governance.reports.figures import interval_about
from governance.reports.markup import Html, compact, foreign, join, number, share, table, tag
from governance.reports.origins import cite

NEUTRAL = {
    "npmi_gap": 0.0,
    "sentiment_gap": 0.0,
    "toxicity_ratio": 1.0,
    "keep_ratio": 1.0,
    "keep_ratio_adjusted": 1.0,
    "premium": 1.0,
    "instrument_bias": 0.0,
}
"""Metric -> what it is where groups do not differ."""
FOUR_FIFTHS = 0.8
_SHOWN = 40  # rows of a table; tables.json holds all
_FIRST = 5  # findings of a suite at the head
_SUITES = {
    "impact": "What filters and deduplication did to groups",
    "association": "What groups are spoken of with",
    "tone": "How groups are spoken of",
    "shares": "What the corpus is made of",
    "parity": "What a language costs in tokens",
    "privacy": "Personal data",
    "instruments": "Are the word lists and models neutral themselves?",
}
_NOTES = {
    "impact": "Of the documents that came to a stage, those that stayed: the rate of documents that mention the group "
    "over the rate of the reference. Below 0.8 is the four-fifths rule's adverse impact. The adjusted ratio compares "
    "documents of the same language, length and site only (Mantel-Haenszel).",
    "association": "Normalised pointwise mutual information of group and theme in a sentence, from -1 to 1, and its "
    "gap to the other groups of the axis.",
    "tone": "Good words less bad words a sentence that mentions the group, against other groups; and how much more "
    "often such a sentence holds a listed insult.",
    "instruments": "Neutral sentences about each group, scored by each word list and model. One that scores groups "
    "differently decides no gate.",
}


def standing_out(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[Mapping[str, Any]]]:
    """Suite -> its rows whose interval leaves out "no difference", the farthest from it first.

    Of keep rates only the adjusted ones, and only groups that are kept less often: a raw ratio mostly says that sources
    differ, and being kept more often is no harm.
    """
    found = {}
    for suite in _SUITES:
        rows = [row for row in tables.get(suite, ()) if _stands_out(row)]
        if suite == "impact":
            rows = [row for row in rows if row["metric"] == "keep_ratio_adjusted" and row["upper"] < 1]
        if rows:
            found[suite] = sorted(rows, key=lambda row: (-_distance(row), _place(row)))
    return found


def _stands_out(row: Mapping[str, Any]) -> bool:
    neutral, note = NEUTRAL.get(row["metric"]), str(row["note"] or "")
    if row["metric"] == "instrument_bias":  # the check has its own bounds, of a group and of a single term
        return note.startswith("biased")
    if neutral is None or None in (row["lower"], row["upper"]) or note.startswith("biased instrument"):
        return False
    if row["q"] is not None and row["q"] >= 0.05:
        return False
    return bool(row["lower"] > neutral or row["upper"] < neutral)


def _distance(row: Mapping[str, Any]) -> float:
    """How far the interval's nearer end is from no difference: of ratios as logarithms."""
    neutral = NEUTRAL[row["metric"]]
    if row["metric"] == "instrument_bias":
        return abs(float(row["value"]))
    near = row["lower"] if row["lower"] > neutral else row["upper"]
    if neutral == 1.0:
        return abs(math.log(max(near, 1e-9)))
    return abs(float(near))


def _place(row: Mapping[str, Any]) -> str:
    named = (row[name] for name in ("stage", "instrument", "language", "axis", "group", "against"))
    return " · ".join(str(value) for value in named if value)


def bias(found: Mapping[str, Any]) -> Html:
    """Findings first, then each suite's table."""
    tables = found["bias"]
    if not tables:
        return tag("p", "This corpus has no bias audit.", class_="none")
    out = standing_out(tables)
    parts: list[Any] = [_findings(found, out)]
    for suite, title in _SUITES.items():
        rows = tables.get(suite, [])
        parts.append(tag("h3", title))
        parts.append(tag("p", _NOTES[suite], class_="note") if suite in _NOTES else None)
        parts += _tables(suite, rows, cite(found, f"/bias/{suite}"))
    return join(parts)


def _findings(found: Mapping[str, Any], out: Mapping[str, Sequence[Mapping[str, Any]]]) -> Html:
    if not out:
        return tag("p", "No difference between groups stands out of its interval.", class_="none")
    parts: list[Any] = [
        tag("p", "Differences between groups whose whole interval lies on one side of no difference.", class_="note")
    ]
    head = ["where", "measure", "value", "95 % interval", "beside no difference", "says"]
    for suite, rows in out.items():
        lines = [
            [
                foreign(_place(row)),
                _named(row["metric"]),
                compact(row["value"]),
                _bounds(row),
                _drawn(row, rows[:_FIRST]),
                _verdict(row),
            ]
            for row in rows[:_FIRST]
        ]
        more = f" (the {_FIRST} farthest of {len(rows):,})" if len(rows) > _FIRST else ""
        parts.append(table(f"What stands out: {suite}{more}", head, lines, numeric=(2,),
                           cites=[cite(found, f"/bias/{suite}")] * len(lines)))  # fmt: skip
    return join(parts)


def _verdict(row: Mapping[str, Any]) -> str:
    if row["metric"].startswith("keep_ratio"):
        if row["upper"] < FOUR_FIFTHS:
            return "adverse impact: below four fifths with its whole interval"
        return "kept less often than the reference" if row["upper"] < 1 else "kept more often than the reference"
    up = row["value"] > NEUTRAL[row["metric"]]
    words = {
        "npmi_gap": ("spoken of together more than other groups", "less than other groups"),
        "sentiment_gap": ("spoken of more kindly", "spoken of less kindly"),
        "toxicity_ratio": ("insults stand beside it more often", "less often"),
        "premium": ("more tokens for the same text", "fewer tokens for the same text"),
        "instrument_bias": ("scored higher in neutral sentences", "scored lower in neutral sentences"),
    }
    return words[row["metric"]][0 if up else 1]


def _tables(suite: str, rows: Sequence[Mapping[str, Any]], cited: Html) -> list[Html]:
    """A table a metric: the rows that stand out, then those with most to rest on."""
    made = []
    for metric in sorted({row["metric"] for row in rows}):
        mine = [row for row in rows if row["metric"] == metric]
        mine.sort(key=lambda row: (not _stands_out(row), -(row["n"] or 0), _place(row)))
        lines = [_line(row, mine[:_SHOWN]) for row in mine[:_SHOWN]]
        more = f" ({_SHOWN} of {len(mine):,} rows; tables.json of the bias audit holds all)" * (len(mine) > _SHOWN)
        head = ["where", "value", "95 % interval", "interval", "rests on", "q", "note"]
        made.append(table(f"{_named(metric)}{more}", head, lines, numeric=(1, 4, 5), cites=[cited] * len(lines)))
    return made or [tag("p", f"Nothing was measured for {suite}.", class_="none")]


def _line(row: Mapping[str, Any], shown: Sequence[Mapping[str, Any]]) -> list[Any]:
    as_share = row["metric"] == "share"
    value = share(row["value"]) if as_share else compact(row["value"])
    return [
        foreign(_place(row) or "(all)"),
        value,
        _bounds(row),
        _drawn(row, shown),
        number(row["n"]) if row["n"] is not None else None,
        compact(row["q"]) if row["q"] is not None else None,
        foreign(str(row["note"])) if row["note"] else None,
    ]


def _bounds(row: Mapping[str, Any]) -> str:
    if None in (row["lower"], row["upper"]):
        return "–"
    write = share if row["metric"] == "share" else compact
    return f"{write(row['lower'])} – {write(row['upper'])}"


def _drawn(row: Mapping[str, Any], shown: Sequence[Mapping[str, Any]]) -> Html | None:
    """The interval on the scale of the rows of its metric that are shown, ratios by their logarithms."""
    if None in (row["value"], row["lower"], row["upper"]):
        return None
    neutral = NEUTRAL.get(row["metric"])

    def at(value: float) -> float:
        return math.log(max(value, 1e-3)) if neutral == 1.0 else value

    peers = [other for other in shown if other["metric"] == row["metric"] and other["lower"] is not None]
    ends = [at(end) for other in peers for end in (other["lower"], other["upper"])]
    middle = None if neutral is None else at(neutral)
    ends.append(0.0 if middle is None else middle)
    label = f"{_place(row)}: {compact(row['value'])}, from {compact(row['lower'])} to {compact(row['upper'])}"
    estimate = (at(row["lower"]), at(row["value"]), at(row["upper"]))
    return interval_about(estimate, (min(ends), max(ends)), middle, label)


def _named(metric: str) -> str:
    return metric.replace("_", " ").replace("npmi", "nPMI")
