"""Count tables of one language's sentences, from the kernel's sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from governance.checks.bias.count_tables import table_of
from governance.checks.bias.word_lists.lexicons import Lexicon, Lexicons, Name

if TYPE_CHECKING:
    from governance.kernels.mentions import MentionSums, Packed

KEPT = "kept"
BELOW, ABOVE = "below", "above"
"""The sides of an instrument: sentences whose score is below 0, and above."""


def sentence_tables(
    of: tuple[str, str], lexicons: Lexicons, packed: Packed, sums: MentionSums
) -> Iterator[tuple[str, pa.Table]]:
    """Count tables of the sentences of one language and source."""
    code, source = of
    lexicon = lexicons.languages[code]
    groups = np.array([*lexicon.everyone, ("", "")], object).reshape(-1, 2)
    categories = np.array(lexicon.categories, object).reshape(-1, 2)
    bucket, category = np.nonzero(sums.categories)
    named = categories[category]
    yield "categories", table_of(
        "categories", language=code, source=source, bucket=bucket, family=named[:, 0],
        category=named[:, 1], sentences=sums.categories[bucket, category],
    )  # fmt: skip
    bucket, group, category = np.nonzero(sums.pairs)
    mentioned, named = groups[group], categories[category]
    yield "pairs", table_of(
        "pairs", language=code, source=source, bucket=bucket, axis=mentioned[:, 0], group=mentioned[:, 1],
        family=named[:, 0], category=named[:, 1], sentences=sums.pairs[bucket, group, category],
    )  # fmt: skip
    scored = np.array([code in lexicons.scored[name] for name in lexicons.instruments], bool)
    bucket, group, instrument = np.nonzero(sums.scores[:, :, :, 0] * scored)
    mentioned = groups[group]
    sentences, total, squares, hits = sums.scores[bucket, group, instrument].T
    yield "scores", table_of(
        "scores", language=code, source=source, bucket=bucket, axis=mentioned[:, 0], group=mentioned[:, 1],
        instrument=np.array(lexicons.instruments, object)[instrument], sentences=sentences, total=total,
        squares=squares, hits=hits,
    )  # fmt: skip
    yield "terms", _terms(KEPT, code, packed, sums, cells_of(lexicon, lexicons.instruments))
    group, term = np.nonzero(sums.beside[:, :, 0])
    mentioned, words = groups[group], np.array([" ".join(words) for words in packed.terms[1]], object)
    yield "beside", table_of(
        "beside", language=code, source=source, axis=mentioned[:, 0], group=mentioned[:, 1], term=words[term],
        words=sums.beside[group, term, 0], scored=sums.beside[group, term, 1],
    )  # fmt: skip


def removed_tables(stage: str, code: str, packed: Packed, sums: MentionSums) -> Iterator[tuple[str, pa.Table]]:
    """Tables of the groups that removed documents of one language mention."""
    yield "terms", _terms(stage, code, packed, sums, [])


def cells_of(lexicon: Lexicon, instruments: Sequence[str]) -> list[Name]:
    """The (family, category) of each cell of the kernel's.

    Categories come first, then the two sides of each instrument.
    """
    return [*lexicon.categories, *((name, side) for name in instruments for side in (BELOW, ABOVE))]


def _terms(stage: str, code: str, packed: Packed, sums: MentionSums, cells: Sequence[Name]) -> pa.Table:
    term, cell = np.nonzero(sums.named)
    named = np.array([("", ""), *cells], object).reshape(-1, 2)[cell]
    words = np.array([" ".join(words) for words in packed.terms[0]], object)
    return table_of(
        "terms", stage=stage, language=code, term=words[term], family=named[:, 0], category=named[:, 1],
        mentions=sums.named[term, cell],
    )  # fmt: skip
