from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest
import torch

from assay.config import load_run
from pretrain.config.optim import OptimConfig
from pretrain.config.training import EngineConfig, TrainConfig, TrainRecipe
from pretrain.model.decoder import Decoder
from pretrain.model.init import initial_deviation, initial_weight, learning_rate_scale
from pretrain.optim.optimizers import parameter_groups
from tests.pretrain.rank_runs import run_ranks
from tests.pretrain.small_models import VARIANTS, config, rows

Q, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def test_initial_weights_follow_from_name_and_seed():
    settings = config(hidden_size=256, num_hidden_layers=8)
    shape = torch.Size((256, 256))
    weight = initial_weight(Q, shape, settings, 1)
    assert torch.equal(weight, initial_weight(Q, shape, settings, 1))
    assert not torch.equal(weight, initial_weight(Q.replace("0", "1"), shape, settings, 1))
    assert not torch.equal(weight, initial_weight(Q, shape, settings, 2))
    assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    output = initial_weight(DOWN, shape, settings, 1)
    assert output.std().item() == pytest.approx(0.02 / 4, rel=0.03)
    assert torch.equal(initial_weight("model.norm.weight", torch.Size((8,)), settings, 1), torch.ones(8))
    assert not initial_weight("model.layers.0.self_attn.q_proj.bias", torch.Size((8,)), settings, 1).any()


DRAWN = """
import sys, torch
from pathlib import Path
from pretrain.distributed.process_group import gather, join, read_ranks
from pretrain.engine.engine import open_engine
from pretrain.engine.state import full_state
from pretrain.model.init import initial_weight
from tests.pretrain.model.test_initial import RECIPE, SETTINGS, same_bits
ranks, drawn = read_ranks(), []
device = join(ranks, 120.0)

def weight(name, shape):
    drawn.append(name)
    return initial_weight(name, shape, RECIPE.model, 5)

for stage in (0, 1, 3):
    drawn.clear()
    settings = SETTINGS.model_copy(update={"zero_stage": stage})
    engine = open_engine(RECIPE, settings, 200, ranks, device, weight)
    state = dict(full_state(engine))
    everyone = gather(drawn)
    assert sorted(name for names in everyone for name in names) == sorted(state), everyone
    assert max(map(len, everyone)) - min(map(len, everyone)) <= 1, everyone
    for name, tensors in state.items():
        assert same_bits(tensors["master"], initial_weight(name, tensors["master"].shape, RECIPE.model, 5)), name
    for name, parameter in engine.parameters() if stage < 3 else ():
        assert same_bits(parameter.detach(), state[name]["master"]), name
"""
RECIPE = TrainRecipe(
    model=config(), optim=OptimConfig(learning_rate=0.1),
    train=TrainConfig(sequence_length=32, global_batch_size=12, steps=9, precision="fp32"),
)  # fmt: skip
SETTINGS = EngineConfig(micro_batch_size=1, threads=1)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


@pytest.mark.slow
def test_each_rank_draws_its_share_and_all_hold_the_same_weights(tmp_path):
    """Bit for bit those that one process draws by their names alone."""
    well, messages = run_ranks(tmp_path, ["-c", DRAWN], 3)
    assert well, messages[-6000:]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {Q: 0.02, DOWN: 0.01, EMBEDDING: 0.02, HEAD: 0.02}),
        ({"initialisation": "normal", "initializer_range": 0.1}, {Q: 0.1, DOWN: 0.1, EMBEDDING: 0.1, HEAD: 0.1}),
        ({"embedding_range": 1.0}, {Q: 0.02, DOWN: 0.01, EMBEDDING: 1.0, HEAD: 0.02}),
        ({"zero_init_outputs": True}, {Q: 0.02, DOWN: 0.0, EMBEDDING: 0.02, HEAD: 0.0}),
        ({"initialisation": "mup", "mup_base_width": 8}, {Q: 0.01, DOWN: 0.005, EMBEDDING: 0.02, HEAD: 0.02}),
    ],
)
def test_deviations(changes, expected):
    settings = config(**changes)
    assert {name: initial_deviation(name, settings) for name in expected} == pytest.approx(expected)


def test_only_mup_scales_learning_rates_and_only_of_what_is_hidden():
    settings = config(initialisation="mup", mup_base_width=8, **VARIANTS["mixtral"], bias=True)
    scales = {n: learning_rate_scale(n, tuple(p.shape), settings) for n, p in Decoder(settings, 100).named_parameters()}
    slow = {name for name, scale in scales.items() if scale == 0.25}
    assert slow == {name for name in scales if "proj.weight" in name or name.endswith("mlp.gate.weight")}
    assert {scales[name] for name in scales.keys() - slow} == {1.0}
    assert learning_rate_scale(Q, (32, 32), config()) == 1.0


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_new_model_knows_nothing(variant):
    """The golden of each family: its first loss is the logarithm of the vocabulary, padding included."""
    settings, batch = config(**VARIANTS[variant]), rows([[100, 156], [256, 0]], vocabulary=512)
    settings = settings.model_copy(update={"max_position_embeddings": 256})
    model = Decoder(settings, 512)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_weight(name, parameter.shape, settings, 1))
        _, nats = model(batch.tokens, batch.targets, batch.segments, batch.positions)
    assert (nats.sum() / (batch.targets >= 0).sum()).item() == pytest.approx(math.log(512), abs=0.05)


STEPS = 10


@pytest.mark.parametrize("name", ["10m", "125m", "350m", "1b", "7b", "13b", "70b"])
def test_a_new_preset_knows_nothing(name):
    """A preset as its file sets it, but narrower and of two layers."""
    preset = load_run(Path(__file__).parents[3] / "configs" / f"{name}.toml", [], needs="model").config.model
    shared = preset.num_attention_heads // preset.num_key_value_heads
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8 // shared}
    small = preset.model_copy(
        update={"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 16, **heads}
    )
    model, batch = Decoder(small, 2048), rows([[100, 156]], vocabulary=2048)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.copy_(initial_weight(parameter_name, parameter.shape, small, 1))
        _, nats = model(batch.tokens, batch.targets, batch.segments, batch.positions)
    assert (nats.sum() / 255).item() == pytest.approx(math.log(2048), abs=0.05)


def coordinates(width: int, initialisation: str) -> list[float]:
    """Mean magnitude of the outputs of attention, feed-forward and projection after ten Adam steps at one rate."""
    mup = {"initialisation": "mup", "mup_base_width": 64} if initialisation == "mup" else {"initialisation": "normal"}
    settings = config(
        hidden_size=width,
        intermediate_size=2 * width,
        num_attention_heads=width // 16,
        num_key_value_heads=width // 16,
        **mup,
    )
    batch = rows([[32, 32]] * 4)
    model = Decoder(settings, 100)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_weight(name, parameter.shape, settings, 1))
    groups = [
        {"params": [p], "lr": 0.01 * learning_rate_scale(n, tuple(p.shape), settings)}
        for n, p in model.named_parameters()
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    messages: dict[str, float] = {}

    def listen(name):
        def keep(module, inputs, out):
            messages[name] = out.abs().mean().item()

        return keep

    for name, module in model.named_modules():
        if name.endswith(("self_attn", "mlp")):
            module.register_forward_hook(listen(name))
    for _ in range(STEPS):
        objective, _ = model(batch.tokens, batch.targets, batch.segments, batch.positions)
        optimizer.zero_grad()
        (objective / (batch.targets >= 0).sum()).backward()
        optimizer.step()
    with torch.no_grad():
        messages["logits"] = model.logits(batch).abs().mean().item()
    return list(messages.values())


def test_under_mup_activations_do_not_grow_with_the_width():
    """The coordinate check (arXiv:2203.03466, appendix D.1): each part's output after training, by width."""

    def growth(initialisation):
        small, large = coordinates(128, initialisation), coordinates(512, initialisation)
        return max(b / a for a, b in zip(small, large, strict=True))

    assert growth("mup") < 1.5
    assert growth("normal") > 3


@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 0.25), ("lion", 0.25), ("muon", 0.02)])
def test_the_optimizers_groups_honour_mup_and_muon_needs_none(optimizer, rate):
    settings = config(initialisation="mup", mup_base_width=8)
    optim = OptimConfig(optimizer=optimizer, learning_rate=1.0, muon_learning_rate=0.02)
    scale = functools.partial(learning_rate_scale, config=settings)
    named = list(Decoder(settings, 100).named_parameters())
    rates = {id(p): g["base_lr"] for g in parameter_groups(named, optim, lambda p: p.shape, scale) for p in g["params"]}
    messages = {name: rates[id(parameter)] for name, parameter in named}
    assert (messages[Q], messages[DOWN], messages[EMBEDDING], messages[HEAD]) == (rate, rate, 1.0, 1.0)
