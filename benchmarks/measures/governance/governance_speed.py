"""Cost of the checks: the engine on a large table, its share of a pipeline, ids, token shards, drift, hashing."""

from __future__ import annotations

import statistics
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measures.corpora import mixed, text_bytes
from benchmarks.measures.goals import Goal, cpu_seconds, figure, peak_mb

COLUMNS = ("bytes", "words", "alphabetic", "repeated", "perplexity", "stop_words", "confidence")


def features(rows: int, seed: int = 1) -> pa.Table:
    """A table of documents like that of the suite `documents`: 12 columns, 5 of them text."""
    chance = np.random.default_rng(seed)
    texts = {
        "id": pa.array([f"web/part-{number % 997}.jsonl#{number}" for number in range(rows)]),
        "source": pa.array(np.array(["wiki", "news", "code"])[chance.integers(0, 3, rows)]),
        "language": pa.array(np.array(["en", "de", "fr", "es"])[chance.integers(0, 4, rows)]),
        "licence": pa.array(np.array(["MIT", "CC0-1.0"])[chance.integers(0, 2, rows)]),
        "opt_out": pa.array(["none"] * rows),
    }
    numbers = [
        chance.integers(100, 100_000, rows), chance.integers(20, 20_000, rows), chance.random(rows),
        chance.random(rows) * 0.3, chance.gamma(2, 200, rows), chance.random(rows), chance.random(rows),
    ]  # fmt: skip
    return pa.table({**texts, **dict(zip(COLUMNS, numbers, strict=True))})


def twenty_gates() -> list[Any]:
    """Twenty rules on these columns, of every kind."""
    from governance.gate.policy import Gate

    rules: list[dict[str, Any]] = [
        {"expectation": "row_count_between", "min": 1.0},
        {"expectation": "columns_present", "values": ("id", "words", "language")},
        {"expectation": "not_null", "column": "id"},
        {"expectation": "unique", "column": "id"},
        {"expectation": "match_regex", "column": "id", "regex": "^web/"},
        {"expectation": "in_set", "column": "language", "values": ("en", "de", "fr", "es")},
        {"expectation": "in_set", "column": "licence", "values": ("MIT", "CC0-1.0")},
        {"expectation": "not_null", "column": "language", "mostly": 0.95},
        {"expectation": "match_regex", "column": "opt_out", "regex": "^none$"},
        {"expectation": "not_null", "column": "source"},
        {"expectation": "between", "column": "bytes", "min": 50.0, "max": 200_000.0},
        {"expectation": "mean_between", "column": "bytes", "min": 1000.0, "max": 100_000.0},
        {"expectation": "between", "column": "words", "min": 1.0},
        {"expectation": "between", "column": "alphabetic", "min": 0.05, "mostly": 0.9},
        {"expectation": "quantile_between", "column": "alphabetic", "quantile": 0.5, "min": 0.4, "max": 0.6},
        {"expectation": "between", "column": "repeated", "max": 0.3, "mostly": 0.99},
        {"expectation": "quantile_between", "column": "repeated", "quantile": 0.95, "max": 0.3},
        {"expectation": "quantile_between", "column": "perplexity", "quantile": 0.95, "max": 5000.0},
        {"expectation": "mean_between", "column": "perplexity", "min": 1.0},
        {"expectation": "between", "column": "stop_words", "min": 0.0, "max": 1.0},
    ]
    return [
        Gate(id=f"documents.g{n}", suite="documents", owner="data", why="of the benchmark", **rule)
        for n, rule in enumerate(rules)
    ]


def _imported() -> float:
    """CPU-seconds of the first import of the engine and of its first suite."""
    from governance.checks.expectations import run_suite

    started = cpu_seconds()
    run_suite(features(100).to_pandas(), twenty_gates(), "warm")
    return cpu_seconds() - started


def suites() -> list[Goal]:
    """One table of a million rows by twenty expectations, from Arrow as it is read to results as they are written."""
    from governance.checks.expectations import run_suite
    from governance.checks.suites import without_empty_text

    first, rows, gates = _imported(), 1_000_000, twenty_gates()
    table = features(rows)
    spent, found = [], set()
    for _ in range(3):
        started = cpu_seconds()
        results = run_suite(without_empty_text(table, {}).to_pandas(), gates, "benchmark")
        spent.append(cpu_seconds() - started)
        found |= {result.status for result in results}
    small = features(1000).to_pandas()
    started = cpu_seconds()
    run_suite(small, gates, "benchmark")
    return [
        figure("suites.import_seconds", first, "the engine's import and its first table, once per process"),
        Goal("suites.seconds_1m_rows", statistics.median(spent), 2.5, "<=", "12 columns, 20 expectations"),
        figure("suites.seconds_1k_rows", cpu_seconds() - started, "the same gates: what an expectation costs at least"),
        Goal("suites.results_that_are_no_pass", len(found - {"pass"}), 0, "<="),
        figure("suites.peak_mb", peak_mb()),
    ]


def share(quick: bool) -> list[Goal]:
    """Cost of the default policy's suites, as a share of the pipeline that made the corpus."""
    from benchmarks.measures.governance.governance_corpus import prepared
    from governance.checks import gathering
    from governance.checks.audit import AuditConfig, audit
    from governance.checks.bias.bias import BiasConfig, bias_audit
    from governance.gate.policy import load_policy

    documents = mixed(40_000_000 if quick else 80_000_000)
    first = _imported()
    inside = [0.0]
    run_suite = gathering.run_suite

    def timed(*words: Any) -> Any:
        started = cpu_seconds()
        found = run_suite(*words)
        inside[0] += cpu_seconds() - started
        return found

    with tempfile.TemporaryDirectory() as scratch:
        artifacts, runtime, readers, spent = prepared(documents, Path(scratch))
        artifacts["bias"] = bias_audit(artifacts, BiasConfig(), runtime)
        policy = load_policy(Path(__file__).parents[3] / "configs" / "policy.toml")
        started = cpu_seconds()
        gathering.run_suite = timed
        try:
            checked = audit(artifacts, policy, AuditConfig(), runtime, readers)
        finally:
            gathering.run_suite = run_suite
        whole = cpu_seconds() - started
    pipeline = sum(spent.values())
    note = f"{text_bytes(documents) / 1e6:.0f} MB, {checked.stats['expectations']} results"
    return [
        Goal("share.engine_of_pipeline", inside[0] / pipeline, 0.03, "<=", note),
        figure("share.engine_of_pipeline_without_tokenizer", inside[0] / (pipeline - spent["tokenizer"])),
        figure("share.engine_seconds", inside[0]),
        figure("share.engine_import_seconds", first),
        figure("share.audit_seconds", whole, "the suites and what they are made of"),
        figure("share.pipeline_seconds", pipeline, "ingest to encode, the tokenizer's training included"),
        Goal("share.gates_in_error_or_missing", checked.stats["error"] + checked.stats["missing"], 0, "<="),
    ]


def identities(quick: bool) -> list[Goal]:
    """Ids of very many documents over many shards: all that repeat are found, within one range of memory."""
    from governance.checks.shards import read_ids, repeated_ids, write_hashes
    from governance.config import Section

    shards, rows = (20, 100_000) if quick else (40, 250_000)
    chance = np.random.default_rng(3)
    planted = chance.choice(shards * rows, 1000, replace=False)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        paths = [folder / f"{number}.parquet" for number in range(shards)]
        for number, path in enumerate(paths):
            numbers = np.arange(number * rows, (number + 1) * rows)
            numbers[np.isin(numbers, planted)] = 0  # these documents take the first one's id
            pq.write_table(pa.table({"id": [f"web/part.jsonl#{value}" for value in numbers.tolist()]}), path)
        hashes = [folder / f"{number}.u64" for number in range(shards)]
        before = peak_mb()
        started = cpu_seconds()
        for path, target in zip(paths, hashes, strict=True):
            write_hashes(Section(), (path, read_ids), lambda role, target=target: target)
        found = repeated_ids(paths, hashes, read_ids, 16 << 20)
        spent = cpu_seconds() - started
    wanted = len(set(planted.tolist()) | {0})
    total = sum(len(part.rows) for part in found)
    return [
        figure(
            "identities.million_ids_a_core_second",
            shards * rows / 1e6 / spent,
            f"{shards * rows:,} ids, {shards} shards",
        ),
        Goal("identities.missed_or_wrong", abs(total - wanted), 0, "<=", f"{wanted} share an id"),
        figure("identities.memory_mb", peak_mb() - before, "in addition to 16 MiB of hashes at a time"),
    ]


def tokens(quick: bool) -> list[Goal]:
    """Speed of counting token shards again."""
    from data_pipeline.tokens.token_shards import EncodedDocument, TokenShard, write_token_shard
    from governance.checks import tokens as suite

    count, length = (20_000, 500) if quick else (100_000, 500)
    chance = np.random.default_rng(2)
    ids = chance.integers(1, 32_000, (count, length)).astype(np.uint16)
    ids[:, -1] = 0
    pieces = [b"", *(b"%d " % number for number in range(1, 32_000))]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "0.tokens"
        documents = [EncodedDocument(f"s#{row}", ids[row], length) for row in range(count)]
        write_token_shard(path, documents, 32_000, 0)
        file = TokenShard.open(path)
        started = cpu_seconds()
        found = {**suite._count_ids(file, pieces, None), **suite._count_ends(file)}
        spent = cpu_seconds() - started
    wrong = sum(found[name] for name in found if name not in ("tokens", "documents"))
    return [
        figure("tokens.million_a_core_second", found["tokens"] / 1e6 / spent, f"{found['tokens']:,} tokens"),
        Goal("tokens.wrong_of_a_sound_shard", wrong, 0, "<="),
    ]


def drift(quick: bool) -> list[Goal]:
    """Sketches, and what the distances say of two draws of one corpus and of a shifted one."""
    from governance.checks.drift import distances, sketch_of

    rows = 100_000 if quick else 1_000_000
    table = features(rows)
    started = cpu_seconds()
    sketch = sketch_of(table)
    spent = cpu_seconds() - started
    chance = np.random.default_rng(6)

    def histogram(values: Any) -> dict[str, Any]:
        return sketch_of(pa.table({"x": values, "language": ["en"] * len(values)}))["x"]["en"]

    alarms, missed = Counter(), 0
    for _ in range(100):
        reference, same = chance.lognormal(5, 1, 2000), chance.lognormal(5, 1, 2000)
        psi, ks = distances(histogram(same), histogram(reference))
        alarms["psi"] += psi > 0.1
        alarms["ks"] += ks > 1.36 * (2 / 2000) ** 0.5  # the 5 % point of Smirnov's distribution
        missed += distances(histogram(same * 2), histogram(reference))[0] <= 0.25
    return [
        figure("drift.million_values_a_core_second", rows * len(sketch) / 1e6 / spent, f"{rows:,} documents"),
        Goal("drift.false_alarms_psi", alarms["psi"], 0, "<=", "psi above 0.1 in 100 pairs of one distribution"),
        Goal("drift.false_alarms_ks", alarms["ks"], 10, "<=", "above the 5 % point in 100 pairs; 5 are expected"),
        Goal("drift.shifts_missed", missed, 0, "<=", "numbers twice as large, 100 times"),
    ]
