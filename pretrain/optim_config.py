"""How weights are updated: the section `[optim]`. Imports no torch."""

from __future__ import annotations

from pydantic import Field, field_validator

from governance.config import Section


class OptimConfig(Section):
    """AdamW (arXiv:1711.05101) under a warm-up-stable-decay schedule (arXiv:2404.06395)."""

    learning_rate: float = Field(gt=0)
    """The rate of the stable phase."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and second moment per step."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled decay per step and unit of learning rate, of matrices only; vectors (norms) are not decayed."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 does not clip."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear rise to the learning rate, at the start."""
    decay_steps: int = Field(default=0, ge=0)
    """Steps of linear fall, at the end."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """The rate of the last step, as a share of the learning rate."""

    @field_validator("betas")
    @classmethod
    def _betas(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("each beta must be at least 0 and below 1, for example [0.9, 0.95]")
        return betas
