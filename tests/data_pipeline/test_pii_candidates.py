"""The kernel that finds places, against slow plain references, for one text and for many; linear in the bytes."""

import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.kernels.pii_candidates import ACCOUNT, AT, DIGITS, HEX, KEY, PEM, SPELT, WORD, scan
from data_pipeline.pii.detect import find
from data_pipeline.pii.detections import SPACES

_SEPARATORS = f"[{SPACES}().\\-/\u2010\u2011\u2012\u2013\u2212]"
_RUN = re.compile(f"[0-9]+(?:{_SEPARATORS}{{1,3}}[0-9]+){{0,100}}")
_NINO_TAIL = re.compile("(?:[ -])?[A-Da-d]")


def digit_runs(text):
    for run in _RUN.finditer(text):
        value = run.group()
        digits = sum(letter.isdigit() for letter in value)
        dots = len(re.findall(r"(?<=[0-9])\.(?=[0-9])", value))
        after = text[run.end() : run.end() + 2]
        letter = digits == 6 and len(after.encode()) > 1 and _NINO_TAIL.match(after)
        if digits >= 7 or dots >= 3 or letter:
            yield (run.start(), run.end())


def words(text):
    for word in re.finditer("[A-Za-z0-9]+", text):
        value = word.group()
        digits, length = sum(letter.isdigit() for letter in value), len(value)
        if 0 < digits < length and ((digits >= 4 and 7 <= length <= 18) or length == 16 or 25 <= length <= 74):
            yield word.span()


REFERENCES = {
    AT: lambda text: (found.span() for found in re.finditer(r"(?<=[^\x00-\x20])@(?=[^\x00-\x20])", text)),
    DIGITS: digit_runs,
    WORD: words,
    ACCOUNT: lambda text: (w.span() for w in re.finditer("(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}[A-Za-z0-9]*", text)),
    PEM: lambda text: ((f.start(), f.start() + 5) for f in re.finditer("-(?=...-BEGIN|---.BEGIN)", text, re.S)),
}
PIECES = st.sampled_from(
    [*"0123456789+-()./@ ,:=\n\"'aADbfx_é中\u00a0\u2009\u2011\u2212😀", "AKIA", "eyJ", "ghp_", "-----BEGIN ", "[at]",
     " AT ", " dot ", "key=", "password: ", "DE89", "12 34 56", "1.2.3.4", "2001:db8::", "a1b2c3d4e5",
     "0" * 25, "1a" * 20,
     "00-1b-44-11-3a-b7"]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=40).map("".join)


def scanned(*texts):
    parts = [text.encode() for text in texts]
    offsets = np.cumsum([0, *(len(part) for part in parts)]).astype(np.int64)
    return scan(np.frombuffer(b"".join(parts), np.uint8), offsets).tolist()


@settings(max_examples=500)
@given(TEXTS)
@pytest.mark.parametrize("kind", [AT, DIGITS, WORD, ACCOUNT])
def test_each_kind_against_its_reference(kind, text):
    assert [(a, b) for _, k, a, b in scanned(text) if k == kind] == list(REFERENCES[kind](text))


@settings(max_examples=200)
@given(st.lists(TEXTS, max_size=6))
def test_many_texts_are_read_as_each_by_itself(texts):
    alone = [[number, *row[1:]] for number, text in enumerate(texts) for row in scanned(text)]
    assert scanned(*texts) == alone


@pytest.mark.parametrize(
    ("kind", "text", "place"),
    [
        (SPELT, "a (at) b", 2), (SPELT, "a [ at ] b", 2), (SPELT, "é {at}", 2), (SPELT, "a AT b", 2),
        (SPELT, "a dot b", 2), (HEX, "x 2001:db8::1", 2), (HEX, "中 ::1", 2), (HEX, "00:1b:44:11:3a:b7", 0),
        (KEY, "é AKIAIOSFODNN7EXAMPLE", 2), (KEY, "xoxb-1", 0), (KEY, "SG.abc", 0), (PEM, "\n-----BEGIN X", 1),
    ],
)  # fmt: skip
def test_places_in_characters(kind, text, place):
    assert [a for _, k, a, _ in scanned(text) if k == kind] == [place]


@pytest.mark.parametrize("text", ["", " ", "at", "plain words and no number", "12:30", "1234", "a dotted line", "::"])
def test_what_could_hold_nothing_costs_nothing(text):
    assert scanned(text) == []


def test_more_candidates_than_there_was_room_for():
    assert len(scanned("a@" * 5000 + "a")) == 5000


HOSTILE = [
    "1", "1 ", "1.", "1.1.1.1 ", "123 456 ", "12345678 ", "1-", "a@", "@", "(1) ", "a@b.c ", ".a@b", "[at]",
    "a!  (at) ", "AB12", "GB82 ", "DE89 3704 ", "a:", "::", "a::b ", "key=a", "token: abcdef0123456789ABCD ",
    "eyJaaaaaaaa-",
    "eyJaaaaaaaa.", "-----BEGIN PRIVATE KEY-----", "xoxb-1-", "ghp_", " AT ", " dot ", "AA-BB-", "+1 ", "4111 ", "é1 ",
    "1A2B3C4D5E6F7G8H ", "A1234567 ", "123456 A ", "call 1234567 ", "aa [dot] ", "\u00a0", "😀1",
]  # fmt: skip


def calls(text):
    """Calls of Python and of C functions during a search: work, counted without a clock."""
    count = 0

    def tell(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(tell)
    try:
        find(text)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("unit", HOSTILE)
def test_twice_the_text_is_at_most_twice_the_work(unit):
    once, twice = unit * (4_000 // len(unit)), unit * (8_000 // len(unit))
    find(twice)  # work that is done only once (loading the kernel) is not counted
    assert calls(twice) <= 2.2 * calls(once) + 200


@pytest.mark.parametrize("unit", HOSTILE)
def test_no_candidate_is_longer_than_its_rule_reads(unit):
    """Together at most six times the text: a hardware address has 17 characters and each pair may begin one."""
    text = unit * (20_000 // len(unit))
    assert sum(b - a for _, _, a, b in scanned(text)) <= 6 * len(text)
