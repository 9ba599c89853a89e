"""Laws of the order: each epoch shows each row once, weights hold at every row, and every way back is exact."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.errors import ConfigError
from pretrain.config.training import TrainConfig, gradient_accumulation_steps
from pretrain.data.batch_size import batch_sizes, refuse_uneven
from pretrain.data.dataset import micro_batches
from pretrain.data.mixture import PARTS, assign_sources, sources_of, whole_parts
from pretrain.data.permutation import permute, places_of
from pretrain.data.sampler import sampler_of


@given(st.integers(1, 3000), st.integers(0, 2**62), st.integers(0, 5))
def test_the_order_is_a_permutation(count, seed, epoch):
    order = permute(np.arange(count, dtype=np.uint64), count, seed, epoch)
    assert sorted(order.tolist()) == list(range(count))


def test_a_source_that_begins_no_row_reads_none():
    web, none = sources_of(["web", "none"], np.zeros(4, dtype=np.int64))
    rows = np.array([0, 3])
    assert web.indices(rows).tolist() == [0, 3]
    assert none.indices(rows).tolist() == []


def test_the_order_depends_on_seed_and_epoch_and_mixes():
    indices = np.arange(1000, dtype=np.uint64)
    orders = [permute(indices, 1000, seed, epoch).tolist() for seed, epoch in ((0, 0), (1, 0), (0, 1))]
    assert len({tuple(order) for order in orders}) == 3
    for order in orders:
        # The rank correlation of independent uniform orders is within 4 / sqrt(n) but once in 10,000 times.
        assert abs(np.corrcoef(np.arange(1000), order)[0, 1]) < 4 / np.sqrt(1000)


def test_first_places_are_uniform_over_seeds():
    counts = np.bincount([int(permute(np.array([0]), 10, seed, 0)[0]) for seed in range(2000)], minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 33.7  # chi-squared, 9 degrees of freedom, 1 in 10,000


@given(st.integers(1, 3000), st.integers(0, 2**62), st.integers(0, 5))
def test_the_way_back_is_exact(count, seed, epoch):
    rows = np.arange(count, dtype=np.uint64)
    places = places_of(rows, count, seed, epoch, "web")
    assert permute(places, count, seed, epoch, "web").tolist() == rows.tolist()


def train_config(**settings):
    return TrainConfig(**{"sequence_length": 8, "global_batch_size": 4, "steps": 1000} | settings)


def rows_of(owners, names=("a", "b", "c")):
    """Rows as a sampler sees them: their number, and the source of each."""
    owners = np.array(owners)
    return SimpleNamespace(count=len(owners), sources=lambda: sources_of(names, owners))


@settings(max_examples=40)
@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 99))
def test_steps_walk_through_whole_epochs(count, batch, seed):
    order = sampler_of(rows_of([0] * count), train_config(global_batch_size=batch, seed=seed))
    steps = -(-2 * count // batch) + 1
    seen = [row for step in range(1, steps + 1) for row in order.rows(step)]
    for epoch in range(2):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_the_order_without_ramp_and_mixture_is_the_one_of_the_first_release():
    order = sampler_of(rows_of([0] * 11), train_config(seed=3))
    assert [order.rows(step) for step in (1, 2, 3, 4)] == [[7, 1, 8, 9], [0, 5, 3, 4], [2, 10, 6, 2], [1, 0, 6, 7]]


RAMPS = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 9)), max_size=4).map(
    lambda stages: tuple(
        {"until_step": sum(length for length, _ in stages[: place + 1]), "global_batch_size": size}
        for place, (_, size) in enumerate(stages)
    )
)


@given(RAMPS)
def test_a_ramp_in_closed_form_is_the_ramp_step_by_step(ramp):
    sizes = batch_sizes(train_config(batch_size_ramp=ramp))
    first, owners = 0, []
    for step in range(1, 100):
        wanted = next((stage["global_batch_size"] for stage in ramp if step <= stage["until_step"]), 4)
        assert (sizes.before(step), sizes.of(step)) == (first, wanted)
        owners += [step] * wanted
        first += wanted
    assert sizes.steps_of(np.arange(first)).tolist() == owners


def test_a_ramp_that_does_not_divide_or_rise_is_reported():
    stages = ({"until_step": 5, "global_batch_size": 6}, {"until_step": 9, "global_batch_size": 8})
    config = train_config(batch_size_ramp=stages, global_batch_size=16)
    refuse_uneven(config, 2, 1)
    with pytest.raises(
        ConfigError, match=r"train\.batch_size_ramp\[entry 1\]\.global_batch_size = 6 is not a multiple of"
    ):
        refuse_uneven(config, 2, 2)
    with pytest.raises(ValueError, match=r"until_step is \[9, 5\]; it must increase"):
        train_config(batch_size_ramp=stages[::-1])


@given(st.integers(1, 300), st.integers(1, 16), st.integers(1, 16))
def test_each_fix_that_a_refused_batch_names_is_enough(batch, micro, ranks):
    try:
        gradient_accumulation_steps(batch, micro, ranks)
    except ConfigError as error:
        for fix in str(error).partition("; set ")[2].split(", or "):
            named = dict(re.findall(r"(\w+_batch_size) = (\d+)", fix))
            assert named, fix
            gradient_accumulation_steps(
                int(named.get("global_batch_size", batch)), int(named.get("micro_batch_size", micro)), ranks
            )
    else:
        assert batch % (micro * ranks) == 0


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.001, 1000), min_size=1))
def test_weights_become_parts_that_are_near(weights):
    parts, total = whole_parts(weights), sum(weights.values())
    assert parts.keys() == weights.keys()
    assert min(parts.values()) > 0
    assert sum(parts.values()) <= PARTS
    for name, weight in weights.items():  # one part for the remainder, eight for those that would have none
        assert abs(parts[name] / sum(parts.values()) - weight / total) <= 9 / PARTS


def test_weights_that_can_be_exact_are():
    assert whole_parts({"a": 0.7, "b": 0.2, "c": 0.1}) == {"a": 7, "b": 2, "c": 1}
    assert whole_parts({"a": 1.0, "b": 1.0, "c": 1.0, "d": 0.0}) == {"a": 1, "b": 1, "c": 1}


@given(st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any))
def test_each_source_is_within_a_row_of_its_weight_at_every_row(parts):
    parts = np.array(parts)
    chosen = assign_sources(parts)
    counts = np.cumsum(np.eye(len(parts), dtype=np.int64)[chosen], axis=0)
    wanted = np.arange(1, len(chosen) + 1)[:, None] * parts / parts.sum()
    assert (np.abs(counts - wanted) < 1).all()
    assert counts[-1].tolist() == parts.tolist()


WEIGHTS = st.fixed_dictionaries({name: st.integers(0, 5).map(float) for name in "abc"}).filter(
    lambda weights: any(weights.values())
)
OWNERS = st.lists(st.integers(0, 2), max_size=40).map(lambda more: [0, 1, 2, *more])


@st.composite
def mixtures(draw):
    steps = sorted(draw(st.sets(st.integers(1, 25), min_size=1, max_size=3)))
    return tuple({"from_step": step, "weights": draw(WEIGHTS)} for step in steps)


@settings(max_examples=30)
@given(OWNERS, mixtures(), RAMPS, st.integers(0, 99))
def test_a_mixture_keeps_its_weights_and_each_source_its_epochs(owners, mixture, ramp, seed):
    config = train_config(mixture=mixture, batch_size_ramp=ramp, seed=seed)
    order = sampler_of(rows_of(owners), config)
    steps = [order.rows(step) for step in range(1, 60)]
    everything = [row for rows in steps for row in rows]
    assert order.between(0, len(everything)).tolist() == everything  # wherever one begins
    assert order.between(7, 90).tolist() == everything[7:90]
    for owner in range(3):
        own = [row for row in everything if owners[row] == owner]
        members = [row for row, name in enumerate(owners) if name == owner]
        for start in range(0, len(own) - len(members) + 1, len(members)):
            assert sorted(own[start : start + len(members)]) == members
    starts = [phase["from_step"] for phase in mixture]
    phases = [({"abc"[owner]: owners.count(owner) for owner in range(3)}, 1, starts[0])]
    phases += [(p["weights"], p["from_step"], after) for p, after in zip(mixture, [*starts[1:], 60], strict=True)]
    for weights, begin, end in phases:
        read = [owners[row] for rows in steps[begin - 1 : end - 1] for row in rows]
        counts = np.cumsum(np.eye(3)[read], axis=0).reshape(-1, 3)
        shares = np.array([weights["a"], weights["b"], weights["c"]]) / sum(weights.values())
        assert (np.abs(counts - np.arange(1, len(read) + 1)[:, None] * shares) < 1).all()


@settings(max_examples=60)
@given(OWNERS, mixtures() | st.just(()), RAMPS, st.sets(st.integers(0, 2)), st.integers(0, 30))
def test_the_steps_that_read_a_row_are_those_that_did(owners, mixture, ramp, chosen, last):
    order = sampler_of(rows_of(owners), train_config(mixture=mixture, batch_size_ramp=ramp))
    expected = [step for step in range(1, last + 1) for row in order.rows(step) if row in chosen]
    assert order.steps_that_read(np.array(sorted(chosen), dtype=np.int64), last) == expected


@settings(max_examples=40)
@given(OWNERS, WEIGHTS, st.floats(0.01, 0.99), st.integers(0, 30))
def test_a_share_of_each_source_is_read_and_its_steps_are_found(owners, weights, share, last):
    mixture = ({"from_step": 1, "weights": weights},)
    order = sampler_of(rows_of(owners), train_config(mixture=mixture, source_share=share))
    read = order.between(0, 60 * 4).tolist()
    for owner in range(3):
        own = {row for row in read if owners[row] == owner}
        assert len(own) <= max(1, round(share * owners.count(owner)))
    expected = [step for step in range(1, last + 1) for row in order.rows(step) if row < 5]
    assert order.steps_that_read(np.arange(5), last) == expected


@settings(max_examples=60)
@given(st.sets(st.integers(0, 19), min_size=1), st.integers(1, 9), st.integers(1, 20))
def test_the_steps_that_read_contested_rows_are_those_that_did(late, batch, steps):
    """Also where so few others are left that the run begins with contested rows."""
    rows = SimpleNamespace(count=20, holding_sources=lambda names: np.array(sorted(late), dtype=np.int64))
    order = sampler_of(rows, train_config(global_batch_size=batch, steps=steps, late_sources=("contested",)))
    for row in range(20):
        expected = [step for step in range(1, steps + 1) for read in order.rows(step) if read == row]
        assert order.steps_that_read(np.array([row]), steps) == expected


def test_a_share_needs_a_mixture_and_is_in_no_key_where_it_is_all():
    with pytest.raises(ValueError, match=r"source_share = 0\.5 is of the sources of train\.mixture"):
        train_config(source_share=0.5)
    assert "source_share" not in train_config().model_dump()


def test_a_source_without_rows_is_reported():
    config = train_config(mixture=({"from_step": 1, "weights": {"a": 1.0, "books": 1.0}},))
    with pytest.raises(
        ConfigError, match=r"train\.mixture\[entry 1\]\.weights: no training row .* 'books'; the sources are a, b"
    ):
        sampler_of(rows_of([0, 1]), config)
    with pytest.raises(ValueError, match="must be 0 or more"):
        train_config(mixture=({"from_step": 1, "weights": {"a": -1.0}},))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_any_ranks_and_micro_batches_read_the_same_rows_in_the_same_order(micro, world, accumulation):
    order = sampler_of(rows_of([0] * 100), train_config(global_batch_size=micro * world * accumulation))
    numbers = order.rows(3)
    parts = [list(micro_batches(numbers, micro, rank, world)) for rank in range(world)]
    turns = [parts[rank][turn] for turn in range(accumulation) for rank in range(world)]
    assert [row for group in turns for row in group] == numbers
