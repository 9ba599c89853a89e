"""Computation and energy of a model, for the documents.

FLOP of a run = FLOP per token (6 N of every weight that a token multiplies, and attention, as the trainer counts it)
x tokens of the steps that count. Excluded are validation, repeated steps, activation checkpointing and other models
(synthetic data, a parent model): a person adds these where they apply.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from governance.reports.documents.evidence import Evidence, Field


class Threshold(NamedTuple):
    """A legal threshold of computation."""

    flop: int
    meaning: str
    source: str


THRESHOLDS = (
    Threshold(
        10**23,
        "indication that a model which generates text, speech, images or video is of general purpose",
        "European Commission, guidelines on the scope of obligations for providers of general-purpose AI models,"
        " C(2025) 5045, 18 July 2025",
    ),
    Threshold(
        10**25,
        "presumption of high-impact capabilities, and so of systemic risk",
        "Regulation (EU) 2024/1689 (AI Act), Article 51(2)",
    ),
)

METHOD = "FLOP per token (6 N and attention, from the architecture) x tokens of the steps that count"


def computation_fields(evidence: Evidence) -> list[Field]:
    """FLOP per token and in total, against legal thresholds."""
    total = evidence.at("training.flops")
    fields = [
        evidence.field("FLOP per token, forward and backward", "training.flops_per_token", scientific),
        evidence.field("tokens trained on", "summary.tokens_trained"),
        evidence.field("FLOP of the training", "training.flops", scientific),
        Field("method", METHOD if total is not None else None),
    ]
    for threshold in THRESHOLDS:
        name = f"threshold of {threshold.flop:.0e} FLOP: {threshold.meaning} ({threshold.source})"
        fields.append(Field(name, threshold_ratio(total, threshold), "training.flops" if total is not None else ""))
    return fields


def threshold_ratio(flop: Any, threshold: Threshold) -> str | None:
    """Return whether a count exceeds a threshold, and by how much."""
    if flop is None:
        return None
    word = "above" if flop > threshold.flop else "not above"
    return f"{word}: {flop / threshold.flop:.3g} of the threshold"


def scientific(value: float) -> str:
    """A count as 1.234e+18 FLOP."""
    return f"{value:.4g} FLOP" if value < 1e4 else f"{value:.3e} FLOP"
