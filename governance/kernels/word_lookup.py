r"""Word boundaries shared by term lists and kernels.

A *word* is a maximal run of letters, digits, underscores and combining marks after Unicode NFC and full case folding
(of Unicode annex 29 the rule that marks extend a letter, so Hindi's vowel signs tear no word). Besides:

- In scripts written without spaces (`UNSPACED_RANGES`: Han, Hiragana, Thai, Khmer, ...) each letter with its marks is a
  word by itself, so a term of several characters is a phrase, and the longest term wins. A run of Katakana is one word.
- Passed over, as if they were not there: Arabic vowel signs and the tatweel, joiners and non-joiners of no width, soft
  hyphens, variation selectors.
- Arabic alef with hamza, madda or wasla is read as a bare alef, alef maksura as yeh, since writers leave the signs out;
  the Turkish capital I with its dot as "i", whose case folding would be two characters.
"""

from __future__ import annotations

import functools
import itertools
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence

KATAKANA_RANGES = ((0x30A1, 0x30FA), (0x30FC, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F))
PASSED_RANGES = ((0xAD, 0xAD), (0x640, 0x640), (0x64B, 0x65F), (0x670, 0x670), (0x200C, 0x200D), (0xFE00, 0xFE0F))
READ_AS = {0x622: 0x627, 0x623: 0x627, 0x625: 0x627, 0x671: 0x627, 0x649: 0x64A, 0x130: 0x69}
"""Code point -> the one that it is read as, before case folding."""
_TRANSLATED = {**READ_AS, **{point: None for first, last in PASSED_RANGES for point in range(first, last + 1)}}


@functools.cache
def combining_marks() -> tuple[int, ...]:
    """The code points of the general categories Mn, Mc and Me."""
    return tuple(point for point in range(sys.maxunicode + 1) if unicodedata.category(chr(point))[0] == "M")


_ASCII = re.compile(r"\w+", re.ASCII)


@functools.cache
def _pattern() -> re.Pattern[str]:
    """A word of any script.

    Uses classes of characters and no look-around, which would take 100 times as long.
    """
    from governance.kernels.buffers import UNSPACED_RANGES

    def inside(ranges: Iterable[tuple[int, int]]) -> set[int]:
        return {point for first, last in ranges for point in range(first, last + 1)}

    marks, runs = set(combining_marks()), inside(KATAKANA_RANGES)
    letters = {point for point in range(sys.maxunicode + 1) if chr(point).isalnum()} | {ord("_")}
    alone = (letters & inside(UNSPACED_RANGES)) - marks - runs
    run, mark = _class(runs | marks), _class(marks)
    return re.compile(
        f"[{_class((letters | marks) - alone - runs)}]+|[{_class(alone)}][{mark}]*|[{_class(runs)}][{run}]*"
    )


def _class(points: set[int]) -> str:
    """The inside of a regular expression's brackets for these code points."""
    ordered = sorted(points)
    starts = [point for point in ordered if point - 1 not in points]
    ends = [point for point in ordered if point + 1 not in points]
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in zip(starts, ends, strict=True))


def split_words(text: str) -> list[str]:
    """The words of a text, case-folded."""
    if text.isascii():
        return _ASCII.findall(text.lower())
    return _pattern().findall(unicodedata.normalize("NFC", text).translate(_TRANSLATED).casefold())


def joined(words: Sequence[str]) -> str:
    """The words as one phrase.

    No space is between words that part without one.
    """
    text = words[0]
    for before, word in itertools.pairwise(words):
        text += word if split_words(before + word) == [before, word] else f" {word}"
    return text
