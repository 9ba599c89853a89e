"""Passages in texts: the kernel equals a slow plain reference, and finds every passage that occurs verbatim."""

import random
from collections import defaultdict
from itertools import chain

import numpy as np
import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.kernels.folding import word_hashes
from data_pipeline.kernels.passage_search import COMMON, MAX_BAND, SEED_WORDS, Passages, build_index, search
from governance.kernels.buffers import text_buffers

MAX_ERRORS, EXTRA_BAND = 0.2, 3


def laid_out(items):
    """Words, limits and owners of items, which are lists of texts, which are lists of words; each text is a passage
    of its own, and each item of several texts one more."""
    words, limits, owners = [], [], []

    def passage(first, last, level, extra):
        errors = int(MAX_ERRORS * (last - first))
        for at in range(first, last - SEED_WORDS + 1):
            owners[at][level] = len(limits)
        part = (last - first) // 2 + 1 if level == 0 and last - first >= 10 else 1 << 30
        limits.append((first, last, errors, min(MAX_BAND, errors + extra), part))

    for item in items:
        start = len(words)
        spans = []
        for text in item:
            spans.append((len(words), len(words) + len(text)))
            words += text
            owners += [[-1, -1] for _ in text]
        for first, last in spans:
            if last - first >= SEED_WORDS:
                passage(first, last, 0, 0)
        if len(item) > 1 and len(words) - start >= SEED_WORDS:
            passage(start, len(words), 1, EXTRA_BAND * len(item))
    return words, limits, owners


def kernel(items, texts, run_words):
    words, limits, owners = laid_out(items)
    hashes, _ = word_hashes(*text_buffers(pa.array([" ".join(words)])))
    passages = Passages(hashes, np.array(limits, np.int32).reshape(-1, 5), np.array(owners, np.int32).reshape(-1, 2))
    joined = pa.array([" ".join(text) for text in texts], pa.large_string())
    return [tuple(row) for row in search(*text_buffers(joined), build_index(passages), run_words).tolist()]


def seeds_of(words, limits, owners):
    """Run of words -> places, at each length, and the runs that are looked up by twice their length."""
    places, longer = defaultdict(list), set()
    owner = {at: max(pair[0], -1) if pair[0] >= 0 else pair[1] for at, pair in enumerate(owners)}
    open_places = [at for at in range(len(words) - SEED_WORDS + 1) if owner[at] >= 0]
    length = SEED_WORDS
    while open_places:
        groups = defaultdict(list)
        for at in open_places:
            groups[tuple(words[at : at + length])].append(at)
        open_places = []
        for run, group in groups.items():
            for rank, at in enumerate(group):
                first, last = limits[owner[at]][:2]
                fits = last - at >= 2 * length
                if rank < COMMON or (at == first and not fits):
                    places[run].append(at)
                if len(group) > COMMON and fits:
                    open_places.append(at)
                    longer.add(run)
        open_places.sort()
        length *= 2
    return places, longer


def common_words(text, passage, start, errors, band):
    """(words, first, last) of the longest common subsequence in the band: the later first word, then the earlier last
    one, is preferred."""
    nothing = (0, 0, 0)
    table = defaultdict(lambda: nothing)
    best = nothing
    for j, word in enumerate(passage):
        row = {}
        for i in range(start + j - band, start + j + band + 1):
            options = [row.get(i - 1, nothing), table.get(i, nothing)]
            if 0 <= i < len(text) and text[i] == word:
                met, first, _ = table.get(i - 1, nothing)
                options.append((met + 1, first if met else i, -i))
            row[i] = max(options)
        table = row
        best = max(row.values())
        if j + 1 - best[0] > errors:
            return nothing
    return best[0], best[1], -best[2]


def reference(items, texts, run_words):
    words, limits, owners = laid_out(items)
    places, longer = seeds_of(words, limits, owners)
    hits = []
    for number, text in enumerate(texts):
        found_until, in_vain = defaultdict(int), defaultdict(lambda: (None, 0))
        starts = np.cumsum([0, *(len(word) + 1 for word in text)]).tolist()

        def lay(passage, p, q, text=text, found_until=found_until, in_vain=in_vain):
            first, last, errors, band, part = limits[passage]
            start = p - (q - first)
            met = common_words(text, words[first:last], start, errors, band)
            run = {p + k for k in range(SEED_WORDS)}
            for step, k in ((-1, p - 1), (1, p + SEED_WORDS)):
                while 0 <= k < len(text) and 0 <= k - start < last - first and text[k] == words[first + k - start]:
                    run.add(k)
                    k += step
            if met[0] == 0 and len(run) >= min(run_words, part):
                met = (len(run), min(run), max(run))
            if met[0]:
                found_until[passage] = max(max(run), met[2]) + 1
            else:
                in_vain[passage] = (start, max(run) + 1)
            return met

        for p in range(len(text) - SEED_WORDS + 1):
            length = SEED_WORDS
            run = tuple(text[p : p + length])
            while run in places:
                for q in places[run]:
                    for passage in owners[q]:
                        if passage < 0 or p < found_until[passage]:
                            continue
                        start, until = in_vain[passage]
                        if p < until and start == p - (q - limits[passage][0]):
                            break
                        met, first, last = lay(passage, p, q)
                        if not met:
                            break
                        hits.append((number, passage, met, starts[first], starts[last] + len(text[last])))
                length *= 2
                if run not in longer or p + length > len(text):
                    break
                run = tuple(text[p : p + length])
    return hits


WORDS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=14)
ITEMS = st.lists(st.lists(WORDS, min_size=1, max_size=3), min_size=1, max_size=6)


@st.composite
def cases(draw):
    """Items of few different words, and texts that contain some of them, edited."""
    items = draw(ITEMS)
    rng = random.Random(draw(st.integers(0, 1 << 30)))
    texts = []
    for _ in range(draw(st.integers(1, 3))):
        text = []
        for _ in range(rng.randrange(4)):
            text += [rng.choice("abcdefghxyz") for _ in range(rng.randrange(12))]
            for part in rng.choice(items):
                text += ["q"] * rng.randrange(2)
                text += [rng.choice("xyz") if rng.random() < 0.1 else word for word in part if rng.random() > 0.05]
        texts.append(text)
    return items, texts


@settings(max_examples=120)
@given(cases(), st.sampled_from([5, 8, 50]))
@example(([["abcd"]], [list("xabcdy"), [], list("abc")]), 50)
def test_hits_equal_the_reference(case, run_words):
    items, texts = case
    items = [[list(part) for part in item] for item in items]
    assert kernel(items, texts, run_words) == reference(items, texts, run_words)


def test_a_family_of_look_alikes_equals_the_reference():
    rng = random.Random(3)
    stem = [f"w{k}" for k in range(40)]
    items = []
    for number in range(40):
        words = list(stem[: rng.choice([6, 7, 9, 17, 30, 40])])
        words[rng.randrange(len(words))] = f"v{number}"
        items.append([words, ["yes", "no", f"u{number}"]][: rng.randrange(1, 3)])
    texts = [[word for _ in range(4) for word in ("x", *chain(*rng.choice(items)))] for _ in range(10)] + [stem * 3]
    assert kernel(items, texts, 50) == reference(items, texts, 50)


@settings(max_examples=100)
@given(ITEMS, st.lists(st.sampled_from("abxy"), max_size=5), st.integers(1, 3 * COMMON))
def test_what_occurs_word_by_word_is_found(items, around, copies):
    items = items * copies  # independent of other passages of the sets and their number
    _, limits, _ = laid_out(items)
    words = list(chain(*chain(*items)))
    for passage, (first, last, *_) in enumerate(limits[: 2 * len(items) // copies]):
        found = kernel(items, [[*around, *words[first:last], *around]], 50)
        alike = [k for k, (a, b, *_) in enumerate(limits) if words[a:b] == words[first:last]]
        assert {row[1] for row in found} & set(alike), (passage, found)


def test_a_long_passage_edited_and_shifted():
    rng = random.Random(1)
    passage = [f"w{rng.randrange(10_000)}" for _ in range(300)]
    text = [f"x{rng.randrange(10_000)}" for _ in range(5000)]
    edited = [word if rng.random() > 0.04 else "edited" for word in passage]
    del edited[100:104]
    edited[200:200] = ["and", "so", "on"]
    text[3000:3000] = edited
    ((number, found, met, start, end),) = kernel([[passage]], [text], 50)
    assert (number, found) == (0, 0)
    assert met == sum(word in passage for word in edited)
    before = len(" ".join(text[:3000])) + 1
    assert (start, end) == (before, before + len(" ".join(edited)))


def test_nothing_to_look_for():
    assert kernel([], [["a", "b", "c", "d"]], 50) == []
    assert kernel([[["a", "b", "c"]]], [["a", "b", "c"]], 50) == []
