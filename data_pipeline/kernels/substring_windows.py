"""Windows that anchor repeated substrings, and their verification.

A *window* is a run of `width` bytes. Of each run of `spread` windows that follow one another the one with the least
hash is selected, the first among equals (winnowing: Schleimer et al. 2003). So equal substrings of
`width + spread - 1` bytes select the same window, wherever they occur; about 2 in `spread + 1` windows are selected.
In text that repeats itself within `spread` bytes ("=====") many windows have the least hash; of such a run the first,
one in each `spread` bytes and the last are selected.

The walk reads the bytes themselves: a hash proposes a place, and only equal bytes are a repeat.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from numba import int64, uint64

from governance.kernels.compiled import inlined, kernel

Integers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

MAX_COPIES = 64  # different surroundings of one window with which a later one is compared
_FACTOR = 0x9E3779B97F4A7C15


def select_windows(
    data: Bytes, offsets: Integers, width: int, spread: int
) -> tuple[Integers, Integers, npt.NDArray[np.uint64]]:
    """Row, first byte and hash of each selected window, in order."""
    rows, starts, hashes = _select(data, offsets, width, spread)
    return rows, starts, hashes


@kernel
def _select(data, offsets, width, spread):  # type: ignore[no-untyped-def]
    rows, starts, hashes = np.empty(1024, np.int64), np.empty(1024, np.int64), np.empty(1024, np.uint64)
    count = 0
    factor = uint64(_FACTOR)
    leaving = uint64(1)
    for _ in range(width):
        leaving *= factor
    # A queue of the windows that may still become the least, hashes ascending from its head.
    queue_hash, queue_at = np.empty(spread, np.uint64), np.empty(spread, np.int64)
    for row in range(len(offsets) - 1):
        first, last = offsets[row], offsets[row + 1]
        head = length = 0
        chosen = written = int64(-1)
        chosen_hash = uint64(0)
        pending = False  # the chosen window continues a run of equal ones and is not written
        h = uint64(0)
        for i in range(first, last):
            h = h * factor + uint64(data[i]) + uint64(1)
            if i - first >= width:
                h -= (uint64(data[i - width]) + uint64(1)) * leaving
            at = i - first - width + 1
            if at < 0:
                continue
            mixed = (h ^ h >> uint64(32)) * uint64(0xD6E8FEB86659FD93)
            mixed ^= mixed >> uint64(29)
            if length and queue_at[head] <= at - spread:
                head = head + 1 if head + 1 < spread else 0
                length -= 1
            while length:
                back = head + length - 1
                back = back - spread if back >= spread else back
                if queue_hash[back] <= mixed:
                    break
                length -= 1
            back = head + length
            back = back - spread if back >= spread else back
            queue_hash[back], queue_at[back] = mixed, at
            length += 1
            if at < spread - 1 or queue_at[head] == chosen:
                continue
            same = chosen >= 0 and queue_hash[head] == chosen_hash and queue_at[head] - chosen < spread
            if count + 2 > len(rows):
                rows, starts, hashes = _longer(rows), _longer(starts), _longer(hashes)
            if pending and not same:
                rows[count], starts[count], hashes[count] = row, chosen, chosen_hash
                count += 1
            chosen, chosen_hash = queue_at[head], queue_hash[head]
            pending = same and chosen - written < spread
            if not pending:
                written = chosen
                rows[count], starts[count], hashes[count] = row, chosen, chosen_hash
                count += 1
        if pending:
            if count == len(rows):
                rows, starts, hashes = _longer(rows), _longer(starts), _longer(hashes)
            rows[count], starts[count], hashes[count] = row, chosen, chosen_hash
            count += 1
    return rows[:count].copy(), starts[:count].copy(), hashes[:count].copy()


@inlined
def _longer(values):  # type: ignore[no-untyped-def]
    more = np.empty(2 * len(values), values.dtype)
    more[: len(values)] = values
    return more


def find_repeats(
    data: Bytes,
    offsets: Integers,
    text: Integers,
    start: Integers,
    group: Integers,
    width: int,
    least: int,
    stays: Callable[[int, Integers], bool],
) -> int:
    """Pass repeats to `stays` by text; count windows cut short.

    `stays` is called with each text that has repeats of at least `least` bytes, and with a row for each repeat: first
    byte, end, earlier text, its first byte. Where it returns False, no later text is compared with this one.

    `text`, `start` and `group` are of the windows, in order; windows of one group have one hash. A repeat occurs
    earlier, in another text or at least `least` bytes before. The count is of windows that were compared
    with the first MAX_COPIES different surroundings only.
    """
    sizes = np.bincount(group) if len(group) else np.zeros(0, np.int64)
    rooms = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.minimum(sizes, MAX_COPIES), dtype=np.int64)])
    copies, held, short = np.empty(rooms[-1], np.int64), np.zeros(len(rooms) - 1, np.int32), 0
    bounds = [*np.flatnonzero(np.diff(text, prepend=-1)).tolist(), len(text)]
    for first, end in itertools.pairwise(bounds):
        found, missed = _walk(data, offsets, text, start, group, rooms, copies, held, first, end, width, least)
        if len(found) and not stays(int(text[first]), found):
            _forget(text, group, rooms, copies, held, first, end)
        else:
            short += missed
    return int(short)


@kernel
def _forget(text, group, rooms, copies, held, first, end):  # type: ignore[no-untyped-def]
    """Remove the windows of a text, which were added last."""
    for n in range(first, end):
        g = group[n]
        while held[g] and text[copies[rooms[g] + held[g] - 1]] == text[first]:
            held[g] -= 1


@kernel
def _walk(data, offsets, text, start, group, rooms, copies, held, first, end, width, least):  # type: ignore[no-untyped-def]
    found = np.empty((16, 4), np.int64)
    count = 0
    short = 0
    here = text[first]
    # The alignment compared last: the earlier text, its distance, and the bytes of this one known to be equal.
    other = distance = low = high = int64(-1)
    cut_from = cut_to = int64(-1)
    for n in range(first, end):
        p, g = start[n], group[n]
        begin, size = offsets[here], offsets[here + 1] - offsets[here]
        covered = False
        for k in range(rooms[g], rooms[g] + held[g]):
            m = copies[k]
            there, q = text[m], start[m]
            if there == here and p - q < least:
                continue
            source, length = offsets[there], offsets[there + 1] - offsets[there]
            if not (there == other and p - q == distance and low <= p < high):
                low = high = p
                stop = max(int64(0), p - least, p - q)
                while low > stop and data[begin + low - 1] == data[source + low - 1 - (p - q)]:
                    low -= 1
                other, distance = there, p - q
            stop = min(size, p + least, length + distance)
            while high < stop and data[begin + high] == data[source + high - distance]:
                high += 1
            if high < p + width:
                continue  # the hashes are equal and the bytes are not
            if high - low >= least and not (cut_from <= low and high <= cut_to):
                if low <= cut_to and cut_from <= low:
                    cut_to = max(cut_to, high)
                else:
                    cut_from, cut_to = low, high
                last = found[count - 1]
                if count and last[2] == there and last[0] - last[3] == distance and low <= last[1]:
                    last[0], last[1] = min(last[0], low), max(last[1], high)
                    last[3] = last[0] - distance
                else:
                    if count == len(found):
                        more = np.empty((2 * count, 4), np.int64)
                        more[:count] = found
                        found = more
                    found[count, 0], found[count, 1] = low, high
                    found[count, 2], found[count, 3] = there, low - distance
                    count += 1
            if low <= max(int64(0), p + width - least) and high >= min(size, p + least):
                covered = True  # whatever equals the surroundings of this window equals those of the copy
                break
        if covered:
            continue
        if held[g] < rooms[g + 1] - rooms[g]:
            copies[rooms[g] + held[g]] = n
            held[g] += 1
        else:
            short += 1
    return found[:count].copy(), short
