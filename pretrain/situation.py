"""What the rules of `compatibility.py`, `rank_rules.py` and `cautions.py` read, and what a rule is; without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pretrain.config import CheckpointConfig, EngineConfig, TrainConfig
from pretrain.evaluation_config import EvaluationConfig
from pretrain.model_config import ModelConfig
from pretrain.optim_config import OptimConfig
from pretrain.profile_config import ProfileConfig


@dataclass(frozen=True)
class Situation:
    """What the rules read."""

    model: ModelConfig
    optim: OptimConfig
    train: TrainConfig
    engine: EngineConfig
    device: Literal["cpu", "cuda"] | None = None
    """None: not known yet, and rules of the device keep silent."""
    world_size: int | None = None
    """None: not known yet, and rules of the ranks keep silent."""
    local_world_size: int = 1
    """Ranks of a node."""
    capability: tuple[int, int] | None = None
    """Compute capability of the GPU; None: not known yet, and rules of it keep silent."""
    asked: bool = False
    """Whether the model is asked tasks."""
    evaluation: EvaluationConfig | None = None
    """When it is asked them; None: not known, and rules of it keep silent."""
    checkpoint: CheckpointConfig | None = None
    """None: not known, and rules of checkpoints keep silent."""
    profile: ProfileConfig | None = None
    """None: not known, and rules of the profiler keep silent."""
    gpus: int = 0
    """GPUs that this node shows to a rank that computes on one; 0: not known."""


Rule = Callable[[Situation], str | None]
"""The fault of a situation with its mend, or None."""
