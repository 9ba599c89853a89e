"""Deduplication decisions over the whole corpus, read back shard by shard.

The file is an Arrow IPC file, one record batch a shard (in the order of the shards), with the rows that go:

    row       int64   the document's row in its shard
    reason    string  exact_duplicate, url_duplicate, near_duplicate, duplicate_of_earlier
    evidence  string  "kept=<id>", " corpus=<16 digits of the manifest's digest>" if it is of an earlier corpus, and
                      " jaccard=<exact similarity>" unless the texts are equal

Its schema's metadata holds the counts as JSON. All workers of an array read the same file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_pipeline.dedup.candidates import MAX_KEPT_A_BAND, Corpus, DedupRules, find_candidates
from data_pipeline.dedup.join import JoinEngine
from data_pipeline.documents import write_table
from governance.config import canonical_json
from governance.files import atomic_path, sha256_bytes

Integers = npt.NDArray[np.int64]

SCHEMA = pa.schema([("row", pa.int64()), ("reason", pa.string()), ("evidence", pa.string())])
REASONS = ("", "exact_duplicate", "url_duplicate", "near_duplicate")
OF_EARLIER = "duplicate_of_earlier"


@dataclass(frozen=True)
class Decision:
    """Decisions of the greedy pass, by document number."""

    removed: Integers
    """Ascending."""
    reason: npt.NDArray[np.uint8]
    kept: Integers
    """The kept document for which each was removed."""
    jaccard: npt.NDArray[np.float64]
    pairs: Integers
    """(comparisons, 2): the one that stays, or is better, and the other."""
    values: npt.NDArray[np.float64]
    stats: dict[str, int]


def decide(
    corpus: Corpus, rules: DedupRules, sources: Sequence[str], engine: JoinEngine, folder: Path, workers: int
) -> Decision:
    """Compare each candidate with the kept ones, best first."""
    from data_pipeline.kernels.greedy_dedup import walk_ranked

    found = find_candidates(corpus, rules, sources, engine, folder, workers)
    order, sets, bands = found.order, found.sets, found.bands
    # The bands of text t are `groups[starts[t]:starts[t + 1]]`.
    texts = np.searchsorted(found.representatives, bands.members)
    by_text = np.argsort(texts, kind="stable")
    starts = np.searchsorted(texts[by_text], np.arange(len(found.representatives) + 1)).astype(np.int64)
    groups = bands.labels[by_text]
    reason, kept_by, jaccard, pairs, values, cut = walk_ranked(
        found.text[order],
        found.address[order],
        found.numbers[order] < corpus.new,
        starts,
        groups,
        _offsets(np.minimum(np.diff(bands.ends, prepend=0), MAX_KEPT_A_BAND)),
        _offsets(np.bincount(found.address[found.address >= 0])),
        sets.shingles,
        sets.starts,
        sets.ends,
        rules.threshold,
        rules.overlap,
    )
    numbers = found.numbers[order]
    gone = np.flatnonzero(reason)
    gone = gone[np.argsort(numbers[gone])]
    kept = numbers[kept_by[gone]]
    stats = {
        "candidates": int((numbers >= corpus.new).sum()),
        "comparisons": len(values),
        "bands_cut": int(cut),
        "kept_for_others": len(np.unique(kept)),
        "urls_of_collections": found.collections,
    }
    return Decision(numbers[gone], reason[gone], kept, jaccard[gone], numbers[pairs], values, stats)


def _offsets(sizes: Integers) -> Integers:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


def write_decisions(decisions: Path, pairs: Path, corpus: Corpus, found: Decision) -> None:
    """Write the comparisons, then the decisions on each shard."""
    numbers = np.unique(np.concatenate([found.kept, found.pairs.reshape(-1)]))
    ids = corpus.document_column("id", numbers)
    kept, other = (ids.take(pa.array(np.searchsorted(numbers, found.pairs[:, side]))) for side in (0, 1))
    write_table(
        pairs, pa.table({"kept": kept, "other": other, "jaccard": found.values, "removed": _removed_for(found)})
    )
    names = ids.take(pa.array(np.searchsorted(numbers, found.kept))).to_pylist()
    firsts = [part.first for part in corpus.parts]
    origins = [corpus.parts[place].origin for place in np.searchsorted(firsts, found.kept, side="right") - 1]
    schema = SCHEMA.with_metadata({"stats": json.dumps(found.stats, sort_keys=True)})
    with atomic_path(decisions) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        for part in corpus.parts:
            if not part.origin:
                a, b = np.searchsorted(found.removed, (part.first, part.first + part.rows))
                writer.write_batch(_batch(found, names, origins, range(a, b), part.first))


def _batch(found: Decision, names: list[str], origins: list[str], places: range, first: int) -> pa.RecordBatch:
    """Rows removed from one shard."""
    reasons, evidence = [], []
    for i in places:
        reason = REASONS[found.reason[i]]
        corpus = f" corpus={origins[i][:16]}" if origins[i] else ""
        similar = "" if reason == "exact_duplicate" else f" jaccard={found.jaccard[i]:.4f}"
        reasons.append(OF_EARLIER if origins[i] else reason)
        evidence.append(f"kept={names[i]}{corpus}{similar}")
    rows = found.removed[places.start : places.stop] - first
    return pa.record_batch([pa.array(rows), pa.array(reasons, pa.string()), pa.array(evidence, pa.string())], SCHEMA)


def _removed_for(found: Decision) -> npt.NDArray[np.bool_]:
    """Return for each comparison whether the kept document removes the other."""
    if not len(found.removed):
        return np.zeros(len(found.values), bool)
    places = np.minimum(np.searchsorted(found.removed, found.pairs[:, 1]), len(found.removed) - 1)
    removed: npt.NDArray[np.bool_] = (found.removed[places] == found.pairs[:, 1]) & (
        found.kept[places] == found.pairs[:, 0]
    )
    return removed


@dataclass(frozen=True)
class PairDecision:
    """Written decisions, mapped: reading a shard's costs memory for that shard only."""

    batches: pa.ipc.RecordBatchFileReader
    stats: dict[str, int]

    def removals(self, shard: int) -> pa.RecordBatch:
        """Removed rows of a shard, as SCHEMA."""
        return self.batches.get_batch(shard)

    def digest(self, shard: int) -> str:
        """Digest of the decisions on one shard."""
        return sha256_bytes(canonical_json(self.removals(shard).to_pydict()))


def read_decisions(path: Path) -> PairDecision:
    """Open a verdict that `write_verdict` wrote."""
    batches = pa.ipc.open_file(pa.memory_map(str(path)))
    return PairDecision(batches, json.loads(batches.schema.metadata[b"stats"]))
