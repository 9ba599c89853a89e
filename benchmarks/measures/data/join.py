"""The global join on made-up keys: `python benchmarks/measures/data/join.py ROWS LIMIT_MIB` prints what it cost.

A fifth of the documents are copies of others; of a copy's bands seven in ten agree. `measure` runs the join in a
process of its own, so that its peak is the join's and not the caller's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BANDS = 20
DOCUMENTS_PER_FILE = 20_000
ROOT = Path(__file__).resolve().parents[3]


def write_corpus(folder: Path, rows: int) -> list[Path]:
    """Key files of about `rows` band keys, 400,000 per file."""
    sys.path.insert(0, str(ROOT))
    from data_pipeline.dedup.join import BAND, write_keys

    files = max(1, round(rows / BANDS / DOCUMENTS_PER_FILE))
    rng = np.random.default_rng(0)
    paths = []
    for number in range(files):
        original = np.arange(number * DOCUMENTS_PER_FILE, (number + 1) * DOCUMENTS_PER_FILE, dtype=np.uint64)
        copies = rng.random(DOCUMENTS_PER_FILE) < 0.2
        original[copies] = rng.integers(0, files * DOCUMENTS_PER_FILE, copies.sum(), dtype=np.uint64)
        hashes = original[:, None] * np.uint64(BANDS) + np.arange(BANDS, dtype=np.uint64)
        for shift in (30, 27, 31):
            hashes = (hashes ^ hashes >> np.uint64(shift)) * np.uint64(0xBF58476D1CE4E5B9)
        own = rng.random(hashes.shape) < 0.3
        hashes[own] = rng.integers(0, 1 << 63, own.sum(), dtype=np.uint64)
        keys = (hashes.reshape(-1) % np.uint64(len(BAND))).astype(np.int64) + BAND.start
        paths.append(folder / f"{number:05d}.parquet")
        write_keys(paths[-1], keys, np.repeat(np.arange(DOCUMENTS_PER_FILE, dtype=np.int32), BANDS))
    return paths


def join(folder: Path, memory_mib: int, engine: str) -> dict[str, float]:
    """Join the key files of a folder in this process."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.measures.goals import peak_mb
    from data_pipeline.dedup.duplicates import gather
    from data_pipeline.dedup.join import BAND, JoinEngine, shared_keys

    paths = sorted(folder.glob("*.parquet"))
    documents = len(paths) * DOCUMENTS_PER_FILE
    before = peak_mb() * 1e6 / (1 << 20)
    wall, cpu = time.perf_counter(), time.process_time()
    found = shared_keys(
        paths,
        [number * DOCUMENTS_PER_FILE for number in range(len(paths))],
        BAND,
        documents * BANDS,
        JoinEngine(engine, memory_mib, folder / "spill"),
    )
    groups = gather(found, np.zeros(documents, bool), 0)
    return {
        "rows": documents * BANDS,
        "limit_mib": memory_mib,
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "groups": len(groups.ends),
        "members": len(groups.members),
        "mib_before": round(before),
        "peak_mib": round(peak_mb() * 1e6 / (1 << 20)),
    }


def measure(rows: int, memory_mib: int, engine: str = "duckdb") -> dict[str, float]:
    """Make the keys, join them in a process of its own, and return what it cost."""
    with tempfile.TemporaryDirectory() as name:
        write_corpus(Path(name), rows)
        command = [sys.executable, __file__, str(rows), str(memory_mib), "--engine", engine, "--folder", name]
        finished = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Read the command line and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int)
    parser.add_argument("limit_mib", type=int)
    parser.add_argument("--engine", choices=("duckdb", "daft"), default="duckdb")
    parser.add_argument("--folder", type=Path, help="key files that are there already")
    given = parser.parse_args()
    if given.folder:
        print(json.dumps(join(given.folder, given.limit_mib, given.engine)))
    else:
        print(json.dumps(measure(given.rows, given.limit_mib, given.engine)))


if __name__ == "__main__":
    main()
