"""Situation: sections and hardware that compatibility rules read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pretrain.config.evaluation_config import EvaluationConfig
from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig
from pretrain.config.profile_config import ProfileConfig
from pretrain.config.training import CheckpointConfig, EngineConfig, TrainConfig


@dataclass(frozen=True)
class Situation:
    """Sections and hardware that the rules read."""

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
