"""The judged tables: their content, and the faults that make them a problem."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from governance.checks.expectations import run_suite
from governance.checks.suites import (
    disagreement,
    document_table,
    frame_of,
    licence_rows,
    quarantined_records,
    source_rows,
    token_rows,
)
from governance.checks.synthetic_share import synthetic_rows
from governance.errors import ManifestError
from governance.gate.policy import Gate
from governance.manifest import Manifest, describe
from tests.manifests import manifest_of


def manifest(stage: str, root: Path, files: dict[str, pa.Table], **stats: object) -> Manifest:
    folder = f"{stage}/{'0' * 16}"
    outputs = []
    for name, table in files.items():
        path = root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        outputs.append(describe(path, root))
    return manifest_of(stage, outputs, stats=stats)


def funnel(documents: int, kept: int, **extra: object) -> dict[str, object]:
    removed = {"short": documents - kept} if documents > kept else {}
    return {
        "documents_in": documents,
        "documents_kept": kept,
        "bytes_in": 10 * documents,
        "bytes_kept": 10 * kept,
        "removed": removed,
        **extra,
    }


def features(kept: list[bool]) -> pa.Table:
    return pa.table(
        {
            "id": [f"s/{i}" for i in range(len(kept))],
            "text": ["never handed over"] * len(kept),
            "language": (["en", "", "und", None] * len(kept))[: len(kept)],
            "words": list(range(len(kept))),
            "kept": kept,
        }
    )


def written(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path)
    return path


def test_documents_are_the_kept_rows_without_text(tmp_path):
    path = written(tmp_path / "0.parquet", features([True, True, True, False]))
    table, rows = document_table(path, "clean/0")
    assert (table.subject, table.problem, rows, list(table.frame["words"])) == ("clean/0", "", 4, [0, 1, 2])
    assert "text" not in table.frame.columns
    assert list(table.frame["language"].isna()) == [False, True, True], "an unknown language is a missing value"


def test_rows_that_the_manifest_does_not_know_are_reported(tmp_path):
    clean = manifest("clean", tmp_path, {}, **funnel(5, 2))
    assert disagreement(clean, 5, 2) == ""
    assert "have 4 rows, 2 kept; the manifest states 5 and 2" in disagreement(clean, 4, 2)


@pytest.mark.parametrize("kept", [None, ["yes", "no"]])
def test_a_shard_that_does_not_say_what_was_kept_is_a_problem(tmp_path, kept):
    table = features([True, False]).drop_columns(["kept"])
    if kept:
        table = table.append_column("kept", [kept])
    found, rows = document_table(written(tmp_path / "0.parquet", table), "clean/0")
    assert "no column `kept`" in found.problem
    assert rows == 2


def test_a_torn_shard_raises(tmp_path):
    (tmp_path / "0.parquet").write_bytes(b"PAR1")
    with pytest.raises(ManifestError, match="cannot be read"):
        document_table(tmp_path / "0.parquet", "clean/0")


def test_the_source_by_stage_table(tmp_path):
    raw = {"quarantined": 1, "torn_files": 1}
    none = {"quarantined": 0, "torn_files": 0}
    ingest = manifest(
        "ingest",
        tmp_path,
        {},
        **funnel(14, 13, **raw),
        by_source={"b": funnel(4, 4, **none), "a": funnel(10, 9, **raw)},
    )
    clean = manifest("clean", tmp_path, {}, **funnel(13, 6), by_source={"a": funnel(9, 6), "b": funnel(4, 0)})
    dedup = manifest("dedup", tmp_path, {}, **funnel(5, 5), by_source={"a": funnel(5, 5)})
    rows = source_rows({"dedup": dedup, "ingest": ingest, "clean": clean})
    names = [(row["stage"], row["source"]) for row in rows]
    assert names == [
        *[("ingest", "(all)"), ("ingest", "a"), ("ingest", "b")],
        *[("clean", "(all)"), ("clean", "a"), ("clean", "b")],
        *[("dedup", "(all)"), ("dedup", "a")],
    ]
    by = dict(zip(names, rows, strict=True))
    assert by["ingest", "a"]["quarantined_share"] == 0.1
    assert [row["torn_files"] for row in rows] == [1, 1, 0, 0, 0, 0, 0, 0]
    assert by["clean", "b"]["removed_share"] == 1.0
    assert by["clean", "a"]["quarantined_share"] == 0.0
    assert [row["unaccounted"] for row in rows] == [0] * 8
    assert [row["lost"] for row in rows] == [0, 0, 0, 0, 0, 0, 1, 1], "clean kept 6, dedup was given 5"


def test_a_source_that_vanishes_between_stages_is_lost(tmp_path):
    ingest = manifest("ingest", tmp_path, {}, **funnel(3, 3), by_source={"a": funnel(2, 2), "b": funnel(1, 1)})
    clean = manifest("clean", tmp_path, {}, **funnel(2, 2), by_source={"a": funnel(2, 2)})
    lost = {row["source"]: row["lost"] for row in source_rows({"ingest": ingest, "clean": clean}) if row["lost"]}
    assert lost == {"(all)": 1, "b": 1}


def test_what_was_not_counted_is_unknown(tmp_path):
    (row,) = source_rows({"ingest": manifest("ingest", tmp_path, {}, **funnel(3, 3))})
    assert (row["quarantined_share"], row["torn_files"]) == (None, None)
    (row,) = source_rows({"ingest": manifest("ingest", tmp_path, {}, **funnel(0, 0, quarantined=0, torn_files=0))})
    assert (row["removed_share"], row["quarantined_share"]) == (None, None)


def removing(documents_in, **removed):
    """Counts of a stage that removed so many for each reason."""
    counts = funnel(documents_in, documents_in - sum(removed.values()))
    return {**counts, "removed": {name.replace("quarantine_", "quarantine:"): count for name, count in removed.items()}}


def test_what_an_earlier_corpus_holds_is_no_duplicate_of_this_one(tmp_path):
    by_source = {
        "all": removing(100, duplicate_of_earlier=100),
        "most": removing(100, duplicate_of_earlier=90, near_duplicate=1, exact_duplicate=1),
        "none": removing(100, near_duplicate=95),
    }
    total = removing(300, duplicate_of_earlier=190, near_duplicate=96, exact_duplicate=1)
    dedup = manifest("dedup", tmp_path, {}, **total, by_source=by_source)
    rows = {row["source"]: row for row in source_rows({"dedup": dedup})}
    shares = {name: (row["earlier_share"], row["duplicate_share"]) for name, row in rows.items()}
    assert shares == {"(all)": (190 / 300, 97 / 110), "all": (1.0, 0.0), "most": (0.9, 0.2), "none": (0.0, 0.95)}
    assert all(row["unaccounted"] == 0 for row in rows.values())
    nothing = manifest("dedup", tmp_path / "b", {}, **removing(0))
    [row] = source_rows({"dedup": nothing})
    assert (row["earlier_share"], row["duplicate_share"]) == (None, None)


def test_a_page_without_text_is_no_broken_record(tmp_path):
    web = {**removing(1000, quarantine_no_text=200, quarantine_warc_bad_header=1), "quarantined": 201}
    ingest = manifest("ingest", tmp_path, {}, **web, by_source={"web": web})
    clean = manifest("clean", tmp_path, {}, **removing(799), by_source={"web": removing(799)})
    rows = source_rows({"ingest": ingest, "clean": clean})
    assert [(row["no_text_share"], row["quarantined_share"]) for row in rows] == [(0.2, 0.001)] * 2 + [(0.0, 0.0)] * 2


def test_licences_of_all_shards_are_counted(tmp_path):
    shard = pa.table({"source": ["a", "a", "b"], "licence": ["MIT", "CC0-1.0", "MIT"]})
    final = manifest("redact", tmp_path, {"documents/0.parquet": shard, "documents/1.parquet": shard})
    assert licence_rows(final, tmp_path) == [
        {"source": "a", "licence": "CC0-1.0", "documents": 2},
        {"source": "a", "licence": "MIT", "documents": 2},
        {"source": "b", "licence": "MIT", "documents": 2},
    ]
    with pytest.raises(ManifestError, match=r"lacks the columns \['licence', 'source'\]|No match"):
        licence_rows(manifest("redact", tmp_path, {"documents/2.parquet": pa.table({"x": [1]})}), tmp_path)


def test_token_counts_are_one_row(tmp_path):
    stats = {**funnel(2, 2), "train": {"tokens": 5}, "round_trip_failed": 0, "by_source": {"a": funnel(2, 2)}}
    (row,) = token_rows(manifest("encode", tmp_path, {}, **stats))
    assert (row["train_tokens"], row["round_trip_failed"], row["documents_in"]) == (5, 0, 2)
    assert "removed" not in row
    assert token_rows(manifest("encode", tmp_path, {})) == []


def test_the_share_of_synthetic_text_counts_each_source_that_a_model_wrote(tmp_path):
    sources = [
        {"name": "news", "type": "jsonl"},
        {"name": "old", "type": "jsonl", "synthetic_by": "b-1"},
        {"name": "tales", "type": "synthetic", "model": "a-7b"},
    ]
    read = {"news": funnel(9, 6), "old": funnel(4, 4), "tales": {**funnel(5, 4), "truncated": 1}}
    kept = {"news": funnel(6, 6), "old": funnel(4, 1), "tales": funnel(4, 3)}
    ingest = manifest("ingest", tmp_path, {}, **funnel(18, 14), by_source=read)
    ingest = ingest.model_copy(update={"config": {"sources": sources}})
    tokens = {"news": 60, "old": 10, "tales": 30}
    encode = manifest("encode", tmp_path, {}, **funnel(14, 10), by_source=kept, tokens_by_source=tokens)
    total, old, tales = synthetic_rows({"ingest": ingest, "encode": encode})
    assert (total["source"], total["token_share"], total["document_share"]) == ("(all)", 0.4, 0.4)
    assert total["truncated_share"] == 1 / 8
    assert (old["teacher"], old["tokens"], old["truncated_share"]) == ("b-1", 10, 0.0)
    assert (tales["teacher"], tales["documents"], tales["truncated_share"]) == ("a-7b", 3, 0.25)
    [none] = synthetic_rows(
        {"ingest": ingest.model_copy(update={"config": {"sources": sources[:1]}}), "encode": encode}
    )
    assert (none["tokens"], none["token_share"], none["truncated_share"]) == (0, 0.0, 0.0)


def test_unreadable_records_are_named_and_pages_without_text_are_not(tmp_path):
    reasons = ["no_text", "not_json", "not_json", "not_utf8", "not_json"]
    rows = [{"source": "a", "file": "x.jsonl", "position": n, "reason": why} for n, why in enumerate(reasons)]
    removed = {"quarantine:no_text": 1, "quarantine:not_json": 3, "quarantine:not_utf8": 1}
    stats = {"removed": removed, "by_source": {"a": {"removed": removed}, "b": {"removed": {"quarantine:no_text": 7}}}}
    ingest = manifest("ingest", tmp_path, {"quarantine/0.parquet": pa.Table.from_pylist(rows)}, **stats)
    words = "x.jsonl#1 not_json, x.jsonl#2 not_json, x.jsonl#3 not_utf8 and 1 more"
    assert quarantined_records(ingest, tmp_path) == {"(all)": words, "a": words}


def test_a_licence_that_is_not_allowed_is_a_sentence():
    """Documents, source and licence; the largest first."""
    rule = Gate(id="licences.allowed", suite="licences", expectation="in_set", column="licence", values=("MIT",),
                owner="legal", why="a reason of ten letters")  # fmt: skip
    rows = [{"source": "a", "licence": "MIT", "documents": 5}, {"source": "b", "licence": "X", "documents": 1},
            {"source": "c", "licence": "Y", "documents": 1200}]  # fmt: skip
    [result] = run_suite(frame_of(rows), [rule], "licences")
    assert result.detail == (
        "1,200 documents of source c are in the corpus under licence Y, 1 document of source b is in the corpus under "
        "licence X, which the policy does not allow"
    )
    other = rule.model_copy(update={"expectation": "match_regex", "values": (), "regex": "MIT"})
    [result] = run_suite(frame_of(rows), [other], "licences")
    assert result.detail.startswith("licence matches /MIT/ in 1 of 3 rows, required in all")
    [passed] = run_suite(frame_of(rows[:1]), [rule], "licences")
    assert passed.detail == "licence is one of 1 allowed value in 1 of 1 row, required in all"
    choices = [{"source": "a", "licence": f"MIT {word} X", "documents": 1} for word in ("OR", "AND")]
    [result] = run_suite(frame_of(choices), [rule], "licences")
    assert (result.status, result.unexpected) == ("fail", 1)  # one side of an OR is enough
    assert result.detail.startswith("1 document of source a is in the corpus under licence MIT AND X, which")
