"""The public summary of training content (AI Act, Article 53(1)(d)).

The items are those of the European Commission's template of 24 July 2025, adopted by its Communication C(2025) 8311 of
5 December 2025, paraphrased and in its order. A provider publishes the template itself; this document supplies what the
run recorded. Sizes are given in the template's ranges.
"""

from __future__ import annotations

from governance.reports.documents.corpus_facts import shares_of
from governance.reports.documents.datasheet import sources
from governance.reports.documents.evidence import Evidence
from governance.reports.documents.markdown import filled
from governance.reports.html.markup import number, share

RANGES = ((1e9, "fewer than 1 billion tokens"), (1e13, "1 billion to 10 trillion tokens"))
"""Below this many tokens: the range's name. From the last one up: more than 10 trillion."""


def training_content(evidence: Evidence) -> str:
    """The summary, section by section."""

    def removed(reason: str = "") -> str | None:
        """Documents removed for a reason, or for any; None if uncounted."""
        stages = [row["removed"] for row in evidence.found["funnel"]]
        counts = [count for by in stages for name, count in by.items() if reason in ("", name)]
        return number(sum(counts)) if counts or not reason else None

    countries = shares_of(evidence, "country", "share")
    return filled(
        "training_content",
        evidence,
        sources=sources(evidence),
        countries=", ".join(f"{row['group']} {share(row['value'])}" for row in countries),
        refused=[row["name"] for row in evidence.found["sources"] if row["fate"] == "refused: licence"],
        removed=removed,
        token_range=token_range,
        statuses=lambda counts: ", ".join(f"{count} {status}" for status, count in counts.items()),
    )


def token_range(tokens: int) -> str:
    """The template's range for a count of tokens."""
    return next((name for bound, name in RANGES if tokens < bound), "more than 10 trillion tokens")
