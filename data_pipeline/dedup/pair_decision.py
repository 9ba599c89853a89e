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
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.dedup.candidates import MAX_KEPT_A_BAND, Candidates, Corpus, find_candidates, read_sets
from data_pipeline.dedup.join import Engine
from data_pipeline.documents import write_table
from governance.config import canonical_json
from governance.files import atomic_path, sha256_bytes

Integers = npt.NDArray[np.int64]

SCHEMA = pa.schema([("row", pa.int64()), ("reason", pa.string()), ("evidence", pa.string())])
REASONS = ("", "exact_duplicate", "url_duplicate", "near_duplicate")
OF_EARLIER = "duplicate_of_earlier"


@dataclass(frozen=True)
class Rules:
    """Rules of the decision; `DedupConfig` documents each."""

    ngram: int
    bands: int
    threshold: float
    urls: bool
    overlap: float
    prefer: Sequence[str]


@dataclass(frozen=True)
class Decision:
    """Decisions of the greedy pass, by document number."""

    removed: Integers
    """Ascending."""
    reason: npt.NDArray[np.uint8]
    kept: Integers
    """Whom each was removed for."""
    jaccard: npt.NDArray[np.float64]
    pairs: Integers
    """(comparisons, 2): the one that stays, or is better, and the other."""
    values: npt.NDArray[np.float64]
    stats: dict[str, int]


def decide(
    corpus: Corpus, rules: Rules, sources: Sequence[str], engine: Engine, folder: Path, workers: int
) -> Decision:
    """Find who shares what, and walk from the best to the worst.

    `sources` are in their order.
    """
    from data_pipeline.kernels.greedy_dedup import walk_ranked

    found = find_candidates(corpus, rules.bands, rules.urls, engine)
    sets = read_sets(corpus, found, rules.ngram, folder, workers)
    order = _ranked(corpus, found, rules.prefer, sources)
    starts, groups = _by_text(found)
    settled = np.bincount(found.address[found.address >= 0])
    reason, kept_by, jaccard, pairs, values, cut = walk_ranked(
        found.text[order],
        found.address[order],
        found.numbers[order] < corpus.new,
        starts,
        groups,
        _rooms(np.minimum(np.diff(found.bands.ends, prepend=0), MAX_KEPT_A_BAND)),
        _rooms(settled),
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


def _rooms(sizes: Integers) -> Integers:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


def _by_text(found: Candidates) -> tuple[Integers, Integers]:
    """Bands of each text, with offsets."""
    texts = np.searchsorted(found.representatives, found.bands.members)
    order = np.argsort(texts, kind="stable")
    starts = np.searchsorted(texts[order], np.arange(len(found.representatives) + 1))
    return starts.astype(np.int64), found.bands.labels[order]


def _ranked(corpus: Corpus, found: Candidates, prefer: Sequence[str], sources: Sequence[str]) -> Integers:
    """The places of the candidates from the best to the worst.

    Those of earlier corpora first.
    """
    numbers = found.numbers
    weights: list[npt.NDArray[Any]] = [numbers]
    for preference in reversed(prefer):
        if preference == "length":
            weight = -corpus.signed("bytes", numbers).to_numpy()
        elif preference == "source_order":
            weight = pc.index_in(corpus.told("source", numbers), pa.array(sources, pa.string())).to_numpy()
        elif preference == "licence":
            weight = pc.is_in(corpus.told("licence", numbers), pa.array(["", "NOASSERTION"])).to_numpy()
        else:
            weight = pc.equal(corpus.told("url", numbers), "").to_numpy()
        weights.append(np.where(numbers < corpus.new, 0, weight))
    return np.lexsort([*weights, numbers >= corpus.new])


def write_verdict(verdict: Path, pairs: Path, corpus: Corpus, found: Decision) -> None:
    """Write the comparisons, and then the verdict."""
    numbers = np.unique(np.concatenate([found.kept, found.pairs.reshape(-1)]))
    ids = corpus.told("id", numbers)
    kept, other = (ids.take(pa.array(np.searchsorted(numbers, found.pairs[:, side]))) for side in (0, 1))
    write_table(
        pairs, pa.table({"kept": kept, "other": other, "jaccard": found.values, "removed": _removed_for(found)})
    )
    names = ids.take(pa.array(np.searchsorted(numbers, found.kept))).to_pylist()
    firsts = [part.first for part in corpus.parts]
    origins = [corpus.parts[place].origin for place in np.searchsorted(firsts, found.kept, side="right") - 1]
    schema = SCHEMA.with_metadata({"stats": json.dumps(found.stats, sort_keys=True)})
    with atomic_path(verdict) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
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
class Verdict:
    """A written verdict.

    It is mapped, so that a shard's part costs what it holds.
    """

    batches: pa.ipc.RecordBatchFileReader
    stats: dict[str, int]

    def removals(self, shard: int) -> pa.RecordBatch:
        """The rows that go from a shard."""
        return self.batches.get_batch(shard)

    def digest(self, shard: int) -> str:
        """Digest of the decisions on one shard."""
        return sha256_bytes(canonical_json(self.removals(shard).to_pydict()))


def read_verdict(path: Path) -> Verdict:
    """Open a verdict that `write_verdict` wrote."""
    batches = pa.ipc.open_file(pa.memory_map(str(path)))
    return Verdict(batches, json.loads(batches.schema.metadata[b"stats"]))
