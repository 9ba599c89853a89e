"""Receipts: size, time to make and to check, forgeries that are named, and the tree's share of `encode`."""

from __future__ import annotations

import base64
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from assay.receipts.corpus_names import read_names
from benchmarks.measures.corpora import mixed, text_bytes
from benchmarks.measures.goals import Goal, cpu_seconds, figure
from data_pipeline.documents import DOCUMENT_SCHEMA, read_groups, write_table
from data_pipeline.tokens.encode import addresses, halves
from governance.kernels.sha256_lanes import sha256_rows
from governance.manifest import Manifest
from governance.receipts.blinded_tree import BlindedTree
from governance.receipts.name_tree import CorpusNames, NameTree, name_tree, open_names
from governance.receipts.receipt import receipt
from governance.receipts.verify_receipt import KINDS, NOTHING, faults, name_of, root_of_proof, signed_bytes
from governance.signing.dsse import SigningKey, draw_key
from governance.stage import Runtime

_FACTS = {
    "checkpoint": "c" * 64, "step": 123_456, "builds_on": [], "journal": 1234,
    "filters": "ingest clean filter dedup decontaminate redact", "removed": "",
}  # fmt: skip
_STEPS = tuple(range(101_000, 109_000, 1000))


def _url(number: int) -> str:
    return f"https://site-{number % 999:03}.example/articles/{number:08}"


def _synthetic(count: int) -> CorpusNames:
    """Documents by id and URL; the first 1,000 URLs are real, the other names drawn."""
    documents = np.arange(count)
    drawn = np.zeros((2 * count, 9), np.uint8)
    drawn[:, :8] = np.arange(2 * count, dtype="<u8").view(np.uint8).reshape(-1, 8)
    names = np.ascontiguousarray(sha256_rows(drawn)[:, :16])
    for number in range(1000):
        names[count + number] = np.frombuffer(name_of("url", _url(number)), np.uint8)
    return CorpusNames(
        identities=names[:count],
        copies=np.ones(count, np.int64),
        held_out=np.zeros(count, np.int64),
        licences=documents % 3,
        licence_words=("MIT", "CC0-1.0", "CC-BY-4.0"),
        kinds=np.repeat(np.array([KINDS["id"], KINDS["url"]], np.uint8), count),
        names=names,
        documents=np.tile(documents, 2),
    )


def _manifest(stage: str) -> Manifest:
    return Manifest(stage=stage, version=1, key=stage * 20, config={}, inputs=(), outputs=(), stats={}, run={})


def _ask(names: NameTree, number: int, key: SigningKey) -> dict[str, Any]:
    steps = _STEPS if number < 1000 else ()
    return receipt(names, ("url", _url(number)), steps, _FACTS, key)


def _forged(one: dict[str, Any], chance: random.Random, key: SigningKey) -> tuple[dict[str, Any], str]:
    """A forgery of a receipt, and the kind that names it; a third are signed by the right key."""
    said, proof = one["statement"], one["proof"]
    way = chance.randrange(6)
    if way == 0:
        return {**one, "statement": {**said, "root": chance.randbytes(24).hex()}}, "signature"
    if way == 1:
        return {**one, "statement": {**said, "read": {"times": said["read"]["times"] + 1, "steps": []}}}, "signature"
    if way == 2:
        return {**one, "proof": {**proof, "siblings": proof["siblings"][: -5 * chance.randrange(1, 40)]}}, "proof"
    if way == 3:
        return {**one, "proof": {**proof, "end": "used" if proof["end"] != "used" else "nothing"}}, "proof"
    changed = {**said, "root": chance.randbytes(24).hex()}
    if way == 4 and said["found"]:
        changed = {**said, "found": {**said["found"], "copies": said["found"]["copies"] + 1}}
    signature = base64.b64encode(key.private.sign(signed_bytes(changed))).decode("ascii")
    return {**one, "statement": changed, "signature": signature}, "proof"


def _length(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def _queries(names: NameTree, count: int) -> list[Goal]:
    key, chance = draw_key(), random.Random(1)
    public = key.public_key()
    wrong, unnamed, sizes, made, checked = 0, 0, [], [], []
    for _ in range(count):
        number = chance.randrange(2000)
        began = time.perf_counter()
        one = _ask(names, number, key)
        made.append(time.perf_counter() - began)
        sizes.append(_length(one))
        began = time.perf_counter()
        found = faults(one, public, _url(number))
        checked.append(time.perf_counter() - began)
        wrong += bool(found) or (one["statement"]["answer"] == "used") != (number < 1000)
        forged, kind = _forged(one, chance, key)
        unnamed += kind not in {fault.partition(":")[0] for fault in faults(forged, public, _url(number))}
    return [
        Goal("receipts.wrong_answers", wrong, 0, "<=", f"{count} queries, half of them of members"),
        Goal("receipts.forgeries_unnamed", unnamed, 0, "<=", f"{count} forgeries"),
        Goal("receipts.bytes", max(sizes), 2000, "<=", "the largest"),
        Goal("receipts.verify_ms", 1e3 * statistics.median(checked), 50, "<=", "median"),
        figure("receipts.prove_ms", 1e3 * statistics.median(made), "median; the tree is mapped already"),
    ]


class _Drawn:
    """A sorted array or upper tree of 4 x 10^9 names that is computed where it is looked at."""

    def __init__(self, count: int, width: int) -> None:
        self.count, self.width = count, width

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> Any:
        drawn = random.Random(place).randbytes(24)
        if self.width:
            return drawn[: self.width]
        gap = (1 << 64) // self.count
        return place * gap + int.from_bytes(drawn[:8], "big") % gap


def _simulated(besides: int) -> list[Goal]:
    """A proof in a tree of 10^9 documents with four names each, of which no array exists.

    `besides` are the bytes of a receipt without its proof.
    """
    count, depth = 4 * 10**9, 25
    high, low, leaves = _Drawn(count, 0), _Drawn(count, 0), _Drawn(count, 20)
    tree = BlindedTree(high, low, leaves, _Drawn(2 << depth, 24), depth, b"secrets." * 4)
    times, sizes = [], []
    for number in range(200):
        tag = random.Random(-number - 1).randbytes(16)
        began = time.perf_counter()
        place, proof = tree.place(tag), tree.prove(tag)
        times.append(time.perf_counter() - began)
        assert place is None
        assert root_of_proof(tag, proof, None) != NOTHING
        sizes.append(_length(proof))
    return [
        Goal("receipts.prove_ms_at_1e9_simulated", 1e3 * statistics.median(times), 1000, "<=", "4e9 names"),
        Goal("receipts.bytes_at_1e9_simulated", besides + max(sizes), 2000, "<="),
    ]


def _share(quick: bool) -> list[Goal]:
    """CPU of the tree over that of `encode`, on real documents with made-up URLs; each kernel compiled before.

    `encode` reads and writes the names down; that part of it is shown by itself.
    """
    from benchmarks.measures.governance.governance_corpus import prepared

    real = mixed(20_000_000 if quick else 80_000_000)
    documents = [{**one, "url": _url(number)} for number, one in enumerate(real)]
    with tempfile.TemporaryDirectory() as scratch:
        artifacts, runtime, _, spent = prepared(documents, Path(scratch))
        tokens, root = artifacts["encode"], runtime.root
        read_names(tokens, root)
        began = cpu_seconds()
        name_tree(tokens, lambda: read_names(tokens, root), runtime)
        cost = cpu_seconds() - began
        began = cpu_seconds()
        kept = _written_down(artifacts["redact"].files("documents", root), Path(scratch) / "names.parquet")
        noted = cpu_seconds() - began
    note = f"{text_bytes(documents) / 1e6:.0f} MB, {len(documents)} documents, {kept} of them encoded"
    return [
        Goal("receipts.tree_of_encode", cost / spent["encode"], 0.02, "<=", note),
        figure("receipts.names_of_encode", noted / spent["encode"], "columns that `encode` reads and writes for it"),
        figure("receipts.tree_of_pipeline", cost / sum(spent.values())),
    ]


def _written_down(shards: Sequence[Path], path: Path) -> int:
    """Read and write, once more, the names that `encode` writes down; their number."""
    columns = pa.schema([DOCUMENT_SCHEMA.field(name) for name in ("url", "licence", "sha256")])
    tables = []
    for shard in shards:
        for table in read_groups(shard, columns):
            raw = halves(table["sha256"].to_pylist())
            tables.append(pa.table([table["licence"], raw, raw, addresses(table["url"])], list("lcra")))
    write_table(path, pa.concat_tables(tables))
    return sum(table.num_rows for table in tables)


def receipts(quick: bool) -> list[Goal]:
    """Synthetic documents with two names each, mapped from disk; queries of names that are and are not there."""
    count = 10**6 if quick else 10**7
    with tempfile.TemporaryDirectory() as scratch:
        runtime = Runtime(Path(scratch))
        names = _synthetic(count)
        name_tree(_manifest("warm"), lambda: _synthetic(1000), runtime)
        began = cpu_seconds()
        made = name_tree(_manifest("encode"), lambda: names, runtime)
        cost = cpu_seconds() - began
        began = time.perf_counter()
        one = _ask(open_names(made, runtime.root), 7, draw_key())
        first = time.perf_counter() - began
        assert one["statement"]["names"] == 2 * count
        found = _queries(open_names(made, runtime.root), 1000 if quick else 10_000)
    return [
        Goal("receipts.made_seconds", first, 1, "<=", f"{count:.0e} documents, opening included"),
        figure("receipts.tree_us_a_name", 1e6 * cost / (2 * count), "CPU, sorting and writing included"),
        *found,
        *_simulated(_length(one) - _length(one["proof"])),
        *_share(quick),
    ]
