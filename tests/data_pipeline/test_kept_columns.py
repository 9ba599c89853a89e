"""Kept columns: the values of a row reach the last documents, of JSON and of Parquet, and nothing else changes."""

import datetime
import json
import random
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.config import DataConfig
from data_pipeline.documents import DOCUMENT_SCHEMA, read_documents, read_rows
from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.prepare import stages
from data_pipeline.readers.parquet import read_parquet
from data_pipeline.readers.record import Fields, Record, RecordFault, to_record
from data_pipeline.readers.sources import JsonlSource
from governance.config import validate
from governance.stage import Runtime

ROWS = [
    {"text": " ".join(random.Random(number).choices("abcdefghijkl", k=60)), "date": f"2024-05-{number + 1:02d}",
     "score": number / 8, "meta": {"tags": ["a", None], "day": number}}
    for number in range(8)
]  # fmt: skip
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4)


def made(folder, **source):
    values = {"sources": [{"name": "rows", "licence": "MIT", **source}], "clean": {"presets": []}}
    found = {}
    for manifest in stages(validate(values, DataConfig, "run.toml"), folder, Runtime(folder / "root")):
        found[manifest.stage] = manifest
        if manifest.stage == "redact":
            return found


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_kept_columns_reach_the_documents_of_the_last_stage(tmp_path, kind):
    if kind == "jsonl":
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:7] + ROWS[:1]))
    else:
        days = [row | {"date": datetime.date.fromisoformat(row["date"])} for row in ROWS[:7] + ROWS[:1]]
        pq.write_table(pa.Table.from_pylist(days), tmp_path / "rows.parquet")
    found = made(tmp_path, type=kind, paths=[f"rows.{kind}"], columns=["date", "score", "meta.day", "absent"])
    root = tmp_path / "root"
    kept = [json.loads(document.columns) for document in read_documents(found["redact"].files("documents", root))]
    assert kept == [
        {"date": row["date"], "score": row["score"], "meta.day": row["meta"]["day"], "absent": None} for row in ROWS[:7]
    ]
    [gone] = [row for path in found["dedup"].files("removed", root) for row in read_rows(path)]
    assert json.loads(gone["columns"])["date"] == "2024-05-01"
    plain = made(tmp_path, type=kind, paths=[f"rows.{kind}"])
    [shard] = plain["redact"].files("documents", root)
    assert pq.read_schema(shard).names == DOCUMENT_SCHEMA.names
    texts = [[document.text for document in read_documents(run["redact"].files("documents", root))]
             for run in (plain, found)]  # fmt: skip
    assert texts[0] == texts[1]


@given(st.dictionaries(st.sampled_from(["a", "b"]), JSON))
def test_any_row_is_a_record_with_columns_or_a_fault(values):
    piece = to_record({"text": "x", **values}, Fields("text", columns=("a", "b")), "f", 0)
    if isinstance(piece, Record):
        assert list(json.loads(piece.columns)) == ["a", "b"]
        piece.columns.encode()
    else:
        assert piece.reason == "lone_surrogate"


def test_a_kept_value_without_a_python_type_costs_no_record(tmp_path):
    far = pa.array([0, 1 << 58, None], pa.int64())
    kept = {
        "a": far.cast(pa.timestamp("us")),
        "b": pa.array([0, 1 << 30, None], pa.int32()).cast(pa.date32()),
        "c": pa.array([0, 0, None], pa.int64()).cast(pa.timestamp("us", "Foo/Bar")),
        "d": pa.array([b"x", b"\xff", None]),
        "e": pa.array([[1.0], [float("nan"), float("inf")], None]),
        "f": pa.ListArray.from_arrays([0, 1, 2, 2], pa.array([b"x", b"\xff"]).view(pa.string())),
    }
    pq.write_table(pa.table({"text": ["x", "y", "z"], **kept}), tmp_path / "x.parquet")
    got = list(read_parquet(tmp_path / "x.parquet", "x", Fields("text", columns=tuple(kept))))
    assert [piece.text for piece in got] == ["x", "y", "z"]
    first, second, third = (json.loads(piece.columns) for piece in got)
    assert (first["a"], first["b"], first["d"], first["e"]) == ("1970-01-01T00:00:00", "1970-01-01", "x", [1.0])
    assert (second["d"], second["e"]) == ("\ufffd", [None, None])
    assert (first["c"], first["f"], second["f"]) == (None, ["x"], None), (
        "an unknown time zone; a list that is not UTF-8"
    )
    assert (second["a"][:5], third) == ("11103", {name: None for name in kept} | {"f": []})


@pytest.mark.parametrize(
    "value", [{("a", "b"): 1}, {b"x": 1}, {"a", "b"}, object()], ids=["tuple key", "bytes key", "set", "object"]
)
def test_a_kept_value_of_an_own_reader_without_a_fixed_form_is_a_fault(value):
    fields = Fields("text", columns=("a",))
    assert to_record({"text": "x", "a": value}, fields, "f", 0) == RecordFault("f", 0, "columns_not_json", "x")
    given = (b"x", datetime.timedelta(1), Decimal("1.50"), np.int64(3), np.float32("nan"), np.array([1, 2]))
    record = to_record({"text": "x", "a": given}, fields, "f", 0)
    assert json.loads(record.columns) == {"a": ["x", "1 day, 0:00:00", "1.50", 3, None, [1, 2]]}


def test_kept_columns_count_in_row_groups_and_shards(tmp_path, monkeypatch):
    rows = [{"text": f"text {number:02d}", "id": str(number % 30), "wide": "w" * 1000} for number in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("data_pipeline.documents.ROW_GROUP_BYTES", 6000)
    values = {"type": "jsonl", "name": "a", "licence": "MIT", "paths": ("rows.jsonl",), "columns": ("wide",)}
    for named, kept in (({}, 60), ({"id_field": "id"}, 30)):
        source, root = JsonlSource(**values, **named), tmp_path / "root"
        found = ingest((source,), IngestConfig(shard_bytes=21_000), tmp_path, Runtime(root))
        assert (found.stats["documents_kept"], found.stats["bytes_kept"]) == (kept, 7 * kept), "the bytes of texts"
        shards = [pq.ParquetFile(path) for path in found.files("documents", root)]
        assert [shard.metadata.num_rows for shard in shards][: kept // 20] == [20] * (kept // 20)
        assert all(
            shard.metadata.row_group(group).num_rows <= 4 for shard in shards for group in range(shard.num_row_groups)
        )
