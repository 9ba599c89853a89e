"""The suite `raw`: ids over the whole corpus, licences, dates and digests."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.checks import shards as identities
from governance.checks.shards import RawShard, Repeats, kind_of_date, raw_table, read_ids, repeated_ids, write_hashes
from governance.config import Section
from governance.errors import ManifestError
from governance.kernels import identities as kernel
from governance.kernels.identities import hash_texts


def documents(count, **columns):
    texts = [f"text number {number}" for number in range(count)]
    table = {
        "id": [f"s/a#{number}" for number in range(count)],
        "text": pa.array(texts, pa.large_string()),
        "source": ["s"] * count,
        "url": [""] * count,
        "language": ["en"] * count,
        "licence": ["MIT"] * count,
        "sha256": [hashlib.sha256(text.encode()).hexdigest() for text in texts],
        "file": ["a"] * count,
        "position": pa.array(range(count), pa.int64()),
        "opt_out": ["none"] * count,
        "opt_out_fetched": ["2024-05-01"] * count,
        **columns,
    }
    return pa.table({name: column for name, column in table.items() if column is not None})


def none():
    return Repeats(np.zeros(0, np.int64), np.zeros(0, np.int32))


def shard(path, table, digest="0" * 64, repeats=None, read_on="2024-06-01", group=10**6):
    pq.write_table(table, path, row_group_size=group)
    return RawShard(path, "ingest/0/documents/0.parquet", digest, repeats or none(), read_on)


# --- ids


def slow_hash(data: bytes) -> int:
    mask, value = (1 << 64) - 1, 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & mask
    value = ((value ^ (value >> 33)) * 0xFF51AFD7ED558CCD) & mask
    value = ((value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53) & mask
    return value ^ (value >> 33)


@given(texts=st.lists(st.text(), max_size=20))
def test_the_hash_is_the_plain_one(texts):
    assert hash_texts(pa.array(texts, pa.string())).tolist() == [slow_hash(text.encode()) for text in texts]


def find(folder, shards, range_bytes=identities.RANGE_BYTES):
    paths, hashes = [], []
    for number, ids in enumerate(shards):
        paths.append(folder / f"{number}.parquet")
        pq.write_table(pa.table({"id": pa.array(ids, pa.string())}), paths[-1])
        target = folder / f"{number}.u64"
        made = write_hashes(Section(), (paths[-1], read_ids), lambda _, target=target: target)
        assert made.stats == {"documents": len(ids)}
        hashes.append(target)
    found = repeated_ids(paths, hashes, read_ids, range_bytes)
    return [dict(zip(part.rows.tolist(), part.others.tolist(), strict=True)) for part in found]


@given(
    shards=st.lists(st.lists(st.integers(0, 30).map(str), max_size=12), min_size=1, max_size=4),
    range_bytes=st.sampled_from([8, 64, 1 << 20]),
)
@settings(max_examples=60)
def test_repeated_ids_are_found_in_whatever_shard_and_range(tmp_path_factory, shards, range_bytes):
    times = Counter(name for ids in shards for name in ids)
    wanted = [{row: times[name] - 1 for row, name in enumerate(ids) if times[name] > 1} for ids in shards]
    assert find(tmp_path_factory.mktemp("ids"), shards, range_bytes) == wanted


def test_two_ids_of_one_hash_are_no_repetition(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel, "hash_texts", lambda texts: np.full(len(texts), 7, np.uint64))
    assert find(tmp_path, [["a", "b"], ["c", "b"], []]) == [{1: 1}, {1: 1}, {}]


def test_the_greatest_and_the_least_hash_are_in_a_range(tmp_path, monkeypatch):
    ends = np.array([0, 2**64 - 1], np.uint64)
    monkeypatch.setattr(kernel, "hash_texts", lambda texts: ends[: len(texts)])
    assert find(tmp_path, [["a", "z"], ["a", "z"]], 8) == [{0: 1, 1: 1}, {0: 1, 1: 1}]


# --- the table


def test_the_table_has_no_text_and_what_is_worked_out(tmp_path):
    repeats = Repeats(np.array([1]), np.array([2], np.int32))
    frame = raw_table(shard(tmp_path / "0.parquet", documents(3), repeats=repeats)).frame
    assert "text" not in frame.columns
    assert frame["repeats"].tolist() == [0, 2, 0]
    assert frame["digest_fits"].tolist() == [1, 1, 1]
    assert frame["bytes"].tolist() == [13, 13, 13]
    assert frame["opt_out_date"].tolist() == ["valid"] * 3
    assert frame["url"].isna().all(), "an empty text is a missing value"


def test_an_altered_text_does_not_fit_its_digest(tmp_path):
    table = documents(3, text=pa.array(["text number 0", "text number x", "text number 2"], pa.large_string()))
    assert raw_table(shard(tmp_path / "0.parquet", table)).frame["digest_fits"].tolist() == [1, 0, 1]


@pytest.mark.parametrize(("digest", "rows"), [("00000000" + "0" * 56, (0, 2)), ("00000001" + "0" * 56, (2, 4))])
def test_one_row_group_is_looked_at_and_the_digest_says_which(tmp_path, digest, rows):
    fits = raw_table(shard(tmp_path / "0.parquet", documents(5), digest, group=2)).frame["digest_fits"]
    assert fits.notna().tolist() == [rows[0] <= row < rows[1] for row in range(5)]


def test_an_empty_shard_is_an_empty_table(tmp_path):
    table = raw_table(shard(tmp_path / "0.parquet", documents(3).slice(0, 0)))
    assert (len(table.frame), table.problem) == (0, "")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"licence": None}, "no column 'licence'"),
        ({"text": None}, "no column 'text'"),
        ({"sha256": pa.array([1, 2, 3])}, "no column 'sha256' of strings"),
        ({"position": ["0", "1", "2"]}, "no column 'position'"),
        ({"id": pa.array(["a", None, "b"])}, "nulls in id"),
    ],
)
def test_what_is_no_document_shard_is_a_problem(tmp_path, columns, words):
    assert words in raw_table(shard(tmp_path / "0.parquet", documents(3, **columns))).problem


def test_a_torn_shard_raises(tmp_path):
    path = tmp_path / "0.parquet"
    torn = shard(path, documents(3))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ManifestError, match="cannot be read"):
        raw_table(torn)
    with pytest.raises(ManifestError, match="cannot be read"):
        read_ids(path)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("", "none"),
        ("2024-05-01", "valid"),
        ("2024-06-02T23:59:59Z", "valid"),
        ("2024-06-03T01:00:00+02:00", "valid"),
        ("2024-06-03", "future"),
        ("2024-13-01", "invalid"),
        ("yesterday", "invalid"),
        ("0001-01-01T00:00:00+14:00", "invalid"),
    ],
)
def test_what_a_date_is(value, kind):
    assert kind_of_date(value, "2024-06-01") == kind


def test_a_date_cannot_be_judged_without_the_day_of_reading(tmp_path):
    assert kind_of_date("2024-05-01", "") == "unknown"
    table = documents(3, opt_out=["none", "tdm:reserved", ""], opt_out_fetched=["2024-05-01", "", ""])
    frame = raw_table(shard(tmp_path / "0.parquet", table)).frame
    assert frame["opt_out_date"].tolist() == ["valid", "undated", "none"]
