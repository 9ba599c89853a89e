"""Artifacts of documents, as a stage of the corpus leaves them, and the rows of such artifacts."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.documents import DOCUMENT_SCHEMA, write_table
from governance.files import sha256_bytes
from governance.manifest import Manifest, describe
from tests.manifests import manifest_of


def documents_of(root: Path, stage: str, shards: Mapping[str, Iterable[Mapping[str, Any]]], key: str = "0") -> Manifest:
    """Write shards of documents; return the manifest of their artifact, which is not written.

    `shards` maps a shard's name to its rows. A row states its `text` and what differs from a document of the source
    "web" under CC0-1.0 that is numbered by its place in the shard.
    """
    outputs = []
    for name, documents in shards.items():
        rows = [
            {
                **dict.fromkeys(DOCUMENT_SCHEMA.names, ""), "source": "web", "licence": "CC0-1.0", "position": place,
                "sha256": sha256_bytes(document["text"].encode()), **document,
            }
            for place, document in enumerate(documents)
        ]  # fmt: skip
        path = root / stage / (key * 16)[:16] / "documents" / f"{name}.parquet"
        write_table(path, pa.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA))
        outputs.append(describe(path, root))
    return manifest_of(stage, outputs, key)


def rows_of(manifest: Manifest, role: str, root: Path) -> list[dict[str, Any]]:
    """The rows of an artifact's shards of this role."""
    return [row for path in manifest.files(role, root) for row in pq.read_table(path).to_pylist()]
