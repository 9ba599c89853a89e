"""OpenLineage 2.0.2 events, one JSON object per line.

Names are stage and key, versions are digests, so the same thing has one name in every run. Energy is a facet of our own
(`assay_energy`); the audit's results are assertions on what it audited.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from governance.manifest import Input, Manifest
from governance.reports.documents.evidence import Evidence
from governance.reports.facts.report_facts import in_order
from governance.reports.html.markup import visible

PRODUCER = "urn:assay:assay-pretrain"
_SPEC = "https://openlineage.io/spec"
_EVENT = f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent"
_VERSION = f"{_SPEC}/facets/1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet"
_ASSERTIONS = f"{_SPEC}/facets/1-1-0/DataQualityAssertionsDatasetFacet.json#/$defs/DataQualityAssertionsDatasetFacet"
_ENERGY = "urn:assay:facet:energy:1"
_MEASURED = ("joules", "low", "high", "method", "seconds", "all_attempts", "wasted")

Values = dict[str, Any]


def openlineage(evidence: Evidence) -> list[Values]:
    """The events, in the order of the run."""
    rows = {row["stage"]: row for row in evidence.at("energy.stages")}
    return [
        event
        for manifest in in_order(evidence.artifacts)
        for event in _events(manifest, rows.get(manifest.stage, {}), evidence.found["checks"])
    ]


def _events(manifest: Manifest, energy: Mapping[str, Any], checks: list[Mapping[str, Any]]) -> Iterator[Values]:
    run = {
        "runId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"urn:assay:{manifest.stage}:{manifest.digest}")),
        "facets": {"assay_energy": _facet(_ENERGY, {name: energy[name] for name in _MEASURED})} if energy else {},
    }
    audited = manifest.stage == "audit"
    event: Values = {
        "producer": PRODUCER,
        "schemaURL": _EVENT,
        "run": run,
        "job": {"namespace": "assay", "name": manifest.stage, "facets": {}},
        "inputs": [_input(item, checks if audited and item.stage == "encode" else []) for item in manifest.inputs],
        "outputs": [],
    }
    yield {"eventType": "START", "eventTime": manifest.run["started"], **event}
    made = {"namespace": "assay", "name": manifest.folder, "facets": _version(manifest.digest), "outputFacets": {}}
    yield {"eventType": "COMPLETE", "eventTime": manifest.run["finished"], **event, "outputs": [made]}


def _facet(schema: str, values: Values) -> Values:
    return {"_producer": PRODUCER, "_schemaURL": schema, **values}


def _version(digest: str) -> Values:
    return {"version": _facet(_VERSION, {"datasetVersion": f"sha256:{digest}"})}


def _input(item: Input, checks: list[Mapping[str, Any]]) -> Values:
    """Input data set: an artifact's folder or a source file."""
    artifact = item.path.endswith("/manifest.json")
    facets: Values = {}
    if checks:
        results = [
            {"assertion": visible(f"{row['gate']} on {row['subject']}"), "success": row["status"] == "pass"}
            for row in checks
        ]
        facets["dataQualityAssertions"] = _facet(_ASSERTIONS, {"assertions": results})
    return {
        "namespace": "assay" if artifact else f"assay-{item.stage}",
        "name": visible(item.path.removesuffix("/manifest.json")),
        "facets": _version(item.digest),
        "inputFacets": facets,
    }
