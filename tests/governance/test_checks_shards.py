"""The audit over shards: ids over the whole corpus, drift, the stage bias, and workers that lose, double or die."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

import pandas as pd
import pyarrow as pa
import pytest

from governance.checks import shards as by_shard
from governance.checks.audit import AuditConfig, audit, tables_again
from governance.checks.data_docs import data_docs, write_data_docs
from governance.checks.expectations import run_suite
from governance.checks.shards import sketch_corpus
from governance.checks.suites import SuiteTable
from governance.checks.tokens import TokenReaders
from governance.errors import ConfigError, ManifestError, PipelineError
from governance.files import write_json
from governance.gate.policy import Gate, Policy
from governance.manifest import describe, verify
from governance.parallel import map_shards
from governance.stage import Runtime
from tests.governance.test_checks_audit import corpus, funnel, made, results
from tests.governance.test_checks_tokens import Decoder, Fake

GATES = [
    {"id": "raw.ids", "suite": "raw", "expectation": "between", "column": "repeats", "max": 0.0},
    {"id": "raw.digests", "suite": "raw", "expectation": "between", "column": "digest_fits", "min": 1.0},
    {"id": "raw.licence", "suite": "raw", "expectation": "not_null", "column": "licence"},
    {"id": "documents.words", "suite": "documents", "expectation": "between", "column": "words", "min": 5.0},
]
DRIFT = {
    "id": "drift.psi", "suite": "drift", "expectation": "between", "column": "psi", "max": 0.1, "max_missing": 0.9,
}  # fmt: skip


def policy(*more):
    gates = tuple(Gate(owner="data", why="a reason for the test", **fields) for fields in [*GATES, *more])
    return Policy(name="test", owners={"data": ("someone",)}, licences={"allowed": ("MIT",)}, gate=gates)


def raw(ids, source="s", licence="MIT"):
    texts = [f"text of {name}" for name in ids]
    count = len(ids)
    return pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "text": pa.array(texts, pa.large_string()),
            "source": pa.array([source] * count, pa.string()),
            **{
                name: pa.array([value] * count, pa.string())
                for name, value in {"url": "", "language": "", "licence": licence, "file": "a"}.items()
            },
            "sha256": pa.array([hashlib.sha256(text.encode()).hexdigest() for text in texts], pa.string()),
            "position": pa.array(range(count), pa.int64()),
            "opt_out": pa.array([""] * count, pa.string()),
            "opt_out_fetched": pa.array([""] * count, pa.string()),
        }
    )


def whole(root, shards):
    """A corpus with these shards of ingest, each (ids, source)."""
    artifacts = corpus(root)
    by_source: dict[str, int] = {}
    for ids, source in shards:
        by_source[source] = by_source.get(source, 0) + len(ids)
    stats = {name: funnel(count, count) for name, count in by_source.items()}
    total = sum(by_source.values())
    tables = [raw(ids, source) for ids, source in shards]
    artifacts["ingest"] = made("ingest", root, {"documents": tables}, {**funnel(total, total), "by_source": stats})
    return artifacts


def names(first, count=5):
    return [f"s/{number}" for number in range(first, first + count)]


SHARDS = [(names(0), "s"), (names(5), "s"), (names(10), "t")]


def bad(manifest, root):
    return {key: row for key, row in results(manifest, root).items() if row["status"] != "pass"}


def test_a_sound_corpus_passes_with_one_result_a_shard_and_gate(tmp_path):
    checked = audit(whole(tmp_path, SHARDS), policy(), AuditConfig(), Runtime(tmp_path))
    assert checked.stats["pass"] == checked.stats["expectations"] == 3 * 3 + 2
    assert verify(checked, tmp_path) == []
    assert len(checked.files("id_hashes", tmp_path)) == 3


def test_an_id_that_is_in_two_shards_is_found_in_both(tmp_path):
    artifacts = whole(tmp_path, [(names(0), "s"), (["s/9", "s/3"], "s"), (names(10), "t")])
    found = bad(audit(artifacts, policy(), AuditConfig(), Runtime(tmp_path)), tmp_path)
    assert [(gate, subject[-13:], row["status"]) for (gate, subject), row in found.items()] == [
        ("raw.ids", f"0000{part}.parquet", "fail") for part in (0, 1)
    ]
    assert all("s/3: 1" in row["detail"] for row in found.values())


def test_shards_that_hold_other_numbers_than_the_manifest_are_an_error(tmp_path):
    artifacts = whole(tmp_path, SHARDS)
    wrong = {"s": funnel(10, 10), "t": funnel(6, 6)}
    artifacts["ingest"] = artifacts["ingest"].model_copy(update={"stats": {**funnel(16, 16), "by_source": wrong}})
    found = bad(audit(artifacts, policy(), AuditConfig(), Runtime(tmp_path)), tmp_path)
    assert {(gate, row["status"]) for (gate, _), row in found.items()} == {
        ("raw.ids", "error"), ("raw.digests", "error"), ("raw.licence", "error")
    }  # fmt: skip
    assert all("'t': 5" in row["detail"] for row in found.values())


# --- workers that lose, double, or die


def losing(change):
    """`map_shards`, with what came back changed."""

    def mapped(recipe, function, shards, folder, runtime, suffix=".parquet"):
        done = map_shards(recipe, function, shards, folder, runtime, suffix)
        return change(done) if function is by_shard.judge_raw else done

    return mapped


@pytest.mark.parametrize(
    ("change", "status"), [(lambda done: done[:-1], "missing"), (lambda done: [*done, done[-1]], "error")]
)
def test_a_lost_or_doubled_shard_closes(tmp_path, monkeypatch, change, status):
    monkeypatch.setattr(by_shard, "map_shards", losing(change))
    found = bad(audit(whole(tmp_path, SHARDS), policy(), AuditConfig(), Runtime(tmp_path)), tmp_path)
    subjects = {(gate, subject[-13:]): row["status"] for (gate, subject), row in found.items()}
    assert {subjects[gate, "00002.parquet"] for gate in ("raw.ids", "raw.digests", "raw.licence")} == {status}


def test_a_finding_that_was_altered_on_disk_is_made_again(tmp_path):
    artifacts = whole(tmp_path, SHARDS)
    first = audit(artifacts, policy(), AuditConfig(), Runtime(tmp_path))
    [path, *_] = first.files("raw", tmp_path)
    path.write_text(path.read_text().replace('"unexpected": 0', '"unexpected": 7'))
    (tmp_path / first.path).unlink()
    again = audit(artifacts, policy(), AuditConfig(), Runtime(tmp_path))
    assert again.digest == first.digest
    assert verify(again, tmp_path) == []


def test_an_engine_that_breaks_in_a_worker_is_an_error_of_each_gate(tmp_path, monkeypatch):
    from governance.checks import expectations

    def broken(table, built):
        raise RuntimeError("no engine")

    monkeypatch.setattr(expectations, "_execute", broken)
    checked = audit(whole(tmp_path, SHARDS), policy(), AuditConfig(), Runtime(tmp_path))
    assert checked.stats["error"] == checked.stats["expectations"] == 3 * 3 + 2


def test_an_audit_whose_worker_was_killed_leaves_nothing_and_goes_on(tmp_path):
    artifacts = whole(tmp_path / "killed", SHARDS)
    write = by_shard.write_finding

    def killed(section, table, shard, path):
        if "ingest" in shard.subject and "00001" in shard.subject:
            os.kill(os.getpid(), signal.SIGKILL)
        write(section, table, shard, path)

    def audit_that_dies():
        by_shard.write_finding = killed
        audit(artifacts, policy(), AuditConfig(), Runtime(tmp_path / "killed"))

    child = multiprocessing.get_context("fork").Process(target=audit_that_dies)
    child.start()
    child.join(600)
    assert child.exitcode == -signal.SIGKILL
    assert list((tmp_path / "killed").glob("audit/*/manifest.json")) == []
    assert len(list((tmp_path / "killed").glob("audit/*/raw/*.json"))) == 1
    after = audit(artifacts, policy(), AuditConfig(), Runtime(tmp_path / "killed"))
    clean = audit(whole(tmp_path / "other", SHARDS), policy(), AuditConfig(), Runtime(tmp_path / "other"))
    assert after.digest == clean.digest


def deadly(path):
    """A reader that ends its process."""
    os.kill(os.getpid(), signal.SIGKILL)


def leaving(path):
    """A reader that ends its process without an exception."""
    os._exit(3)


def broken(path):
    """A reader that has a defect."""
    raise ValueError(f"cannot make sense of {path}")


def sound(path):
    return Fake()


def decoder(tokenizer, root):
    return Decoder()


TOKENS = [
    {"suite": "token_shards", "expectation": "between", "id": f"token_shards.{name}", "column": column, "max": 0.0}
    for name, column in (("ids", "ids_above_vocabulary"), ("sums", "tokens_off"))
]


def encoded(root):
    artifacts = whole(root, SHARDS)
    stats = {**artifacts["encode"].stats, "train_tokens": 24, "train_documents": 8}
    artifacts["encode"] = made("encode", root, {"train": [pa.table({"x": [part]}) for part in range(2)]}, stats)
    return artifacts


def test_a_worker_process_that_is_killed_ends_the_audit_and_the_next_one_goes_on(tmp_path, monkeypatch):
    """Two workers; in the end every byte is that of one process."""
    other = tmp_path / "one"
    alone = audit(encoded(other), policy(*TOKENS), AuditConfig(), Runtime(other), TokenReaders(sound, decoder))
    monkeypatch.setattr(by_shard, "SHARDS_PER_WORKER", 1)
    artifacts, runtime = encoded(tmp_path), Runtime(tmp_path, workers=2)
    for reader, words in ((leaving, "left with status 3"), (deadly, "was killed")):
        with pytest.raises(PipelineError, match=f"a worker process {words}"):
            audit(artifacts, policy(*TOKENS), AuditConfig(), runtime, TokenReaders(reader, decoder))
    assert list(tmp_path.glob("audit/*/manifest.json")) == []
    checked = audit(artifacts, policy(*TOKENS), AuditConfig(), runtime, TokenReaders(sound, decoder))
    assert bad(checked, tmp_path) == {}
    assert checked.digest == alone.digest
    rows = json.loads((tmp_path / checked.folder / "token_shards.json").read_bytes())
    assert [(row["shard"][-13:], row["tokens"], row["tokens_off"]) for row in rows] == [
        ("00000.parquet", 12, 0), ("00001.parquet", 12, 0), ("(all)", 24, 0)
    ]  # fmt: skip


def test_a_reader_with_a_defect_never_passes(tmp_path):
    readers = TokenReaders(broken, decoder)
    checked = audit(encoded(tmp_path), policy(*TOKENS), AuditConfig(), Runtime(tmp_path), readers)
    assert {gate: row["status"] for (gate, _), row in bad(checked, tmp_path).items()} == {
        "token_shards.ids": "error", "token_shards.sums": "error"
    }  # fmt: skip
    rows = json.loads((tmp_path / checked.folder / "token_shards.json").read_bytes())
    assert "cannot make sense of encode/" in rows[0]["problem"]


def test_token_shards_of_which_one_has_no_row_are_an_error(tmp_path, monkeypatch):
    def lost(recipe, function, shards, folder, runtime, suffix=".parquet"):
        done = map_shards(recipe, function, shards, folder, runtime, suffix)
        return done[:1] if function is by_shard.count_tokens else done

    monkeypatch.setattr(by_shard, "map_shards", lost)
    readers = TokenReaders(sound, decoder)
    checked = audit(encoded(tmp_path), policy(*TOKENS), AuditConfig(), Runtime(tmp_path), readers)
    found = bad(checked, tmp_path)
    assert {gate: row["status"] for (gate, _), row in found.items()} == {
        "token_shards.ids": "error", "token_shards.sums": "error"
    }  # fmt: skip
    assert all("train/00001.parquet" in row["detail"] for row in found.values())


# --- drift, bias


def test_drift_against_the_corpus_itself_and_against_another(tmp_path):
    artifacts = whole(tmp_path, SHARDS)
    reference = sketch_corpus(artifacts["clean"], tmp_path)
    config = AuditConfig(reference="somewhere.json", min_drift_documents=50)
    checked = audit(artifacts, policy(DRIFT), config, Runtime(tmp_path), reference=reference)
    assert bad(checked, tmp_path) == {}
    rows = json.loads((tmp_path / checked.folder / "drift.json").read_bytes())
    assert [(row["feature"], row["language"], row["psi"], row["n"]) for row in rows] == [
        ("words", "(all)", 0.0, 160), ("words", "en", 0.0, 160)
    ]  # fmt: skip
    assert checked.config["audit"]["reference"] == "", "where it lies decides nothing"
    other = {"words": {"en": {"bins": [bin + 40 for bin in reference["words"]["en"]["bins"]],
                              "counts": reference["words"]["en"]["counts"], "missing": 0}}}  # fmt: skip
    far = audit(artifacts, policy(DRIFT), config, Runtime(tmp_path), reference=other)
    assert far.key != checked.key
    [row] = bad(far, tmp_path).values()
    assert (row["gate"], row["status"]) == ("drift.psi", "fail")


def test_without_a_reference_a_gate_on_drift_is_inconclusive(tmp_path):
    checked = audit(whole(tmp_path, SHARDS), policy(DRIFT), AuditConfig(), Runtime(tmp_path))
    found = {key: row["status"] for key, row in bad(checked, tmp_path).items()}
    assert found == {("drift.psi", "drift"): "inconclusive"}


def bias(root, tables):
    manifest = made("bias", root, {}, {})
    path = root / manifest.folder / "tables.json"
    write_json(path, tables)
    return manifest.model_copy(update={"outputs": (describe(path, root),)})


ROW = {
    "metric": "keep_ratio", "language": "en", "axis": "gender", "group": "female", "against": "male", "stage": "",
    "instrument": "", "value": 0.7, "lower": 0.6, "upper": 0.8, "n": 900, "p": None, "q": None, "note": None,
}  # fmt: skip
IMPACT = {"id": "impact.ratio", "suite": "impact", "expectation": "between", "column": "value", "min": 0.8}


def test_the_tables_of_the_stage_bias_are_judged(tmp_path):
    artifacts = whole(tmp_path, SHARDS)
    del artifacts["bias"]
    gates = policy(IMPACT, {**IMPACT, "id": "tone.gap", "suite": "tone"})
    without = bad(audit(artifacts, gates, AuditConfig(), Runtime(tmp_path)), tmp_path)
    assert {key: row["status"] for key, row in without.items()} == {
        ("impact.ratio", "impact"): "missing", ("tone.gap", "tone"): "missing"
    }  # fmt: skip
    artifacts["bias"] = bias(tmp_path, {"impact": [ROW], "tone": []})
    checked = audit(artifacts, gates, AuditConfig(), Runtime(tmp_path))
    assert checked.inputs[-1].stage == "bias"
    found = {key: row["status"] for key, row in bad(checked, tmp_path).items()}
    assert found == {("impact.ratio", "impact"): "fail", ("tone.gap", "tone"): "inconclusive"}


def test_who_is_mentioned_comes_from_the_stage_bias_where_there_is_one(tmp_path):
    artifacts = whole(tmp_path, SHARDS)
    names = {**ROW, "against": None, "stage": None, "instrument": None}
    rows = [
        {**names, "metric": "share", "value": 0.25, "lower": 0.2, "upper": 0.31, "n": 160},
        {**names, "metric": "axis_share", "value": 0.5, "lower": 0.4, "upper": 0.6, "n": 80},
        {**names, "metric": "per_million_words", "value": 2500.0, "lower": 2000.0, "upper": 3100.0, "n": 40_000},
    ]
    artifacts["bias"] = bias(tmp_path, {"representation": rows})
    gate = {
        "id": "representation.value",
        "suite": "representation",
        "expectation": "between",
        "column": "n",
        "min": 80.0,
    }
    checked = audit(artifacts, policy(gate), AuditConfig(), Runtime(tmp_path))
    assert bad(checked, tmp_path) == {}
    found = json.loads((tmp_path / checked.folder / "representation.json").read_bytes())
    assert found["documents"] == {"en": 160}
    assert found["rows"] == [
        {
            "language": "en", "axis": "gender", "group": "female", "documents": 40, "mentions": 100, "share": 0.25,
            "share_low": 0.2, "share_high": 0.31, "axis_share": 0.5, "per_million_words": 2500.0, "conclusive": True,
        }
    ]  # fmt: skip


def test_a_torn_file_of_the_stage_bias_stops_the_audit(tmp_path):
    artifacts = whole(tmp_path, SHARDS)
    artifacts["bias"] = bias(tmp_path, {})
    (tmp_path / artifacts["bias"].folder / "tables.json").write_text('{"impact": [')
    with pytest.raises(ManifestError, match=r"tables\.json"):
        audit(artifacts, policy(), AuditConfig(), Runtime(tmp_path))


# --- the engine's own pages


def test_data_docs_have_a_page_for_each_table(tmp_path, capfd):
    artifacts = whole(tmp_path, SHARDS)
    gates = policy({"id": "tokens.none", "suite": "tokens", "expectation": "not_null", "column": "nowhere"})
    checked = audit(artifacts, gates, AuditConfig(), Runtime(tmp_path))
    folder = tmp_path / "docs"
    shown = write_data_docs(tables_again(checked, artifacts, gates, Runtime(tmp_path)), gates.gates(), folder)
    assert shown == 3 + 2, "three shards of ingest, two of clean; a gate without its column is dropped"
    assert (folder / "index.html").exists()
    assert len(list(folder.glob("validations/**/*.html"))) == shown
    assert sorted(page.stem for page in folder.glob("expectations/*.html")) == sorted(
        {gate.suite for gate in gates.gates()} - {"tokens"}
    ), "one page a suite"
    [page] = folder.glob("validations/raw/audit/*/ingest-*-00001_parquet.html")
    assert "repeats" in page.read_text()
    for page in folder.rglob("*.html"):
        text = page.read_text()
        assert not re.search(r"<script|(src|<link[^>]*href)=.?(https?:)?//|url\(.?https?:", text), page
        assert "Content-Security-Policy" in text
        assert "greatexpectations.io" not in text
    index = (folder / "index.html").read_text()
    assert all((folder / link).is_file() for link in re.findall(r'href="([^"]+)"', index))
    assert index.count("<tr>") == 1 + shown
    with pytest.raises(ConfigError, match="not empty"):
        write_data_docs([], gates.gates(), folder)


def test_data_docs_judge_the_rows_that_a_gate_names(tmp_path, caplog):
    table = pd.DataFrame({"stage": ["a", "b/c", None, "b-c", "b\\c"], "value": [1.0, 9.0, 5.0, 5.0, 9.0]})
    table["long"] = "x" * 200
    limits = {"suite": "privacy", "expectation": "between", "column": "value", "max": 5}
    wheres = ({}, {"stage": "a"}, {"stage": "b/c"}, {"stage": ""}, {"long": "x" * 200}, {"none": "a"},
              {"stage": "b-c"}, {"stage": "b\\c"})  # fmt: skip
    gates = policy(*({"id": f"privacy.{n}", "where": where, **limits} for n, where in enumerate(wheres))).gates()
    gates = [gate for gate in gates if gate.suite == "privacy"]
    results = run_suite(table, gates, "privacy")
    assert [result.status for result in results] == ["fail", "pass", "fail", "pass", "fail", "error", "pass", "fail"]
    folder = tmp_path / "docs"
    assert write_data_docs([("privacy", SuiteTable("privacy", table))], gates, folder) == 7
    index = (folder / "index.html").read_text()
    assert re.findall(r"(\d) of 1 pass", index) == ["0", "1", "0", "1", "0", "1", "0"]
    assert ">privacy where stage = b-c</a>" in index
    assert all((folder / unquote(link)).is_file() for link in re.findall(r'href="([^"]+)"', index))
    assert "privacy where none = a of privacy is skipped: `where` names none; the table's columns are" in caplog.text


def test_two_that_write_data_docs_at_the_same_time_give_one_artifact(tmp_path, monkeypatch):
    """The second begins while the first writes: it waits and finds the first one's."""
    artifacts = whole(tmp_path, SHARDS)
    checked = audit(artifacts, policy(), AuditConfig(), Runtime(tmp_path))
    met = threading.Event()  # the second has reached the lock, or a table
    monkeypatch.setattr("governance.workers._wait", lambda lock, holder: met.set() or time.sleep(0.05))

    def tables(meet):
        meet()
        yield from tables_again(checked, artifacts, policy(), Runtime(tmp_path))

    def write(meet):
        return data_docs(tables(meet), policy().gates(), checked, Runtime(tmp_path))

    with ThreadPoolExecutor() as pool:
        others = []

        def begin_another():
            others.append(pool.submit(write, met.set))
            assert met.wait(300)

        first = write(begin_another)
        assert others[0].result() == first
    assert verify(first, tmp_path) == []
