"""Activation statistics of each block: size, spread and outliers."""

from __future__ import annotations

from typing import Any

import torch

from pretrain.interpretability.recorded_pass import Streams
from pretrain.model.decoder import Decoder
from pretrain.model.moe import select_experts


def activation_figures(model: Decoder, streams: Streams) -> list[dict[str, Any]]:
    """Figures of the embedding and each block.

    `residual` is the stream after the block; `attention` and `feed_forward` are what its two parts computed, before the
    norm that sandwich and reordered blocks put after them; `inner` is the input of `down_proj`, and None with experts,
    where `experts` has the share of the tokens' choices of each expert.
    """
    found: list[dict[str, Any]] = []
    for block, stream in enumerate(streams.residual):
        row: dict[str, Any] = {"blocks": block, "residual": _figures(stream)}
        if block:
            layer = block - 1
            row["attention"] = _figures(streams.attention[layer])
            row["feed_forward"] = _figures(streams.feed_forward[layer])
            row["inner"] = _figures(streams.inner[layer]) if streams.inner else None
            row["experts"] = _loads(model, layer, streams.routers[layer]) if streams.routers else None
        found.append(row)
    return found


def _figures(values: torch.Tensor) -> dict[str, float | int]:
    """Figures of [L, channels].

    `kurtosis` is the fourth moment about the mean over the squared variance: 3 for a normal distribution, more where
    few channels hold most of the size. `zeros` is the share of exact zeros, as ReLU makes them.
    """
    wide = values.double()
    centred = wide - wide.mean()
    variance = centred.square().mean()
    place = int(wide.abs().argmax())
    return {
        "mean": float(wide.mean()),
        "rms": float(wide.square().mean().sqrt()),
        "largest": float(wide.abs().max()),
        "largest_channel": place % wide.shape[1],
        "kurtosis": float(centred.pow(4).mean() / variance.square()) if variance else 0.0,
        "zeros": float((wide == 0).double().mean()),
    }


def _loads(model: Decoder, layer: int, logits: torch.Tensor) -> list[float]:
    """Share of the choices that go to each expert."""
    experts = model.model.layers[layer].mlp
    chosen = select_experts(logits, experts.used, experts.bias)[1]
    counts = torch.bincount(chosen.flatten(), minlength=experts.num_experts)
    return [float(share) for share in counts / counts.sum()]
