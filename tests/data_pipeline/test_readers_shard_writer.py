"""The streaming writer of document shards, as ingest uses it."""

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import DOCUMENT_SCHEMA, read_table, shard_writer


@settings(max_examples=25)
@given(st.lists(st.text(max_size=40), max_size=30), st.integers(1, 100))
def test_shard_writer_round_trip_and_row_groups(tmp_path_factory, texts, group_bytes):
    path = tmp_path_factory.mktemp("w") / "x.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_pipeline.documents.ROW_GROUP_BYTES", group_bytes)
        with shard_writer(path) as add:
            for number, text in enumerate(texts):
                add((str(number), text, "s", "", "", "", "", "f", number, "", ""), len(text.encode()))
    table = read_table(path, DOCUMENT_SCHEMA)
    assert table["text"].to_pylist() == texts
    file = pq.ParquetFile(path)
    for group in range(file.num_row_groups):
        rows = file.read_row_group(group, columns=["text"])["text"].to_pylist()
        assert len(rows) == 1 or sum(len(text.encode()) for text in rows) <= group_bytes


def test_shard_writer_leaves_nothing_when_it_fails(tmp_path):
    def fail():
        with shard_writer(tmp_path / "x.parquet") as add:
            add(("1", "t", "s", "", "", "", "", "f", 0, "", ""), 1)
            raise KeyError("a reader's fault")

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []
