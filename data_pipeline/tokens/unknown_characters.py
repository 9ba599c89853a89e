"""Characters that are younger than the library's Unicode.

`tokenizers` (Unicode 16) takes them for no letters, gigatoken (17) for what they are, so words and ids can differ.
Texts with one go through the library. A test compares the two on all other characters.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

from data_pipeline.tokens.vocabulary import alphabet


def all_characters() -> str:
    """Every code point of planes 0 to 3 and 14, but surrogates.

    The other planes are unassigned or for private use, so of one class.
    """
    points = (plane << 16 | point for plane in (0, 1, 2, 3, 14) for point in range(0x10000))
    return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)


@functools.cache
def unknown_characters() -> str:
    """An expression, for RE2 and Python, that finds an unknown one.

    Making it takes 0.2 CPU-seconds, once per process.
    """
    from tokenizers import Regex, pre_tokenizers

    runs = pre_tokenizers.Split(Regex(r"\P{Cn}+"), "removed").pre_tokenize_str(all_characters())
    return f"[{''.join(f'{run[0]}-{run[-1]}' for run, _ in runs)}]"


def words_of_library(texts: Iterable[bytes]) -> Iterator[bytes]:
    """The words that the library's pre-tokenizer of GPT-2 finds."""
    from tokenizers.pre_tokenizers import ByteLevel

    cutter, byte_of = ByteLevel(add_prefix_space=False, use_regex=True), alphabet().__getitem__
    for text in texts:
        for word, _ in cutter.pre_tokenize_str(text.decode("utf-8")):
            yield bytes(map(byte_of, word))
