"""Students of a frozen teacher, trained by the engine and by torch alone: `errors_of_students`."""

from __future__ import annotations

from typing import Any

import torch

from pretrain.config.distillation import DistillationConfig
from pretrain.distillation.student import Student
from pretrain.evaluation.validation import in_precision
from pretrain.model.decoder import Decoder
from pretrain.model.init import initial_weight
from tests.pretrain.engine.repeated_modules import CASES, MODEL, VOCABULARY, Case, gradient_errors

SECTION = DistillationConfig(teacher="t", weight=0.6, temperature=2.0, hidden_weight=0.3, projection=True)
WIDER = MODEL.model_copy(update={"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "head_dim": 12})


def frozen_teacher(seed: int = 5) -> Decoder:
    """A wider and deeper teacher whose distributions are far from even."""
    teacher = Decoder(WIDER, VOCABULARY)
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            parameter.copy_(6 * initial_weight(name, parameter.shape, WIDER, seed))
    return teacher.requires_grad_(False).eval()


def student_in(precision: str) -> type[Decoder]:
    """Class of students beside one teacher, which is built outside of DeepSpeed."""
    teacher, _ = in_precision(frozen_teacher(), precision)

    class Taught(Student):
        """Student with its teacher."""

        def __init__(self, *given: Any) -> None:
            super().__init__(*given, distillation=SECTION, teacher=teacher)

    return Taught


def errors_of_students(cases: tuple[Case, ...] = CASES) -> dict[str, float]:
    """`gradient_errors` of such students."""
    return gradient_errors(cases, student_in)
