"""Greedy deduplication: best documents first, each compared with those kept.

It runs over arrays. A *participant* is a document that shares a text, an address or a band with another; its position
is its rank. Participants of equal text share the text's number, so a text is compared once and has one set of shingles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from governance.kernels.compiled import kernel, part

KEPT, EXACT, URL, NEAR = 0, 1, 2, 3

Integers = npt.NDArray[np.int64]
Walked = tuple[npt.NDArray[np.uint8], Integers, npt.NDArray[np.float64], Integers, npt.NDArray[np.float64], int]


def walk_ranked(
    text: Integers,
    address: Integers,
    fixed: npt.NDArray[np.bool_],
    group_starts: Integers,
    groups: Integers,
    rooms: Integers,
    address_rooms: Integers,
    sets: npt.NDArray[np.uint64],
    set_starts: Integers,
    set_ends: Integers,
    threshold: float,
    overlap: float,
) -> Walked:
    """Decide for each participant, in rank order.

    `text`, `address` (-1: none) and `fixed` (it stays, whatever it is near to) have an entry a participant. The bands
    of text t are `groups[group_starts[t]:group_starts[t + 1]]`, its shingles `sets[set_starts[t]:set_ends[t]]`. Group
    g notes who stays in the places `rooms[g]` to `rooms[g + 1]`; when these are full, further ones are not compared
    with. `address_rooms` is the same of addresses.

    Returns `(reason, kept_by, jaccard)` a participant; `(pairs, values)`: the comparisons, as positions of the one that
    stays and of the other, with their similarity; and how often a full group was met.
    """
    count, texts = len(text), len(set_starts)
    reason, kept_by, jaccard = np.zeros(count, np.uint8), np.full(count, -1, np.int64), np.ones(count)
    of_text = np.full((2, texts), -1, np.int64)  # who stays with a text; who left as a near-duplicate with it
    members, filled = np.empty(rooms[-1], np.int64), np.zeros(len(rooms) - 1, np.int64)
    residents, settled = np.empty(address_rooms[-1], np.int64), np.zeros(len(address_rooms) - 1, np.int64)
    log: Any = (np.empty(1024, np.int64), np.empty(1024, np.int64), np.empty(1024), 0)
    log, cut = _walk(
        (text, address, fixed, group_starts, groups, sets, set_starts, set_ends),
        (rooms, members, filled, address_rooms, residents, settled),
        (reason, kept_by, jaccard, of_text[0], of_text[1], np.full(count, -1, np.int64)),
        float(threshold),
        float(overlap),
        log,
    )
    kept, other, values, compared = log
    return reason, kept_by, jaccard, np.stack([kept, other], axis=1)[:compared], values[:compared], cut


@kernel
def _walk(corpus, places, state, threshold, overlap, log):  # type: ignore[no-untyped-def]
    text, address, fixed, group_starts, groups, sets, set_starts, set_ends = corpus
    rooms, members, filled, address_rooms, residents, settled = places
    reason, kept_by, jaccard, text_kept, text_near, seen = state
    cut = 0
    for k in range(len(text)):
        t, u = text[k], address[k]
        if not fixed[k]:
            if text_kept[t] >= 0:
                reason[k], kept_by[k] = EXACT, text_kept[t]
                continue
            if u >= 0:
                start = address_rooms[u]
                kept_by[k], jaccard[k], log = _of_one_page(
                    k, residents, start, start + settled[u], text, sets, set_starts, set_ends, overlap, log
                )
                if kept_by[k] >= 0:
                    reason[k] = URL
                    continue
            if text_near[t] >= 0:
                reason[k], kept_by[k], jaccard[k] = NEAR, kept_by[text_near[t]], jaccard[text_near[t]]
                continue
            kept_by[k], jaccard[k], log, full = _nearest(
                k, group_starts, groups, rooms, filled, members, seen, text, sets, set_starts, set_ends, threshold, log
            )
            cut += full
            if kept_by[k] >= 0:
                reason[k], text_near[t] = NEAR, k
                continue
        if text_kept[t] < 0:
            text_kept[t] = k
        for i in range(group_starts[t], group_starts[t + 1]):
            _note(members, rooms, filled, groups[i], k)
        if u >= 0:
            _note(residents, address_rooms, settled, u, k)
    return log, cut


@part
def _note(members, rooms, filled, group, k):  # type: ignore[no-untyped-def]
    """Note in a group that k stays, while there is room."""
    if filled[group] < rooms[group + 1] - rooms[group]:
        members[rooms[group] + filled[group]] = k
        filled[group] += 1


@part
def _longer(values):  # type: ignore[no-untyped-def]
    """The array with as much room again."""
    more = np.empty(2 * len(values), values.dtype)
    for i in range(len(values)):
        more[i] = values[i]
    return more


@part
def _logged(log, one, two, value):  # type: ignore[no-untyped-def]
    """The log of comparisons and one more."""
    kept, other, values, count = log
    if count == len(values):
        kept, other, values = _longer(kept), _longer(other), _longer(values)
    kept[count], other[count], values[count] = one, two, value
    return kept, other, values, count + 1


@part
def shared_shingles(left, right):  # type: ignore[no-untyped-def]
    """Number of members that two sorted arrays share."""
    i = j = shared = 0
    while i < len(left) and j < len(right):
        a, b = left[i], right[j]
        shared += a == b
        i += a <= b
        j += b <= a
    return shared


@part
def _of_one_page(  # type: ignore[no-untyped-def]
    k, residents, start, end, text, sets, set_starts, set_ends, overlap, log
):
    """Best match among kept documents of the same address."""
    own = sets[set_starts[text[k]] : set_ends[text[k]]]
    best, nearest, jaccard = -1.0, -1, 1.0
    for place in range(start, end):
        other = residents[place]
        theirs = sets[set_starts[text[other]] : set_ends[text[other]]]
        shared = shared_shingles(own, theirs)
        within = shared / max(1, min(len(own), len(theirs)))
        value = shared / max(1, len(own) + len(theirs) - shared)
        log = _logged(log, other, k, value)
        if within >= overlap and within > best:
            best, nearest, jaccard = within, other, value
    return nearest, jaccard, log


@part
def _nearest(  # type: ignore[no-untyped-def]
    k, group_starts, groups, rooms, filled, members, seen, text, sets, set_starts, set_ends, threshold, log
):
    """Best match among kept documents of a shared band; full bands."""
    own = sets[set_starts[text[k]] : set_ends[text[k]]]
    best, nearest, full = threshold, -1, 0
    for i in range(group_starts[text[k]], group_starts[text[k] + 1]):
        g = groups[i]
        full += filled[g] == rooms[g + 1] - rooms[g]
        for place in range(rooms[g], rooms[g] + filled[g]):
            other = members[place]
            if seen[other] == k:
                continue
            seen[other] = k
            theirs = sets[set_starts[text[other]] : set_ends[text[other]]]
            if min(len(own), len(theirs)) / max(1, len(own), len(theirs)) < threshold:  # rounded as `value` is
                continue  # their sizes alone say that they are not near
            shared = shared_shingles(own, theirs)
            value = shared / max(1, len(own) + len(theirs) - shared)
            log = _logged(log, other, k, value)
            if value > best or (value == best and nearest < 0):
                best, nearest = value, other
    return nearest, best if nearest >= 0 else 1.0, log, full
