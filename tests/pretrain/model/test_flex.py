"""FlexAttention without a GPU: its tables against torch's own, its compilations counted by a backend."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

from pretrain.model import flex
from pretrain.model.attention import AttentionRule, explicit_attention
from pretrain.model.attention_rule import first_keys


def documents(length: int, share: float, rows: int, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(rows, length, generator=generator) < share).cumsum(1).int()


def heads(rows: int, length: int, keys: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return [torch.randn(rows, count, length, 8, generator=generator) for count in (4, keys, keys)]


@given(
    blocks=st.integers(1, 6),
    share=st.sampled_from([0.0, 0.002, 0.02, 0.3]),
    window=st.sampled_from([None, 1, 100, 128, 129, 300]),
    seed=st.integers(0, 9),
)
@settings(max_examples=30)
def test_the_table_is_the_one_that_looks_at_every_pair(blocks, share, window, seed):
    length = flex.BLOCK * blocks
    found = flex.block_table(first_keys(documents(length, share, 2, seed), window))
    expected = create_block_mask(found.mask_mod, 2, None, length, length, device="cpu", BLOCK_SIZE=flex.BLOCK)
    for kind in ("kv", "full_kv", "q", "full_q"):
        counts, places = (getattr(found, f"{kind}_{part}") for part in ("num_blocks", "indices"))
        others, theirs = (getattr(expected, f"{kind}_{part}") for part in ("num_blocks", "indices"))
        assert torch.equal(counts, others)
        used = torch.arange(blocks) < counts[..., None]
        assert torch.equal(places[used].sort().values, theirs[used].sort().values)
        assert 0 <= places.min() <= places.max() < blocks  # the kernel reads a place even where none is used
    assert torch.equal(found.to_dense(), expected.to_dense())


def test_the_table_costs_bytes_a_block_and_none_a_pair():
    length = 8192
    firsts = first_keys(documents(length, 0.001, 1), None)
    with torch.profiler.profile(profile_memory=True) as profile:
        table = flex.block_table(firsts)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    pairs_of_blocks = (length // flex.BLOCK) ** 2
    kept = [table.kv_indices, table.full_kv_indices, table.q_indices, table.full_q_indices]
    assert sum(x.numel() * x.element_size() for x in kept) == 16 * pairs_of_blocks
    assert 16 * pairs_of_blocks < peak < 24 * pairs_of_blocks  # create_block_mask: 163,848


@pytest.mark.parametrize("length", [1, 100, 128, 200, 300])
@pytest.mark.parametrize("rule", [AttentionRule(0.3), AttentionRule(0.3, window=40), AttentionRule(0.3, 2.0)], ids=str)
def test_rows_of_any_length_are_padded_to_blocks(length, rule, counted):
    segments, inputs = documents(length, 0.02, 2), heads(2, length)
    found = flex.flex_attention(segments, rule)(*inputs)  # forward: torch has no backward of it on CPU
    torch.testing.assert_close(found, explicit_attention(segments, rule)(*inputs), atol=1e-5, rtol=1e-5)


@pytest.fixture
def counted(monkeypatch):
    """The graphs that are compiled, from a backend that counts them and runs them unchanged."""
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    flex.compiled.cache_clear()
    monkeypatch.setattr(flex, "compiler", lambda: {"backend": count})
    yield graphs
    flex.compiled.cache_clear()
    torch._dynamo.reset()


def test_no_class_of_shapes_is_one_too_many_and_none_is_compiled_twice(counted):
    """torch's limit is 8: the ninth class would run with all logits in memory."""
    shapes = [(rows, length) for length in (128, 256) for rows in range(1, 6)]
    assert len(shapes) > torch._dynamo.config.recompile_limit
    for turn in range(2):
        for rows, length in shapes:
            segments = documents(length, 0.01, rows, seed=turn)
            with torch.no_grad():
                found = flex.flex_attention(segments, AttentionRule(0.3))(*heads(rows, length))
            torch.testing.assert_close(found, explicit_attention(segments, AttentionRule(0.3))(*heads(rows, length)))
        assert len(counted) == len(shapes)
