"""Datasheet of the corpus after Gebru et al. (arXiv:1803.09010)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from governance.reports.documents.corpus_facts import domains, read_on, years
from governance.reports.documents.evidence import TO_COMPLETE, Evidence, Field, joined
from governance.reports.documents.markdown import form, section, table
from governance.reports.documents.model_card import gate
from governance.reports.html.markup import number, size


def datasheet(evidence: Evidence) -> str:
    """Known answers, and the questions a person must answer."""
    return "\n".join(
        [
            f"# Datasheet of {evidence.at('verdict.corpus.path') or 'a corpus'}\n",
            "Filled from the evidence of the run: numbers are those of report.json."
            f" Entries without evidence are marked: {TO_COMPLETE}.\n",
            section("Motivation", form(_open("why the corpus was created", "who created it", "who funded it"))),
            section("Composition", form(_composition(evidence)), "### Sources\n", sources(evidence), _groups(evidence)),
            section("Collection", form(_collection(evidence))),
            section("Cleaning", _cleaning(evidence)),
            section("Personal data", *_counted(evidence)),
            section("Uses", form(_open("previous uses", "unsuitable uses"))),
            section("Distribution", form(_distribution(evidence))),
            section(
                "Maintenance", form(_open("who maintains it", "how to report an error or request removal", "updates"))
            ),
            section("Gate", form(gate(evidence))),
        ]
    )


def _open(*names: str) -> list[Field]:
    return [Field(name, None) for name in names]


def _composition(evidence: Evidence) -> list[Field]:
    return [
        Field("content of a record", "one document of text, with its id and source"),
        evidence.field("documents", "summary.documents_kept"),
        evidence.field("bytes of text", "summary.bytes_kept"),
        evidence.field("tokens for training", "summary.train_tokens"),
        evidence.field("tokens for validation", "summary.validation_tokens"),
        Field("languages", joined(evidence.languages), "representation.documents" if evidence.languages else ""),
        Field("labels", "none"),
        Field("whether it is a sample of something larger", None),
    ]


def sources(evidence: Evidence) -> str:
    """Configured sources with licence and remaining share."""
    rows = [
        [
            row["name"],
            str(row["kind"]),
            row["licence"],
            number(row["documents_in"]),
            number(row["documents_kept"]),
            size(row["bytes_kept"]),
            row["fate"],
        ]
        for row in evidence.found["sources"]
    ]
    return table(["source", "kind", "licence", "documents read", "documents kept", "bytes kept", "outcome"], rows)


def _groups(evidence: Evidence) -> str:
    rows = [
        [row["language"], row["axis"], row["group"], number(row["documents"]), number(row["mentions"])]
        for row in evidence.at("representation.rows") or []
        if row["documents"]
    ]
    groups = table(["language", "axis", "group", "documents", "mentions"], rows)
    return f"### Groups of people that documents mention\n\n{groups}"


def _collection(evidence: Evidence) -> list[Field]:
    return [
        read_on(evidence, "date of ingestion"),
        years(evidence, "years in the URLs"),
        domains(evidence, "largest domains"),
        Field("how the texts were collected", None),
        Field("whether the people in it were informed and consented", None),
        Field("ethical review", None),
    ]


def _cleaning(evidence: Evidence) -> str:
    """Funnel and reasons of removal."""
    funnel = [
        [row["stage"], *(number(row[name]) for name in ("documents_in", "documents_kept", "bytes_in", "bytes_kept"))]
        for row in evidence.found["funnel"]
    ]
    reasons = [
        [row["stage"], reason, number(count)]
        for row in evidence.found["funnel"]
        for reason, count in row["removed"].items()
        if count
    ]
    head = ["stage", "documents in", "documents kept", "bytes in", "bytes kept"]
    return "\n".join(
        [
            table(head, funnel),
            "### Removed documents by reason\n",
            table(["stage", "reason", "documents"], reasons),
            "Removed documents are kept in the stage's artifact, with the reason.\n",
        ]
    )


def _counted(evidence: Evidence) -> list[str]:
    """Personal data counted by the stages, if any looked."""
    found: list[Mapping[str, Any]] = [row for row in evidence.found["counts"] if row["title"].startswith("redact:")]
    if not found:
        return [form(_open("personal data: no stage searched for it"))]
    return [
        part
        for row in found
        for part in (table(row["head"], [[_cell(cell) for cell in line] for line in row["rows"]]), f"{row['note']}\n")
    ]


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, int) else str(value)


def _distribution(evidence: Evidence) -> list[Field]:
    return [
        Field("licences of the sources kept", joined(evidence.licences), "sources" if evidence.licences else ""),
        evidence.field("licences that the policy allows", "licences_allowed", lambda names: ", ".join(names) or "none"),
        *_open("whether and how it is distributed", "licence of the corpus as a whole", "export controls"),
    ]
