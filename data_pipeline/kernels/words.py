"""Word boundaries in every script: code point table and scan.

White space (`str.split()`) parts words, punctuation and all; that is the whole rule for scripts written with spaces,
whose combining marks (Arabic, Hebrew, Devanagari ...) occur inside the run. Within a run of a script without spaces the
rule follows Unicode annex 29 as far as it goes without a dictionary:

- each Han ideograph and each Hiragana character is a word; a run of Katakana is one;
- Thai, Lao, Khmer and Burmese: a letter with the marks and vowels after it is a word (a grapheme cluster), a Thai or
  Lao vowel that is written before its consonant begins one with it (Unicode's Logical_Order_Exception), and a Khmer
  coeng or Burmese virama ties the next consonant to the one before: roughly a syllable, two or three to a real word;
- Tibetan: a syllable, which a tsheg or shad ends, as the Ethiopic wordspace ends a word;
- a letter or digit of any other script after one of these begins a word; punctuation and marks belong to the word
  before them, as they do in "dog.", and where there is none to the next.

So a word of such a text is shorter than one of another: thresholds on words have to be chosen for it.

A code point's `kind` is its bits below and, from bit 8 on, its class in `TRANSITIONS`. Bytes are read eight at a time,
in the order of little-endian machines.
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba import int64, types, uint64
from numba.extending import intrinsic

from governance.kernels.buffers import BULLET, LETTER, SPACE, UNSPACED, code_point_classes
from governance.kernels.code_points import CLOSERS, QUOTES, TERMINALS, byte_at, decode
from governance.kernels.compiled import inlined, part

TERMINAL = 16  # ends a sentence
LINE_END = 32  # a line that ends so ends properly: a terminal, an ellipsis, or a closing quotation mark
CLOSER = 64  # may occur between a terminal and the white space after it
LOWER = 128  # str.islower()

JOINS, PLAIN, UNIT, KATAKANA, LEADING, STACKER, TIBETAN, TSHEG = range(8)
TRANSITIONS = np.array(
    [  # next state of a run, by the class of the next code point; + 8: a word begins here
        # JOINS PLAIN UNIT KATAKANA LEADING STACKER TIBETAN TSHEG
        [0, 1, 2, 3, 4, 0, 5, 0],  # 0: nothing yet, or nothing but punctuation
        [1, 1, 10, 11, 12, 1, 13, 2],  # 1: a letter or digit of a script with spaces
        [2, 9, 10, 11, 12, 4, 13, 2],  # 2: a complete unit
        [3, 9, 10, 3, 12, 3, 13, 2],  # 3: katakana
        [4, 9, 2, 11, 12, 4, 13, 2],  # 4: waits for its consonant
        [5, 9, 10, 11, 12, 5, 5, 2],  # 5: within a Tibetan syllable
    ],
    np.uint8,
)
FOLLOWING_VOWELS = "ะาำๅະາຳฯຯๆໆៗーｰﾞﾟ"  # letters by category, but never the first of a syllable
VIRAMAS = "\u1039\u17d2"
ETHIOPIC_WORDSPACE = "\u1361"
LEADING_RANGES = ((0x0E40, 0x0E44), (0x0EC0, 0x0EC4))
KATAKANA_RANGES = ((0x30A1, 0x30FA), (0x30FD, 0x30FF), (0x31F0, 0x31FF), (0x3031, 0x3035), (0xFF66, 0xFF9F))
UNIT_RANGES = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3005, 0x3007),
    (0x3021, 0x3029),
    (0x3038, 0x303B),
    (0x3041, 0x309F),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)

_SEED = 0x9E3779B97F4A7C15
_STEP = 0xFF51AFD7ED558CCD
_LAST = 0xC4CEB9FE1A85EC53
_ONES = 0x0101010101010101
_HIGH = 0x8080808080808080


@functools.cache
def word_classes() -> npt.NDArray[np.uint16]:
    """The kind of each of the 0x110000 code points; 2.2 MB."""
    characters = np.arange(0x110000, dtype=np.uint32).view("U1")
    kinds = (code_point_classes() & (SPACE | LETTER | UNSPACED | BULLET)).astype(np.uint16)
    kinds[np.strings.islower(characters)] |= LOWER
    kinds[np.strings.isalnum(characters)] |= PLAIN << 8
    for first, last in UNIT_RANGES:
        for point in range(first, min(last, 0x30FF) + 1):  # beyond, a code point is an ideograph or unassigned
            if unicodedata.category(chr(point)) in ("Lo", "Lm", "Nl"):
                _set_class(kinds, point, UNIT)
        if first > 0x30FF:
            kinds[first : last + 1] = np.where(
                kinds[first : last + 1] & LETTER, kinds[first : last + 1] & 0xFF | UNIT << 8, kinds[first : last + 1]
            )
    for point in range(0x0F00, 0x1000):
        if kinds[point] >> 8 == PLAIN:
            _set_class(kinds, point, TIBETAN)
        elif unicodedata.category(chr(point)) == "Po":
            _set_class(kinds, point, TSHEG)
    for ranges, kind in ((KATAKANA_RANGES, KATAKANA), (LEADING_RANGES, LEADING)):
        for first, last in ranges:
            for point in range(first, last + 1):
                _set_class(kinds, point, kind)
    for text, kind in ((FOLLOWING_VOWELS, JOINS), (VIRAMAS, STACKER), (ETHIOPIC_WORDSPACE, TSHEG)):
        for character in text:
            _set_class(kinds, ord(character), kind)
    for text, bits in ((TERMINALS, TERMINAL | LINE_END), (QUOTES + "…", LINE_END), (CLOSERS, CLOSER)):
        for character in text:
            kinds[ord(character)] |= bits
    kinds.flags.writeable = False
    return kinds


def _set_class(kinds: npt.NDArray[np.uint16], point: int, kind: int) -> None:
    kinds[point] = int(kinds[point]) & 0xFF | kind << 8


@intrinsic
def load_8(typingctx, data, place):  # type: ignore[no-untyped-def]
    """Eight bytes of `data` (uint8, contiguous) from `place`, as one integer.

    The caller makes sure that they are in bounds.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        where = builder.gep(array.data, [arguments[1]])
        loaded = builder.load(builder.bitcast(where, ir.IntType(64).as_pointer()))
        loaded.align = 1
        return loaded

    return types.uint64(data, types.int64), generate


@intrinsic
def lowest_byte(typingctx, bits):  # type: ignore[no-untyped-def]
    """Index (0 to 7) of the lowest non-zero byte."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        zeros = builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))
        return builder.lshr(zeros, ir.Constant(ir.IntType(64), 3))

    return types.int64(types.uint64), generate


@inlined
def add_chunk(h, chunk):  # type: ignore[no-untyped-def]
    """Add eight bytes of a word, zero-padded, to its hash."""
    h = (h ^ chunk) * uint64(_STEP)
    return h ^ (h >> uint64(32))


@inlined
def end_hash(h, size):  # type: ignore[no-untyped-def]
    """The hash of a word of `size` bytes.

    It is one to one for words of one size that fit eight bytes.
    """
    h = (h ^ uint64(size)) * uint64(_LAST)
    return h ^ (h >> uint64(29))


@inlined
def below_mask(count):  # type: ignore[no-untyped-def]
    """Ones in the lowest `count` bytes, of 0 to 7."""
    return (uint64(1) << uint64(8 * count)) - uint64(1)


@inlined
def fold_ascii(chunk):  # type: ignore[no-untyped-def]
    """The chunk with its ASCII capitals made small; other bytes stay."""
    low = chunk & ~uint64(_HIGH)
    capital = (low + uint64(0x3F * _ONES)) & ~(low + uint64(0x25 * _ONES)) & ~chunk & uint64(_HIGH)
    return chunk | capital >> uint64(2)


@inlined
def has_zero_byte(chunk):  # type: ignore[no-untyped-def]
    """Not 0 if one of the eight bytes is 0."""
    return (chunk - uint64(_ONES)) & ~chunk & uint64(_HIGH)


@part
def hash_bytes(data, start, stop, fold):  # type: ignore[no-untyped-def]
    """The hash of a word's bytes, ASCII capitals folded on request."""
    h, i = uint64(_SEED), start
    while i < stop:
        chunk = uint64(0)
        if i + 8 <= len(data):
            chunk = load_8(data, i)
            if stop - i < 8:
                chunk &= below_mask(stop - i)
        else:
            for j in range(i, stop if stop - i < 8 else i + 8):
                chunk |= uint64(byte_at(data, j)) << uint64(8 * (j - i))
        h = add_chunk(h, fold_ascii(chunk) if fold else chunk)
        i += 8
    return end_hash(h, stop - start)


@inlined
def plain_word(data, i, end):  # type: ignore[no-untyped-def]
    """A word of printable ASCII from `i`.

    The result is its end (0 where it is not such a word, or too near to `end`), its hash, and `letters`, which is not 0
    if the word has a letter.
    """
    h, letters, j = uint64(_SEED), uint64(0), i
    while j + 8 <= end:
        chunk = load_8(data, j)
        stops = ((chunk - uint64(0x21 * _ONES)) | chunk) & uint64(_HIGH)  # a byte that is not printable ASCII
        if stops:
            count = lowest_byte(stops)
            if byte_at(data, j + count) >= 0x80:
                return 0, h, letters
            chunk &= below_mask(count)
        small = chunk | uint64(0x20 * _ONES)
        letters |= (small + uint64(0x1F * _ONES)) & ~(small + uint64(0x05 * _ONES)) & uint64(_HIGH)
        if stops:
            c = byte_at(data, j + count)
            if not (c == 32 or 9 <= c <= 13 or 28 <= c <= 31):
                return 0, h, letters
            if count:
                h = add_chunk(h, chunk)
            return j + count, end_hash(h, j + count - i), letters
        h = add_chunk(h, chunk)
        j += 8
    return 0, h, letters


@part
def any_word(data, i, end, kinds, open_sentence):  # type: ignore[no-untyped-def]
    """The word from `i` on, by code points.

    Returns its end, its code points, how many are of a script without spaces, whether one is a letter, the kind of the
    last, how many sentences end within it at a terminal beyond ASCII, and whether one is open after it: a sentence is
    open from its first letter on.
    """
    characters = unspaced = ends = 0
    letter = False
    state, last = 0, 0
    while i < end:
        point, width = decode(data, i, end)
        kind = int64(kinds[point])
        if kind & SPACE:
            break
        state = int64(TRANSITIONS[state & 7, kind >> 8])
        if state & 8 and characters:
            break
        if kind & LETTER:
            letter = open_sentence = True
        elif kind & TERMINAL and point >= 0x80 and open_sentence:
            ends += 1
            open_sentence = False
        if kind & UNSPACED:
            unspaced += 1
        characters += 1
        last = kind
        i += width
    return i, characters, unspaced, letter, last, ends, open_sentence
