"""The promise of the walk, on sets of integers instead of texts."""

from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.kernels.greedy_dedup import EXACT, KEPT, NEAR, URL, walk_ranked


def walked(candidates, texts, threshold=0.7, limit=64, addresses=None, fixed=0):
    """Walk documents in order; document i has the bands `candidates[i]` and the set of integers `texts[i]`."""
    bands = 1 + max((band for own in candidates for band in own), default=-1)
    sizes = [min(limit, sum(band in own for own in candidates)) for band in range(bands)]
    sets = [np.array(sorted(text), np.uint64) for text in texts]
    ends = np.cumsum([0, *map(len, sets)])
    return walk_ranked(
        np.arange(len(candidates)),
        np.array(addresses if addresses else [-1] * len(candidates), np.int64),
        np.arange(len(candidates)) < fixed,
        np.cumsum([0, *map(len, candidates)]),
        np.array([band for own in candidates for band in own], np.int64),
        np.cumsum([0, *sizes]),
        np.array([0, *np.cumsum(np.bincount(addresses) if addresses else [])], np.int64),
        np.concatenate([np.zeros(0, np.uint64), *sets]), ends[:-1], ends[1:], threshold, 0.2,
    )  # fmt: skip


@settings(max_examples=200)
@given(st.data())
def test_the_walk_keeps_its_promise(data):
    count = data.draw(st.integers(1, 12))
    texts = [data.draw(st.sets(st.integers(0, 7), min_size=1)) for _ in range(count)]
    candidates = [sorted(data.draw(st.sets(st.integers(0, 3), min_size=1))) for i in range(count)]
    values = {(a, b): len(texts[a] & texts[b]) / len(texts[a] | texts[b]) for a, b in combinations(range(count), 2)}
    reason, kept_by, jaccard, pairs, measured, _ = walked(candidates, texts)
    compared = {tuple(pair): value for pair, value in zip(pairs.tolist(), measured.tolist(), strict=True)}
    assert len(compared) == len(pairs)
    assert all(values[pair] == value for pair, value in compared.items())
    for other in np.flatnonzero(reason).tolist():
        kept = int(kept_by[other])
        assert reason[kept] == 0
        assert jaccard[other] == values[kept, other] >= 0.7
        assert jaccard[other] == max(v for (_, b), v in compared.items() if b == other)
    for a, b in combinations(np.flatnonzero(reason == 0).tolist(), 2):
        if set(candidates[a]) & set(candidates[b]):
            assert values[a, b] < 0.7


def test_a_pair_exactly_as_similar_as_the_threshold_is_near():
    """Products of these shares and sizes are rounded up: .55 * 20 is above 11."""
    for threshold, shared, whole in ((0.55, 11, 20), (0.56, 14, 25), (0.8, 4, 5)):
        assert walked([[0], [0]], [set(range(whole)), set(range(shared))], threshold)[0].tolist() == [KEPT, NEAR]


def test_a_crowded_band_is_cut_and_counted():
    apart = walked([[0]] * 20, [{i} for i in range(20)], limit=4)
    assert len(apart[4]) == 0 + 1 + 2 + 3 + 16 * 4
    assert apart[5] == 16
    copies = walked([[0]] * 5000, [{1, 2, 3, 4, 5, 6, 7, 8, 9, i + 10} for i in range(5000)])
    assert len(copies[4]) == np.count_nonzero(copies[0]) == 4999


def test_those_that_are_fixed_stay_and_replace_others():
    texts = [{1, 2, 3, 4}, {1, 2, 3, 4, 5}, {1, 2, 3, 4, 5, 6}]
    reason, kept_by, *_ = walked([[0]] * 3, texts, fixed=2)
    assert reason.tolist() == [KEPT, KEPT, NEAR]
    assert kept_by.tolist() == [-1, -1, 1]


def test_an_address_removes_what_overlaps_by_the_share_of_the_smaller_text():
    texts = [set(range(20)), {0, 30, 31, 32, 33}, {0, 40, 41, 42, 43, 44}]
    reason, kept_by, jaccard, *_ = walked([[], [], []], texts, addresses=[0, 0, 0])
    assert reason.tolist() == [KEPT, URL, KEPT]
    assert kept_by[1] == 0
    assert jaccard[1] == 1 / 24
    assert EXACT not in reason
