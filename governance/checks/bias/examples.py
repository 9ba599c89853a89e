"""Example sentences for each cell, a bottom-k sample per shard.

A cell is a group with a category, or with a score below or above 0, in kept documents; in removed ones any mention of
the group. Texts are stored unmasked: a caller that shows one must mask personal data first
(`governance/reports/facts/samples.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from governance.checks.bias.count_tables import EXAMPLES_TABLE, schema_of
from governance.checks.bias.provenance_columns import Facts
from governance.checks.bias.sentence_tables import ABOVE, BELOW, ScoredSentences, cells_of
from governance.checks.bias.word_lists.lexicons import Lexicons, Name

if TYPE_CHECKING:
    from governance.kernels.buffers import Bytes
    from governance.kernels.mentions import Integers, TextMentions

CHARACTERS = 1000
"""Stored characters of a sentence."""


class Example(NamedTuple):
    """One sentence."""

    priority: int
    id: str
    source: str
    reason: str
    text: str


Cell = tuple[str, str, str, str, str]
"""language, axis, group, family, category."""
Kept = dict[Cell, list[Example]]


def priorities_of(ids: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """63 bits of a hash of each id: an arbitrary, fixed order."""
    from governance.kernels.identities import hash_texts

    return hash_texts(ids) >> np.uint64(1)


class CountedDocuments(NamedTuple):
    """Documents of a row group in one language and source."""

    rows: Integers
    """Their places in the group, to which the next three belong whole."""
    facts: Facts
    data: Bytes
    """UTF-8 of all texts, one after the other."""
    priorities: npt.NDArray[np.uint64]


class _Sentence(NamedTuple):
    rank: int
    row: int
    """The row of its document in the row group."""
    start: int
    end: int
    """Bytes in `CountedDocuments.data`."""


def add_examples(
    kept: Kept,
    code: str,
    lexicons: Lexicons,
    found: TextMentions,
    best: npt.NDArray[np.uint64],
    documents: CountedDocuments,
) -> None:
    """Add the kernel's sampled sentences to a shard's examples.

    Args:
        kept: examples, extended in place.
        code: the language.
        lexicons: of all languages.
        found: the kernel's result.
        best: the least priorities of each cell after it.
        documents: what was counted.
    """
    text, group, cell, start, end = found.examples.T
    ranks = _ranks(documents.priorities[documents.rows[text]], end - start)
    still = (best[group, cell] == ranks[:, None]).any(axis=1)
    names = lexicons.languages[code].everyone
    cells = cells_of(lexicons.languages[code], lexicons.instruments) if best.shape[1] > 1 else [("", "")]
    for place in np.flatnonzero(still).tolist():
        where = (code, *names[group[place]], *cells[cell[place]])
        row = int(documents.rows[text[place]])
        _keep(kept, where, _Sentence(int(ranks[place]), row, int(start[place]), int(end[place])), documents)


def add_scored_examples(
    kept: Kept, code: str, groups: Sequence[Name], scored: ScoredSentences, documents: CountedDocuments
) -> None:
    """Add the sentences of least priority on both sides of a classifier.

    Args:
        kept: examples, extended in place.
        code: the language.
        groups: names of its groups and intersections.
        scored: the classifier's sentences.
        documents: what was counted.
    """
    from governance.kernels.behind_counts import EXAMPLES

    instrument, spans, scores = scored
    text, group, start, end = spans.T
    ranks = _ranks(documents.priorities[documents.rows[text]], end - start)
    cells = np.where(scores == 0, -1, 2 * group + (scores > 0))
    in_order = np.argsort(ranks, kind="stable")
    for cell in sorted(set(cells.tolist()) - {-1}):
        mine = in_order[cells[in_order] == cell]
        first = np.sort(np.unique(text[mine], return_index=True)[1])[:EXAMPLES]
        where = (code, *groups[cell // 2], instrument, (BELOW, ABOVE)[cell % 2])
        for place in mine[first].tolist():
            row = int(documents.rows[text[place]])
            _keep(kept, where, _Sentence(int(ranks[place]), row, int(start[place]), int(end[place])), documents)


def _ranks(priorities: npt.NDArray[np.uint64], sizes: Integers) -> npt.NDArray[np.uint64]:
    """Priorities; long sentences come after all others."""
    from governance.kernels.mentions import LONG

    return priorities | ((sizes > LONG).astype(np.uint64) << np.uint64(63))


def _keep(kept: Kept, where: Cell, sentence: _Sentence, documents: CountedDocuments) -> None:
    """Keep a sentence among its cell's first, one of each document."""
    from governance.kernels.behind_counts import EXAMPLES

    rank, row, start, end = sentence
    text = bytes(documents.data[start:end]).decode("utf-8", "replace")
    words = " ".join(text[: 4 * CHARACTERS].split())[:CHARACTERS]
    facts = documents.facts
    example = Example(rank, facts.ids[row], facts.sources[row], facts.reasons[row], words)
    of_cell = kept.setdefault(where, [])
    known = [other for other in of_cell if other.id == example.id]
    if not known or known[0].priority > example.priority:
        kept[where] = sorted([*(other for other in of_cell if other.id != example.id), example])[:EXAMPLES]


def example_table(stage: str, kept: Kept) -> pa.Table:
    """The examples of a shard as a table."""
    rows = [(stage, *cell, *example) for cell, examples in kept.items() for example in examples]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema_of(EXAMPLES_TABLE))
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema_of(EXAMPLES_TABLE), strict=True)]
    return pa.table(arrays, schema=schema_of(EXAMPLES_TABLE))
