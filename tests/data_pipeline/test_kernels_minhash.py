"""The MinHash kernels equal slow plain references, and find the shares of pairs that the mathematics promises."""

import os
import random
import re
import subprocess
import sys
import unicodedata
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.kernels.greedy_dedup import shared_shingles
from data_pipeline.kernels.minhash import band_keys, shingle_sets

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
PIECES = [
    "the",
    "The",
    "ÉTÉ",
    "été",
    "x1",
    "1x22",
    "12",
    "日本",
    "語a",
    "ไทย",
    "don't",
    "don’t",
    "—",
    "…",
    "ª",
    "İ",
    "Ж",
    "😀",
]
TEXTS = st.one_of(
    st.text(max_size=120),
    st.lists(st.sampled_from([*PIECES, "\n", ",", "\u00a0", "\u3000"]), max_size=60).map(" ".join),
    st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
)


def mix(h):
    h ^= h >> 33
    h = h * 0xFF51AFD7ED558CCD & MASK
    h ^= h >> 33
    h = h * 0xC4CEB9FE1A85EC53 & MASK
    return h ^ h >> 33


def hash_of(word):
    h = 0xCBF29CE484222325
    for character in word:
        h = (h ^ ord(character)) * 0x100000001B3 & MASK
    return mix(h)


def kind_of(character):
    point = ord(character)
    unspaced = [(0xE00, 0xFFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF)]
    unspaced += [(0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)]
    if any(a <= point <= b for a, b in unspaced):
        return "alone"
    marks = unicodedata.category(character) in {"Mn", "Mc", "Me", "Pc"} or character in "\u200c\u200d"
    return "word" if character.isalnum() or marks else "gap"


def words_of(text):
    words, word = [], ""
    for character in text:
        kind = kind_of(character)
        if kind == "word":
            word += character.lower() if len(character.lower()) == 1 else character
            continue
        words += [word] * bool(word) + [character] * (kind == "alone")
        word = ""
    return words + [word] * bool(word)


def shingles_of(text, ngram):
    hashes = [hash_of(word) for word in words_of(text)]
    found = []
    for i in range(max(1, len(hashes) - ngram + 1) if hashes else 0):
        h = 0
        for value in hashes[i : i + ngram]:
            h = h * GOLDEN + value & MASK
        found.append(h if len(hashes) >= ngram else h + len(hashes) & MASK)
    return found


def keys_of(text, ngram, bands, rows):
    size, shingles = bands * rows, shingles_of(text, ngram)
    bins = [MASK] * size
    for throw in range(2 * size):
        for shingle in shingles:
            h = mix(shingle + throw * GOLDEN & MASK)
            place = (h >> 32) * size >> 32 if throw < size else throw - size
            bins[place] = min(bins[place], throw << 32 | h & 0xFFFFFFFF)
    keys = []
    for band in range(bands):
        h = band + 1
        for value in bins[band * rows : (band + 1) * rows]:
            h = mix(h * GOLDEN + value & MASK)
        keys.append(h >> 1)
    return keys


@settings(max_examples=200)
@given(st.lists(TEXTS, max_size=5), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))
@example(["", " \n ", "w" * 3000, "a b c d e", "A, B! c—d e"], 5, 3, 2)
def test_keys_and_words_equal_the_reference(texts, ngram, bands, rows):
    keys, words = band_keys(pa.array(texts, pa.large_string()), ngram, bands, rows)
    assert words.tolist() == [len(words_of(text)) for text in texts]
    assert keys.tolist() == [keys_of(text, ngram, bands, rows) for text in texts]


@settings(max_examples=200)
@given(st.lists(TEXTS, max_size=5), st.integers(1, 6))
@example(["", "a b a b a b a b", "日本語日本語日本語"], 2)
def test_shingle_sets_and_jaccard_equal_the_reference(texts, ngram):
    values, ends = shingle_sets(pa.array(texts, pa.large_string()), ngram)
    sets = [values[a:b] for a, b in pairwise(ends)]
    plain = [set(shingles_of(text, ngram)) for text in texts]
    assert [part.tolist() for part in sets] == [sorted(part) for part in plain]
    for left, a in zip(sets, plain, strict=True):
        for right, b in zip(sets, plain, strict=True):
            assert shared_shingles.py_func(left, right) == len(a & b)


def test_what_normalisation_forgets_and_what_it_keeps():
    same = ["The cat, 12 dogs — and “Éva”!", "the CAT 12 dogs and éva", "the\ncat\n\n12 dogs... and ÉVA"]
    keys, words = band_keys(pa.array([*same, "the cat 13 dogs and éva"]), 3, 4, 2)
    assert words.tolist() == [6, 6, 6, 6]
    assert (keys[:3] == keys[0]).all()
    assert (keys[3] != keys[0]).any(), "numbers count"


@settings(max_examples=200)
@given(st.text(st.characters(max_codepoint=0x2FF, exclude_characters="İ"), max_size=80))
def test_words_are_those_of_a_plain_regular_expression(text):
    assert words_of(text) == re.findall(r"\w+", text.lower())


def test_short_texts_have_one_shingle_and_empty_ones_none():
    values, ends = shingle_sets(pa.array(["a b", "A, b.", "a", "a b c d e", "!?", ""]), 5)
    sets = [values[a:b].tolist() for a, b in pairwise(ends)]
    assert [len(part) for part in sets] == [1, 1, 1, 1, 0, 0]
    assert sets[0] == sets[1]
    assert len({part[0] for part in sets[:4]}) == 3


def test_a_text_that_repeats_itself_has_the_keys_of_its_distinct_shingles():
    keys, _ = band_keys(pa.array(["a b " * 5000, "a b " * 30]), 5, 20, 6)
    assert (keys[0] == keys[1]).all()


def planted(share_of_words, count, length):
    """Pairs of texts whose similarity is near a wanted one: the second repeats a stretch of the first."""
    rng = random.Random(7)
    pairs = []
    for index in range(count):
        stretch = [
            f"w{rng.randrange(1 << 40):x}q".translate(str.maketrans("0123456789", "ghijklmnop")) for _ in range(length)
        ]
        own = [f"v{index}x{chr(97 + rng.randrange(26))}{i}".translate(str.maketrans("0123456789", "ghijklmnop"))
               for i in range(round(length * share_of_words))]  # fmt: skip
        pairs.append((" ".join(stretch), " ".join(stretch[len(own) :] + own)))
    return pairs


@pytest.mark.parametrize("count", [60, 400])
def test_bands_find_the_promised_share_of_pairs(count):
    for moved in (0.05, 0.11, 0.18):
        pairs = planted(moved, 300, count)
        keys = [band_keys(pa.array([pair[side] for pair in pairs]), 5, 14, 8)[0] for side in (0, 1)]
        found = (keys[0] == keys[1]).any(axis=1).mean()
        values, ends = shingle_sets(pa.array(pairs[0]), 5)
        shared = shared_shingles.py_func(values[: ends[1]], values[ends[1] :])
        promised = 1 - (1 - (shared / (len(values) - shared)) ** 8) ** 14
        assert abs(found - promised) < 4 * np.sqrt(promised * (1 - promised) / 300) + 0.03


def test_signatures_are_the_same_in_every_process():
    code = (
        "import pyarrow as pa; from data_pipeline.kernels.minhash import band_keys\n"
        "print(band_keys(pa.array(['eins zwei drei vier fünf sechs', 'a b c d e']), 5, 14, 8)[0].tolist())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    ).stdout  # fmt: skip
    assert other == f"{band_keys(pa.array(['eins zwei drei vier fünf sechs', 'a b c d e']), 5, 14, 8)[0].tolist()}\n"
