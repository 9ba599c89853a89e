"""Words for measures, groups and differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from governance.checks.bias.word_lists.tabbed_lists import OF_NAMES
from governance.reports.html.markup import compact, share
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
_SAYS = {
    "npmi_gap": ("occurs more often with {against}", "occurs less often with {against}"),
    "sentiment_gap": ("described more favourably", "described less favourably"),
    "toxicity_ratio": ("insults more often in the same sentence", "insults less often in the same sentence"),
    "premium": ("needs more tokens for the same text", "needs fewer tokens for the same text"),
    "instrument_bias": ("scored higher in neutral sentences", "scored lower in neutral sentences"),
    "keep_ratio_adjusted": ("removed less often", "removed more often"),
    "keep_ratio": ("removed less often", "removed more often"),
}


def named(metric: str) -> str:
    """A measure in words."""
    return _NAMES.get(metric, metric.replace("_", " "))


def language_of(row: Mapping[str, Any]) -> str:
    """The row's language; all languages together are "all languages"."""
    language = row.get("language")
    return "" if not language else "all languages" if language == _ALL else str(language)


def says(row: Mapping[str, Any]) -> str:
    """A significant difference in words."""
    metric = row["metric"]
    if metric.startswith("keep_ratio") and row["upper"] is not None and row["upper"] < FOUR_FIFTHS:
        return "adverse impact, below four fifths"
    up = row["value"] > NEUTRAL.get(metric, 0.0)
    words = _SAYS.get(metric, ("higher than the reference", "lower than the reference"))
    return words[0 if up else 1].format(against=theme(row))


def headline(row: Mapping[str, Any]) -> str:
    """A difference that stands out as a sentence."""
    proxy = OF_NAMES if str(row["axis"]).endswith(OF_NAMES) else ""
    group, up = f"“{spaced(row['group'] or row['axis'])}{proxy}”", row["value"] > NEUTRAL.get(row["metric"], 0.0)
    others = f"than other {spaced(row['axis'])} groups"
    more, kindly = ("more" if up else "less"), ("higher" if up else "lower")
    sentences = {
        "npmi_gap": f"{group} occurs {more} often with “{theme(row)}” {others}",
        "sentiment_gap": f"{group} is described {more} favourably {others}",
        "toxicity_ratio": f"Insults occur {more} often near {group} {others}",
        "keep_ratio_adjusted": f"Documents that mention {group} are removed {'less' if up else 'more'} often",
        "premium": f"{row['language']} needs {more if up else 'fewer'} tokens for the same text",
        "instrument_bias": f"{spaced(row['instrument'])} scores {group} {kindly} in neutral sentences",
    }
    return sentences.get(row["metric"], f"{group}: {says(row)}")


def spaced(name: object) -> str:
    """A name of the lists as words."""
    return str(name or "").replace("_", " ")


def distinct(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without rows that repeat another.

    Where one filter removed everything, its ratio is the total's.
    """
    seen, kept = set(), []
    for row in sorted(rows, key=lambda row: row["stage"] != _ALL):
        same = (*(row[name] for name in ("metric", "instrument", "language", "axis", "group", "against")), row["value"])
        if same not in seen:
            seen.add(same)
            kept.append(row)
    return sorted(kept, key=lambda row: [one is row for one in rows].index(True))


_KEY = ("metric", "stage", "instrument", "language", "axis", "group", "against")


def detailed(found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows with effect, terms and examples, where the audit left any.

    `findings` of report.json.
    """
    known = {tuple(row[name] for name in _KEY): row for row in found.get("findings") or []}
    return [known.get(tuple(row[name] for name in _KEY), row) for row in rows]


def theme(row: Mapping[str, Any]) -> str:
    """Comparison group or theme: career/career is "career"."""
    parts = list(dict.fromkeys(str(row.get("against") or "").split("/")))
    return spaced(": ".join(parts))


def place(row: Mapping[str, Any]) -> str:
    """Distinguishing place of a row."""
    stage = row["stage"] if row["stage"] != _ALL else "all stages"
    return " · ".join(str(value) for value in (stage, row["instrument"], language_of(row), row["axis"]) if value)


def bounds(row: Mapping[str, Any]) -> str:
    """The 95 % interval."""
    if None in (row["lower"], row["upper"]):
        return "not tested"
    write = share if row["metric"] == "share" else compact
    return f"{write(row['lower'])} to {write(row['upper'])}"


def written(row: Mapping[str, Any]) -> str:
    """The value, shares as percentages."""
    return share(row["value"]) if row["metric"] == "share" else compact(row["value"])
