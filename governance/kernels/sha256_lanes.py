"""SHA-256 of many short messages, sixteen at once (FIPS 180-4).

`hashlib` costs half a microsecond a call, whatever the message; these messages are of one or two blocks and there are
millions. The compiler turns each loop over the lanes into vector instructions. Messages of kilobytes are faster in
`governance/files.py`, with the processor's own SHA instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from governance.kernels.buffers import Bytes, Offsets
from governance.kernels.code_points import byte_at
from governance.kernels.compiled import inlined, kernel, part

DIGEST_BYTES = 32
LANES = 16


def _fractions(power: int, count: int) -> list[int]:
    """Fractions of the first primes' roots, in 32 bits."""
    primes: list[int] = []
    number = 2
    while len(primes) < count:
        if all(number % prime for prime in primes):
            primes.append(number)
        number += 1
    scaled = [prime << (32 * power) for prime in primes]
    return [_root(value, power) & 0xFFFFFFFF for value in scaled]


def _root(value: int, power: int) -> int:
    """The integer root, rounded down."""
    low, high = 0, 1 << (value.bit_length() // power + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**power <= value else (low, middle - 1)
    return low


START = np.array(_fractions(2, 8), np.uint32)
ROUNDS = np.array(_fractions(3, 64), np.uint32)


def sha256_lanes(data: Bytes, offsets: Offsets) -> Bytes:
    """The SHA-256 of each message, [messages, 32].

    Args:
        data: the messages' bytes.
        offsets: [n + 1], message i is `data[offsets[i]:offsets[i + 1]]`.
    """
    data = data.view()
    data.flags.writeable = False  # one compiled form, for what is mapped and what is not
    found: Bytes = _hash_all(data, offsets, START, ROUNDS)
    return found


def sha256_rows(rows: npt.NDArray[np.uint8]) -> Bytes:
    """The SHA-256 of each row, [rows, 32]."""
    count, width = rows.shape
    return sha256_lanes(np.ascontiguousarray(rows).reshape(-1), np.arange(count + 1, dtype=np.int64) * width)


@inlined
def _turn(x: Any, n: Any) -> Any:
    return np.uint32(np.uint32(x >> np.uint32(n)) | np.uint32(x << np.uint32(32 - n)))


@inlined
def _step(a: Any, b: Any, c: Any, e: Any, f: Any, g: Any, h: Any, word: Any) -> Any:
    """A round: its addend for `d`, and the new `a`."""
    mixed = np.uint32(_turn(e, 6) ^ _turn(e, 11) ^ _turn(e, 25))
    first = np.uint32(h + mixed + np.uint32((e & f) ^ (~e & g)) + word)
    second = np.uint32(np.uint32(_turn(a, 2) ^ _turn(a, 13) ^ _turn(a, 22)) + np.uint32((a & b) ^ (a & c) ^ (b & c)))
    return first, np.uint32(first + second)


@inlined
def number_at(data: Any, place: Any) -> Any:
    """Four bytes as a big-endian number."""
    return np.uint32(
        (np.uint32(byte_at(data, place)) << np.uint32(24))
        | (np.uint32(byte_at(data, place + 1)) << np.uint32(16))
        | (np.uint32(byte_at(data, place + 2)) << np.uint32(8))
        | np.uint32(byte_at(data, place + 3))
    )


@inlined
def _word(data: Any, start: Any, length: Any, at: Any, last: Any) -> Any:
    """Four bytes of a padded message, as a big-endian number."""
    if at + 4 <= length:
        return number_at(data, start + at)
    if at > length and at < last - 4:
        return np.uint32(0)
    value = np.uint32(0)
    for index in range(4):
        byte = np.uint32(0)
        if at + index < length:
            byte = np.uint32(data[start + at + index])
        elif at + index == length:
            byte = np.uint32(0x80)
        value = np.uint32(np.uint32(value << np.uint32(8)) | byte)
    if at == last:
        value = np.uint32(length << 3)
    if at == last - 4:
        value = np.uint32(length >> 29)
    return value


@part
def compress(words, state, constants):  # type: ignore[no-untyped-def]
    """Extend the block's words, and turn each lane's state through its rounds.

    The caller adds the state from before. Arrays are uint32 [64, 16] and [8, 16].
    """
    for row in range(16, 64):
        for lane in range(LANES):
            near, far = words[row - 2, lane], words[row - 15, lane]
            words[row, lane] = np.uint32(
                words[row - 16, lane]
                + np.uint32(_turn(far, 7) ^ _turn(far, 18) ^ np.uint32(far >> np.uint32(3)))
                + words[row - 7, lane]
                + np.uint32(_turn(near, 17) ^ _turn(near, 19) ^ np.uint32(near >> np.uint32(10)))
            )
    for eight in range(0, 64, 8):
        k0, k1, k2, k3 = constants[eight], constants[eight + 1], constants[eight + 2], constants[eight + 3]
        k4, k5, k6, k7 = constants[eight + 4], constants[eight + 5], constants[eight + 6], constants[eight + 7]
        for lane in range(LANES):
            a, b, c, d = state[0, lane], state[1, lane], state[2, lane], state[3, lane]
            e, f, g, h = state[4, lane], state[5, lane], state[6, lane], state[7, lane]
            t, h = _step(a, b, c, e, f, g, h, np.uint32(k0 + words[eight, lane]))
            d = np.uint32(d + t)
            t, g = _step(h, a, b, d, e, f, g, np.uint32(k1 + words[eight + 1, lane]))
            c = np.uint32(c + t)
            t, f = _step(g, h, a, c, d, e, f, np.uint32(k2 + words[eight + 2, lane]))
            b = np.uint32(b + t)
            t, e = _step(f, g, h, b, c, d, e, np.uint32(k3 + words[eight + 3, lane]))
            a = np.uint32(a + t)
            t, d = _step(e, f, g, a, b, c, d, np.uint32(k4 + words[eight + 4, lane]))
            h = np.uint32(h + t)
            t, c = _step(d, e, f, h, a, b, c, np.uint32(k5 + words[eight + 5, lane]))
            g = np.uint32(g + t)
            t, b = _step(c, d, e, g, h, a, b, np.uint32(k6 + words[eight + 6, lane]))
            f = np.uint32(f + t)
            t, a = _step(b, c, d, f, g, h, a, np.uint32(k7 + words[eight + 7, lane]))
            e = np.uint32(e + t)
            state[0, lane], state[1, lane], state[2, lane], state[3, lane] = a, b, c, d
            state[4, lane], state[5, lane], state[6, lane], state[7, lane] = e, f, g, h


@kernel
def _hash_all(data, offsets, start, constants):  # type: ignore[no-untyped-def]
    count = len(offsets) - 1
    out = np.empty((count, DIGEST_BYTES), np.uint8)
    words = np.zeros((64, LANES), np.uint32)
    state = np.zeros((8, LANES), np.uint32)
    total = np.zeros((8, LANES), np.uint32)
    for first in range(0, count, LANES):
        lanes = min(LANES, count - first)
        blocks = 0
        for lane in range(lanes):
            blocks = max(blocks, (offsets[first + lane + 1] - offsets[first + lane] + 8) // 64 + 1)
        for row in range(8):
            for lane in range(LANES):
                total[row, lane] = start[row]
        for block in range(blocks):
            for lane in range(lanes):
                begin = offsets[first + lane]
                length = offsets[first + lane + 1] - begin
                last = ((length + 8) // 64 + 1) * 64 - 4
                for row in range(16):
                    words[row, lane] = _word(data, begin, length, block * 64 + row * 4, last)
            for row in range(8):
                for lane in range(LANES):
                    state[row, lane] = total[row, lane]
            compress(words, state, constants)
            for lane in range(lanes):
                if block <= (offsets[first + lane + 1] - offsets[first + lane] + 8) // 64:
                    for row in range(8):
                        total[row, lane] = np.uint32(total[row, lane] + state[row, lane])
        for lane in range(lanes):
            for row in range(8):
                value = total[row, lane]
                for index in range(4):
                    out[first + lane, row * 4 + index] = np.uint8(value >> np.uint32(24 - 8 * index))
    return out
