"""Section of the finder of names and places, and its labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import Field, model_validator

from data_pipeline.pii.detections import Detection
from governance.config import Section
from governance.errors import ConfigError

EntityType = Literal["name", "place"]
Finder = Callable[[Sequence[str]], list[list[Detection]]]
"""The names and places of each text, disjoint and in order."""

PRESIDIO_SCORE = 0.85  # `NerModelConfiguration.default_score`
_LABELS: dict[str, EntityType] = {
    "PER": "name", "PERSON": "name", "NAME": "name", "LOC": "place", "LOCATION": "place", "GPE": "place",
    "ADDRESS": "place", "STREET_ADDRESS": "place", "CITY": "place",
}  # fmt: skip


class FinderConfig(Section):
    """A model that finds names and places."""

    kind: Literal["transformers", "presidio"] = "transformers"
    """A token classifier as `transformers` saves it, or a spaCy pipeline that presidio runs."""
    path: str = Field(min_length=1)
    """The model's folder, relative to the run's file."""
    labels: dict[str, EntityType] = Field(default_factory=lambda: dict(_LABELS))
    """Meaning of the model's labels, "name" or "place"; others are skipped. Prefixes B-, I- go."""
    min_score: float = Field(default=0.5, ge=0, le=1)
    """Least probability of a finding; for "presidio" at most .85."""
    language: str = Field(default="en", min_length=1)
    """For "presidio": the language of the pipeline."""

    @model_validator(mode="after")
    def _some_finding_is_kept(self) -> FinderConfig:
        if self.kind == "presidio" and self.min_score > PRESIDIO_SCORE:
            raise ValueError(
                f"min_score = {self.min_score} would drop every finding: presidio gives each the score "
                f"{PRESIDIO_SCORE}, since spaCy states none. Leave it out."
            )
        return self


def meanings(labels: Sequence[str], config: FinderConfig) -> dict[str, EntityType]:
    """The type of each of the model's labels that has one.

    Raises:
        ConfigError: none has one, or `labels` names one that the model lacks.
    """
    plain = {label: label[2:] if label[1:2] in ("-", "_") else label for label in labels}
    shown = f"{sorted(set(plain.values()))[:12]}"
    if config.labels != _LABELS and (missing := sorted(set(config.labels) - set(plain.values()))):
        raise ConfigError(f"data.pii.finder: labels names {missing}, but the model's labels are {shown}.")
    found = {label: config.labels[name] for label, name in plain.items() if name in config.labels}
    if not found:
        raise ConfigError(
            f"data.pii.finder: the model's labels are {shown}; none is known to mean a name or a place. State those "
            'that do, as in labels = { B_PERS = "name" }.'
        )
    return found
