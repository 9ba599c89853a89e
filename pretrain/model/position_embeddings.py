"""Position embeddings: rotary, scaled rotary, sinusoidal.

Positions count from 0 in each document, so these tables are [batch, length] and computed once per micro batch, in fp32:
bf16 does not hold every position above 256.
"""

from __future__ import annotations

import math

import torch

from pretrain.config.model import ModelConfig, RopeScaling
from pretrain.model.cpu_ops import RotaryFunction, has_cpu_kernels


def rotary_angles(
    positions: torch.Tensor, config: ModelConfig, dtype: torch.dtype, window: int | None = None
) -> torch.Tensor:
    """Cosines and sines for positions [B, L] (arXiv:2104.09864, eq. 15).

    The shape is [2, B, 1, L, rotary_dim / 2].

    `window` is the layer's: layers with a window may have their own base wavelength.
    """
    local = window is not None and config.rope_local_base_freq is not None
    frequencies = rotary_frequencies(config, positions.device, local)
    angles = positions[:, None, :, None].float() * frequencies
    table = torch.stack((angles.cos(), angles.sin()))
    scaling = None if local else config.rope_scaling
    if scaling is not None and scaling.rope_type == "yarn":
        table = table * (0.1 * math.log(scaling.factor) + 1.0)  # arXiv:2309.00071, eq. 22: both q and k, so squared
    return table.to(dtype)


def rotary_frequencies(config: ModelConfig, device: torch.device, local: bool = False) -> torch.Tensor:
    """Radians per token of each channel pair, fp32 [rotary_dim / 2].

    `local` takes those of layers with their own base.
    """
    channels = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32, device=device)
    theta = (local and config.rope_local_base_freq) or config.rope_theta
    plain = theta ** -(channels / config.rotary_dim)
    scaling = config.rope_scaling
    if scaling is None or local:
        return plain
    if scaling.rope_type == "linear":
        return plain / scaling.factor
    kept = (_kept_by_turns if scaling.rope_type == "llama3" else _kept_by_channel)(plain, config, scaling)
    return plain * kept + plain / scaling.factor * (1.0 - kept)


def _kept_by_turns(plain: torch.Tensor, config: ModelConfig, scaling: RopeScaling) -> torch.Tensor:
    """Share (0 to 1) of each wave that llama3 scaling leaves alone.

    It is linear in the wave's turns over the original context.
    """
    turns = plain * (scaling.original_max_position_embeddings or 0) / (2 * math.pi)
    return ((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)


def _kept_by_channel(plain: torch.Tensor, config: ModelConfig, scaling: RopeScaling) -> torch.Tensor:
    """YaRN's ramp between the channels of beta_fast and beta_slow (arXiv:2309.00071, appendix A.2)."""

    def channel(turns: float) -> float:
        context = scaling.original_max_position_embeddings or 0
        return config.rotary_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    first = max(math.floor(channel(scaling.beta_fast)), 0)
    last = min(math.ceil(channel(scaling.beta_slow)), config.rotary_dim - 1)
    numbers = torch.arange(len(plain), dtype=torch.float32, device=plain.device)
    return 1.0 - ((numbers - first) / max(last - first, 1e-3)).clamp(0, 1)


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate channel pairs of x [B, H, L, D].

    The pairs are (i, i + R/2), as in Hugging Face's Llama.

    R, twice the number of angles, may be less than D: the rest of a head does not change.
    """
    angles = angles.to(x.dtype)  # under autocast the stream is fp32, but queries are not
    turned = 2 * angles.shape[-1]
    if turned < x.shape[-1]:
        return torch.cat((rotate(x[..., :turned], angles), x[..., turned:]), dim=-1)
    if has_cpu_kernels(x):
        return RotaryFunction.apply(x, angles)
    low, high = x.chunk(2, dim=-1)
    cosines, sines = angles
    return torch.cat((low * cosines - high * sines, high * cosines + low * sines), dim=-1)


def sinusoids(positions: torch.Tensor, size: int) -> torch.Tensor:
    """Fixed position vectors [B, L, size], fp32.

    Sines are in even channels, cosines in odd ones (arXiv:1706.03762, section 3.5).
    """
    channels = torch.arange(0, size, 2, dtype=torch.float32, device=positions.device)
    angles = positions[..., None].float() * 10_000.0 ** -(channels / size)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
