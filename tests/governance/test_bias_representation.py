"""Representation: planted counts are exact, parts add up in any order, the interval is the jackknife's."""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.checks.bias import representation as r
from governance.errors import ConfigError, ManifestError

TERMS = r.load_terms()
SMALL = """
version = 3
[en.gender]
female = ["she", "woman"]
male = ["he", "man"]
[en.nation]
american = ["american"]
black = ["african american", "african american man"]
[de.gender]
female = ["Mädchen", "straße"]
"""


@pytest.fixture
def small(tmp_path: Path) -> r.Terms:
    path = tmp_path / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return r.load_terms(path)


def found(text: str, language: str, terms: r.Terms) -> dict[str, int]:
    counted = r.mentions(r.split_words(text), terms.languages[language])
    return {group: times for (_, group), times in sorted(counted.items())}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She saw a man; SHE left.", {"female": 2, "male": 1}),
        ("womanly she_he manual", {}),
        ("the woman's man-made 'he'", {"female": 1, "male": 2}),
        ("An African-American woman.", {"black": 1, "female": 1}),
        ("an african american man and an american", {"american": 1, "black": 1}),
        ("african african american american", {"american": 1, "black": 1}),
        ("african", {}),
        ("", {}),
    ],
)
def test_word_match(small, text, expected):
    assert found(text, "en", small) == expected


def test_accents_and_case_are_folded_alike(small):
    assert found(unicodedata.normalize("NFD", "MÄDCHEN"), "de", small) == {"female": 1}
    assert found("STRASSE und straße", "de", small) == {"female": 2}


@given(st.lists(st.sampled_from(["she", "he", "man", "american", "african", "x", "Woman"]), max_size=12))
def test_matches_a_plain_reference(tmp_path_factory, words):
    path = tmp_path_factory.getbasetemp() / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    terms = r.load_terms(path)
    pattern = re.compile(r"\b(?:(african american(?: man)?)|(american)|(she|woman)|(he|man))\b")
    expected: Counter[str] = Counter()
    for match in pattern.finditer(" ".join(words).lower()):
        expected[("black", "american", "female", "male")[match.lastindex - 1]] += 1
    assert found(" ".join(words), "en", terms) == dict(expected)


@pytest.mark.parametrize(
    "text",
    ["", "version = 1\n[en]\ngender = 3", "version = 1\n[en.gender]\nfemale = ['--']", "version = ", "\xff"],
)
def test_a_file_that_is_no_term_list_is_refused(tmp_path, text):
    path = tmp_path / "terms.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="is no list of words"):
        r.load_terms(path)


ROWS = st.lists(
    st.tuples(
        st.text(max_size=4),
        st.sampled_from(["en", "de", "fr"]),
        st.lists(st.sampled_from(["she", "man", "Frau", "black people", "x"]), max_size=5).map(" ".join),
    ),
    max_size=12,
)


@given(ROWS, st.randoms(use_true_random=False), st.integers(1, 5))
def test_parts_add_up_in_any_order(rows, chance, number):
    whole = r.count_documents(rows, TERMS)
    shuffled = list(rows)
    chance.shuffle(shuffled)
    parts = [r.count_documents(shuffled[index::number], TERMS) for index in range(number)]
    left = r.Counts()
    for part in parts:
        left = left.add(part)
    right = r.Counts()
    for part in parts:
        right = part.add(right)
    assert left == right == whole
    assert r.representation_rows(left, TERMS, 1) == r.representation_rows(whole, TERMS, 1)


def test_planted_counts_are_exact():
    chance = random.Random(5)
    rows, documents, mentions = [], Counter(), Counter()
    for index in range(400):
        words = ["filler"] * 20
        if chance.random() < 0.3:
            times = chance.randint(1, 3)
            words[:times] = ["muslims"] * times
            documents["muslim"] += 1
            mentions["muslim"] += times
        if chance.random() < 0.1:
            words[10] = "Jewish"
            documents["jewish"] += 1
            mentions["jewish"] += 1
        chance.shuffle(words)
        rows.append((f"s/f#{index}", "en", " ".join(words)))
    table = r.representation_rows(r.count_documents(rows, TERMS), TERMS, 30)
    for row in table:
        assert row["documents"] == documents[row["group"]]
        assert row["mentions"] == mentions[row["group"]]
        assert row["share"] == documents[row["group"]] / 400
        assert row["per_million_words"] == mentions[row["group"]] * 1e6 / 8000
        assert row["conclusive"] == (documents[row["group"]] >= 30)
        assert row["share_low"] <= row["share"] <= row["share_high"]
    muslim = next(row for row in table if row["group"] == "muslim")
    expected = documents["muslim"] / sum("muslims" in text or "Jewish" in text for *_, text in rows)
    assert muslim["axis_share"] == pytest.approx(expected, abs=1e-8)


def test_too_few_documents_carry_no_share():
    counts = r.count_documents([(str(index), "nl", "de vrouw") for index in range(29)], TERMS)
    row = next(row for row in r.representation_rows(counts, TERMS, 30) if row["group"] == "female")
    assert (row["documents"], row["share"], row["axis_share"], row["conclusive"]) == (29, None, None, False)
    assert r.representation_rows(r.Counts(), TERMS, 30) == []
    assert r.documents_by_language(r.count_documents([("1", "xx", "elle")], TERMS)) == {"xx": 1}


def test_the_jackknife_against_its_definition():
    chance = random.Random(1)
    whole = [chance.randint(50, 70) for _ in range(r.GROUPS)]
    part = [sum(chance.random() < 0.2 for _ in range(number)) for number in whole]
    share, low, high = r.jackknife_share(part, whole)
    full = sum(part) / sum(whole)
    leave = [
        sum(part[:g] + part[g + 1 :]) / sum(whole[:g] + whole[g + 1 :]) for g in range(r.GROUPS)
    ]  # fmt: skip
    variance = (r.GROUPS - 1) / r.GROUPS * sum((value - full) ** 2 for value in leave)
    assert (share, low, high) == pytest.approx(
        (full, full - 1.998341 * math.sqrt(variance), full + 1.998341 * math.sqrt(variance)), abs=1e-8
    )
    binomial = math.sqrt(full * (1 - full) / sum(whole))
    assert math.sqrt(variance) == pytest.approx(binomial, rel=0.3)  # independent documents: the two agree


def test_the_interval_covers_a_planted_share():
    covered = 0
    for seed in range(200):
        chance = random.Random(seed)
        whole, part = [0] * r.GROUPS, [0] * r.GROUPS
        for index in range(1500):
            group = r.jackknife_group(f"{seed}/{index}")
            whole[group] += 1
            part[group] += chance.random() < 0.15
        _, low, high = r.jackknife_share(part, whole)
        covered += low <= 0.15 <= high
    assert 180 <= covered <= 199  # 95 % of 200 is 190, with a standard deviation of 3.1


def test_degenerate_shares():
    nothing, single = [0] * r.GROUPS, [0] * (r.GROUPS - 1) + [8]
    assert r.jackknife_share(nothing, nothing) == (None, None, None)
    assert r.jackknife_share([0] * (r.GROUPS - 1) + [2], single) == (0.25, 0.0, 1.0)


def test_a_shard_gives_what_its_rows_give(tmp_path):
    rows = [(f"s/{index}", "en", f"she and he {index}") for index in range(3000)]
    path = tmp_path / "00000.parquet"
    names = ("id", "language", "text")
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), path)
    assert r.count_shard(path, TERMS) == r.count_documents(rows, TERMS)
    path.write_bytes(b"PAR1 torn")
    with pytest.raises(ManifestError, match="cannot be read"):
        r.count_shard(path, TERMS)


def test_groups_are_even_and_depend_on_the_id_alone():
    sizes = Counter(r.jackknife_group(f"wiki/part-{i // 1000}.jsonl#{i % 1000}") for i in range(64_000))
    assert len(sizes) == r.GROUPS
    assert max(sizes.values()) < 1.2 * min(sizes.values())
    assert r.jackknife_group("wiki/a.jsonl#0") == 48  # CRC-32 is the same everywhere


DATA = os.environ.get("ASSAY_TEST_DATA")


@pytest.mark.skipif(not DATA, reason="ASSAY_TEST_DATA is not set")
def test_the_planted_mentions_of_real_text_are_found():
    folder = Path(DATA) / "bias"
    with gzip.open(folder / "skewed.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = {row["id"]: row for row in map(json.loads, lines)}
    lexicon = TERMS.languages["en"]
    shared = missed = 0
    with gzip.open(folder / "skewed.truth.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            found_groups = {g for _, g in r.mentions(r.split_words(texts[row["id"]]["text"]), lexicon)}
            for mention in row["mentions"]:
                groups = lexicon.words.get(mention["term"].lower())
                if groups is not None:
                    shared += 1
                    missed += not {group for _, group in groups} <= found_groups
    assert shared > 2500
    assert missed == 0
