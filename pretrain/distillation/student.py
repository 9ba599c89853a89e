"""Student: a decoder that learns from text and from a teacher.

    loss = (1 - w) x (cross entropy + z-loss) + w x T^2 x cross entropy to the teacher, at temperature T

summed over the predicted tokens (arXiv:1503.02531). The cross entropy to the teacher is the Kullback-Leibler divergence
plus the teacher's entropy, which no weight changes. It is computed with the head's products, a piece of tokens at a
time; nothing of size tokens x vocabulary is kept.

Drawn tokens stand for a distribution as their relative frequencies: on average over the draws that is the
distribution, so the gradient is unbiased. The likeliest tokens alone would be biased (arXiv:2503.16870).

The teacher is not a module of the student: DeepSpeed neither partitions nor saves it, and each rank holds it whole, in
the precision of the passes. A validation is of the student alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pretrain.config.distillation import DistillationConfig
from pretrain.config.model import ModelConfig
from pretrain.model.decoder import Batch, Decoder
from pretrain.model.loss import Logits

PROJECTION = "projection.weight"
"""The parameter of `DistillationConfig.projection`; checkpoints have it, exports do not."""


def probabilities(teacher: Decoder, hidden: torch.Tensor, vocabulary_size: int, temperature: float) -> torch.Tensor:
    """A teacher's probabilities [..., V] at a temperature, fp32.

    The padding of the vocabulary has none.
    """
    logits = teacher.lm_head(hidden.to(teacher.lm_head.weight.dtype)).float().div_(temperature)
    logits[..., vocabulary_size:] = -torch.inf
    return logits.softmax(-1)


def frequencies(drawn: torch.Tensor, rows: int) -> torch.Tensor:
    """Relative frequencies [n, V] of drawn tokens, int64 [n, samples].

    V is the head's `rows`.
    """
    share = torch.full(drawn.shape, 1.0 / drawn.shape[1], device=drawn.device)
    return torch.zeros(len(drawn), rows, device=drawn.device).scatter_add_(1, drawn, share)


@dataclass(frozen=True)
class TeacherLoss:
    """The teacher's part of the loss; a `SoftLoss`."""

    soft_targets: Callable[[slice], torch.Tensor]
    """The teacher's probabilities [n, V] of a piece of the tokens: made piece by piece, since all would fill memory."""
    weight: float
    temperature: float

    def losses(
        self, piece: slice, products: torch.Tensor, counted: torch.Tensor, rule: Logits
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `SoftLoss`."""
        logits, soft_targets = rule.of(products.float()), self.soft_targets(piece)
        ours = torch.log_softmax(logits / self.temperature, -1)
        nats = -(soft_targets * ours).sum(-1)
        slopes = ours.exp_().sub_(soft_targets)
        if rule.softcap is not None:
            slopes.mul_(1.0 - (logits / rule.softcap).square())
        slopes.mul_(counted.unsqueeze(-1) * (self.weight * self.temperature * rule.scale))
        return self.weight * self.temperature**2 * (nats * counted).sum(), slopes


class Student(Decoder):
    """Decoder whose objective holds a teacher's distributions.

    `teacher` is None where tokens were drawn from it before.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary_size: int,
        *given: Any,
        distillation: DistillationConfig,
        teacher: Decoder | None,
    ) -> None:
        super().__init__(config, vocabulary_size, *given)
        self.distillation, self.vocabulary_size = distillation, vocabulary_size
        self._teachers = (teacher,)  # in a tuple, so that it is not registered as a submodule
        if distillation.projection and teacher is not None:
            self.projection = nn.Linear(config.hidden_size, teacher.config.hidden_size, bias=False)

    @staticmethod
    def extra_inputs(batch: Batch, moved: Batch) -> dict[str, Any]:
        """The tokens drawn from the teacher, if any."""
        return {} if moved.drawn is None else {"drawn": moved.drawn}

    def forward(
        self,
        tokens: torch.Tensor,
        targets: torch.Tensor,
        segments: torch.Tensor,
        positions: torch.Tensor,
        documents: int | None = None,
        drawn: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Objective and nats, as those of a decoder.

        Without gradients they are a decoder's.
        """
        if not torch.is_grad_enabled():
            return super().forward(tokens, targets, segments, positions, documents)
        config, [teacher] = self.distillation, self._teachers
        size, temperature = self.vocabulary_size, config.temperature
        if drawn is not None:
            chosen, rows = drawn.flatten(0, 1), self.lm_head.out_features
            soft = TeacherLoss(lambda piece: frequencies(chosen[piece], rows), config.weight, temperature)
        else:
            assert teacher is not None, "neither a teacher nor tokens that were drawn from one"
            with torch.no_grad():
                states, _ = teacher.model(tokens, segments, positions, documents)
            known, seen_by = teacher, states.flatten(0, 1)
            soft = TeacherLoss(
                lambda piece: probabilities(known, seen_by[piece], size, temperature), config.weight, temperature
            )
        hidden, routers = self.model(tokens, segments, positions, documents)
        objective, nats = self.losses(hidden, routers, targets, soft)
        if config.hidden_weight:
            seen = self.projection(hidden) if config.projection else hidden
            apart = F.mse_loss(seen.float(), states.float(), reduction="none").mean(-1)
            objective = objective + config.hidden_weight * (apart * (targets >= 0)).sum()
        return objective, nats
