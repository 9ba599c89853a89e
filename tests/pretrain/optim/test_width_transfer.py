"""muP (arXiv:2203.03466): the best rate at the base width stays the best at another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.config.optim import GroupConfig, OptimConfig
from pretrain.model.decoder import Decoder
from pretrain.model.init import initial_weight, learning_rate_scale
from pretrain.optim.optimizers import parameter_groups
from tests.pretrain.small_models import config

BASE, VOCABULARY, ROWS, LENGTH, STEPS = 32, 64, 16, 32, 100
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)


def model_of(width, initialisation, **changes):
    mup = {"mup_base_width": BASE} if initialisation == "mup" else {}
    return config(
        hidden_size=width, intermediate_size=2 * width, num_attention_heads=width // 16,
        num_key_value_heads=width // 16, initialisation=initialisation, **mup, **changes,
    )  # fmt: skip


def groups_of(settings, optim):
    decoder = Decoder(settings, VOCABULARY)
    scale = lambda name, shape: learning_rate_scale(name, tuple(shape), settings)  # noqa: E731
    return decoder, parameter_groups(decoder.named_parameters(), optim, lambda parameter: parameter.shape, scale)


@given(
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from(["adamw", "lion", "muon"]),
    st.floats(0, 10),
    st.sampled_from([(), (GroupConfig(pattern="mlp", learning_rate_scale=0.5, weight_decay=0.3),)]),
)
def test_what_a_step_decays_does_not_depend_on_the_width(ratio, optimizer, decay, rules):
    optim = OptimConfig(optimizer=optimizer, learning_rate=1e-2, weight_decay=decay, groups=rules)

    def decays(width):
        decoder, groups = groups_of(model_of(width, "mup"), optim)
        names = {id(parameter): name for name, parameter in decoder.named_parameters()}
        return {names[id(p)]: g["base_lr"] * g["weight_decay"] for g in groups for p in g["params"]}

    assert decays(BASE * ratio) == pytest.approx(decays(BASE))


def chain(rows, seed=1):
    """Rows of a Markov chain with few likely followers of each symbol, [rows, LENGTH + 1]."""
    followers = np.random.default_rng(0).dirichlet(np.full(VOCABULARY, 0.08), size=VOCABULARY).cumsum(1)
    generator = np.random.default_rng(seed)
    text = np.zeros((rows, LENGTH + 1), dtype=np.int64)
    text[:, 0] = generator.integers(0, VOCABULARY, rows)
    for place in range(LENGTH):
        draws = generator.random((rows, 1))
        text[:, place + 1] = np.minimum((followers[text[:, place]] < draws).sum(1), VOCABULARY - 1)
    return torch.from_numpy(text)


def loss_of(width, initialisation, rate):
    """Mean loss of the last 20 steps of AdamW with a warm-up of 10."""
    settings = model_of(width, initialisation, max_position_embeddings=LENGTH)
    decoder, groups = groups_of(settings, OptimConfig(learning_rate=rate))
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.copy_(initial_weight(name, parameter.shape, settings, 1))
    named = [{"params": g["params"], "weight_decay": g["weight_decay"], "base": g["base_lr"]} for g in groups]
    optimizer = torch.optim.AdamW(named, betas=(0.9, 0.95))
    segments = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    positions = torch.arange(LENGTH).expand(ROWS, LENGTH).contiguous()
    losses = []
    for step, text in enumerate(chain(ROWS * STEPS).split(ROWS), 1):
        objective, nats = decoder(text[:, :-1].contiguous(), text[:, 1:].contiguous(), segments, positions)
        optimizer.zero_grad()
        (objective / (ROWS * LENGTH)).backward()
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * min(1.0, step / 10)
        optimizer.step()
        losses.append(nats.sum().item() / (ROWS * LENGTH))
    return float(np.mean(losses[-20:]))


@pytest.mark.slow
def test_the_best_rate_is_the_same_at_four_times_the_width():
    """The best of the surrounding rates; without muP half of it is better at the larger width."""
    torch.set_num_threads(1)

    def best(width, initialisation, rates):
        losses = [loss_of(width, initialisation, rate) for rate in rates]
        return rates[int(np.nanargmin(losses))]

    base = best(BASE, "mup", RATES)
    assert RATES[0] < base < RATES[-1]
    assert best(4 * BASE, "mup", (base / 2, base, 2 * base)) == base
    assert best(4 * BASE, "normal", (base / 2, base)) == base / 2
