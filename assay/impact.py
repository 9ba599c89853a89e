"""Impact of a document: shards, steps and checkpoints that saw it.

    shards        token shards that hold the document, found by its identity
    rows          training rows (stretches of a shard, or packed rows) that hold a token of it
    checkpoints   those whose run had read such a row by their step; the others of the same run did not see it
    children      whatever descends from such a checkpoint: runs, reports, exports, evaluations, tuned models

The order of rows is a function of seed, step and recipe (`sampler.py`), so the steps are computed, not remembered: it
holds for checkpoints that were removed since, too, which the journal knows. A document that a filter removed was not
trained on; the answer says where it ended and, for a duplicate, which document replaced it: that document's text may
be the same.

Price: 16 bytes per document of every token shard are read, the columns id and url of every ingested document, id and
reason of every removed one; per hit a handful of integers. All these files are hashed, at 1.5 GB/s: token shards and
packed rows first (`require_whole_shards`), the others as they are read (`takedown.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from assay.receipts.unknown_ids import id_note
from assay.takedown import find_documents
from data_pipeline.tokens.packed_rows import SUFFIX as PACKED_SUFFIX
from data_pipeline.tokens.packed_rows import PackedRows
from data_pipeline.tokens.token_shards import SUFFIX, TokenShard, row_count
from governance.config import validate
from governance.errors import AlteredFile, MissingInput
from governance.lineage.lineage_graph import Graph, Node, describe_node, read_graph
from governance.manifest import Manifest, output_fault
from governance.stage_order import CORPUS_STAGES
from pretrain.checkpoint.format import CheckpointIdentity
from pretrain.config.training import TrainConfig
from pretrain.data.batch_size import batch_sizes
from pretrain.data.dataset import open_rows
from pretrain.data.removed_documents import places_in, rows_of_pieces, rows_of_stretches
from pretrain.data.sampler import RowSampler, sampler_of

ROLES = ("train", "validation")
_CHECKPOINT = "checkpoint"
_PACKED = "pack"
_NAMED = 8  # documents whose identities a terminal shows
_READ = ("megatron", *(row.name for row in CORPUS_STAGES))

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AffectedShard:
    """A token shard that holds a requested document."""

    root: Path
    tokens: Node
    """The artifact of the shard."""
    path: str
    """Below the root."""
    role: str
    documents: tuple[int, ...]
    """Places of the documents in the shard, from 0."""


@dataclass(frozen=True)
class AffectedRows:
    """Training rows of one artifact that hold the requested document."""

    root: Path
    made: Node
    file: str
    """The shard or the index of packed rows, below the root."""
    role: str
    rows: tuple[int, ...]
    """Their numbers in the file, from 0."""
    sequence_length: int


@dataclass(frozen=True)
class Exposure:
    """A checkpoint, with the number of times its training saw the document."""

    root: Path
    checkpoint: Node
    step: int
    """The checkpoint's own."""
    first_step: int
    """0: never."""
    times: int


@dataclass(frozen=True)
class Impact:
    """Everything that a request affects."""

    identities: tuple[str, ...]
    """First half of the SHA-256 of each document's id, hexadecimal."""
    fates: tuple[str, ...]
    """Stage and reason of each removed document; copies of each mixed one."""
    shards: tuple[AffectedShard, ...]
    rows: tuple[AffectedRows, ...]
    checkpoints: tuple[Exposure, ...]
    """All checkpoints trained on those artifacts, including those that did not see it."""
    children: tuple[tuple[Path, Node], ...]


def impact(request: str, roots: Sequence[Path]) -> Impact:
    """Impact of a document by id, URL or shard path.

    Raises:
        MissingInput: a root has no artifact, or nothing in them is known by that name.
        ManifestError: a shard is torn.
        AlteredFile: a shard of documents is not as its manifest says.
    """
    graphs = {root: read_graph(root) for root in dict.fromkeys(roots)}
    for root, graph in graphs.items():
        if not graph.nodes:
            raise MissingInput(f"{root}: has no artifact and no journal. Give the root of a run.")
    found = find_documents(request, {root: [node.manifest for node in graph.nodes.values() if node.manifest is not None]
                                   for root, graph in graphs.items()})  # fmt: skip
    shards = [held for root, graph in graphs.items() for held in _shards_of(artifacts(graph), root, found.identities)]
    if not shards and not found.known:
        notes = "\n  ".join(str(root) if "://" in request else f"{root}: {id_note(request, root)}" for root in graphs)
        raise MissingInput(
            f"{request!r}: no document, URL or shard of that name. An id is <source>/<file>#<record>, or as the source "
            f"states it; see: assay data trace\n  {notes}"
        )
    rows = [item for root, graph in graphs.items() for item in _rows(graph, root, shards)]
    seen = [item for root, graph in graphs.items() for item in _checkpoints(graph, root, shards, rows)]
    children = {
        (root, node)
        for item in seen
        if item.times
        for root, graph in graphs.items()  # a run may continue from a checkpoint of another root
        if item.checkpoint.key in graph.nodes
        for _, node in graph.descendants(item.checkpoint)
    }
    return Impact(
        tuple(sorted(identity.hex() for identity in found.identities)),
        tuple(found.fates),
        tuple(shards),
        tuple(rows),
        tuple(sorted(seen, key=lambda item: (str(item.root), item.step, item.checkpoint.digest))),
        tuple(sorted(children, key=lambda item: (str(item[0]), item[1].stage, item[1].path))),
    )


def require_whole_shards(roots: Iterable[Path]) -> None:
    """Raise where token shards, packed rows or manifests were altered.

    Raises:
        AlteredFile: names the file: in it, a document may have lost its name.
    """
    for root in roots:
        for node in read_graph(root).nodes.values():
            if node.manifest is None and node.stage in _READ and (root / node.path).exists():
                raise AlteredFile(
                    f"{root / node.path}: is not the manifest that the journal states. Put it back; see: assay "
                    "governance verify ROOT"
                )
            for output in node.manifest.outputs if node.manifest is not None else ():
                ours = output.path.endswith((SUFFIX, PACKED_SUFFIX))
                if ours and (fault := output_fault(output, root)):
                    raise AlteredFile(
                        f"{root / output.path}: {fault}. Put it back, or remove its folder; then ask again"
                    )


def steps_that_read(identities: frozenset[bytes], checkpoint: Manifest, tokens: Manifest, root: Path) -> list[int]:
    """Steps of a checkpoint's training that read these documents.

    A row that was read twice has two entries.
    """
    return steps_of_each([identities], checkpoint, tokens, root)[0]


def steps_of_each(
    requests: Sequence[frozenset[bytes]], checkpoint: Manifest, tokens: Manifest, root: Path
) -> list[list[int]]:
    """Steps of a checkpoint's training that read each set of documents."""
    graph = read_graph(root)
    node, held = graph.find(checkpoint), graph.find(tokens)
    recipe, last = _identity(node).recipe.train, _identity(node).step
    shards = list(_shards_of([held], root, frozenset().union(*requests) - _removed(recipe)))
    steps = []
    for identities in requests:
        rows = list(_rows(graph, root, list(_of(shards, identities))))
        made = [graph.nodes[key] for key in graph.parents[node.key] if graph.nodes[key] in {item.made for item in rows}]
        found = [(each, *_numbers(each, root, recipe.sequence_length, rows)) for each in made[:1]]
        steps.append(
            [
                at
                for each, numbers, count in found
                for at in _order(each, root, count, recipe).steps_that_read(numbers, last)
            ]
        )
    return steps


def _shards_of(nodes: Iterable[Node], root: Path, identities: frozenset[bytes]) -> Iterator[AffectedShard]:
    for node in nodes:
        for role, path in _files(node.manifest, root, SUFFIX):
            if places := places_in(TokenShard.open(path), identities).tolist():
                yield AffectedShard(root, node, path.relative_to(root).as_posix(), role, tuple(places))


def artifacts(graph: Graph) -> Iterator[Node]:
    """Artifacts whose manifests still exist."""
    yield from (node for node in graph.nodes.values() if node.manifest is not None)


def _files(manifest: Manifest | None, root: Path, suffix: str) -> Iterator[tuple[str, Path]]:
    for output in manifest.outputs if manifest is not None else ():
        role = Path(output.path).parent.name
        if output.path.endswith(suffix) and role in ROLES and (root / output.path).exists():
            yield role, root / output.path


def _rows(graph: Graph, root: Path, shards: Sequence[AffectedShard]) -> Iterator[AffectedRows]:
    """Rows of packed artifacts, and of token shards read directly."""
    ours = [held for held in shards if held.root == root]
    for node in artifacts(graph):
        if node.stage == _PACKED:
            yield from _packed(node, root, [held for held in ours if held.tokens.key in graph.parents[node.key]])
    for held in ours:
        for length in sorted(
            {_identity(node).recipe.train.sequence_length for node in _trained_on(graph, held.tokens)}
        ):
            rows = rows_of_stretches(TokenShard.open(root / held.path), np.array(held.documents), length)
            yield AffectedRows(root, held.tokens, held.path, held.role, tuple(rows.tolist()), length)


def _packed(node: Node, root: Path, shards: Sequence[AffectedShard]) -> Iterator[AffectedRows]:
    known = {_digest(held): (TokenShard.open(root / held.path), np.array(held.documents)) for held in shards}
    for role, path in _files(node.manifest, root, PACKED_SUFFIX):
        index = PackedRows.open(path)
        rows = rows_of_pieces(
            index, [(number, *known[digest]) for number, digest in enumerate(index.shards) if digest in known]
        )
        if len(rows):
            yield AffectedRows(
                root, node, path.relative_to(root).as_posix(), role, tuple(rows.tolist()), index.sequence_length
            )


def _digest(held: AffectedShard) -> str:
    outputs = held.tokens.manifest.outputs if held.tokens.manifest is not None else ()
    return next(output.sha256 for output in outputs if output.path == held.path)


def _trained_on(graph: Graph, tokens: Node) -> list[Node]:
    """The checkpoints that read an artifact's rows, removed ones too."""
    below = (graph.nodes[key] for key in graph.children.get(tokens.key, ()))
    return [node for node in below if node.stage == _CHECKPOINT]


def _identity(checkpoint: Node) -> CheckpointIdentity:
    return validate(checkpoint.config, CheckpointIdentity, checkpoint.path)


def _removed(train: TrainConfig) -> frozenset[bytes]:
    """Documents that a training did not read, by a takedown."""
    return frozenset(map(bytes.fromhex, train.removed_documents))


def _checkpoints(
    graph: Graph, root: Path, shards: Sequence[AffectedShard], rows: Sequence[AffectedRows]
) -> Iterator[Exposure]:
    """Checkpoints on the artifacts with affected rows, and their read counts."""
    left: dict[frozenset[bytes], Sequence[AffectedRows]] = {frozenset(): rows}
    for made in dict.fromkeys(item.made for item in rows if item.root == root):
        for checkpoint in _trained_on(graph, made):
            identity = _identity(checkpoint)
            if (removed := _removed(identity.recipe.train)) not in left:
                left[removed] = list(_rows(graph, root, list(_of(shards, removed, inside=False))))
            numbers, count = _numbers(made, root, identity.recipe.train.sequence_length, left[removed])
            order = _order(made, root, count, identity.recipe.train)
            steps = order.steps_that_read(numbers, identity.step)
            yield Exposure(root, checkpoint, identity.step, steps[0] if steps else 0, len(steps))


def _of(
    shards: Iterable[AffectedShard], documents: frozenset[bytes], *, inside: bool = True
) -> Iterator[AffectedShard]:
    """The shards with those documents that are in a set, or outside."""
    for held in shards:
        identities = TokenShard.open(held.root / held.path).identities
        places = tuple(place for place in held.documents if (identities[place].tobytes() in documents) == inside)
        if places:
            yield replace(held, documents=places)


def _numbers(made: Node, root: Path, sequence_length: int, rows: Sequence[AffectedRows]) -> tuple[Rows, int]:
    """Row numbers over all files of role "train", and the total."""
    files = [path for role, path in _files(made.manifest, root, PACKED_SUFFIX if made.stage == _PACKED else SUFFIX)
             if role == "train"]  # fmt: skip
    counts = [
        PackedRows.open(path).count if made.stage == _PACKED else row_count(TokenShard.open(path), sequence_length)
        for path in files
    ]
    names = [path.relative_to(root).as_posix() for path in files]
    starts = dict(zip(names, itertools.accumulate(counts, initial=0), strict=False))
    numbers = [
        starts[item.file] + row
        for item in rows
        if (item.root, item.made, item.role) == (root, made, "train") and item.sequence_length == sequence_length
        for row in item.rows
    ]
    return np.array(sorted(numbers), dtype=np.int64), sum(counts)


def _order(made: Node, root: Path, count: int, train: TrainConfig) -> RowSampler:
    """The sampler of a training; only a mixture reads the rows."""
    if (train.mixture or train.late_sources) and made.manifest is not None:
        return sampler_of(open_rows(made.manifest, "train", root, train.sequence_length), train)
    return RowSampler(count, train.seed, batch_sizes(train))


def explain(found: Impact) -> str:
    """The answer in lines of text, for a terminal."""
    more = ", ..." * (len(found.identities) > _NAMED)
    lines = [f"{len(found.identities)} document(s): {', '.join(found.identities[:_NAMED])}{more}"]
    lines += [f"  {fate}" for fate in found.fates]
    lines.append(f"token shards that hold it: {len(found.shards) or 'none'}")
    lines += [
        f"  {held.root / held.path}: document(s) {_listed(held.documents)} ({held.role})" for held in found.shards
    ]
    lines.append(f"training rows that hold it: {sum(len(item.rows) for item in found.rows) or 'none'}")
    lines += [
        f"  {item.root / item.file}: row(s) {_listed(item.rows)} of {item.sequence_length} positions ({item.role})"
        for item in found.rows
    ]
    saw = [item for item in found.checkpoints if item.times]
    lines.append(f"checkpoints that saw it: {len(saw) or 'none'}")
    lines += [
        f"  {item.root}: {describe_node(item.checkpoint)}: step {item.step}, first seen at step {item.first_step}, "
        f"{item.times} time(s)"
        for item in saw
    ]
    others = [item for item in found.checkpoints if not item.times]
    if others:
        steps = ", ".join(f"{item.checkpoint.digest[:16]} (step {item.step})" for item in others)
        lines.append(f"checkpoints of the same data that did not see it: {steps}")
    lines.append(f"children of those that saw it: {len(found.children) or 'none'}")
    lines += [f"  {root}: {describe_node(node)}" for root, node in found.children]
    return "\n".join(lines)


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:12]))
    return shown if len(numbers) <= 12 else f"{shown} and {len(numbers) - 12} more"
