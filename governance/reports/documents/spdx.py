"""SPDX 3.0.1 (JSON-LD) bill of materials.

The elements are those of the AI and Dataset profiles. Conformance is claimed for the core and software profiles alone:
the others also require a supplier and a release time, which a person must add.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from governance.manifest import Manifest
from governance.reports.documents.evidence import KWH, TO_COMPLETE, Evidence, architecture
from governance.reports.facts.stage_counts import licence_words
from governance.reports.html.markup import visible

CONTEXT = "https://spdx.org/rdf/3.0.1/spdx-context.jsonld"

Values = dict[str, Any]

_CREATION = "_:creation"
_TOOL = "urn:assay:tool"


def spdx(evidence: Evidence) -> Values:
    """The document; without a training it describes the corpus alone."""
    model, corpus = evidence.model, evidence.corpus
    elements: list[Values] = [
        {"type": "SoftwareAgent", "spdxId": _TOOL, "creationInfo": _CREATION, "name": "assay-pretrain"}
    ]
    if model is not None:
        trained = _relation("trainedOn", _name(model), [_name(corpus)])
        elements += [_model(evidence, model), *_files(model), trained]
    elements += [_corpus(evidence, corpus), *_files(corpus)]
    document = {
        "type": "SpdxDocument",
        "spdxId": f"urn:assay:spdx:{(model or corpus).digest}",
        "creationInfo": _CREATION,
        "profileConformance": ["core", "software"],
        "rootElement": [_name(model or corpus)],
        "element": [element["spdxId"] for element in elements],
    }
    creation = {
        "type": "CreationInfo",
        "@id": _CREATION,
        "specVersion": "3.0.1",
        "created": (model or corpus).run["finished"],
        "createdBy": [_TOOL],
    }
    return {"@context": CONTEXT, "@graph": [creation, *elements, document]}


def _name(manifest: Manifest) -> str:
    return f"urn:assay:{manifest.stage}:{manifest.digest}"


def _package(kind: str, manifest: Manifest, purpose: str) -> Values:
    return {
        "type": kind,
        "spdxId": _name(manifest),
        "creationInfo": _CREATION,
        "name": manifest.folder,
        "comment": f"supplier, place of download and time of release: {TO_COMPLETE}",
        "software_packageVersion": manifest.digest[:16],
        "software_primaryPurpose": purpose,
        "verifiedUsing": [_hash(manifest.digest)],
        "builtTime": manifest.run["finished"],
    }


def _hash(digest: str) -> Values:
    return {"type": "Hash", "algorithm": "sha256", "hashValue": digest}


def _model(evidence: Evidence, model: Manifest) -> Values:
    package = _package("ai_AIPackage", model, "model")
    shape = evidence.at("training.config.model")
    if shape:
        package["ai_typeOfModel"] = [architecture(shape)]
    figures = {name: evidence.at(f"summary.{name}") for name in ("final_loss", "validation_loss", "bits_per_byte")}
    package["ai_metric"] = [_entry(name, repr(value)) for name, value in figures.items() if value is not None]
    counted = {"parameters": "training.stats.parameters", "tokens": "summary.tokens_trained", "flops": "training.flops"}
    counts = [f"{name} {evidence.at(path)}" for name, path in counted.items() if evidence.at(path) is not None]
    package["ai_informationAboutTraining"] = f"training: {', '.join(counts) or TO_COMPLETE}"
    package["ai_informationAboutApplication"] = TO_COMPLETE
    package["ai_limitation"] = TO_COMPLETE
    parts = [("train", evidence.at("training.config.train")), ("optim", evidence.at("training.config.optim"))]
    package["ai_hyperparameter"] = [
        _entry(f"{part}.{name}", str(value))
        for part, values in parts
        for name, value in (values or {}).items()
        if isinstance(value, (int, float, str))
    ]
    row = evidence.training_energy or {}
    joules = row.get("all_attempts") if row.get("all_attempts") is not None else row.get("joules")
    if joules is not None:
        quantity = {
            "type": "ai_EnergyConsumptionDescription",
            "ai_energyQuantity": joules / KWH,
            "ai_energyUnit": "kilowattHour",
        }
        package["ai_energyConsumption"] = {"type": "ai_EnergyConsumption", "ai_trainingEnergyConsumption": [quantity]}
    return {name: value for name, value in package.items() if value != []}


def _entry(key: str, value: str) -> Values:
    return {"type": "DictionaryEntry", "key": key, "value": visible(value)}


def _corpus(evidence: Evidence, corpus: Manifest) -> Values:
    package = _package("dataset_DatasetPackage", corpus, "data")
    package["dataset_datasetType"] = ["text"]
    if (size := evidence.at("summary.bytes_kept")) is not None:
        package["dataset_datasetSize"] = size
    package["dataset_dataCollectionProcess"] = TO_COMPLETE
    package["dataset_intendedUse"] = TO_COMPLETE
    package["dataset_dataPreprocessing"] = [
        f"{row['stage']}: {row['documents_kept']} of {row['documents_in']} documents kept"
        for row in evidence.found["funnel"]
    ]
    package["software_attributionText"] = [
        visible(f"{row['name']}: {licence_words(row['licences'])}") for row in evidence.kept
    ]
    return {name: value for name, value in package.items() if value != []}


def _files(manifest: Manifest) -> list[Values]:
    """The files of an artifact, and that it contains them."""
    owner = _name(manifest)  # its digest costs a pass over the manifest
    files = [
        {
            "type": "software_File",
            "spdxId": f"{owner}#{quote(output.path.removeprefix(f'{manifest.folder}/'))}",
            "creationInfo": _CREATION,
            "name": output.path,
            "verifiedUsing": [_hash(output.sha256)],
        }
        for output in manifest.outputs
    ]
    return [*files, _relation("contains", owner, [str(file["spdxId"]) for file in files])] if files else []


def _relation(kind: str, start: str, ends: list[str]) -> Values:
    return {
        "type": "Relationship",
        "spdxId": f"{start}#{kind}",
        "creationInfo": _CREATION,
        "relationshipType": kind,
        "from": start,
        "to": ends,
    }
