"""Every optimizer at every ZeRO stage: equal weights and norms, skipped steps, and a round trip of the state."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from governance.errors import CheckpointError
from pretrain.config.model import ModelConfig
from pretrain.config.optim import GroupConfig, OptimConfig
from pretrain.config.training import EngineConfig, TrainConfig, TrainRecipe
from pretrain.distributed.process_group import join, read_ranks
from pretrain.engine.engine import Engine, open_engine
from pretrain.engine.fragments import place_fragments, refresh_parameters
from pretrain.engine.state import fragments, full_state, gradient_norms
from pretrain.model.decoder import Batch
from pretrain.model.init import initial_weight
from pretrain.optim.zero_fragments import Fragment, assemble
from tests.pretrain.rank_runs import run_ranks
from tests.pretrain.small_models import VARIANTS

VOCABULARY, LENGTH, ROWS, MICRO, STEPS = 200, 16, 8, 2, 6
SHARED = ("llama", "gpt2")
"""Models whose matrices ranks share: without biases and LayerNorms, and with."""
OPTIMIZERS = ["adamw", "muon", "lion"]
RATES = {"adamw": 0.01, "muon": 0.01, "lion": 0.001}

Weights = dict[str, dict[str, torch.Tensor]]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """So small a model is slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def open_one(
    optimizer: str,
    stage: int,
    precision: str = "fp32",
    weights: Weights | None = None,
    tensor: int = 1,
    more: dict[str, Any] | None = None,
    **variant: Any,
) -> Engine:
    model = ModelConfig(
        hidden_size=32, intermediate_size=72, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=LENGTH, **variant,
    )  # fmt: skip
    optim = OptimConfig(
        optimizer=optimizer, learning_rate=RATES[optimizer], gradient_clipping=0.5, muon_weight_decay=0.1,
        groups=(GroupConfig(pattern="lm_head", learning_rate_scale=0.5),),
    )  # fmt: skip
    train = TrainConfig(sequence_length=LENGTH, global_batch_size=ROWS, steps=STEPS, precision=precision)
    recipe, ranks = TrainRecipe(model=model, optim=optim, train=train), read_ranks()
    device = join(ranks, 60.0)

    def weight(name: str, shape: torch.Size) -> torch.Tensor:
        return weights[name]["master"] if weights else initial_weight(name, shape, model, 0)

    settings = EngineConfig(
        zero_stage=stage, micro_batch_size=MICRO, threads=1, tensor_parallel_size=tensor, **(more or {})
    )
    return open_engine(recipe, settings, VOCABULARY, ranks, device, weight)


def batches(step: int, share: bool = True) -> list[Batch]:
    """This rank's micro batches of a step; without `share` all of them."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(1, VOCABULARY, (ROWS, LENGTH + 1), generator=generator)
    positions = torch.arange(LENGTH, dtype=torch.int32).expand(ROWS, LENGTH)
    rank, ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if share else (0, 1)
    rows = [list(range(begin, begin + MICRO)) for begin in range(0, ROWS, MICRO)][rank::ranks]
    whole = Batch(tokens[:, :-1], tokens[:, 1:], torch.zeros(ROWS, LENGTH, dtype=torch.int32), positions)
    return [Batch(*(getattr(whole, key)[some] for key in ("tokens", "targets", "segments", "positions")))
            for some in rows]  # fmt: skip


def gradient(engine: Engine, step: int) -> float:
    """Add up the gradient of a step; returns its loss."""
    mine, total = batches(step), torch.zeros(())
    for batch in mine:
        objective, nats = engine.forward(batch)
        engine.backward(objective, ROWS * LENGTH, last=batch is mine[-1])
        total += nats.sum()
    torch.distributed.all_reduce(total)
    return float(total) / (ROWS * LENGTH)


def learn(engine: Engine, first: int = 1, last: int = STEPS) -> list[float]:
    losses = []
    for step in range(first, last + 1):
        losses.append(gradient(engine, step))
        engine.update(1.0, torch.zeros(()))
    return losses


def state_of(engine: Engine) -> Weights:
    return {name: {key: value.clone() for key, value in values.items()} for name, values in full_state(engine)}


def load_state(engine: Engine, state: Weights, step: int) -> None:
    """Place the parts of whole tensors that a rank owns, and nothing else."""

    def read(name: str, start: int, count: int) -> dict[str, torch.Tensor]:
        return {kind: whole.reshape(-1)[start : start + count] for kind, whole in state[name].items()}

    place_fragments(engine, read, step)
    refresh_parameters(engine)


def same(one: Weights, other: Weights) -> bool:
    """Bit for bit."""
    return all(
        one[name].keys() == other[name].keys()
        and all(torch.equal(one[name][key].view(torch.int32), other[name][key].view(torch.int32)) for key in one[name])
        for name in one.keys() | other.keys()
    )


@functools.cache
def plain(optimizer: str) -> tuple[list[float], Weights]:
    """Stage 0: torch alone, on one rank, as in all runs within the tests' own process."""
    engine = open_one(optimizer, 0)
    return learn(engine), state_of(engine)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_learns_what_stage_0_does(optimizer, stage):
    engine = open_one(optimizer, stage)
    losses, state = plain(optimizer)
    assert losses[-1] < losses[0]
    if optimizer == "muon":  # in bf16, directions that the gradient hardly has are rounding noise of equal length
        assert learn(engine) == pytest.approx(losses, abs=1e-4)
    else:
        assert learn(engine) == pytest.approx(losses, abs=1e-5)
        close(state_of(engine), state)


def test_weights_of_muon_are_those_of_stage_0_where_rounding_is_small(monkeypatch):
    monkeypatch.setattr("pretrain.optim.muon.ARITHMETIC", torch.float64)
    expected, engine = open_one("muon", 0), open_one("muon", 3)
    assert learn(engine) == pytest.approx(learn(expected), abs=1e-5)
    close(state_of(engine), state_of(expected))


def close(state: Weights, expected: Weights) -> None:
    """Masters within 1e-4 of their norm."""
    for name, values in state.items():
        assert values.keys() == expected[name].keys()
        assert (values["master"] - expected[name]["master"]).norm() < 1e-4 * expected[name]["master"].norm(), name


def test_muon_keeps_its_moment_of_the_blocks_matrices_alone():
    _, state = plain("muon")
    assert set(state["model.layers.1.mlp.down_proj.weight"]) == {"master", "momentum_buffer"}
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"):
        assert set(state[name]) == {"master", "exp_avg", "exp_avg_sq"}
    assert set(plain("lion")[1]["lm_head.weight"]) == {"master", "exp_avg"}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_another_stage_goes_on_from_it(optimizer):
    losses, _ = plain(optimizer)
    engine = open_one(optimizer, 3)
    learn(engine, last=3)
    state = state_of(engine)
    for stage in (0, 1, 2):
        again = open_one(optimizer, stage, weights=state)
        load_state(again, state, 3)
        assert same(state_of(again), state)
        assert learn(again, 4) == pytest.approx(losses[3:], abs=1e-4)


def test_anothers_state_is_refused():
    engine = open_one("muon", 1)
    with pytest.raises(CheckpointError, match="exp_avg_sq"):
        load_state(engine, plain("lion")[1], 3)


BITWISE = [
    *((optimizer, stage, "fp32" if stage == 0 else "bf16") for optimizer in OPTIMIZERS for stage in range(4)),
    ("adamw", 1, "fp32"), ("lion", 2, "fp32"), ("muon", 3, "fp32"),
]  # fmt: skip


@pytest.mark.parametrize(("optimizer", "stage", "precision"), BITWISE)
def test_state_comes_back_and_a_skipped_step_leaves_it_to_the_bit(optimizer, stage, precision):
    engine = open_one(optimizer, stage, precision)
    learn(engine, last=2)
    state = state_of(engine)
    gradient(engine, 3)
    engine.update(1.0, torch.ones(()))
    assert same(state_of(engine), state)
    # And the step counts with it: the next steps learn what a run without that step learns.
    again = open_one(optimizer, stage, precision, state)
    load_state(again, state, 2)
    assert same(state_of(again), state)
    assert learn(again, 4, 5) == learn(engine, 4, 5)
    assert same(state_of(again), state_of(engine))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_norms_by_group_are_the_plain_ones(optimizer, stage):
    plain_engine, engine = open_one(optimizer, 0), open_one(optimizer, stage)
    for step in (1, 2):
        gradient(plain_engine, step)
        gradient(engine, step)
        norms = gradient_norms(engine)
        groups = plain_engine.deepspeed.optimizer.param_groups
        assert list(norms) == [group["name"] for group in groups]
        for group in groups:
            expected = torch.cat([parameter.grad.flatten() for parameter in group["params"]]).norm()
            assert float(norms[group["name"]]) == pytest.approx(float(expected), rel=1e-5)
        for one in (plain_engine, engine):
            one.update(0.0, torch.zeros(()))


def test_norms_in_bf16_are_near_those_of_fp32():
    expected = open_one("adamw", 0)
    gradient(expected, 1)
    for stage in (1, 2, 3):
        engine = open_one("adamw", stage, "bf16")
        gradient(engine, 1)
        for name, norm in gradient_norms(engine).items():
            assert float(norm) == pytest.approx(float(gradient_norms(expected)[name]), rel=0.03)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_gradients_of_micro_batches_are_added_up_in_fp32(stage):
    """The norm is that of the exact sum of each micro batch's bf16 gradient; a sum in bf16 would be off by 4e-5."""
    engine = open_one("adamw", stage, "bf16")
    model, exact = copy.deepcopy(open_one("adamw", 1, "bf16").deepspeed.module), {}
    for batch in batches(1):
        model.zero_grad()
        objective, _ = model(batch.tokens, batch.targets, batch.segments, batch.positions)
        (objective / (ROWS * LENGTH)).backward()
        for name, parameter in model.named_parameters():
            exact[name] = exact.get(name, 0.0) + parameter.grad.double()
    gradient(engine, 1)
    _, norms = engine.update(0.0, torch.zeros(()))
    whole = torch.cat([total.flatten() for total in exact.values()]).norm()
    assert float(norms[0]) == pytest.approx(float(whole), rel=5e-6)


def test_mup_scales_the_rates_that_the_engine_opens_with():
    engine = open_one("adamw", 1, initialisation="mup", mup_base_width=16)
    groups = {group["name"]: group["base_lr"] for group in engine.deepspeed.optimizer.param_groups}
    assert groups["lm_head matrices"] == 0.005
    assert sorted(rate for name, rate in groups.items() if name.startswith("matrices")) == [0.005, 0.01]


def test_the_fragments_of_a_rank_cover_what_it_updates():
    for stage in (0, 1, 2, 3):
        engine = open_one("adamw", stage)
        counted: dict[str, int] = {}
        for flat, group, lying in fragments(engine):
            assert group["name"]
            for fragment in lying:
                assert fragment.offset + fragment.count <= flat.numel()
                counted[fragment.name] = counted.get(fragment.name, 0) + fragment.count
        assert counted == {name: shape.numel() for name, shape in engine.shapes()}


def test_a_negative_zero_stays_one():
    fragment = Fragment("w", torch.Size((2, 2)), 0, 0, 4)
    join(read_ranks(), 60.0)
    values = torch.tensor([-0.0, 0.0, 1.0, float("nan")])
    [whole] = assemble([(fragment, values)], torch.distributed.group.WORLD, torch.device("cpu"))
    assert torch.equal(whole.flatten().view(torch.int32), values.view(torch.int32))


def on_two_ranks(folder: Path) -> None:
    """The work of each of two ranks, for every optimizer at every stage."""
    for optimizer, stage in itertools.product(OPTIMIZERS, (0, 1, 2, 3)):
        found = at_two_ranks(optimizer, stage, torch.load(folder / f"{optimizer}.pt"))
        if torch.distributed.get_rank() == 0:
            torch.save(found, folder / f"{optimizer}-{stage}.pt")


def at_two_ranks(optimizer: str, stage: int, alone: Weights) -> dict[str, Any]:
    """Learn, save, go on from one rank's state, skip a step."""
    ours = open_one(optimizer, stage)
    losses = learn(ours, last=3)
    state = state_of(ours)
    again = open_one(optimizer, stage, weights=state)
    load_state(again, state, 3)
    back = same(state_of(again), state)
    gradient(again, 4)
    norms = {name: float(norm) for name, norm in gradient_norms(again).items()}
    again.update(1.0, torch.ones(()))
    kept = same(state_of(again), state)
    losses += learn(again, 4)
    mixed = open_one(optimizer, stage, weights=alone)
    load_state(mixed, alone, 3)
    crossed = same(state_of(mixed), alone)
    tail = learn(mixed, 4)
    return {"losses": losses, "norms": norms, "back": back, "kept": kept, "crossed": crossed, "tail": tail,
            "state": state}  # fmt: skip


def on_tensor_ranks(folder: Path) -> None:
    """The work of each of two ranks that share the matrices, at one stage after the other."""
    found = {}
    for variant, stage in itertools.product(SHARED, (0, 1, 2, 3)):
        engine = open_one("adamw", stage, tensor=2, **VARIANTS[variant])
        mine = batches(1, share=False)
        for batch in mine:
            engine.backward(engine.forward(batch)[0], ROWS * LENGTH, last=batch is mine[-1])
        skipped, norms = engine.update(1.0, torch.zeros(()))
        state = state_of(engine)
        again = open_one("adamw", stage, weights=state, tensor=2, **VARIANTS[variant])
        load_state(again, state, 1)
        back = same(state_of(again), state)
        found[variant, stage] = {"skipped": skipped, "norms": norms, "state": state, "back": back}
    torch.save(found, folder / f"rank{torch.distributed.get_rank()}.pt")


SCRIPT = """
import pathlib, torch
from tests.pretrain.engine import test_engine_state
torch.set_num_threads(1)
test_engine_state.{act}(pathlib.Path({folder!r}))
"""


def start(act: str, folder: Path) -> None:
    """Let two ranks do `act`."""
    well, messages = run_ranks(folder, ["-c", SCRIPT.format(act=act, folder=str(folder))], 2)
    assert well, messages[-6000:]


@pytest.mark.slow
def test_ranks_that_share_matrices_know_whole_norms_and_whole_states(tmp_path):
    """A parameter of only some tensor ranks counts once, and so does a common one; stage 3 divides the latter."""
    whole = {}
    for variant in SHARED:
        expected = open_one("adamw", 0, **VARIANTS[variant])
        gradient(expected, 1)
        whole[variant] = expected.update(1.0, torch.zeros(()))[1].tolist(), state_of(expected)
    start("on_tensor_ranks", tmp_path)
    for rank in range(2):
        results = torch.load(tmp_path / f"rank{rank}.pt")
        assert len(results) == 4 * len(SHARED)
        for (variant, stage), found in results.items():
            norms, state = whole[variant]
            assert float(found["skipped"]) == 0.0
            assert found["norms"].tolist() == pytest.approx(norms, rel=1e-5), (rank, variant, stage)
            assert found["back"], (rank, variant, stage)
            if rank == 0:  # one rank continues from the state that two divided
                alone = open_one("adamw", 1, weights=found["state"], **VARIANTS[variant])
                load_state(alone, found["state"], 1)
                assert same(state_of(alone), found["state"]), (variant, stage)
            assert found["state"].keys() == state.keys()
            for name, values in found["state"].items():
                for kind, value in values.items():
                    # Adam's first step is .01 g / (|g| + 1e-8): where g is as small as 1e-8, its rounding shows.
                    atol = 1e-4 if kind == "master" else 1e-5
                    assert torch.allclose(value, state[name][kind], rtol=1e-3, atol=atol), (rank, stage, name, kind)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, float]]]:
    """The results of two ranks, started once for all, and each optimizer's norms of step 4 on one rank."""
    folder, norms = tmp_path_factory.mktemp("two_ranks"), {}
    for optimizer in OPTIMIZERS:
        first = open_one(optimizer, 0)
        learn(first, last=3)
        torch.save(state_of(first), folder / f"{optimizer}.pt")
        gradient(first, 4)
        norms[optimizer] = {name: float(norm) for name, norm in gradient_norms(first).items()}
    start("on_two_ranks", folder)
    return folder, norms


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_do_what_one_does(two_ranks, optimizer, stage):
    folder, norms = two_ranks
    expected, _ = plain(optimizer)
    two: dict[str, Any] = torch.load(folder / f"{optimizer}-{stage}.pt")
    # Muon iterates in bf16: where another order of summing changes a gradient's last bit, 2^-8 of an update may go.
    near = 5e-4 if optimizer == "muon" else 1e-4
    assert two["losses"] == pytest.approx(expected, abs=near)
    assert two["tail"] == pytest.approx(expected[3:], abs=near)
    assert two["back"]
    assert two["kept"]
    assert two["crossed"]
    assert two["norms"] == pytest.approx(norms[optimizer], rel=1e-3)
    again = open_one(optimizer, 1, weights=two["state"])
    load_state(again, two["state"], 3)
    assert same(state_of(again), two["state"])
