"""Pieces of words and the features over them equal a slow plain reference on every text."""

import re
import unicodedata
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.kernels.word_pieces import AFFIXES, PIECE_FEATURES, TITLES, measure_pieces
from data_pipeline.kernels.words import TERMINALS

WORDS = [
    *("the", "The", "don't", "n't", "it's", "'s", "we’ve", "I'm", "she'll", "'tis", "rock'n'roll", "Mr.", "Mrs.", "Dr"),
    *(
        "U.S.",
        "a.m.",
        "Ph.D.",
        "USA.",
        "J.",
        "x.",
        "end.Next",
        ".com",
        "...",
        "wait...end",
        "so…and",
        "--",
        "a--b",
        "-",
    ),
    *(
        "well-known",
        "12-13",
        "5-year",
        "was,—it",
        "em—dash",
        "a,b",
        "1,000",
        "3:30pm",
        "x:y",
        "a/b",
        "2^3",
        "C++",
        "+5",
        "5+",
        "=x",
        "x=",
        "50%",
        "x%",
        "$5",
        "5$",
        "title¶",
        "→b",
    ),
    *(
        '"Oh,"',
        "(No.)",
        "[1]",
        "“x”",
        "#tag",
        "@me",
        "self-",
        "¿Qué?",
        "日本。",
        "हिन्दी।",
        "é",
        "e\u0301",
        "😀",
        "?!",
        "!",
    ),
]
TEXTS = st.one_of(
    st.text(max_size=80),
    st.lists(st.sampled_from([*WORDS, "\n", "\n\n", "\t"]), max_size=80).map(" ".join),
    st.text(st.sampled_from([*"aAtsn1.,:-—'’\"(…/=+%$¶ \n"]), max_size=60),
)


def is_mark(character):
    return unicodedata.category(character)[0] in "PS"


def is_affix(character):
    return character in AFFIXES or unicodedata.category(character) in ("So", "Sc")


def closes(run):
    """Return whether the last mark of a run is cut off."""
    if run[-1] in "+%$£¥€":
        return run[-2:-1].isdecimal()
    return is_affix(run[-1]) and run[-1] not in "=§"


def stays(word):
    """Return whether the full stop at the word's end belongs to it."""
    before = word[:-1]
    if before[-1].isalpha() and (len(before) == 1 or before[-2] == "."):
        return True
    return before in TITLES or (before[-1].isupper() and not before[-2:-1].isupper())


CONTRACTION = re.compile("(?<=.)(n['’]t|['’](?:s|ve|ll|re|m|d))$")


def parts(mark, before, behind):
    """Return whether a mark, or equal marks, parts the characters next to it."""
    digits = before.isdecimal() and behind.isdecimal()
    after_word = before.isalpha() or before.isdecimal()
    if mark == "…" or re.fullmatch(r"\.{2,}", mark):
        return True
    if mark[0] in "-–—~":
        return (after_word and behind.isalpha()) or (mark[0] == "-" and digits)
    if len(mark) > 1:
        return False
    if mark == ".":
        return before.islower() and behind.isupper()
    if mark == ",":
        return before.isalpha() and behind.isalpha()
    return (mark in ":<>=/" and after_word and behind.isalpha()) or (mark in "*+^" and digits)


def pieces_of(run):
    """The pieces of a run without white space."""
    opening, closing, middle = [], [], []
    while run and is_affix(run[0]):
        mark = re.match(r"\.+|.", run, re.DOTALL)[0]
        if mark == "." and len(run) > 1 and not is_affix(run[1]):
            break
        if re.fullmatch("['’](?:s|ve|ll|re|m|d)", run):
            break
        if mark == "+" and run[1:2].isdecimal():
            break
        opening.append(mark)
        run = run[len(mark) :]
    while run and closes(run):
        mark = re.search(r"\.+$|.$", run, re.DOTALL)[0]
        if mark == "." and len(run) > 1 and stays(run):
            break
        closing.insert(0, mark)
        run = run[: -len(mark)]
    begin = at = 0
    while at < len(run):
        if at == begin or not is_mark(run[at]):
            at += 1
            continue
        mark = re.match(r"([.—-])\1*|.", run[at:], re.DOTALL)[0]
        until = at + len(mark)
        if parts(mark, run[at - 1], run[until : until + 1]):
            middle += [run[begin:at], mark]
            begin = until
        elif (found := CONTRACTION.search(run[begin:])) and begin + found.start(1) + (found[1][0] == "n") == at:
            middle += [run[begin : begin + found.start(1)], found[1]]
            begin = len(run)
            break
        at = until
    return [piece for piece in (*opening, *middle, run[begin:], *closing) if piece]


def share(part, whole):
    return part / max(1, whole)


def reference(text):
    """The features of a text and its number of pieces."""
    lines = [[piece for run in line.split() for piece in pieces_of(run)] for line in text.split("\n")]
    pieces = [piece for line in lines for piece in line]
    words = [piece for piece in pieces if not all(map(is_mark, piece))]
    sentences = 0
    for line in filter(None, lines):
        sentences, closed = sentences + 1, False
        for piece in line:
            if len(piece) == 1 and piece in TERMINALS:
                closed = True
            elif closed and not is_mark(piece[0]):
                sentences, closed = sentences + 1, False
    found = [len(words), share(sum(map(len, words)), len(words))]
    found.append(share(sum(any(map(str.isalpha, piece)) for piece in pieces), len(pieces)))
    for n in range(2, 5):
        grams = Counter(" ".join(pieces[i : i + n]) for i in range(len(pieces) - n + 1))
        gram, count = grams.most_common(1)[0] if grams else ("", 0)
        found.append(min(1.0, share(len(gram) * count, len(text))) if count > 1 else 0.0)
    for n in range(5, 11):
        seen, repeated, i = set(), 0, 0
        while i + n <= len(pieces):
            gram = tuple(pieces[i : i + n])
            repeated += len("".join(gram)) if gram in seen else 0
            i += n if gram in seen else 1
            seen.add(gram)
        found.append(share(repeated, len(text)))
    ends = [line[-1][-1] in TERMINALS for line in lines if line]
    return [*found, sentences, share(sum(ends), len(ends)), share(text.count("\n"), len(pieces))], len(pieces)


@settings(max_examples=300)
@given(st.lists(TEXTS, max_size=5))
@example(["", "\n", "a", "the a b the a b the a b", "x y " * 30, "one two three four five six " * 4])
@example([" ".join(WORDS), "'s", "n't", "a..", "..a", "a'", "s's's", ".", ". .", "A.B", "-.", ".-"])
def test_features_equal_the_reference(texts):
    features, pieces = measure_pieces(pa.array(texts, pa.large_string()))
    assert features.shape == (len(texts), len(PIECE_FEATURES))
    for text, values, count in zip(texts, features, pieces, strict=True):
        expected, number = reference(text)
        np.testing.assert_allclose(values, expected, rtol=1e-12, err_msg=repr(text))
        assert count == number


def test_no_memory_before_the_text_decides_about_a_first_word():
    """A capital that is not a letter, with a full stop, begins a text; the room for texts varies."""
    found = [measure_pieces(pa.array(["Ⅷ.", "B" * size]))[1][0] for size in range(300)]
    assert set(found) == {1}


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ('He said: "I don\'t."', ["He", "said", ":", '"', "I", "do", "n't", ".", '"']),
        ("Mr. Smith's U.S. dogs'", ["Mr.", "Smith", "'s", "U.S.", "dogs", "'"]),
        ("know--well-known, 12-13 [1]", ["know", "--", "well", "-", "known", ",", "12", "-", "13", "[", "1", "]"]),
        ("$3.50 at 3:30pm, 1,000", ["$", "3.50", "at", "3:30pm", ",", "1,000"]),
        ("Titles¶ (C++) a= +5 50% +x", ["Titles¶", "(", "C++", ")", "a=", "+5", "50", "%", "+", "x"]),
        ("wait…end.Next a--b was,—it", ["wait", "…", "end", ".", "Next", "a", "--", "b", "was,—it"]),
    ],
)
def test_words_are_cut_as_spacy_cuts_them(text, pieces):
    assert [piece for run in text.split() for piece in pieces_of(run)] == pieces
    assert measure_pieces(pa.array([text]))[1][0] == len(pieces)
