"""The `[optim]` section.

It imports no torch.
"""

from __future__ import annotations

import re
from operator import not_
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from governance.config import Section
from governance.own_code import DOTTED


class GroupConfig(Section):
    """Parameters with a learning rate or decay of their own.

    The pattern is searched for in their names; the first group that matches takes a parameter.
    """

    pattern: str = Field(min_length=1)
    """Regular expression, searched for in the parameter's name: `lm_head`, `layers\\.0\\.`, `_proj\\.weight$`."""
    learning_rate_scale: float = Field(default=1.0, ge=0)
    """Their learning rate, as a multiple of what they would have; 0 leaves them as they begin."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Their decay; none: what they would have."""

    @field_validator("pattern")
    @classmethod
    def _pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}; a dot is written \\.") from error
        return pattern


class OptimConfig(Section):
    """Optimizer, learning-rate schedule, and parameter groups."""

    optimizer: Literal["adamw", "muon", "lion", "own"] = "adamw"
    """adamw (arXiv:1711.05101); lion (arXiv:2302.06675); muon (Jordan et al. 2024) for the matrices of the blocks, with
    AdamW for the embeddings, the head and all vectors; own: that of `function`."""
    function: str = Field(default="", pattern=f"^$|{DOTTED}", exclude_if=not_)
    """own: a function (`package.module:function`) of parameter groups and values that returns the optimizer."""
    arguments: dict[str, Any] = Field(default_factory=dict, exclude_if=not_)
    """own: `[optim.arguments]`, more values for the function."""
    elementwise: bool = Field(default=False, exclude=True)
    """own: whether each element's update depends on that element alone; only then may ranks share parameters."""
    state_tensors: int = Field(default=2, ge=0, exclude=True)
    """own: tensors of a parameter's shape that the optimizer keeps, for the estimates of memory and disk."""
    code_sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$", exclude_if=not_)
    """own: the digest that the function's source must have; empty: its digest at the start of the run."""
    learning_rate: float = Field(gt=0)
    """The highest rate of the schedule; with muon, of the part that AdamW updates."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW: decay of the first and second moment per step. Lion: of what is signed, and of the moment; the paper has
    [0.9, 0.99] and a rate 3 to 10 times below AdamW's."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW: added to the root of the second moment."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled decay per step and unit of learning rate, of matrices only; vectors (norms) are not decayed."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 does not clip. With muon, of the part that AdamW updates: an orthogonal update
    does not depend on the length of its gradient."""
    muon_learning_rate: float = Field(default=0.02, gt=0)
    """The highest rate of the matrices that muon updates."""
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)
    """Decay of muon's moment per step (Nesterov)."""
    muon_weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay of the matrices that muon updates, per step and unit of their learning rate."""
    muon_steps: int = Field(default=5, gt=0)
    """Newton-Schulz iterations of one update."""
    schedule: Literal["wsd", "cosine", "linear", "inverse_sqrt"] = "wsd"
    """wsd: warm up, stay, decay (arXiv:2404.06395); cosine (arXiv:1608.03983) or linear fall from the warm-up to the
    last step; inverse_sqrt: falls as 1 / sqrt(step) (arXiv:1706.03762)."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear rise to the learning rate, at the start."""
    decay_steps: int = Field(default=0, ge=0)
    """wsd: steps of linear fall, at the end."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """The rate of the last step, as a share of the highest; with inverse_sqrt, the lowest rate after the warm-up."""
    groups: tuple[GroupConfig, ...] = ()
    """Exceptions; the first whose pattern matches counts. Each must match a parameter."""

    @field_validator("betas")
    @classmethod
    def _betas(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("each beta must be at least 0 and below 1, for example [0.9, 0.95]")
        return betas

    @model_validator(mode="after")
    def _own(self) -> OptimConfig:
        if (self.optimizer == "own") != bool(self.function):
            raise ValueError(
                f"optimizer = {self.optimizer!r} with function = {self.function!r}: set optimizer = 'own' and the "
                "function, or neither"
            )
        return self

    @model_validator(mode="after")
    def _decay(self) -> OptimConfig:
        if self.decay_steps and self.schedule != "wsd":
            raise ValueError(
                f"decay_steps = {self.decay_steps} belongs to schedule = 'wsd'; {self.schedule!r} falls from the end "
                f"of the warm-up on: leave it out"
            )
        return self
