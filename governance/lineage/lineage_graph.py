"""Lineage graph of a root, from its journal and manifests.

A node is one artifact, verdict or child (an export, an evaluation) as the journal states it, or a source file; its
edges go to what it was made from. An artifact that was removed since is known by its statement; one from before the
root had a journal by its manifest. Nothing is verified here (`verification.py` does): the graph shows what they state.

It costs a read of the journal and of every manifest of the root.

`prov_document` is the graph as W3C PROV-JSON (member submission of 24 April 2013). Artifacts, verdicts, children and
source files are entities; the making of each artifact is an activity, with its start and end where its manifest is
still there; edges are `used`, `wasGeneratedBy` and `wasDerivedFrom`. Names are URNs of the stage and the digest (of a
source file of its name, too), so a thing has one name in every document.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from governance.errors import ManifestError, MissingInput
from governance.files import sha256_bytes
from governance.manifest import FILE_NAME, SOURCES, Input, Manifest, read_manifest
from governance.signing.journal import VERDICT
from governance.signing.journal_lines import FILE_NAME as JOURNAL
from governance.signing.journal_lines import JournalEntry, read_journal


@dataclass(frozen=True)
class Node:
    """One thing in the graph."""

    stage: str
    """The stage, "verdict", "export" and so on, or a source's kind."""
    path: str
    """Its manifest below the root, its line in the journal, or a source file's name within the source."""
    digest: str
    config: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """An artifact's section, as stated or in its manifest."""
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Further facts from its statement."""
    manifest: Manifest | None = field(default=None, compare=False)
    """None: it is a source, or not an artifact, or no longer in the root."""
    unstated: bool = field(default=False, compare=False)
    """Its root has a journal, which states nothing of it."""

    @property
    def key(self) -> tuple[str, str]:
        """Identifier of a node."""
        return self.path, self.digest

    @property
    def gone(self) -> str:
        """Reason why an artifact is not here; "" if it is."""
        if self.manifest is not None or self.stage in SOURCES or not self.path.endswith(FILE_NAME):
            return ""
        return "in another root" if self.unstated else "removed since"

    def __hash__(self) -> int:
        return hash(self.key)


@dataclass(frozen=True)
class Graph:
    """Nodes by key, and the inputs of each, in order."""

    nodes: Mapping[tuple[str, str], Node]
    parents: Mapping[tuple[str, str], tuple[tuple[str, str], ...]]

    @functools.cached_property
    def children(self) -> dict[tuple[str, str], list[tuple[str, str]]]:
        """The other direction."""
        found: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for child, parents in self.parents.items():
            for parent in parents:
                found.setdefault(parent, []).append(child)
        return found

    def ancestors(self, node: Node) -> Iterator[tuple[int, Node]]:
        """(depth, ancestor), depth first, each once."""
        return self._walk(node, self.parents)

    def descendants(self, node: Node) -> Iterator[tuple[int, Node]]:
        """(depth, descendant), depth first, each once."""
        return self._walk(node, self.children)

    def _walk(
        self, node: Node, onward: Mapping[tuple[str, str], Iterable[tuple[str, str]]]
    ) -> Iterator[tuple[int, Node]]:
        seen = {node.key}
        waiting = [(1, key) for key in reversed(list(onward.get(node.key, ())))]
        while waiting:
            depth, key = waiting.pop()
            if key in seen:
                continue
            seen.add(key)
            yield depth, self.nodes[key]
            waiting += [(depth + 1, further) for further in reversed(list(onward.get(key, ())))]

    def find(self, manifest: Manifest) -> Node:
        """The node of an artifact.

        Raises:
            MissingInput: it is not of this root.
        """
        key = (manifest.path, manifest.digest)
        if key not in self.nodes:
            raise MissingInput(f"{manifest.path}: is not an artifact of this root")
        return self.nodes[key]


def read_graph(root: Path) -> Graph:
    """Lineage graph of a root, from its journal and manifests.

    A manifest that cannot be read is skipped.
    """
    nodes: dict[tuple[str, str], Node] = {}
    parents: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {}
    has_journal = (root / JOURNAL).exists()

    def add(node: Node, made_from: Iterable[Input]) -> None:
        nodes[node.key] = node
        inputs = list(made_from)
        for item in inputs:
            unstated = Node(item.stage, item.path, item.digest, unstated=has_journal)
            nodes.setdefault(unstated.key, unstated)
        parents[node.key] = tuple(dict.fromkeys((item.path, item.digest) for item in inputs))

    for entry in read_journal(root / JOURNAL, ())[0] if has_journal else []:
        add(*_stated(entry))
    for path in sorted(root.glob(f"*/*/{FILE_NAME}")):
        try:
            manifest = read_manifest(path)
        except (ManifestError, MissingInput):
            continue
        known = nodes.get((manifest.path, manifest.digest))
        facts = known.facts if known is not None else {}
        node = Node(manifest.stage, manifest.path, manifest.digest, manifest.config, facts, manifest)
        if node.key in parents:
            nodes[node.key] = node
        else:
            add(node, manifest.made_from)
    return Graph(nodes, parents)


def _stated(entry: JournalEntry) -> tuple[Node, tuple[Input, ...]]:
    """Node of a journal line, and its inputs."""
    predicate = entry.statement["predicate"]
    [(name, digest), *_] = entry.subjects.items()
    if entry.kind == VERDICT:
        judged = [
            Input(stage=Path(predicate[item]["path"]).parts[0], **predicate[item])
            for item in ("corpus", "audit")
            if isinstance(predicate.get(item), Mapping)
        ]
        return Node(VERDICT, entry.place, entry.digest, {}, predicate), entry.materials or tuple(judged)
    if "/" not in name or not name.endswith(f"/{FILE_NAME}"):
        name, digest = entry.place, entry.digest
    return Node(entry.kind, name, digest, predicate.get("config", {}), predicate), entry.materials


def describe_node(node: Node) -> str:
    """A node in one line.

    The line has stage, digest, path, and whether it is still there.
    """
    gone = f"  ({node.gone})" if node.gone else ""
    settings = node.config.get("recipe", node.config).get("train", {})
    taken_down = len(settings.get("removed_documents", ())) if isinstance(settings, Mapping) else 0
    without = f"  (without {taken_down} document(s), by takedown)" if taken_down else ""
    return f"{node.stage} {node.digest[:16]} {node.path}{gone}{without}"


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
