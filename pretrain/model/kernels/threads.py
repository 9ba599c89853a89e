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
"""How the names of these threads begin."""
SMALL = 1 << 17
"""Elements up to which a kernel runs on the caller's thread: handing a part over takes as long as so many (0.05 ms)."""
_MOST = 16  # Python calls them one after the other, so more would wait for their turn; measured with two


def parts_of(count: int) -> int:
    """Among how many threads `count` rows are shared."""
    return max(1, min(torch.get_num_threads(), _MOST, count))


def over(kernel: Callable[..., None], count: int, tensors: tuple[torch.Tensor, ...], *rest: Any) -> None:
    """Call `kernel(part, start, end, *arrays, *rest)` for equal parts of `count` rows.

    Returns when all ended.

    Parts run at once, or one after the other where they are `SMALL`: the same parts, so the same sums.

    Args:
        kernel: does what concerns the rows start..end, and writes nothing else.
        count: of rows, as the kernel understands them.
        tensors: contiguous, bf16, fp32 or int32; the kernel gets their memory.
        rest: given to each call as it is.
    """
    arrays = [array_of(tensor) for tensor in tensors]
    parts = parts_of(count)
    edges = [count * part // parts for part in range(parts + 1)]
    first, *others = enumerate(itertools.pairwise(edges))
    if not others or max(array.size for array in arrays) <= SMALL:
        for part, rows in (first, *others):
            kernel(part, *rows, *arrays, *rest)
        return
    pool = _pool(os.getpid())  # a forked child has no threads of its parent's
    waiting = [pool.submit(kernel, part, *rows, *arrays, *rest) for part, rows in others]
    kernel(first[0], *first[1], *arrays, *rest)
    for one in waiting:
        one.result()


@functools.cache
def _pool(_process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MOST - 1, thread_name_prefix=NAME)
