from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.model import attention as kernels
from pretrain.model.attention import AttentionRule, allowed_pairs
from pretrain.model.attention_rule import first_keys
from pretrain.model.cpu_ops import QUERIES, block_starts, traced_block_attention
from pretrain.preflight import memory
from tests.pretrain.small_models import config


def heads(length: int, rows: int = 2, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, 4, length, 16), (rows, 2, length, 16), (rows, 2, length, 16)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def cut(length: int, share: float = 0.02, rows: int = 2) -> torch.Tensor:
    """Segments of documents whose ends are drawn."""
    generator = torch.Generator().manual_seed(3)
    return (torch.rand(rows, length, generator=generator) < share).cumsum(1).int()


@pytest.mark.parametrize("window", [None, 1, 2, 4])
def test_the_table_allows_earlier_tokens_of_the_same_document_only(window):
    segments = torch.tensor([[0, 0, 1, 1, 1, 2]])
    table = allowed_pairs(segments, window)[0, 0]
    for q in range(6):
        for k in range(6):
            near = window is None or q - k < window
            assert table[q, k] == (k <= q and near and segments[0, q] == segments[0, k])


@pytest.mark.parametrize("segments", [cut(256), cut(256, 0.0)], ids=["documents", "one"])
@pytest.mark.parametrize(
    "rule",
    [AttentionRule(0.25), AttentionRule(0.5, window=37), AttentionRule(1.0, 2.0), AttentionRule(1.0, 3.0, 50)],
    ids=str,
)
def test_all_kernels_agree(segments, rule):
    expected = kernels.explicit_attention(segments, rule)(*heads(256))
    messages = {"chosen": kernels.attention(segments, rule)}
    if rule.softcap is None:
        messages |= {
            "table": kernels.masked_attention(segments, rule),
            "block": kernels.block_attention(segments, rule),
        }
        if not segments.any() and rule.window is None:
            messages["causal"] = kernels.causal_attention(rule)
    for attend in messages.values():
        torch.testing.assert_close(attend(*heads(256)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 30])
@pytest.mark.parametrize("length", [1, 255, 256, 257, 600])
def test_written_gradients_equal_autograd(length, window):
    segments, messages = cut(length, 0.03), []
    for make in (kernels.block_attention, kernels.explicit_attention):
        inputs = [x.requires_grad_() for x in heads(length)]
        out = make(segments, AttentionRule(0.25, window=window))(*inputs)
        (out * torch.arange(out.numel()).view(out.shape).sin()).sum().backward()
        messages.append([out, *(x.grad for x in inputs)])
    for ours, plain in zip(*messages, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


def test_bf16_attention_is_as_near_to_the_truth_as_its_inputs():
    segments, rule = cut(256), AttentionRule(0.25)
    exact = kernels.explicit_attention(segments, rule)(*[x.double() for x in heads(256)])
    rounded = kernels.explicit_attention(segments, rule)(*[x.bfloat16().double() for x in heads(256)])
    ours = kernels.block_attention(segments, rule)(*heads(256, dtype=torch.bfloat16))
    assert (ours.double() - rounded).pow(2).mean() < 4 * (rounded - exact).pow(2).mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_graph_takes_the_same_kernels(dtype):
    segments = cut(200)
    attend, found = kernels.block_attention(segments, AttentionRule(0.25, window=90)), []
    for make in (attend, torch.compile(attend, fullgraph=True, backend="aot_eager")):
        inputs = [x.requires_grad_() for x in heads(200, dtype=dtype)]
        out = make(*inputs)
        (out.float() * torch.arange(out.numel()).view(out.shape).sin()).sum().backward()
        found.append([out, *(x.grad for x in inputs)])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=1e-5)


def test_the_operation_of_compiled_graphs_is_what_torch_expects():
    inputs = [x.requires_grad_() for x in heads(200)]
    inputs[1:] = [x.detach().repeat_interleave(2, dim=1).requires_grad_() for x in inputs[1:]]
    torch.library.opcheck(traced_block_attention, (*inputs, first_keys(cut(200), None), 0.25))


@given(
    lengths=st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=6), min_size=1, max_size=3),
    window=st.one_of(st.none(), st.integers(1, 200)),
)
@settings(max_examples=40)
def test_the_first_keys_say_what_the_table_says(lengths, window):
    total = max(map(sum, lengths))
    numbers = [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths]
    segments = torch.stack([torch.nn.functional.pad(row, (0, total - len(row)), value=9) for row in numbers])
    firsts = first_keys(segments, window)
    places = torch.arange(total)
    seen = (places >= firsts[..., None]) & (places <= places[:, None])
    assert torch.equal(seen[:, None], allowed_pairs(segments, window))
    for block, start in enumerate(block_starts(firsts)):
        assert start == firsts[:, QUERIES * block : QUERIES * (block + 1)].min()


def test_numbers_that_the_kernels_do_not_know_go_by_the_table():
    q, k, v = (x.double() for x in heads(32))
    expected = kernels.explicit_attention(cut(32), AttentionRule(0.25))(q, k, v)
    torch.testing.assert_close(kernels.attention(cut(32), AttentionRule(0.25))(q, k, v), expected, atol=1e-6, rtol=1e-6)


def test_the_mask_is_built_once_for_each_kind_of_layer(monkeypatch):
    made = []
    monkeypatch.setattr(kernels, "attention", lambda segments, rule: made.append(rule.window))
    kernels.document_mask(cut(8), config(num_hidden_layers=6, sliding_window=4, full_attention_every=3))
    assert made == [4, None]


def test_long_rows_of_one_document_need_no_table(monkeypatch):
    monkeypatch.setattr(kernels, "SHORT", 32)
    chosen = functools.partial(kernels.attention, rule=AttentionRule(0.25))
    assert chosen(cut(64, 0.0)).__qualname__.startswith("causal")
    assert chosen(cut(64, 0.1)).__qualname__.startswith("masked")
    assert chosen(cut(32, 0.1)).__qualname__.startswith("block")
    assert kernels.attention(cut(64, 0.0), AttentionRule(0.25, window=8)).__qualname__.startswith("masked")


def test_the_estimate_of_memory_knows_which_rows_are_short():
    assert (memory.SHORT_ROWS, memory.BLOCK) == (kernels.SHORT, QUERIES)
