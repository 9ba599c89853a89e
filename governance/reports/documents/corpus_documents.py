"""Datasheet, public summary and hub card of a corpus.

The datasheet is that of Gebru et al. (arXiv:1803.09010).

The public summary of training content is that of the AI Act, Article 53(1)(d). Its items are those of the European
Commission's template of 24 July 2025, adopted by its Communication C(2025) 8311 of 5 December 2025, paraphrased and in
its order. A provider publishes the template itself; this document supplies what the run recorded. Sizes are given in
the template's ranges.

The disclosure of training data has the twelve items of California's AB 2013 (Civil Code, section 3111(a)). Where there
is no evidence it says "not known"; a person completes it.

The card of a corpus on the hub is a YAML block and the datasheet.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from governance.reports.documents.corpus_facts import labels, personal_findings, shares_of
from governance.reports.documents.evidence import TO_COMPLETE, Evidence, joined
from governance.reports.documents.markdown import filled, table
from governance.reports.facts.stage_counts import SKIPPED, licence_words, removals, source_outcome
from governance.reports.html.markup import number, share, size


def datasheet(evidence: Evidence) -> str:
    """Known answers, and the questions a person must answer."""
    stages = evidence.found["funnel"]
    counts = ("documents_in", "documents_kept", "bytes_in", "bytes_kept")
    return filled(
        "datasheet",
        evidence,
        sources=sources(evidence),
        groups=[
            [row["language"], row["axis"], row["group"], number(row["documents"]), number(row["mentions"])]
            for row in evidence.at("representation.rows") or []
            if row["documents"]
        ],
        funnel=[[row["stage"], *(number(row[name]) for name in counts)] for row in stages],
        reasons=[[row["stage"], reason, number(count)] for row, reason, count in removals(stages) if count],
        skipped=_counts(evidence, SKIPPED),
        personal=_counts(evidence, "redact:"),
    )


def _counts(evidence: Evidence, title: str) -> list[dict[str, Any]]:
    """Tables of counts whose title begins so, with their cells as text."""
    return [
        {
            **row,
            "rows": [[number(cell) if isinstance(cell, int) else str(cell) for cell in line] for line in row["rows"]],
        }
        for row in evidence.found["counts"]
        if row["title"].startswith(title)
    ]


def sources(evidence: Evidence) -> str:
    """Configured sources with licence and remaining share."""
    rows = [
        [
            row["name"],
            str(row["kind"]),
            licence_words(row["licences"]),
            number(row["documents_in"]),
            number(row["documents_kept"]),
            size(row["bytes_kept"]),
            source_outcome(row),
        ]
        for row in evidence.found["sources"]
    ]
    return table(["source", "kind", "licence", "documents read", "documents kept", "bytes kept", "outcome"], rows)


RANGES = ((1e9, "fewer than 1 billion tokens"), (1e13, "1 billion to 10 trillion tokens"))
"""Below this many tokens: the range's name. From the last one up: more than 10 trillion."""


def training_content(evidence: Evidence) -> str:
    """The summary, section by section."""
    countries = shares_of(evidence, "country", "share")
    return filled(
        "training_content",
        evidence,
        sources=sources(evidence),
        countries=", ".join(f"{row['group']} {share(row['value'])}" for row in countries),
        refused=[row["name"] for row in evidence.refused],
        removed=partial(_removed, evidence),
        token_range=token_range,
        statuses=lambda counts: ", ".join(f"{count} {status}" for status, count in counts.items()),
    )


def _removed(evidence: Evidence, *reasons: str) -> str | None:
    """Documents removed for these reasons, or for any; None if uncounted."""
    counts = [count for _, name, count in removals(evidence.found["funnel"]) if not reasons or name in reasons]
    return number(sum(counts)) if counts or not reasons else None


PURPOSES = {
    "ingest": "to read the sources as text; unreadable records are set aside",
    "clean": "to unify characters, and to keep readable text in the languages that are wanted",
    "code": "to keep source code under the licences that are wanted",
    "filter": "to keep documents of the quality that the rules ask for",
    "classify": "to keep documents that classifiers score highly",
    "dedup": "to keep one of each group of equal or nearly equal documents",
    "paragraphs": "to remove repeated paragraphs",
    "substrings": "to remove repeated passages",
    "decontaminate": "to remove texts of evaluation sets",
    "redact": "to mask personal information and credentials",
    "mix": "to choose how often each document is read, by source, language or quality",
    "encode": "to turn text into tokens",
}
"""Purpose of each step that passes documents on."""


_PLAIN = "documents of text, without labels"


def training_data_disclosure(evidence: Evidence) -> str:
    """The twelve items of AB 2013."""
    train = next((row for row in evidence.found["lineage"] if row["stage"] == "train"), None)
    begun = str(train["started"])[:10] if train and train["started"] else None
    alone = evidence.at("training.attempts") == 1
    text = filled(
        "training_data_disclosure",
        evidence,
        sources=sources(evidence),
        kinds=joined(sorted({f"{row['name']} ({row['kind']})" for row in evidence.kept})),
        removed=partial(_removed, evidence),
        personal="; ".join(personal_findings(evidence)) or None,
        kind=f"documents of text, with labels ({named})" if (named := labels(evidence)) else _PLAIN,
        steps=[
            [
                row["stage"],
                PURPOSES.get(row["stage"], "not known"),
                number(row["documents_in"]),
                number(row["documents_kept"]),
            ]
            for row in evidence.found["funnel"]
        ],
        first_used=begun if begun is None or alone else f"not after {begun}",
    )
    return text.replace(TO_COMPLETE, f"not known: {TO_COMPLETE}")


def token_range(tokens: int) -> str:
    """The template's range for a count of tokens."""
    return next((name for bound, name in RANGES if tokens < bound), "more than 10 trillion tokens")


_LICENCES = {
    "0bsd", "agpl-3.0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc", "cc-by-2.0",
    "cc-by-3.0", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc0-1.0", "gpl-2.0", "gpl-3.0", "isc", "lgpl-3.0", "mit",
    "mpl-2.0", "odbl", "odc-by", "pddl", "unlicense", "wtfpl",
}  # fmt: skip
"""Identifiers of licences that the hub knows; any other is `other` there."""
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
          (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B"))  # fmt: skip
SHARDS = "data/*.parquet"


def dataset_card(evidence: Evidence) -> str:
    """The card of the documents in `data/*.parquet` next to it."""
    from huggingface_hub import DatasetCardData

    count = evidence.at("summary.documents_kept") or 0
    names = sorted({name.lower() if name.lower() in _LICENCES else "other" for name in evidence.licences})
    data = DatasetCardData(
        language=evidence.languages or None,
        license=names or None,
        task_categories=["text-generation"],
        size_categories=[next((words for limit, words in _SIZES if count < limit), "n>1B")],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": SHARDS}]}],
        tags=["pretraining", "assay"],
    )
    return f"---\n{data.to_yaml()}\n---\n\n{datasheet(evidence)}"
