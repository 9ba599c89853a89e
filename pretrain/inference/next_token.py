"""Choice of the next token: greedy, or drawn by temperature and nucleus.

A drawn token is the inverse of the cumulative probability at a number from 0 to 1, which seed, prompt and step decide
(SplitMix64). So a text does not depend on the batch that its prompt is in, nor on the device's generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from governance.errors import ConfigError
from governance.splitmix64 import INCREMENT, finalise

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sampling:
    """Rule by which the next token is chosen.

    Raises:
        ConfigError: a value is out of its range.
    """

    temperature: float = 0.0
    """Logits are divided by it; 0: the likeliest token."""
    top_p: float = 1.0
    """Only the likeliest tokens that together reach this probability are drawn (nucleus, arXiv:1904.09751)."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(
                f"temperature = {self.temperature}: is not a number from 0 up; give 0 for the likeliest token, 1 for "
                f"the model's own probabilities"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p = {self.top_p}: is not above 0 and at most 1; give 1 to draw from all tokens")
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed = {self.seed}: is not from 0 to 2^63 - 1; give another number")


GREEDY = Sampling()


def uniform(seed: int, prompts: Sequence[int], step: int) -> npt.NDArray[np.float64]:
    """Number in [0, 1) of each prompt for its token number `step`."""
    words = finalise(np.uint64(seed) + INCREMENT * (np.asarray(prompts, np.uint64) + np.uint64(1)))
    words = finalise(words + INCREMENT * np.array([step + 1], np.uint64))
    return (words >> np.uint64(11)) * 2.0**-53


def choose(logits: torch.Tensor, sampling: Sampling, prompts: Sequence[int], step: int) -> torch.Tensor:
    """Next token of each row, int64 [B], from logits [B, V].

    `prompts` are the numbers of the rows' prompts, and `step` that of the token in its continuation.
    """
    import torch

    if not sampling.temperature:
        return logits.argmax(-1)
    below = logits.double() - logits.amax(-1, keepdim=True)  # so that a tiny temperature gives -inf, never inf - inf
    ordered, tokens = (below / sampling.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    reached = ordered.cumsum(-1)
    kept = (reached - ordered < sampling.top_p).sum(-1, keepdim=True)
    drawn = torch.from_numpy(uniform(sampling.seed, prompts, step)).to(logits.device)[:, None]
    places = torch.searchsorted(reached, drawn * reached.gather(-1, kept - 1), right=True)
    return tokens.gather(-1, torch.minimum(places, kept - 1)).squeeze(-1)
