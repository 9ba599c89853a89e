"""DeepSpeed's extension async_io in plain Python: the calls of its swappers, done at once without a queue.

It replaces the compiled one, which needs libaio and minutes, so that DeepSpeed's own swappers and ours run anywhere.
"Locked" memory is memory that a handle gave out: it counts as pinned, as with the real one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch


class PlainHandle:
    """A handle: `async_pread` and `async_pwrite` are done when they return, and `wait` returns their number."""

    locked: ClassVar[dict[int, torch.Tensor]] = {}

    def __init__(self, **settings: int | bool) -> None:
        self._done = 0

    def new_cpu_locked_tensor(self, elements: int, example: torch.Tensor) -> torch.Tensor:
        made = torch.full((elements,), float("nan"), dtype=example.dtype)  # not zeroed, like the real one
        self.locked[made.untyped_storage().data_ptr()] = made
        return made

    def free_cpu_locked_tensor(self, tensor: torch.Tensor) -> bool:
        return self.locked.pop(tensor.untyped_storage().data_ptr(), None) is not None

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return tensor.numel() > 0 and tensor.untyped_storage().data_ptr() in self.locked

    def async_pwrite(self, buffer: torch.Tensor, path: str, offset: int) -> int:
        assert offset == 0
        Path(path).write_bytes(buffer.contiguous().view(torch.uint8).numpy().tobytes())
        self._done += 1
        return 0

    def async_pread(self, buffer: torch.Tensor, path: str, offset: int) -> int:
        assert offset == 0
        data = bytearray(Path(path).read_bytes())
        size = buffer.numel() * buffer.element_size()
        assert len(data) >= size, f"{path} holds {len(data)} bytes, {size} were asked for"
        buffer.copy_(torch.frombuffer(data, dtype=buffer.dtype, count=buffer.numel()))
        self._done += 1
        return 0

    def wait(self) -> int:
        done, self._done = self._done, 0
        return done


class PlainModule:
    """The module that `AsyncIOBuilder.load` returns."""

    aio_handle = PlainHandle


def plant(setattr_: Callable[[Any, str, Any], None] = setattr) -> None:
    """Make DeepSpeed load this, and never build the compiled one; `setattr_`: that of a `MonkeyPatch`."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    from pretrain.engine import engine

    setattr_(AsyncIOBuilder, "load", lambda self, verbose=False: PlainModule)
    setattr_(engine, "build_async_io", lambda ranks, limit, device: None)
