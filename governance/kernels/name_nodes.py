"""Tags of a receipts' tree, and nodes above its lone names.

Sixteen hashes are made at once. `governance/receipts/verify_receipt.py` has their form. As in `lone_names.py`, each
message is one block and is written as its sixteen numbers, without its bytes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from governance.kernels.buffers import Bytes
from governance.kernels.compiled import kernel
from governance.kernels.lone_names import Numbers, Words, block_digest, constant
from governance.kernels.sha256_lanes import LANES, ROUNDS, START, number_at

Integers = npt.NDArray[np.int64]

_TAG_BITS, _NODE_BITS = 8 * (16 + 1 + 16), 8 * (1 + 24 + 24)


def name_tags(prefix: bytes, kinds: Bytes, names: Bytes) -> tuple[Words, Words]:
    """The halves of each name's tag.

    Args:
        prefix: 16 bytes before the kind.
        kinds: [names].
        names: [names, 16].
    """
    numbers = np.frombuffer(prefix, ">u4").astype(np.uint32)
    return _tags(numbers, kinds, constant(names), START, ROUNDS)  # type: ignore[no-any-return]


def sums_of_names(starts: Integers, documents: Integers, facts: Integers) -> tuple[Integers, Integers, Integers]:
    """Copies of each name, and its least and largest licence.

    Copies, and those held out, are [names, 2]; the others numbers of licences.

    Args:
        starts: [names + 1], name i has the documents `documents[starts[i]:starts[i + 1]]`, at least one.
        documents: their numbers.
        facts: [documents, 3], copies, those held out, licence.
    """
    return _sums(starts, documents, facts)  # type: ignore[no-any-return]


def leaves_of_names(sums: Integers, licences: Integers, digests: Bytes) -> Bytes:
    """The leaf of each name, [names, 20].

    Args:
        sums: [names, 2], copies and those held out.
        licences: [names], rows of `digests`.
        digests: [licences, 12].
    """
    return _leaves(sums, licences, constant(digests))  # type: ignore[no-any-return]


def lone_levels(high: Words, depth: int) -> Integers:
    """The level at which each name is alone.

    It is one below the longest beginning that a name shares with a neighbour.

    Args:
        high: first halves of the tags, ascending and distinct.
        depth: the least level.
    """
    return _levels(high, depth)  # type: ignore[no-any-return]


def joined_nodes(high: Words, levels: Integers, hashes: Numbers, depth: int) -> Bytes:
    """The hash of each node of one level with names below.

    They are in order, [nodes, 24].

    Args:
        high: first halves of the tags, ascending and distinct.
        levels: as `lone_levels`.
        hashes: of the lone names, [names + 1, 6], see `lone_nodes`; overwritten.
        depth: up to 63.
    """
    found = _joined(high, levels, hashes, depth, START, ROUNDS)
    return found.astype(">u4").view(np.uint8).reshape(len(found), 24)  # type: ignore[no-any-return]


@kernel
def _tags(prefix, kinds, names, start, constants):  # type: ignore[no-untyped-def]
    count = len(kinds)
    high, low = np.empty(count, np.uint64), np.empty(count, np.uint64)
    words = np.zeros((64, LANES), np.uint32)
    state = np.zeros((8, LANES), np.uint32)
    for first in range(0, count, LANES):
        lanes = min(LANES, count - first)
        for row in range(4):
            value = prefix[row]
            for lane in range(LANES):
                words[row, lane] = value
        for lane in range(lanes):
            before = np.uint32(kinds[first + lane])
            for row in range(4):
                value = number_at(names, 16 * (first + lane) + 4 * row)
                words[4 + row, lane] = np.uint32(before << np.uint32(24)) | np.uint32(value >> np.uint32(8))
                before = value
            words[8, lane] = np.uint32(before << np.uint32(24)) | np.uint32(0x80 << 16)
        block_digest(words, 9, _TAG_BITS, start, constants, state)
        for lane in range(lanes):
            high[first + lane] = (np.uint64(state[0, lane]) << np.uint64(32)) | np.uint64(state[1, lane])
            low[first + lane] = (np.uint64(state[2, lane]) << np.uint64(32)) | np.uint64(state[3, lane])
    return high, low


@kernel
def _sums(starts, documents, facts):  # type: ignore[no-untyped-def]
    count = len(starts) - 1
    sums, least, most = np.zeros((count, 2), np.int64), np.empty(count, np.int64), np.empty(count, np.int64)
    for name in range(count):
        least[name] = most[name] = facts[documents[starts[name]], 2]
        for place in range(starts[name], starts[name + 1]):
            document = documents[place]
            sums[name, 0] += facts[document, 0]
            sums[name, 1] += facts[document, 1]
            least[name] = min(least[name], facts[document, 2])
            most[name] = max(most[name], facts[document, 2])
    return sums, least, most


@kernel
def _leaves(sums, licences, digests):  # type: ignore[no-untyped-def]
    count = len(licences)
    out = np.empty((count, 20), np.uint8)
    for name in range(count):
        for half in range(2):
            for place in range(4):
                out[name, 4 * half + place] = np.uint8(sums[name, half] >> (24 - 8 * place))
        for place in range(12):
            out[name, 8 + place] = digests[12 * licences[name] + place]
    return out


@kernel
def _levels(high, depth):  # type: ignore[no-untyped-def]
    levels = np.full(len(high), depth, np.int64)
    for name in range(1, len(high)):
        level = depth
        apart = high[name - 1] ^ high[name]
        while level == 0 or (level < 64 and apart >> np.uint64(64 - level) == 0):
            level += 1
        levels[name - 1] = max(levels[name - 1], level)
        levels[name] = max(levels[name], level)
    return levels


@kernel
def _joined(high, levels, nodes, depth, start, constants):  # type: ignore[no-untyped-def]
    count = len(high)
    last, kept, joined = depth, 0, 0
    for name in range(count):
        last = max(last, levels[name])
    # Names by level: a counting sort, in which those of a level keep their order.
    ends = np.zeros(66, np.int64)
    for name in range(count):
        ends[levels[name] + 1] += 1
    for level in range(1, 66):
        ends[level] += ends[level - 1]
    places, names = ends.copy(), np.empty(count, np.int64)
    for name in range(count):
        names[places[levels[name]]] = name
        places[levels[name]] += 1
    here, above = np.empty(count, np.int64), np.empty(count, np.int64)  # nodes, by their first name
    words = np.zeros((64, LANES), np.uint32)
    state = np.zeros((8, LANES), np.uint32)
    for level in range(last, depth - 1, -1):
        # Nodes of this level: those that were joined below, and the names that are alone here, in order.
        kept, lone, stop = 0, ends[level], ends[level + 1]
        for one in range(joined):
            while lone < stop and names[lone] < above[one]:
                here[kept] = names[lone]
                kept, lone = kept + 1, lone + 1
            here[kept] = above[one]
            kept += 1
        while lone < stop:
            here[kept] = names[lone]
            kept, lone = kept + 1, lone + 1
        joined = 0
        if level == depth:
            break
        place = 0
        while place < kept:
            lanes = 0
            while lanes < LANES and place < kept:
                one = here[place]
                way = high[one] >> np.uint64(64 - level)
                other = here[place + 1] if place + 1 < kept else one
                pair = other != one and high[other] >> np.uint64(64 - level) == way ^ np.uint64(1)
                pair = pair and way & np.uint64(1) == 0
                # One byte, then both hashes; a side without names is the row of zeros.
                left, right = count, count
                if way & np.uint64(1) == 0:
                    left = one
                    if pair:
                        right = other
                else:
                    right = one
                before = np.uint32(1)
                for row in range(6):
                    value = nodes[left, row]
                    words[row, lanes] = np.uint32(before << np.uint32(24)) | np.uint32(value >> np.uint32(8))
                    before = value
                for row in range(6):
                    value = nodes[right, row]
                    words[6 + row, lanes] = np.uint32(before << np.uint32(24)) | np.uint32(value >> np.uint32(8))
                    before = value
                words[12, lanes] = np.uint32(before << np.uint32(24)) | np.uint32(0x80 << 16)
                above[joined] = one
                joined, lanes = joined + 1, lanes + 1
                place += 2 if pair else 1
            block_digest(words, 13, _NODE_BITS, start, constants, state)
            for lane in range(lanes):
                for row in range(6):
                    nodes[above[joined - lanes + lane], row] = state[row, lane]
    found = np.empty((kept, 6), np.uint32)
    for place in range(kept):
        for row in range(6):
            found[place, row] = nodes[here[place], row]
    return found
