"""Example sentences for each cell, a bottom-k sample per shard.

A cell is a group with a category, or with a score below or above 0, in kept documents; in removed ones any mention of
the group. Texts are stored unmasked: a caller that shows one must mask personal data first
(`governance/reports/facts/samples.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from governance.checks.bias.count_tables import EXAMPLES_TABLE, schema_of
from governance.checks.bias.sentence_tables import cells_of
from governance.checks.bias.word_lists.lexicons import Lexicons
from governance.kernels.behind_counts import EXAMPLES

if TYPE_CHECKING:
    from governance.kernels.buffers import Bytes, Offsets
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


class Documents(Protocol):
    """Facts of each document, for examples."""

    @property
    def ids(self) -> list[str]:
        """Names in the corpus."""

    @property
    def sources(self) -> list[str]:
        """Sources of the documents."""

    @property
    def reasons(self) -> list[str]:
        """Removal reasons of the documents."""


def priorities_of(ids: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """63 bits of a hash of each id: an arbitrary, fixed order."""
    from governance.kernels.identities import hash_texts

    return hash_texts(ids) >> np.uint64(1)


def add_examples(
    kept: Kept,
    lists: tuple[str, Lexicons],
    counted: tuple[TextMentions, npt.NDArray[np.uint64]],
    rows: tuple[Integers, npt.NDArray[np.uint64]],
    documents: tuple[Documents, tuple[Bytes, Offsets]],
) -> None:
    """Add the kernel's sampled sentences to a shard's examples.

    Args:
        kept: examples, extended in place.
        lists: the language, and the lexicons.
        counted: the kernel's result, and the least priorities of each cell after it.
        rows: counted documents, and the priorities of all.
        documents: facts and texts of all.
    """
    from governance.kernels.mentions import LONG

    (code, lexicons), (found, best), (counted_rows, priorities) = lists, counted, rows
    facts, (data, _) = documents
    text, group, cell, start, end = found.examples.T
    ranks = priorities[counted_rows[text]] | ((end - start > LONG).astype(np.uint64) << np.uint64(63))
    still = (best[group, cell] == ranks[:, None]).any(axis=1)
    names = lexicons.languages[code].everyone
    cells = cells_of(lexicons.languages[code], lexicons.instruments) if best.shape[1] > 1 else [("", "")]
    for place in np.flatnonzero(still).tolist():
        row = int(counted_rows[text[place]])
        where = (code, *names[group[place]], *cells[cell[place]])
        sentence = bytes(data[start[place] : end[place]]).decode("utf-8", "replace")
        words = " ".join(sentence[: 4 * CHARACTERS].split())[:CHARACTERS]
        example = Example(int(ranks[place]), facts.ids[row], facts.sources[row], facts.reasons[row], words)
        of_cell = kept.setdefault(where, [])
        known = [one for one in of_cell if one.id == example.id]
        if not known or known[0].priority > example.priority:
            kept[where] = sorted([*(one for one in of_cell if one.id != example.id), example])[:EXAMPLES]


def example_table(stage: str, kept: Kept) -> pa.Table:
    """The examples of a shard as a table."""
    rows = [(stage, *cell, *example) for cell, examples in kept.items() for example in examples]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema_of(EXAMPLES_TABLE))
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema_of(EXAMPLES_TABLE), strict=True)]
    return pa.table(arrays, schema=schema_of(EXAMPLES_TABLE))
