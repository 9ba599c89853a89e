"""Goals: name, measured value and bound. A script prints one line each, and exits 1 if one is missed."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from benchmarks.measures.children import ending_with_this


@dataclass(frozen=True)
class Goal:
    """A value and its goal; printed as `name value goal holds` or `falls short`."""

    name: str
    value: float
    bound: float
    kind: Literal[">=", "<=", "info"] = ">="
    note: str = ""

    @property
    def holds(self) -> bool:
        """Return whether the value meets the bound; a figure without a goal always does."""
        return self.kind == "info" or (self.value >= self.bound if self.kind == ">=" else self.value <= self.bound)

    def line(self) -> str:
        """The line that is printed."""
        wanted = "-" if self.kind == "info" else f"{self.kind}{self.bound:g}"
        word = "info" if self.kind == "info" else "holds" if self.holds else "falls short"
        return f"{self.name} {self.value:.6g} {wanted} {word}{f'  ({self.note})' if self.note else ''}"


_LINE = re.compile(r"(\S+) (\S+) (?:-|([<>]=)(\S+)) (?:holds|falls short|info)(?:  \((.*)\))?")


def read_line(line: str) -> Goal | None:
    """The goal of a printed line, None for any other line."""
    if not (found := _LINE.fullmatch(line.strip())):
        return None
    name, value, kind, bound, note = found.groups()
    try:
        return Goal(name, float(value), float(bound or 0), kind or "info", note or "")
    except ValueError:
        return None


def figure(name: str, value: float, note: str = "") -> Goal:
    """A figure without a goal."""
    return Goal(name, value, 0.0, "info", note)


def command_line(
    description: str | None, groups: Callable[[bool], Mapping[str, Callable[[], Iterable[Goal]]]], at_once: int = 1
) -> int:
    """A script's whole command line: `[--quick] [GROUP ...]`; `groups(quick)` names the measurements.

    With `--quick`, `at_once` groups run at the same time, each in a process.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller samples; at most 5 minutes")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help="only these")
    arguments = parser.parse_args()
    known = groups(arguments.quick)
    if unknown := sorted(set(arguments.groups) - set(known)):
        parser.error(f"no group {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = [(name, measure) for name, measure in known.items() if name in (arguments.groups or known)]
    if not arguments.quick or at_once == 1 or len(chosen) == 1:
        return run(chosen)

    def one(name: str) -> int:
        command = [sys.executable, sys.argv[0], "--quick", name]
        ended = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=False, preexec_fn=ending_with_this()
        )  # the thread that started a process waits for its end
        print(ended.stdout, end="", flush=True)
        return ended.returncode

    with ThreadPoolExecutor(at_once) as pool:
        return int(any(list(pool.map(one, [name for name, _ in chosen]))))


def run(groups: Iterable[tuple[str, Callable[[], Iterable[Goal]]]]) -> int:
    """Measure group after group, print each goal as it comes; a group that fails counts as missed."""
    short = 0
    print(f"# {machine()}", flush=True)
    for name, measure in groups:
        started, spent = time.monotonic(), cpu_seconds()
        try:
            for goal in measure():
                print(goal.line(), flush=True)
                short += not goal.holds
        except Exception as error:  # the other goals are still worth knowing
            print(f"{name} failed: {type(error).__name__}: {error}", flush=True)
            short += 1
            continue
        print(f"# {name}: {time.monotonic() - started:.0f} s, {cpu_seconds() - spent:.0f} CPU-seconds", flush=True)
    return int(short > 0)


def machine() -> str:
    """Processor, cores, Python and date, without which a figure is worth nothing."""
    model = platform.processor() or platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), model)
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"


def cpu_seconds() -> float:
    """CPU-seconds of this process with its threads, and of the children that it waited for."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def rate(work: Callable[[], object], size_bytes: int, times: int = 5) -> float:
    """Megabytes per CPU-second, the median of several runs after one that warms up."""
    work()
    found = []
    for _ in range(times):
        started = cpu_seconds()
        work()
        found.append(size_bytes / 1e6 / max(cpu_seconds() - started, 1e-9))
    return statistics.median(found)


def peak_mb() -> float:
    """Peak memory of this process since its start, in MB.

    From /proc: what getrusage calls the peak of a process begins with that of the process which started it.
    """
    return status_mb("VmHWM")


@contextlib.contextmanager
def anonymous_peak_mb() -> Iterator[Callable[[], float]]:
    """Yield the peak memory so far without pages of files, in MB.

    The system drops pages of files on demand. The kernel keeps the peak of all pages; a thread looks how many of them
    were pages of files when it last rose.
    """
    peak, of_files, ended = [0.0], [0.0], threading.Event()

    def look() -> None:
        if (now := status_mb("VmHWM")) > peak[0]:
            peak[0], of_files[0] = now, status_mb("RssFile")

    def watch() -> None:
        while not ended.wait(0.01):
            look()

    def read() -> float:
        look()
        return peak[0] - of_files[0]

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield read
    finally:
        ended.set()
        thread.join()


def status_mb(field: str, process: str = "self") -> float:
    """A field of a process's status, in MB.

    Raises:
        ValueError: the process is over, and its status has no such field.
    """
    with open(f"/proc/{process}/status", encoding="ascii") as file:
        [line] = [line for line in file if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024 / 1e6
