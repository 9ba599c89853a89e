"""Scores of tasks, with standard errors.

- *acc*: the share of questions whose right choice is the likeliest. Equally likely choices count in equal shares, so
  that a model that knows nothing scores the same as guessing.
- *acc_norm*: the same by nats per character of the choice, without the blank before it, as lm-evaluation-harness names
  it (its `acc_bytes`, by UTF-8 bytes, is the same number for ASCII).
- *bits_per_byte*: bits of the right choice over its UTF-8 bytes, averaged over questions. It moves long before acc
  leaves chance, so watch it in small models.
- *stderr*: sqrt(sum (x - mean)^2 / (n - 1) / n) over questions; for zeros and ones: sqrt(p (1 - p) / (n - 1)).
- *subtasks*: acc of each part of the set, and `acc_by_subtask`, the mean over parts (BLiMP's headline).
- *chance*: acc of guessing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pretrain.evaluation.loglikelihood import Encode, NatsOf, Passes, Scored, Text, encode_texts, score
from pretrain.evaluation.tasks import Question, Task


@dataclass(frozen=True)
class Suite:
    """Tasks encoded once for many evaluations."""

    tasks: tuple[Task, ...]
    texts: tuple[tuple[Text, ...], ...]
    """Every choice of every question of each task, in order."""
    window: int

    @property
    def names(self) -> list[str]:
        """Names of the tasks."""
        return [task.name for task in self.tasks]


def encode_tasks(tasks: Sequence[Task], encode: Encode, window: int) -> Suite:
    """Encode every question.

    Raises:
        PipelineError: a choice has no token that can be scored; the task is named.
    """
    pairs = [
        [(question.context, choice) for question in task.questions for choice in question.choices] for task in tasks
    ]
    return Suite(tuple(tasks), tuple(tuple(encode_texts(encode, of_task, window)) for of_task in pairs), window)


def evaluate_tasks(suite: Suite, nats_of: NatsOf, passes: Passes | None = None) -> list[dict[str, Any]]:
    """Figures of each task, in order (see the module).

    The call is collective, and its result equal on every rank.
    """
    rows = []
    for task, texts in zip(suite.tasks, suite.texts, strict=True):
        found = figures(task.questions, score(nats_of, texts, suite.window, passes))
        rows.append({"task": task.name, "sha256": task.sha256, "left_out": task.left_out, **found})
    return rows


def figures(questions: Sequence[Question], scored: Sequence[Scored]) -> dict[str, Any]:
    """Figures of one task.

    `scored` has an entry for each choice of each question, in order.
    """
    found = iter(scored)
    plain, by_length, bits = [], [], []
    for question in questions:
        nats = [next(found).nats for _ in question.choices]
        words = [choice.removeprefix(" ") for choice in question.choices]
        plain.append(_credit(nats, question.answer))
        by_length.append(_credit([n / len(w) for n, w in zip(nats, words, strict=True)], question.answer))
        bits.append(-nats[question.answer] / math.log(2) / len(words[question.answer].encode("utf-8")))
    row: dict[str, Any] = {"questions": len(questions)}
    for name, values in (("acc", plain), ("acc_norm", by_length), ("bits_per_byte", bits)):
        row[name], row[f"{name}_stderr"] = mean_error(values)
    row["chance"] = math.fsum(1 / len(question.choices) for question in questions) / len(questions)
    parts: dict[str, list[float]] = {}
    for question, value in zip(questions, plain, strict=True):
        parts.setdefault(question.subtask, []).append(value)
    return row | (_subtasks(parts) if len(parts) > 1 else {})


def figures_line(row: Mapping[str, Any]) -> str:
    """Line with one task's figures."""
    parts = [f"{name} {row[name]:.4f}{_error(row[f'{name}_stderr'])}" for name in ("acc", "acc_norm", "bits_per_byte")]
    return f"{row['task']}: {', '.join(parts)}, {row['questions']:,} questions"


def _error(error: float | None) -> str:
    return "" if error is None else f" ± {error:.4f}"


def _credit(values: Sequence[float], answer: int) -> float:
    """1 for the highest answer, a share on ties, else 0."""
    highest = max(values)
    return 1 / sum(value == highest for value in values) if values[answer] == highest else 0.0


def _subtasks(parts: dict[str, list[float]]) -> dict[str, Any]:
    rows = {}
    for name in sorted(parts):
        mean, error = mean_error(parts[name])
        rows[name] = {"acc": mean, "acc_stderr": error, "questions": len(parts[name])}
    known = [row["acc_stderr"] for row in rows.values() if row["acc_stderr"] is not None]
    whole = math.sqrt(math.fsum(error * error for error in known)) / len(rows) if len(known) == len(rows) else None
    mean = math.fsum(row["acc"] for row in rows.values()) / len(rows)
    return {"acc_by_subtask": mean, "acc_by_subtask_stderr": whole, "subtasks": rows}


def mean_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard error, which is None for a single value."""
    count, mean = len(values), math.fsum(values) / len(values)
    if count < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)
