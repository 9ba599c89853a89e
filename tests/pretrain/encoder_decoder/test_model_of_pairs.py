"""The original Transformer: its formulas, torch's own modules as oracle, and rows as any packing makes them."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig
from pretrain.encoder_decoder.dropout import Drops
from pretrain.encoder_decoder.model_of_pairs import EncoderDecoder, make_model
from pretrain.encoder_decoder.pair_rows import row_sizes, sides_of
from pretrain.model.decoder import Decoder
from pretrain.model.flops import flops_per_token, parameter_count
from pretrain.optim.optimizers import rate_factor
from tests.pretrain.encoder_decoder.pair_models import VOCABULARY, by_torch, made, packed, random_pairs, small

CONFIGS = Path(__file__).parents[3] / "configs"
PAPER = {"base": (512, 2048, 8, 65e6), "big": (1024, 4096, 16, 213e6)}
IDS = 37_000
"""The paper's shared vocabulary (section 5.1)."""


def preset(name: str) -> dict:
    return tomllib.loads((CONFIGS / f"transformer-{name}.toml").read_text())


@pytest.mark.parametrize("name", PAPER)
def test_the_presets_have_the_papers_sizes_and_counts(name):
    """Counts by the paper's formulas, which give 63.0 and 214.2 million; its table rounds to 65 and 213."""
    width, inner, heads, printed = PAPER[name]
    config = ModelConfig(**preset(name)["model"])
    assert (config.hidden_size, config.intermediate_size, config.num_attention_heads) == (width, inner, heads)
    attention, feed, norm = 4 * width**2, 2 * width * inner + inner + width, 2 * width
    expected = 6 * (attention + feed + 2 * norm) + 6 * (2 * attention + feed + 3 * norm)
    padding = (-IDS % 128) * width
    assert parameter_count(config, IDS) - padding == expected + IDS * width
    with torch.device("meta"):
        model = make_model(config, IDS)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameter_count(config, IDS)
    assert parameter_count(config, IDS) == pytest.approx(printed, rel=0.031)


@pytest.mark.parametrize("name", PAPER)
def test_the_presets_schedule_is_the_papers(name):
    """Equation 3: width^-0.5 x min(step^-0.5, step x warmup^-1.5)."""
    values = preset(name)
    optim, width = OptimConfig(**values["optim"]), values["model"]["hidden_size"]
    assert (optim.betas, optim.eps, optim.warmup_steps) == ((0.9, 0.98), 1e-9, 4000)
    for step in (1, 2, 100, 3999, 4000, 4001, 50_000, 100_000):
        paper = width**-0.5 * min(step**-0.5, step * optim.warmup_steps**-1.5)
        assert optim.learning_rate * rate_factor(step, 100_000, optim) == pytest.approx(paper, rel=1e-4)


@settings(max_examples=15)
@given(st.integers(0, 1000), st.booleans(), st.sampled_from(["relu", "swiglu"]))
def test_counts_are_those_of_the_modules(seed, tied, feed_forward):
    config = small(tie_word_embeddings=tied, feed_forward=feed_forward, encoder_layers=1 + seed % 4, bias=seed % 3 > 0)
    model = make_model(config, VOCABULARY)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameter_count(config, VOCABULARY)
    assert flops_per_token(config, VOCABULARY, 64) > 0


def test_nats_are_those_of_torchs_own_transformer():
    model = made(small())
    pairs = random_pairs(3, 6)
    _, nats = model(*rows_of(packed([pairs[:2], pairs[2:3], pairs[3:5], pairs[5:]])))
    for row, held in enumerate([pairs[:2], pairs[2:3], pairs[3:5], pairs[5:]]):
        found = nats[row][nats[row] > 0]
        expected = torch.cat([
            torch.nn.functional.cross_entropy(by_torch(model, pair), torch.tensor([*pair[1], 0]), reduction="none")
            for pair in held
        ])  # fmt: skip
        assert torch.allclose(found, expected, atol=2e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_a_pair_is_alone_in_any_row(seed):
    """The nats of a pair do not depend on its neighbours, its place or the rest of the batch."""
    model, pairs = made(small()), random_pairs(seed, 3, longest=4)
    with torch.no_grad():
        together = model(*rows_of(packed([pairs, pairs[1:]], 32)))[1]
        alone = [model(*rows_of(packed([[pair]])))[1] for pair in pairs]
    values = torch.cat([one[one > 0] for one in alone])
    assert torch.allclose(together[0][together[0] > 0], values, atol=1e-5)
    assert torch.allclose(together[1][together[1] > 0], values[len(pairs[0][1]) + 1 :], atol=1e-5)


def test_sides_of_a_row():
    batch = packed([[([5, 6], [7, 8]), ([9], [4])]], length=12)
    sizes = row_sizes(batch.targets, batch.segments)
    source, target = sides_of(batch.targets, batch.segments, batch.positions, sizes)
    assert source.of(batch.tokens)[0].tolist()[:5] == [5, 6, 0, 9, 0]
    assert source.positions[0].tolist()[:5] == [0, 1, 2, 0, 1]
    assert target.of(batch.tokens)[0].tolist() == [0, 7, 8, 0, 4]
    assert target.positions[0].tolist() == [0, 1, 2, 0, 1]
    assert target.of(batch.targets)[0].tolist() == [7, 8, 0, 4, 0]


def test_smoothing_is_that_of_torch_and_leaves_the_nats():
    """torch.nn.CrossEntropyLoss spreads over all rows, so the vocabulary has no padding here."""
    batch, plain, smooth = packed([random_pairs(4, 2)]), small(), small(label_smoothing=0.1)
    ours, other = EncoderDecoder(smooth, 128), EncoderDecoder(plain, 128)
    other.load_state_dict({name: 0.3 * torch.randn(value.shape) for name, value in other.state_dict().items()})
    ours.load_state_dict(other.state_dict())
    objective, nats = ours(*rows_of(batch))
    objective.backward()
    sides = sides_of(batch.targets, batch.segments, batch.positions, row_sizes(batch.targets, batch.segments))
    logits = other.lm_head(other.model(batch.tokens, sides))
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum")
    expected = loss(logits.flatten(0, 1), sides[1].of(batch.targets).flatten())
    expected.backward()
    assert torch.allclose(objective, expected, rtol=1e-5)
    assert torch.allclose(nats, other(*rows_of(batch))[1], atol=1e-5)
    for (name, mine), (_, theirs) in zip(ours.named_parameters(), other.named_parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, atol=2e-4, rtol=1e-3), name


def test_dropout_is_a_function_of_the_row_and_of_nothing_else():
    share, seeds = 0.3, torch.randint(-(2**62), 2**62, (6,), generator=torch.Generator().manual_seed(0))
    ones = torch.ones(6, 40, 96)
    whole = Drops.of(share, seeds, 40)(ones, 5)
    parts = [Drops.of(share, seeds[rows], 40)(ones[rows], 5) for rows in (slice(0, 2), slice(2, 6))]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole[:, :17], Drops.of(share, seeds, 17)(ones[:, :17], 5))  # a shorter row of another batch
    assert torch.equal(whole.unique(), torch.tensor([0.0, 1 / (1 - share)]))


def test_dropout_drops_its_share_and_no_two_masks_are_alike():
    seeds = torch.randint(-(2**62), 2**62, (8,), generator=torch.Generator().manual_seed(1))
    x = torch.ones(8, 128, 256)
    masks = torch.stack([(Drops.of(0.1, seeds, 128)(x, site) == 0).float() for site in range(4)])
    error = 5 * math.sqrt(0.09 / masks[0].numel())
    assert all(abs(float(mask.mean()) - 0.1) < error for mask in masks)
    tokens = masks[0].flatten(0, 1)
    for other in (masks[1].flatten(0, 1), tokens.roll(1, 0), tokens.roll(1, 1), tokens.roll(128, 0), tokens.roll(2, 1)):
        together = float((tokens * other).mean())
        assert abs(together - 0.01) < 5 * math.sqrt(0.01 * 0.99 / tokens.numel())


def test_dropout_acts_in_training_alone():
    model, batch = made(small(dropout=0.2)), packed([random_pairs(5, 2)])
    seeds = torch.tensor([12345])
    plain, again = (model(*rows_of(batch))[1] for _ in range(2))
    dropped = [model(*rows_of(batch), seeds=seeds)[1] for _ in range(2)]
    assert torch.equal(plain, again)
    assert torch.equal(dropped[0], dropped[1])
    assert not torch.allclose(plain, dropped[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"position_embedding": "rope"}, "position_embedding = 'sinusoidal'"),
        ({"norm_position": "pre"}, "norm_position = 'post'"),
        ({"num_key_value_heads": 2}, "num_key_value_heads = 4"),
        ({"sliding_window": 4}, "sliding_window = None"),
        ({"encoder_layers": 0, "dropout": 0.1}, "set encoder_layers"),
        ({"initialisation": "mup", "mup_base_width": 16}, "xavier"),
    ],
)
def test_what_the_original_transformer_lacks_is_refused(changes, words):
    with pytest.raises(ValidationError, match=words):
        small(**changes)


def test_a_decoder_alone_is_as_before():
    config = ModelConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=64,
    )  # fmt: skip
    assert isinstance(make_model(config, VOCABULARY), Decoder)
    assert not {"encoder_layers", "dropout", "label_smoothing"} & config.model_dump(mode="json").keys()


def rows_of(batch):
    return batch.tokens, batch.targets, batch.segments, batch.positions
