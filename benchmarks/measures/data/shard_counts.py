"""Cost of many shards: their manifest, verification, records, and the key files of a join, by decade.

Manifests are of up to 10^6 shards, and as many files of a few bytes are verified. The shards that are made and found
again are files of a few bytes, up to 10^5 of them: what a shard costs besides its work. The key files hold 4 million
keys together, in up to 10^4 files, as the join of a range reads them; of more the disk would hold nothing else.
"""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measures.goals import Goal, figure

_ROOT = Path(__file__).resolve().parents[3]
MANIFESTS = (10_000, 100_000, 1_000_000)
SHARDS = (1_000, 10_000, 100_000)
KEY_FILES = (100, 1_000, 10_000)
_KEYS = 4_000_000
_EVENTS = {"open": "opened", "os.listdir": "listed", "os.scandir": "listed", "os.rename": "renamed"}


def goals(quick: bool) -> Iterator[Goal]:
    """Figures of each decade; `quick` leaves out the last one."""
    for kind, counts in (("manifest", MANIFESTS), ("verify", MANIFESTS), ("shards", SHARDS), ("join", KEY_FILES)):
        for count in counts[:2] if quick else counts:
            words = [sys.executable, "-c", f"from {__name__} import child; child({kind!r}, {count})"]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=_ROOT)
            for name, value in json.loads(done.stdout.splitlines()[-1]).items():
                yield figure(f"many.{kind}.{count}.{name}", value)


def child(kind: str, count: int) -> None:
    """Measure one count in this process; prints JSON."""
    with tempfile.TemporaryDirectory() as scratch:
        measure = {"manifest": _manifest, "verify": _verify, "shards": _shards, "join": _join}[kind]
        found = measure(Path(scratch), count)
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found))


def _seconds(call: Any) -> tuple[Any, float]:
    started = time.process_time()
    made = call()
    return made, time.process_time() - started


def _manifest(root: Path, count: int) -> dict[str, float]:
    """Write, read and hash a manifest, as the next stage does."""
    from governance.manifest import Manifest, Output, read_manifest, write_manifest

    key = "b" * 64
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]
    paths = [f"clean/{key[:16]}/documents/{number:07d}.parquet" for number in range(count)]
    outputs = tuple(Output(path=path, bytes=64 << 20, sha256=one) for path, one in zip(paths, digests, strict=True))
    beside = [
        {"path": f"clean/records/{number:064x}.json", "bytes": 700, "sha256": one} for number, one in enumerate(digests)
    ]
    made = Manifest(
        stage="clean", version=1, key=key, config={}, inputs=(), outputs=outputs, stats={}, run={"beside": beside}
    )
    _, write = _seconds(lambda: write_manifest(made, root))
    size = (root / made.path).stat().st_size
    found, read = _seconds(lambda: read_manifest(root / made.path))
    _, digest = _seconds(lambda: [found.as_input() for _ in range(3)])  # by three later stages
    return {"write_cpu_seconds": write, "read_cpu_seconds": read, "digests_cpu_seconds": digest, "mb": size / 1e6}


def _verify(folder: Path, count: int) -> dict[str, float]:
    """Verify a root whose artifact has many files, as `assay governance verify` does; the last file is altered."""
    from governance.config import Section
    from governance.gate.verdict import GovernanceConfig, Keyring
    from governance.hooks import Hooks
    from governance.lineage.attest import attest_with, open_journal
    from governance.manifest import describe
    from governance.signing.dsse import private_key
    from governance.stage import Made, Recipe, Runtime, run_stage
    from governance.verification import verify_root

    def make(folder: Path) -> Made:
        outputs = []
        for number in range(count):
            path = folder / "texts" / f"{number:07d}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(number))
            outputs.append(describe(path, root))
        return Made(outputs, {})

    root = folder / "root"
    keyring = Keyring(GovernanceConfig(signing_key="owner.pem"), folder)
    private_key(keyring.own)
    hooks = Hooks(attest=attest_with(open_journal(keyring, root), keyring, root))
    made = run_stage(Recipe("many", 1, Section()), [], Runtime(root, hooks=hooks), make)
    found: dict[str, float] = {}
    for name, deep in (("plain", False), ("deep", True)):
        verified, spent = _seconds(lambda deep=deep: verify_root(root, keyring, deep=deep))
        assert verified.files >= count, verified.files
        assert not verified.problems, verified.problems[:3]
        found |= {f"{name}_cpu_milliseconds_a_file": 1000 * spent / count, f"{name}_cpu_seconds": spent}
    altered = root / made.outputs[-1].path
    altered.write_bytes(b"x" * altered.stat().st_size)
    found["altered_found"] = len(verify_root(root, keyring).problems)
    return found


def _tiny(section: Any, payload: Any, path_of: Any) -> Any:
    from governance.files import write_bytes
    from governance.parallel import ShardMade

    write_bytes(path_of("texts"), payload.encode())
    return ShardMade({"texts": path_of("texts")}, {"bytes": len(payload)})


def _shards(root: Path, count: int) -> dict[str, float]:
    """Make shards of a few bytes, find the artifact, and find each shard by its record."""
    from governance.config import Section
    from governance.parallel import Shard, map_shards
    from governance.stage import Made, Recipe, Runtime, run_stage

    counts: Counter[str] = Counter()
    sys.addaudithook(lambda event, words: counts.update([_EVENTS[event]]) if event in _EVENTS else None)

    def stage(version: int) -> None:
        """Another version finds the shards of the first, and commits another artifact."""

        def make(folder: Path) -> Made:
            shards = [Shard(f"{number:07d}", (str(number),), str(number)) for number in range(count)]
            recipe, runtime = Recipe("many", 1, Section()), Runtime(root)
            done = map_shards(recipe, _tiny, shards, folder, runtime, ".txt")
            return Made([output for shard in done for output in shard.outputs.values()], {"version": version})

        run_stage(Recipe("many", version, Section()), [], Runtime(root), make)

    found: dict[str, float] = {}
    for name, version in (("make", 1), ("find", 1), ("resume", 2)):
        counts.clear()
        _, spent = _seconds(lambda version=version: stage(version))
        found[f"{name}_cpu_milliseconds_a_shard"] = 1000 * spent / count
        found |= {f"{name}_{event}_a_shard": counts[event] / count for event in sorted({*_EVENTS.values()})}
    return found


def _join(folder: Path, count: int) -> dict[str, float]:
    """Shared keys by one sort, and by DuckDB in nine ranges."""
    from data_pipeline.dedup.join import BYTES_PER_KEY, ENGINE_SHARE, TEXT, JoinEngine, shared_keys, write_keys

    chance, each = np.random.default_rng(0), _KEYS // count
    files, firsts = [], []
    for number in range(count):
        files.append(folder / f"{number}.parquet")
        firsts.append(number * each)
        write_keys(files[-1], chance.integers(0, 1 << 60, each), np.arange(each, dtype=np.int32))
    found = {}
    in_nine = int(_KEYS * BYTES_PER_KEY / 8 / ENGINE_SHARE) >> 20  # eight, rounded up
    for name, memory in (("sorted", 8192), ("in_ranges", in_nine)):
        engine = JoinEngine("duckdb", memory, folder / "spill")
        parts, spent = _seconds(lambda engine=engine: len(list(shared_keys(files, firsts, TEXT, _KEYS, engine))))
        found |= {f"{name}_cpu_seconds": spent, f"{name}_parts": parts}
    return found
