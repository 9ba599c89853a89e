"""Dropout as a function of a row's place in the run (arXiv:1207.0580).

The row's number (`Batch.seeds`), the token's place in it, the sub-layer and the channel are hashed, and an element is
dropped where the hash is below the share. So masks do not depend on ranks, micro batches, stages or restarts, a
recomputed block drops the same elements, and no generator's state is part of a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_MIXERS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))  # SplitMix64's, as int64
_PLACE, _SITE = 0x9E3779B97F4A7C15 - (1 << 64), 0x632BE59BD9B4F  # a site times it fits 64 bits
_SPREAD = (0x85EBCA6B - (1 << 32), 0xC2B2AE35 - (1 << 32))  # MurmurHash3's, as int32


@dataclass(frozen=True)
class Drops:
    """Dropout of the rows of a micro batch."""

    share: float
    keys: torch.Tensor
    """int64 [B, L], of each token."""

    @classmethod
    def of(cls, share: float, seeds: torch.Tensor, length: int) -> Drops:
        """Dropout of rows [B, length], from a random number of each row."""
        places = torch.arange(length, dtype=torch.int64, device=seeds.device) * _PLACE
        return cls(share, seeds[:, None] + places)

    def __call__(self, x: torch.Tensor, site: int) -> torch.Tensor:
        """Zero a share of [B, L, D], and scale the others.
        They are multiplied by 1 / (1 - share). `site` numbers the use in the model.
        """
        keys = _mixed(self.keys + site * _SITE).to(torch.int32)[..., None]
        channels = _mixed(torch.arange(x.shape[-1], dtype=torch.int64, device=x.device)).to(torch.int32)
        found = (keys ^ channels).mul_(_SPREAD[0])
        found ^= (found >> 13) & 0x7FFFF
        found.mul_(_SPREAD[1])
        found ^= (found >> 16) & 0xFFFF
        kept = found >= int(self.share * (1 << 32)) - (1 << 31)
        return x * kept.to(x.dtype).mul_(1.0 / (1.0 - self.share))


def _mixed(words: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser; shifts are those of unsigned words."""
    words = (words ^ ((words >> 30) & ((1 << 34) - 1))) * _MIXERS[0]
    words = (words ^ ((words >> 27) & ((1 << 37) - 1))) * _MIXERS[1]
    return words ^ ((words >> 31) & ((1 << 33) - 1))
