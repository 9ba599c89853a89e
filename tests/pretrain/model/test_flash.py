"""FlashAttention's kernel without a GPU: a module of its name with the published signature."""

from __future__ import annotations

import functools
import importlib.machinery
import inspect
import itertools
import sys
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.config.training import EngineConfig
from pretrain.model.attention import AttentionRule, explicit_attention
from pretrain.model.flash import documents_at_most, flash_attention, load_kernel
from tests.pretrain.engine import test_engine_state
from tests.pretrain.small_models import config, model_of, rows

# As published: flash-attn 2.8 (flash_attn/flash_attn_interface.py) and 3 (hopper/flash_attn_interface.py).
PUBLISHED = {
    "flash_attn": "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, "
    "causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, "
    "return_attn_probs=False, block_table=None",
    "flash_attn_interface": "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, "
    "seqused_k=None, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, "
    "window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, "
    "sm_margin=0, return_attn_probs=False",
}


def by_documents(q, k, v, given):
    """The documented kernel: each sequence by itself, causal to the last key, with a window to the left."""
    out, starts = torch.zeros_like(q), given["cu_seqlens_q"].tolist()
    assert given["cu_seqlens_q"].dtype == given["cu_seqlens_k"].dtype == torch.int32
    assert starts == given["cu_seqlens_k"].tolist()
    assert starts[0] == 0
    assert starts[-1] == len(q)
    left = given["window_size"][0]
    for first, last in itertools.pairwise(starts):
        count = last - first
        assert 0 <= count <= given["max_seqlen_q"]
        queries, keys, values = (x[first:last].transpose(0, 1) for x in (q, k, v))
        keys, values = (x.repeat_interleave(len(queries) // len(x), 0) for x in (keys, values))
        logits = queries @ keys.transpose(1, 2) * given["softmax_scale"]
        if given["softcap"]:
            logits = given["softcap"] * torch.tanh(logits / given["softcap"])
        behind = torch.arange(count)[:, None] - torch.arange(count)
        hidden = (behind < 0) | ((behind > left) if left >= 0 else torch.zeros_like(behind, dtype=torch.bool))
        out[first:last] = (logits.masked_fill(hidden, -torch.inf).softmax(-1) @ values).transpose(0, 1)
    return out


@pytest.fixture(params=sorted(PUBLISHED))
def package(request, monkeypatch):
    """A package with the published signature; yields the arguments that its kernel received."""
    calls = []

    def answer(bound):
        assert bound["causal"] is True
        calls.append(bound)
        return by_documents(bound["q"], bound["k"], bound["v"], bound)

    scope = {"answer": answer}
    source = f"def flash_attn_varlen_func({PUBLISHED[request.param]}):\n    return answer(dict(locals()))\n"
    exec(source, scope)
    for name in PUBLISHED:
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = types.ModuleType(request.param)
    module.__spec__ = importlib.machinery.ModuleSpec(request.param, None)
    module.flash_attn_varlen_func = scope["flash_attn_varlen_func"]
    monkeypatch.setitem(sys.modules, request.param, module)
    assert list(inspect.signature(module.flash_attn_varlen_func).parameters)[:7] == [
        "q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k",
    ]  # fmt: skip
    return calls


@pytest.mark.parametrize("rule", [AttentionRule(0.3), AttentionRule(0.3, window=7), AttentionRule(0.3, 2.0)], ids=str)
@pytest.mark.parametrize("bounded", [True, False])
def test_the_kernel_is_called_as_it_is_published(package, rule, bounded):
    generator = torch.Generator().manual_seed(0)
    segments = (torch.rand(3, 50, generator=generator) < 0.1).cumsum(1).int()
    q, k, v = (torch.randn(3, count, 50, 8, generator=generator) for count in (4, 2, 2))
    documents = documents_at_most(segments) if bounded else None
    found = flash_attention(segments, rule, load_kernel(), documents)(q, k, v)
    torch.testing.assert_close(found, explicit_attention(segments, rule)(q, k, v), atol=1e-5, rtol=1e-5)
    [given] = package
    assert given["q"].shape == (150, 4, 8)
    assert len(given["cu_seqlens_q"]) == (documents + 1 if bounded else 1 + 3 + int((segments.diff(dim=1) != 0).sum()))


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=8), min_size=1, max_size=5))
def test_documents_are_bounded_by_a_power_of_two(lengths):
    total = max(map(sum, lengths))
    numbers = [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths]
    segments = torch.stack([torch.nn.functional.pad(row, (0, total - len(row)), value=99) for row in numbers])
    count = sum(len(row) + (sum(row) < total) for row in lengths)
    bound = documents_at_most(segments)
    assert count <= bound < 2 * count
    assert bound & (bound - 1) == 0


def test_a_model_learns_by_the_kernel_what_it_learns_without(package):
    batch, settings = rows([[9, 20, 3], [32]]), config(sliding_window=6, full_attention_every=2)
    messages = []
    for attention in ("auto", "flash"):
        model = model_of(settings, attention=attention)
        objective, _ = model(batch.tokens, batch.targets, batch.segments, batch.positions, 4)
        objective.backward()
        messages.append([objective, *(parameter.grad for parameter in model.parameters())])
    assert len(package) == settings.num_hidden_layers
    for ours, plain in zip(*messages, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


def test_a_training_counts_documents_before_it_sends_their_rows(package, monkeypatch):
    """Without a bound the host would wait for the device to count them."""
    monkeypatch.setattr(test_engine_state, "EngineConfig", functools.partial(EngineConfig, attention="flash"))
    with torch.no_grad():
        test_engine_state.open_one("adamw", 1, "bf16").forward(rows([[9, 7], [3, 3, 10]]))
    assert {len(given["cu_seqlens_q"]) for given in package} == {8 + 1}  # of five documents
