"""One forward pass with its attention patterns and residual streams.

The pass is the trainer's own: hooks record what the modules read and write, and attention runs by its explicit formula,
a head at a time, so that one pattern [L, L] is in memory beyond those that the caller keeps. Windows, soft caps, shared
key heads and scales are those of the layer's rule.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from pretrain.model.attention import DocumentMask, allowed_pairs, attention_pattern, layer_rules
from pretrain.model.attention_rule import Attend, AttentionRule
from pretrain.model.decoder import Decoder, single_documents
from pretrain.model.feed_forward import FeedForward

See = Callable[[int, int, torch.Tensor], None]
"""Called with layer, head and pattern, fp32 [B, L, L]."""


@dataclass
class Streams:
    """Values of a pass over one text, by layer."""

    residual: list[torch.Tensor] = field(default_factory=list)
    """[L, hidden]: the embedding, then the stream after each block."""
    attention: list[torch.Tensor] = field(default_factory=list)
    """[L, hidden], outputs of the attention layers."""
    feed_forward: list[torch.Tensor] = field(default_factory=list)
    """[L, hidden], outputs of the feed-forward layers or experts."""
    inner: list[torch.Tensor] = field(default_factory=list)
    """[L, intermediate], inputs of `down_proj`; empty with experts, whose products are grouped."""
    routers: list[torch.Tensor] = field(default_factory=list)
    """[L, experts], the routers' logits; empty without experts."""


def run_with_patterns(model: Decoder, tokens: torch.Tensor, see: See) -> torch.Tensor:
    """Hidden states [B, L, hidden] of texts [B, L].

    `see` gets the pattern of each head.
    """
    segments, positions = single_documents(tokens)
    rules = layer_rules(model.config)
    hidden = {rule.window: ~allowed_pairs(segments[:1], rule.window)[:, 0] for rule in set(rules)}
    masks = [
        DocumentMask({rule.window: _by_head(rule, hidden[rule.window], layer, see)}) for layer, rule in enumerate(rules)
    ]
    with torch.no_grad():
        return model.model.through(tokens, positions, masks)[0]


def _by_head(rule: AttentionRule, hidden: torch.Tensor, layer: int, see: See) -> Attend:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        shared, out = q.shape[1] // k.shape[1], []
        for head in range(q.shape[1]):
            pattern = attention_pattern(q[:, head], k[:, head // shared], hidden, rule)
            see(layer, head, pattern)
            out.append(pattern.to(v.dtype) @ v[:, head // shared])
        return torch.stack(out, dim=1)

    return attend


def record(model: Decoder, ids: Sequence[int], see: See) -> Streams:
    """Streams of one text; `see` gets each head's pattern [1, L, L]."""
    streams = Streams()
    with _hooks(model, streams):
        run_with_patterns(model, torch.tensor([list(ids)], device=model.device), see)
    return streams


@contextlib.contextmanager
def _hooks(model: Decoder, streams: Streams) -> Iterator[None]:
    """Append to `streams` during passes of one row."""

    def output_to(kept: list[torch.Tensor]) -> Callable[..., None]:
        return lambda module, given, out: kept.append((out[0] if isinstance(out, tuple) else out)[0])

    def input_to(kept: list[torch.Tensor]) -> Callable[..., None]:
        return lambda module, given: kept.append(given[0][0])

    layers = list(model.model.layers)
    handles = [layers[0].register_forward_pre_hook(input_to(streams.residual))]
    for layer in layers:
        handles.append(layer.register_forward_hook(output_to(streams.residual)))
        handles.append(layer.self_attn.register_forward_hook(output_to(streams.attention)))
        handles.append(layer.mlp.register_forward_hook(output_to(streams.feed_forward)))
        if isinstance(layer.mlp, FeedForward):
            handles.append(layer.mlp.down_proj.register_forward_pre_hook(input_to(streams.inner)))
        else:
            handles.append(
                layer.mlp.register_forward_hook(lambda module, given, out: streams.routers.append(out[1][0]))
            )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
