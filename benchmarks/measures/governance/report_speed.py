"""Cost of a report of a large run: 10,000 steps in two attempts, 1,000 shards in each stage, and its verification.

The root is synthetic and true: every file is written by the project's own writers, every manifest lists and hashes its
files, counts are those of the shards, and the report verifies. Only the numbers are drawn, not trained.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.measures.goals import Goal, cpu_seconds, figure, peak_mb
from governance.files import write_json
from governance.manifest import Input, Manifest, describe, write_manifest

STEPS, SHARDS = 10_000, 1_000
_SOURCES = tuple(f"source{number:02d}" for number in range(12))
_GATES = 8
_REASONS = ("too_few_words", "wrong_language", "repeated_lines")
_TOKENS = 512 * 1024  # a step


def report_of_a_large_run(quick: bool) -> list[Goal]:
    """Seconds and bytes of the report; `quick` has fewer documents in a shard."""
    from data_pipeline.pii.detect import replace_all
    from governance.reports.recompute import recompute
    from governance.reports.report import report
    from governance.stage import Runtime

    rows = 100 if quick else 1_000
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        artifacts, verdict = root_of_a_large_run(root, rows)
        wall, began = time.perf_counter(), cpu_seconds()
        made = report(artifacts, verdict, root, Runtime(root), replace_all)
        seconds, wall = cpu_seconds() - began, time.perf_counter() - wall
        page, facts = (root / made.folder / name for name in ("report.html", "report.json"))
        began = cpu_seconds()
        checked = recompute(made, root, replace_all)
        again = cpu_seconds() - began
        note = f"{STEPS:,} steps, {SHARDS:,} shards of {rows:,} documents"
        return [
            Goal("report.cpu_seconds", seconds, 5.0, "<=", note),
            figure("report.wall_seconds", wall, "neighbours count here"),
            Goal("report.page_mb", page.stat().st_size / 1e6, 3.0, "<="),
            Goal("report.json_mb", facts.stat().st_size / 1e6, 3.0, "<="),
            Goal("report.faults", len(checked.mismatches), 0, "<=", f"of {checked.numbers:,} numbers computed again"),
            figure("report.verify_cpu_seconds", again),
            figure("report.peak_mb", peak_mb(), "with the making of the root"),
        ]


def root_of_a_large_run(root: Path, rows: int) -> tuple[dict[str, Manifest], dict[str, Any]]:
    """The artifacts of a run that is over, and its verdict."""
    draw, made = random.Random(7), {}

    def add(stage: str, inputs: list[Input], stats: dict[str, Any], **more: Any) -> list[Input]:
        made[stage] = _manifest(root, stage, inputs, stats, **more)
        return [made[stage].as_input()]

    files = [
        Input(stage="file", digest=f"{n:064x}", path=f"{_SOURCES[n % 12]}/{n:05d}.jsonl.zst") for n in range(SHARDS)
    ]
    sources = [{"name": name, "type": "jsonl", "licence": "CC-BY-4.0"} for name in _SOURCES]
    raw = add("ingest", files, _counts(rows, {}), config={"sources": sources})
    gone = {reason: SHARDS * max(1, rows // 20) for reason in _REASONS}
    shards = _clean_shards(root, rows, draw)
    cleaned = add("clean", raw, _counts(rows, gone), files=shards)
    kept = add("redact", cleaned, _counts(rows - 3 * max(1, rows // 20), {}), files=_documents(root, rows))
    tokenizer = add("tokenizer", kept, {"vocabulary_size": 32_000, "parity": 1})
    tokens = {"train_tokens": 10**10, "validation_tokens": 10**7}
    encoded = add("encode", kept + tokenizer, {**_counts(rows - 3 * max(1, rows // 20), {}), **tokens},
                  files=_token_features(root, rows, draw))  # fmt: skip
    policy = {"name": "large", "licences": {"allowed": ["CC-BY-4.0"]}, "gate": _gates()}
    add("audit", encoded, {}, config={"policy": policy}, files=_audit(root, draw))
    add("train", encoded, _trained(), config={"train": {"steps": STEPS}}, files=_training(root, draw))
    _ledger(root, made)
    return made, _verdict(root, made)


def _key(stage: str) -> str:
    return (stage.encode().hex() * 32)[:64]


def _folder(root: Path, stage: str) -> Path:
    return root / stage / _key(stage)[:16]


def _manifest(
    root: Path, stage: str, inputs: list[Input], stats: dict[str, Any], config: Any = None, files: Any = ()
) -> Manifest:
    joules = 1000.0 * (len(stage) + 1)
    energy = {
        "joules": joules, "low": joules * 0.9, "high": joules * 1.1, "method": "RAPL", "scope": "node",
        "seconds": 60.0, "coverage": {"measured": ["package"], "missing": []}, "parts": [], "carbon": None,
    }  # fmt: skip
    run = {
        "started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T01:00:00Z", "command": ["assay", "run"],
        "host": {"name": "node1", "cpus": 64}, "packages": {"numpy": "2.4.0"}, "energy": energy,
    }  # fmt: skip
    outputs = tuple(describe(path, root) for path in files)
    made = Manifest(stage=stage, version=1, key=_key(stage), config=config or {}, inputs=tuple(inputs), outputs=outputs,
                    stats=stats, run=run)  # fmt: skip
    write_manifest(made, root)
    return made


def _counts(rows: int, removed: dict[str, int]) -> dict[str, Any]:
    """Counts of a stage over all shards, each shard of one source."""

    def of(shards: int) -> dict[str, Any]:
        gone = {reason: count * shards // SHARDS for reason, count in removed.items()}
        came, kept = rows * shards, rows * shards - sum(gone.values())
        return {"documents_in": came, "documents_kept": kept, "bytes_in": 4000 * came, "bytes_kept": 4000 * kept,
                "removed": gone}  # fmt: skip

    each = {name: len(range(index, SHARDS, len(_SOURCES))) for index, name in enumerate(_SOURCES)}
    return {**of(SHARDS), "by_source": {name: of(count) for name, count in each.items()}}


def _table(path: Path, schema: Any, columns: dict[str, list[Any]]) -> Path:
    from data_pipeline.documents import write_table

    rows = len(next(iter(columns.values())))
    empty = {"string": "", "large_string": "", "int64": 0, "double": 0.0, "bool": False,
             "fixed_size_binary[16]": bytes(16)}  # fmt: skip
    filled = {field.name: columns.get(field.name, [empty[str(field.type)]] * rows) for field in schema}
    write_table(path, pa.table(filled, schema=schema))
    return path


def _clean_shards(root: Path, rows: int, draw: random.Random) -> list[Path]:
    """Features of every document and the removed ones, shard by shard."""
    from data_pipeline.documents import REMOVED_SCHEMA
    from data_pipeline.kernels.quality import FEATURES

    kinds = [("id", pa.string()), ("bytes", pa.int64()), ("language_confidence", pa.float64())]
    schema = pa.schema([*kinds, *((name, pa.float64()) for name in FEATURES), ("kept", pa.bool_())])
    folder, each, paths = _folder(root, "clean"), max(1, rows // 20), []
    for shard in range(SHARDS):
        shares = [draw.random() for _ in range(rows)]
        columns: dict[str, list[Any]] = {name: shares for name in ("language_confidence", *FEATURES)}
        columns |= {"id": [f"{_SOURCES[shard % 12]}/{shard}#{n}" for n in range(rows)],
                    "words": [float(int(math.exp(4 + 6 * share))) for share in shares],
                    "bytes": [int(math.exp(6 + 6 * share)) for share in shares],
                    "kept": [n >= 3 * each for n in range(rows)]}  # fmt: skip
        paths.append(_table(folder / "features" / f"{shard:06d}.parquet", schema, columns))
        gone = {
            "id": columns["id"][: 3 * each],
            "text": ["It was removed, and here is why. " * 12] * (3 * each),
            "reason": [reason for reason in _REASONS for _ in range(each)],
            "evidence": ["words=3"] * (3 * each),
        }
        paths.append(_table(folder / "removed" / f"{shard:06d}.parquet", REMOVED_SCHEMA, gone))
    return paths


def _documents(root: Path, rows: int) -> list[Path]:
    """Shards of the documents that stayed: a few of each, as a report reads the first ones only."""
    from data_pipeline.documents import DOCUMENT_SCHEMA

    few, folder = min(rows, 20), _folder(root, "redact") / "documents"
    texts, paths = ["A document that stayed, of some length. " * 20] * few, []
    for shard in range(SHARDS):
        name = _SOURCES[shard % 12]
        columns = {"id": [f"{name}/{shard}#{n}" for n in range(few)], "source": [name] * few, "text": texts}
        paths.append(_table(folder / f"{shard:06d}.parquet", DOCUMENT_SCHEMA, columns))
    return paths


def _token_features(root: Path, rows: int, draw: random.Random) -> list[Path]:
    from data_pipeline.tokens.encode import FEATURES_SCHEMA

    folder = _folder(root, "encode") / "token_features"
    return [
        _table(folder / f"{shard:06d}.parquet", FEATURES_SCHEMA,
               {"tokens": [draw.randrange(20, 20_000) for _ in range(rows)]})
        for shard in range(SHARDS)
    ]  # fmt: skip


def _gates() -> list[dict[str, Any]]:
    return [
        {"id": f"documents.gate{n}", "expectation": "between", "column": f"feature{n}", "min": 0, "max": 1,
         "owner": "data", "why": "So that what is measured for each shard stays in its bounds.", "severity": "critical"}
        for n in range(_GATES)
    ]  # fmt: skip


def _audit(root: Path, draw: random.Random) -> list[Path]:
    """A result of each gate on each shard; one in a thousand does not pass."""
    from governance.gate.decision import CheckResult

    results = []
    for gate in range(_GATES):
        for shard in range(SHARDS):
            bad = draw.random() < 1e-3
            results.append(
                CheckResult(f"documents.gate{gate}", f"clean/documents/{shard:06d}", "inconclusive" if bad else "pass",
                            round(draw.random(), 4), 1000, 0, "too few rows" if bad else "")
            )  # fmt: skip
    folder = _folder(root, "audit")
    write_json(folder / "results.json", [asdict(result) for result in results])
    write_json(folder / "representation.json", {"rows": [], "documents": {"en": 1000}})
    held = [{"source": name, "licence": "CC-BY-4.0", "documents": 1000} for name in _SOURCES]
    write_json(folder / "licences.json", held)
    return [folder / name for name in ("results.json", "representation.json", "licences.json")]


def _trained() -> dict[str, Any]:
    return {"steps": STEPS, "tokens": STEPS * _TOKENS, "parameters": 1_300_000_000, "final_loss": 2.51,
            "validation_loss": 2.55, "bits_per_byte": 0.81}  # fmt: skip


def _training(root: Path, draw: random.Random) -> list[Path]:
    """The record of two attempts through the trainer's own writer; the first fell 40 steps behind its checkpoint."""
    from pretrain.config.training import TrackingConfig
    from pretrain.metrics.metrics_log import open_record
    from pretrain.metrics.run_identity import RunIdentity

    folder = _folder(root, "train")
    for first, last in ((1, STEPS // 2 + 40), (STEPS // 2 + 1, STEPS)):
        about: Any = RunIdentity(None, "f" * 64)  # type: ignore[arg-type]  # only mirrors read the recipe, and there are none
        with open_record(folder, TrackingConfig(mode="disabled"), about, writes=True) as (record, _):
            record("start", first - 1, device="synthetic", flops_per_token=8e9, peak_source="synthetic")
            for step in range(first, last + 1):
                fall = math.exp(-step / 2000)
                record("step", step, loss=2.5 + 8 * fall + draw.gauss(0, 0.02), lr=1e-3 * fall, grad_norm=1.0 + fall,
                       tokens=step * _TOKENS, seconds=0.9, tokens_per_second=5e5 + draw.gauss(0, 1e4),
                       mfu=0.4 + fall / 50, mfu_gemm=0.6, joules_per_token=0.01 + fall / 100,
                       gradient_norms={f"group{n}": draw.random() for n in range(6)},
                       by_origin={f"{name}/en": 2.5 + fall for name in _SOURCES})  # fmt: skip
                if step % 100 == 0:
                    record("validation", step, loss=2.55 + 8 * fall, bits_per_byte=0.8 + fall)
                if step % 997 == 0:
                    record("skipped", step, reason="spike", z=12.5, loss=9.0, grad_norm=40.0)
    write_json(folder / "losses.json", {})
    return [folder / "losses.json"]


def _ledger(root: Path, made: dict[str, Manifest]) -> None:
    """An interval of each attempt, a line every five seconds of 10,000 steps as a training run's meter writes them."""
    from governance.energy.ledger import append, host_ledger

    path = host_ledger(root / "energy.jsonl", "node1")
    marks = {"artifact": made["train"].folder, "resumed_from": 0}
    for name, first, last, outcome in (("a", 0, STEPS // 2 + 40, "wasted"), ("b", STEPS // 2, STEPS, "surviving")):
        about = {"interval": name, "attempt": name, "stage": "train", "host": "node1", "process": [1, 0], "every": 5.0,
                 "method": "RAPL"}  # fmt: skip
        marks["resumed_from"] = first
        for step in range(first, last + 1, 5):
            count = (step - first) * 5_000_000
            kind = "begin" if step == first else "end" if step + 5 > last else "beat"
            ending = {"outcome": outcome, "cause": "" if outcome == "surviving" else "killed"} if kind == "end" else {}
            append(path, kind, about, millijoules=count, low=count * 9 // 10, high=count * 11 // 10,
                   marks={**marks, "step": step, "checkpoint": step // 500 * 500}, **ending)  # fmt: skip


def _verdict(root: Path, made: dict[str, Manifest]) -> dict[str, Any]:
    """A signed verdict over all token shards, where the gate leaves it."""
    from governance.gate.verdict import PREDICATE_TYPE
    from governance.reports.facts.evidence_ids import read_stated_verdict, verdict_name
    from governance.signing.dsse import create_key, private_key, sign, statement

    tokens = made["encode"]
    predicate = {
        "verdict": "PASS", "policy": {"name": "large", "digest": "ab" * 32}, "summary": {"pass": _GATES * SHARDS},
        "audit": {"path": made["audit"].path, "digest": made["audit"].digest}, "reasons": [], "waivers": [],
        "corpus": {"path": tokens.path, "digest": tokens.digest}, "signed_at": "2026-01-01T00:00:00Z",
        "expires": "2026-02-01T00:00:00Z",
    }  # fmt: skip
    subjects = {tokens.path: tokens.digest, **{output.path: output.sha256 for output in tokens.outputs}}
    create_key(root / "key.pem")
    path = root / verdict_name(predicate)
    write_json(path, sign(statement(subjects, PREDICATE_TYPE, predicate), private_key(root / "key.pem")))
    return json.loads(json.dumps(read_stated_verdict(path)))  # type: ignore[no-any-return]
