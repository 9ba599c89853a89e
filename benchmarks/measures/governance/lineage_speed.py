"""Cost of lineage: hashing against bare hashlib, with leaves; a line of the journal, and its check; a signed line."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.measures.goals import Goal, figure
from benchmarks.measures.training.training_setting import HERE, prepare
from governance.files import LEAF_BYTES, sha256_file, sha256_leaves, sha256_with_leaves
from governance.hooks import SignLine
from governance.manifest import Manifest
from governance.signing.dsse import create_key, private_key
from governance.signing.journal import Journal, provenance
from governance.signing.journal_lines import FILE_NAME, read_journal
from governance.signing.signed_lines import SignedLines


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


def lines(quick: bool) -> list[Goal]:
    """A training's line, signed as it is written and verified as it is stated, in a run of the quick start's model."""
    from assay.cli.main import main

    signer, take = Journal.line_signer, SignedLines.take
    signing: list[float] = []
    ends: list[float] = []
    stated = [0.0, 0]

    def counted(journal: Journal, path: Path, writer: str) -> SignLine:
        sign = signer(journal, path, writer)

        def timed(line: Mapping[str, Any]) -> dict[str, Any]:
            began = time.thread_time()
            signed = sign(line)
            if line.get("event") == "step":
                signing.append(time.thread_time() - began)
                ends.append(time.process_time())
            return signed

        return timed

    def verified(read: SignedLines, *words: Any) -> None:
        began, before = time.thread_time(), read.lines
        take(read, *words)
        stated[:] = stated[0] + time.thread_time() - began, stated[1] + read.lines - before

    text = (HERE / "configs" / "quickstart.toml").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        path = prepare(Path(scratch), text[text.index("[model]") :], 3_000_000, 4096)
        words = [
            "train",
            str(path),
            "--root",
            str(path.parent / "root"),
            "--set",
            f"train.steps={70 if quick else 200}",
        ]
        with (
            mock.patch.object(Journal, "line_signer", counted),
            mock.patch.object(SignedLines, "take", verified),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            if status := main(words):
                raise RuntimeError(f"the training ended with {status}")
    step = statistics.median(end - begin for begin, end in itertools.pairwise(ends))
    sign, verify = statistics.median(signing), stated[0] / stated[1]
    return [
        Goal("lines.share_of_a_step", (sign + verify) / step, 0.005, "<=", f"of {len(ends)} steps, by CPU-seconds"),
        figure("lines.sign_us", 1e6 * sign, "as it is written"),
        figure("lines.verify_us", 1e6 * verify, f"as it is stated; {stated[1]} lines"),
        figure("lines.step_cpu_ms", 1e3 * step, "the quick start's model, bf16"),
    ]
