"""Kept columns: the values of a row reach the last documents, of JSON and of Parquet, and nothing else changes."""

import datetime
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.config import DataConfig
from data_pipeline.documents import DOCUMENT_SCHEMA, read_documents, read_rows
from data_pipeline.prepare import stages
from data_pipeline.readers.record import Fields, Record, to_record
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
        assert piece.reason in ("columns_not_json", "lone_surrogate")
