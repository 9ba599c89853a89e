"""Count tables: integers by key, summed over shards.

A table is Arrow: keys, then int64 counts; sorted by its keys; without rows of zeros. `bucket` is that of the document's
cluster (`provenance_columns.py`), `language` the column's ("und" where it is empty), `length_bin` floor(log2(words)),
0 to 15.

    documents   language, source, bucket -> documents, words, sentences, bytes
    axes        language, bucket, axis -> documents that mention any group of the axis
    groups      language, source, bucket, axis, group -> documents, mentions, sentences with a mention
    categories  language, source, bucket, family, category -> sentences
    pairs       language, source, bucket, axis, group, family, category -> sentences
    scores      language, source, bucket, axis, group, instrument -> sentences, total, squares, hits
                total and squares of the sentences' scores, hits: sentences with a listed word, or that a
                classifier gives half a point or more; axis and group are "" for sentences without a mention
    fates       stage, reason, source, site, language, length_bin, bucket, axis, group -> documents
                `site` is the host, "" without one, "(small sites)" beyond the MAX_SITES with most documents;
                outcome of each document that entered the first filter: "kept", or the stage that removed it; once for
                each group that it mentions, and with the group "" on an axis of which it mentions none. In a language
                without term lists: once, with axis and group "", since its mentions are unknown
    shares      dimension, value, bucket -> documents, bytes, words; of language, source, domain, licence, year,
                country, dialect
    terms       stage, language, term, family, category -> mentions
                of an identity term: all of them (family and category ""), and in kept documents those in sentences
                with the category, or with a score "below" or "above" 0 (family: the instrument)
    beside      language, source, axis, group, term -> words, scored
                of any other term in sentences that mention the group ("": no group): its occurrences, and those
                outside identity terms, as scores count it

The table `examples` is not a sum: for each stage, language, axis, group, family and category the `EXAMPLES` sentences
with the least `priority`, each of another document (`examples.py`). Intersections (`crossed.py`) are groups of axes of
their own in `groups`, `pairs`, `scores` and `beside`.

Promise: any order, any partition into shards, any crash gives the same bytes. Bytes are of the text as it is stored,
words and sentences as `kernels/sentences.py` has them. Price: memory is one row group, 64 x groups x categories
integers per language and source (`MAX_BYTES` and one row group's at most), and a row for each host: the process that
merges holds those of the whole corpus. Time is in `bias.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from governance.checks.bias.count_tables import ALL_TABLES, EXAMPLES_TABLE, Tables, merged, table_of, write_part
from governance.checks.bias.examples import (
    CountedDocuments,
    Kept,
    add_examples,
    add_scored_examples,
    example_table,
    priorities_of,
)
from governance.checks.bias.provenance_columns import UNKNOWN, Facts, country_of, facts_of, year_of
from governance.checks.bias.sentence_tables import (
    ScoredSentences,
    SentenceScorer,
    removed_tables,
    score_table,
    sentence_scores,
    sentence_tables,
)
from governance.checks.bias.statistics import BUCKETS, Integers
from governance.checks.bias.word_lists.lexicons import Lexicon, Lexicons, pack_lexicon
from governance.config import Section
from governance.errors import read_errors
from governance.parallel import ShardMade

if TYPE_CHECKING:
    from governance.kernels.mentions import MentionSums, Packed, TextMentions

KEPT = "kept"
LENGTH_BINS = 16
MAX_BYTES = 256 << 20
"""Limit of sentence counts in memory."""
_COLUMNS = ("id", "text", "source", "url", "language", "licence")


@dataclass(frozen=True)
class CountTask:
    """One shard to count."""

    path: Path
    stage: str
    """"kept", or the stage that removed these documents."""
    lexicons: Lexicons
    scorers: tuple[SentenceScorer, ...] = ()
    """Classifiers of the tone of sentences."""


def count_shard(section: Section, work: CountTask, path_of: Callable[[str], Path]) -> ShardMade:
    """Count one shard of kept or removed documents and write its part."""
    found = count_groups(read_groups(work.path, work.stage != KEPT), work.stage, work.lexicons, work.scorers)
    write_part(path_of("parts"), found)
    return ShardMade({"parts": path_of("parts")}, {})


def read_groups(path: Path, removed: bool) -> Iterator[pa.Table]:
    """Row groups of a shard with the counted columns.

    Raises:
        ManifestError: it cannot be read, or lacks a column.
    """
    columns = [*_COLUMNS, *(["reason"] if removed else [])]
    with (
        read_errors(path, "cannot be read as a document shard"),
        pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file,
    ):
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=columns, use_threads=False).select(columns)
            pa.default_memory_pool().release_unused()  # else a worker keeps the memory of its largest group


def count_groups(
    groups: Iterable[pa.Table], stage: str, lexicons: Lexicons, scorers: Sequence[SentenceScorer] = ()
) -> dict[str, pa.Table]:
    """Count tables of one stage's documents."""
    parts: Tables = {name: [] for name in ALL_TABLES}
    running = Running({}, {}, {}, scorers if stage == KEPT else ())
    for group in groups:
        if group.num_rows:
            _count_group(group, stage, lexicons, running, parts)
        if sum(part.nbytes for sums in running.sums.values() for part in sums) > MAX_BYTES:
            _write_out(stage, lexicons, running, parts)
        for name, pending in parts.items():
            if len(pending) > 32:
                parts[name] = [merged(name, pending)]
    _write_out(stage, lexicons, running, parts)
    parts[EXAMPLES_TABLE].append(example_table(stage, running.kept))
    return {name: merged(name, pending) for name, pending in parts.items()}


@dataclass(frozen=True)
class Running:
    """Running state while a shard is counted."""

    sums: dict[tuple[str, str], MentionSums]
    """Language and source -> counts of sentences."""
    best: dict[str, npt.NDArray[np.uint64]]
    """Language -> the least priorities of each cell, which its sources share."""
    kept: Kept
    scorers: Sequence[SentenceScorer] = ()

    def sums_of(self, code: str, source: str, packed: Packed, deep: bool) -> MentionSums:
        """The sums of a language and source, empty at first."""
        from governance.kernels.mentions import no_sums

        if (code, source) not in self.sums:
            fresh = no_sums(packed, deep)
            self.sums[code, source] = fresh._replace(best=self.best.setdefault(code, fresh.best))
        return self.sums[code, source]


def _write_out(stage: str, lexicons: Lexicons, running: Running, parts: Tables) -> None:
    """Move the sums into `parts` to bound memory over many sources."""
    for (code, source), sums in running.sums.items():
        packed = _packed(lexicons, code)
        deep = stage == KEPT
        tables = (
            sentence_tables(code, source, lexicons, packed, sums) if deep else removed_tables(stage, code, packed, sums)
        )
        for name, table in tables:
            parts[name].append(table)
    running.sums.clear()


def _in_nfc(texts: pa.ChunkedArray) -> pa.Array:
    """The texts in NFC; Python sees only those that may not be."""
    import unicodedata

    from governance.kernels.buffers import MAY_NOT_BE_NFC, scan_texts, text_buffers

    column = texts.cast(pa.large_string()).combine_chunks()
    column = column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks)
    changed = {}
    for row in np.flatnonzero(scan_texts(*text_buffers(column)) & MAY_NOT_BE_NFC).tolist():
        text = column[row].as_py()
        if not unicodedata.is_normalized("NFC", text):
            changed[row] = unicodedata.normalize("NFC", text)
    if not changed:
        return column
    mask = np.zeros(len(column), bool)
    mask[list(changed)] = True
    return pc.replace_with_mask(column, pa.array(mask), pa.array(changed.values(), pa.large_string()))


@functools.lru_cache(maxsize=64)
def _packed(lexicons: Lexicons, code: str) -> Packed:
    return pack_lexicon(lexicons.languages.get(code), len(lexicons.instruments))


def _count_group(group: pa.Table, stage: str, lexicons: Lexicons, running: Running, parts: Tables) -> None:
    """Count one row group into `running` and `parts`."""
    from governance.kernels.buffers import text_buffers
    from governance.kernels.mentions import count_texts

    facts = facts_of(group)
    priorities = priorities_of(group["id"])
    buffers = text_buffers(_in_nfc(group["text"]))
    words, sentences = np.zeros((2, len(group)), np.int64)
    dialects = np.full(len(group), UNKNOWN, object)
    for code, source, rows in _by_language_and_source(facts):
        lexicon = lexicons.languages.get(code)
        packed = _packed(lexicons, code if lexicon else "")
        sums = running.sums_of(code, source, packed, stage == KEPT) if lexicon else None
        buckets = facts.buckets[rows]
        documents = CountedDocuments(rows, facts, buffers[0], priorities)
        scorers = [scorer for scorer in running.scorers if lexicon and code in scorer.languages]
        found = count_texts(buffers, rows, buckets, packed, sums, priorities[rows], spans=bool(scorers))
        words[rows], sentences[rows] = found.words, found.sentences
        if sums:
            add_examples(running.kept, code, lexicons, found, sums.best, documents)
        named = lexicon.everyone if lexicon else ()
        for scorer in scorers:
            scores = sentence_scores(scorer, found.spans, buffers[0])
            scored = ScoredSentences(scorer.instrument, found.spans, scores)
            parts["scores"].append(score_table(code, source, named, scored, buckets))
            add_scored_examples(running.kept, code, named, scored, documents)
        if lexicon and stage == KEPT:
            for name, table in _mention_tables(code, source, lexicon, buckets, found):
                parts[name].append(table)
            names = np.array([*lexicon.dialects, UNKNOWN], object)
            dialects[rows] = names[found.dialects]
        parts["fates"].append(_fates(stage, code, lexicon, facts, rows, found))
    if stage == KEPT:
        parts["documents"].append(_documents(facts, words, sentences))
        parts["shares"] += _shares(facts, words, dialects)


def _by_language_and_source(facts: Facts) -> Iterator[tuple[str, str, Integers]]:
    """The rows of each language and source, in order."""
    sources = np.array(facts.sources, object)
    for code in sorted(set(facts.languages.tolist())):
        of_language = facts.languages == code
        for source in sorted(set(sources[of_language].tolist())):
            yield code, source, np.flatnonzero(of_language & (sources == source))


def _documents(facts: Facts, words: Integers, sentences: Integers) -> pa.Table:
    return table_of(
        "documents",
        language=facts.languages,
        source=np.array(facts.sources, object),
        bucket=facts.buckets,
        documents=np.ones(len(words), np.int64),
        words=words,
        sentences=sentences,
        bytes=facts.sizes,
    )


def _of_groups(lexicon: Lexicon, found: TextMentions) -> Integers:
    """Events of groups, not of intersections."""
    return found.events[found.events[:, 1] < len(lexicon.groups)]


def _mentioned(lexicon: Lexicon, found: TextMentions) -> npt.NDArray[np.bool_]:
    """(documents, axes): which documents mention any group of which axis."""
    seen = np.zeros((len(found.words), len(lexicon.axes)), bool)
    events = _of_groups(lexicon, found)
    axes = np.array([lexicon.axes.index(axis) for axis, _ in lexicon.groups], np.int64)
    seen[events[:, 0], axes[events[:, 1]]] = True
    return seen


def _mention_tables(
    code: str, source: str, lexicon: Lexicon, buckets: Integers, found: TextMentions
) -> Iterator[tuple[str, pa.Table]]:
    groups = np.zeros((BUCKETS, len(lexicon.everyone), 3), np.int64)
    place = (buckets[found.events[:, 0]], found.events[:, 1])
    np.add.at(groups, place, np.stack([np.ones(len(found.events), np.int64), *found.events[:, 2:].T], axis=1))
    bucket, group = np.nonzero(groups[:, :, 0])
    documents, mentions, sentences = groups[bucket, group].T
    names = np.array(lexicon.everyone, object).reshape(-1, 2)[group]
    yield "groups", table_of(
        "groups", language=code, source=source, bucket=bucket, axis=names[:, 0], group=names[:, 1],
        documents=documents, mentions=mentions, sentences=sentences,
    )  # fmt: skip
    axes = np.zeros((BUCKETS, len(lexicon.axes)), np.int64)
    np.add.at(axes, buckets, _mentioned(lexicon, found))
    bucket, axis = np.nonzero(axes)
    named = np.array(lexicon.axes, object)[axis]
    yield "axes", table_of("axes", language=code, bucket=bucket, axis=named, documents=axes[bucket, axis])


def _fates(
    stage: str, code: str, lexicon: Lexicon | None, facts: Facts, rows: Integers, found: TextMentions
) -> pa.Table:
    """Outcomes of the documents `rows`, by mentioned groups."""
    bins = np.clip(np.log2(np.maximum(found.words, 1)).astype(np.int64), 0, LENGTH_BINS - 1)
    reasons, reason = np.unique(np.array(facts.reasons, object)[rows], return_inverse=True)
    sources, source = np.unique(np.array(facts.sources, object)[rows], return_inverse=True)
    sites, site = np.unique(np.array(facts.hosts, object)[rows], return_inverse=True)
    kind = ((reason * len(sources) + source) * len(sites) + site) * LENGTH_BINS + bins
    kind = kind * BUCKETS + facts.buckets[rows]
    names: list[tuple[str, str]] = [("", "")]
    document, label = np.arange(len(rows)), np.zeros(len(rows), np.int64)
    if lexicon:
        names = [*lexicon.groups, *((axis, "") for axis in lexicon.axes)]
        none, axis = np.nonzero(~_mentioned(lexicon, found))
        events = _of_groups(lexicon, found)
        document = np.concatenate([events[:, 0], none])
        label = np.concatenate([events[:, 1], axis + len(lexicon.groups)])
    keys, documents = np.unique(kind[document] * len(names) + label, return_counts=True)
    kinds, label = np.divmod(keys, len(names))
    kinds, bucket = np.divmod(kinds, BUCKETS)
    kinds, length = np.divmod(kinds, LENGTH_BINS)
    kinds, site = np.divmod(kinds, len(sites))
    reason, source = np.divmod(kinds, len(sources))
    named = np.array(names, object).reshape(-1, 2)[label]
    return table_of(
        "fates", stage=stage, reason=reasons[reason], source=sources[source], site=sites[site], language=code,
        length_bin=length, bucket=bucket, axis=named[:, 0], group=named[:, 1], documents=documents,
    )  # fmt: skip


def _shares(facts: Facts, words: Integers, dialects: npt.NDArray[np.object_]) -> Iterator[pa.Table]:
    values: dict[str, Sequence[str]] = {
        "language": facts.languages.tolist(),
        "source": facts.sources,
        "domain": [host or UNKNOWN for host in facts.hosts],
        "licence": facts.licences,
        "year": [year_of(url) for url in facts.urls],
        "country": [country_of(host) for host in facts.hosts],
        "dialect": dialects.tolist(),
    }
    for dimension, of in values.items():
        coded = pa.array(of, pa.string()).dictionary_encode()
        keys, place = np.unique(coded.indices.to_numpy() * BUCKETS + facts.buckets, return_inverse=True)
        sums = np.zeros((len(keys), 3), np.int64)
        np.add.at(sums, place, np.stack([np.ones(len(words), np.int64), facts.sizes, words], axis=1))
        value = coded.dictionary.take(pa.array(keys // BUCKETS))
        documents, size, number = sums.T
        yield table_of(
            "shares", dimension=dimension, value=value, bucket=keys % BUCKETS, documents=documents, bytes=size,
            words=number,
        )  # fmt: skip
