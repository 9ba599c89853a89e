"""Deduplication: planted truth, the promise about what is removed, and the laws of a stage."""

import gzip
import json
import os
import random
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.clean import document_shards
from data_pipeline.dedup import DedupConfig, dedup, walk
from data_pipeline.documents import DOCUMENT_SCHEMA, REMOVED_SCHEMA, read_table, write_table
from data_pipeline.parallel import close_pool
from governance.config import canonical_json
from governance.errors import MissingInput
from governance.files import sha256_bytes
from governance.manifest import Manifest, describe
from governance.stage import Runtime

GOLDEN = "c6d45a0c279f37634dffc71cec1aa96a2ed9d198b86a94a4be2ad37bce45b385"


def corpus(root, shards):
    """A corpus as `clean` leaves it: shard name -> (id, text) of each document."""
    outputs = []
    for name, documents in sorted(shards.items()):
        rows = [
            {
                "id": identity, "text": text, "source": name, "url": "", "language": "en", "licence": "CC0-1.0",
                "sha256": sha256_bytes(text.encode()), "file": "file", "position": i,
            }
            for i, (identity, text) in enumerate(documents)
        ]  # fmt: skip
        path = root / "clean" / ("b" * 16) / "documents" / f"{name}.parquet"
        write_table(path, pa.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA))
        outputs.append(describe(path, root))
    values = {"stage": "clean", "version": 1, "key": "b" * 64, "config": {}, "inputs": (), "stats": {}, "run": {}}
    return Manifest(outputs=tuple(outputs), **values)


def words(seed, count=300):
    rng = random.Random(seed)
    return ["".join(rng.choice("bcdfghklmnprst") + rng.choice("aeiou") for _ in range(3)) for _ in range(count)]


def text(seed, count=300):
    return " ".join(words(seed, count))


def shifted(seed, share):
    """The text of `seed` whose last share of words is new: similarity (1 - share) / (1 + share), or nearly."""
    old, new = words(seed), words(seed + 10_000, round(300 * share))
    return " ".join(old[: len(old) - len(new)] + new)


def shingles(value, ngram=5):
    parts = value.lower().split()
    return {tuple(parts[i : i + ngram]) for i in range(len(parts) - ngram + 1)}


def similarity(a, b):
    left, right = shingles(a), shingles(b)
    return len(left & right) / max(1, len(left | right))


SHARDS = {
    "0": [("a", text(1)), ("b", text(2)), ("short", "one two three")],
    "1": [("a-copy", text(1)), ("b-near", shifted(2, 0.05)), ("c", text(3) + " and some more words at its end")],
    "2": [("c-near", text(3)), ("c-near-copy", text(3)), ("short-copy", "one two three"), ("d", text(4))],
}


def made(root, shards=SHARDS, workers=1, **config):
    return dedup(corpus(root, shards), DedupConfig(**config), Runtime(root=root, workers=workers))


def rows_of(manifest, role, root):
    return [row for path in manifest.files(role, root) for row in pq.read_table(path).to_pylist()]


def removed_of(manifest, root):
    return {row["id"]: (row["reason"], row["evidence"]) for row in rows_of(manifest, "removed", root)}


def test_who_stays_and_who_is_named(tmp_path):
    manifest = made(tmp_path)
    near = similarity(text(2), shifted(2, 0.05))
    close = similarity(text(3), text(3) + " and some more words at its end")
    better, worse = sorted(("b", "b-near"), key=lambda i: -len(dict(SHARDS["0"] + SHARDS["1"])[i]))
    assert removed_of(manifest, tmp_path) == {
        "a-copy": ("exact_duplicate", "kept=a"),
        "short-copy": ("exact_duplicate", "kept=short"),
        worse: ("near_duplicate", f"kept={better} jaccard={near:.4f}"),
        "c-near": ("near_duplicate", f"kept=c jaccard={close:.4f}"),
        "c-near-copy": ("near_duplicate", f"kept=c jaccard={close:.4f}"),
    }
    assert manifest.stats["too_short_to_compare"] == 1
    pairs = rows_of(manifest, "pairs", tmp_path)
    assert {(row["kept"], row["other"], row["removed"]) for row in pairs} == {
        (better, worse, True),
        ("c", "c-near", True),
    }


@pytest.mark.parametrize("first", [True, False])
def test_a_chain_removes_only_what_is_near_the_kept_one(tmp_path, first):
    whole = words(5, 400)
    chain = [
        ("x" if first else "z", " ".join(whole[:300])),
        ("y", " ".join(whole[30:330])),
        ("w", " ".join(whole[60:360])),
    ]
    found = removed_of(made(tmp_path, {"0": chain}), tmp_path)
    assert similarity(chain[0][1], chain[2][1]) < 0.7 < similarity(chain[0][1], chain[1][1])
    texts = dict(chain)
    for identity, (_, evidence) in found.items():
        kept = evidence.split()[0].removeprefix("kept=")
        assert kept not in found
        assert similarity(texts[identity], texts[kept]) >= 0.7


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_walk_keeps_its_promise(data):
    count = data.draw(st.integers(0, 12))
    values = {pair: data.draw(st.sampled_from([0.1, 0.69, 0.7, 0.9, 1.0])) for pair in combinations(range(count), 2)}
    candidates = [(i, sorted(data.draw(st.sets(st.integers(0, 3), min_size=1)))) for i in range(count)]
    verdict = walk(candidates, lambda a, b: values[a, b], 0.7)
    assert verdict.bands_cut == 0
    compared = {(a, b): value for a, b, value in verdict.compared}
    assert len(compared) == len(verdict.compared)
    for other, (kept, value) in verdict.kept_for.items():
        assert kept not in verdict.kept_for
        assert value == values[kept, other] >= 0.7
        assert value == max(v for (_, b), v in compared.items() if b == other)
    bands = dict(candidates)
    stay = [i for i in range(count) if i not in verdict.kept_for]
    for a, b in combinations(stay, 2):
        if set(bands[a]) & set(bands[b]):
            assert values[a, b] < 0.7


def test_a_crowded_band_is_cut_and_counted():
    verdict = walk([(i, [0]) for i in range(20)], lambda a, b: 0.0, 0.7, limit=4)
    assert len(verdict.compared) == 0 + 1 + 2 + 3 + 16 * 4
    assert verdict.bands_cut == 15
    copies = walk([(i, [0]) for i in range(5000)], lambda a, b: 0.9, 0.7)
    assert len(copies.compared) == len(copies.kept_for) == 4999
    assert copies.bands_cut == 0


def test_thousands_of_near_copies_leave_one(tmp_path):
    copies = [
        (f"copy{i}", f"{text(6)} edition {'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10 % 10]}{i // 100:b}x")
        for i in range(2000)
    ]
    manifest = made(tmp_path, {"0": copies[:1000], "1": copies[1000:]})
    assert manifest.stats["documents_kept"] == 1
    assert manifest.stats["comparisons"] <= 2000


def test_planted_duplicates_are_found_and_nothing_else(tmp_path):
    shards = {
        "0": [(f"base{i}", text(100 + i)) for i in range(60)],
        "1": [(f"near{i}", shifted(100 + i, 0.04)) for i in range(60)],  # similarity 0.92
        "2": [(f"far{i}", shifted(100 + i, 0.4)) for i in range(60)],  # similarity 0.42
    }
    found = removed_of(made(tmp_path, shards), tmp_path)
    assert len(found) >= 59
    assert not any(identity.startswith("far") for identity in found)


def test_counts_add_up_and_shards_keep_their_rows(tmp_path):
    manifest = made(tmp_path)
    stats = manifest.stats
    assert stats["removed"] == {"exact_duplicate": 2, "near_duplicate": 3}
    for counts in (stats, *stats["by_source"].values()):
        assert counts["documents_in"] == counts["documents_kept"] + sum(counts["removed"].values())
    for name in ("documents_in", "documents_kept", "bytes_in", "bytes_kept"):
        assert stats[name] == sum(part[name] for part in stats["by_source"].values())
    for role, schema in (("documents", DOCUMENT_SCHEMA), ("removed", REMOVED_SCHEMA)):
        for path in manifest.files(role, tmp_path):
            assert {row["source"] for row in read_table(path, schema).to_pylist()} <= {path.stem}
    assert len(manifest.files("signatures", tmp_path)) == 3
    left = {path.name for path in (tmp_path / manifest.folder).iterdir()}
    assert left == {"documents", "removed", "signatures", "pairs", "manifest.json"}


def test_no_document_at_all(tmp_path):
    stats = made(tmp_path, {}).stats
    assert (stats["documents_in"], stats["removed"], stats["by_source"]) == (0, {}, {})
    assert made(tmp_path / "b", {"0": []}).stats == stats


def test_texts_of_the_same_length_and_of_no_length(tmp_path):
    found = removed_of(made(tmp_path, {"0": [("p", ""), ("q", ""), ("r", "x"), ("s", "y")]}), tmp_path)
    assert found == {"q": ("exact_duplicate", "kept=p")}


def test_workers_and_resuming_change_nothing(tmp_path):
    one = made(tmp_path / "one")
    try:
        two = made(tmp_path / "two", workers=2)
    finally:
        close_pool()
    assert one.digest == two.digest
    root = tmp_path / "one"
    for role in ("documents", "signatures", "pairs"):
        one.files(role, root)[0].unlink()
        assert made(root).digest == one.digest
    before = one.files("documents", root)[0].stat().st_mtime_ns
    (root / one.path).unlink()
    (root / one.folder / "join~nowhere~1").mkdir()
    assert made(root).digest == one.digest
    assert one.files("documents", root)[0].stat().st_mtime_ns == before


def test_a_changed_shard_remakes_itself_and_those_it_touches(tmp_path):
    first = made(tmp_path)
    second = made(tmp_path, {**SHARDS, "2": [*SHARDS["2"], ("e", text(9))]})
    before, after = ([path.stat().st_ino for _, path in document_shards(m, tmp_path)] for m in (first, second))
    assert before[:2] == after[:2]
    assert before[2] != after[2]
    third = made(tmp_path, {**SHARDS, "2": [("b-better", text(2) + " " + text(10, 8))]})
    assert set(removed_of(third, tmp_path)) >= {"b"}


def test_a_spill_folder_of_a_killed_process_is_swept(tmp_path):
    import socket

    from data_pipeline.dedup import _spill_folder

    left = tmp_path / f"join~{socket.gethostname()}~999999999"
    left.mkdir()
    (left / "spilled").touch()
    with _spill_folder(tmp_path) as own:
        assert not left.exists()
        own.mkdir()
    assert list(tmp_path.iterdir()) == []


def test_a_look_up_makes_nothing(tmp_path):
    with pytest.raises(MissingInput, match="assay run"):
        dedup(corpus(tmp_path, SHARDS), DedupConfig(), Runtime(root=tmp_path, make=False))


def test_golden_digest(tmp_path):
    """Other content wants another VERSION (the bytes of Parquet also follow the release of Arrow)."""
    manifest = made(tmp_path)
    content = [rows_of(manifest, role, tmp_path) for role in ("documents", "removed", "pairs", "signatures")]
    assert sha256_bytes(canonical_json([manifest.stats, content])) == GOLDEN


def test_recall_and_precision_against_planted_truth(tmp_path):
    folder = os.environ.get("ASSAY_TEST_DATA")
    if not folder:
        pytest.skip("ASSAY_TEST_DATA is not set")

    def lines(name):
        with gzip.open(Path(folder) / "dups" / name, "rt", encoding="utf-8") as opened:
            return [json.loads(line) for line in opened]

    documents = [(row["id"], row["text"]) for row in lines("docs.jsonl.gz")]
    found = removed_of(made(tmp_path, {"0": documents[::2], "1": documents[1::2]}), tmp_path)
    truth = {frozenset((row["a"], row["b"])): row for row in lines("truth_pairs.jsonl.gz")}
    duplicates = [row for row in truth.values() if row["label"] == "dup"]
    recalled = sum(row["a"] in found or row["b"] in found for row in duplicates)
    assert recalled / len(duplicates) >= 0.99
    named = [truth.get(frozenset((one, shown.split()[0].removeprefix("kept=")))) for one, (_, shown) in found.items()]
    assert all(row is not None and row["jaccard_w5"] >= 0.68 for row in named)
    assert sum(row["label"] == "dup" for row in named) / len(named) >= 0.97
