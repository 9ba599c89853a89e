"""A model as DeepSpeed wraps it, with the layout of its state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pretrain.engine.tensor_parallel import TensorParts


@dataclass(frozen=True)
class Wrapped:
    """Parts that the modules on ZeRO's state read."""

    deepspeed: Any
    """The `DeepSpeedEngine`."""
    zero_stage: int
    device: torch.device
    gradient_ranks: int
    """Ranks over which DeepSpeed averages a gradient: all, but for those that hold other parts of the same matrix."""
    tensor_parts: TensorParts
    """What this rank holds of each matrix."""
    counts_documents: bool = False
    """Whether attention wants the number of documents, which the host counts."""
    clipping: float = 0.0
    """Norm to which `update` clips a gradient; 0: it does not, or the optimizer clips by itself (Muon)."""

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters by name, tied ones once, ordered alike on all ranks."""
        return list(self.deepspeed.module.named_parameters())
