"""Canaries: valid by an independent reading, the same for the same seed, and a faithful measure of the finder."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.pii.canaries import SENTENCES, hosts, is_found, measure, planted
from data_pipeline.pii.canary_values import MAKERS
from data_pipeline.pii.detect import find
from data_pipeline.pii.detections import TYPES, Detection
from data_pipeline.pii.draws import Draw

PASSAGES = [
    ("a" * 64, "The wind had been rising since noon, and by four the harbour was white with spray. " * 30),
    ("b" * 64, "没有空格的中文段落也必须能够容纳种下的值而不被改变。" * 40),
    ("c" * 64, "def scale(values, factor=3):\n    return [value * factor for value in values]\n" * 30),
    ("d" * 64, "| 1871 | 12,345 | 3.5 |\n| 1881 | 13,946 | 4.1 |\n" * 30),
    ("e" * 64, ""),
]


def find_each(texts):
    return [find(text) for text in texts]


def test_every_type_has_a_maker_and_sentences():
    assert set(MAKERS) == set(TYPES) == set(SENTENCES)
    assert all(sentence.count("{}") == 1 for sentences in SENTENCES.values() for sentence in sentences)


def test_recall_on_every_type_in_every_kind_of_passage():
    """At least .96 per type; measured: 1.0 for most. A missed one is taken for another type whose proof it passes."""
    counts = measure(planted(TYPES, range(30), PASSAGES, 11), TYPES, find_each)
    assert all(count["planted"] == 30 for count in counts.values())
    assert {kind: count for kind, count in counts.items() if count["found"] < 29} == {}


NUMBERED = {
    "chats": lambda n: f"User: question {n}: what is {n} plus {n + 3}?\nAssistant: answer {n} is {2 * n + 3}.\n",
    "telephone list": lambda n: f"passport {n} call phone number tel card mobile order no. account fax " * 8,
    "orders": lambda n: f"invoice ${n}.50 order {7 * n} account # {n * n} id={n} serial " * 9,
    "digits": lambda n: " ".join(f"{n * k * k} {k}-{n}/{k:04}. {n}," for k in range(1, 20)),
}


@pytest.mark.parametrize("kind", NUMBERED)
def test_no_small_corpus_misses_a_canary_by_its_place(kind):
    """Values that pass two proofs, words of other types above them, and digits on either side."""
    passages = [(f"{number * 0x9E3779B97F4A7C15 % 2**64:064x}", NUMBERED[kind](number)) for number in range(40)]
    for seed in range(5):
        counts = measure(planted(TYPES, range(2), passages, seed), TYPES, find_each, known)
        assert {name: count for name, count in counts.items() if count["found"] < count["planted"]} == {}


def known(canary, found, alike=TYPES, find=find):
    return is_found(canary, found, alike, find)


def test_a_type_that_is_not_detected_is_missed_wherever_it_is_planted():
    """Also where another type, or all of them, cover the value."""
    for kind in TYPES:

        def broken(text, kind=kind):
            return [Detection(0, len(text), "phone" if kind != "phone" else "iban")] + [
                mark for mark in find(text) if mark.type != kind
            ]

        counts = measure(
            planted((kind,), range(3), PASSAGES, 4), (kind,), lambda texts, broken=broken: [broken(t) for t in texts],
            lambda canary, found, broken=broken: known(canary, found, find=broken),
        )  # fmt: skip
        assert counts == {kind: {"planted": 3, "found": 0}}


def test_another_types_detection_counts_only_whole_and_treated_alike():
    [canary] = planted(("pl_pesel",), range(1), PASSAGES, 0)
    start, end, _ = canary.expected
    assert known(canary, [Detection(start, end, "phone")])
    assert known(canary, [Detection(start - 1, end, "be_rrn")])
    assert not known(canary, [Detection(start + 1, end, "phone")])
    assert not known(canary, [Detection(start, end, "phone")], alike={"pl_pesel", "be_rrn"})
    assert not known(canary, [])


@settings(max_examples=20)
@given(st.integers(0, 2**64 - 1), st.text(max_size=300))
def test_the_same_seed_plants_the_same_and_nothing_of_the_passage_is_lost(seed, text):
    one, two = (list(planted(TYPES, range(1), [("f" * 64, text)], seed)) for _ in range(2))
    assert one == two
    for canary in one:
        start, end, kind = canary.expected
        assert canary.text[start:end]
        assert kind in TYPES
        assert len(canary.text) >= end - start + len(text.replace(" ", "")) - 1 or len(text) > 600


def test_a_finder_that_finds_nothing_has_recall_nought():
    types = ("email", "iban")
    counts = measure(planted(types, range(3), PASSAGES, 0), types, lambda texts: [[] for _ in texts])
    assert counts == {"email": {"planted": 3, "found": 0}, "iban": {"planted": 3, "found": 0}}
    assert measure(planted(TYPES, range(3), [], 0), ("email",), find_each) == {"email": {"planted": 0, "found": 0}}


def test_hosts_are_chosen_by_digest_and_seed_not_by_place():
    digests = [f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}".ljust(64, "0") for number in range(1000)]
    chosen = {digests[place] for place in hosts(digests, 5)}
    assert len(chosen) == 64
    assert {digests[::-1][place] for place in hosts(digests[::-1], 5)} == chosen
    assert {digests[place] for place in hosts(digests, 6)} != chosen


def test_draws_are_those_of_splitmix64():
    """The reference's first outputs of the seed 1234567."""
    draw = Draw(1234567)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [draw.below(1 << 64) for _ in expected] == expected


def test_draws_are_even():
    draw = Draw(3)
    counts = Counter(draw.below(10) for _ in range(10_000))
    assert set(counts) == set(range(10))
    assert max(counts.values()) < 1150
    assert min(counts.values()) > 850


@pytest.mark.parametrize(
    ("kind", "holds"),
    [  # a third reading of some standards, as short as they allow
        ("iban", lambda v: int("".join(str(int(c, 36)) for c in v.replace(" ", "")[4:] + v[:4])) % 97 == 1),
        ("fr_nir", lambda v: (int(v.replace(" ", "")[:13]) + int(v[-2:])) % 97 == 0),
        ("be_rrn", lambda v: (int(re.sub(r"\D", "", v)[:9]) + int(v[-2:])) % 97 == 0),
        ("nl_bsn", lambda v: sum(w * int(c) for w, c in zip((9, 8, 7, 6, 5, 4, 3, 2, -1), v, strict=True)) % 11 == 0),
        ("ch_ahv", lambda v: sum(int(c) * (1, 3)[i % 2] for i, c in enumerate(v.replace(".", ""))) % 10 == 0),
        ("cn_resident_id", lambda v: sum(int(c, 36) % 23 * 2 ** (17 - i) for i, c in enumerate(v)) % 11 == 1),
    ],
)
def test_made_up_values_hold_by_a_third_reading(kind, holds):
    draw = Draw(9)
    assert all(holds(MAKERS[kind](draw)) for _ in range(200))
