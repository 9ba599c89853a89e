"""Passages of evaluation items, and where documents hold them.

`kernels/folding.py` says what a word is, `kernels/ngrams.py` when a passage is found. The passages are

- each text of a set's `fields`, by itself, if it says enough: a length of at least `min_words` words with `min_letters`
  letters (half of these from `min_edited_words` on), and not more than two thirds of its words numbers: "yes" or
  "the cat" name nothing. A *short* one (of fewer than SHORT_WORDS words) names an item only if no more than MAX_SHARING
  items of its set hold it ("Which is true?" names none), and if it is not one of a list: a choice may be a mere name;
- each whole item, the texts of `fields` and `answer_fields` one after the other, under the same first condition: so a
  short question counts together with its choices. What a template puts between them (letters, names) is allowed for.

What must stand in a document:

- of a passage of fewer than `min_edited_words` words every word, and the place must stand by itself: before it and
  behind it is the text's end, a line's end, or a mark that parts sentences, quotations or cells;
- of a longer short one every word; or all but one, and then the place must stand by itself, with the edited word or
  without. "is a part of the United States" within a sentence is no edited question, however many of its words it has;
- of any other the share `coverage` of its words, in order;
- of any, `run_words` words in a row.

Equal texts of one set are one passage, named by the first item that holds it.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
import re
import sys
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from governance.config import Section

if TYPE_CHECKING:
    from data_pipeline.kernels.ngrams import Index

WHOLE = "*"
SHORT_WORDS = 13  # from here on a text is no commonplace: the run that Brown et al. 2020 (GPT-3) call contamination
MAX_SHARING = 2
_TEMPLATE_WORDS = 4  # that a template may put before each text of an item

Integers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


class PassageConfig(Section):
    """What is looked for, and how much of it must stand in a document."""

    coverage: float = Field(default=0.8, gt=0.5, le=1)
    """Words of a passage that must stand in the document, in order, of all its words."""
    run_words: int = Field(default=50, ge=8)
    """Words of a passage in a row that are enough by themselves: a long context of which a part was copied.

    Brown et al. 2020 took 13, which also finds what both quote; Lee et al. 2022 call 50 tokens in a row a copy."""
    min_words: int = Field(default=6, ge=4)
    """Length below which a passage says too little to be looked for, in words (a Han character is 0.6 of a word)."""
    min_letters: int = Field(default=24, ge=0)
    """Letters below which a passage says too little; a Han character counts as two, digits as none."""
    min_edited_words: int = Field(default=8, ge=4)
    """Length in words below which a passage must stand there word by word, and by itself."""


@dataclass(frozen=True)
class Sought:
    """What is looked for, and what each passage is called."""

    index: Index
    names: tuple[tuple[str, str, str], ...]
    """Of each passage: set, item, part."""
    sizes: Integers
    """Words of each passage."""
    lengths: Integers
    """Length of each passage, in tenths of a word."""
    items: dict[str, int]
    """Of each set: items of which something says enough to be looked for."""

    def errors(self, passage: int) -> int:
        """How many words of a passage may be missing."""
        return int(self.index.passages.limits[passage, 2])


@dataclass(frozen=True)
class Measures:
    """How much a text says; see `kernels/folding.py`."""

    words: int
    tenths: int
    """Its length in tenths of a word."""
    letters: int
    numbers: int
    """Words without a letter."""

    def says_enough(self, config: PassageConfig) -> bool:
        """Whether it is worth looking for."""
        letters = config.min_letters if self.tenths < 10 * config.min_edited_words else config.min_letters // 2
        many = self.words >= config.min_words and self.tenths >= 10 * config.min_words
        return many and self.letters >= letters and 3 * self.numbers <= 2 * self.words

    @property
    def short(self) -> bool:
        """Whether it may be a commonplace."""
        return self.tenths < 10 * SHORT_WORDS

    def errors(self, config: PassageConfig) -> int:
        """How many of its words may be missing; of a short text one, or as many characters as a word has there."""
        if self.tenths < 10 * config.min_edited_words:
            return 0
        if self.short:
            return -(-10 * self.words // self.tenths)
        return self.words - math.ceil(config.coverage * self.words - 1e-9)


class _Gathering:
    """Passages as they are gathered, set by set; all of it numbers and names, the texts are let go."""

    def __init__(self, config: PassageConfig) -> None:
        self.config = config
        self.names: list[tuple[str, str, str]] = []
        self.limits = array("i")  # four numbers a passage
        self.lengths = array("q")
        self.words: list[Words] = []
        self.owners: list[npt.NDArray[np.int32]] = []
        self.items: dict[str, int] = {}
        self.start = 0  # words of the sets before this one

    def add_set(self, table: pa.Table) -> None:
        """Take the passages of one set's items."""
        from data_pipeline.kernels.folding import word_hashes
        from governance.kernels.buffers import text_buffers

        words, measured = word_hashes(*text_buffers(pc.utf8_normalize(table["text"], "NFC")))
        starts = np.cumsum([0, *measured[:, 0]]).tolist()
        keys = [words[first:last].tobytes() for first, last in itertools.pairwise(starts)]
        names, parts = table["item"].to_pylist(), [sys.intern(part) for part in table["part"].to_pylist()]
        sharing = Counter(key for key, _ in set(zip(keys, names, strict=True)))
        alone, listed = table["alone"].to_pylist(), table["listed"].to_pylist()
        name = sys.intern(table["set"][0].as_py())
        owners, known, sought = np.full((len(words), 2), -1, np.int32), set[bytes](), set[str]()

        def add(part: str, row: int, measures: Measures, texts: int) -> None:
            if not measures.says_enough(self.config):
                return
            sought.add(names[row])
            span = slice(starts[row], starts[row] + measures.words)
            if (key := words[span].tobytes()) not in known:
                known.add(key)
                self._add((name, names[row], part), span, measures, texts, owners)

        for first, last in _items(names):
            for row in range(first, last):
                measures = Measures(*measured[row].tolist())
                common = measures.short and (listed[row] or sharing[keys[row]] > MAX_SHARING)
                if alone[row] and not common:
                    add(parts[row], row, measures, 1)
            if last - first > 1:
                add(WHOLE, first, Measures(*measured[first:last].sum(axis=0).tolist()), last - first)
        self.words.append(words)
        self.owners.append(owners)
        self.items[name] = len(sought)
        self.start += len(words)

    def _add(
        self, name: tuple[str, str, str], span: slice, measures: Measures, texts: int, owners: npt.NDArray[np.int32]
    ) -> None:
        from data_pipeline.kernels.ngrams import MAX_BAND, MAX_PASSAGE_WORDS, SEED_WORDS

        last = min(span.stop, span.start + MAX_PASSAGE_WORDS)
        errors = measures.errors(self.config)
        band = errors if texts == 1 else errors + _TEMPLATE_WORDS * texts
        owners[span.start : last - SEED_WORDS + 1, int(texts > 1)] = len(self.names)
        self.names.append(name)
        self.limits.extend((self.start + span.start, self.start + last, errors, min(MAX_BAND, band)))
        self.lengths.append(measures.tenths)


def seek(tables: Iterable[pa.Table], config: PassageConfig) -> Sought:
    """The passages of all items, and their index; a table a set."""
    from data_pipeline.kernels.ngrams import Passages, build_index

    gathered = _Gathering(config)
    for table in tables:
        if table.num_rows:
            gathered.add_set(table)
    limits = np.array(gathered.limits, np.int32).reshape(-1, 4)
    words = np.concatenate([np.zeros(0, np.uint64), *gathered.words])
    owners = np.concatenate([np.zeros((0, 2), np.int32), *gathered.owners])
    return Sought(
        index=build_index(Passages(words, limits, owners)),
        names=tuple(gathered.names),
        sizes=(limits[:, 1] - limits[:, 0]).astype(np.int64),
        lengths=np.array(gathered.lengths, np.int64),
        items=gathered.items,
    )


def _items(names: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The rows of each item: from, to."""
    first = 0
    for row in range(1, len(names) + 1):
        if row == len(names) or names[row] != names[first]:
            yield first, row
            first = row


@dataclass(frozen=True)
class Hit:
    """A passage in a document; the span is in bytes of its text."""

    passage: int
    words: int
    start: int
    end: int


_NEAR_CHARACTERS = 200
_WITHIN = frozenset(",'’&/%@-‐‑–—、")  # stand within a sentence


@functools.cache
def _word() -> re.Pattern[str]:
    from governance.kernels.buffers import UNSPACED_RANGES

    unspaced = "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED_RANGES)
    return re.compile(rf"[{unspaced}]|[^\W_{unspaced}](?:['’]?[^\W_{unspaced}])*")


def stands_alone(text: str, start: int, end: int, spare: int) -> bool:
    """Whether a mark or an end parts `text[start:end]`, with up to `spare` words around it, from what is around."""
    before, behind = text[max(0, start - _NEAR_CHARACTERS) : start], text[end : end + _NEAR_CHARACTERS]
    left, right = _word().split(before)[::-1], _word().split(behind)
    parts_left = [_parts(gap) or (k == len(left) - 1 and len(before) == start) for k, gap in enumerate(left)]
    ends = end + _NEAR_CHARACTERS >= len(text)
    parts_right = [_parts(gap) or (k == len(right) - 1 and ends) for k, gap in enumerate(right)]
    return any(any(parts_right[: spare + 1 - k]) for k in range(min(len(left), spare + 1)) if parts_left[k])


def _parts(gap: str) -> bool:
    return any(
        character == "\n" or (unicodedata.category(character)[0] in "PS" and character not in _WITHIN)
        for character in gap
    )


def strongest(hits: Sequence[Hit], set_of: Callable[[int], str]) -> list[Hit]:
    """Of hits of one set that overlap, that of the most words (then the first); in the order of their places."""
    chosen: list[Hit] = []
    taken: dict[str, list[tuple[int, int]]] = defaultdict(list)  # by set, in order, without overlap
    for hit in sorted(hits, key=lambda hit: (-hit.words, hit.start, hit.passage)):
        spans = taken[set_of(hit.passage)]
        at = bisect.bisect(spans, (hit.start, hit.end))
        free_left = at == 0 or spans[at - 1][1] <= hit.start
        if free_left and (at == len(spans) or spans[at][0] >= hit.end):
            spans.insert(at, (hit.start, hit.end))
            chosen.append(hit)
    return sorted(chosen, key=lambda hit: (hit.start, hit.end, hit.passage))


def find_hits(texts: pa.Array, sought: Sought, config: PassageConfig) -> dict[int, list[Hit]]:
    """Of each text in which something is found: what, in the order of the places."""
    from data_pipeline.kernels.ngrams import search
    from governance.kernels.buffers import text_buffers

    found: dict[int, list[Hit]] = defaultdict(list)
    for row, *hit in search(*text_buffers(texts), sought.index, config.run_words).tolist():
        found[row].append(Hit(*hit))
    chosen = {}
    for row, hits in found.items():
        text: str = texts[row].as_py()
        at = character_offsets(text)
        sure = [hit for hit in hits if _holds(hit, text, at, sought, config)]
        if sure:
            chosen[row] = strongest(sure, lambda passage: sought.names[passage][0])
    return chosen


def character_offsets(text: str) -> Integers:
    """The number of characters that begin before each byte of the text."""
    data = np.frombuffer(text.encode("utf-8"), np.uint8)
    return np.concatenate([[0], np.cumsum((data & 0xC0) != 0x80)])


def _holds(hit: Hit, text: str, at: Integers, sought: Sought, config: PassageConfig) -> bool:
    """Whether a hit that must stand by itself does; any other holds."""
    tenths, missing = int(sought.lengths[hit.passage]), int(sought.sizes[hit.passage]) - hit.words
    edited = missing > 0 and tenths < 10 * SHORT_WORDS and hit.words < config.run_words
    if not edited and tenths >= 10 * config.min_edited_words:
        return True
    return stands_alone(text, int(at[hit.start]), int(at[hit.end]), missing)
