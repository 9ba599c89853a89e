"""Words for measures, groups and differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from governance.checks.bias.crossed import CROSS
from governance.checks.bias.interval_rows import NO_GROUP, NOBODY
from governance.checks.bias.word_lists.tabbed_lists import OF_NAMES
from governance.reports.html.markup import alike, compact, share
from governance.reports.sections.bias_sections import FOUR_FIFTHS, NEUTRAL

_ALL = "(all)"
_NAMES = {
    "npmi_gap": "nPMI gap",
    "npmi": "nPMI",
    "sentiment_gap": "sentiment gap",
    "toxicity_ratio": "ratio of insults",
    "keep_ratio_adjusted": "adjusted keep ratio",
    "keep_ratio": "raw keep ratio",
    "instrument_bias": "instrument bias",
    "premium": "token premium",
    "hhi": "HHI",
    "hhi_of_words": "HHI of words",
}
_OTHERS = {
    "age": "age groups",
    "caste": "castes",
    "disability": "disabilities",
    "ethnicity": "ethnic groups",
    "gender": "gender groups",
    "nationality": "nationalities",
    "orientation": "orientations",
    "pronouns": "pronouns",
    "religion": "religious groups",
}
"""Axis of Assay's own lists -> its groups in the plural."""
_PHRASES = {
    "npmi_gap": ("occurs more often with {against}", "occurs less often with {against}"),
    "sentiment_gap": ("more favourable sentences", "less favourable sentences"),
    "toxicity_ratio": ("more often in a sentence with an insult", "less often in a sentence with an insult"),
    "premium": ("needs more tokens for the same text", "needs fewer tokens for the same text"),
    "instrument_bias": ("scored higher in neutral sentences", "scored lower in neutral sentences"),
    "keep_ratio_adjusted": ("removed less often", "removed more often"),
    "keep_ratio": ("removed less often", "removed more often"),
}


def named(metric: str) -> str:
    """Name of a metric for the reader."""
    return _NAMES.get(metric, metric.replace("_", " "))


def language_of(row: Mapping[str, Any]) -> str:
    """The row's language; all languages together are "all languages"."""
    language = row.get("language")
    return "" if not language else "all languages" if language == _ALL else str(language)


def phrase(row: Mapping[str, Any]) -> str:
    """A significant difference in words."""
    metric = row["metric"]
    if metric.startswith("keep_ratio") and row["upper"] is not None and row["upper"] < FOUR_FIFTHS:
        return "adverse impact, ratio below four fifths"
    up = row["value"] > NEUTRAL.get(metric, 0.0)
    phrases = _PHRASES.get(metric, ("higher than the reference", "lower than the reference"))
    return phrases[0 if up else 1].format(against=theme(row))


def headline(row: Mapping[str, Any]) -> str:
    """A significant difference as a sentence."""
    proxy = OF_NAMES if str(row["axis"]).endswith(OF_NAMES) else ""
    group, up = f"“{spaced(row['group'] or row['axis'])}{proxy}”", row["value"] > NEUTRAL.get(row["metric"], 0.0)
    others = f"than {_others(str(row['axis'] or ''))}"
    those = "than those that mention no group" if row["against"] == NOBODY else f"than those of {others[5:]}"
    kept = f"than those that mention {'no such group' if row['against'] in (None, NO_GROUP) else f'“{theme(row)}”'}"
    more, level = ("more" if up else "less"), ("higher" if up else "lower")
    sentences = {
        "npmi_gap": f"{group} occurs {more} often with “{theme(row)}” {others}",
        "sentiment_gap": f"Sentences that mention {group} are {more} favourable {those}",
        "toxicity_ratio": f"Sentences that mention {group} contain insults {more} often {those}",
        "keep_ratio_adjusted": f"Documents that mention {group} are removed {'less' if up else 'more'} often {kept}",
        "premium": f"{row['language']} needs {more if up else 'fewer'} tokens for the same text",
        "instrument_bias": f"{spaced(row['instrument'])} scores {group} {level} in neutral sentences",
    }
    return sentences.get(row["metric"], f"{group}: {phrase(row)}")


def _others(axis: str) -> str:
    """The other groups of an axis, in words.

    An axis of a user's own list may have any name.
    """
    plain, names = axis.removesuffix(OF_NAMES), OF_NAMES if axis.endswith(OF_NAMES) else ""
    if plain in _OTHERS:
        return f"other {_OTHERS[plain]}{names}"
    axes = " and ".join(f"“{spaced(part)}”" for part in axis.split(CROSS))
    return f"other groups of {axes}"


def spaced(name: object) -> str:
    """A list's name with spaces."""
    return str(name or "").replace("_", " ")


_KEY = ("metric", "stage", "instrument", "language", "axis", "group", "against")


def detailed(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows with effect, terms and examples from `findings` of report.json, if any."""
    known = {tuple(row[name] for name in _KEY): row for row in facts.get("findings") or []}
    return [known.get(tuple(row[name] for name in _KEY), row) for row in rows]


def theme(row: Mapping[str, Any]) -> str:
    """Comparison group or theme: career/career is "career"."""
    parts = list(dict.fromkeys(str(row.get("against") or "").split("/")))
    return spaced(": ".join(parts))


def place(row: Mapping[str, Any]) -> str:
    """Stage, instrument, language and axis of a row."""
    stage = row["stage"] if row["stage"] != _ALL else "all stages"
    return " · ".join(str(value) for value in (stage, row["instrument"], language_of(row), row["axis"]) if value)


def bounds(row: Mapping[str, Any]) -> str:
    """The 95 % interval."""
    if None in (row["lower"], row["upper"]):
        return "not tested"
    if row["metric"] == "share":
        return f"{share(row['lower'])} to {share(row['upper'])}"
    _, lower, upper = alike(row["value"], row["lower"], row["upper"])
    return f"{lower} to {upper}"


def written(row: Mapping[str, Any]) -> str:
    """The value, shares as percentages."""
    if row["metric"] == "share" or None in (row["value"], row["lower"], row["upper"]):
        return share(row["value"]) if row["metric"] == "share" else compact(row["value"])
    return alike(row["value"], row["lower"], row["upper"])[0]
