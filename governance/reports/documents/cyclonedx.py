"""CycloneDX 1.6 (ECMA-424) bill of materials."""

from __future__ import annotations

import uuid
from typing import Any

from governance.manifest import Manifest
from governance.reports.documents.evidence import KWH, TO_COMPLETE, Evidence, architecture, task_of
from governance.reports.facts.stage_counts import licence_words
from governance.reports.html.markup import visible

Values = dict[str, Any]


def cyclonedx(evidence: Evidence) -> Values:
    """The document; without a training it describes the corpus alone."""
    model, corpus = evidence.model, evidence.corpus
    packages = _packages(evidence)
    components = [_corpus(evidence), *packages]
    dependencies = []
    if model is not None:
        components.insert(0, _model(evidence, model))
        needs = [_ref(corpus), *(package["bom-ref"] for package in packages)]
        dependencies.append({"ref": _ref(model), "dependsOn": needs})
    subject = model or corpus
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, f"urn:assay:cyclonedx:{subject.digest}").urn,
        "version": 1,
        "metadata": {
            "timestamp": subject.run["finished"],
            "tools": {"components": [{"type": "application", "name": "assay-pretrain"}]},
            "properties": [_property("gate:verdict", str(evidence.at("summary.verdict")))],
        },
        "components": components,
        "dependencies": dependencies,
    }


def _ref(manifest: Manifest) -> str:
    return f"assay:{manifest.stage}:{manifest.digest}"


def _property(name: str, value: str) -> Values:
    return {"name": f"assay:{name}", "value": visible(value)}


def _model(evidence: Evidence, model: Manifest) -> Values:
    shape = evidence.at("training.config.model")
    task = task_of(shape or {})
    approach = {"text-generation": "self-supervised", "text-classification": "supervised"}.get(task)  # of pairs, either
    parameters: Values = {
        **({"approach": {"type": approach}} if approach else {}),
        "task": task,
        "architectureFamily": "transformer",
        "inputs": [{"format": "text"}],
        "outputs": [{"format": "text"}],
        "datasets": [{"ref": _ref(evidence.corpus)}],
    }
    if shape:
        parameters["modelArchitecture"] = architecture(shape)
    metrics = [
        {"type": name, "value": repr(value)}
        for name in ("final_loss", "validation_loss", "bits_per_byte")
        if (value := evidence.at(f"summary.{name}")) is not None
    ]
    considerations: Values = {
        "technicalLimitations": [TO_COMPLETE],
        "useCases": [TO_COMPLETE],
        "users": [TO_COMPLETE],
        "ethicalConsiderations": [{"name": TO_COMPLETE}],
    }
    if environment := _environment(evidence):
        considerations["environmentalConsiderations"] = environment
    counted = {
        "parameters": "training.stats.parameters",
        "tokens_trained": "summary.tokens_trained",
        "flops": "training.flops",
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": _ref(model),
        "name": model.folder,
        "version": model.digest[:16],
        "hashes": [{"alg": "SHA-256", "content": model.digest}],
        "modelCard": {
            "modelParameters": parameters,
            "quantitativeAnalysis": {"performanceMetrics": metrics},
            "considerations": considerations,
        },
        "properties": [
            _property(name, str(value)) for name, path in counted.items() if (value := evidence.at(path)) is not None
        ],
    }


def _environment(evidence: Evidence) -> Values:
    """Energy of the run and its location-based carbon; empty without a meter."""
    total = evidence.at("energy.total")
    if total["joules"] is None:
        return {}
    named = {"low": "energy:low_kwh", "high": "energy:high_kwh", "wasted": "energy:wasted_kwh"}
    bounds = [_property(text, repr(total[name] / KWH)) for name, text in named.items() if total[name] is not None]
    carbon = evidence.at("energy.footprint.figures.carbon_location")
    cost = {"value": total["joules"] / KWH, "unit": "kWh"}
    consumption: Values = {
        "activity": "training",
        "energyProviders": [
            {"organization": {"name": TO_COMPLETE}, "energySource": "unknown", "energyProvided": dict(cost)}
        ],
        "activityEnergyCost": cost,
        "properties": [
            *bounds,
            _property("energy:methods", "; ".join(total["methods"])),
            _property("energy:scope", "all stages of the run, failed attempts included"),
        ],
    }
    if carbon["value"] is not None:
        consumption["co2CostEquivalent"] = {"value": carbon["value"] / 1e6, "unit": "tCO2eq"}
        scope = evidence.footprint("carbon_location")
        consumption["properties"].append(
            _property("carbon:scope", f"location-based, failed attempts included: {scope}")
        )
    return {"energyConsumptions": [consumption]}


def _corpus(evidence: Evidence) -> Values:
    corpus = evidence.corpus
    kept = [evidence.at(f"summary.{name}") for name in ("documents_kept", "bytes_kept")]
    return {
        "type": "data",
        "bom-ref": _ref(corpus),
        "name": corpus.folder,
        "version": corpus.digest[:16],
        "hashes": [{"alg": "SHA-256", "content": corpus.digest}],
        "data": [
            {
                "type": "dataset",
                "name": visible(row["name"]),
                "description": f"source of kind {visible(str(row['kind']))}, "
                f"licence {visible(licence_words(row['licences']))}",
                "contents": {
                    "properties": [
                        _property("documents_kept", str(row["documents_kept"])),
                        _property("bytes_kept", str(row["bytes_kept"])),
                    ]
                },
            }
            for row in evidence.kept
        ],
        "properties": [
            _property(name, str(value)) for name, value in zip(("documents", "bytes"), kept, strict=True) if value
        ],
    }


def _packages(evidence: Evidence) -> list[Values]:
    """Package versions used by the stages."""
    return [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{version}",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name}@{version.replace('+', '%2B')}",
        }
        for name, versions in evidence.at("environment.packages").items()
        for version in versions
    ]
