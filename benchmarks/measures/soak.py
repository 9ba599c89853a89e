"""Faults without end on a small run: kills, flipped bits, full disks, a changed clock; nothing may be lost.

    make soak [MINUTES=120] [SEED=0] [CYCLES=N]

First a run is made undisturbed. A cycle is a new root in which `assay data prepare` and `assay train` are repeated, one
fault at a time, until both are done. It must then hold the same digests and losses. The faults:

    kill    SIGKILL to the command and its children at a random moment
    flip    a bit of an artifact's file: `verify --deep` must name the file; the command runs; the bit is restored
    full    a disk with a few hundred KB left: a tmpfs where root may mount one, else a limit on the size of a file
    back    a clock that is behind by a minute to 30 days, by libfaketime (Debian's package faketime); none without it
    ahead   a clock that is ahead; what was stated then needs `assay governance clock --accept`, and an audit

A command may end with 0 or with a status and a message; a traceback, another status, or an end other than that of the
undisturbed run is a loss. The draws of a cycle follow from its seed, which is printed: SEED=that CYCLES=1 repeats it
(the moment of a kill also depends on the machine). Prints a line per goal; exits 1 when something was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measures.goals import Goal, figure, machine
from benchmarks.measures.governance.governance_edits import check, files_of, flip
from benchmarks.measures.small_run import write_run, write_tales
from governance.manifest import FILE_NAME, read_manifest

_HERE = Path(__file__).resolve().parents[2]
_FAULTS = {"kill": 16, "flip": 6, "full": 6, "back": 4, "ahead": 1, "none": 4}
"""Faults with their weights; "none" is a command that nothing disturbs."""
_EXPECTED = {
    "none": {0},
    "kill": {0, -signal.SIGKILL},
    "full": {0, 74},
    "back": {0, 77},
    "ahead": {0, 77},
    "flip": {0, 65, 66, 77},
}
"""Exit statuses that explain a command's end; 77 also after the clock was ahead, until a person accepts it."""
_MAX_ROUNDS = 80
_REMADE = ("ingest", "clean", "dedup", "redact", "tokenizer", "encode")
"""Stages that a cycle makes again; the verdict and its evidence are those of the undisturbed run."""
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["torch", "pretrain.train", "pretrain.engine.engine", "data_pipeline.prepare", "great_expectations"]
)


def run_command(words: list[str], log: Path, most_bytes: int, state: Path) -> None:
    """One command in a process and group of its own, forked from a server that has imported the program."""
    os.setsid()
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(written, 1)
    os.dup2(written, 2)
    for name in ("CONFIG", "STATE", "RUNTIME"):  # keys, the journal's anchor, the meter's lock
        os.environ[f"XDG_{name}_{'DIR' if name == 'RUNTIME' else 'HOME'}"] = str(state)
    if most_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    from assay.cli.main import main as assay

    status = assay(words)
    sys.stdout.flush()
    os._exit(status)  # as program() ends after training


@dataclass
class Soak:
    """Folders, the clock's file, and what happened so far."""

    folder: Path
    disk: Path
    """Folder of the roots, a file system of its own where `mounted`."""
    mounted: bool
    faketime: bool
    chance: random.Random = field(default_factory=random.Random)
    counts: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)

    def words(self, command: str, root: Path) -> list[str]:
        """A command's line."""
        words = [*command.split(), str(self.folder / "run.toml"), "--root", str(root)]
        return [*words, "--data-workers", "1"]

    def run(self, words: list[str], root: Path, kill_after: float = 0.0, most_bytes: int = 0) -> tuple[int, str]:
        """Exit status of a command and what it printed."""
        log = self.folder / "command.log"
        log.unlink(missing_ok=True)
        process = _SERVER.Process(target=run_command, args=(words, log, most_bytes, self.folder / f"{root.name}.state"))
        process.start()
        process.join(kill_after or None)
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.kill()  # it may not have made its group yet
            process.join()
        return process.exitcode or 0, log.read_text(errors="replace") if log.exists() else ""

    def set_clock(self, seconds: int) -> None:
        """Shift the clock of commands that start from now on."""
        (self.folder / "clock").write_text(f"{seconds:+d}\n")


def digests(root: Path) -> dict[str, str]:
    """Folder of each artifact -> its digest."""
    found = {}
    for path in sorted(root.glob(f"*/*/{FILE_NAME}")):
        manifest = read_manifest(path)
        found[manifest.folder] = manifest.digest
    return found


def differences(calm: Path, root: Path) -> list[str]:
    """Digests and losses of a finished run that are not those of the undisturbed one.

    Checkpoints are compared where both kept them: a resumed run may keep others on the way, never another last one.
    """
    ours, theirs = digests(root), digests(calm)
    found = [
        f"{name}: {ours.get(name, 'missing')}, undisturbed {digest}"
        for name, digest in theirs.items()
        if ours.get(name) != digest and (name in ours or not name.startswith("checkpoint/"))
    ]
    losses = [
        [json.loads(path.read_bytes())["losses"] for path in sorted(of.glob("train/*/losses.json"))]
        for of in (root, calm)
    ]
    return found + ([] if losses[0] == losses[1] and losses[1] else ["losses.json differs"])


def cycle(soak: Soak, calm: Path, seed: int, durations: dict[str, float]) -> None:
    """A root from an empty corpus to a trained model under faults, then compared with the undisturbed one."""
    soak.chance = chance = random.Random(seed)
    root = soak.disk / f"root-{seed}"
    shutil.copytree(soak.folder / "checked", root)
    rounds: Counter[str] = Counter()
    for command in ("data prepare", "train"):
        done = False
        while not done:
            faults = [name for name in _FAULTS if name not in ("back", "ahead") or soak.faketime]
            [fault] = chance.choices(faults, [_FAULTS[name] for name in faults])
            rounds[fault] += 1
            if rounds.total() > _MAX_ROUNDS:
                soak.lost.append(f"seed {seed}: {command} is not done after {_MAX_ROUNDS} faults")
                return
            done = _disturbed(soak, fault, command, root, durations, seed)
    soak.lost += [f"seed {seed}: {line}" for line in differences(calm, root)]
    soak.counts["cycles"] += 1
    print(f"# seed {seed}: {dict(sorted(rounds.items()))}, {len(soak.lost)} lost", flush=True)
    shutil.rmtree(root)


def _disturbed(soak: Soak, fault: str, command: str, root: Path, durations: dict[str, float], seed: int) -> bool:
    """Run a command under a fault; return whether the command is done."""
    chance, words = soak.chance, soak.words(command, root)
    started = time.monotonic()
    if fault == "kill":
        status, text = soak.run(words, root, kill_after=chance.uniform(0.01, 1.1 * durations[command]))
    elif fault == "flip":
        status, text = _flipped(soak, words, root, seed)
    elif fault == "full":
        room = chance.randrange(4096, 400_000)
        with _filled(soak.disk, room) if soak.mounted else contextlib.nullcontext():
            status, text = soak.run(words, root, most_bytes=0 if soak.mounted else room)
    elif fault in ("back", "ahead"):
        soak.set_clock((1 if fault == "ahead" else -1) * round(60 ** chance.uniform(1, 3.6)))
        status, text = soak.run(words, root)
        soak.set_clock(0)
    else:
        status, text = soak.run(words, root)
    if status == 0 and fault in ("kill", "none"):  # the machine's load changes, and a kill should come in time
        durations[command] = time.monotonic() - started
    soak.counts[fault] += 1
    soak.endings[f"{fault} {status}"] += 1
    moved = status == 77 and ("a clock was moved" in text or "undid a wrong clock" in text)
    if moved:  # a statement was made while the clock was ahead: a person accepts the clock, and the corpus is audited
        today = time.strftime("%Y-%m-%d")
        accept = [*soak.words("governance clock", root), "--accept", today, "--reason", "the soak moved the clock"]
        if "a clock was moved" in text:
            soak.counts["clocks accepted"] += soak.run(accept, root)[0] == 0
        soak.run(soak.words("governance check", root), root)
    if (status not in _EXPECTED[fault] and not moved) or "Traceback" in text:
        soak.lost.append(f"seed {seed}: {command} after {fault}: status {status}: {text[-2000:]}")
        print(soak.lost[-1], flush=True)
    return status == 0 and fault != "flip"


def _flipped(soak: Soak, words: list[str], root: Path, seed: int) -> tuple[int, str]:
    """Flip a bit of an artifact's file, look whether it is named, run the command, restore the bit."""
    artifacts = {path.parent for path in root.glob(f"*/*/{FILE_NAME}")}
    files = [path for path in files_of(root) if artifacts & {*path.parents} and path.stat().st_size]
    path = soak.chance.choice([path for path in files if path.name not in ("run.lock", "metrics.jsonl")])
    edit = flip(path, (), soak.chance)
    name = path.relative_to(root).as_posix()
    try:
        problems = check(root, soak.folder).problems
        if not any(name in line or str(path.parent.relative_to(root)) in line for line in problems):
            soak.lost.append(f"seed {seed}: a flipped bit of {name} is not named: {problems[:5]}")
            print(soak.lost[-1], flush=True)
        return soak.run(words, root)
    finally:
        if path.exists():
            edit.undo()
            soak.counts["bits restored"] += 1


@contextlib.contextmanager
def _filled(disk: Path, room: int) -> Iterator[None]:
    """A file that leaves this many bytes of a small disk."""
    free, filler = os.statvfs(disk), disk / "filler"
    size = max(0, free.f_bavail * free.f_frsize - room)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size or 1)
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[bool]:
    """Mount a tmpfs of 64 MB; False where that is not allowed."""
    words = ["mount", "-t", "tmpfs", "-o", "size=64m", "assay-soak", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(words, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def _faketime(folder: Path) -> bool:
    """Have commands read the clock's shift from a file, where libfaketime is installed; before the first fork."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    (folder / "clock").write_text("+0\n")
    if found:
        os.environ |= {
            "LD_PRELOAD": str(found[0]), "FAKETIME_TIMESTAMP_FILE": str(folder / "clock"), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1",
        }  # fmt: skip
    return bool(found)


def soaked(seconds: float, seed: int, cycles: int) -> Iterator[Goal]:
    """Cycles until the time is over (at least one), then counts and losses.

    Raises:
        RuntimeError: the undisturbed run fails.
    """
    with tempfile.TemporaryDirectory(prefix="assay-soak-") as scratch:
        folder = Path(scratch)
        disk = folder / "disk"
        disk.mkdir()
        write_run(folder)
        shutil.copy(_HERE / "configs" / "policy.toml", folder / "policy.toml")
        for number in range(2):
            write_tales(folder / f"{number}.jsonl", range(60 * number, 60 * number + 60))
        with _small_disk(disk) as mounted:
            soak = Soak(folder, disk, mounted, _faketime(folder))
            calm, durations = folder / "calm", {}
            for command in ("data prepare", "governance check", "train"):
                started = time.monotonic()
                status, text = soak.run(soak.words(command, calm), calm)
                if status:
                    raise RuntimeError(f"{command}, undisturbed, ended with {status}: {text[-2000:]}")
                durations[command] = time.monotonic() - started
                if command == "governance check":
                    shutil.copytree(calm, folder / "checked", ignore=shutil.ignore_patterns(*_REMADE))
            print(
                f"# undisturbed: {json.dumps({name: round(took, 1) for name, took in durations.items()})}", flush=True
            )
            end = time.monotonic() + seconds
            for number in range(seed, seed + (cycles or 1_000_000)):
                cycle(soak, calm, number, durations)
                if (time.monotonic() > end and not cycles) or len(soak.lost) > 20:
                    break
        yield from _goals(soak)


def _goals(soak: Soak) -> Iterator[Goal]:
    yield Goal("soak.cycles", soak.counts["cycles"], 1, note="from an empty corpus to a trained model, under faults")
    for fault in _FAULTS:
        ends = {ending.split()[1]: count for ending, count in soak.endings.items() if ending.split()[0] == fault}
        words = ", ".join(f"status {status}: {count}" for status, count in sorted(ends.items()))
        yield figure(
            f"soak.{fault}",
            soak.counts[fault],
            words or "libfaketime is not installed" * (not soak.faketime and fault in ("back", "ahead")),
        )
    yield figure("soak.bits_restored", soak.counts["bits restored"])
    yield figure("soak.clocks_accepted", soak.counts["clocks accepted"], "assay governance clock --accept")
    disk = "a tmpfs" if soak.mounted else "a limit on a file's size"
    yield Goal("soak.lost", len(soak.lost), 0, "<=", f"other digests, losses, statuses, tracebacks; full disk: {disk}")


def main() -> int:
    """Soak; the exit status says whether nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120.0, help="default: 120")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first cycle (default: 0)")
    parser.add_argument("--cycles", type=int, default=0, metavar="N", help="as many cycles, whatever the time")
    arguments = parser.parse_args()
    print(f"# {machine()}; first seed {arguments.seed}", flush=True)
    short = 0
    for goal in soaked(60 * arguments.minutes, arguments.seed, arguments.cycles):
        print(goal.line(), flush=True)
        short += not goal.holds
    return int(short > 0)


if __name__ == "__main__":
    raise SystemExit(main())
