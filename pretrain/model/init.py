"""Initial weights and width-dependent learning rates.

Importing this imports no torch.

Names and shapes alone decide, so that the optimizer can use the same rules. Under mup
(arXiv:2203.03466, table 8), with m = hidden_size / mup_base_width and Adam:

| parameter | deviation | learning rate | multiplier |
|---|---|---|---|
| embeddings, norms, biases, learned positions | 1 | 1 | 1 |
| matrices of the blocks | 1 / sqrt(m) | 1 / m | 1 |
| the router of experts (table 3's output weights) | 1 / m | 1 / m | 1 |
| output projection, tied or not | 1 | 1 | 1 / m |

The decoder applies the multiplier. Muon's rate is not scaled: the norm of its update already fits the matrix.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from governance.files import sha256_bytes
from pretrain.config.model import ModelConfig

if TYPE_CHECKING:
    import torch

_FROM_RANK = "lora_B.weight"
"""An adapter's matrix whose inputs are as many at every width."""
_EMBEDDINGS = ("embed_tokens.weight", "embed_positions.weight")
_OUTPUT = "lm_head.weight"
_INTO_STREAM = ("o_proj.weight", "down_proj.weight")
_ROUTER = "mlp.gate.weight"


def learning_rate_scale(name: str, shape: tuple[int, ...], config: ModelConfig) -> float:
    """Learning-rate multiplier of a parameter; 1 without muP."""
    outside = len(shape) < 2 or name.endswith((*_EMBEDDINGS, _OUTPUT, _FROM_RANK))
    return 1.0 if outside else 1.0 / config.width_ratio


def initial_deviation(name: str, config: ModelConfig) -> float:
    """Standard deviation of a matrix at the start; 0: all zeros."""
    if name.endswith(_EMBEDDINGS):
        return config.embedding_range or config.initializer_range
    if config.zero_init_outputs and name.endswith((_OUTPUT, *_INTO_STREAM)):
        return 0.0
    if name.endswith(_OUTPUT):
        return config.initializer_range
    deviation = config.initializer_range / math.sqrt(config.width_ratio)
    if name.endswith(_ROUTER):
        return deviation / math.sqrt(config.width_ratio)
    if name.endswith(_INTO_STREAM) and config.initialisation not in ("normal", "xavier"):
        return deviation / math.sqrt(2 * config.num_hidden_layers)
    return deviation


def initial_weight(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> torch.Tensor:
    """Initial fp32 values of a parameter.

    They are a function of its name and the seed, not of the ranks.

    Norms' scales are 1, biases 0, matrices normal with `initial_deviation`.
    """
    import torch

    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith(".bias") else torch.ones(shape)
    deviation = initial_deviation(name, config)
    if config.initialisation == "xavier" and not name.endswith((*_EMBEDDINGS, _OUTPUT)):
        deviation = math.sqrt(2 / sum(shape))
    if not deviation:
        return torch.zeros(shape)
    digest = sha256_bytes(f"{seed}/{name}".encode())
    generator = torch.Generator().manual_seed(int(digest[:15], 16))
    return torch.empty(shape).normal_(0.0, deviation, generator=generator)
