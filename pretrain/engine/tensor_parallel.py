"""Tensor parallelism: conversion between parts of matrices and whole ones.

AutoTP cuts the matrices that `deepspeed_config.py` names: by output (rows of the stored matrix) or by input (columns),
into equal parts in the order of the tensor ranks. Embedding and output projection are cut by `vocabulary_part.py`, by
rows of the vocabulary. All other parameters are equal on every tensor rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pretrain.engine.deepspeed_config import COLUMN, ROW
from pretrain.optim.zero_fragments import Fragment

_TABLES = ("model.embed_tokens.weight", "lm_head.weight")
ReadStretch = Callable[[str, int, int], Mapping[str, torch.Tensor]]
"""(name, start, length) -> that stretch of the whole parameter's master and moments, flattened."""


@dataclass(frozen=True)
class TensorParts:
    """Partition of matrices among tensor ranks."""

    size: int = 1
    rank: int = 0
    group: Any = None

    def axis(self, name: str) -> int | None:
        """Axis along which a parameter is cut.

        None states that every rank holds it whole.
        """
        if self.size == 1:
            return None
        weight = re.sub(r"\.bias$", ".weight", name)
        if re.match(COLUMN, weight) or name in _TABLES:
            return 0
        return 1 if re.match(ROW, name) else None

    def whole_shape(self, name: str, shape: torch.Size) -> torch.Size:
        """Shape of the whole parameter."""
        axis = self.axis(name)
        return torch.Size(side * self.size if place == axis else side for place, side in enumerate(shape))

    def whole(self, name: str, part: torch.Tensor) -> torch.Tensor:
        """Whole tensor, joined from the parts of all tensor ranks; collective."""
        axis = self.axis(name)
        if axis is None:
            return part
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.size)]
        torch.distributed.all_gather(parts, part.contiguous(), group=self.group)
        return torch.cat(parts, dim=axis)

    def read_part(self, read: ReadStretch, fragment: Fragment) -> Mapping[str, torch.Tensor]:
        """Fragment of this rank's part of a matrix, read from the whole.

        For a matrix cut by input, whole rows are read: `size` times the needed bytes.
        """
        axis, start, count = self.axis(fragment.name), fragment.start, fragment.count
        if axis is None:
            return read(fragment.name, start, count)
        if axis == 0:
            return read(fragment.name, self.rank * fragment.shape.numel() + start, count)
        width = fragment.shape[1]
        first, end = start // width, -(-(start + count) // width)
        rows = read(fragment.name, first * width * self.size, (end - first) * width * self.size)
        skipped = start - first * width
        return {
            kind: values.view(-1, self.size, width)[:, self.rank].reshape(-1)[skipped : skipped + count]
            for kind, values in rows.items()
        }
