"""Croissant 1.1 with RAI 1.0 (MLCommons, JSON-LD).

Provenance is in PROV-O: the sources that the corpus was derived from, and each stage as an activity with its times.
Use conditions (`usageInfo`) are the licences that sources and documents state, each a term; of a Creative Commons
licence also an ODRL offer with what its own deed permits, requires and prohibits. Others get no rule: nobody here reads
licences.

Each shard of documents is a file with its SHA-256 and a record set of its own, so a reader that follows the document
finds every changed byte. A file set over them would need one record set alone, but mlcroissant 1.1 reads it as empty.
Paths are relative to the document, so a root can be moved with it.
"""

from __future__ import annotations

from typing import Any

from governance.manifest import Output
from governance.reports.documents.corpus_facts import (
    SPDX_LISTED,
    finding_text,
    findings,
    findings_text,
    licence_text,
    personal_findings,
    synthetic,
)
from governance.reports.documents.evidence import TO_COMPLETE, Evidence
from governance.reports.facts.stage_counts import source_outcome
from governance.reports.html.markup import visible

RAI = "http://mlcommons.org/croissant/RAI/1.0"
CROISSANT = "http://mlcommons.org/croissant/1.1"

_COLUMNS = {
    "id": "sc:Text",
    "text": "sc:Text",
    "source": "sc:Text",
    "url": "sc:Text",
    "language": "sc:Text",
    "licence": "sc:Text",
    "sha256": "sc:Text",
    "file": "sc:Text",
    "position": "sc:Integer",
}
"""The columns of every document shard that a reader needs, and their types."""

Values = dict[str, Any]

_TERMS = (
    "annotation", "arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "excludes", "extract", "field",
    "fileObject", "fileProperty", "fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5",
    "parentField", "path", "readLines", "recordSet", "references", "regex", "repeated", "replace", "samplingRate",
    "sdVersion", "separator", "source", "subField", "transform", "unArchive", "value",
)  # fmt: skip
"""Terms of the Croissant vocabulary that the context names as they are."""

_CONTEXT: Values = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "prov": "http://www.w3.org/ns/prov#",
    "odrl": "http://www.w3.org/ns/odrl/2/",
    "cc": "http://creativecommons.org/ns#",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in _TERMS},
}


def croissant(evidence: Evidence) -> Values:
    """The document of the corpus."""
    corpus = evidence.corpus
    shards = [output for output in corpus.outputs if output.path.startswith(f"{corpus.folder}/documents/")]
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": [CROISSANT, RAI],
        "name": corpus.folder.replace("/", "-"),
        "description": _description(evidence),
        "url": f"urn:assay:{corpus.stage}:{corpus.digest}",
        "version": "1.0.0",
        "citeAs": TO_COMPLETE,
        "dateCreated": corpus.run["finished"],
        "license": [licence_text(name) for name in evidence.licences] or [TO_COMPLETE],
        "isLiveDataset": False,
        **({"inLanguage": evidence.languages} if evidence.languages else {}),
        **_provenance(evidence),
        "usageInfo": [entry for name in evidence.licences for entry in _conditions(name)],
        **_rai(evidence),
        "distribution": [_file(shard) for shard in shards],
        "recordSet": [_records(shard) for shard in shards],
    }


def _description(evidence: Evidence) -> str:
    counts = [evidence.at(f"summary.{name}") for name in ("documents_kept", "bytes_kept", "verdict")]
    return "Corpus of texts for pretraining: {} documents, {} bytes; verdict of its gate: {}.".format(*counts)


def _provenance(evidence: Evidence) -> Values:
    """Sources and activities in PROV-O; the first stage first."""
    stages = {row["stage"]: row for row in evidence.found["lineage"]}
    return {
        "prov:wasDerivedFrom": [
            {
                "@type": "prov:Entity",
                "prov:label": visible(f"source {row['name']} ({row['kind']}): {source_outcome(row)}"),
            }
            for row in evidence.found["sources"]
        ],
        "prov:wasGeneratedBy": [
            {
                "@type": "prov:Activity",
                "@id": f"urn:assay:{row['stage']}:{stages[row['stage']]['digest']}",
                "prov:label": f"{row['stage']}: kept {row['documents_kept']} of {row['documents_in']} documents",
                "prov:startedAtTime": stages[row["stage"]]["started"],
                "prov:endedAtTime": stages[row["stage"]]["finished"],
            }
            for row in evidence.found["funnel"]
            if row["stage"] in stages
        ],
        "prov:wasAttributedTo": {"@type": "prov:SoftwareAgent", "prov:label": "Assay"},
    }


def _conditions(licence: str) -> list[Values]:
    """Use conditions of a licence: a term, and perhaps an offer."""
    if licence not in SPDX_LISTED:
        return [{"@type": "DefinedTerm", "name": visible(licence), "description": licence_text(licence)}]
    term = {
        "@type": "DefinedTerm",
        "name": licence,
        "termCode": licence,
        "url": licence_text(licence),
        "inDefinedTermSet": "https://spdx.org/licenses/",
    }
    return [term, *([_offer(licence)] if licence.startswith(("CC-BY-", "CC0-")) else [])]


def _offer(licence: str) -> Values:
    """ODRL offer of a Creative Commons licence, after its deed (ccREL)."""
    parts = licence.split("-")
    permitted = ["Reproduction", "Distribution", *(["DerivativeWorks"] if "ND" not in parts else [])]
    required = [] if parts[0] == "CC0" else ["Notice", "Attribution", *(["ShareAlike"] if "SA" in parts else [])]

    def rules(kind: str, actions: list[str]) -> list[Values]:
        return [{"@type": f"odrl:{kind}", "odrl:action": {"@id": f"cc:{name}"}} for name in actions]

    return {
        "@type": ["CreativeWork", "odrl:Offer"],
        "name": licence,
        "odrl:permission": [
            {**rule, **({"odrl:duty": rules("Duty", required)} if required else {})}
            for rule in rules("Permission", permitted)
        ],
        **({"odrl:prohibition": rules("Prohibition", ["CommercialUse"])} if "NC" in parts else {}),
    }


def _rai(evidence: Evidence) -> Values:
    """Fields of the RAI vocabulary."""
    funnel = evidence.found["funnel"]
    cleaning = [f"{row['stage']}: kept {row['documents_kept']} of {row['documents_in']} documents" for row in funnel]
    tested = [finding_text(suite, row) for suite, rows in findings(evidence).items() for row in rows]
    kinds = sorted({f"{row['name']} ({row['kind']})" for row in evidence.found["sources"]})
    return {
        "rai:dataCollection": visible(
            f"read from {', '.join(kinds)}; synthetic: {synthetic(evidence, '').text}; "
            f"how the other texts were obtained: {TO_COMPLETE}"
        ),
        "rai:dataPreprocessingProtocol": cleaning,
        "rai:dataBiases": [findings_text(evidence), *tested],
        "rai:personalSensitiveInformation": personal_findings(evidence) or [TO_COMPLETE],
        "rai:dataLimitations": [TO_COMPLETE],
        "rai:dataSocialImpact": TO_COMPLETE,
        "rai:dataUseCases": [f"pretraining of language models; others: {TO_COMPLETE}"],
        "rai:dataReleaseMaintenancePlan": TO_COMPLETE,
    }


def _label(shard: Output) -> str:
    return shard.path.rpartition("/")[2].removesuffix(".parquet")


def _file(shard: Output) -> Values:
    return {
        "@type": "cr:FileObject",
        "@id": f"{_label(shard)}.parquet",
        "name": f"{_label(shard)}.parquet",
        "contentUrl": f"../../{shard.path}",
        "contentSize": f"{shard.bytes} B",
        "encodingFormat": "application/x-parquet",
        "sha256": shard.sha256,
    }


def _records(shard: Output) -> Values:
    label = _label(shard)
    return {
        "@type": "cr:RecordSet",
        "@id": label,
        "name": label,
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{label}/{column}",
                "name": f"{label}/{column}",
                "dataType": kind,
                "source": {"fileObject": {"@id": f"{label}.parquet"}, "extract": {"column": column}},
            }
            for column, kind in _COLUMNS.items()
        ],
    }
