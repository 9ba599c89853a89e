"""Changed inputs for every reader of foreign data.

    make fuzz [CASES=1000000] [SECONDS=0] [ONLY="csv config"] [SEED=0]

Hypothesis draws the seeds of the changes, in batches of 10,000. An input that raises anything but a PipelineError is
written to `tests/fuzz/found/TARGET/`, where a test reads it from then on. Prints a line for each target; exits 1 when
an input was found.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import logging
import random
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as of_seed
from hypothesis import strategies as st

from tests.fuzz.targets import Target, changed, explained, targets

FOUND = Path(__file__).parent / "found"
_BATCH = 10_000


def search(name: str, target: Target, cases: int, seconds: float, seed: int) -> tuple[int, int, dict[str, str]]:
    """Cases, those that were read, and the place of each new exception -> the file of its input.

    One input for each place is kept: the first.
    """
    done = read = 0
    found: dict[str, str] = {}
    end = time.monotonic() + seconds if seconds else float("inf")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        while done < cases and time.monotonic() < end:

            @of_seed(seed + done)
            @settings(max_examples=min(_BATCH, cases - done), deadline=None, database=None, phases=[Phase.generate],
                      suppress_health_check=list(HealthCheck))  # fmt: skip
            @given(st.integers(0, (1 << 64) - 1))
            def batch(number: int) -> None:
                nonlocal done, read
                if time.monotonic() > end:
                    return
                data = changed(target, random.Random(number))
                done += 1
                try:
                    read += explained(target, data, Path(scratch))
                except Exception as error:  # every kind is a find
                    frames = traceback.extract_tb(error.__traceback__)
                    place = f"{type(error).__name__} at {Path(frames[-1].filename).name}:{frames[-1].lineno}"
                    if place not in found:
                        found[place] = _kept(name, data)
                        print(f"{name}: {place}: {error}: {found[place]}", flush=True)

            batch()
            gc.collect()
    return done, read, found


def _kept(name: str, data: bytes) -> str:
    path = FOUND / name / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def main() -> int:
    """Fuzz target after target; the exit status says whether nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000_000, help="of each target (default: 1,000,000)")
    parser.add_argument("--seconds", type=float, default=0, help="at most so many for each target (default: no limit)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("only", nargs="*", metavar="TARGET")
    arguments = parser.parse_args()
    known = targets()
    if unknown := sorted(set(arguments.only) - set(known)):
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(known)}")
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    total = places = 0
    for name in arguments.only or known:
        started = time.process_time()
        done, read, found = search(name, known[name], arguments.cases, arguments.seconds, arguments.seed)
        spent = time.process_time() - started
        print(
            f"fuzz.{name} {done:,} cases, {read:,} read, {len(found)} unexplained, {spent:.0f} CPU-seconds", flush=True
        )
        total, places = total + done, places + len(found)
    print(f"fuzz: {total:,} cases, {places} unexplained")
    return int(places > 0)


if __name__ == "__main__":
    sys.exit(main())
