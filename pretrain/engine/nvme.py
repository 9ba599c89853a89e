"""Optimizer state on NVMe (ZeRO-Infinity, arXiv:2104.07857).

At stage 3 with `offload_optimizer = "nvme"` DeepSpeed keeps masters and moments in files below `engine.nvme_path`, one
sub-group of parameters each; a sub-group below 1 MiB stays in host memory. Between updates the tensors that represent
them are *empty*: moments made from their shape would give torch's fused AdamW a moment without elements for a master of
millions, which it would read out of bounds (a segmentation fault). So all access to state happens within `in_memory`.

DeepSpeed's own attributes used here: `swap_optimizer`, `_swappable_optimizer_subgroup`,
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

    It costs nothing where the state is in memory anyway; else a read and a write of 12 bytes per parameter. A gradient
    that has not been applied yet would be lost.
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
def lock_swap_folder(folder: Path) -> None:
    """Lock a folder of swap files for this process, until it ends.

    Raises:
        PipelineError: another process holds it, or it cannot be locked.
    """
    try:
        holder = _HELD.enter_context(held(folder / _LOCK_FILE, f"process {os.getpid()}"))
    except (OSError, StorageError) as error:
        raise PipelineError(f"engine.nvme_path = {str(folder)!r} cannot be used: {error}") from error
    if holder is not None:
        raise PipelineError(
            f"engine.nvme_path = {str(folder)!r} is in use by another run on this node ({holder}), whose files would "
            "have the same names; give each run its own folder"
        )
