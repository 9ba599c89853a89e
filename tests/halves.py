"""Long loops over seeds in two processes, which halves their time on a machine of two cores."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def in_halves(function: Callable[..., Any], seeds: range, *others: Any) -> list[Any]:
    """`function(seeds, *others)` of the even and of the odd seeds; the function must be a module's."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        return [half.result() for half in [pool.submit(function, seeds[first::2], *others) for first in (0, 1)]]
