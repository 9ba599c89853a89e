"""Equal bits on any number of ranks and at any stage: the tree of sums. `tests/pretrain/test_random_runs.py` trains."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.dataset import micro_batches
from pretrain.engine.fixed_order import rank_pairs, tree_order, tree_sum


def plain_tree(leaves):
    """The definition of the tree, leaf by leaf."""
    if len(leaves) % 2 == 0:
        return plain_tree(leaves[::2]) + plain_tree(leaves[1::2])
    total = leaves[0]
    for leaf in leaves[1:]:
        total = total + leaf
    return total


@given(st.integers(1, 24), st.integers(0, 4), st.integers(0, 1 << 30))
def test_any_number_of_ranks_adds_in_one_order(each, power, seed):
    ranks = 1 << power
    chance = np.random.default_rng(seed)
    values = (chance.normal(size=each * ranks) * 10.0 ** chance.integers(-6, 6, each * ranks)).astype(np.float32)
    leaves = [torch.tensor([float(value)]) for value in values]
    parts = [list(micro_batches(list(range(len(leaves))), 1, rank, ranks)) for rank in range(ranks)]
    sums = [tree_sum([leaves[number].clone() for [number] in tree_order(part)]) for part in parts]
    for level in rank_pairs(ranks):
        assert sorted(rank for pair in level for rank in pair) == list(range(ranks))
        for one, other in level:
            sums[one] = sums[other] = sums[one] + sums[other]
    expected = float(plain_tree(list(values)))
    assert {float(total) for total in sums} == {expected}
    exact = float(np.sum(values.astype(np.float64)))
    assert abs(expected - exact) <= 24 * 2.0**-23 * float(np.abs(values.astype(np.float64)).sum())
