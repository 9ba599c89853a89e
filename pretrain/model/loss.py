"""Cross-entropy from hidden states, without holding all logits.

The output projection, the softmax and their gradients are computed together, a piece of tokens at a time: the gradient
of a sum is known in the forward pass, so nothing of size tokens x vocabulary is kept for the backward pass
(arXiv:2410.10989, section 3.2). Within a piece the softmax runs in fp32: on CPU over runs of rows that stay in the
cache, on CUDA and under torch.compile in one kernel that reads a piece's products and overwrites them with their
gradients. That kernel finds the target by comparison, because a scatter or gather would write the fp32 probabilities to
memory in between.

Where tensor ranks split the vocabulary (`vocabulary_part.py`), each computes this of its own rows: nothing of size
of all logits is exchanged, and the hidden states' gradient is summed once over the ranks.

Price: in training the gradients of hidden states and projection (fp32 sums where there are several pieces) are kept
from the forward pass to the backward pass, which follows at once. fp16 cannot hold some values of a softmax, so there
autograd works on fp32 logits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from pretrain.model.flops import piece_tokens
from pretrain.model.vocabulary_part import VocabularyPart

_RUN_LOGITS = 1 << 17  # elements in a run of rows on CPU


@dataclass(frozen=True)
class Logits:
    """Logit transform and auxiliary losses."""

    scale: float = 1.0
    softcap: float | None = None
    z_loss: float = 0.0
    smoothing: float = 0.0
    """Share of each target's probability that is spread over all ids (arXiv:1512.00567, section 7)."""
    ids: int = 0
    """With smoothing: the vocabulary's size; rows of padding get no share."""

    def of(self, products: torch.Tensor) -> torch.Tensor:
        """Logits from the output projection's products."""
        if self.scale != 1.0:
            products = products * self.scale
        return products if self.softcap is None else self.softcap * torch.tanh(products / self.softcap)


class SoftLoss(Protocol):
    """A second loss on the logits, such as that of distillation."""

    weight: float
    """Its share; the cross entropy and z-loss keep the rest."""

    def losses(
        self, piece: slice, products: torch.Tensor, counted: torch.Tensor, rule: Logits
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted sum over the `counted` tokens of a piece.

        Its gradient by `products` [n, V], fp32, comes with it.
        """


class Head(nn.Linear):
    """Output projection: logits, or the losses of targets."""

    def __init__(self, width: int, rows: int, rule: Logits) -> None:
        super().__init__(width, rows, bias=False)
        self.rule = rule
        self.part: VocabularyPart | None = None

    def table(self) -> torch.Tensor:
        """Weight [rows, hidden] that logits are computed with."""
        return self.weight

    def forward(self, x: torch.Tensor, targets: torch.Tensor | None = None, soft: SoftLoss | None = None) -> Any:
        """Logits [B, L, rows] of hidden states [B, L, hidden].

        For a split vocabulary they are those of this rank's rows.

        With targets [B, L] the result is the objective and nats (`cross_entropy`).
        """
        if targets is None:
            return self.rule.of(F.linear(x, self.table()))
        hidden = x.flatten(0, 1)
        objective, nats = cross_entropy(hidden, self.table(), targets.flatten(), self.rule, self.part, soft)
        return objective, nats.view(targets.shape)


def cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    rule: Logits,
    part: VocabularyPart | None = None,
    soft: SoftLoss | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over targets of cross entropy and z-loss, fp32.

    The detached cross entropies [N] come with it.

    Cross entropies are 0 where there is no target.

    Args:
        hidden: [N, D].
        weight: [V, D], or this rank's [V / n, D].
        targets: int64 [N], negative where nothing is predicted.
        rule: transform of products to logits.
        part: place of the weight's rows in the vocabulary; None: they are all of it. Collective among its ranks.
        soft: a second loss, whose share the sum gives up; not of a split vocabulary, and not in fp16.
    """
    device = hidden.device.type
    computed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    if computed == torch.float16:
        return _by_autograd(hidden, weight, targets, rule, part)
    learns = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    how = (computed, learns, weight.requires_grad, part, soft if learns else None)
    return _InPieces.apply(hidden, weight, targets, rule, how)


def _by_autograd(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, rule: Logits, part: VocabularyPart | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = rule.of(F.linear(hidden if part is None else part.shared(hidden), weight).float())
    counted = targets >= 0
    if part is None:
        nats = F.cross_entropy(logits, targets.clamp(min=-1), ignore_index=-1, reduction="none")
        level = logits.logsumexp(-1) if rule.z_loss else nats
    else:
        places, mine = part.local(targets, len(weight))
        level, of_target = (values.squeeze(-1) for values in part.level(logits, places.unsqueeze(-1), mine))
        nats = torch.where(counted, level - of_target, 0.0)
    added = rule.z_loss * (level.square() * counted).sum() if rule.z_loss else 0.0
    if rule.smoothing:
        added = added + _smoothed(logits.log_softmax(-1), nats, counted, rule)
    return nats.sum() + added, nats.detach()


def _smoothed(log_probabilities: torch.Tensor, nats: torch.Tensor, counted: torch.Tensor, rule: Logits) -> torch.Tensor:
    """Smoothed cross entropies less the plain ones, summed.

    A smoothed one is (1 - e) nats - e x the mean log probability of all ids.
    """
    spread = -log_probabilities[:, : rule.ids].mean(-1)
    return rule.smoothing * torch.where(counted, spread - nats, 0.0).sum()


class _InPieces(torch.autograd.Function):
    """`cross_entropy` that computes the gradients of its sum in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, rule: Logits, how: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        computed, *others = how
        with torch.autocast(hidden.device.type, enabled=False):
            given = hidden.to(computed), weight.to(computed), targets, rule
            objective, nats, gradients = _losses(given, *others)
        for_hidden, for_weight = gradients
        if for_hidden is not None:
            found = None if for_weight is None else for_weight.to(weight.dtype)
            ctx.save_for_backward(for_hidden.to(hidden.dtype), found)
        ctx.mark_non_differentiable(nats)
        return objective, nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        for_hidden, for_weight = ctx.saved_tensors
        return for_hidden * factor, None if for_weight is None else for_weight * factor, None, None, None


def _losses(
    given: tuple[torch.Tensor, torch.Tensor, torch.Tensor, Logits],
    learns: bool,
    of_weight: bool,
    part: VocabularyPart | None,
    soft: SoftLoss | None = None,
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor | None, torch.Tensor | None]]:
    """Objective, nats, and the gradients of hidden states and weight, if any."""
    hidden, weight, targets, rule = given
    count, vocabulary = len(hidden), len(weight)
    step = piece_tokens(vocabulary, hidden.device.type)
    pieces = [slice(start, start + step) for start in range(0, count, step)]
    softmax_losses = _softmax_losses_on(hidden.device.type, part)
    nats = torch.empty(count, dtype=torch.float32, device=hidden.device)
    added, soft_sum = torch.zeros((2,), dtype=torch.float32, device=hidden.device)
    for_hidden = torch.empty_like(hidden) if learns else None
    for_weight: torch.Tensor | None = None
    for piece in pieces:
        products = F.linear(hidden[piece], weight)
        of_soft = soft.losses(piece, products, targets[piece] >= 0, rule) if soft is not None else None
        nats[piece], extra = softmax_losses(products, targets[piece], rule, learns)
        added += extra
        if soft is not None and of_soft is not None:
            soft_sum += of_soft[0]
            products.mul_(1.0 - soft.weight).add_(of_soft[1])
        if for_hidden is not None:
            torch.mm(products, weight, out=for_hidden[piece])
        if learns and of_weight:
            added_to_it = products.t() @ hidden[piece]
            for_weight = added_to_it if len(pieces) == 1 else _add(for_weight, added_to_it)
    if part is not None and for_hidden is not None:
        for_hidden = part.summed(for_hidden)
    objective = nats.sum() + added
    if soft is not None:
        objective = (1.0 - soft.weight) * objective + soft_sum
    return objective, nats, (for_hidden, for_weight)


def _add(total: torch.Tensor | None, part: torch.Tensor) -> torch.Tensor:
    return part.float() if total is None else total.add_(part)


def _softmax_losses(
    products: torch.Tensor, targets: torch.Tensor, rule: Logits, learns: bool, part: VocabularyPart | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats [N] and the sum of z-losses.

    If the model `learns`, `products` [N, V] (of a split vocabulary [N, V / n]) are overwritten with the gradient of
    their sum.
    """
    counted = targets >= 0
    logits = rule.of(products.float())
    if part is None:
        log_probabilities = torch.log_softmax(logits, -1)
        places, hit = targets.clamp(min=0).unsqueeze(-1), counted.unsqueeze(-1)
        of_target = log_probabilities.gather(-1, places)
        level = logits.gather(-1, places) - of_target  # log-sum-exp
    else:
        rows, mine = part.local(targets, logits.shape[1])
        places, hit = rows.unsqueeze(-1), mine.unsqueeze(-1)
        level, of_target = part.level(logits, places, mine)
        log_probabilities, of_target = logits - level, of_target - level
    nats = torch.where(counted, -of_target.squeeze(-1), 0.0)
    extra = rule.z_loss * torch.where(counted, level.squeeze(-1).square(), 0.0).sum()
    if rule.smoothing:
        extra = extra + _smoothed(log_probabilities, nats, counted, rule)
    if learns:
        slopes = log_probabilities.exp_()
        if rule.z_loss:
            slopes.mul_(1.0 + 2.0 * rule.z_loss * level)
        slopes.scatter_add_(-1, places, (rule.smoothing - 1.0) * hit.float())
        if rule.smoothing:
            slopes[:, : rule.ids] -= rule.smoothing / rule.ids
        if rule.softcap is not None:
            slopes.mul_(1.0 - (logits / rule.softcap).square())
        products.copy_(slopes.mul_(counted.unsqueeze(-1) * rule.scale))
    return nats, extra


def _softmax_losses_in_runs(
    products: torch.Tensor, targets: torch.Tensor, rule: Logits, learns: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """`_softmax_losses` over runs of rows that stay in a core's cache."""
    rows = max(1, _RUN_LOGITS // products.shape[1])
    runs = zip(products.split(rows), targets.split(rows), strict=True)
    losses = [_softmax_losses(*run, rule, learns) for run in runs]
    return torch.cat([nats for nats, _ in losses]), torch.stack([extra for _, extra in losses]).sum()


def _softmax_losses_fused(
    products: torch.Tensor, targets: torch.Tensor, rule: Logits, learns: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """`_softmax_losses` by one compiled kernel."""
    if rule.smoothing:  # the kernel has none
        return _softmax_losses(products, targets, rule, learns)
    compiling = torch.compiler.is_compiling()
    if not compiling:  # compile once for pieces of any size
        for tensor in (products, targets):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
    nats, extras = (_kernel if compiling else _compiled())(products, targets, rule, learns)
    return nats, nats.new_zeros(()) if extras is None else extras.sum()


def _kernel(
    products: torch.Tensor, targets: torch.Tensor, rule: Logits, learns: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Nats [N] and z-losses [N], if any.

    It is written so that the compiler makes few passes over a row.
    """
    counted = targets >= 0
    logits = rule.of(products.float())
    level = logits.logsumexp(-1, keepdim=True)
    hit = torch.arange(logits.shape[1], device=logits.device) == targets.unsqueeze(-1)
    of_target = torch.where(hit, logits, 0.0).sum(-1)
    nats = torch.where(counted, level.squeeze(-1) - of_target, 0.0)
    extras = torch.where(counted, rule.z_loss * level.squeeze(-1).square(), 0.0) if rule.z_loss else None
    if learns:
        slopes = (logits - level).exp()
        if rule.z_loss:
            slopes = slopes * (1.0 + 2.0 * rule.z_loss * level)
        slopes = torch.where(hit, slopes - 1.0, slopes)
        if rule.softcap is not None:
            slopes = slopes * (1.0 - (logits / rule.softcap).square())
        products.copy_(torch.where(counted.unsqueeze(-1), slopes * rule.scale, 0.0))
    return nats, extras


def _softmax_losses_on(device: str, part: VocabularyPart | None) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    if part is not None:  # its collectives are between the passes over a piece
        return functools.partial(_softmax_losses, part=part)
    return _softmax_losses_fused if device == "cuda" or torch.compiler.is_compiling() else _softmax_losses_in_runs


@functools.cache
def _compiled() -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """Compiled kernel; failure to compile is an error."""
    return torch.compile(_kernel, fullgraph=True)
