"""Changed inputs for every reader of foreign data.

    make fuzz [CASES=1000000] [SECONDS=0] [ONLY="csv config"] [SEED=0] [GUIDED=1]

Each case's number is the seed of its changes. With GUIDED=1 atheris (`pip install atheris`) chooses what is changed
next, by the code that it reached: fewer cases a second, and deeper ones. An input that raises anything but a
PipelineError is written to `tests/fuzz/found/TARGET/`, where a test reads it from then on. Prints a line for each
target; exits 1 when an input was found.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from tests.fuzz.kept import keep, place_of
from tests.fuzz.targets import Target, changed, explained, targets

_SCRATCH = "/dev/shm" if Path("/dev/shm").is_dir() else None


def search(name: str, target: Target, cases: int, seconds: float, seed: int) -> tuple[int, int, dict[str, str]]:
    """Cases, those that were read, and the place of each new exception -> the file of its input.

    One input for each place is kept: the first.
    """
    done = read = 0
    found: dict[str, str] = {}
    end = time.monotonic() + seconds if seconds else float("inf")
    with tempfile.TemporaryDirectory(dir=_SCRATCH) as scratch:
        while done < cases and time.monotonic() < end:
            data = changed(target, random.Random(f"{seed}-{done}"))
            done += 1
            try:
                read += explained(target, data, Path(scratch))
            except Exception as error:  # every kind is a find
                if (place := place_of(error)) not in found:
                    found[place] = keep(name, data)
                    print(f"{name}: {place}: {error}: {found[place]}", flush=True)
    return done, read, found


def search_guided(name: str, cases: int, seconds: float, seed: int) -> tuple[int, int, dict[str, str]]:
    """`search` by atheris, in a process of its own."""
    with tempfile.TemporaryDirectory(dir=_SCRATCH) as scratch:
        words = [f"--cases={cases}", f"--seconds={seconds}", f"--seed={seed}", f"--scratch={scratch}"]
        subprocess.run([sys.executable, "-m", "tests.fuzz.guided", name, *words], check=True, stderr=subprocess.DEVNULL)
        counts = json.loads((Path(scratch) / "counts.json").read_text())
    return counts["done"], counts["read"], counts["found"]


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> int:
    """Fuzz target after target; the exit status says whether nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000_000, help="of each target (default: 1,000,000)")
    parser.add_argument("--seconds", type=float, default=0, help="at most so many for each target (default: no limit)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guided", action="store_true", help="by coverage, with atheris")
    parser.add_argument("only", nargs="*", metavar="TARGET")
    arguments = parser.parse_args()
    known = targets()
    if unknown := sorted(set(arguments.only) - set(known)):
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(known)}")
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    total = places = 0
    for name in arguments.only or known:
        started, bounds = _cpu_seconds(), (arguments.cases, arguments.seconds, arguments.seed)
        done, read, found = search_guided(name, *bounds) if arguments.guided else search(name, known[name], *bounds)
        spent = _cpu_seconds() - started
        print(
            f"fuzz.{name} {done:,} cases, {read:,} read, {len(found)} unexplained, {spent:.0f} CPU-seconds", flush=True
        )
        total, places = total + done, places + len(found)
    print(f"fuzz: {total:,} cases, {places} unexplained")
    return int(places > 0)


if __name__ == "__main__":
    sys.exit(main())
