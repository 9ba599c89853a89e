"""Model wrapped by DeepSpeed, with the layout of its state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pretrain.engine.tensor_parallel import TensorParts
from pretrain.model.expert_parallel import ExpertParts, Shapes


@dataclass(frozen=True)
class Wrapped:
    """Wrapped model and settings that the modules on ZeRO's state read."""

    deepspeed: Any
    """The `DeepSpeedEngine`."""
    zero_stage: int
    device: torch.device
    gradient_ranks: int
    """Ranks over which DeepSpeed averages a gradient: all but those that hold other parts of the same matrix."""
    tensor_parts: TensorParts
    """Part of each matrix that this rank holds."""
    counts_documents: bool = False
    """True where attention needs the number of documents, counted on the host."""
    clipping: float = 0.0
    """Norm to which `update` clips a gradient; 0: never, or the optimizer clips (Muon)."""
    expert_parts: ExpertParts = field(default_factory=ExpertParts)
    """Experts that this rank holds."""
    expert_shapes: Shapes = ()
    """Parameters of the whole model where ranks hold other experts, else none."""
    fixed: Any = None
    """The `FixedOrder` of sums that do not depend on ranks; None: DeepSpeed's."""

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """This rank's trained parameters by name, in order, tied ones once."""
        return [pair for pair in self.deepspeed.module.named_parameters() if pair[1].requires_grad]

    def parameter_names(self) -> dict[nn.Parameter, str]:
        """Name of each of `parameters`."""
        return {parameter: name for name, parameter in self.parameters()}
