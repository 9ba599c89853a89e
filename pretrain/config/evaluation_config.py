"""The `[evaluation]` section: tasks during training.

Imports no torch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from governance.config import Section

SHORT = 256  # tokens of a row of short texts: dense attention costs the square of a row's length

Format = Literal[
    "choices", "pairs", "arc", "blimp", "boolq", "commonsenseqa", "hellaswag", "mmlu", "openbookqa", "piqa",
    "truthfulqa_mc1",
]  # fmt: skip


class TaskConfig(Section):
    """One set of questions, in a file of the user's.

    None is shipped.
    """

    name: str = Field(min_length=1)
    """How results call it."""
    format: Format
    """How its records are read, and how they are put to the model (`tasks.py`)."""
    path: str = Field(default="", exclude=True)
    """A file (.jsonl, .json, .parquet, each also as .gz but the last), or a folder of them; relative to the run's file.
    Its location decides nothing; its digest is in the key."""
    sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """The digest that the file must have; empty: its digest at the start of the run, recorded then."""
    limit: int = Field(default=0, ge=0)
    """The most questions, chosen by the seed; 0: all."""


class EvaluationConfig(Section):
    """Tasks during training and their interval.

    They say what `losses.json` holds, and so enter the key of a training run.
    """

    tasks: tuple[TaskConfig, ...] = ()
    """The sets; `[[evaluation.tasks]]` in TOML."""
    every_steps: int = Field(default=0, ge=0)
    """Steps between two evaluations of the tasks; 0: only at the end."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Chooses the questions where a limit leaves some out."""

    @model_validator(mode="after")
    def _names(self) -> EvaluationConfig:
        names = [task.name for task in self.tasks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"tasks has the name {twice[0]!r} twice; give each its own")
        return self
