"""Training loops in processes of their own that take their steps in turn, so that all meet the same neighbours."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.measures.children import ending_with_this, environment


@dataclass
class Runner:
    """Child process that takes a step on request."""

    name: str
    child: subprocess.Popen[str]
    log: IO[str]
    seconds: list[float] = field(default_factory=list)
    """Wall seconds of each step."""
    cpu_seconds: list[float] = field(default_factory=list)
    """CPU-seconds of each step, over all its threads."""
    answers: list[dict[str, Any]] = field(default_factory=list)

    def step(self) -> None:
        """Take one step and time it from this process."""
        started, spent = time.perf_counter(), self._cpu()
        assert self.child.stdin is not None
        self.child.stdin.write("go\n")
        self.child.stdin.flush()
        self.answers.append(self.read())
        self.seconds.append(time.perf_counter() - started)
        self.cpu_seconds.append(self._cpu() - spent)

    def read(self) -> dict[str, Any]:
        """Its next answer.

        Raises:
            RuntimeError: it ended; with the last lines that it wrote.
        """
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if not line:
            self.log.seek(0)
            raise RuntimeError(f"{self.name} ended with {self.child.wait()}: {self.log.read()[-2000:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def _cpu(self) -> float:
        """Processor time of the child so far, from /proc."""
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def runners(commands: Mapping[str, Sequence[str]], scratch: Path) -> Iterator[dict[str, Runner]]:
    """Start each command, wait until all are ready, and end them afterwards."""
    started: dict[str, Runner] = {}
    try:
        for name, words in commands.items():
            log = (scratch / f"{name}.log").open("w+")
            child = subprocess.Popen(
                list(words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=environment(), preexec_fn=ending_with_this(),
            )  # fmt: skip
            started[name] = Runner(name, child, log)
            started[name].read()  # one at a time: concurrent loading is slow
        yield started
    finally:
        for runner in started.values():
            runner.child.kill()
            runner.child.wait()
            runner.log.close()


def take_turns(started: Mapping[str, Runner], rounds: int, warm_up: int = 2) -> None:
    """`rounds` steps of each, one after the other; those of the first `warm_up` rounds are forgotten."""
    for number in range(rounds + warm_up):
        for runner in started.values():
            runner.step()
        if number + 1 == warm_up:
            for runner in started.values():
                runner.seconds.clear()
                runner.cpu_seconds.clear()
                runner.answers.clear()


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median over rounds of the ratio of their times."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def ours(*words: str) -> list[str]:
    """The command of `assay` whose steps wait for their turn."""
    return [sys.executable, str(Path(__file__).with_name("assay_in_turn.py")), *words]
