"""Passages of evaluation items, and where documents hold them.

`kernels/folding.py` defines a word, `kernels/passage_search.py` a match. The passages are

- each text of a set's `fields`, by itself, if it is specific enough: a length of at least `min_words` words with
  `min_letters` letters (half of these from `min_edited_words` on), and not more than two thirds of its words numbers:
  "yes" or "the cat" identify nothing. A *short* one (of fewer than SHORT_WORDS words) identifies an item only if at
  most MAX_SHARING items of its set hold it ("Which is true?" identifies none), and if it is not one of a list: a choice
  may be a name;
- each whole item, the texts of `fields` and `answer_fields` one after the other, under the same first condition: so a
  short question counts together with its choices. What a template puts between them (letters, names) is allowed for.

A document must contain:

- of a passage of fewer than `min_edited_words` words every word, and the place must be set off: before it and
  after it is the text's end, a line's end, or a mark that parts sentences, quotations or cells;
- of a longer short one every word; or all but one, and then the place must be set off, with the edited word or
  without it. "is a part of the United States" within a sentence is not an edited question, however many of its words it
  has;
- of any other the share `coverage` of its words, in order;
- of any, `run_words` words in a row;
- of a text of `fields` a *part*: PART_SHARE of its words in a row, so that half of a question is found. One of fewer
  than SHORT_WORDS words must have `min_words` words with `min_letters` letters and occur in at most MAX_SHARING places
  of the sets; one of fewer than PART_WORDS words must be set off on both sides and have half as many letters more, or
  be an *end*: the first or last words of the text, in no other place of the sets, with `min_letters` letters, in at
  least `min_words` - 1 pieces between blanks (an address of a page has one, a name few), and so rare that words drawn
  by their frequency in the sets would give them once in 2 ** END_BITS times.

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
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from governance.config import Section

if TYPE_CHECKING:
    from data_pipeline.kernels.passage_search import Index

WHOLE = "*"
SHORT_WORDS = 13  # a text of as many is unlikely to be a commonplace: the run of Brown et al. 2020 (GPT-3)
MAX_SHARING = 2
PART_SHARE = 0.45  # share of the folded words: half of them, however words are counted
PART_WORDS = 10  # with 8, one in 9,645 documents held a proverb that is half of a question; with 10, none
END_BITS = 45  # 40 bits would find 3 % more halves, 50 bits 9 % fewer
_TEMPLATE_WORDS = 4  # words that a template may put before each text of an item

Integers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]


class PassageConfig(Section):
    """Passages to search, and how much of one must match."""

    coverage: float = Field(default=0.8, gt=0.5, le=1)
    """Share of a passage's words that must occur in the document, in order."""
    run_words: int = Field(default=50, ge=8)
    """Consecutive words of a passage that suffice by themselves: a long context of which a part was copied.

    Brown et al. 2020 took 13, which also finds quotations that both contain; Lee et al. 2022 call 50 tokens in a row a
    copy."""
    min_words: int = Field(default=6, ge=4)
    """Length below which a passage is too short to be searched, in words (a Han character is 0.6 of a word)."""
    min_letters: int = Field(default=24, ge=0)
    """Letters below which a passage is not searched; a Han character counts as two, digits as none."""
    min_edited_words: int = Field(default=8, ge=4)
    """Length in words below which a passage must match word by word, and be set off."""


@dataclass(frozen=True)
class PassageIndex:
    """Passages to search, with their names."""

    index: Index
    names: tuple[tuple[str, str, str], ...]
    """Set, item and part of each passage."""
    sizes: Integers
    """Words of each passage."""
    lengths: Integers
    """Length of each passage, in tenths of a word."""
    items: dict[str, int]
    """Items of each set with at least one passage that is searched."""

    def errors(self, passage: int) -> int:
        """Number of words of a passage that may be missing."""
        return int(self.index.passages.limits[passage, 2])

    def rule(self, hit: Hit, config: PassageConfig) -> Literal["coverage", "run", "part"]:
        """The condition that decided a hit."""
        if hit.words >= self.sizes[hit.passage] - self.errors(hit.passage):
            return "coverage"
        return "run" if hit.words >= config.run_words else "part"

    def is_rare_end(self, passage: int, words: Words) -> bool:
        """Return whether the words are rare and end or begin a passage."""
        every, (first, last) = self.index.passages.words, self.index.passages.limits[passage, :2].tolist()
        count = len(words)
        if not any(np.array_equal(words, part) for part in (every[first : first + count], every[last - count : last])):
            return False
        distinct, times = self._frequencies
        found = times[np.searchsorted(distinct, words)].tolist()
        rare: bool = len(every) ** count >= math.prod(found) << END_BITS  # whole numbers: alike on every machine
        return rare

    @functools.cached_property
    def _frequencies(self) -> tuple[Words, Integers]:
        distinct, times = np.unique(self.index.passages.words, return_counts=True)
        return distinct, times

    def places(self, words: Words) -> int:
        """Number of places of the sets with these words in a row."""
        every = self.index.passages.words
        at = np.flatnonzero(every[: len(every) - len(words) + 1] == words[0])
        for k in range(1, len(words)):
            at = at[every[at + k] == words[k]]
        return len(at)


@dataclass(frozen=True)
class Measures:
    """Information content of texts; see `kernels/folding.py`."""

    words: Integers
    tenths: Integers
    """Its length in tenths of a word."""
    letters: Integers
    numbers: Integers
    """Words without a letter."""

    def specific_enough(self, config: PassageConfig) -> Flags:
        """Return whether the text is specific enough to be searched."""
        letters = np.where(self.tenths < 10 * config.min_edited_words, config.min_letters, config.min_letters // 2)
        many = (self.words >= config.min_words) & (self.tenths >= 10 * config.min_words)
        enough: Flags = many & (self.letters >= letters) & (3 * self.numbers <= 2 * self.words)
        return enough

    @property
    def short(self) -> Flags:
        """Return whether it may be a commonplace."""
        return self.tenths < 10 * SHORT_WORDS

    def errors(self, config: PassageConfig) -> Integers:
        """Number of its words that may be missing.

        For a short text it is one word or, in a script without spaces, as many characters as a word has there. For
        other texts it is what `coverage` leaves, and below `min_edited_words` none.
        """
        a_word = -(-10 * self.words // np.maximum(self.tenths, 1))
        share = self.words - np.ceil(config.coverage * self.words - 1e-9).astype(np.int64)
        return np.where(self.tenths < 10 * config.min_edited_words, 0, np.where(self.short, a_word, share))


@dataclass(frozen=True)
class _Set:
    """The passages of one set; words and passages are numbered from 0."""

    words: Words
    limits: npt.NDArray[np.int32]
    owners: npt.NDArray[np.int32]
    names: list[tuple[str, str, str]]
    lengths: Integers
    items: int
    """Items of which something says enough."""


@dataclass(frozen=True)
class _Candidates:
    """Passages of a set that are informative enough, by item."""

    rows: Integers
    """The first text."""
    texts: Integers
    """Number of texts: more than one of a whole item."""
    measures: Measures

    def at(self, places: Sequence[int] | Integers) -> _Candidates:
        """Some of them, in this order."""
        measures = (self.measures.words, self.measures.tenths, self.measures.letters, self.measures.numbers)
        return _Candidates(self.rows[places], self.texts[places], Measures(*(values[places] for values in measures)))


def _passages(table: pa.Table, config: PassageConfig) -> _Set:
    """The passages of one set's items."""
    from data_pipeline.kernels.folding import word_hashes
    from governance.kernels.buffers import text_buffers

    words, measured = word_hashes(*text_buffers(pc.utf8_normalize(table["text"], "NFC")))
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(measured[:, 0])])
    names = table["item"].to_pylist()
    found = _candidates(table, names, words, starts, measured, config)
    sought = len({names[row] for row in found.rows.tolist()})
    known: dict[bytes, int] = {}
    for place, (start, size) in enumerate(zip(starts[found.rows].tolist(), found.measures.words.tolist(), strict=True)):
        known.setdefault(words[start : start + size].tobytes(), place)
    found = found.at(list(known.values()))
    parts, name = table["part"].to_pylist(), sys.intern(table["set"][0].as_py())
    called = [
        (name, names[row], WHOLE if texts > 1 else sys.intern(parts[row]))
        for row, texts in zip(found.rows.tolist(), found.texts.tolist(), strict=True)
    ]
    limits = _limits(found, starts[found.rows], config)
    return _Set(words, limits, _owners(limits, found.texts > 1, len(words)), called, found.measures.tenths, sought)


def _candidates(
    table: pa.Table, names: Sequence[str], words: Words, starts: Integers, measured: Integers, config: PassageConfig
) -> _Candidates:
    of_text = Measures(*measured.T)
    begins = np.array([row for row in range(len(names)) if not row or names[row] != names[row - 1]], np.int64)
    sizes = np.diff(begins, append=len(names))
    alone, listed = (table[column].to_numpy() for column in ("alone", "listed"))
    named = alone & of_text.specific_enough(config) & ~(of_text.short & listed)
    keys = [words[first:last].tobytes() for first, last in itertools.pairwise(starts.tolist())]
    sharing = Counter(key for key, _ in set(zip(keys, names, strict=True)))
    for row in np.flatnonzero(named & of_text.short).tolist():
        named[row] = sharing[keys[row]] <= MAX_SHARING
    of_item = np.add.reduceat(measured, begins)
    whole = np.flatnonzero((sizes > 1) & Measures(*of_item.T).specific_enough(config))
    rows = np.flatnonzero(named)
    found = _Candidates(
        np.concatenate([rows, begins[whole]]),
        np.concatenate([np.ones(len(rows), np.int64), sizes[whole]]),
        Measures(*np.concatenate([measured[rows], of_item[whole]]).T),
    )
    item = np.searchsorted(begins, found.rows, side="right")
    return found.at(np.lexsort((found.rows, found.texts > 1, item)))


def _limits(found: _Candidates, starts: Integers, config: PassageConfig) -> npt.NDArray[np.int32]:
    from data_pipeline.kernels.passage_search import MAX_BAND, MAX_PASSAGE_WORDS

    errors = found.measures.errors(config)
    band = np.where(found.texts == 1, errors, errors + _TEMPLATE_WORDS * found.texts)
    stops = starts + np.minimum(found.measures.words, MAX_PASSAGE_WORDS)
    least = config.min_words - 1
    part = np.maximum(least, (PART_SHARE * found.measures.words).astype(np.int64))
    part = np.where((found.texts == 1) & (found.measures.words >= 2 * least), part, np.iinfo(np.int32).max)
    return np.stack([starts, stops, errors, np.minimum(MAX_BAND, band), part], axis=1).astype(np.int32)


def _owners(limits: npt.NDArray[np.int32], enclosing: Flags, words: int) -> npt.NDArray[np.int32]:
    """Passages of the seed at each word (`kernels/passage_search.py`)."""
    from data_pipeline.kernels.passage_search import SEED_WORDS

    owners = np.full((words, 2), -1, np.int32)
    seeds = np.maximum(limits[:, 1].astype(np.int64) - limits[:, 0] - SEED_WORDS + 1, 0)
    within = np.arange(seeds.sum()) - np.repeat(np.cumsum(seeds) - seeds, seeds)
    numbers = np.repeat(np.arange(len(limits)), seeds)
    owners[limits[numbers, 0] + within, enclosing[numbers].astype(np.int64)] = numbers
    return owners


def seek(tables: Iterable[pa.Table], config: PassageConfig) -> PassageIndex:
    """The passages of all items, and their index; one table per set."""
    from data_pipeline.kernels.passage_search import Passages, build_index

    sets = [_passages(table, config) for table in tables if table.num_rows]
    first_word = first_passage = 0
    for part in sets:
        part.limits[:, :2] += first_word
        part.owners[part.owners >= 0] += first_passage
        first_word, first_passage = first_word + len(part.words), first_passage + len(part.names)
    limits = np.concatenate([np.zeros((0, 5), np.int32), *(part.limits for part in sets)])
    words = np.concatenate([np.zeros(0, np.uint64), *(part.words for part in sets)])
    owners = np.concatenate([np.zeros((0, 2), np.int32), *(part.owners for part in sets)])
    return PassageIndex(
        index=build_index(Passages(words, limits, owners)),
        names=tuple(name for part in sets for name in part.names),
        sizes=(limits[:, 1] - limits[:, 0]).astype(np.int64),
        lengths=np.concatenate([np.zeros(0, np.int64), *(part.lengths for part in sets)]),
        items={part.names[0][0]: part.items for part in sets if part.names},
    )


@dataclass(frozen=True)
class Hit:
    """A passage in a document.

    The span is in bytes of its text.
    """

    passage: int
    words: int
    start: int
    end: int


_NEAR_CHARACTERS = 200
_WITHIN = frozenset(",'’&/%@-‐‑–—、")  # occur within a sentence


@functools.cache
def _word() -> re.Pattern[str]:
    from governance.kernels.buffers import UNSPACED_RANGES

    unspaced = "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED_RANGES)
    return re.compile(rf"[{unspaced}]|[^\W_{unspaced}](?:['’]?[^\W_{unspaced}])*")


def stands_alone(text: str, start: int, end: int, spare: int) -> bool:
    """Return whether the span is delimited, allowing `spare` words around it."""
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
    """The longest of overlapping hits of a set, in text order."""
    chosen: list[Hit] = []
    taken: dict[str, list[tuple[int, int]]] = defaultdict(list)  # places by set, in order, without overlap
    for hit in sorted(hits, key=lambda hit: (-hit.words, hit.start, hit.passage)):
        spans = taken[set_of(hit.passage)]
        at = bisect.bisect(spans, (hit.start, hit.end))
        free_left = at == 0 or spans[at - 1][1] <= hit.start
        if free_left and (at == len(spans) or spans[at][0] >= hit.end):
            spans.insert(at, (hit.start, hit.end))
            chosen.append(hit)
    return sorted(chosen, key=lambda hit: (hit.start, hit.end, hit.passage))


def find_hits(texts: pa.Array, sought: PassageIndex, config: PassageConfig) -> dict[int, list[Hit]]:
    """Hits of each text that has any, in text order."""
    from data_pipeline.kernels.passage_search import search
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


def _part_holds(hit: Hit, text: str, at: Integers, sought: PassageIndex, config: PassageConfig) -> bool:
    """Return whether a short part identifies its passage."""
    from data_pipeline.kernels.folding import word_hashes
    from governance.kernels.buffers import text_buffers

    start, end = int(at[hit.start]), int(at[hit.end])
    short = hit.words < PART_WORDS
    if short and not stands_alone(text, start, end, 0):
        return False
    words, measured = word_hashes(*text_buffers(pa.array([text[start:end]], pa.large_string())))
    _, tenths, letters, numbers = measured[0].tolist()
    places = sought.places(words)
    if 3 * numbers > 2 * len(words) or places > MAX_SHARING:
        return False
    if tenths >= 10 * config.min_words and 2 * letters >= (2 + short) * config.min_letters:
        return True
    says_enough = len(text[start:end].split()) >= config.min_words - 1 and letters >= config.min_letters
    return short and says_enough and places == 1 and sought.is_rare_end(hit.passage, words)


def character_offsets(text: str) -> Integers:
    """The number of characters that begin before each byte of the text."""
    data = np.frombuffer(text.encode("utf-8"), np.uint8)
    return np.concatenate([[0], np.cumsum((data & 0xC0) != 0x80)])


def _holds(hit: Hit, text: str, at: Integers, sought: PassageIndex, config: PassageConfig) -> bool:
    """Return whether a hit holds at its place.

    A hit that must be set off holds only where it is; any other holds anywhere.
    """
    if sought.rule(hit, config) == "part":
        return hit.words >= SHORT_WORDS or _part_holds(hit, text, at, sought, config)
    tenths, missing = int(sought.lengths[hit.passage]), int(sought.sizes[hit.passage]) - hit.words
    edited = missing > 0 and tenths < 10 * SHORT_WORDS and hit.words < config.run_words
    if not edited and tenths >= 10 * config.min_edited_words:
        return True
    return stands_alone(text, int(at[hit.start]), int(at[hit.end]), missing)
