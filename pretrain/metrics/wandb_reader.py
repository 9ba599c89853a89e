"""Reader of W&B's local files.

A `.wandb` file is a log of LevelDB's framing (github.com/google/leveldb, doc/log_format.md): after a head of 7 bytes,
blocks of 32 KiB hold chunks of (CRC-32 of kind and data, length, kind), little-endian, where a kind says whether the
chunk is a whole record, or the first, a middle or the last piece of one. Each record is a protobuf message of wandb's
own. wandb 0.31 has no reader in Python that it calls public.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from governance.errors import ManifestError, MissingInput

_MAGIC, _HEAD_BYTES, _BLOCK = b":W&B", 7, 32768
_CHUNK = struct.Struct("<IHB")
_WHOLE, _FIRST, _LAST = 1, 2, 4


@dataclass
class OfflineRuns:
    """All attempts of one run as W&B merges them."""

    history: list[dict[str, Any]] = field(default_factory=list)
    """Rows by "_step", with wandb's own fields ("_step", "_timestamp", "_runtime")."""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    """Name, type, metadata, references as (path, address), aliases, and whether the run uses it or made it."""
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Charts that were defined: their x-axis and summary."""
    runs: list[dict[str, Any]] = field(default_factory=list)
    """Identity of each attempt: id, name, entity, project, group, job type, tags, notes."""
    alerts: list[dict[str, str]] = field(default_factory=list)
    """Title, text and level."""
    exit_codes: list[int] = field(default_factory=list)
    """Exit code of each attempt that ended by itself."""
    system: list[dict[str, Any]] = field(default_factory=list)
    """Samples of system metrics."""


def read_offline(folder: Path) -> OfflineRuns:
    """Rows of all offline attempts below `folder`, in order.

    Raises:
        MissingInput: the folder has no offline run.
        ManifestError: a file is not a log of W&B, or was altered.
    """
    found = sorted(folder.rglob("offline-run-*/*.wandb"))
    files = [path for path in found if path.stat().st_size]  # a kill may leave one in which nothing was written yet
    if not files:
        raise MissingInput(f"{folder}: holds no offline run of W&B; set tracking.mode = 'offline' to write one")
    runs = OfflineRuns()
    for path in files:
        for record in _records(path):
            _take(runs, record)
    runs.history.sort(key=lambda row: row["_step"])
    return runs


def _records(path: Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    for data in _payloads(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        yield record


def _payloads(path: Path) -> Iterator[bytes]:
    """The records' bytes.

    A last record that a kill tore is left out.
    """
    data = path.read_bytes()
    if data[: len(_MAGIC)] != _MAGIC:
        raise ManifestError(f"{path}: does not begin like a log of W&B ({data[:8]!r})")
    at, held = _HEAD_BYTES, b""
    while at + _CHUNK.size <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _CHUNK.size:
            at += left
            continue
        check, length, kind = _CHUNK.unpack_from(data, at)
        if kind == 0 and length == 0:  # the rest of the block was left empty
            at += left
            continue
        piece = data[at + _CHUNK.size : at + _CHUNK.size + length]
        if len(piece) < length:
            return
        if zlib.crc32(bytes([kind]) + piece) != check:
            raise ManifestError(f"{path}: the record at byte {at} was altered: its CRC-32 does not match")
        at += _CHUNK.size + length
        held = piece if kind in (_WHOLE, _FIRST) else held + piece
        if kind in (_WHOLE, _LAST):
            yield held


def _take(runs: OfflineRuns, record: Any) -> None:
    match record.WhichOneof("record_type"):
        case "history":
            runs.history.append(_items(record.history.item))
        case "summary":
            runs.summary.update(_items(record.summary.update))
        case "alert":
            alert = record.alert
            runs.alerts.append({"title": alert.title, "text": alert.text, "level": alert.level})
        case "exit":
            runs.exit_codes.append(record.exit.exit_code)
        case "stats":
            runs.system.append({item.key: json.loads(item.value_json) for item in record.stats.item})
        case "run":
            run = record.run
            names = {"id": run.run_id, "name": run.display_name, "entity": run.entity, "project": run.project}
            names |= {"group": run.run_group, "job_type": run.job_type, "notes": run.notes}
            runs.runs.append({**names, "tags": list(run.tags)})
            runs.config.update(_items(run.config.update))
        case "config":
            runs.config.update(_items(record.config.update))
        case "metric":
            metric = record.metric
            chosen = [name.name for name, value in metric.summary.ListFields() if value]
            runs.metrics[metric.name] = {"step_metric": metric.step_metric, "summary": chosen}
        case "artifact":
            artifact = record.artifact
            references = [(entry.path, entry.ref) for entry in artifact.manifest.contents if entry.ref]
            runs.artifacts.append({
                "name": artifact.name, "type": artifact.type, "metadata": json.loads(artifact.metadata or "{}"),
                "references": references, "aliases": list(artifact.aliases), "used": artifact.use_after_commit,
            })  # fmt: skip


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
