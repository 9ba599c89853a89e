"""Texts that the measures read: real corpora below ASSAY_TEST_DATA, and our stages run on them as a user runs them."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measures.goals import cpu_seconds
from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.readers.sources import JsonlSource
from governance.manifest import Manifest
from governance.stage import Runtime


def test_data() -> Path:
    """The folder of corpora with truth.

    Raises:
        SystemExit: ASSAY_TEST_DATA is not set; nothing can be measured.
    """
    folder = os.environ.get("ASSAY_TEST_DATA")
    if not folder:
        raise SystemExit("benchmarks/data.py: set ASSAY_TEST_DATA to the folder of test corpora")
    return Path(folder)


def rows(name: str) -> Iterator[dict[str, Any]]:
    """The objects of one file below the folder."""
    with gzip.open(test_data() / name, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def mixed(limit_bytes: int) -> list[dict[str, Any]]:
    """Documents of every corpus in turn, shuffled by a fixed seed, up to so many bytes of text."""
    found = []
    for name in sorted(path.name for path in (test_data() / "corpora").glob("*.jsonl.gz")):
        found += [{"id": f"{name}/{row['id']}", "text": row["text"]} for row in rows(f"corpora/{name}")]
    random.Random(7).shuffle(found)
    taken, size = [], 0
    for row in found:
        if size >= limit_bytes:
            break
        taken.append(row)
        size += len(row["text"].encode("utf-8"))
    return taken


def text_bytes(documents: Sequence[dict[str, Any]]) -> int:
    """UTF-8 bytes of all texts."""
    return sum(len(row["text"].encode("utf-8")) for row in documents)


def write_jsonl(path: Path, documents: Sequence[dict[str, Any]]) -> Path:
    """One object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in documents:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def ingested(
    documents: Sequence[dict[str, Any]], folder: Path, shard_bytes: int = 64 << 20
) -> tuple[Manifest, Runtime]:
    """The documents as the ingest stage makes them, with their own ids."""
    write_jsonl(folder / "raw" / "all.jsonl", documents)
    source = JsonlSource(type="jsonl", name="mixed", paths=("raw/*.jsonl",), licence="CC0-1.0", id_field="id")
    runtime = Runtime(folder / "root")
    return ingest((source,), IngestConfig(shard_bytes=shard_bytes), folder, runtime), runtime


def documents_of(manifest: Manifest, root: Path, role: str = "documents") -> list[dict[str, Any]]:
    """Id and text (and reason) of the documents of a role, the source's name taken off the id."""
    import pyarrow.parquet as pq

    columns = ["id", "text", "reason", "evidence"] if role == "removed" else ["id", "text"]
    found = []
    for path in manifest.files(role, root):
        for row in pq.read_table(path, columns=columns).to_pylist():
            found.append({**row, "id": row["id"].partition("/")[2]})
    return found


def again(name: str, stage: Callable[[Runtime], object], root: Path, times: int = 3) -> float:
    """Median CPU-seconds of remaking the stage of this name in roots that hold all other stages."""
    spent = []
    for turn in range(times):
        other = root.parent / f"again{turn}"
        other.mkdir()
        for made in root.iterdir():
            if made.name != name:
                (other / made.name).symlink_to(made)
        started = cpu_seconds()
        stage(Runtime(other))
        spent.append(cpu_seconds() - started)
        shutil.rmtree(other)
    return statistics.median(spent)
