"""The audit: every gate has a result, nothing is dropped, the same corpus gives the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from governance.checks.audit import REQUIRED, AuditConfig, audit
from governance.checks.bias.bias import BiasConfig, bias_audit
from governance.errors import ManifestError, MissingInput
from governance.gate.policy import Gate, Policy
from governance.manifest import Manifest, describe, verify, write_manifest
from governance.stage import Runtime
from tests.manifests import manifest_of

GATES = [
    {"id": "documents.rows", "suite": "documents", "expectation": "row_count_between", "min": 1.0},
    {"id": "documents.words", "suite": "documents", "expectation": "between", "column": "words", "min": 5.0},
    {"id": "documents.language", "suite": "documents", "expectation": "not_null", "column": "language"},
    {"id": "licences.allowed", "suite": "licences", "expectation": "in_set", "column": "licence"},
    {"id": "representation.rows", "suite": "representation", "expectation": "row_count_between", "min": 1.0},
    {"id": "sources.lost", "suite": "sources", "expectation": "between", "column": "lost", "min": 0.0, "max": 0.0},
    {"id": "sources.torn", "suite": "sources", "expectation": "between", "column": "torn_files", "max": 0.0},
    {"id": "tokens.round_trip", "suite": "tokens", "expectation": "between", "column": "round_trip_failed", "max": 0.0},
]  # fmt: skip


def policy(*more: dict[str, object]) -> Policy:
    gates = tuple(Gate(owner="data", why="a reason for the test", **fields) for fields in [*GATES, *more])
    return Policy(name="test", owners={"data": ("someone",)}, licences={"allowed": ("MIT", "CC0-1.0")}, gate=gates)


def corpus(root: Path, kept: int = 80, removed: int = 20, licence: str = "MIT") -> dict[str, Manifest]:
    """Two clean shards of one source; `kept` and `removed` documents in each."""
    root.mkdir(parents=True, exist_ok=True)
    number = kept + removed
    ids = [[f"s/{part}#{index}" for index in range(number)] for part in range(2)]
    stats = funnel(2 * number, 2 * kept)
    after = funnel(2 * kept, 2 * kept)
    features = [
        pa.table(
            {
                "id": pa.array(own, pa.string()),
                "language": pa.array(["en"] * number, pa.string()),
                "words": pa.array([9] * number, pa.int64()),
                "kept": pa.array([True] * kept + [False] * removed, pa.bool_()),
            }
        )
        for own in ids
    ]
    documents = [
        pa.table(
            {
                "id": pa.array(own[:kept], pa.string()),
                "text": pa.array(["she works" if i % 2 else "he works" for i in range(kept)], pa.large_string()),
                "source": pa.array(["s"] * kept, pa.string()),
                "language": pa.array(["en"] * kept, pa.string()),
                "licence": pa.array([licence] * kept, pa.string()),
                "url": pa.array([""] * kept, pa.string()),
            }
        )
        for own in ids
    ]
    raw = {"quarantined": 0, "torn_files": 0}
    ingested = funnel(2 * number, 2 * number)
    artifacts = {
        "ingest": made("ingest", root, {}, {**ingested, **raw, "by_source": {"s": {**ingested, **raw}}}),
        "clean": made("clean", root, {"features": features}, {**stats, "by_source": {"s": stats}}),
        "dedup": made("dedup", root, {}, {**after, "by_source": {"s": after}}),
        "redact": made("redact", root, {"documents": documents}, {**after, "by_source": {"s": after}}),
        "tokenizer": made("tokenizer", root, {}, {}),
        "encode": made("encode", root, {}, {**after, "by_source": {"s": after}, "round_trip_failed": 0}),
    }
    artifacts["bias"] = bias_audit(artifacts, BiasConfig(), Runtime(root))
    return artifacts


def listed_anew(manifest: Manifest, root: Path) -> Manifest:
    """The manifest, with the files as they are now."""
    return manifest.model_copy(update={"outputs": tuple(describe(root / of.path, root) for of in manifest.outputs)})


def funnel(documents: int, kept: int) -> dict[str, object]:
    removed = {"removed": {"short": documents - kept}}
    return {"documents_in": documents, "documents_kept": kept, "bytes_in": 0, "bytes_kept": 0, **removed}


def made(stage: str, root: Path, files: dict[str, list[pa.Table]], stats: dict[str, object]) -> Manifest:
    outputs = []
    for role, tables in files.items():
        for index, table in enumerate(tables):
            path = root / stage / ("0" * 16) / role / f"{index:05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path)
            outputs.append(describe(path, root))
    manifest = manifest_of(stage, outputs, stats=stats)
    write_manifest(manifest, root)
    return manifest


def results(manifest: Manifest, root: Path) -> dict[tuple[str, str], dict[str, object]]:
    rows = json.loads((root / manifest.folder / "results.json").read_bytes())
    assert rows == sorted(rows, key=lambda row: (row["gate"], row["subject"]))
    found = {(row["gate"], row["subject"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def test_a_sound_corpus_passes_every_gate(tmp_path):
    manifest = audit(corpus(tmp_path), policy(), AuditConfig(), Runtime(tmp_path))
    found = results(manifest, tmp_path)
    assert {row["status"] for row in found.values()} == {"pass"}
    assert len(found) == 3 * 2 + 5, "the documents' gates judge each of the two shards"
    assert manifest.stats == {"pass": 11, "fail": 0, "inconclusive": 0, "error": 0, "missing": 0, "expectations": 11}
    assert verify(manifest, tmp_path) == []
    assert [item.stage for item in manifest.inputs] == [*REQUIRED, "bias"]
    rows = json.loads((tmp_path / manifest.folder / "representation.json").read_bytes())
    female = next(row for row in rows["rows"] if row["group"] == "female")
    assert (rows["documents"], female["documents"], female["share"]) == ({"en": 160}, 80, 0.5)
    sources = json.loads((tmp_path / manifest.folder / "sources.json").read_bytes())
    assert [row["stage"] for row in sources if row["source"] == "s"] == ["ingest", "clean", "dedup", "redact", "encode"]


def test_the_same_corpus_gives_the_same_digest_anywhere(tmp_path):
    digests = {
        audit(corpus(root), policy(), AuditConfig(), Runtime(root)).digest for root in (tmp_path / "a", tmp_path / "b")
    }
    assert len(digests) == 1


def test_policy_config_and_lists_are_part_of_the_key(tmp_path):
    artifacts, runtime = corpus(tmp_path), Runtime(tmp_path)
    first = audit(artifacts, policy(), AuditConfig(), runtime)
    other = policy({"id": "sources.rows", "suite": "sources", "expectation": "row_count_between", "min": 2.0})
    keys = {
        first.key,
        audit(artifacts, other, AuditConfig(), runtime).key,
        audit(artifacts, policy(), AuditConfig(min_documents=10), runtime).key,
    }
    assert len(keys) == 3
    assert audit(artifacts, policy(), AuditConfig(), Runtime(tmp_path, make=False)).digest == first.digest


def test_one_bad_shard_is_found_and_named(tmp_path):
    artifacts = corpus(tmp_path)
    path = artifacts["clean"].files("features", tmp_path)[1]
    table = pq.read_table(path)
    pq.write_table(table.set_column(2, "words", pa.array([1] + [9] * 99)), path)
    artifacts["clean"] = listed_anew(artifacts["clean"], tmp_path)
    found = results(audit(artifacts, policy(), AuditConfig(), Runtime(tmp_path)), tmp_path)
    bad = {key: row for key, row in found.items() if row["status"] != "pass"}
    ((gate, subject),) = bad
    assert (gate, subject) == ("documents.words", "clean/0000000000000000/features/00001.parquet")
    assert bad[gate, subject]["observed"] == 1.0


def test_a_forbidden_licence_is_found_and_named(tmp_path):
    artifacts = corpus(tmp_path, licence="NOASSERTION")
    row = results(audit(artifacts, policy(), AuditConfig(), Runtime(tmp_path)), tmp_path)[
        "licences.allowed", "licences"
    ]
    assert row["status"] == "fail"
    assert "160 documents of source s are in the corpus under licence NOASSERTION" in row["detail"]


def test_a_corpus_of_which_nothing_is_left_fails_and_does_not_crash(tmp_path):
    artifacts = corpus(tmp_path, kept=0, removed=5)
    found = results(audit(artifacts, policy(), AuditConfig(), Runtime(tmp_path)), tmp_path)
    by_gate: dict[str, set[object]] = {}
    for (gate, _), row in found.items():
        by_gate.setdefault(gate, set()).add(row["status"])
    assert by_gate == {
        "documents.rows": {"fail"},
        "documents.words": {"inconclusive"},
        "documents.language": {"inconclusive"},
        "licences.allowed": {"inconclusive"},
        "representation.rows": {"fail"},
        "sources.lost": {"pass"},
        "sources.torn": {"pass"},
        "tokens.round_trip": {"pass"},
    }


def test_without_shards_or_counts_the_gates_are_missing_or_in_error(tmp_path):
    artifacts = corpus(tmp_path)
    artifacts["clean"] = made("clean", tmp_path, {}, funnel(0, 0))
    artifacts["encode"] = made("encode", tmp_path, {}, {})
    found = results(audit(artifacts, policy(), AuditConfig(), Runtime(tmp_path)), tmp_path)
    assert found["documents.words", "documents"]["status"] == "missing"
    assert found["tokens.round_trip", "tokens"]["status"] == "error"
    assert {gate for gate, _ in found} == {fields["id"] for fields in GATES}


def test_a_missing_column_is_an_error_for_its_gate_alone(tmp_path):
    more = {"id": "documents.nowhere", "suite": "documents", "expectation": "not_null", "column": "nowhere"}
    manifest = audit(corpus(tmp_path), policy(more), AuditConfig(), Runtime(tmp_path))
    assert {k for k, row in results(manifest, tmp_path).items() if row["status"] != "pass"} == {
        ("documents.nowhere", f"clean/0000000000000000/features/0000{part}.parquet") for part in range(2)
    }
    assert manifest.stats["error"] == 2


def test_what_is_not_there_or_torn_raises_and_commits_nothing(tmp_path):
    artifacts, runtime = corpus(tmp_path), Runtime(tmp_path)
    with pytest.raises(MissingInput, match="redact"):
        audit({name: value for name, value in artifacts.items() if name != "redact"}, policy(), AuditConfig(), runtime)
    artifacts["redact"].files("documents", tmp_path)[0].write_bytes(b"PAR1")
    with pytest.raises(ManifestError, match="has 4 bytes, its manifest states"):
        audit(artifacts, policy(), AuditConfig(), runtime)
    assert list(tmp_path.glob("audit/*/manifest.json")) == []
