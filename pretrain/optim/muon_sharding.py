"""Whole matrices for Muon from ZeRO's pieces.

Each matrix has one owner, a rank that holds much of it and makes it orthogonal for all: nothing is computed twice.
Price: at stages 1 and 2 only the few matrices that a border between ranks cuts are sent; at stage 3 every rank sends
and receives, twice, its share of the matrices at 2 bytes per element.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from pretrain.optim.zero_fragments import Fragment


@dataclass(frozen=True)
class Sharing:
    """Mapping between this rank's flat and the matrices it owns."""

    outgoing: tuple[tuple[Fragment, ...], ...]
    """Fragments that this rank holds, by owner."""
    incoming: tuple[tuple[Fragment, ...], ...]
    """Fragments of this rank's matrices that others hold, by holder."""
    owned: tuple[tuple[str, torch.Size], ...]
    """Names and shapes of the matrices that this rank owns."""
    crossing: bool
    """True where any rank holds a piece of another's matrix; equal on all ranks."""
    group: Any = None
    """Ranks among which ZeRO cut the flat; None: all."""

    def collect(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Whole matrices that this rank owns; collective where some are cut."""
        held = [fragment.place(flat) for fragment in _joined(self.outgoing)]
        received = self._exchange(held, self.outgoing, self.incoming, flat)
        pieces: dict[str, list[tuple[int, torch.Tensor]]] = defaultdict(list)
        for fragment, values in zip(_joined(self.incoming), received, strict=True):
            pieces[fragment.name].append((fragment.start, values))
        return [_in_order(pieces[name]).view(shape) for name, shape in self.owned]

    def hand_out(self, matrices: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
        """Scatter all owners' matrices into this rank's flat, with zero padding."""
        whole = {name: matrix for (name, _), matrix in zip(self.owned, matrices, strict=True)}
        pieces = [fragment.cut(whole[fragment.name]) for fragment in _joined(self.incoming)]
        flat = torch.zeros_like(like)
        received = self._exchange(pieces, self.incoming, self.outgoing, flat)
        for fragment, values in zip(_joined(self.outgoing), received, strict=True):
            fragment.place(flat).copy_(values)
        return flat

    def _exchange(
        self,
        pieces: list[torch.Tensor],
        sent: tuple[tuple[Fragment, ...], ...],
        expected: tuple[tuple[Fragment, ...], ...],
        like: torch.Tensor,
    ) -> list[torch.Tensor]:
        """Send each rank its pieces, and receive this rank's."""
        if not self.crossing:
            return pieces
        sizes = [[sum(fragment.count for fragment in some) for some in side] for side in (expected, sent)]
        given = torch.cat(pieces) if pieces else like.new_empty(0)
        # As bytes: gloo has no bf16 here.
        received = given.new_empty(sum(sizes[0]))
        expected_bytes, sent_bytes = [[given.element_size() * size for size in side] for side in sizes]
        distributed.all_to_all_single(
            received.view(torch.uint8), given.view(torch.uint8), expected_bytes, sent_bytes, group=self.group
        )
        return list(received.split([fragment.count for fragment in _joined(expected)]))


def _in_order(pieces: list[tuple[int, torch.Tensor]]) -> torch.Tensor:
    parts = [values for _, values in sorted(pieces, key=lambda piece: piece[0])]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _joined(sides: tuple[tuple[Fragment, ...], ...]) -> list[Fragment]:
    return [fragment for some in sides for fragment in some]


def plan(held: list[list[Fragment]], rank: int, group: Any = None) -> Sharing:
    """Owners of a flat's matrices, and this rank's exchanges.

    Ranks are numbered within `group`.
    """
    holders: dict[str, list[tuple[int, Fragment]]] = defaultdict(list)
    for holder, fragments in enumerate(held):
        for fragment in fragments:
            holders[fragment.name].append((holder, fragment))
    owners = _owners(holders, len(held))
    outgoing: list[list[Fragment]] = [[] for _ in held]
    incoming: list[list[Fragment]] = [[] for _ in held]
    for name, pieces in holders.items():
        for holder, fragment in pieces:
            if holder == rank:
                outgoing[owners[name]].append(fragment)
            if owners[name] == rank:
                incoming[holder].append(fragment)
    owned = tuple((name, pieces[0][1].shape) for name, pieces in holders.items() if owners[name] == rank)
    crossing = any(holder != owners[name] for name, pieces in holders.items() for holder, _ in pieces)
    return Sharing(tuple(map(tuple, outgoing)), tuple(map(tuple, incoming)), owned, crossing, group)


def _owners(holders: dict[str, list[tuple[int, Fragment]]], ranks: int) -> dict[str, int]:
    """Assign matrices, costliest first, to the least loaded of their holders."""
    work, owners = [0] * ranks, {}

    def cost(name: str) -> int:
        shape = holders[name][0][1].shape
        return shape.numel() * min(shape[-2:])

    for name in sorted(holders, key=lambda name: -cost(name)):
        most = max(fragment.count for _, fragment in holders[name])
        near = [holder for holder, fragment in holders[name] if 2 * fragment.count > most]
        owners[name] = min(near, key=lambda holder: (work[holder], holder))
        work[owners[name]] += cost(name)
    return owners
