"""Vocabulary split among tensor ranks: embedding, output projection and softmax.

Each of n ranks holds V / n consecutive rows of both tables (arXiv:1909.08053, section 3). Logits are never gathered:

    tokens [B, L] -> own rows, 0 for the others' tokens -> sum over the ranks -> [B, L, D]
    hidden [N, D] -> own logits [N, V / n] -> largest logit, sum of exponentials and target's logit over the ranks

Every rank computes the same losses from these, and the gradient of its own logits (`loss.py`).

Price: one all-reduce of [B, L, D] for the embedding and one for the gradient of the hidden states, and for each piece
of tokens one of N and one of 2 N fp32 numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import distributed, nn


@dataclass(frozen=True)
class VocabularyPart:
    """This rank's rows of the vocabulary."""

    size: int
    """Ranks that share the vocabulary."""
    rank: int
    """Place among them, in the order of the rows."""
    group: Any = None
    """Their process group; None: all ranks."""

    def local(self, tokens: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Local row of each token, and the mask of own tokens.

        A token of another rank has any row.
        """
        places = tokens - self.rank * rows
        return places.clamp(0, rows - 1), (places >= 0) & (places < rows)

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, whose gradient is each summand's."""
        return _Summed.apply(values, self.group)

    def shared(self, values: torch.Tensor) -> torch.Tensor:
        """The same values; their gradient is the sum of all ranks'."""
        return _Shared.apply(values, self.group)

    def level(
        self, logits: torch.Tensor, places: torch.Tensor, mine: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-sum-exp over the whole vocabulary, and the target's logit.

        Args:
            logits: this rank's, fp32 [N, V / n].
            places: [N, 1], rows of the targets.
            mine: [N], whether this rank has the target's row.

        Returns:
            both fp32 [N, 1].
        """
        most = logits.detach().amax(-1, keepdim=True)
        distributed.all_reduce(most, distributed.ReduceOp.MAX, group=self.group)
        of_target = torch.where(mine.unsqueeze(-1), logits.gather(-1, places), 0.0)
        sums = self.summed(torch.cat([(logits - most).exp().sum(-1, keepdim=True), of_target], dim=-1))
        return most + sums[:, :1].log(), sums[:, 1:]


class _Summed(torch.autograd.Function):
    """Sum over ranks forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, group: Any) -> torch.Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


class _Shared(torch.autograd.Function):
    """Identity forward, sum over ranks backward."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, group=ctx.group)
        return total, None


class SplitEmbedding(nn.Embedding):
    """Embedding whose rows are split among ranks."""

    part: VocabularyPart

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids of the whole vocabulary [B, L] -> [B, L, D]."""
        places, mine = self.part.local(tokens, self.num_embeddings)
        return self.part.summed(F.embedding(places, self.weight).masked_fill(~mine.unsqueeze(-1), 0.0))


WholeWeights = Callable[[list[nn.Parameter]], AbstractContextManager[Any]]
"""Context in which weights that ZeRO-3 has partitioned are whole."""


def split_vocabulary(
    embedding: nn.Embedding, head: nn.Linear, part: VocabularyPart, whole: WholeWeights = nullcontext
) -> None:
    """Keep this rank's rows of both tables; collective at ZeRO-3.

    `whole` is for tables that ZeRO-3 has partitioned already. The tables may be one, and have a number of rows that the
    ranks divide. The new parameters have the mark by which DeepSpeed counts every rank's gradient in the norm of all;
    ZeRO-3 partitions them among the data ranks. `head` finds its part in the attribute `part`.
    """
    tied = head.weight is embedding.weight
    embedding.weight = _own_rows(embedding.weight, part, whole)
    head.weight = embedding.weight if tied else _own_rows(head.weight, part, whole)
    embedding.num_embeddings, head.out_features = len(embedding.weight), len(head.weight)
    embedding.__class__ = SplitEmbedding
    vars(embedding)["part"] = vars(head)["part"] = part


def _own_rows(weight: nn.Parameter, part: VocabularyPart, whole: WholeWeights) -> nn.Parameter:
    with whole([weight]):
        rows = nn.Parameter(weight.data.chunk(part.size)[part.rank].clone())
    vars(rows)["tensor_model_parallel"] = True
    return rows
