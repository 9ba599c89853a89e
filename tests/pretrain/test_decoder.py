from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pretrain.model.attention import allowed_pairs, dense_mask, flex_mask
from pretrain.model.decoder import Batch, Decoder, flops_per_token, initial_weight, parameter_count
from pretrain.model_config import ModelConfig


def config(**changes) -> ModelConfig:
    values = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    return ModelConfig(**{**values, **changes})


def model_of(settings: ModelConfig, vocabulary: int = 100) -> Decoder:
    model = Decoder(settings, vocabulary)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Larger than the initial deviation, so that a wrong term would show.
            parameter.copy_(
                initial_weight(name, parameter.shape, settings, seed=1) * (1 if parameter.dim() == 1 else 10)
            )
    return model


def rows(lengths: list[list[int]], vocabulary: int = 100, seed: int = 0) -> Batch:
    """One row for each list of document lengths."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths[0])
    tokens = torch.randint(0, vocabulary, (len(lengths), total), generator=generator)
    segments = torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths])
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    targets = tokens.roll(-1, 1)
    targets[:, -1] = -100
    return Batch(tokens, targets, segments.int(), positions.int())


def reference(model: Decoder, settings: ModelConfig, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of one document [L] by loops over heads and positions, straight from the papers."""
    weights = dict(model.named_parameters())
    size, groups = settings.head_dim, settings.num_attention_heads // settings.num_key_value_heads

    def norm(x, name):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + settings.rms_norm_eps) * weights[name]

    def turn(x):
        out = torch.empty_like(x)
        for position in range(len(x)):
            for i in range(size // 2):
                angle = position / settings.rope_theta ** (2 * i / size)
                a, b = x[position, i], x[position, i + size // 2]
                out[position, i] = a * math.cos(angle) - b * math.sin(angle)
                out[position, i + size // 2] = b * math.cos(angle) + a * math.sin(angle)
        return out

    x = weights["model.embed_tokens.weight"][tokens]
    for layer in range(settings.num_hidden_layers):
        p = f"model.layers.{layer}."
        y = norm(x, p + "input_layernorm.weight")
        q, k, v = (y @ weights[f"{p}self_attn.{n}_proj.weight"].T for n in "qkv")
        heads = []
        for h in range(settings.num_attention_heads):
            g = h // groups
            qh = turn(q[:, h * size : (h + 1) * size])
            kh, vh = turn(k[:, g * size : (g + 1) * size]), v[:, g * size : (g + 1) * size]
            out = []
            for t in range(len(tokens)):
                weight = torch.softmax(qh[t] @ kh[: t + 1].T / math.sqrt(size), 0)
                out.append(weight @ vh[: t + 1])
            heads.append(torch.stack(out))
        x = x + torch.cat(heads, -1) @ weights[p + "self_attn.o_proj.weight"].T
        y = norm(x, p + "post_attention_layernorm.weight")
        gate = y @ weights[p + "mlp.gate_proj.weight"].T
        x = (
            x
            + (gate * torch.sigmoid(gate) * (y @ weights[p + "mlp.up_proj.weight"].T))
            @ weights[p + "mlp.down_proj.weight"].T
        )
    return norm(x, "model.norm.weight") @ weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).T


@pytest.mark.parametrize(
    "changes", [{}, {"num_key_value_heads": 4}, {"num_key_value_heads": 1}, {"tie_word_embeddings": True}]
)
def test_logits_are_those_of_a_plain_reference(changes):
    settings = config(**changes)
    model, batch = model_of(settings), rows([[5, 9, 2], [10, 1, 5]])
    with torch.no_grad():
        logits = model.logits(batch)
        for row, lengths in enumerate([[5, 9, 2], [10, 1, 5]]):
            start = 0
            for length in lengths:
                expected = reference(model, settings, batch.tokens[row, start : start + length])
                torch.testing.assert_close(logits[row, start : start + length], expected, atol=1e-4, rtol=1e-4)
                start += length


def test_a_document_does_not_feel_its_neighbours():
    settings = config()
    model, batch = model_of(settings), rows([[7, 12, 13]])
    changed = batch.tokens.clone()
    changed[:, 7:19] = (changed[:, 7:19] + 17) % 100
    with torch.no_grad():
        before = model.logits(batch)
        after = model.logits(Batch(changed, batch.targets, batch.segments, batch.positions))
    assert (before[:, :7] - after[:, :7]).abs().max() <= 1e-6
    assert (before[:, 19:] - after[:, 19:]).abs().max() <= 1e-6
    assert (before[:, 7:19] - after[:, 7:19]).abs().max() > 1e-2


def test_a_document_reads_the_same_wherever_it_stands():
    model = model_of(config())
    alone, packed = rows([[6]]), rows([[9, 6, 1]])
    packed.tokens[0, 9:15] = alone.tokens[0]
    with torch.no_grad():
        torch.testing.assert_close(model.logits(packed)[0, 9:15], model.logits(alone)[0], atol=1e-5, rtol=1e-5)


def test_the_table_allows_earlier_tokens_of_the_same_document_only():
    segments = torch.tensor([[0, 0, 1, 1, 1, 2]])
    table = allowed_pairs(segments)[0, 0]
    for q in range(6):
        for k in range(6):
            assert table[q, k] == (k <= q and segments[0, q] == segments[0, k])


def test_both_kernels_agree():
    from torch.nn.attention.flex_attention import flex_attention

    generator = torch.Generator().manual_seed(0)
    segments = (torch.rand(2, 256, generator=generator) < 0.02).cumsum(1).int()
    q = torch.randn(2, 4, 256, 16, generator=generator)
    k, v = (torch.randn(2, 2, 256, 16, generator=generator) for _ in range(2))
    expected = dense_mask(segments).attend(q, k, v)
    torch.testing.assert_close(flex_mask(segments, flex_attention).attend(q, k, v), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"num_key_value_heads": 4, "hidden_size": 48}])
@pytest.mark.parametrize("vocabulary", [100, 128, 300])
def test_the_parameter_count_has_a_closed_form(changes, vocabulary):
    settings = config(**changes)
    counted = sum(parameter.numel() for parameter in Decoder(settings, vocabulary).parameters())
    assert parameter_count(settings, vocabulary) == counted


def test_names_are_those_of_llama():
    names = {name for name, _ in Decoder(config(), 100).named_parameters()}
    block = {f"self_attn.{n}_proj" for n in "qkvo"} | {f"mlp.{n}_proj" for n in ("gate", "up", "down")}
    block |= {"input_layernorm", "post_attention_layernorm"}
    expected = {f"model.layers.{layer}.{part}.weight" for layer in range(2) for part in block}
    assert names == expected | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert "lm_head.weight" not in dict(Decoder(config(tie_word_embeddings=True), 100).named_parameters())


def test_initial_weights_follow_from_name_and_seed():
    settings = config(hidden_size=256, num_hidden_layers=8)
    shape = torch.Size((256, 256))
    weight = initial_weight("model.layers.0.self_attn.q_proj.weight", shape, settings, 1)
    assert torch.equal(weight, initial_weight("model.layers.0.self_attn.q_proj.weight", shape, settings, 1))
    assert not torch.equal(weight, initial_weight("model.layers.1.self_attn.q_proj.weight", shape, settings, 1))
    assert not torch.equal(weight, initial_weight("model.layers.0.self_attn.q_proj.weight", shape, settings, 2))
    assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    output = initial_weight("model.layers.0.mlp.down_proj.weight", shape, settings, 1)
    assert output.std().item() == pytest.approx(0.02 / 4, rel=0.03)
    assert torch.equal(initial_weight("model.norm.weight", torch.Size((8,)), settings, 1), torch.ones(8))


def test_the_loss_is_a_sum_over_targets():
    model, batch = model_of(config()), rows([[8, 8], [4, 12]])
    with torch.no_grad():
        logits = model.logits(batch)
        loss, _ = model(batch.tokens, batch.targets, batch.segments, batch.positions)
    terms = [F.cross_entropy(logits[row, t], batch.targets[row, t]) for row in range(2) for t in range(16) if t < 15]
    assert loss.item() == pytest.approx(sum(terms).item(), rel=1e-5)


def test_arithmetic_per_token_counts_what_multiplies():
    settings = config()
    matrices = sum(p.numel() for n, p in Decoder(settings, 128).named_parameters() if "embed" not in n)
    assert flops_per_token(settings, 128, 64) == 6 * matrices + 12 * 2 * 32 * 64
    tied = config(tie_word_embeddings=True)
    assert flops_per_token(tied, 128, 64) == flops_per_token(settings, 128, 64)
