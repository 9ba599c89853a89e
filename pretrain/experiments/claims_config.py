"""The `[claims]` section, and the recipes of the experiment's trainings.

It imports no torch. The defaults suit two CPU cores; `assay experiment claims CONFIG --dry-run` measures how long they
take.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator, model_validator

from governance.config import Section

Architecture = Literal["transformer", "lstm", "lstm_attention", "gru", "gru_attention", "xlstm"]
Matching = Literal["parameters", "flops"]
ARCHITECTURES: tuple[Architecture, ...] = ("transformer", "lstm", "lstm_attention", "gru", "gru_attention", "xlstm")
NAMES: dict[str, str] = {
    "transformer": "Transformer", "lstm": "LSTM", "lstm_attention": "LSTM with attention", "gru": "GRU",
    "gru_attention": "GRU with attention", "xlstm": "xLSTM",
}  # fmt: skip


class Shape(Section):
    """Size of a model's body."""

    width: int = Field(gt=0)
    """Channels of the stream."""
    layers: int = Field(gt=0)
    """Blocks, or recurrent layers."""
    heads: int = Field(gt=0)
    """Heads of attention, or of an mLSTM's memory."""


class RecallConfig(Section):
    """Planted facts: how far back each model recalls them."""

    distances: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192)
    """Tokens between a fact and its question, rising; none: recall is not measured."""
    slots: int = Field(default=64, gt=1)
    """Facts of a row, each about another slot."""
    values: int = Field(default=4, gt=1)
    """Values of a slot; a guess is right once in this many times."""
    steps: int = Field(default=120, gt=0)
    """Optimizer steps: half of them on rows that grow, half on rows up to the longest."""
    batch_tokens: int = Field(default=4096, gt=0)
    """Tokens of a step; at least one row."""
    rows: int = Field(default=16, gt=0)
    """Rows that recall is measured on."""

    @field_validator("distances")
    @classmethod
    def _rising(cls, distances: tuple[int, ...]) -> tuple[int, ...]:
        if distances and (distances[0] < 2 or list(distances) != sorted(set(distances)) or len(distances) < 2):
            raise ValueError("distances are two or more increasing numbers of tokens, from 2: [128, 1024, 8192]")
        return distances


class ClaimsConfig(Section):
    """Trainings of `assay experiment claims`."""

    architectures: tuple[Architecture, ...] = ARCHITECTURES
    """Models that are compared; the Transformer is one of them."""
    matching: tuple[Matching, ...] = ("parameters", "flops")
    """Size of the others: as many parameters as the Transformer, or as many floating-point operations a token."""
    width: int = Field(default=64, gt=0)
    """Channels of the Transformer's stream; the others' follow from `matching`."""
    layers: int = Field(default=2, gt=0)
    """Blocks, or recurrent layers, of every model."""
    heads: int = Field(default=2, gt=0)
    """Heads of attention, or of xLSTM's memory."""
    sequence_length: int = Field(default=256, gt=15)
    """Tokens of a row."""
    batch_rows: int = Field(default=8, gt=0)
    """Rows of an optimizer step."""
    budgets: tuple[int, ...] = (32_768, 65_536, 131_072)
    """Tokens of a training, rising; each budget is a training of its own, with its own schedule."""
    seeds: int = 5
    """Trainings of each model and budget: first weights and order of rows differ, alike for all models."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Optimizer of every model: the trainer's."""
    learning_rates: tuple[float, ...] = (0.003, 0.01)
    """Rates to choose from, for each model by its loss at the smallest budget, with a seed that no result uses."""
    validation_rows: int = Field(default=64, gt=0)
    """Rows of the validation shards that losses are measured on, spread evenly."""
    evaluations: int = Field(default=8, gt=0)
    """Points of a learning curve."""
    recall: RecallConfig = RecallConfig()

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: int) -> int:
        if seeds < 2:
            raise ValueError(f"{seeds} seed(s) give no interval, and a figure without one says nothing; set 5 or more")
        return seeds

    @field_validator("learning_rates")
    @classmethod
    def _rates(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if not rates or any(not 0 < rate < 1 for rate in rates) or len(set(rates)) < len(rates):
            raise ValueError("learning_rates are one or more different numbers between 0 and 1")
        return rates

    @model_validator(mode="after")
    def _together(self) -> ClaimsConfig:
        step = self.batch_rows * self.sequence_length
        if not self.budgets or list(self.budgets) != sorted(set(self.budgets)) or self.budgets[0] < step:
            raise ValueError(
                f"budgets = {list(self.budgets)}: give increasing numbers of tokens, none below one step of {step:,} "
                f"(batch_rows x sequence_length), such as [{32 * step}, {64 * step}, {128 * step}]"
            )
        if "transformer" not in self.architectures or len(set(self.architectures)) < 2:
            raise ValueError("architectures: name 'transformer' and at least one other to compare it with")
        if len(set(self.architectures)) < len(self.architectures) or len(set(self.matching)) < len(self.matching):
            raise ValueError("architectures and matching name each entry once")
        if not self.matching:
            raise ValueError("matching: name 'parameters', 'flops' or both")
        if self.width % (2 * self.heads):
            raise ValueError(f"width = {self.width} is not a multiple of 2 x heads = {2 * self.heads}; change one")
        return self

    def quick(self) -> ClaimsConfig:
        """The experiment in small: minutes, with wide intervals.

        Architectures and optimizer are the same.
        """
        recall = RecallConfig(distances=(8, 16, 32, 64), slots=16, values=4, steps=60, batch_tokens=1024, rows=16)
        return self.model_copy(
            update={
                "matching": self.matching[:1], "width": 32, "layers": 2, "heads": 2, "sequence_length": 64,
                "batch_rows": 8, "budgets": (4_096, 8_192, 16_384), "seeds": 3,
                "learning_rates": self.learning_rates[-1:], "validation_rows": 32, "evaluations": 4,
                "recall": recall if self.recall.distances else self.recall,
            }
        )  # fmt: skip

    @property
    def tried_rates(self) -> tuple[float, ...]:
        """Rates that a model is tuned with, if there are several."""
        return self.learning_rates if len(self.learning_rates) > 1 else ()

    def steps(self, budget: int) -> int:
        """Optimizer steps of a budget."""
        return budget // (self.batch_rows * self.sequence_length)

    def models(self) -> Iterator[tuple[Architecture, Matching]]:
        """Every model; the Transformer is its own match and comes once."""
        for architecture in self.architectures:
            yield from ((architecture, how) for how in self.matching[: 1 if architecture == "transformer" else None])


class ModelTraining(Section):
    """Fields of every training."""

    architecture: Architecture
    shape: Shape
    optimizer: Literal["adamw", "muon"]
    learning_rate: float
    seed: int


class LanguageTraining(ModelTraining):
    """Recipe of one training on the run's tokens."""

    sequence_length: int
    batch_rows: int
    steps: int
    evaluations: int
    validation_rows: int


class RecallTraining(ModelTraining):
    """Recipe of one training on planted facts."""

    recall: RecallConfig
