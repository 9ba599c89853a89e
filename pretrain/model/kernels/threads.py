"""Thread pool for kernels that release the GIL."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from pretrain.model.kernels.bf16 import array_of

NAME = "kernel"
"""Prefix of these threads' names."""
SMALL = 1 << 17
"""Elements up to which a kernel runs on the caller's thread: handing over a part takes as long (0.05 ms)."""
_MAX_THREADS = 16  # Python starts them one after the other, so more would queue; measured with two


def thread_count(count: int) -> int:
    """Threads that share `count` rows."""
    return max(1, min(torch.get_num_threads(), _MAX_THREADS, count))


def run_in_threads(kernel: Callable[..., None], count: int, tensors: tuple[torch.Tensor, ...], *rest: Any) -> None:
    """Call `kernel(part, start, end, *arrays, *rest)` for equal parts of `count` rows.

    It returns when all parts have ended. They run concurrently, or one after the other where they are `SMALL`: the
    parts are the same, so sums are too.

    Args:
        kernel: computes rows start..end, and writes nothing else.
        count: number of rows, as the kernel counts them.
        tensors: contiguous, bf16, fp32 or int32; the kernel gets their memory.
        rest: passed unchanged to each call.
    """
    arrays = [array_of(tensor) for tensor in tensors]
    parts = thread_count(count)
    edges = [count * part // parts for part in range(parts + 1)]
    first, *others = enumerate(itertools.pairwise(edges))
    if not others or max(array.size for array in arrays) <= SMALL:
        for part, rows in (first, *others):
            kernel(part, *rows, *arrays, *rest)
        return
    pool = _pool(os.getpid())  # a forked child has none of its parent's threads
    waiting = [pool.submit(kernel, part, *rows, *arrays, *rest) for part, rows in others]
    kernel(first[0], *first[1], *arrays, *rest)
    for one in waiting:
        one.result()


@functools.cache
def _pool(_process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MAX_THREADS - 1, thread_name_prefix=NAME)
