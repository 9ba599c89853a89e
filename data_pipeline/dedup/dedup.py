r"""Deduplication stage: keep one document of each set of duplicates.

Three kinds of duplicate. Each removal is verified against the document that is kept, never against a hash:

- *exact*: the normalised texts have one SHA-256;
- *address*: the normalised URLs are equal (`data_pipeline/urls.py`) and the texts share at least `url_overlap` of the
  smaller one's shingles. A URL with more than 16 different texts names a collection, not a page, and is ignored;
- *near*: the exact Jaccard similarity J of the sets of word n-grams is at least `jaccard_threshold`. MinHash bands
  only propose pairs (Broder 1997; Lee et al. 2022). `kernels/minhash.py` defines word and shingle: without combining
  marks and scripts that do not separate words, words are `re.findall(r"\w+", text.lower())`.

Promise. Documents are processed from the best to the worst: by `prefer`, among equals the first of the corpus (sources
in the order in which they are named). A document is removed if and only if a *kept* document has the same text, or has
the same address and overlaps with it, or shares a band with it and is similar enough; it names the most similar. So

- no document is removed because of a chain of neighbours: each is itself near to the one that it names;
- no two kept documents that were compared are as similar as the threshold.

A copy of a near-duplicate is removed for the same kept document, as a near-duplicate too. Documents kept in the corpora
of `against` rank first and always stay: a new document that equals or resembles one is a `duplicate_of_earlier`.

Missed: a pair that shares no band (with 20 bands of 6 rows 0.0023 of pairs at J = 0.8, fewer above); a text without
words, which is compared exactly only; and, in a band shared by more than 64 *kept* documents (such as a template whose
copies differ), pairs that a comparison with the first 64 does not show: `stats` counts these encounters as
`bands_cut`. A band of thousands of near-copies has few kept ones, and costs one comparison a copy.

Roles: `documents`, `removed`, `kept` (a row for each input document: whether it stayed), `signatures` (a row for each:
SHA-256 of its text, normalised URL, bytes, words), `keys` (`join.py`), `pairs` (each comparison: the id of the kept or
better one, the id of the other, exact similarity, whether the other was removed for it).

Price. Signatures are made shard by shard, in parallel, a row group at a time. The join runs within
`join_memory_mib` and spills into a folder `join~...` of the artifact, which is removed afterwards. The process that
decides holds some 100 bytes per document that shares anything and 8 per distinct set of sharers; the shingles of those
(8 bytes per word) are mapped from an unnamed file, so a kill leaves nothing behind. A shard that loses no document is
not written again: its file gets a second name.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline.dedup.duplicates import Corpus, CorpusShard, DedupConfig, read_decisions, write_decisions
from data_pipeline.dedup.join import BAND, TEXT, URL, JoinEngine, spill_folder, write_keys
from data_pipeline.documents import (
    DOCUMENT_SCHEMA,
    REMOVED_SCHEMA,
    document_shards,
    funnel,
    read_groups,
    read_table,
    shard_schema,
    table_writer,
    write_table,
)
from data_pipeline.urls import normalise_url
from governance.config import canonical_json
from governance.errors import ConfigError, MissingInput
from governance.files import put_in_place, sha256_bytes
from governance.manifest import FILE_NAME, Manifest, describe, present, read_manifest
from governance.parallel import Shard, ShardDone, ShardMade, map_shards, once, sum_stats
from governance.stage import Made, Recipe, Runtime, run_stage
from governance.verified_files import all_intact

VERSION = 6
_OF_EARLIER = ("documents", "signatures", "keys", "kept")
"""Roles of an earlier corpus that the join reads."""
_SIGNED = pa.schema([DOCUMENT_SCHEMA.field(name) for name in ("text", "url", "source")])


@dataclass(frozen=True)
class Earlier:
    """Finished dedup artifact of an earlier corpus, with its root."""

    manifest: Manifest
    root: Path


def earlier_corpora(config: DedupConfig, root: Path) -> tuple[Earlier, ...]:
    """Read the manifests of `config.against`.

    Raises:
        MissingInput: there is none, or its files are gone.
        ManifestError: it is torn or altered.
        ConfigError: it is of another stage, or its signatures cannot be compared with these.
    """
    found = []
    for name in config.against:
        path = root / name
        path = path if path.name == FILE_NAME else path / FILE_NAME
        manifest = read_manifest(path)
        if manifest.stage != "dedup" or manifest.version != VERSION:
            raise ConfigError(
                f"dedup.against = {name!r}: is an artifact of {manifest.stage}, version {manifest.version}; comparison"
                f" needs one of dedup, version {VERSION}. Name one, or make it again."
            )
        for setting in ("ngram", "bands", "rows"):
            theirs, ours = manifest.config.get(setting), getattr(config, setting)
            if theirs != ours:
                raise ConfigError(
                    f"dedup.against = {name!r}: was made with {setting} = {theirs}, this is {ours}: signatures of"
                    f" another kind cannot be compared. Set dedup.{setting} = {theirs}."
                )
        earlier = Earlier(manifest, path.resolve().parents[2])
        if not present(manifest, earlier.root):
            raise MissingInput(
                f"dedup.against = {name!r}: some of its files are missing or cut short. `assay governance verify`"
                " of its root names them; restore them, or make it again."
            )
        found.append(earlier)
    return tuple(found)


def _sign_shard(config: DedupConfig, path: Path, path_of: Any) -> ShardMade:
    from data_pipeline.kernels.minhash import band_keys
    from governance.kernels.buffers import text_buffers

    digests: list[bytes] = []
    urls: list[str] = []
    sources: dict[str, int] = {}
    parts = []
    for table in read_groups(path, _SIGNED):
        texts = table["text"].combine_chunks()
        parts.append((*band_keys(texts, config.ngram, config.bands, config.rows), pc.binary_length(texts)))
        for row, source in enumerate(table["source"].to_pylist(), start=len(digests)):
            sources.setdefault(source, row)
        data, offsets = text_buffers(texts)
        digests += [bytes.fromhex(sha256_bytes(data[a:b].data)) for a, b in pairwise(offsets.tolist())]
        urls += [normalise_url(url) if url else "" for url in table["url"].to_pylist()]
    bands = np.concatenate([np.zeros((0, config.bands), np.int64), *(part[0] for part in parts)])
    words = np.concatenate([np.zeros(0, np.int64), *(part[1] for part in parts)])
    sizes = np.concatenate([np.zeros(0, np.int64), *(part[2].to_numpy(zero_copy_only=False) for part in parts)])
    columns = {
        "text_sha256": pa.array(digests, pa.binary(32)),
        "url": pa.array(urls, pa.string()),
        "bytes": pa.array(sizes, pa.int64()),
        "words": pa.array(words, pa.int64()),
    }
    files = {role: path_of(role) for role in ("signatures", "keys")}
    write_table(files["signatures"], pa.table(columns))
    rows = np.arange(len(digests), dtype=np.int32)
    addressed, worded = rows[[bool(url) for url in urls]], rows[words > 0]
    kinds = [
        (TEXT, np.array([int.from_bytes(digest[:8]) for digest in digests], np.uint64), rows),
        (URL, np.array([int(sha256_bytes(urls[row].encode())[:16], 16) for row in addressed], np.uint64), addressed),
        (BAND, bands[worded].reshape(-1).astype(np.uint64), np.repeat(worded, config.bands)),
    ]
    keys = np.concatenate([(part % np.uint64(len(kind))).astype(np.int64) + kind.start for kind, part, _ in kinds])
    write_keys(files["keys"], keys, np.concatenate([part for _, _, part in kinds]))
    counts = {"documents": len(digests), "without_words": int((words == 0).sum()), "sources": sources}
    return ShardMade(files, counts)


def _split_shard(config: DedupConfig, work: tuple[Path, Path, Path, int], path_of: Any) -> ShardMade:
    """Write kept and removed rows by row group.

    `work` has the shard's documents, its signatures, the decisions, and its place in them.
    """
    path, signatures, decisions, index = work
    removals = read_decisions(decisions).get_batch(index).sort_by("row")
    sizes = pq.read_table(signatures, columns=["bytes"], partitioning=None)["bytes"].to_pylist()
    stays, reasons = np.ones(len(sizes), bool), [""] * len(sizes)
    for row, reason in zip(removals["row"].to_pylist(), removals["reason"].to_pylist(), strict=True):
        stays[row], reasons[row] = False, reason
    files = {role: path_of(role) for role in ("documents", "removed", "kept")}
    write_table(files["kept"], pa.table({"kept": stays}))
    if stays.all():
        put_in_place(path, files["documents"])
        sources = read_table(path, columns=["source"])["source"].to_pylist()
        write_table(files["removed"], REMOVED_SCHEMA.empty_table())
        return ShardMade(files, funnel(sources, sizes, sizes, reasons))
    sources, gone_before = [], 0
    with (
        table_writer(files["documents"], shard_schema(path)) as keep,
        table_writer(files["removed"], shard_schema(path, REMOVED_SCHEMA)) as drop,
    ):
        for table in read_groups(path):
            here = pa.array(stays[len(sources) : len(sources) + len(table)])
            keep(table.filter(here))
            gone = table.filter(pc.invert(here))
            for name in ("reason", "evidence"):
                gone = gone.append_column(REMOVED_SCHEMA.field(name), removals[name].slice(gone_before, len(gone)))
            drop(gone)
            gone_before += len(gone)
            sources += table["source"].to_pylist()
    return ShardMade(files, funnel(sources, sizes, sizes, reasons))


def _corpus(documents: Manifest, signed: Sequence[ShardDone], earlier: Sequence[Earlier], root: Path) -> Corpus:
    """The shards to compare: those of earlier corpora, then the new ones."""
    # Sources rank in the order in which they first occur, within a shard by their first row.
    by_row = (sorted(shard.stats["sources"].items(), key=lambda item: item[1]) for shard in signed)
    sources = list(dict.fromkeys(source for found in by_row for source, _ in found))
    parts = []
    for corpus in earlier:
        files = (corpus.manifest.files(role, corpus.root) for role in _OF_EARLIER)
        for path, signed_as, keyed, kept in zip(*files, strict=True):
            stayed = pq.read_table(kept, partitioning=None)["kept"].to_numpy()
            parts.append(CorpusShard(path, signed_as, keyed, len(stayed), stayed, corpus.manifest.digest))
    scores = {file.stem: file for file in documents.files("scores", root)}
    for (_, path), shard in zip(document_shards(documents, root), signed, strict=True):
        signed_as, keyed = (root / shard.outputs[role].path for role in ("signatures", "keys"))
        parts.append(CorpusShard(path, signed_as, keyed, shard.stats["documents"], scores=scores.get(path.stem)))
    return Corpus(parts, sources)


def dedup(documents: Manifest, config: DedupConfig, runtime: Runtime, earlier: Sequence[Earlier] = ()) -> Manifest:
    """Keep one document of each set of duplicates.

    The others are counted by reason.

    `earlier` is the result of `earlier_corpora(config, root)`. `stats` adds to the common counts: `without_words`
    (documents that are compared exactly only), `candidates` (documents that share a text, an address or a band),
    `comparisons`, `bands_cut`, `kept_for_others` (kept documents for which others were removed),
    `urls_of_collections`.

    Raises:
        AlteredFile: a document, or a file of an earlier corpus, is not as its manifest states.
        ManifestError: a shard cannot be read.
        MissingInput: the artifact is missing and `runtime.make` is False; or Daft is requested and not installed.
        StorageError: the disk is full.
    """
    recipe = Recipe("dedup", VERSION, config)
    origins = [documents.as_input(), *(corpus.manifest.as_input() for corpus in earlier)]

    def make(folder: Path) -> Made:
        inputs = document_shards(documents, runtime.root)
        shards = [Shard(path.stem, ("signatures", output.sha256), path, (output,)) for output, path in inputs]
        signed = map_shards(recipe, _sign_shard, shards, folder, runtime)
        key = recipe.key([item.digest for item in origins])
        records = folder.parent / "records"
        decisions, pairs = records / f"{key}.decisions.arrow", records / f"{key}.pairs.parquet"

        def make_decisions(_: Path) -> None:
            with contextlib.ExitStack() as reading:
                for manifest, root in ((documents, runtime.root), *((one.manifest, one.root) for one in earlier)):
                    read = [output for role in (*_OF_EARLIER, "scores") for output in manifest.listed(role)]
                    reading.enter_context(all_intact(read, root))
                corpus = _corpus(documents, signed, earlier, runtime.root)
                engine = JoinEngine(runtime.engine, config.join_memory_mib, reading.enter_context(spill_folder(folder)))
                write_decisions(decisions, pairs, corpus, config, engine, max(1, runtime.workers))

        once(runtime, decisions, make_decisions, beside=(pairs,))
        decided = read_decisions(decisions)
        target = folder / "pairs" / "pairs.parquet"
        put_in_place(pairs, target)
        split = []
        for index, ((output, path), shard) in enumerate(zip(inputs, signed, strict=True)):
            decision = sha256_bytes(canonical_json(decided.get_batch(index).to_pydict()))
            sizes = shard.outputs["signatures"]
            work = (path, runtime.root / sizes.path, decisions, index)
            split.append(Shard(path.stem, ("documents", output.sha256, decision), work, (output, sizes)))
        done = map_shards(recipe, _split_shard, split, folder, runtime)
        outputs = [output for shard in (*signed, *done) for output in shard.outputs.values()]
        stats = sum_stats([funnel([], [], [], []), *(shard.stats for shard in done)])
        stats |= json.loads(decided.schema.metadata[b"stats"])
        stats["without_words"] = sum(shard.stats["without_words"] for shard in signed)
        return Made([*outputs, describe(target, runtime.root)], stats)

    return run_stage(recipe, origins, runtime, make)
