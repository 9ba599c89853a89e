"""Characters that are younger than the library's Unicode.

`tokenizers` (Unicode 16) takes them for no letters, gigatoken (17) for what they are, so words and ids can differ.
Texts with one go through the library. A test compares the two on all other characters.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import numpy as np

from data_pipeline.tokens.vocabulary import alphabet


def all_characters() -> str:
    """Every code point of planes 0 to 3 and 14, but surrogates.

    The other planes are unassigned or for private use, so of one class.
    """
    points = np.arange(4 << 16, dtype="<u4")
    parts = points[:0xD800], points[0xE000:], (14 << 16) + points[: 1 << 16]
    return np.concatenate(parts).tobytes().decode("utf-32-le")


@functools.cache
def _unknown_runs() -> tuple[str, ...]:
    """Stretches of `all_characters` of which the library knows no character."""
    from tokenizers import Regex, pre_tokenizers

    runs = pre_tokenizers.Split(Regex(r"\P{Cn}+"), "removed").pre_tokenize_str(all_characters())
    return tuple(run for run, _ in runs)


def unknown_characters() -> str:
    """An expression, for RE2 and Python, that finds an unknown one."""
    return f"[{''.join(f'{run[0]}-{run[-1]}' for run in _unknown_runs())}]"


def known_characters() -> str:
    """Those of `all_characters` that the library knows, in their order."""
    parts, rest = [], all_characters()
    for run in _unknown_runs():
        before, _, rest = rest.partition(run)
        parts.append(before)
    return "".join([*parts, rest])


def words_of_library(texts: Iterable[bytes]) -> Iterator[bytes]:
    """The words that the library's pre-tokenizer of GPT-2 finds."""
    from tokenizers.pre_tokenizers import ByteLevel

    cutter, byte_of = ByteLevel(add_prefix_space=False, use_regex=True), alphabet().__getitem__
    for text in texts:
        for word, _ in cutter.pre_tokenize_str(text.decode("utf-8")):
            yield bytes(map(byte_of, word))
