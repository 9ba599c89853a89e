"""Cost of lineage: hashing against bare hashlib, with leaves; a line of the journal, and its check."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measures.goals import Goal, figure
from governance.files import LEAF_BYTES, sha256_file, sha256_leaves, sha256_with_leaves
from governance.manifest import Manifest
from governance.signing.dsse import create_key, private_key
from governance.signing.journal import Journal, provenance
from governance.signing.journal_lines import FILE_NAME, read_journal


def _bare(path: Path) -> str:
    """SHA-256 at its plainest: 1 MiB at a time into one buffer."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with open(path, "rb", buffering=0) as handle:
        while count := handle.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _cost(work: Callable[[Path], object], path: Path) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    work(path)
    return time.process_time() - cpu, time.perf_counter() - wall


def hashing(quick: bool) -> list[Goal]:
    """The best of several turns of each way, taken in turn, on one file that the page cache holds."""
    size = LEAF_BYTES * (4 if quick else 16)
    ways = {"bare": _bare, "whole": sha256_file, "leaves": sha256_leaves, "both": sha256_with_leaves}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        with open(path, "wb") as handle:
            for _ in range(size >> 20):
                handle.write(os.urandom(1 << 20))
        turns = {name: [_cost(work, path) for _ in range(5)] for name, work in ways.items()}
    cpu = {name: min(turn[0] for turn in found) for name, found in turns.items()}
    wall = {name: min(turn[1] for turn in found) for name, found in turns.items()}
    return [
        figure("hashing.bare_gb_per_cpu_second", size / cpu["bare"] / 1e9),
        Goal("hashing.whole_of_bare", cpu["bare"] / cpu["whole"], 0.9, note="by CPU"),
        Goal("hashing.leaves_of_bare", cpu["bare"] / cpu["leaves"], 0.9, note="by CPU"),
        figure("hashing.with_leaves_of_bare_by_wall", wall["bare"] / wall["both"], "1 where a second core is idle"),
        figure("hashing.with_leaves_cpu", cpu["both"] / cpu["bare"], "times bare; two digests of every byte"),
    ]


def journal(quick: bool) -> list[Goal]:
    """Lines of an artifact with 2 kB of configuration, appended by one process, then checked."""
    count = 200 if quick else 2000
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        create_key(root / "key.pem")
        key = private_key(root / "key.pem")
        made = Journal(root, lambda: key)
        began = time.process_time(), time.perf_counter()
        for number in range(count):
            made.state_artifact(
                Manifest(stage="made", version=1, key=f"{number:064x}"[::-1], config={"a": "x" * 2000}, inputs=(),
                         outputs=(), stats={}, run={})
            )  # fmt: skip
        cpu, wall = time.process_time() - began[0], time.perf_counter() - began[1]
        check, _ = _cost(lambda path: read_journal(path, [key.public_key()]), root / FILE_NAME)
        opened = Journal(root, lambda: key, lambda: [key.public_key()])
        opened.verified()
        made.append("waiver", provenance({"w": "0" * 64}, [], {}))
        again, _ = _cost(lambda path: opened.verified(), root)
    return [
        Goal("journal.append_cpu_ms", 1e3 * cpu / count, 5.0, "<="),
        figure("journal.append_wall_ms", 1e3 * wall / count, "with one fsync each"),
        Goal("journal.check_cpu_ms", 1e3 * check / count, 1.0, "<="),
        Goal("journal.check_after_one_more_line_share", again / check, 0.1, "<=", f"of the check of {count} lines"),
    ]
