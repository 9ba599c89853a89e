"""Location of each parameter's elements in ZeRO's partitions.

A *flat* is a tensor that the optimizer updates: a parameter itself at stage 0, else this rank's part of many, joined.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Fragment:
    """A run of a parameter's elements within this rank's flat."""

    name: str
    shape: torch.Size
    """Shape of the whole parameter."""
    start: int
    """Its first element, counted in the parameter."""
    offset: int
    """Its first element, counted in the flat."""
    count: int
    """Elements."""

    def cut(self, whole: torch.Tensor) -> torch.Tensor:
        """View of this fragment's elements in the whole parameter."""
        return whole.reshape(-1)[self.start : self.start + self.count]

    def place(self, flat: torch.Tensor) -> torch.Tensor:
        """View of this fragment's place in its flat."""
        return flat.view(-1)[self.offset : self.offset + self.count]


def assemble(pieces: list[tuple[Fragment, torch.Tensor]], group: Any, device: torch.device) -> list[torch.Tensor]:
    """Whole parameters from the fragments of `group`'s ranks. Collective.

    Without a group this rank holds all.

    `pieces` are (fragment, its flat), one for each requested tensor, all of one parameter shape; `count` is 0 where
    this rank holds nothing. The ranks' bits are summed as integers, because -0.0 + 0.0 is not -0.0.
    """
    shape = pieces[0][0].shape
    wholes = torch.zeros((len(pieces), shape.numel()), dtype=torch.float32, device=device)
    for whole, (fragment, flat) in zip(wholes, pieces, strict=True):
        fragment.cut(whole).copy_(fragment.place(flat))
    if group is not None:
        torch.distributed.all_reduce(wholes.view(torch.int32), group=group)
    return [whole.view(shape) for whole in wholes]
