"""Evaluation of a classifier: figures with 95 % intervals.

They are accuracy, macro-F1, precision and recall of each label, confusion and calibration. Shares are given with
Wilson's interval, accuracy with that of its effective sample size: documents of one author, say, are not independent
evidence. Macro-F1 and ECE have Student's interval on their logit, the change of ECE has it on its own scale; the
standard error is that of 2,000 resamples of the groups (of the documents, where there are none). All have the degrees
of freedom of the groups: percentiles of resamples of 3 to 10 groups hold the truth in 72 to 87 % of cases, not in 95.
`predictions.json` has every document with its label, prediction and probabilities.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from governance.checks.bias.statistics import quantile
from governance.config import Section
from governance.errors import CheckpointError
from governance.files import write_text
from governance.manifest import Manifest, describe
from governance.stage import Made, Recipe, Runtime, run_stage
from pretrain.checkpoint.format import identity_of
from pretrain.classification.calibration import (
    Floats,
    Integers,
    calibration_errors,
    cross_entropies,
    fit_temperature,
    probabilities,
    reliability,
)
from pretrain.evaluation.model_bias import NORMAL_QUANTILE, wilson
from pretrain.inference.loaded_model import LoadedModel

VERSION = 2
_RESAMPLES = 2000
_EQUAL = 1e-9  # resamples that agree but for rounding


class ClassificationRecipe(Section):
    """Settings of an evaluation."""

    labels: tuple[str, ...]
    """Names of the labels."""
    test: str = ""
    """SHA-256 of a test file; "": the test side of the split."""


@dataclass(frozen=True)
class Examples:
    """Labelled documents as tokens."""

    names: Sequence[str]
    tokens: Sequence[npt.NDArray[np.integer]]
    """Tokens of the text alone."""
    numbers: Integers
    """[documents], place of the label."""
    units: Sequence[str]
    """Group of each document, or itself."""


def require_classifier(checkpoint: Manifest, labels: Sequence[str]) -> None:
    """Raise unless the checkpoint has a head for these labels.

    Raises:
        CheckpointError: it has another number of labels, or is a language model.
    """
    rows = identity_of(checkpoint).recipe.model.num_labels
    if rows != len(labels):
        has = f"a head of {rows} labels" if rows else "no classification head"
        raise CheckpointError(
            f"{checkpoint.folder}: has {has}, and data.encode.classification has {len(labels)} labels; give the "
            f"configuration of its training"
        )


def classify(
    checkpoint: Manifest,
    tokens: Manifest,
    recipe: ClassificationRecipe,
    opened: Callable[[], tuple[LoadedModel, Examples, Examples]],
    runtime: Runtime,
) -> Manifest:
    """Make or find the evaluation of a checkpoint.

    Args:
        checkpoint: a classifier.
        tokens: the token shards of its training, whose settings say which documents test it.
        recipe: the labels, and the test file.
        opened: the model, test documents, and the validation documents that fit the temperature.
        runtime: where.
    """

    def make(folder: Any) -> Made:
        model, test, validation = opened()
        logits = logits_of(model, test.tokens)
        fitted = 1.0
        if len(validation.numbers):
            fitted = fit_temperature(logits_of(model, validation.tokens), validation.numbers)
        probs = probabilities(logits, fitted)
        lines = [
            json.dumps({
                "id": name, "label": recipe.labels[true], "predicted": recipe.labels[int(row.argmax())],
                "probabilities": [round(value, 6) for value in row.tolist()],
            }, ensure_ascii=False)
            for name, true, row in zip(test.names, test.numbers.tolist(), probs, strict=True)
        ]  # fmt: skip
        write_text(folder / "predictions.json", "[\n" + ",\n".join(lines) + "\n]\n")
        stats = {
            "step": identity_of(checkpoint).step,
            **figures(logits, test.numbers, test.units, recipe.labels, fitted),
            "fitted_on": len(validation.numbers),
        }
        return Made([describe(folder / "predictions.json", runtime.root)], stats)

    inputs = [checkpoint.as_input(), tokens.as_input()]
    return run_stage(Recipe("classification", VERSION, recipe), inputs, runtime, make)


def logits_of(model: LoadedModel, texts: Sequence[npt.NDArray[np.integer]], rows: int = 16) -> Floats:
    """Logits [documents, labels].

    Read at each text's last token, or as the mean over all tokens (`model.pooling`).
    """
    import torch

    device = model.decoder.device
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    found = np.zeros((len(texts), model.decoder.config.num_labels))
    with torch.no_grad():
        for start in range(0, len(order), rows):
            part = order[start : start + rows]
            longest = len(texts[part[-1]])
            tokens = torch.zeros((len(part), longest), dtype=torch.int64)
            segments = torch.ones((len(part), longest), dtype=torch.int32)  # the padding is a document of its own
            for row, place in enumerate(part):
                length = len(texts[place])
                tokens[row, :length] = torch.from_numpy(texts[place].astype(np.int64))
                segments[row, :length] = 0
            positions = torch.arange(longest, dtype=torch.int32).expand(tokens.shape)
            hidden, _ = model.decoder.model(tokens.to(device), segments.to(device), positions.to(device))
            hidden = model.decoder.pooled(hidden, positions.to(device))
            last = torch.tensor([len(texts[place]) - 1 for place in part], device=device)
            logits = model.decoder.lm_head(hidden[torch.arange(len(part), device=device), last])
            found[part] = logits.double().cpu().numpy()
    return found


def figures(
    logits: Floats, numbers: Integers, units: Sequence[str], labels: Sequence[str], temperature: float = 1.0
) -> dict[str, Any]:
    """All figures of one test."""
    count, size = len(numbers), len(labels)
    predicted = logits.argmax(1)
    matrix = confusion(numbers, predicted, size)
    names, place = np.unique(np.array(units), return_inverse=True)
    draws = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), _RESAMPLES)
    weights = draws[:, place].astype(float)
    whole = np.ones((1, count))
    right = (predicted == numbers).astype(float)
    before, after = probabilities(logits), probabilities(logits, temperature)
    resampled = [calibration_errors(probs, numbers, weights) for probs in (before, after)]
    effective = effective_size(right, place)
    accuracy = wilson(float(right.mean()) * effective, effective)
    eces = [float(calibration_errors(probs, numbers, whole)[0]) for probs in (before, after)]
    return {
        "documents": count,
        "groups": len(names),
        "accuracy": _row(*accuracy),
        "macro_f1": _with_bounds(float(macro_f1(matrix)), _resampled_f1(numbers, predicted, size, weights), len(names)),
        "classes": {name: _class_row(matrix, number) for number, name in enumerate(labels)},
        "confusion": {
            name: {
                other: {"documents": int(cell), **_share(int(cell), int(row.sum()))}
                for other, cell in zip(labels, row, strict=True)
            }
            for name, row in zip(labels, matrix, strict=True)
        },
        "calibration": {
            "temperature": round(temperature, 6),
            **{
                when: {
                    "ece": _with_bounds(ece, found, len(names)),
                    "nats": round(float(cross_entropies(logits, numbers, divisor).mean()), 6),
                    "reliability": reliability(probs, numbers),
                }
                for when, probs, ece, found, divisor in (
                    ("before", before, eces[0], resampled[0], 1.0),
                    ("after", after, eces[1], resampled[1], temperature),
                )
            },
            "ece_change": _change(eces[1] - eces[0], resampled[1] - resampled[0], len(names)),
        },
    }


def effective_size(right: Floats, place: Integers) -> float:
    """Number of independent documents whose share of right ones is as precise.

    The share's variance over groups is that of a ratio; Student's quantile takes the place of the normal's, because few
    groups estimate it badly (Korn and Graubard 1998, Survey Methodology 24, 193-201). If all documents agree it is 0
    and says nothing: then each group counts once.

    Args:
        right: 1 for a document that is classified right, else 0.
        place: number of its group.
    """
    documents, groups, share = len(right), int(place.max()) + 1, float(right.mean())
    if groups == documents:
        return documents
    residuals = np.bincount(place, right - share)
    if groups == 1 or share in (0.0, 1.0):
        return groups
    variance = groups / (groups - 1) * float((residuals**2).sum()) / documents**2
    alone = documents if variance == 0 else min(max(share * (1 - share) / variance, 1.0), documents)
    return alone * (NORMAL_QUANTILE / float(quantile(groups - 1))) ** 2


def confusion(numbers: Integers, predicted: Integers, size: int, weights: Floats | None = None) -> Floats:
    """Documents by true label (row) and predicted label (column)."""
    return np.bincount(numbers * size + predicted, weights, minlength=size * size).reshape(size, size)


def macro_f1(matrix: Floats) -> Floats:
    """Mean F1 over the labels of a confusion matrix.

    It is 0 for a label that is neither true nor predicted.
    """
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    sums = matrix.sum(-1) + matrix.sum(-2)
    return np.divide(2.0 * hits, sums, out=np.zeros(hits.shape), where=sums > 0).mean(-1)


def _resampled_f1(numbers: Integers, predicted: Integers, size: int, weights: Floats) -> Floats:
    return macro_f1(np.stack([confusion(numbers, predicted, size, row) for row in weights]))


def _class_row(matrix: Floats, number: int) -> dict[str, Any]:
    hits, true, found = int(matrix[number, number]), int(matrix[number].sum()), int(matrix[:, number].sum())
    return {
        "documents": true,
        "precision": _share(hits, found),
        "recall": _share(hits, true),
        "f1": round(2 * hits / (true + found), 6) if true + found else 0.0,
    }


def _share(hits: int, count: int) -> dict[str, Any]:
    return _row(*wilson(hits, count)) if count else {"value": None, "lower": None, "upper": None}


def _row(value: float, lower: float, upper: float) -> dict[str, float]:
    return {"value": round(value, 6), "lower": round(float(lower), 6), "upper": round(float(upper), 6)}


def _with_bounds(value: float, resampled: Floats, groups: int) -> dict[str, float]:
    """A figure between 0 and 1, with Student's interval on its logit.

    Where the resamples agree they say nothing, and each group counts once.
    """
    from scipy.special import expit, logit

    margin = _margin(resampled, groups)
    if margin is None or margin < _EQUAL or not 0.0 < value < 1.0:
        return _row(value, *wilson(value * groups, groups)[1:])
    away = margin / (value * (1 - value))
    lower, upper = expit([logit(value) - away, logit(value) + away]).tolist()
    return _row(value, lower, upper)


def _change(value: float, resampled: Floats, groups: int) -> dict[str, Any]:
    """A difference of two figures; one group gives no interval."""
    margin = _margin(resampled, groups)
    return (
        {"value": round(value, 6), "lower": None, "upper": None}
        if margin is None
        else _row(value, value - margin, value + margin)
    )


def _margin(resampled: Floats, groups: int) -> float | None:
    """Student's 95 % margin of a figure, from resamples of its groups."""
    if groups == 1:
        return None
    return float(quantile(groups - 1)) * math.sqrt(groups / (groups - 1)) * float(resampled.std())
