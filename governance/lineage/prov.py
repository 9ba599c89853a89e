"""Lineage as W3C PROV-JSON (member submission of 24 April 2013).

Artifacts, verdicts, children and source files are entities; the making of each artifact is an activity, with its
start and end where its manifest is still there; edges are `used`, `wasGeneratedBy` and `wasDerivedFrom`. Names are
URNs of the stage and the digest (of a source file of its name, too), so a thing has one name in every document.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from governance.files import sha256_bytes
from governance.lineage.lineage_graph import Graph, Node
from governance.manifest import SOURCES


def prov_document(graph: Graph, nodes: Iterable[Node]) -> dict[str, Any]:
    """PROV-JSON of some nodes and the edges among them."""
    chosen = {node.key: node for node in nodes}
    document: dict[str, Any] = {"prefix": {"assay": "urn:assay:"}, "entity": {}, "activity": {}}
    relations: dict[str, list[dict[str, str]]] = {"used": [], "wasGeneratedBy": [], "wasDerivedFrom": []}
    for node in chosen.values():
        document["entity"][_name(node)] = _attributes(node)
        if node.stage in SOURCES:
            continue
        making = f"assay:making-{_local(node)}"
        document["activity"][making] = _times(node)
        relations["wasGeneratedBy"].append({"prov:entity": _name(node), "prov:activity": making})
        for key in graph.parents.get(node.key, ()):
            if key in chosen:
                parent = _name(chosen[key])
                relations["used"].append({"prov:activity": making, "prov:entity": parent})
                relations["wasDerivedFrom"].append({"prov:generatedEntity": _name(node), "prov:usedEntity": parent})
    for relation, items in relations.items():
        document[relation] = {f"_:{relation}{number}": item for number, item in enumerate(items)}
    return document


def _local(node: Node) -> str:
    name = f"{node.stage}-{node.digest}"
    return f"{name}-{sha256_bytes(node.path.encode('utf-8'))[:8]}" if node.stage in SOURCES else name


def _name(node: Node) -> str:
    return f"assay:{_local(node)}"


def _attributes(node: Node) -> dict[str, str]:
    """Attributes of a node: stage, path, digest, key, version."""
    stated = {"assay:stage": node.stage, "assay:path": node.path, "assay:sha256": node.digest}
    known = node.manifest.plain() if node.manifest is not None else node.facts
    return stated | {f"assay:{name}": str(known[name]) for name in ("key", "version") if name in known}


def _times(node: Node) -> dict[str, str]:
    run = node.manifest.run if node.manifest is not None else {}
    times = {"prov:startTime": run.get("started"), "prov:endTime": run.get("finished")}
    return {name: str(value) for name, value in times.items() if value}
