"""Counts of group mentions and their context words, in one pass.

A *term* is a word or a phrase of words (`words.py`: of a script without spaces each character is a word, so there the
longest term that begins at a character is found). Two sets of terms are matched, each by itself: identity terms, whose
labels are groups, and the others, whose labels are categories, weights of an instrument, or dialects. Of the terms of
a set that begin at a word the longest counts, and it uses its words up. A phrase may run over the end of a sentence;
it belongs to the sentence in which it begins. Weights of a word that an identity term uses up do not count.

The evidence of the counts is kept on the way: how often each term was found next to which group, and of each cell (a
group with a category, or with a tone) the three sentences whose documents have the least priorities, each of another
document (bottom-k sampling; Cohen & Kaplan 2007, PODC). A priority is a hash of the document's id, so any order and
any partition keeps the same three; a sentence of more than `LONG` bytes gives way to shorter ones.

Price: one look at each byte; memory is the packed lists and, where sentences are counted, 64 x groups x
categories integers, and groups x other terms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import uint64

from governance.kernels.behind_counts import EXAMPLES, NO_PRIORITY, add_terms, has_room, keep_examples, more_rows
from governance.kernels.buffers import Bytes, Offsets
from governance.kernels.compiled import inlined, kernel, part
from governance.kernels.sentences import hash_word, scan, word_tables

BUCKETS = 64
CATEGORY, WEIGHT, DIALECT = 0, 1, 2
SCORES = 4  # sentences, total, squares, hits
LONG = 400

Integers = npt.NDArray[np.int64]
Words = tuple[str, ...]
Label = tuple[int, int, int]
"""(CATEGORY, number, 0), (WEIGHT, instrument, weight) or (DIALECT, number, 0); for identity terms (0, group, 0)."""


class Matcher(NamedTuple):
    """Terms by the number of their first word; the longest first."""

    first: npt.NDArray[np.int32]
    """The terms that begin with word w are `first[w]` to `first[w + 1]`."""
    starts: npt.NDArray[np.int32]
    """The words of term t are `words[starts[t]:starts[t + 1]]`."""
    words: npt.NDArray[np.int32]
    label_starts: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    """Rows of (kind, number, weight)."""


@dataclass(frozen=True)
class Packed:
    """The lists of one language as the kernel reads them."""

    listed: tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32]]
    identity: Matcher
    others: Matcher
    sizes: tuple[int, int, int, int]
    """Groups, categories, instruments, dialects."""
    crossed: npt.NDArray[np.int32]
    """(groups, groups): the group that a sentence mentions, too, where it mentions both; -1 for none."""
    terms: tuple[tuple[Words, ...], tuple[Words, ...]]
    """The identity terms and the others, by number."""


def pack(
    identity: Mapping[Words, Sequence[Label]],
    others: Mapping[Words, Sequence[Label]],
    sizes: tuple[int, int, int, int],
    crossed: Mapping[tuple[int, int], int] | None = None,
) -> Packed:
    """Pack terms: tuples of case-folded words, with their labels.

    `crossed` maps two groups to their intersection.
    """
    vocabulary = sorted({word for terms in (identity, others) for term in terms for word in term})
    numbers = {word: number for number, word in enumerate(vocabulary)}
    room = 1
    while room < 4 * len(vocabulary):
        room *= 2
    keys, places = np.zeros(room, np.uint64), np.zeros(room, np.int32)
    for word, number in numbers.items():
        key = hash_word(np.array([ord(one) for one in word], np.int64))
        at = int(key) & (room - 1)
        while keys[at]:
            at = (at + 1) & (room - 1)
        keys[at], places[at] = key, number
    both = np.full((sizes[0], sizes[0]), -1, np.int32)
    for (one, other), number in (crossed or {}).items():
        both[one, other] = both[other, one] = number
    order = (_in_order(identity, numbers), _in_order(others, numbers))
    matchers = (_matcher(identity, order[0], numbers), _matcher(others, order[1], numbers))
    return Packed((keys, places), *matchers, sizes, both, order)


def _in_order(terms: Mapping[Words, Sequence[Label]], numbers: Mapping[str, int]) -> tuple[Words, ...]:
    return tuple(sorted(terms, key=lambda term: (numbers[term[0]], -len(term), term)))


def _matcher(terms: Mapping[Words, Sequence[Label]], order: Sequence[Words], numbers: Mapping[str, int]) -> Matcher:
    firsts = np.array([numbers[term[0]] for term in order], np.int64)
    labels = [label for term in order for label in terms[term]]
    return Matcher(
        first=np.searchsorted(firsts, np.arange(len(numbers) + 1)).astype(np.int32),
        starts=np.cumsum([0, *map(len, order)]).astype(np.int32),
        words=np.array([numbers[word] for term in order for word in term], np.int32),
        label_starts=np.cumsum([0, *(len(terms[term]) for term in order)]).astype(np.int32),
        labels=np.array(labels, np.int32).reshape(-1, 3),
    )


class MentionSums(NamedTuple):
    """Sentence counts by bucket, with the terms and examples behind them.

    A *cell* of a group is a category, then for each instrument a score below 0 and one above; where sentences are not
    looked into there is one cell, any mention.
    """

    categories: Integers
    """(64, categories): sentences that hold a term of it."""
    pairs: Integers
    """(64, groups, categories): sentences that mention the group and hold the category."""
    scores: Integers
    """(64, groups + 1, instruments, SCORES); after the groups those that mention nobody."""
    named: Integers
    """(identity terms, 1 + cells): mentions, and mentions in sentences of each cell."""
    beside: Integers
    """(groups + 1, other terms, 2): words of sentences that mention the group, or nobody: all, and those that no
    identity term uses up."""
    best: npt.NDArray[np.uint64]
    """(groups, cells, EXAMPLES): the least priorities, ascending."""


def no_sums(packed: Packed, deep: bool = True) -> MentionSums:
    """Sums of nothing.

    Unless `deep`, sentences are not scanned: only the groups that the texts mention are found.
    """
    groups = packed.sizes[0]
    categories, instruments = packed.sizes[1:3] if deep else (0, 0)
    cells = categories + 2 * instruments if deep else 1
    return MentionSums(
        np.zeros((BUCKETS, categories), np.int64),
        np.zeros((BUCKETS, groups, categories), np.int64),
        np.zeros((BUCKETS, groups + 1, instruments, SCORES), np.int64),
        np.zeros((len(packed.terms[0]), 1 + cells if deep else 1), np.int64),
        np.zeros((groups + 1, len(packed.terms[1]) if deep else 0, 2), np.int64),
        np.full((groups, cells, EXAMPLES), NO_PRIORITY, np.uint64),
    )


class TextMentions(NamedTuple):
    """Results of one call over n texts."""

    words: Integers
    sentences: Integers
    dialects: Integers
    """The dialect whose words are the most frequent in the text; -1 without one, or with two as frequent."""
    events: Integers
    """Rows of (text, as its place in `rows`, group, mentions, sentences with a mention), for each group mentioned."""
    examples: Integers
    """Rows of (text, group, cell, first byte, after the last): sentences that were kept, some no longer."""
    spans: Integers
    """Rows of (text, group, first byte, after the last) of each sentence that mentions a group; empty unless
    requested."""


def count_texts(
    buffers: tuple[Bytes, Offsets],
    rows: Integers,
    buckets: Integers,
    packed: Packed,
    sums: MentionSums | None,
    priorities: npt.NDArray[np.uint64] | None = None,
    spans: bool = False,
) -> TextMentions:
    """Count the texts `rows` of a column.

    Args:
        buffers: of the column, every text of `rows` in NFC.
        rows: which texts; all of one language.
        buckets: 0 to 63, one for each of `rows`.
        packed: the lists of that language.
        sums: is added to; those of `no_sums(packed, deep=False)`, or None: sentences are not looked into.
        priorities: below 2^63, one for each of `rows`; None: no example is kept.
        spans: whether each sentence that mentions a group is returned.
    """
    sums = no_sums(packed, deep=False) if sums is None else sums
    ranks = np.full(len(rows), NO_PRIORITY, np.uint64) if priorities is None else priorities
    deep = sums.beside.shape[1] > 0 or sums.scores.shape[2] > 0 or sums.pairs.shape[2] > 0
    shape = np.array(packed.sizes, np.int64) * (1 if deep else np.array([1, 0, 0, 0]))
    matchers: Any = (tuple(packed.identity), tuple(packed.others))
    out = np.zeros((3, len(rows)), np.int64)
    places = (rows, buckets, ranks, spans)
    lists = (word_tables(), packed.listed, matchers, packed.crossed)
    events, examples, sentences = _count(buffers, places, lists, shape, tuple(sums), out)
    return TextMentions(out[0], out[1], out[2], events, examples, sentences)


@part
def _longest(word, place, count, k, matcher):  # type: ignore[no-untyped-def]
    """Longest term at hit `k`, or -1, with its words."""
    first, starts, words, _, _ = matcher
    for term in range(first[word[k]], first[word[k] + 1]):
        size = starts[term + 1] - starts[term]
        if k + size > count:
            continue
        same = True
        for j in range(1, size):
            if word[k + j] != words[starts[term] + j] or place[k + j] != place[k] + j:
                same = False
                break
        if same:
            return term, size
    return -1, 1


@part
def _match(hits, count, matcher, terms):  # type: ignore[no-untyped-def]
    """Write each hit's term to `terms`; -1 none, -2 inside another."""
    word, place, _ = hits
    k = 0
    while k < count:
        term, size = _longest(word, place, count, k, matcher)
        terms[k] = term
        for j in range(1, size):
            terms[k + j] = -2
        k += size


@inlined
def _first_time(number, stamps, stamp, here, filled):  # type: ignore[no-untyped-def]
    """Note a group or category once per sentence; how many are noted."""
    if stamps[number] != stamp:
        stamps[number] = stamp
        here[filled] = number
        return filled + 1
    return filled


@part
def _add_sentence(bucket, people, subjects, tone, sums):  # type: ignore[no-untyped-def]
    """Add one sentence to the sums.

    `people` and `subjects` are the groups and the categories of the sentence, each with their number; `tone` has the
    score of each instrument and its listed words. The number of sentences that mention nobody is counted elsewhere.
    """
    by_category, pairs, scores, _, _, _ = sums
    (groups, many), (categories, several), (score, hit) = people, subjects, tone
    for k in range(several):
        c = categories[k]
        by_category[bucket, c] += 1
        for j in range(many):
            pairs[bucket, groups[j], c] += 1
    nobody = scores.shape[1] - 1
    for instrument in range(len(score)):
        value = score[instrument]
        if not many and not hit[instrument]:
            continue
        for k in range(max(1, many)):
            g = groups[k] if many else nobody
            scores[bucket, g, instrument, 0] += many > 0
            scores[bucket, g, instrument, 1] += value
            scores[bucket, g, instrument, 2] += value * value
            scores[bucket, g, instrument, 3] += hit[instrument] > 0


@part
def _most(counts):  # type: ignore[no-untyped-def]
    """The number of the largest count.

    Returns -1 where all are 0 or two are largest, and sets the counts to 0.
    """
    best, winner = 0, -1
    for number in range(len(counts)):
        if counts[number] > best:
            best, winner = counts[number], number
        elif counts[number] == best:
            winner = -1
        counts[number] = 0
    return winner


@part
def _add_crossed(groups, many, crossed, stamps, stamp, mentions, touched, mentioned):  # type: ignore[no-untyped-def]
    """Add the intersections of the first `many` groups of a sentence.

    Return how many groups it then has, and the text.
    """
    filled = many
    for i in range(many):
        for j in range(i):
            number = crossed[groups[i], groups[j]]
            if number >= 0 and stamps[number] != stamp:
                filled = _first_time(number, stamps, stamp, groups, filled)
                if mentions[number] == 0:
                    touched[mentioned] = number
                    mentioned += 1
                mentions[number] += 1
    return filled, mentioned


@part
def _room_for(hits):  # type: ignore[no-untyped-def]
    """Arrays to which `scan` can write this number of hits."""
    return np.empty(hits, np.int32), np.empty(hits, np.int64), np.empty(hits, np.int64)


@kernel
def _count(buffers, places, lists, shape, sums, out):  # type: ignore[no-untyped-def]
    data, offsets = buffers
    rows, buckets, ranks, with_spans = places
    tables, listed, matchers, crossed = lists
    identity, others = matchers
    deep = shape[1] + shape[2] + shape[3] > 0
    hits, ends = _room_for(1024), np.empty(1024, np.int64)
    terms, more = np.empty(1024, np.int32), np.empty(1024, np.int32)
    mentions, with_mention = np.zeros(shape[0], np.int64), np.zeros(shape[0], np.int64)
    touched = np.empty(shape[0], np.int64)
    group_stamps, groups_here = np.full(shape[0], -1, np.int64), np.empty(shape[0], np.int64)
    stamps, here = np.full(shape[1], -1, np.int64), np.empty(shape[1], np.int64)
    score, hit, dialects = np.zeros(shape[2], np.int64), np.zeros(shape[2], np.int64), np.zeros(shape[3], np.int64)
    events, filled, stamp = np.empty((1024, 4), np.int64), 0, 0
    chosen, kept = np.empty((1024, 5), np.int64), 0
    spans, spanned = np.empty((1024, 4), np.int64), 0
    for n in range(len(rows)):
        start, end = offsets[rows[n]], offsets[rows[n] + 1]
        count, words, sentences = scan(data, start, end, tables, listed, hits, ends)
        if count > len(terms) or sentences > len(ends):
            room = 2 * max(count, sentences)
            hits, ends = _room_for(room), np.empty(room, np.int64)
            terms, more = np.empty(room, np.int32), np.empty(room, np.int32)
            scan(data, start, end, tables, listed, hits, ends)
        out[0, n], out[1, n] = words, sentences
        _match(hits, count, identity, terms)
        if deep:
            _match(hits, count, others, more)
        sentence = hits[2]
        mentioned, peopled, k = 0, 0, 0
        while k < count:
            stamp, current, many, several, first = stamp + 1, sentence[k], 0, 0, k
            for instrument in range(shape[2]):
                score[instrument] = hit[instrument] = 0
            while k < count and sentence[k] == current:
                if terms[k] >= 0:
                    for at in range(identity[3][terms[k]], identity[3][terms[k] + 1]):
                        g = identity[4][at, 1]
                        if mentions[g] == 0:
                            touched[mentioned] = g
                            mentioned += 1
                        mentions[g] += 1
                        many = _first_time(g, group_stamps, stamp, groups_here, many)
                    if not deep:
                        sums[3][terms[k], 0] += 1
                if deep and more[k] >= 0:
                    for at in range(others[3][more[k]], others[3][more[k] + 1]):
                        kind, number = others[4][at, 0], others[4][at, 1]
                        if kind == CATEGORY:
                            several = _first_time(number, stamps, stamp, here, several)
                        elif kind == DIALECT:
                            dialects[number] += 1
                        elif terms[k] == -1:
                            score[number] += others[4][at, 2]
                            hit[number] += 1
                k += 1
            if deep and many > 1:
                many, mentioned = _add_crossed(
                    groups_here, many, crossed, group_stamps, stamp, mentions, touched, mentioned
                )
            for j in range(many):
                with_mention[groups_here[j]] += 1
            peopled += many > 0
            people, subjects = (groups_here, many), (here, several)
            if deep:
                _add_sentence(buckets[n], people, subjects, (score, hit), sums)
                add_terms((terms, more), first, k, others, people, subjects, score, sums)
            span = (ends[current - 1] if current else start, ends[current])
            for j in range(many if with_spans else 0):
                if spanned == len(spans):
                    spans = more_rows(spans)
                spans[spanned, 0], spans[spanned, 1] = n, groups_here[j]
                spans[spanned, 2], spans[spanned, 3] = span
                spanned += 1
            if many > 0 and has_room(ranks[n], people, subjects, score, sums[5]):
                rank = ranks[n] | (uint64(span[1] - span[0] > LONG) << uint64(63))
                chosen, kept = keep_examples((n, rank), span, people, subjects, score, sums[5], chosen, kept)
        for instrument in range(shape[2]):
            sums[2][buckets[n], shape[0], instrument, 0] += out[1, n] - peopled
        out[2, n] = _most(dialects)
        while filled + mentioned > len(events):
            events = more_rows(events)
        for j in range(mentioned):
            g = touched[j]
            events[filled, 0], events[filled, 1] = n, g
            events[filled, 2], events[filled, 3] = mentions[g], with_mention[g]
            mentions[g] = with_mention[g] = 0
            filled += 1
    return events[:filled].copy(), chosen[:kept].copy(), spans[:spanned].copy()
