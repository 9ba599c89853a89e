"""Training loop with steps on request: reads a line, takes a step, answers with its loss as JSON.

So that rivals run in turn on a shared machine, each in a process of its own, and meet the same neighbours. Runs in the
environment of a rival too, so it imports nothing of ours.
"""

import json
import sys
from collections.abc import Callable


def wait() -> None:
    """Wait for the next request; exit when standard input ends."""
    if not sys.stdin.readline():
        raise SystemExit(0)


def answer(**values: object) -> None:
    """Answer with values, as a line of JSON."""
    sys.__stdout__.write(json.dumps(values) + "\n")
    sys.__stdout__.flush()


def take(step: Callable[[int], float]) -> None:
    """Answer once when ready, then after each step; `step(number)` gives its loss."""
    answer(ready=True)
    number = 0
    while True:
        wait()
        answer(loss=step(number))
        number += 1
