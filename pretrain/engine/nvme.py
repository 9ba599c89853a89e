"""Optimizer state on NVMe (ZeRO-Infinity, arXiv:2104.07857).

At stage 3 with `offload_optimizer = "nvme"` DeepSpeed keeps masters and moments in files below `engine.nvme_path`, a
sub-group of parameters each; one of less than 1 MiB stays in host memory. Between updates the tensors that stand for
them are *empty*: whoever makes moments of their shape gives torch's fused AdamW a moment of no elements beside a master
of millions, and it reads beyond (a segmentation fault). So all that looks at state does so in `in_memory`.

DeepSpeed's own attributes that this needs: `swap_optimizer`, `_swappable_optimizer_subgroup`,
`_optimizer_states_and_gradient_swap_in` and `_out`, `norm_for_param_grads` and `get_param_id` of its stage 3.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from governance.errors import PipelineError, StorageError
from governance.files import held

if TYPE_CHECKING:
    from pretrain.engine.wrapped import Wrapped

_LOCK_FILE = "assay.lock"
_HELD = contextlib.ExitStack()  # locks that end with the process


def in_files(engine: Wrapped, index: int) -> bool:
    """Return whether the state of flat `index` is in files."""
    zero = engine.deepspeed.optimizer
    return getattr(zero, "swap_optimizer", False) and bool(zero._swappable_optimizer_subgroup(index))


@contextlib.contextmanager
def in_memory(engine: Wrapped, index: int) -> Iterator[None]:
    """Hold the state of flat `index` in memory, then write back.

    Costs nothing where it lies in memory; else a read and a write of 12 bytes a parameter. A gradient that waits for
    its update would be lost.
    """
    if not in_files(engine, index):
        yield
        return
    zero = engine.deepspeed.optimizer
    zero._optimizer_states_and_gradient_swap_in(index)
    try:
        yield
    finally:
        zero._optimizer_states_and_gradient_swap_out(index)


def gradient_norms_of(engine: Wrapped, index: int) -> list[torch.Tensor]:
    """L2 norms of this rank's gradient parts of flat `index`."""
    zero = engine.deepspeed.optimizer
    numbers = (zero.get_param_id(parameter) for parameter in zero.fp16_groups[index])
    norms = (zero.norm_for_param_grads.get(number) for number in numbers)
    return [torch.as_tensor(norm, dtype=torch.float32).reshape(1) for norm in norms if norm is not None]


@functools.cache
def hold_folder_of_files(folder: Path) -> None:
    """Keep a folder of swap files to this process, until it ends.

    Raises:
        PipelineError: another process has it, or it cannot be held.
    """
    try:
        holder = _HELD.enter_context(held(folder / _LOCK_FILE, f"process {os.getpid()}"))
    except (OSError, StorageError) as error:
        raise PipelineError(f"engine.nvme_path = {str(folder)!r} cannot be used: {error}") from error
    if holder is not None:
        raise PipelineError(
            f"engine.nvme_path = {str(folder)!r} is in use by another run on this node ({holder}), whose files have "
            "the same names; give each run a folder of its own"
        )
