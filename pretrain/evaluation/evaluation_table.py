"""Evaluation results as a terminal table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from governance.reports.terminal import aligned
from pretrain.evaluation.validation import loss_words

if TYPE_CHECKING:
    from pretrain.evaluation.validation import Measurement

_KINDS = {"by_source": "source", "by_language": "language", "by_origin": "source/language"}


def table(found: Measurement, tasks: Sequence[Mapping[str, Any]], labels: int = 0) -> list[str]:
    """Lines of the evaluation: whole, sources, languages, tasks.

    `labels` is the number of a classifier's labels.
    """
    loss = loss_words(_with_error(found.loss, found.loss_stderr), found.bits_per_byte, labels)
    lines = [
        f"loss {loss}, {found.tokens:,} {'labels' if labels else 'tokens'} "
        f"(standard errors: of losses over rows, of tasks over questions)"
    ]
    for kind, title in _KINDS.items():
        rows = getattr(found, kind)
        if len(rows) > 1 and not (kind == "by_origin" and min(len(found.by_source), len(found.by_language)) == 1):
            cells = [
                [
                    name,
                    _with_error(row["loss"], row["loss_stderr"]),
                    f"{row['bits_per_byte']:.4f}",
                    f"{row['tokens']:,}",
                ]
                for name, row in rows.items()
            ]
            lines += ["", *_aligned([title, "loss", "bits/byte", "tokens"], cells)]
    if tasks:
        columns = ("acc", "acc_norm", "bits_per_byte")
        cells = [
            [
                row["task"],
                *(_with_error(row[name], row[f"{name}_stderr"]) for name in columns),
                f"{row['chance']:.4f}",
                f"{row['questions']:,}",
            ]
            for row in tasks
        ]
        lines += ["", *_aligned(["task", "acc", "acc_norm", "bits/byte", "chance", "questions"], cells)]
    for row in tasks:
        if "subtasks" in row:
            mean = _with_error(row["acc_by_subtask"], row["acc_by_subtask_stderr"])
            lines.append(
                f"{row['task']}: {mean} is the mean of acc over its {len(row['subtasks'])} parts (--json: each)"
            )
    return lines


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def _aligned(head: list[str], rows: list[list[str]]) -> list[str]:
    """Rows under their head; all columns but the first hold numbers."""
    return aligned([head, *rows], range(1, len(head)))
