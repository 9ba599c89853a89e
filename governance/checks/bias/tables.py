"""Tables of the bias audit: rows with intervals, judged by gates.

    representation   share, axis_share, per_million_words            representation.py
                     coverage                                        representation.py
    association      npmi, npmi_gap                                  association.py
    tone             sentiment_gap, toxicity_ratio                   sentiment.py
    impact           keep_ratio, keep_ratio_adjusted                 adverse_impact.py
    shares           share, hhi (and of words)                       representation.py
    privacy          pii_per_million_tokens                          recorded_rates.py
    parity           tokens_per_byte, premium                        recorded_rates.py
    instruments      instrument_bias                                 instrument_check.py
    intersections    the metrics of association and tone, of groups of two axes at once; q is of this suite

A row is that of `interval_rows.py`. Promise: a pure function of sums of integers, so any order and any partition of the
counts gives the same bytes. A suite without counts has no rows, so its gates do not pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from governance.checks.bias.adverse_impact import Reference, impact_rows
from governance.checks.bias.association import association_rows
from governance.checks.bias.crossed import CROSS
from governance.checks.bias.instrument_check import biased_instruments
from governance.checks.bias.interval_rows import Row, finished
from governance.checks.bias.recorded_rates import parity_rows, privacy_rows
from governance.checks.bias.representation import Groups, coverage_rows, representation_rows, share_rows
from governance.checks.bias.sentiment import tone_rows
from governance.checks.bias.word_lists.tabbed_lists import OF_NAMES, PROXIES

SUITES = (
    "representation", "association", "tone", "impact", "shares", "privacy", "parity", "instruments", "intersections",
)  # fmt: skip
_MIN_SENTENCES = 30  # without which an intersection of two groups has no row
_REQUIRED = {
    "representation": ("documents", "axes", "groups"),
    "association": ("documents", "groups", "categories", "pairs"),
    "tone": ("scores",),
    "impact": ("fates",),
    "shares": ("shares",),
    "intersections": ("documents", "groups", "categories", "pairs", "scores"),
}


@dataclass(frozen=True)
class Choices:
    """Settings of the tables."""

    listed: Groups = field(default_factory=dict)
    """Language -> listed (axis, group); those without a mention have rows of zero."""
    scored: Mapping[str, Collection[str]] = field(default_factory=dict)
    """Word list that scores sentences -> the languages that it has words of."""
    classified: Mapping[str, Collection[str]] = field(default_factory=dict)
    """Classifier of sentences -> its languages."""
    reference: Reference = "none"
    """Reference of keep rates: "none", documents that mention no group of the axis; or "highest"."""
    parity_reference: str = "en"
    """The language against which the tokenizer's premium is taken."""


@dataclass(frozen=True)
class Recorded:
    """Counts recorded by other stages."""

    redact: Mapping[str, Any] = field(default_factory=dict)
    """The stats of `redact`."""
    actions: Mapping[str, str] = field(default_factory=dict)
    """Type of personal data -> action (config of `redact`)."""
    encode: Mapping[str, Any] = field(default_factory=dict)
    """The stats of `encode`."""


def bias_tables(
    counts: Mapping[str, pa.Table],
    recorded: Recorded | None = None,
    instruments: Sequence[Row] = (),
    choices: Choices | None = None,
) -> dict[str, list[Row]]:
    """Make every table.

    Args:
        counts: name -> count table, those of the stage `bias`.
        recorded: for the suites privacy and parity.
        instruments: the rows of `instruments.instrument_rows`; rows of `tone` name biased ones.
        choices: settings.

    Raises:
        ManifestError: a count table lacks a column, or has a value that it cannot have.
    """
    recorded, choices = recorded or Recorded(), choices or Choices()
    biased = biased_instruments(instruments)
    counts, together = _split_crossed(counts)
    makers: dict[str, Callable[[], list[Row]]] = {
        "representation": lambda: [
            *representation_rows(counts, choices.listed),
            *coverage_rows(counts["documents"], choices.listed, choices.scored, choices.classified),
        ],
        "association": lambda: association_rows(counts),
        "tone": lambda: tone_rows(counts["scores"], biased, counts.get("fates"), counts.get("groups")),
        "impact": lambda: impact_rows(counts["fates"], choices.reference),
        "shares": lambda: share_rows(counts["shares"]),
        "intersections": lambda: [
            row
            for row in (*association_rows(together), *tone_rows(together["scores"], biased, None, together["groups"]))
            if row["n"] >= _MIN_SENTENCES
        ],
    }
    tables = {suite: make() for suite, make in makers.items() if set(_REQUIRED[suite]) <= set(counts)}
    if recorded.redact:
        tables["privacy"] = privacy_rows(recorded.redact, recorded.actions, recorded.encode)
    if recorded.encode:
        tables["parity"] = parity_rows(recorded.encode, choices.parity_reference)
    tables["instruments"] = list(instruments)
    return {suite: finished([_noted(row) for row in tables.get(suite, ())]) for suite in SUITES}


def _noted(row: Row) -> Row:
    """Add a note to rows of given names."""
    if OF_NAMES not in str(row["axis"]):
        return row
    return {**row, "note": "; ".join(filter(None, (row["note"], PROXIES)))}


def _split_crossed(counts: Mapping[str, pa.Table]) -> tuple[dict[str, pa.Table], dict[str, pa.Table]]:
    """Counts of groups and of intersections, each with unmentioned sentences."""
    groups, together = dict(counts), dict(counts)
    for name, table in counts.items():
        if "axis" in table.column_names:
            crossed = pc.match_substring(table["axis"], CROSS)
            groups[name] = table.filter(pc.invert(crossed))
            together[name] = table.filter(pc.or_(crossed, pc.equal(table["axis"], "")))
    return groups, together
