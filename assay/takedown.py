"""Takedown requests: documents behind an id, URL, shard or repository; synthetic ones."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from data_pipeline.code.opt_out_lists import opted_out
from data_pipeline.documents import KEPT_COLUMNS, REMOVED_SCHEMA, read_table, shard_schema
from data_pipeline.tokens.mix import copies_in_words, document_hash, read_plan_rows
from data_pipeline.tokens.token_shards import SUFFIX, TokenShard, document_identity
from data_pipeline.urls import normalise_url
from governance.errors import ConfigError
from governance.log import get_logger
from governance.manifest import Manifest
from governance.verified_files import intact

Roots = Mapping[Path, Sequence[Manifest]]
"""The artifacts that are there, by root."""


@dataclass(frozen=True)
class FoundDocuments:
    """Documents that match a request."""

    identities: frozenset[bytes]
    """The first half of the SHA-256 of each id."""
    fates: tuple[str, ...]
    """Stage and reason of each removed one, and the copies that a mixture makes of each other."""
    known: bool
    """True if any document of the roots matches."""


def find_documents(request: str, roots: Roots) -> FoundDocuments:
    """Documents of an id, a URL, a shard or a code repository.

    A repository may be followed by a path in it.

    Each shard is compared with its digest as it is read, except token shards, which `impact.py` compares.

    Raises:
        ConfigError: it is the path of a file without documents.
        ManifestError: a shard is torn.
        AlteredFile: a shard is not as its manifest says: in it, a document may have lost its name.
    """
    path = _shard(request, roots)
    if path is not None and path.suffix == SUFFIX:
        held = TokenShard.open(path).identities
        return FoundDocuments(frozenset(row.tobytes() for row in held), (), len(held) > 0)
    read = set(_matching_ids(request, roots) if path is None else _ids_in(path, roots))
    written = dict(_written_from(read or {request}, roots))
    read |= set(written)
    ids = read or {request}  # the ingested documents may be gone; a shard still has identities
    identities = frozenset(document_identity(name) for name in ids)
    fates = (*(f"{name}: {words}" for name, words in sorted(written.items())), *_fates(ids, roots))
    return FoundDocuments(identities, fates, bool(read or fates))


def _shard(request: str, roots: Roots) -> Path | None:
    for path in (Path(request), *(root / request for root in roots)):
        if path.is_file():
            if path.suffix not in (SUFFIX, ".parquet"):
                raise ConfigError(f"{path}: is not a shard of documents (.parquet) or tokens ({SUFFIX}).")
            return path
    return None


def _ids_in(path: Path, roots: Roots) -> list[str]:
    """Ids of the documents of a shard, which a manifest may list."""
    outputs = [(one, root) for root, made in roots.items() for manifest in made for one in manifest.outputs]
    same = [(one, root) for one, root in outputs if Path(one.path).name == path.name and (root / one.path).exists()]
    with contextlib.ExitStack() as reading:
        for output, root in same:
            if path.samefile(root / output.path):
                reading.enter_context(intact(output, root))
        return read_table(path, columns=["id"])["id"].to_pylist()  # type: ignore[no-any-return]


def _tables(roots: Roots, role: str, stage: str = "") -> Iterator[tuple[Manifest, Path]]:
    """Files of a role, each unaltered while it is read."""
    for root, manifests in roots.items():
        for manifest in manifests:
            for output in manifest.listed(role) if not stage or manifest.stage == stage else ():
                if not (root / output.path).exists():
                    get_logger(__name__).warning("%s: is gone; it may have held the document", root / output.path)
                    continue
                with intact(output, root) as path:
                    yield manifest, path


def _matching_ids(request: str, roots: Roots) -> Iterator[str]:
    """Ids of this id, URL or repository among all documents."""
    requested_url = normalise_url(request)
    entry = {request.rstrip("/").lower()}
    for _, path in _tables(roots, "documents", "ingest"):
        schema = shard_schema(path)
        table = read_table(path, schema, [name for name in ("id", "url", "columns") if name in schema.names])
        for row in table.to_pylist():
            name, url = row["id"], row["url"]
            if name == request or (url and (url == request or (requested_url and normalise_url(url) == requested_url))):
                yield name
            elif '"repository"' in row.get("columns", ""):
                facts = json.loads(row["columns"])
                if opted_out(str(facts["repository"]), str(facts.get("path", "")), entry):
                    yield name


def _written_from(ids: set[str], roots: Roots) -> Iterator[tuple[str, str]]:
    """Documents that a teacher model wrote from these, with words."""
    for manifest, path in _tables(roots, "documents", "ingest"):
        if "synthetic" in manifest.stats and KEPT_COLUMNS.name in pq.read_schema(path).names:
            for row in pq.read_table(path, columns=["id", "source", "columns"], partitioning=None).to_pylist():
                if row["source"] in manifest.stats["synthetic"]:
                    facts = json.loads(row["columns"])
                    if from_these := sorted(ids.intersection(facts["seeds"])):
                        yield row["id"], f"written by {facts['teacher']} from {', '.join(from_these)}"


def _fates(ids: set[str], roots: Roots) -> Iterator[str]:
    for manifest, path in _tables(roots, "removed"):
        table = read_table(path, REMOVED_SCHEMA, ["id", "reason", "evidence"])
        for row in table.to_pylist():
            if row["id"] in ids:
                evidence = f" ({row['evidence']})" if row["evidence"] else ""
                yield f"{row['id']}: removed by {manifest.stage} for {row['reason']}{evidence}"
    names = {document_hash(name): name for name in sorted(ids)}
    for (manifest, plan), (_, sizes) in zip(_tables(roots, "plan", "mix"), _tables(roots, "sizes", "mix"), strict=True):
        hashes = pq.read_table(sizes, columns=["hash"], partitioning=None)["hash"].to_numpy()
        rows = np.flatnonzero(np.isin(hashes, np.array([*names], np.uint64))).tolist()
        for row, (copies, bucket) in zip(rows, read_plan_rows(plan, rows) if rows else (), strict=True):
            yield f"{names[int(hashes[row])]}: {copies_in_words(copies, bucket)} in {manifest.folder}"
