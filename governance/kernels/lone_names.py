"""Nodes of the lone names of a receipts' tree, sixteen at once.

A name costs six hashes; `governance/receipts/verify_receipt.py` has their form, `blinded_tree.py` their meaning. Here
they are made without their bytes: each message is one block, written as its sixteen numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from governance.kernels.buffers import Bytes
from governance.kernels.compiled import inlined, kernel
from governance.kernels.sha256_lanes import LANES, ROUNDS, START, compress, number_at

_BLIND_BITS, _LEAF_BITS, _STUB_BITS = 8 * (4 + 32 + 16), 8 * (1 + 16 + 16 + 20), 8 * (4 + 24)

Words = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.uint32]


def lone_nodes(
    tags: tuple[Words, Words], leaves: Bytes, levels: npt.NDArray[np.int64], prefix: bytes, widths: Sequence[int]
) -> Numbers:
    """The hash of each lone name as six numbers.

    The result is [names + 1, 6]; its last row is zeros, for a place without names.

    Args:
        tags: uint64 [names], the halves of each.
        leaves: [names, 20].
        levels: [names], at which each is alone, up to 64.
        prefix: 36 bytes before the tag in the hash that blinds a leaf.
        widths: bits of each stub; 64 in all, at most.
    """
    numbers = np.frombuffer(prefix, ">u4").astype(np.uint32)
    held = constant(leaves)
    return _hash(*tags, held, levels, numbers, np.array(widths, np.int64), START, ROUNDS)  # type: ignore[no-any-return]


def constant(rows: Bytes) -> Bytes:
    """The bytes of rows, read-only.

    So a kernel has one compiled form, whether or not its rows may be written.
    """
    flat = np.ascontiguousarray(rows).reshape(-1).view()
    flat.flags.writeable = False
    return flat


@inlined
def _tag_bits(high: Any, low: Any, first: Any, width: Any) -> Any:
    """Bits [first, first + width) of a tag."""
    if first >= 64:
        window = low << np.uint64(first - 64)
    elif first > 0:
        window = (high << np.uint64(first)) | (low >> np.uint64(64 - first))
    else:
        window = high
    return window >> np.uint64(64 - width)


@inlined
def block_digest(words: Any, used: Any, bits: Any, start: Any, constants: Any, state: Any) -> Any:
    """Hash a block of `used` numbers; the last one marks the end."""
    for row in range(used, 15):
        for lane in range(LANES):
            words[row, lane] = np.uint32(0)
    for lane in range(LANES):
        words[15, lane] = np.uint32(bits)
    for row in range(8):
        value = start[row]  # read once: the compiler cannot know that `state` is elsewhere
        for lane in range(LANES):
            state[row, lane] = value
    compress(words, state, constants)
    for row in range(8):
        value = start[row]
        for lane in range(LANES):
            state[row, lane] = np.uint32(state[row, lane] + value)


@kernel
def _hash(high, low, leaves, levels, prefix, widths, start, constants):  # type: ignore[no-untyped-def]
    count = len(high)
    out = np.empty((count + 1, 6), np.uint32)
    out[count] = 0
    words = np.zeros((64, LANES), np.uint32)
    state = np.zeros((8, LANES), np.uint32)
    stream = np.zeros((14, LANES), np.uint32)  # a leaf's message after its first byte
    stream[13] = np.uint32(0x80 << 24)
    for first in range(0, count, LANES):
        lanes = min(LANES, count - first)
        for lane in range(lanes):
            name = first + lane
            stream[4, lane], stream[5, lane] = np.uint32(high[name] >> np.uint64(32)), np.uint32(high[name])
            stream[6, lane], stream[7, lane] = np.uint32(low[name] >> np.uint64(32)), np.uint32(low[name])
            for row in range(5):
                stream[8 + row, lane] = number_at(leaves, 20 * name + 4 * row)
        for row in range(9):
            value = prefix[row]
            for lane in range(LANES):
                words[row, lane] = value
        for row in range(4):
            for lane in range(LANES):
                words[9 + row, lane] = stream[4 + row, lane]
        for lane in range(LANES):
            words[13, lane] = np.uint32(0x80 << 24)
        block_digest(words, 14, _BLIND_BITS, start, constants, state)
        for row in range(4):
            for lane in range(LANES):
                stream[row, lane] = state[row, lane]
        for lane in range(LANES):
            words[0, lane] = stream[0, lane] >> np.uint32(8)
        for row in range(1, 14):
            for lane in range(LANES):
                words[row, lane] = np.uint32(stream[row - 1, lane] << np.uint32(24)) | np.uint32(
                    stream[row, lane] >> np.uint32(8)
                )
        block_digest(words, 14, _LEAF_BITS, start, constants, state)
        past = 0
        for number in range(len(widths)):
            past += widths[number]
        for number in range(len(widths) - 1, -1, -1):
            past -= widths[number]
            for lane in range(lanes):
                name = first + lane
                bits = _tag_bits(high[name], low[name], levels[name] + past, widths[number])
                words[0, lane] = np.uint32((2 << 24) | (number << 16)) | np.uint32(bits)
            for row in range(6):
                for lane in range(LANES):
                    words[1 + row, lane] = state[row, lane]
            for lane in range(LANES):
                words[7, lane] = np.uint32(0x80 << 24)
            block_digest(words, 8, _STUB_BITS, start, constants, state)
        for lane in range(lanes):
            for row in range(6):
                out[first + lane, row] = state[row, lane]
    return out
