"""The documents of a run as one artifact.

    model_card.md             the model, in the Hugging Face Hub's form       (where there is a training)
    model_documentation.md    the European form on the model                    (where there is a training)
    training_content.md       the European summary of the training data
    training_data_disclosure.md  the items of California's AB 2013
    sci_for_ai.md             the provider's score of SCI for AI                (where there is a training)
    datasheet.md              the corpus, after Gebru et al.
    croissant.json            the corpus, machine-readable, with the RAI vocabulary
    spdx.json                 bill of materials: SPDX 3.0.1
    cyclonedx.json            bill of materials: CycloneDX 1.6
    openlineage.ndjson        lineage: OpenLineage events
    prov.json                 lineage: W3C PROV

Promises: each figure is one of report.json; entries without evidence are marked for a person to complete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from governance.config import Section
from governance.errors import read_errors
from governance.files import json_text, write_text
from governance.lineage.lineage_graph import prov_document, read_graph
from governance.manifest import Manifest, describe
from governance.reports.documents.corpus_documents import datasheet, training_content, training_data_disclosure
from governance.reports.documents.croissant import croissant
from governance.reports.documents.cyclonedx import cyclonedx
from governance.reports.documents.evidence import Evidence
from governance.reports.documents.model_documents import model_card, model_documentation, sci_for_ai
from governance.reports.documents.openlineage import openlineage
from governance.reports.documents.spdx import spdx
from governance.reports.facts.report_facts import in_order
from governance.stage import Made, Recipe, Runtime, run_stage
from governance.verified_files import intact

VERSION = 17


class DocumentsSection(Section):
    """Empty section: report and artifacts alone decide the documents."""


def documents(artifacts: Mapping[str, Manifest], report: Manifest, runtime: Runtime) -> Manifest:
    """Write the documents about these artifacts.

    Args:
        artifacts: stage -> manifest, as passed to the report.
        report: the report on them.
        runtime: where to write; its root holds the artifacts.

    Raises:
        ManifestError: report.json cannot be read.
        MissingInput: no stage counted documents.
    """

    def make(folder: Path) -> Made:
        found = read_report(report, runtime.root)
        texts = document_texts(Evidence(found, artifacts, runtime.root))
        for name, text in texts.items():
            write_text(folder / name, text)
        return Made([describe(folder / name, runtime.root) for name in sorted(texts)], {"documents": len(texts)})

    inputs = [report.as_input(), *(manifest.as_input() for manifest in in_order(artifacts))]
    return run_stage(Recipe("documents", VERSION, DocumentsSection()), inputs, runtime, make)


def read_report(report: Manifest, root: Path) -> dict[str, Any]:
    """Contents of a report's report.json.

    Raises:
        ManifestError: it cannot be read, or differs from its manifest.
    """
    fix = "Remove its folder and report again."
    with intact(report.named("report.json"), root) as path, read_errors(path, fix=fix):
        found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def document_texts(evidence: Evidence) -> dict[str, str]:
    """Each document's text by its file's name."""
    texts = {
        "training_content.md": training_content(evidence),
        "training_data_disclosure.md": training_data_disclosure(evidence),
        "datasheet.md": datasheet(evidence),
        "croissant.json": json_text(croissant(evidence)),
        "spdx.json": json_text(spdx(evidence)),
        "cyclonedx.json": json_text(cyclonedx(evidence)),
        "openlineage.ndjson": "".join(f"{json.dumps(event)}\n" for event in openlineage(evidence)),
        "prov.json": json_text(_prov(evidence)),
    }
    if evidence.model is not None:
        texts["model_card.md"] = model_card(evidence)
        texts["model_documentation.md"] = model_documentation(evidence)
        texts["sci_for_ai.md"] = sci_for_ai(evidence)
    return texts


def _prov(evidence: Evidence) -> dict[str, object]:
    """The model's ancestors, or the corpus's."""
    graph = read_graph(evidence.root)
    start = graph.find(evidence.model or evidence.corpus)
    return prov_document(graph, [start, *(node for _, node in graph.ancestors(start))])
