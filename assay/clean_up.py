"""Clean-up of a root: artifacts that nothing present rests on.

An artifact of the corpus, its audit or its parts (`REMOVABLE`) is kept if one of these rests on it, itself or through
what it was made from:

- the run of the given configuration, as far as it is made, and artifacts that the user names;
- a verdict below `verdicts/`: the corpus and the audit that it judges;
- an artifact of any other stage (checkpoints, runs, reports, documents), and one of these that is not finished;
- a statement of the journal on something outside the root: an export, a pushed corpus, an evaluation.

Audits and their counts are kept with their corpus. Unfinished artifacts are never removed.

`clean_up` states the removal in the journal (`urn:assay:clean-up:1`, signed: each manifest with its digest), then moves
each folder out of the way with one rename, products before what they were made from, and deletes it. So an artifact is
whole or gone at every moment, and verification, which accepts an artifact that was removed whole, is right after each
step. A clean-up that was killed is continued by the next one. Records that only removed artifacts list go too.
Price: one manifest an artifact, the journal, and a `stat` a file.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from governance.errors import ManifestError, Occupied
from governance.files import held, is_held, living_writers, move_folder, remove_file, remove_tree, sha256_bytes
from governance.gate.verdict import GovernanceConfig, read_verdict
from governance.lineage.lineage_graph import Graph, Node, read_graph
from governance.log import get_logger
from governance.manifest import FILE_NAME, SOURCES, Manifest
from governance.signing.dsse import statement
from governance.signing.journal import VERDICT, Journal
from governance.signing.journal_lines import FILE_NAME as JOURNAL
from governance.stage_order import CORPUS_STAGES
from pretrain.distributed.lease import live_holder

STATEMENT, STATEMENT_TYPE = "clean-up", "urn:assay:clean-up:1"
REMOVED = ".clean-up"
"""Folder of a root for what is being deleted: one level deeper than artifacts, so that nothing takes it for one."""
_WITH_CORPUS = ("bias", "audit", "data_docs", "model_audit")
_PARTS = ("fetch", "lists", "language_model", "classifier", "evaluation_sets")
REMOVABLE = frozenset((*(row.name for row in CORPUS_STAGES), *_WITH_CORPUS, *_PARTS))


@dataclass(frozen=True)
class Candidate:
    """An artifact that a clean-up could remove."""

    path: str
    """Its folder below the root."""
    bytes: int
    """Of its files."""
    kept_for: str
    """What rests on it; "": nothing, so it is removed."""
    manifest: Manifest


@dataclass(frozen=True)
class CleanUp:
    """Plan of a clean-up: artifacts to remove and to keep."""

    candidates: tuple[Candidate, ...]
    records: tuple[str, ...]
    """Files of `<stage>/records/` that only removed artifacts list."""
    freed: int
    """Bytes that the disk gets back: files that a kept artifact shares by a hard link do not count."""

    @property
    def free(self) -> list[Candidate]:
        """The artifacts that nothing rests on."""
        return [one for one in self.candidates if not one.kept_for]


def plan_clean_up(
    root: Path, present: Iterable[Manifest], named: Iterable[Manifest], keys: tuple[GovernanceConfig, Path]
) -> CleanUp:
    """The artifacts of a root, with the reason why each is kept.

    Args:
        root: the artifacts' root.
        present: the artifacts of the configuration's run.
        named: artifacts that the user keeps.
        keys: the configuration that names the trusted keys, and where its paths start.

    Raises:
        ManifestError: a manifest or verdict cannot be read, so what it rests on is not known.
    """
    graph = read_graph(root)
    there = {node.path: node for node in graph.nodes.values() if node.manifest is not None}
    for file in sorted(root.glob(f"*/*/{FILE_NAME}")):
        if file.relative_to(root).as_posix() not in there:
            raise ManifestError(f"{file}: cannot be read, so its inputs are not known. Remove or restore its folder.")
    kept: dict[str, str] = {}
    for reason, node in _ends(root, graph, there, present, named, keys):
        for path in (node.path, *(above.path for _, above in graph.ancestors(node))):
            if path in there:
                kept.setdefault(path, reason)
    for path, node in there.items():
        rests_on = [item.path for item in _made(node).inputs if item.stage not in SOURCES]
        if node.stage in _WITH_CORPUS and rests_on and all(item in kept for item in rests_on):
            kept.setdefault(path, f"{kept[rests_on[0]]} (its corpus)")
    removable = [node for path, node in sorted(there.items()) if node.stage in REMOVABLE]
    candidates = tuple(
        Candidate(
            _made(node).folder,
            sum(path.stat().st_size for path in _files(root / _made(node).folder)),
            kept.get(node.path, ""),
            _made(node),
        )
        for node in removable
    )
    free = {one.manifest.path for one in candidates if not one.kept_for}
    staying = [_made(node) for path, node in there.items() if path not in free]
    needed = {item.path for one in staying for item in (*(one.beside or ()), *one.outputs)}
    listed = {item.path for path in free for item in _made(there[path]).beside or ()}
    records = tuple(
        sorted(
            (name for name in listed - needed if "/records/" in name and (root / name).is_file()),
            key=lambda name: (name.endswith(".json"), name),  # a note goes after what it vouches for
        )
    )
    gone = [path for one in candidates if not one.kept_for for path in _files(root / one.path)]
    return CleanUp(candidates, records, _freed([*gone, *(root / name for name in records)]))


def _made(node: Node) -> Manifest:
    assert node.manifest is not None, "only artifacts that are there are listed"
    return node.manifest


def _ends(
    root: Path,
    graph: Graph,
    there: Mapping[str, Node],
    present: Iterable[Manifest],
    named: Iterable[Manifest],
    keys: tuple[GovernanceConfig, Path],
) -> Iterator[tuple[str, Node]]:
    """Artifacts kept for themselves, each with a reason.

    All that they rest on is kept with them.
    """
    yield from (("this run", graph.find(manifest)) for manifest in present)
    yield from (("--keep", graph.find(manifest)) for manifest in named)
    for file in sorted(root.glob("verdicts/*.json")):
        verdict = read_verdict(file, *keys)
        for item in ("corpus", "audit"):
            if (judged := there.get(verdict[item]["path"])) is not None:
                yield file.relative_to(root).as_posix(), judged
    yield from ((_made(node).folder, node) for path, node in sorted(there.items()) if node.stage not in REMOVABLE)
    unfinished = {
        folder.name
        for stage in ("train", "checkpoint")
        for folder in root.glob(f"{stage}/*")
        if not (folder / FILE_NAME).exists()
    }
    for node in graph.nodes.values():
        if node.manifest is None and node.stage not in (*SOURCES, VERDICT) and node.key in graph.parents:
            outside = not node.path.endswith(FILE_NAME)  # an export, a push: its statement has no manifest
            if outside or Path(node.path).parent.name in unfinished:
                yield f"{node.stage} ({node.path})", node


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]


def _freed(paths: Iterable[Path]) -> int:
    names: Counter[tuple[int, int]] = Counter()
    facts = {}
    for path in paths:
        state = path.stat()
        names[state.st_dev, state.st_ino] += 1
        facts[state.st_dev, state.st_ino] = state
    return sum(facts[inode].st_size for inode, count in names.items() if count >= facts[inode].st_nlink)


def in_use(root: Path, *, joins: bool = False) -> str:
    """The process that works in a root; "" where none is seen.

    Seen are the lease of a training, the locks of workers (not of a join where this process `joins`), and files that a
    living process is writing.
    """
    for folder in sorted(root.glob("train/*")):
        if holder := live_holder(folder):
            return f"a training in {folder.relative_to(root)}: {holder}"
    for lock in (*sorted(root.glob("share-*.lock")), *(() if joins else (root / "join.lock",))):
        if is_held(lock):
            return f"a worker that holds {lock.name}"
    for path, process in living_writers(root):
        return f"process {process}, which writes {path.relative_to(root)}"
    return ""


def clean_up(root: Path, plan: CleanUp, journal: Journal) -> None:
    """Remove what the plan frees; it continues a clean-up that was killed.

    Raises:
        Occupied: a training or another command works in the root.
        StorageError: the disk refuses.
    """
    with held(root / "join.lock", f"clean-up, process {os.getpid()} on {socket.gethostname()}") as holder:
        user = f"a worker that holds join.lock: {holder}" if holder is not None else in_use(root, joins=True)
        if user:
            raise Occupied(f"{root}: is used by {user}. Nothing was removed. Wait until it ends, then run this again.")
        if plan.free:
            removed = [
                {"path": one.manifest.path, "digest": one.manifest.digest, "bytes": one.bytes} for one in plan.free
            ]
            head = journal.head()
            subject = {f"{JOURNAL}#{head.partition(':')[0]}": head.partition(":")[2] or sha256_bytes(b"")}
            journal.append(STATEMENT, statement(subject, STATEMENT_TYPE, {"removed": removed}))
        for one in _products_first(plan.free):
            target = root / REMOVED / one.path
            remove_tree(target)  # of a clean-up that was killed
            move_folder(root / one.path, target)
        for name in plan.records:
            remove_file(root / name)
        remove_tree(root / REMOVED)
    get_logger(__name__).info("%s: %d artifacts removed", root, len(plan.free))


def _products_first(artifacts: Sequence[Candidate]) -> list[Candidate]:
    """Artifacts in order of removal, products before their inputs."""
    left = {one.manifest.path: one for one in artifacts}
    ordered: list[Candidate] = []
    while left:
        inputs = {item.path for one in left.values() for item in one.manifest.inputs}
        last = [path for path in left if path not in inputs]
        ordered += [left.pop(path) for path in last or list(left)]
    return ordered
