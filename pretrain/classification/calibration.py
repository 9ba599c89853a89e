"""Calibration of a classifier: expected calibration error and temperature scaling (arXiv:1706.04599).

*ECE*: predictions fall into equal bins by the probability of their label; it is the mean over documents of the
difference between a bin's accuracy and its mean probability. *Temperature*: logits are divided by one number, fitted
to the least cross entropy on documents that neither trained the model nor test it. It changes no predicted label.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
BINS = 15
_LOG_TEMPERATURES = (-3.0, 3.0)


def probabilities(logits: Floats, temperature: float = 1.0) -> Floats:
    """Softmax of [documents, labels]."""
    scaled = logits / temperature
    powers = np.exp(scaled - scaled.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def cross_entropies(logits: Floats, numbers: Integers, temperature: float) -> Floats:
    """Nats of each document's label."""
    scaled = logits / temperature
    highest = scaled.max(1)
    level = highest + np.log(np.exp(scaled - highest[:, None]).sum(1))
    return level - scaled[np.arange(len(numbers)), numbers]


def fit_temperature(logits: Floats, numbers: Integers) -> float:
    """Temperature of the least mean cross entropy, between e^-3 and e^3.

    The cross entropy is convex in 1 / temperature, so the one minimum is found.
    """
    from scipy.optimize import minimize_scalar

    def loss(exponent: float) -> float:
        return float(cross_entropies(logits, numbers, math.exp(exponent)).mean())

    found = minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded", options={"xatol": 1e-6})
    return math.exp(float(found.x))


def reliability(probs: Floats, numbers: Integers) -> list[dict[str, Any]]:
    """Accuracy and mean probability of each bin that has documents."""
    highest, right, places = _binned(probs, numbers)
    rows = []
    for place in np.unique(places).tolist():
        mine = places == place
        rows.append({
            "from": place / BINS, "to": (place + 1) / BINS, "documents": int(mine.sum()),
            "probability": round(float(highest[mine].mean()), 6), "accuracy": round(float(right[mine].mean()), 6),
        })  # fmt: skip
    return rows


def calibration_errors(probs: Floats, numbers: Integers, weights: Floats) -> Floats:
    """ECE under each row of weights [resamples, documents]."""
    highest, right, places = _binned(probs, numbers)
    gaps = np.zeros((len(numbers), BINS))
    gaps[np.arange(len(numbers)), places] = right - highest
    return np.abs(weights @ gaps).sum(1) / weights.sum(1)


def _binned(probs: Floats, numbers: Integers) -> tuple[Floats, Floats, Integers]:
    """Probability of the predicted label, whether it is right, and its bin."""
    highest = probs.max(1)
    right = (probs.argmax(1) == numbers).astype(float)
    return highest, right, np.minimum((highest * BINS).astype(np.int64), BINS - 1)
