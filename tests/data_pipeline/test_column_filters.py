"""Filters on kept columns: values compared by type, a reason for each removed document, counts that add up."""

import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.config import DataConfig
from data_pipeline.documents import read_documents, read_rows
from data_pipeline.filters.column_filters import column_reasons
from data_pipeline.filters.own_filters import OwnFilterConfig, own_filters
from data_pipeline.ingest import ingest
from governance.config import Section, validate
from governance.errors import ConfigError
from governance.stage import Runtime


class Filters(Section):
    filters: tuple[OwnFilterConfig, ...]


def bounds(**values):
    return validate({"filters": [{"name": "f", "column": "c"} | values]}, Filters, "run.toml").filters[0]


def kept(values, **conditions):
    """The values that stay, and the reasons of the others."""
    batch = pa.RecordBatch.from_pylist([{"columns": json.dumps({"c": value})} for value in values])
    reasons, _ = column_reasons("f", bounds(**conditions), batch)
    stay = [value for value, reason in zip(values, reasons, strict=True) if not reason]
    return stay, [reason for reason in reasons if reason]


@pytest.mark.parametrize(
    ("values", "conditions", "stay"),
    [
        ([1, 2.5, 3, "2", "9", "x", None, True, [2]], {"min": 2, "max": 3}, [2.5, 3, "2"]),
        (["2014-12-31", "2015-01-01", "2015-01-01T10:00:00", "x"], {"min": "2015-01-01"},
         ["2015-01-01", "2015-01-01T10:00:00"]),
        (["2015-01-01T23:59:59Z", "2015-01-02"], {"max": "2015-01-01"}, ["2015-01-01T23:59:59Z"]),
        ([" 2015-01-01", "2015-01-01T00:00:00Z\n", " 2014-12-31", " 5 "], {"min": "2015-01-01"},
         [" 2015-01-01", "2015-01-01T00:00:00Z\n"]),
        (["2015-01-01T09:00:00+02:00", "2015-01-01T07:00:01Z", "2015-01-02"], {"max": "2015-01-01T07:00:00Z"},
         ["2015-01-01T09:00:00+02:00"]),
        (["5_000", "5000", "5e3", "5,000"], {"min": 10}, ["5000", "5e3"]),
        (["apple", "pear", 3], {"min": "b"}, ["pear"]),
        (["de", "en", "fr", None], {"one_of": ["de", "en"]}, ["de", "en"]),
        ([3, "3", 3.0, True, "de"], {"one_of": [3]}, [3, "3", 3.0]),
        ([True, False, None], {"one_of": [True]}, [True]),
        (["2015-01-01", "2015-01-01T12:00:00", "2015-01-02", 3], {"one_of": ["2015-01-01"]},
         ["2015-01-01", "2015-01-01T12:00:00"]),
        (["2015-01-01", "2015-01-01T12:00:00"], {"one_of": ["2015-01-01T00:00:00Z", "x"]}, ["2015-01-01"]),
        (["1512012345", "1512012341234", "1512-01-23"], {"max": "2015-01-01"}, ["1512-01-23"]),
        (["9007199254740993", "9007199254740992", 9007199254740993], {"min": 9007199254740993},
         ["9007199254740993", 9007199254740993]),
        (["9" * 400, 10**400, "1e400", "7"], {"min": 5}, ["7"]),
        ([0, "", None], {"present": True}, [0, ""]),
        ([0, "", None], {"present": False}, [None]),
    ],
)  # fmt: skip
def test_values_are_compared_by_their_type(values, conditions, stay):
    assert kept(values, **conditions)[0] == stay


def test_a_missing_or_other_value_has_its_own_reason_or_stays():
    values = [1, 5, None, "x"]
    assert kept(values, min=3) == ([5], ["column:f", "column_missing:f", "column_missing:f"])
    assert kept(values, min=3, missing="keep") == ([5, None, "x"], ["column:f"])
    plain = pa.RecordBatch.from_pylist([{"text": "x"}])  # of a source that keeps no column
    assert column_reasons("f", bounds(min=3), plain) == (["column_missing:f"], 1)


@given(st.lists(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
                | st.datetimes().map(str) | st.dates().map(str) | st.lists(st.integers(), max_size=2)),
       st.integers() | st.dates().map(str) | st.datetimes().map(str) | st.text(min_size=1))  # fmt: skip
def test_a_value_is_at_least_or_at_most_a_bound_or_cannot_be_compared(values, bound):
    at_least, at_most = (column_reasons("f", bounds(**{name: bound}), pa.RecordBatch.from_pylist(
        [{"columns": json.dumps({"c": value})} for value in values], pa.schema([("columns", pa.string())])
    )) for name in ("min", "max"))  # fmt: skip
    assert at_least[1] == at_most[1] == at_least[0].count("column_missing:f")
    for low, high in zip(at_least[0], at_most[0], strict=True):
        assert (low == "column_missing:f") == (high == "column_missing:f")
        assert low == high == "column_missing:f" or "" in (low, high)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "has no condition"),
        ({"filter": "a:b"}, "either `column` with bounds or `filter`"),
        ({"column": "", "min": 1}, "either `column` with bounds or `filter`"),
        ({"column": "", "filter": "a:b", "min": 1}, "bounds are for a `column`"),
        ({"min": 1, "max": "a"}, "give two of one kind"),
        ({"min": "2016-01-01", "max": "2015-01-01"}, "no document could stay"),
        ({"min": True}, "dates or text; for true and false give one_of"),
        (
            {"max": "2015"},
            'such as "2015-01-01" as min or "2015-12-31" as max, or for a column of years the number 2015',
        ),
        ({"min": "2015-06"}, "would compare text, not dates"),
        ({"min": 10**400}, "at most 308 digits"),
        ({"present": True, "min": 1}, "present excludes bounds"),
        ({"min": 1, "missing": "drop"}, "missing"),
        ({"minimum": 1}, "did you mean"),
    ],
)
def test_wrong_conditions_are_reported_with_their_fix(values, words):
    with pytest.raises(ConfigError, match=words):
        bounds(**values)


def test_a_filter_on_a_column_that_no_source_keeps_is_refused():
    values = {"sources": [{"type": "jsonl", "name": "a", "licence": "MIT", "paths": ["x"], "columns": ["day"]}]}
    values["filters"] = [{"name": "recent", "column": "date", "min": "2015-01-01"}]
    with pytest.raises(ConfigError, match=r"'date' is in `columns` of no source \(day\)"):
        validate(values, DataConfig, "run.toml")


def test_the_stage_removes_by_column_and_by_function_in_order(tmp_path, caplog):
    (tmp_path / "rules.py").write_text(
        "def short(batch):\n    return [len(t) > 3 for t in batch['text'].to_pylist()]\n"
    )
    rows = [{"text": "long text", "date": "2016-05-01"}, {"text": "old text", "date": "2010-05-01"},
            {"text": "no", "date": "2016-05-01"}, {"text": "undated"}]  # fmt: skip
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"type": "jsonl", "name": "a", "licence": "MIT", "paths": ["x.jsonl"], "columns": ["date"]}
    filters = [{"name": "recent", "column": "date", "min": "2015-01-01"}, {"name": "short", "filter": "rules:short"}]
    config = validate({"sources": [source], "filters": filters}, DataConfig, "run.toml")
    runtime = Runtime(tmp_path / "root")
    documents = ingest(config.sources, config.ingest, tmp_path, runtime)
    found = own_filters(documents, config.filters, runtime, tmp_path)
    assert [document.text for document in read_documents(found.files("documents", runtime.root))] == ["long text"]
    removed = {row["text"]: row["reason"] for path in found.files("removed", runtime.root) for row in read_rows(path)}
    assert removed == {"old text": "column:recent", "no": "own:short", "undated": "column_missing:recent"}
    assert found.stats["documents_in"] == found.stats["documents_kept"] + sum(found.stats["removed"].values()) == 4
    assert found.config["filters"][0] == ["recent", "column date", '{"min":"2015-01-01"}']
    assert found.stats["without_value"] == {"recent": 1}
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    kind = {"name": "kind", "column": "date", "min": 5, "missing": "keep"}  # a number, where the values are dates
    both = validate({"sources": [source], "filters": [filters[0] | {"missing": "keep"}, kind]}, DataConfig, "run.toml")
    idle = own_filters(documents, both.filters, runtime, tmp_path)
    assert idle.stats["without_value"] == {"recent": 1, "kind": 4}
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "filter kind keeps all 4 documents: none has a value in 'date' that its bounds compare with" in warning
