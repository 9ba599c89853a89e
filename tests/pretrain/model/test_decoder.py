from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config.model import ModelConfig
from pretrain.model.decoder import Decoder
from tests.pretrain.small_models import VARIANTS, config, model_of, rows, with_tokens


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


def test_names_are_those_of_llama():
    names = {name for name, _ in Decoder(config(), 100).named_parameters()}
    block = {f"self_attn.{n}_proj" for n in "qkvo"} | {f"mlp.{n}_proj" for n in ("gate", "up", "down")}
    block |= {"input_layernorm", "post_attention_layernorm"}
    expected = {f"model.layers.{layer}.{part}.weight" for layer in range(2) for part in block}
    assert names == expected | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert "lm_head.weight" not in dict(Decoder(config(tie_word_embeddings=True), 100).named_parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_is_a_sum_over_targets(variant):
    settings = config(**VARIANTS[variant])
    model, batch = model_of(settings), rows([[8, 8], [4, 12]])
    with torch.no_grad():
        logits = model.logits(batch)
        objective, nats = model(batch.tokens, batch.targets, batch.segments, batch.positions)
    expected = F.cross_entropy(logits[:, :15].flatten(0, 1), batch.targets[:, :15].flatten(), reduction="none")
    torch.testing.assert_close(nats[:, :15].flatten(), expected, rtol=1e-5, atol=1e-5)
    assert not nats[:, 15].any()
    assert nats.dtype == objective.dtype == torch.float32
    added = settings.z_loss * logits[:, :15].logsumexp(-1).square().sum()
    if settings.moe is None:
        assert objective.item() == pytest.approx((expected.sum() + added).item(), rel=1e-5)
    else:
        assert objective.item() > expected.sum().item()


@st.composite
def documents(draw):
    """Lengths of the documents of a row, and the number of the altered one."""
    lengths = draw(st.lists(st.integers(1, 12), min_size=2, max_size=5))
    return lengths, draw(st.integers(0, len(lengths) - 1)), draw(st.integers(1, 99))


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=8, derandomize=True)
@given(drawn=documents())
def test_documents_never_see_each_other(variant, drawn):
    """The law: altering one document leaves the logits of the others; and each is computed as if it were alone."""
    lengths, altered, shift = drawn
    batch = rows([lengths])
    ends = [sum(lengths[: number + 1]) for number in range(len(lengths))]
    places = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    changed = batch.tokens.clone()
    changed[:, places[altered]] = (changed[:, places[altered]] + shift) % 100
    model = variant_of(variant)
    with torch.no_grad():
        before, after = model.logits(batch), model.logits(with_tokens(batch, changed))
        for number, place in enumerate(places):
            difference = (before[:, place] - after[:, place]).abs().max()
            assert (difference > 1e-3) if number == altered else (difference <= 1e-6)
            alone = rows([[lengths[number]]])
            alone = model.logits(with_tokens(alone, batch.tokens[:, place]))
            torch.testing.assert_close(before[:, place], alone, atol=1e-6, rtol=1e-5)


@functools.cache
def variant_of(name: str) -> Decoder:
    """Weights as at the start of training: logits of about 1, of which 1e-6 is rounding."""
    return model_of(config(**VARIANTS[name]), factor=1.0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns(variant):
    model, batch = model_of(config(**VARIANTS[variant])), rows([[20, 44]])
    model(batch.tokens, batch.targets, batch.segments, batch.positions)[0].backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    still = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    assert still == []


@pytest.mark.parametrize("variant", ["llama", "gemma", "gpt2", "mixtral"])
def test_bf16_follows_fp32(variant):
    settings = config(**VARIANTS[variant])
    batch = rows([[20, 44], [64, 0]])
    exact, rounded = model_of(settings, factor=3.0), model_of(settings, factor=3.0).bfloat16()
    messages = [
        model(batch.tokens, batch.targets, batch.segments, batch.positions)[1].mean() for model in (exact, rounded)
    ]
    assert messages[0].item() == pytest.approx(messages[1].item(), rel=5e-3)
    with torch.autocast("cpu", torch.bfloat16):
        objective, nats = exact(batch.tokens, batch.targets, batch.segments, batch.positions)
        assert nats.mean().item() == pytest.approx(messages[0].item(), rel=5e-3)
    objective.backward()
    assert {parameter.grad.dtype for parameter in exact.parameters()} == {torch.float32}
