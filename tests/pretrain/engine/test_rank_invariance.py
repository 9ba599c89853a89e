"""Equal bits on any number of ranks and at any stage: the tree of sums, and random trainings."""

import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.dataset import micro_batches
from pretrain.engine.fixed_order import rank_pairs, tree_order, tree_sum
from tests.pretrain.rank_runs import run_ranks


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


PLAIN = {"rank_invariant": True, "steps": 6, "validate_every_steps": 3, "every_steps": 2, "decay_steps": 2}
KINDS = (
    {"precision": "fp32", "optimizer": "lion", "learning_rate": 3e-4, "threads": 2},
    {"precision": "bf16", "activation_checkpointing": "full"},
    {"precision": "bf16", "optimizer": "muon", "z_loss": 1e-3},
    {"precision": "autocast", "tie_word_embeddings": True},
)


def random_run(kind, seed):
    """Settings of a training, drawn; those that may differ between ranks are not among them."""
    chance = random.Random(seed)
    made = {**PLAIN, **kind, "seed": seed, "micro_batch_size": chance.choice([1, 2])}
    made |= {"gradient_clipping": chance.choice([0.1, 1.0]), "global_batch_size": chance.choice([8, 16, 24])}
    if chance.random() < 0.5:
        made["batch_size_ramp"] = [{"until_step": chance.choice([2, 3]), "global_batch_size": 8}]
    if chance.random() < 0.5:
        made["mixture"] = [
            {"from_step": chance.choice([2, 4]), "weights": {"web": 1.0, "books": chance.choice([2.0, 5])}}
        ]
    made["stop"] = chance.choice([0, 3, 5])
    return made


RANKS = """
import json, os, random
from pathlib import Path
import pytest
from governance.errors import Preempted
from pretrain import loop
from pretrain.config.training import MixtureConfig, RampConfig
from pretrain.optim.optimizers import rate_factor
from tests.pretrain.replays import *
folder, ranks = Path({folder!r}), int(os.environ["WORLD_SIZE"])
found = {{}}
for name, made in json.loads((folder / "runs.json").read_text()).items():
    made["batch_size_ramp"] = tuple(RampConfig(**stage) for stage in made.pop("batch_size_ramp", ()))
    made["mixture"] = tuple(MixtureConfig(**phase) for phase in made.pop("mixture", ()))
    stop, root = made.pop("stop"), folder / str(ranks) / name
    stages = random.Random(name + str(ranks)).sample(made.pop("stages"), 2)
    tokens = write_tokens(root)
    if stop:  # stopped in the middle of a step, and resumed at another stage
        def rate(step, *more):
            if step == stop:
                raise Preempted("in the middle of a step")
            return rate_factor(step, *more)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Preempted):
            patch.setattr(loop, "rate_factor", rate)
            train(root, tokens, **made, zero_stage=stages[1])
    run = train(root, tokens, **made, zero_stage=stages[0])
    found[name] = [learned(root, run), json.loads((root / run.folder / "losses.json").read_bytes())["losses"]]
if os.environ["RANK"] == "0":
    (folder / str(ranks) / "found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`runs(ranks)`: weights and losses of each training on so many ranks, all in one start of the ranks."""
    folder = tmp_path_factory.mktemp("invariant")
    made = {str(number): random_run(kind, number) for number, kind in enumerate(KINDS)}
    for one in made.values():
        one["stages"] = [1, 2, 3] if one["precision"] == "bf16" else [0, 1, 2, 3]
    (folder / "runs.json").write_text(json.dumps(made))

    def found(ranks):
        if not (folder / str(ranks) / "found.json").exists():
            (folder / str(ranks)).mkdir()
            well, output = run_ranks(folder / f"logs{ranks}", ["-c", RANKS.format(folder=str(folder))], ranks)
            assert well, output[-6000:]
        return json.loads((folder / str(ranks) / "found.json").read_bytes())

    return found


@pytest.mark.slow
def test_any_number_of_ranks_and_any_stage_give_equal_bits(runs):
    one = runs(1)
    assert one == runs(2) == runs(4)
    assert len({str(weights) for weights, _ in one.values()}) == len(KINDS)
    assert all(losses[-1] < losses[0] for _, losses in one.values())
