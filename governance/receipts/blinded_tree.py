"""Sparse hash tree over the names of a corpus, with blinded leaves.

A name (a text, a URL, an id) has one place, given by the bits of its tag, so that two proofs of one root cannot
contradict each other. What stands beside that place in a proof is a hash over a leaf with 16 secret bytes, which tells
nothing about its name; a lone name at the place of another is shown as such by its first different bits only
(`docs/decisions/0006-receipts.md`). `verify_receipt.py` has the form of each node.

Price: eight to nine hashes per name, of 50 ns each (`lone_names.py`, `name_nodes.py`); on disk 24 bytes per name and 24
bytes for each 32 names; a proof reads one branch of the tree and makes the last seven levels of it again.
"""

from __future__ import annotations

import base64
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from governance.errors import PipelineError
from governance.kernels.lone_names import lone_nodes
from governance.kernels.name_nodes import joined_nodes, lone_levels
from governance.kernels.sha256_lanes import sha256_rows
from governance.receipts.verify_receipt import NOTHING, STUB_BITS, bits_of, cut_hash

NODE_BYTES = 24
LEAF_BYTES = 20
_BUCKET_BITS = 6  # this many levels of the tree, at least, are made again for a proof
_AT_ONCE = 1 << 10  # buckets
_BLIND = b"leaf"  # with secret and tag, one block of SHA-256

Hashes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, repr=False)
class BlindedTree:
    """A tree that can be asked for proofs; arrays may be memory-mapped."""

    high: Any
    """uint64 [names], the first half of each tag, ascending and distinct."""
    low: Any
    """uint64 [names], the second half."""
    leaves: Any
    """uint8 [names, 20], see `leaf_value`."""
    nodes: Any
    """uint8 [2 x 2**depth, 24]: node 1 is the root, 2 n and 2 n + 1 are below n."""
    depth: int
    """Levels of `nodes` below the root."""
    secret: bytes

    @property
    def root(self) -> bytes:
        """The root's hash."""
        return bytes(self.nodes[1])

    def place(self, tag: bytes) -> int | None:
        """Number of a name by its tag; None: it is not there."""
        high, low = (int.from_bytes(half, "big") for half in (tag[:8], tag[8:]))
        at = bisect_left(self.high, high)
        return at if at < len(self.high) and (int(self.high[at]), int(self.low[at])) == (high, low) else None

    def prove(self, tag: bytes) -> dict[str, Any]:
        """Proof that a name is there, or is not.

        Raises:
            PipelineError: the only proof would show another name's tag (one in four thousand million).
        """
        siblings: list[bytes] = []
        node = 1
        for level in range(self.depth):
            if bytes(self.nodes[node]) == NOTHING:
                return _proof(siblings, "nothing", b"")
            node = 2 * node + bits_of(tag, level, 1)
            siblings.append(bytes(self.nodes[node ^ 1]))
        prefix = bits_of(tag, 0, self.depth)
        edges = (number << (64 - self.depth) for number in (prefix, prefix + 1))
        first, stop = (len(self.high) if edge >> 64 else bisect_left(self.high, edge) for edge in edges)
        names = [
            (int(self.high[at]).to_bytes(8, "big") + int(self.low[at]).to_bytes(8, "big"), bytes(self.leaves[at]))
            for at in range(first, stop)
        ]
        level = self.depth
        while len(names) > 1:
            ways: tuple[list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]] = ([], [])
            for name in names:
                ways[bits_of(name[0], level, 1)].append(name)
            names = ways[bits_of(tag, level, 1)]
            siblings.append(self._hash_below(ways[1 - bits_of(tag, level, 1)], level + 1))
            level += 1
        if not names:
            return _proof(siblings, "nothing", b"")
        [(other, leaf)] = names
        if other == tag:
            return _proof(siblings, "used", self._blind(tag))
        for number, width in enumerate(STUB_BITS):
            first = level + sum(STUB_BITS[:number])
            if (bits := bits_of(other, first, width)) != bits_of(tag, first, width):
                return _proof(siblings, [number, bits], self._stub(other, leaf, level, number + 1))
        raise PipelineError(
            "receipt: cannot be proven without showing another name. Ask by another name, such as a URL."
        )

    def _blind(self, tag: bytes) -> bytes:
        return bytes(sha256_rows(np.frombuffer(_BLIND + self.secret + tag, np.uint8)[None])[0, :16])

    def _stub(self, tag: bytes, leaf: bytes, level: int, number: int) -> bytes:
        """A lone name's stub of this number; after the last, its leaf."""
        node = cut_hash(b"\0", self._blind(tag), tag, leaf)
        for below in reversed(range(number, len(STUB_BITS))):
            bits = bits_of(tag, level + sum(STUB_BITS[:below]), STUB_BITS[below])
            node = cut_hash(b"\2", bytes([below]), bits.to_bytes(2, "big"), node)
        return node

    def _hash_below(self, names: Sequence[tuple[bytes, bytes]], level: int) -> bytes:
        if not names:
            return NOTHING
        if len(names) == 1:
            return self._stub(*names[0], level, 0)
        ways = ([name for name in names if bits_of(name[0], level, 1) == way] for way in (0, 1))
        return cut_hash(b"\1", *(self._hash_below(way, level + 1) for way in ways))


def _proof(siblings: Sequence[bytes], end: str | list[int], shown: bytes) -> dict[str, Any]:
    given = [sibling for sibling in siblings if sibling != NOTHING]
    return {
        "path": "".join("0" if sibling == NOTHING else "1" for sibling in siblings),
        "siblings": base64.b85encode(b"".join(given)).decode("ascii"),
        "end": end,
        "shown": shown.hex(),
    }


def build(high: Words, low: Words, leaves: Hashes, secret: bytes) -> BlindedTree:
    """The tree over these names.

    Args:
        high: uint64 [names], first half of each tag, ascending and distinct.
        low: uint64 [names], second half.
        leaves: uint8 [names, 20].
        secret: 32 bytes that blind the leaves.
    """
    depth = depth_of(len(high))
    nodes = np.zeros((2 << depth, NODE_BYTES), np.uint8)
    edges = np.arange(1 << depth, dtype=np.uint64) << np.uint64(64 - depth) if depth else np.zeros(1, np.uint64)
    bounds = np.append(np.searchsorted(high, edges), len(high))
    for first in range(0, 1 << depth, _AT_ONCE):
        stop = min(first + _AT_ONCE, 1 << depth)
        rows = slice(bounds[first], bounds[stop])
        hashes, places = _reduce(high[rows], low[rows], leaves[rows], secret, depth)
        nodes[(1 << depth) + places] = hashes
    for level in reversed(range(depth)):
        pairs = nodes[2 << level : 4 << level].reshape(-1, 2 * NODE_BYTES)
        made = sha256_rows(np.insert(pairs, 0, 1, axis=1))[:, :NODE_BYTES]
        made[~pairs.any(axis=1)] = 0
        nodes[1 << level : 2 << level] = made
    return BlindedTree(high, low, leaves, nodes, depth, secret)


def depth_of(names: int) -> int:
    """Levels below the root that are kept for this many names."""
    return max(0, names.bit_length() - 1 - _BUCKET_BITS)


def _reduce(high: Words, low: Words, leaves: Hashes, secret: bytes, depth: int) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Hashes and places of the nodes with names, at this depth."""
    levels = lone_levels(high, depth)
    hashes = lone_nodes((high, low), leaves, levels, _BLIND + secret, STUB_BITS)
    places = (high >> np.uint64(64 - depth)).astype(np.int64) if depth else np.zeros(len(high), np.int64)
    return joined_nodes(high, levels, hashes, depth), places[np.append(True, places[1:] != places[:-1])[: len(high)]]
