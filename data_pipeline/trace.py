"""Provenance of a token: document, source file, licence, stages.

    trace(<root>/encode/<key>/train/00000.tokens, 12345, root)

Promises: the answer is read from the artifacts themselves, so it holds for a root that was moved; nothing is guessed. A
token shard names its documents by the first half of the SHA-256 of their ids (`token_shards.py`), and the document
shard of the same name in the artifact that was encoded holds the id; every hash in between is compared. A missing
artifact is reported, and then only the identity is known. In an index of packed rows the offset is a position, counted
over all rows.

Price: one document shard's ids and one of its row groups are read; a minute's work for no corpus.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.documents import Document, read_groups, read_table, rows_by_group
from data_pipeline.tokens.mix import copies_in_words, read_plan_rows
from data_pipeline.tokens.packed_rows import SUFFIX as PACKED_SUFFIX
from data_pipeline.tokens.packed_rows import PackedRows, locate
from data_pipeline.tokens.token_shards import TokenShard, document_identity
from data_pipeline.tokens.tokenizer import load_encoder
from governance.errors import ManifestError, MissingInput, PipelineError
from governance.manifest import FILE_NAME, Input, Manifest, read_manifest

_SHOWN_SEEDS = 3  # seeds shown for a document that a teacher wrote
_SOURCES = ("file", "hub")  # the stages of inputs that are not artifacts


@dataclass(frozen=True)
class Ancestor:
    """One thing that the shard was made from."""

    stage: str
    """The stage, or what a source is: "file", "hub"."""
    digest: str
    path: str
    """Its manifest below the root; of a source file its name within the source."""
    note: str
    """"" for an artifact that exists; else what is wrong with it, in words."""


@dataclass(frozen=True)
class Traced:
    """Origin of a token."""

    shard: Path
    offset: int
    """Place of the token in its shard."""
    token: int
    place: int
    """The document's number in the shard, from 0."""
    token_in_document: int
    identity: str
    """The first half of the SHA-256 of the document's id, hexadecimal."""
    document: Document | None
    """None when its artifact is gone; `problem` says so. Its `sha256` is that of the raw text."""
    row: int | None
    """The document's row in its document shard."""
    span: tuple[int, int] | None
    """[first, past the last) character of the encoded text that the token touches; None: no text, or not known."""
    synthetic: str
    """The model that wrote the document, its seed and prompt, in words; "" where people wrote it."""
    problem: str
    """Parts that could not be recovered, in words; "" when all were."""
    mixed: str
    """Copies of the document in the corpus, and its quality bucket, in words; "" without a mixture."""
    chain: tuple[Ancestor, ...]
    """The shard's artifact, then what it was made from, down to the source file."""


def trace(path: Path, offset: int, root: Path | None = None) -> Traced:
    """Trace a token of a shard or a position of packed rows.

    `root` is the root of the shard; with None it is derived from its path, `<root>/<stage>/<key>/<role>/<shard>`.

    Raises:
        MissingInput: the shard, or the manifest next to it, is missing.
        ManifestError: the shard or a manifest is torn.
        PipelineError: there is no such token, or the position is padding.
    """
    path = path.resolve()
    root = path.parents[min(3, len(path.parents) - 1)] if root is None else root.resolve()
    manifest = _manifest_of(path, root)
    chain = [Ancestor(manifest.stage, manifest.digest, manifest.path, "")]
    if path.suffix == PACKED_SUFFIX:
        path, offset, manifest = _unpack(path, offset, manifest, root)
        chain.append(Ancestor(manifest.stage, manifest.digest, manifest.path, ""))
    shard = TokenShard.open(path)
    if not 0 <= offset < len(shard.tokens):
        raise PipelineError(f"{path}: has no token {offset}; its tokens are 0 to {len(shard.tokens) - 1}")
    place = int(np.searchsorted(shard.document_ends, np.uint64(offset), side="right"))
    start = int(shard.document_ends[place - 1]) if place else 0
    identity = shard.identities[place].tobytes()
    source, problem = documents_of(manifest, root)
    document, row, span, mixed = None, None, None, ""
    if source is not None:
        document, row, problem = _find(source, path.stem, identity, root)
    if document is not None and row is not None:
        mixed = _mixed(manifest, path.stem, row, root)
        span, problem = _span(manifest, shard, (start, offset), document.text, root)
    return Traced(
        path, offset, int(shard.tokens[offset]), place, offset - start, identity.hex(), document, row, span,
        _written_by(_origin(manifest, root), document), problem, mixed, (*chain, *_ancestors(manifest, document, root)),
    )  # fmt: skip


def _manifest_of(path: Path, root: Path) -> Manifest:
    """The manifest of a shard's artifact: `<root>/<stage>/<key>/<role>/<shard>`."""
    if not path.exists():
        raise MissingInput(
            f"{path}: no such shard. Give a file of an artifact, as <root>/encode/<key>/train/00000.tokens"
        )
    manifest = read_manifest(path.parents[1] / FILE_NAME)
    listed = {root / output.path for output in manifest.outputs}
    if path not in listed:
        raise ManifestError(f"{path}: is not listed in the manifest next to it, below the root {root}")
    return manifest


def _unpack(path: Path, position: int, packed: Manifest, root: Path) -> tuple[Path, int, Manifest]:
    """Token shard, offset and artifact of a packed position."""
    index = PackedRows.open(path)
    try:
        found = locate(index, position)
    except IndexError:
        last = index.count * index.sequence_length - 1
        raise PipelineError(f"{path}: has no position {position}; its positions are 0 to {last}") from None
    if found is None:
        raise PipelineError(f"{path}: position {position} is padding at the end of its row, and of no document")
    tokens = read_manifest(root / packed.inputs[0].path)
    for output in tokens.outputs:
        if output.sha256 == index.shards[found[0]]:
            return root / output.path, found[1], tokens
    raise MissingInput(f"{path}: its token shard of sha256 {index.shards[found[0]][:16]}… is not in {tokens.folder}")


def documents_of(tokens: Manifest, root: Path) -> tuple[Manifest | None, str]:
    """The artifact whose documents were encoded, or why it is missing."""
    gone = []
    for item in tokens.inputs:
        manifest, note = _read(item, root)
        if manifest is None:
            gone.append(f"{item.path}: {note}" if note else item.path)
        elif manifest.files("documents", root):
            return manifest, ""
    if all(item.stage in _SOURCES for item in tokens.inputs):
        return None, f"{tokens.folder} was made by the stage {tokens.stage!r}, which has no documents"
    return None, f"the documents of {tokens.folder} are gone ({'; '.join(gone)}); only the identity is known"


def _read(item: Input, root: Path) -> tuple[Manifest | None, str]:
    """Manifest of an input artifact, or None and the reason."""
    if item.stage in _SOURCES:
        return None, ""
    try:
        manifest = read_manifest(root / item.path)
    except MissingInput:
        return None, "is gone"
    except ManifestError as error:
        return None, str(error)
    if manifest.digest != item.digest:
        return None, f"has digest {manifest.digest[:16]}… now; another was used"
    return manifest, ""


def _find(source: Manifest, stem: str, identity: bytes, root: Path) -> tuple[Document | None, int | None, str]:
    """The document of this identity in the shard of this name.

    The result is the document, its row, and the problem.
    """
    paths = [path for path in source.files("documents", root) if path.stem == stem]
    if not paths or not paths[0].exists():
        return None, None, f"{source.folder}/documents/{stem}.parquet is gone; only the identity is known"
    ids = read_table(paths[0], columns=["id"])["id"].to_pylist()
    for row, name in enumerate(ids):
        if document_identity(name) == identity:
            [(group, rows)] = rows_by_group(paths[0], np.array([row]))
            [table] = read_groups(paths[0], chosen=[group])
            return Document(**table.slice(int(rows[0]), 1).to_pylist()[0]), row, ""
    return None, None, f"{paths[0]}: has no document of identity {identity.hex()}; was it altered?"


def _mixed(tokens: Manifest, stem: str, row: int, root: Path) -> str:
    """Planned copies of a document, in words; "" without a plan."""
    for item in tokens.inputs:
        manifest = _read(item, root)[0] if item.stage == "mix" else None
        for path in manifest.files("plan", root) if manifest is not None else ():
            if path.stem == stem and path.exists():
                return copies_in_words(*read_plan_rows(path, [row])[0])
    return ""


def _span(
    tokens: Manifest, shard: TokenShard, where: tuple[int, int], text: str, root: Path
) -> tuple[tuple[int, int] | None, str]:
    """Characters that the token covers, or why they are unknown."""
    start, offset = where
    tokenizers = [item for item in tokens.inputs if item.stage == "tokenizer"]
    manifest, note = _read(tokenizers[0], root) if tokenizers else (None, "is not among the inputs")
    if manifest is None:
        return None, f"the tokenizer of {tokens.folder} {note}; the characters are not known"
    if int(shard.tokens[offset]) == shard.end_of_document:
        return None, ""
    encoder = load_encoder(manifest, root)
    if offset == start and int(shard.tokens[offset]) == encoder.begin_of_document:
        return None, ""
    decode = encoder.decode
    first = _agree(decode(shard.tokens[start:offset].tolist()), text)
    last = _agree(decode(shard.tokens[start : offset + 1].tolist()), text)
    if first is None or last is None:
        return None, "the document's text is not what its tokens spell; the characters are not known"
    return (first[0], max(last[0] + last[1], first[0] + 1)), ""


def _agree(spelled: str, text: str) -> tuple[int, bool] | None:
    """Characters that a token prefix spells, and whether it ends inside one."""
    if text.startswith(spelled):
        return len(spelled), False
    if spelled.endswith("\ufffd") and text.startswith(spelled[:-1]):  # a torn character decodes to one of these
        return len(spelled) - 1, True
    return None


def _ancestors(tokens: Manifest, document: Document | None, root: Path) -> Iterator[Ancestor]:
    """Ancestors of a token artifact, nearest first, then the source file."""
    seen: set[tuple[str, str]] = set()
    queue = list(tokens.inputs)
    while queue:
        item = queue.pop(0)
        if (item.digest, item.path) in seen or item.stage in _SOURCES:
            continue
        seen.add((item.digest, item.path))
        manifest, note = _read(item, root)
        yield Ancestor(item.stage, item.digest, item.path, note)
        if manifest is not None:
            queue += manifest.inputs
    origin = _origin(tokens, root)
    sources = _source_files(list(origin.inputs) if origin else [], document) if document else tokens.inputs
    for item in sources:
        if item.stage in _SOURCES:
            yield Ancestor(item.stage, item.digest, item.path, "")


def _origin(tokens: Manifest, root: Path) -> Manifest | None:
    """The artifact that read the documents, along each stage's first input.

    The others (models, lists, earlier corpora) have source files of their own, perhaps of the same names.
    """
    manifest: Manifest | None = tokens
    while manifest is not None and manifest.inputs and manifest.inputs[0].stage not in _SOURCES:
        manifest, _ = _read(manifest.inputs[0], root)
    return manifest


def _written_by(ingest: Manifest | None, document: Document | None) -> str:
    """Teacher of a synthetic document, in words; "" for any other."""
    if ingest is None or document is None:
        return ""
    sources = {one["name"]: one for one in ingest.config.get("sources", ())}
    source = sources.get(document.source, {})
    if source.get("type") != "synthetic":
        return f"written by {source['synthetic_by']}" if source.get("synthetic_by") else ""
    facts = json.loads(document.columns or "{}")
    seeds = facts.get("seeds", ())
    more = f" and {len(seeds) - _SHOWN_SEEDS:,} more" if len(seeds) > _SHOWN_SEEDS else ""
    return (
        f"written by {facts.get('teacher')} (requested: {source['model']}; terms: {source['terms']}) from "
        f"{', '.join(seeds[:_SHOWN_SEEDS])}{more}, prompt {str(facts.get('prompt_sha256'))[:16]}, ended by "
        f"{facts.get('finish_reason') or 'no stated reason'}"
    )


def _source_files(sources: list[Input], document: Document) -> list[Input]:
    """The inputs that a document is from.

    They are its file, its archive, or all that its source has.
    """
    name = f"{document.source}/{document.file}"
    for test in (name.__eq__, lambda path: name.startswith(path), lambda path: path.startswith(f"{document.source}/")):
        if found := [item for item in sources if test(item.path)]:
            return found
    return []


def explain(traced: Traced) -> str:
    """A trace in lines of text, for a terminal."""
    lines = [
        f"token      {traced.token}, number {traced.offset} of {traced.shard}",
        f"document   number {traced.place} of the shard, of which this is token {traced.token_in_document}",
        f"identity   {traced.identity}",
    ]
    if (document := traced.document) is not None:
        unit = "byte" if document.file.endswith((".warc", ".warc.gz")) else "record"
        lines += [
            f"id         {document.id}",
            f"source     {document.source}, file {document.file}, {unit} {document.position}",
            f"url        {document.url or 'none given'}",
            f"language   {document.language or 'not identified'}",
            f"licence    {document.licence}",
            f"sha256     {document.sha256} (raw text)",
            *([f"synthetic  {traced.synthetic}"] if traced.synthetic else []),
            *([f"mixed      {traced.mixed}"] if traced.mixed else []),
        ]
    if traced.span is not None and traced.document is not None:
        first, stop = traced.span
        lines.append(f"characters {first} to {stop} of the encoded text: {traced.document.text[first:stop]!r}")
    if traced.problem:
        lines.append(f"problem    {traced.problem}")
    lines.append("made from")
    width = max(len(a.stage) for a in traced.chain)
    lines += [
        f"  {a.stage:<{width}} {a.digest[:16]}  {a.path}{f'  ({a.note})' if a.note else ''}" for a in traced.chain
    ]
    return "\n".join(lines)
