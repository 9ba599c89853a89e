"""The count tables equal a plain reference, for any order and partition; every document is counted somewhere."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.checks.bias import count_tables as t
from governance.checks.bias import counts as c
from governance.checks.bias.provenance_columns import bucket_of, country_of, host_of, year_of
from governance.checks.bias.word_lists.lexicons import load_lexicons
from governance.checks.bias.word_lists.lists_config import WordListsConfig
from governance.errors import ManifestError
from tests.governance.bias_reference import count

LEXICONS = load_lexicons(WordListsConfig(intersections=()))
PHRASES = (
    "She is a nurse.", "The man was arrested for theft!", "A wonderful black woman", "old friend", "lesbian idiots",
    "an African American judge", "nobody here.", "colour and colour", "Die Frau ist eine gute Ärztin.", "ella", "\n\n",
    "Élle\u0301", "wheelchair user", "彼女は医者です。", "The Muslim teacher won", "terrible. awful", "",
)  # fmt: skip
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.text(max_size=3),
            "text": st.lists(st.sampled_from(PHRASES), max_size=6).map(" ".join) | st.text(max_size=20),
            "source": st.sampled_from(["a", "b"]),
            "url": st.sampled_from(["", "https://www.Example.co.uk/2019/05/x", "http://u@host.example:80/a", "no url"]),
            "language": st.sampled_from(["en", "en", "de", "es", "xx", "ja", ""]),
            "licence": st.sampled_from(["MIT", "CC0-1.0"]),
            "reason": st.sampled_from(["short", "dull"]),
        }
    ),
    max_size=12,
    unique_by=lambda row: row["id"],
)
SCHEMA = pa.schema([(name, pa.large_string() if name == "text" else pa.string()) for name in (*c._COLUMNS, "reason")])


def table_of(rows, stage=c.KEPT):
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    return table if stage != c.KEPT else table.drop_columns("reason")


def counted(rows, stage=c.KEPT):
    return c.count_groups([table_of(rows, stage)], stage, LEXICONS)


def keyed(table, name, *columns):
    keys = t.TABLES[name][0]
    return {tuple(row[key] for key in keys): tuple(row[one] for one in columns) for row in table.to_pylist()}


def labels_of(lexicon):
    identity = {term: [(0, group, 0) for group in groups] for term, groups in lexicon.identity.items()}
    return identity, {term: list(labels) for term, labels in lexicon.others.items()}


LABELS = {code: labels_of(lexicon) for code, lexicon in LEXICONS.languages.items()}


def reference(rows):
    """Every table but `shares`, `terms` and `beside`, from the slow reference of single texts, as Counters by key."""
    found = {name: Counter() for name in t.TABLES}
    for row in rows:
        code, bucket = row["language"] or "und", bucket_of(host_of(row["url"]) or row["id"])
        lexicon = LEXICONS.languages.get(code)
        own = count(row["text"], *(LABELS[code] if lexicon else ({}, {})), len(LEXICONS.instruments))
        sums = (1, own["words"], own["sentences"], len(row["text"].encode()))
        for field, value in zip(t.TABLES["documents"][1], sums, strict=True):
            found["documents"][code, row["source"], bucket, field] += value
        place = (
            c.KEPT,
            "",
            row["source"],
            host_of(row["url"]),
            code,
            min(15, max(1, own["words"]).bit_length() - 1),
            bucket,
        )
        if lexicon is None:
            found["fates"][(*place, "", "")] += 1
            continue
        for axis in {lexicon.groups[group][0] for group in own["mentions"]}:
            found["axes"][code, bucket, axis] += 1
        for group, many in own["mentions"].items():
            found["fates"][(*place, *lexicon.groups[group])] += 1
            for field, value in zip(t.TABLES["groups"][1], (1, many, own["with_mention"][group]), strict=True):
                found["groups"][(code, row["source"], bucket, *lexicon.groups[group], field)] += value
        for axis in set(lexicon.axes) - {lexicon.groups[group][0] for group in own["mentions"]}:
            found["fates"][(*place, axis, "")] += 1
        for number, many in own["categories"].items():
            found["categories"][(code, row["source"], bucket, *lexicon.categories[number])] += many
        for (group, number), many in own["pairs"].items():
            found["pairs"][(code, row["source"], bucket, *lexicon.groups[group], *lexicon.categories[number])] += many
        for groups, scores in own["scores"]:
            for name in [lexicon.groups[group] for group in groups] or [("", "")]:
                for instrument, (score, words) in zip(LEXICONS.instruments, scores, strict=True):
                    if code not in LEXICONS.scored[instrument]:
                        continue
                    values = (1, score, score * score, words > 0)
                    for field, value in zip(t.TABLES["scores"][1], values, strict=True):
                        found["scores"][(code, row["source"], bucket, *name, instrument, field)] += value
    return found


@settings(max_examples=50)
@given(ROWS)
def test_the_tables_are_those_of_a_plain_reference(rows):
    tables, expected = counted(rows), reference(rows)
    for name, (_, fields) in t.TABLES.items():
        if name in {"shares", "terms", "beside"}:
            continue  # `terms` and `beside` in test_bias_behind.py
        own = {key: values for key, values in keyed(tables[name], name, *fields).items()}
        flat = {(*key, field) if len(fields) > 1 else key: value
                for key, values in own.items() for field, value in zip(fields, values, strict=True)}  # fmt: skip
        assert {key: value for key, value in flat.items() if value} == {
            key: value for key, value in expected[name].items() if value
        }, name


@settings(max_examples=15)
@given(ROWS, st.randoms(use_true_random=False), st.integers(1, 5))
def test_any_order_and_any_partition_give_the_same_bytes(tmp_path_factory, rows, chance, number):
    folder = tmp_path_factory.mktemp("parts")
    shuffled = list(rows)
    chance.shuffle(shuffled)
    paths = []
    for place in range(number):
        own = shuffled[place::number]
        groups = [table_of(own[start : start + 2]) for start in range(0, len(own), 2)]
        paths.append(folder / f"{place}.parquet")
        t.write_part(paths[-1], c.count_groups(groups, c.KEPT, LEXICONS))
    chance.shuffle(paths)
    pieces = t.merge_parts(paths)
    for name, whole in counted(rows).items():
        for which, table in (("whole", whole), ("pieces", pieces[name])):
            t.write_counts(folder / f"{which}.parquet", table)
        assert (folder / "whole.parquet").read_bytes() == (folder / "pieces.parquet").read_bytes(), name


@settings(max_examples=40)
@given(ROWS)
def test_every_removed_document_has_a_fate_on_every_axis(rows):
    tables = counted(rows, "dedup")
    assert all(table.num_rows == 0 for name, table in tables.items() if name not in {"fates", "terms", "examples"})
    for code in {row["language"] for row in rows}:
        own = [row for row in tables["fates"].to_pylist() if row["language"] == (code or "und")]
        of = Counter(row["reason"] for row in rows if row["language"] == code)
        assert {row["stage"] for row in own} == {"dedup"}
        lexicon = LEXICONS.languages.get(code)
        for axis in lexicon.axes if lexicon else [""]:
            reached = Counter()
            for row in own:
                if row["axis"] == axis:
                    reached[row["reason"]] += row["documents"]
            assert reached.keys() == of.keys()
            assert all(reached[reason] >= of[reason] for reason in of), "one document may mention two groups of an axis"


def test_tables_are_sorted_and_hold_no_zeros():
    rows = [
        {"id": str(n), "text": text * 2, "source": "s", "url": "", "language": "en", "licence": "MIT", "reason": ""}
        for n, text in enumerate(PHRASES * 3)
    ]
    tables = counted(rows)
    for name, (keys, fields) in t.TABLES.items():
        table = tables[name]
        own = [tuple(row[key] for key in keys) for row in table.to_pylist()]
        assert own == sorted(set(own))
        assert table.schema == t.schema_of(name)
        assert all(any(row[field] for field in fields) for row in table.to_pylist())
        assert len(own) > 5 or name in {"shares", "documents"}


def test_small_sites_are_one_site_whatever_the_partition(tmp_path):
    hosts = {"big.example": 5, "mid.example": 3, "aaa.example": 1, "zzz.example": 1, "": 2}
    rows = [
        {"id": f"{host}{n}", "text": "She left.", "source": "s", "url": f"https://{host}/{n}" if host else "",
         "language": "en", "licence": "MIT", "reason": ""}
        for host, number in hosts.items() for n in range(number)
    ]  # fmt: skip
    found = []
    for parts in (1, 3):
        paths = [tmp_path / f"{parts}-{place}.parquet" for place in range(parts)]
        for place, path in enumerate(paths):
            t.write_part(path, counted(rows[place::parts]))
        found.append(t.merge_parts(paths, most_sites=2)["fates"])
    assert found[0].equals(found[1])
    female = [row for row in found[0].to_pylist() if row["group"] == "female"]
    sizes = Counter()
    for row in female:
        sizes[row["site"]] += row["documents"]
    assert sizes == {"big.example": 5, "mid.example": 3, "(small sites)": 2, "": 2}


def test_shares():
    base = {"id": "1", "source": "s", "licence": "MIT", "language": "en", "reason": ""}
    rows = [
        {**base, "text": "The colour of honour", "url": "https://www.news.example.fr/2019/05/01/a.html"},
        {**base, "text": "The color of honour", "url": "https://news.example.fr/a"},
        {**base, "text": "color", "url": "", "language": "xx"},
    ]
    found = keyed(counted(rows)["shares"], "shares", "documents", "bytes", "words")
    host, own = bucket_of("news.example.fr"), bucket_of("1")
    assert found["domain", "news.example.fr", host] == (2, 39, 8)
    assert found["country", "fr", host] == (2, 39, 8)
    assert found["country", "unknown", own] == found["domain", "unknown", own] == (1, 5, 1)
    assert found["year", "2019", host] == (1, 20, 4)
    assert found["dialect", "en-GB", host] == (1, 20, 4)
    assert found["dialect", "unknown", host] == (1, 19, 4), "one word of each"
    assert found["dialect", "unknown", own] == (1, 5, 1), "no lists, no dialect"
    assert found["language", "xx", own] == (1, 5, 1)
    assert sum(value[0] for (dimension, *_), value in found.items() if dimension == "licence") == 3


@pytest.mark.parametrize(
    ("url", "host", "country", "year"),
    [
        ("https://www.Example.ORG./2021/x", "example.org", "unknown", "2021"),
        ("http://user:pw@a.b.co.uk:8080/x-1999-12.html?y=2020", "a.b.co.uk", "uk", "1999"),
        ("https://example.de/20190501", "example.de", "de", "unknown"),
        ("https://[2001:db8::1]:80/2050/", "[2001:db8::1]", "unknown", "unknown"),
        ("example.org/2019", "", "unknown", "unknown"),
        ("", "", "unknown", "unknown"),
    ],
)
def test_origins(url, host, country, year):
    assert host_of(url) == host
    assert country_of(host_of(url)) == country
    assert year_of(url) == year


def test_buckets_are_even_and_the_same_everywhere():
    sizes = Counter(bucket_of(f"wiki/part-{i // 1000}.jsonl#{i % 1000}") for i in range(64_000))
    assert len(sizes) == 64
    assert max(sizes.values()) < 1.2 * min(sizes.values())
    assert bucket_of("wiki/a.jsonl#0") == 48


def test_a_torn_shard_is_reported(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(ManifestError, match="cannot be read as a document shard"):
        list(c.read_groups(tmp_path / "x.parquet", removed=False))
    with pytest.raises(ManifestError, match="cannot be read"):
        t.merge_parts([tmp_path / "x.parquet"])
