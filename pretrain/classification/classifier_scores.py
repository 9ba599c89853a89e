"""Evaluation of a classifier: figures with 95 % intervals.

They are accuracy, macro-F1, precision and recall of each label, confusion and calibration. Shares are given with
Wilson's interval, accuracy with that of its effective sample size: documents of one author, say, are not independent
evidence. Macro-F1 and ECE have a percentile interval of 2,000 resamples of the groups (of the documents, where there
are none). `predictions.json` has every document with its label, prediction and probabilities.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

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
from pretrain.evaluation.model_bias import wilson
from pretrain.inference.loaded_model import LoadedModel

VERSION = 1
_RESAMPLES = 2000


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
    spread = float(np.var(weights @ right / weights.sum(1)))
    effective = effective_size(float(right.mean()), spread, len(names), count)
    accuracy = wilson(float(right.mean()) * effective, effective)
    return {
        "documents": count,
        "groups": len(names),
        "accuracy": _row(*accuracy),
        "macro_f1": _row(float(macro_f1(matrix)), *_interval(_resampled_f1(numbers, predicted, size, weights))),
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
                    "ece": _row(float(calibration_errors(probs, numbers, whole)[0]), *_interval(found)),
                    "nats": round(float(cross_entropies(logits, numbers, divisor).mean()), 6),
                    "reliability": reliability(probs, numbers),
                }
                for when, probs, found, divisor in (
                    ("before", before, resampled[0], 1.0),
                    ("after", after, resampled[1], temperature),
                )
            },
            "ece_change": _row(
                float(np.subtract(*(calibration_errors(probs, numbers, whole)[0] for probs in (after, before)))),
                *_interval(resampled[1] - resampled[0]),
            ),
        },
    }


def effective_size(share: float, spread: float, groups: int, documents: int) -> float:
    """Number of independent documents that would be as precise.

    `spread` is the variance of the share over resamples of the groups. If all documents agree it is 0 and says nothing:
    then each group counts once.
    """
    if groups == documents:
        return documents
    return min(max(share * (1 - share) / spread, 1.0), documents) if spread else groups


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


def _interval(values: Floats) -> tuple[float, float]:
    lower, upper = np.quantile(values, (0.025, 0.975)).tolist()
    return lower, upper
