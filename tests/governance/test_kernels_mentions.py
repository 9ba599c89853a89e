"""The kernel of the bias counts is equal to a slow plain reference on every text."""

from __future__ import annotations

import itertools
import unicodedata
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from governance.kernels.buffers import text_buffers
from governance.kernels.mentions import CATEGORY, DIALECT, WEIGHT, count_texts, no_sums, pack
from governance.kernels.word_lookup import split_words as words_of_lists
from tests.given_data import given_rows
from tests.governance.bias_reference import count, sentence_spans, split_words

IDENTITY = {
    ("she",): [(0, 0, 0)],
    ("he",): [(0, 1, 0)],
    ("african",): [(0, 4, 0)],
    ("african", "american"): [(0, 2, 0)],
    ("african", "american", "man"): [(0, 2, 0), (0, 1, 0)],
    ("american",): [(0, 3, 0)],
    ("mädchen",): [(0, 0, 0)],
    ("strasse",): [(0, 3, 0)],
    ("女", "性"): [(0, 0, 0)],
    ("女",): [(0, 3, 0)],
    ("イスラム", "教"): [(0, 1, 0)],
    ("महिला",): [(0, 0, 0)],
    ("انسان",): [(0, 1, 0)],
}
OTHERS = {
    ("good",): [(WEIGHT, 0, 1)],
    ("american", "good"): [(WEIGHT, 0, 1), (CATEGORY, 1, 0)],
    ("bad",): [(WEIGHT, 0, -1), (WEIGHT, 1, 1)],
    ("nurse",): [(CATEGORY, 0, 0)],
    ("colour",): [(DIALECT, 0, 0)],
    ("color",): [(DIALECT, 1, 0)],
    ("i",): [(CATEGORY, 2, 0)],
}
SIZES = (5, 3, 2, 2)
PACKED = pack(IDENTITY, OTHERS, SIZES)
WORDS = {word for term in (*IDENTITY, *OTHERS) for word in term}
FOLDED = (
    "女",
    "性",
    "人",
    "の",
    "イスラム",
    "教",
    "महिला",
    "أنسان",
    "إِنْسان",
    "انســان",
    "ชาย",
    "여성은",
    "She",
    "GOOD",
    "Straße",
    "x",
    "İ",
    "ΐ",
    "ŉ",
    "ﬃ",
    "ẖ",
    "Dr",
    "J",
    "7",
    "𝒜",
    "\u0927\u0941",
    "_",
)
MARKS = (
    " ",
    " ",
    ".",
    "!",
    "?",
    "…",
    "。",
    "؟",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    '"',
    ")",
    "’",
    "-",
    "'",
    ",",
    "\x00",
    "\x85",
)
COMBINING = (
    "、",
    "・",
    "\u093f",
    "\u064e",
    "\u00ad",
    "\u200d",
    "\u0301",
    "e\u0301",
    "\u1100",
    "\u1161",
    "\u200b",
    "\u2028",
)
PIECES = st.sampled_from([*sorted(WORDS), *FOLDED, *MARKS, *COMBINING])
TEXTS = st.one_of(
    st.lists(PIECES, max_size=40).map("".join),
    st.lists(PIECES, max_size=40).map(" ".join),
    st.text(max_size=60),
    st.text(st.characters(min_codepoint=0x250, max_codepoint=0x3100), max_size=30),
)


def found_by_the_kernel(texts):
    """Its findings of each text, and the sums of all, after the texts were put into NFC."""
    column = pa.array([unicodedata.normalize("NFC", text) for text in texts], pa.large_string())
    sums = no_sums(PACKED)
    rows = np.arange(len(texts))
    return count_texts(text_buffers(column), rows, rows % 64, PACKED, sums), sums


@settings(max_examples=300)
@given(st.lists(TEXTS, min_size=1, max_size=3))
@example(["Dr. She said no. he left. J. She! bad… good. She"])
@example(["african african american american man", "african. American\n\nman", "she is good. he is bad"])
@example(["İİ i", "STRASSE straße", "1. She", "good.) 'She' (bad!) \n \n colour color colour"])
def test_equals_the_reference(texts):
    found, sums = found_by_the_kernel(texts)
    events = {(text, group): (many, sentences) for text, group, many, sentences in found.events.tolist()}
    for number, text in enumerate(texts):
        expected = count(text, IDENTITY, OTHERS, 2)
        assert found.words[number] == expected["words"] == len(split_words(text))
        assert found.sentences[number] == expected["sentences"]
        assert found.dialects[number] == expected["dialect"]
        own = {group: value for (place, group), value in events.items() if place == number}
        assert own == {group: (many, expected["with_mention"][group]) for group, many in expected["mentions"].items()}
        assert Counter(dict(enumerate(sums.categories[number].tolist()))) == expected["categories"]
        pairs = {(g, c): int(sums.pairs[number, g, c]) for g in range(5) for c in range(3) if sums.pairs[number, g, c]}
        assert pairs == expected["pairs"]
        scores = np.zeros((6, 2, 4), np.int64)
        for groups, values in expected["scores"]:
            for group in groups or {5}:
                for instrument, (value, words) in enumerate(values):
                    scores[group, instrument] += [1, value, value * value, words > 0]
        assert sums.scores[number].tolist() == scores.tolist()


@settings(max_examples=100)
@given(TEXTS)
def test_without_sums_the_same_mentions(text):
    whole, _ = found_by_the_kernel([text])
    column = text_buffers(pa.array([unicodedata.normalize("NFC", text)], pa.large_string()))
    short = count_texts(column, np.zeros(1, np.int64), np.zeros(1, np.int64), PACKED, None)
    assert short.events.tolist() == whole.events.tolist()
    assert (short.words, short.sentences) == (whole.words, whole.sentences)


def test_every_code_point_is_a_word_or_none_as_the_reference_says():
    texts = [f"a{chr(point)}b" for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    texts = [text for text in texts if unicodedata.is_normalized("NFC", text)]
    column = text_buffers(pa.array(texts, pa.large_string()))
    rows = np.arange(len(texts))
    found = count_texts(column, rows, rows % 64, pack({}, {}, (0, 0, 0, 0)), None)
    assert found.words.tolist() == [len(split_words(text)) for text in texts]


@given(TEXTS)
@example("女、性女性 女 性")
def test_term_lists_and_texts_have_the_same_words(text):
    assert words_of_lists(text) == split_words(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Frauen und Män\u00adner", ["frauen", "und", "männer"]),
        ("महिलाओं की", ["महिलाओं", "की"]),
        ("İNGİLİZ", ["ingiliz"]),
        ("نِساء الأمّة", ["نساء", "الامة"]),
        ("女性とLGBTのイスラム教徒", [*"女性と", "lgbt", "の", "イスラム", *"教徒"]),
        ("여성은 왔다", ["여성은", "왔다"]),
        ("ผู้ชาย", ["ผู้", "ช", "า", "ย"]),
    ],
)
def test_words_of_each_script(text, words):
    assert split_words(text) == words_of_lists(text) == words


def test_punctuation_parts_a_term_of_a_script_without_spaces():
    for text, groups in (("女性", {0}), ("女、性", {3}), ("女\n性", {0}), ("女性、女", {0, 3})):
        assert {group for _, group, *_ in found_by_the_kernel([text])[0].events.tolist()} == groups


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("女性が来た。「はい！」彼は去った？", 3),
        ("여성이 왔다. 남성도 왔다. 봄. 끝.", 4),
        ("女性来了！男性走了？好。", 3),
        ("महिला आई। पुरुष गया॥ क्यों?", 3),
        ("جاءت المرأة. هل ذهب الرجل؟ نعم!", 3),
        ("В 2020 г. она ушла. А. С. Пушкин.", 2),
        ("She came. He left.", 2),
        ("Dr. Doe and J. Doe of the U.S. Senate came.", 1),
        ("It cost 3.5 million at example.com. Then he left", 2),
        ("“Come!” she said. “No.” He left…and came… Then", 5),
        ("A title\n\nA line\nthat goes on.", 2),
        ("彼女は来た。彼は去った。", 2),
        ("وصلت. هل ذهب؟ نعم", 3),
        ("वह आई। वह गया।", 2),
        ("...", 0),
        ("", 0),
    ],
)
def test_sentences(text, number):
    assert len(sentence_spans(text)) == number
    assert found_by_the_kernel([text])[0].sentences.tolist() == [number]


@pytest.mark.parametrize("name", ["multilingual", "udhr"])
def test_equals_the_reference_on_real_texts(name):
    texts = [row["text"][:1500] for row in itertools.islice(given_rows(f"corpora/{name}"), 0, 600, 6)]
    found, _ = found_by_the_kernel(texts)
    expected = [count(text, IDENTITY, OTHERS, 2) for text in texts]
    assert found.words.tolist() == [len(split_words(text)) for text in texts]
    assert found.sentences.tolist() == [one["sentences"] for one in expected]
    mentions = [Counter() for _ in texts]
    for text, group, many, _ in found.events.tolist():
        mentions[text][group] = many
    assert mentions == [one["mentions"] for one in expected]


def test_more_hits_than_the_buffers_first_hold():
    text = "She is good. " * 5000
    found, sums = found_by_the_kernel([text] * 3)
    assert found.events.tolist() == [[number, 0, 5000, 5000] for number in range(3)]
    assert sums.scores[:3, 0, 0].tolist() == [[5000, 5000, 5000, 5000]] * 3
