"""Words as passages are compared: the kernel equals a slow plain reference on every text."""

import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.kernels.folding import fold, fold_words, folding, most_words, word_hashes
from governance.kernels.buffers import UNSPACED_RANGES, text_buffers
from tests.data_pipeline.test_kernels_minhash import hash_of

MASK = (1 << 64) - 1
APOSTROPHES = "'`´ʻʼˈ‘’‛′＇\u055a\ua78c"
HAN = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
ALPHABET = st.one_of(
    st.sampled_from(list("abcdeAE 123.,-'’\n\\\"nrtu00e9_ﬁßé½①日本ไทยかハ한й́\u00ad\u200b⑴㈱℀🙂ａ１مु")),
    st.characters(exclude_categories=["Cs"]),
)
TEXTS = st.text(ALPHABET, max_size=80)


def within(point, ranges):
    return any(first <= point <= last for first, last in ranges)


def in_word(character):
    return unicodedata.category(character)[0] in "LNM"


def kind_of(character):
    """("word", letters) | ("alone", letter) | "passed" | "parts"."""
    point, category = ord(character), unicodedata.category(character)
    if character in APOSTROPHES or category in ("Cf", "Me") or 0xE0000 <= point < 0xE1000:
        return "passed", ""
    if point >= 0x1F000 and not 0x20000 <= point < 0x323B0:
        return "parts", ""
    if 0x20000 <= point < 0x323B0 and not 0x2F800 <= point < 0x2FA1E:
        return "alone", character
    folded = fold(character)
    if category != "Cs" and not folded:
        return "passed", ""
    if within(point, UNSPACED_RANGES) and in_word(character):
        return "alone", folded if len(folded) == 1 else character
    while folded and not in_word(folded[0]):
        folded = folded[1:]
    while folded and not in_word(folded[-1]):
        folded = folded[:-1]
    if not folded:
        return "parts", ""
    if any(within(ord(part), UNSPACED_RANGES) or not in_word(part) for part in folded):
        return "alone", folded if len(folded) == 1 else character
    return "word", folded


def characters_of(text):
    """Each character with the bytes that it is read from; escapes are resolved."""
    at = start = 0
    while at < len(text):
        piece, means = text[at], text[at]
        if piece == "\\" and text[at + 1 : at + 2] in ("n", "r", "t"):
            piece, means = text[at : at + 2], " "
        elif piece == "\\" and text[at + 1 : at + 2] == "u":
            digits = text[at + 2 : at + 6]
            if len(digits) == 4 and all(digit in "0123456789abcdefABCDEF" for digit in digits):
                piece, means = text[at : at + 6], chr(int(digits, 16))
        size = len(piece.encode())
        yield means, start, start + size
        at, start = at + len(piece), start + size


def words_of(text):
    """(word, first byte, byte behind the last, tenths, letters) of each word."""
    words, word = [], None
    for character, start, end in characters_of(text):
        kind, value = kind_of(character)
        if kind == "passed":
            continue
        if kind != "word" and word:
            words.append(tuple(word))
            word = None
        if kind == "alone":
            point = ord(value)
            tenths = 6 if within(point, HAN) else 4 if 0x3040 <= point <= 0x31FF else 2
            words.append((value, start, end, tenths, 2 if tenths == 6 else 1))
        elif kind == "word":
            word = word or ["", start, end, 10, 0]
            word[0], word[2] = word[0] + value, end
            word[4] += len(value) if len(value) > 1 else unicodedata.category(value)[0] != "N"
    return words + ([tuple(word)] if word else [])


@settings(max_examples=400)
@given(st.lists(TEXTS, max_size=4))
@example(
    [
        "",
        " ",
        "w" * 3000,
        "Don't STOP—naïve ﬁne ½ cup ⑴ ℀ ㈱",
        "a\\nb\\u00e9c \\u12 \\",
        "中文 日本語カ ไทย 한국어 हिन्दी",
    ]
)
@example(["\\ud83d\\ude42x", "x\\u", "\\", "e\u0301 é", "ö\u00adl", "1 2 3 x1"])
@example(["1½x¼1½"])  # more words than half its bytes
def test_words_and_measures_equal_the_reference(texts):
    words, measures = word_hashes(*text_buffers(pa.array(texts, pa.large_string())))
    plain = [words_of(text) for text in texts]
    assert all(len(part) <= most_words(len(text.encode())) for part, text in zip(plain, texts, strict=True))
    assert words.tolist() == [hash_of(word[0]) for part in plain for word in part]
    assert measures.tolist() == [
        [len(part), sum(w[3] for w in part), sum(w[4] for w in part), sum(w[4] == 0 for w in part)] for part in plain
    ]


@settings(max_examples=200)
@given(TEXTS, TEXTS)
@example("naïve ", "“日本”, x")
def test_spans_are_those_of_the_words(before, text):
    data = np.frombuffer((before + text).encode(), np.uint8)
    start = len(before.encode())
    room = most_words(len(data))
    words, spans = np.empty(room, np.uint64), np.empty((room, 3), np.int32)
    count = fold_words(data, start, len(data), *folding(), words, spans)
    plain = words_of(text)
    assert [tuple(span) for span in spans[:count, :2].tolist()] == [word[1:3] for word in plain]
    assert words[:count].tolist() == [hash_of(word[0]) for word in plain]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Don't stop", "dont STOP!"),
        ("naïve café", "naive cafe\u0301"),
        ("ﬁne Ｆｕｌｌ ５", "fine full 5"),
        ("Straße", "STRASSE"),
        ('one\ntwo "three"', 'one\\ntwo \\"three\\"'),
        ("é’s", "\\u00e9\\u2019s"),
        ("日本語", "日 本、語"),
        ("co\u00adoperate", "cooperate"),
    ],
)
def test_what_folding_forgets(left, right):
    words, measures = word_hashes(*text_buffers(pa.array([left, right])))
    assert measures[0, 0] == measures[1, 0] > 0
    assert words[: measures[0, 0]].tolist() == words[measures[0, 0] :].tolist()


def test_what_folding_keeps():
    words, measures = word_hashes(*text_buffers(pa.array(["16 eggs", "17 eggs", "हिन्दी", "हन्द"])))
    assert measures[:2, 0].tolist() == [2, 2]
    assert words[0] != words[2]
    assert words[4] != words[5], "vowel signs of class 0 are part of the word"
