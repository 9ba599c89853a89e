"""The `[train.distillation]` section: a student that learns from a teacher."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from governance.config import Section


class DistillationConfig(Section):
    """Learning from a teacher's next-token distributions (arXiv:1503.02531)."""

    teacher: str = Field(default="", exclude=True)
    """The teacher, which a run must name: a checkpoint (its folder, relative to the run's file, or `checkpoint/<key>`
    of this root), a folder of Hugging Face weights, or a model of the hub ("hf://owner/name@revision"). Its location
    decides nothing; its digest is in the key."""
    weight: float = Field(default=0.5, gt=0, le=1)
    """Share of the teacher in the loss: (1 - weight) x cross entropy + weight x temperature^2 x cross entropy to the
    teacher, both distributions at `temperature`."""
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Divisor of both models' logits in the teacher's part of the loss."""
    logits: Literal["online", "sampled"] = "online"
    """online: the teacher runs alongside the student. sampled: tokens were drawn from the teacher's distributions once
    (`assay teacher-logits`), and the student learns from the draws; their gradient is the same on average
    (arXiv:2503.16870)."""
    samples: int = Field(default=16, gt=0, le=1024)
    """sampled: tokens drawn at each position; 2 bytes each, 4 with a vocabulary above 65,536."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """sampled: decides the draws."""
    hidden_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of the hidden states' mean squared distance after the last block and norm; 0: none. Needs "online"."""
    projection: bool = False
    """Compare the hidden states through a trained linear map from the student's width to the teacher's."""
    start: Literal["random", "teacher"] = "random"
    """teacher: the student begins with evenly chosen layers of the teacher, and with its largest units where it is
    narrower (`narrowed_weights.py`)."""

    @model_serializer(mode="wrap")
    def _deciding(self, dumped: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Values that decide the run: with an online teacher nothing is drawn."""
        fields = type(self).model_fields
        drawn = {} if self.logits == "sampled" else {name: fields[name].default for name in ("samples", "seed")}
        return {**dumped(self), **drawn}

    @model_validator(mode="after")
    def _check(self) -> DistillationConfig:
        if self.hidden_weight and self.logits == "sampled":
            raise ValueError(
                "hidden_weight needs the teacher's hidden states, which no draw holds; set logits = online"
            )
        if self.projection and not self.hidden_weight:
            raise ValueError("projection has no effect without hidden_weight; set it, or remove projection")
        return self
