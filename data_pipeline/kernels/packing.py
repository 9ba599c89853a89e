"""Best-fit decreasing packing of document pieces (arXiv:2404.10830).

A piece of `size` positions goes into the row whose remaining room is the smallest that holds it, else into a new row;
pieces come from the largest to the smallest. Rows with equal room form a linked list, and a binary tree over the rooms
0..L says which lists are empty, so each piece costs O(log L), n pieces O(n log L), whatever their number of rows.

Best fit alone may leave rows half empty (documents of 0.6 L fill 0.6 of every row). `fill_gaps` then dissolves the
emptiest rows, as many as are too many, and lays their pieces into the gaps of the others, cut where no gap holds them:
always the largest gap first, so that the cuts are few. A cut loses context, never a prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from numba import njit

from governance.splitmix64 import INCREMENT

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Packing:
    """Rows of pieces: row i holds the pieces [row_ends[i - 1], row_ends[i])."""

    items: Integers
    """[pieces], the number of the item that each piece is cut from."""
    offsets: Integers
    """[pieces], where the piece begins in its item, positions."""
    lengths: Integers
    """[pieces], positions."""
    row_ends: Integers
    """[rows], one past the last piece of each row."""
    cuts: int
    """Pieces that exist only because a row was filled by cutting."""


def pack_items(sizes: Integers, sequence_length: int, min_used_share: float) -> Packing:
    """Pack items into rows with at least `min_used_share` used.

    Only the last row may break that promise: n positions never need fewer than ceil(n / L) rows. Items of one size
    come in a pseudo-random order that depends on their numbers alone, so that neighbours and copies part.
    """
    total = int(sizes.sum())
    order = _decreasing(sizes, sequence_length)
    row_of, rows = _best_fit(sizes, order, sequence_length)
    target = _target_rows(total, sequence_length, min_used_share)
    items, offsets, lengths = order, np.zeros(len(order), np.int64), sizes[order]
    row_of = row_of[order]
    pieces = len(items)
    if target < rows:
        items, offsets, lengths, row_of = fill_gaps(items, lengths, row_of, rows, target, sequence_length)
        rows = target
    by_row = np.argsort(row_of, kind="stable")
    ends = np.cumsum(np.bincount(row_of, minlength=rows))
    return Packing(items[by_row], offsets[by_row], lengths[by_row], ends, len(items) - pieces)


def _target_rows(total: int, sequence_length: int, min_used_share: float) -> int:
    """The most rows of which `total` positions still use the share.

    They are never fewer than are needed to hold the positions.
    """
    least = -(-total // sequence_length)
    if not min_used_share:
        return total
    return max(least, int(total / (Fraction(str(min_used_share)) * sequence_length)))


def _decreasing(sizes: Integers, sequence_length: int) -> Integers:
    """Item numbers by falling size, ties broken by a hash."""
    mixed = np.arange(1, len(sizes) + 1, dtype=np.uint64) * INCREMENT
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    shuffled = np.argsort(mixed ^ (mixed >> np.uint64(32)), kind="stable")
    return shuffled[np.argsort(sequence_length - sizes[shuffled], kind="stable")]


@njit(cache=True, nogil=True)
def _mark(tree, node):  # type: ignore[no-untyped-def]
    while node and not tree[node]:
        tree[node] = 1
        node >>= 1


@njit(cache=True, nogil=True)
def _unmark(tree, node):  # type: ignore[no-untyped-def]
    tree[node] = 0
    while node > 1 and not tree[node ^ 1]:
        node >>= 1
        tree[node] = 0


@njit(cache=True, nogil=True)
def _at_least(tree, leaves, room):  # type: ignore[no-untyped-def]
    """The smallest marked room that is at least `room`, or -1."""
    node = leaves + room
    while not tree[node]:
        while node & 1:
            node >>= 1
        if not node:
            return -1
        node += 1
    while node < leaves:
        node *= 2
        if not tree[node]:
            node += 1
    return node - leaves


@njit(cache=True, nogil=True)
def _most(tree, leaves):  # type: ignore[no-untyped-def]
    """The largest marked room, or -1."""
    if not tree[1]:
        return -1
    node = 1
    while node < leaves:
        node = 2 * node + 1
        if not tree[node]:
            node -= 1
    return node - leaves


@njit(cache=True, nogil=True)
def _push(tree, leaves, heads, following, row, room):  # type: ignore[no-untyped-def]
    following[row] = heads[room]
    heads[room] = row
    _mark(tree, leaves + room)


@njit(cache=True, nogil=True)
def _pop(tree, leaves, heads, following, room):  # type: ignore[no-untyped-def]
    row = heads[room]
    heads[room] = following[row]
    if heads[room] < 0:
        _unmark(tree, leaves + room)
    return row


@njit(cache=True, nogil=True)
def _lists(length, rows):  # type: ignore[no-untyped-def]
    """Empty tree over the rooms 0..length, their lists, and its size."""
    leaves = 1
    while leaves <= length:
        leaves *= 2
    return np.zeros(2 * leaves, np.uint8), leaves, np.full(length + 1, -1, np.int64), np.empty(rows, np.int64)


@njit(cache=True, nogil=True)
def _best_fit(sizes, order, length):  # type: ignore[no-untyped-def]
    """The row of each item, and how many rows there are."""
    tree, leaves, heads, following = _lists(length, len(sizes))
    row_of = np.empty(len(sizes), np.int64)
    rows = 0
    for place in range(len(order)):
        item = order[place]
        size = sizes[item]
        room = _at_least(tree, leaves, size)
        if room < 0:
            row, room = rows, length
            rows += 1
        else:
            row = _pop(tree, leaves, heads, following, room)
        row_of[item] = row
        if room > size:
            _push(tree, leaves, heads, following, row, room - size)
    return row_of, rows


def fill_gaps(
    items: Integers, lengths: Integers, row_of: Integers, rows: int, target: int, sequence_length: int
) -> tuple[Integers, Integers, Integers, Integers]:
    """Dissolve the emptiest rows until `target` remain; their items fill the gaps.

    An item is cut where no gap has room for the whole.

    Returns:
        Item, offset in it, length and row of each piece.
    """
    used = np.bincount(row_of, weights=lengths, minlength=rows).astype(np.int64)
    emptiest = np.argsort(used, kind="stable")[: rows - target]
    stays = np.ones(rows, bool)
    stays[emptiest] = False
    new_numbers = np.cumsum(stays) - 1
    gone = ~stays[row_of]
    room = sequence_length - used[stays]
    moved = _lay(items[gone], lengths[gone], room, sequence_length)
    kept = (items[~gone], np.zeros(int((~gone).sum()), np.int64), lengths[~gone], new_numbers[row_of[~gone]])
    item, offset, length, row = (np.concatenate(pair) for pair in zip(kept, moved, strict=True))
    return item, offset, length, row


@njit(cache=True, nogil=True)
def _lay(items, lengths, rooms, length):  # type: ignore[no-untyped-def]
    """Lay items into the rooms of rows.

    An item is laid whole by best fit, else cut to the largest room.
    """
    tree, leaves, heads, following = _lists(length, len(rooms))
    for row in range(len(rooms)):
        if rooms[row]:
            _push(tree, leaves, heads, following, row, rooms[row])
    most = len(items) + len(rooms)  # every cut fills a row, so there are at most as many cuts as rows
    made_item, made_offset = np.empty(most, np.int64), np.empty(most, np.int64)
    made_length, made_row = np.empty(most, np.int64), np.empty(most, np.int64)
    made = 0
    for place in range(len(items)):
        offset = 0
        while offset < lengths[place]:
            rest = lengths[place] - offset
            room = _at_least(tree, leaves, rest)
            if room < 0:
                room = _most(tree, leaves)
            row = _pop(tree, leaves, heads, following, room)
            taken = min(rest, room)
            made_item[made], made_offset[made], made_length[made], made_row[made] = items[place], offset, taken, row
            made += 1
            offset += taken
            if room > taken:
                _push(tree, leaves, heads, following, row, room - taken)
    return made_item[:made], made_offset[:made], made_length[:made], made_row[:made]
