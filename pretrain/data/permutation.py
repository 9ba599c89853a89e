"""Permutation of an epoch's rows, without a table.

Without state or an advancing generator, a restart neither replays nor skips rows. Price: 0.4 ms per call, and 100 ns
per index where there are many.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from governance.files import sha256_bytes
from governance.splitmix64 import INCREMENT, finalise

_ROUNDS = 6  # four rounds of a Feistel network are a pseudo-random permutation (Luby and Rackoff, 1988); two to spare


def permute(
    indices: npt.NDArray[np.uint64], count: int, seed: int, epoch: int, name: str = ""
) -> npt.NDArray[np.uint64]:
    """Map distinct indices below `count` to distinct indices below `count`, pseudo-randomly.

    A balanced Feistel network over the smallest even number of bits that holds `count`; values that fall outside
    are sent through again until they fall inside (cycle walking; Black and Rogaway, 2002), at most four times on
    average. `name` separates orders of one seed, such as those of several sources.
    """
    half, keys = _network(count, seed, epoch, name)
    values = _feistel(indices.astype(np.uint64), half, keys)
    while (outside := values >= count).any():
        values[outside] = _feistel(values[outside], half, keys)
    return values


def places_of(
    rows: npt.NDArray[np.uint64], count: int, seed: int, epoch: int, name: str = ""
) -> npt.NDArray[np.uint64]:
    """Inverse of `permute`: when in an epoch these rows are read."""
    half, keys = _network(count, seed, epoch, name)
    values = _unfeistel(rows.astype(np.uint64), half, keys)
    while (outside := values >= count).any():
        values[outside] = _unfeistel(values[outside], half, keys)
    return values


def _network(count: int, seed: int, epoch: int, name: str) -> tuple[int, list[np.uint64]]:
    """Half the bits of a value, and the keys of the rounds."""
    half = max(1, -(-max(1, (count - 1).bit_length()) // 2))
    text = sha256_bytes(f"rows/{seed}/{epoch}{name and '/'}{name}".encode())
    return half, [np.uint64(int(text[8 * i : 8 * i + 8], 16)) for i in range(_ROUNDS)]


def _feistel(values: npt.NDArray[np.uint64], half: int, keys: list[np.uint64]) -> npt.NDArray[np.uint64]:
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (finalise((right ^ (key << np.uint64(32))) + INCREMENT) & mask)
    return (left << bits) | right


def _unfeistel(values: npt.NDArray[np.uint64], half: int, keys: list[np.uint64]) -> npt.NDArray[np.uint64]:
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> bits, values & mask
    for key in reversed(keys):
        left, right = right ^ (finalise((left ^ (key << np.uint64(32))) + INCREMENT) & mask), left
    return (left << bits) | right
