"""Mixture of experts without dropped tokens (arXiv:2211.15841).

Tokens are sorted by expert, and each projection of all experts is one grouped product (`_GroupedProduct`): the borders
between experts stay on the device, so the host never waits for them (where ranks divide the experts, once per layer:
`expert_parallel.py`). Every expert takes part in every pass, if need be
without tokens, and then its gradient is zero.

Parameters are named as in Qwen 3's mixtures: `mlp.gate` and `mlp.experts.E.up_proj`. Where ZeRO keeps the weights of a
projection at equal distances in one storage, the product reads them in place; otherwise they are copied for it.

Price: on a GPU without grouped products for the type (fp32, and before compute capability 8.0) torch loops over the
experts, and waits for their borders. Not measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from pretrain.config.model import ModelConfig, MoeConfig
from pretrain.model.expert_parallel import computed_by_owners
from pretrain.model.feed_forward import FeedForward


class Router(nn.Linear):
    """Logits of the experts, always in fp32 (arXiv:2101.03961, section 2.4)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, hidden] -> fp32 [N, experts]."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float())


class Experts(nn.Module):
    """Token-choice mixture of experts, weighted by router probability."""

    def __init__(self, config: ModelConfig, moe: MoeConfig) -> None:
        super().__init__()
        self.gate = Router(config.hidden_size, moe.num_local_experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(config) for _ in range(moe.num_local_experts))
        self.num_experts, self.used = moe.num_local_experts, moe.num_experts_per_tok
        self.normalised = moe.norm_topk_prob
        self.bias: torch.Tensor | None = None
        """Added to the probabilities for the selection, fp32 [experts]; see `expert_bias.py`."""
        self.group: Any = None
        """Ranks that hold the experts among them (`expert_parallel.py`); None: this rank holds all."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states after the experts, and router logits.

        It maps [B, L, hidden] to [B, L, hidden], and fp32 [B, L, experts].
        """
        tokens = x.flatten(0, 1)
        logits = self.gate(tokens)
        weights, chosen = select_experts(logits, self.used, self.bias)
        if self.normalised:
            weights = weights / weights.sum(-1, keepdim=True)
        owners, order = chosen.flatten().sort(stable=True)
        numbers = torch.arange(self.num_experts, device=x.device)
        ends = torch.searchsorted(owners, numbers, right=True)
        sources = order // self.used
        if self.group is None:
            outputs = self._compute(tokens[sources], ends.to(torch.int32), owners)
        else:
            counts = ends.diff(prepend=ends.new_zeros(1))
            outputs = computed_by_owners(tokens, sources, counts, self.group, self._compute_counted)
        outputs = outputs[order.argsort()].view(*chosen.shape, -1)
        out = torch.einsum("nkd,nk->nd", outputs, weights.to(outputs.dtype))
        return out.view(x.shape), logits.view(*x.shape[:2], -1)

    def _compute_counted(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """`_compute` for this many rows of each of this rank's experts."""
        owners = torch.arange(len(counts), device=x.device).repeat_interleave(counts, output_size=len(x))
        return self._compute(x, counts.cumsum(0).to(torch.int32), owners)

    def _compute(self, x: torch.Tensor, ends: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
        """Outputs of this rank's experts.

        Args:
            x: [N, hidden], sorted by expert.
            ends: int32, the row after the last of each expert.
            owners: int64 [N], the place of each row's expert among this rank's.
        """
        experts = list(self.experts if self.group is None else self.experts.values())

        def product(name: str, of: torch.Tensor) -> torch.Tensor:
            maps = [getattr(expert, name) for expert in experts]
            out = grouped_product(of, ends, [part.weight for part in maps])
            biases = [part.bias for part in maps]
            return out if biases[0] is None else out + torch.stack(biases).to(out.dtype)[owners]

        gate = product("gate_proj", x) if experts[0].gated else None
        return product("down_proj", experts[0].activate(product("up_proj", x), gate))


def select_experts(logits: torch.Tensor, used: int, bias: torch.Tensor | None) -> Sequence[torch.Tensor]:
    """Probabilities and numbers of the experts that each token uses.

    It maps fp32 [..., experts] to fp32 and int64 [..., used]. The bias affects the choice, and enters no probability.
    """
    probabilities = logits.softmax(-1)
    if bias is None:
        return probabilities.topk(used, dim=-1)
    chosen = (probabilities.detach() + bias).topk(used, dim=-1).indices
    return probabilities.gather(-1, chosen), chosen


_KERNEL_BYTES = 16
"""Each row's bytes must be a multiple of this for the kernel."""


def grouped_product(x: torch.Tensor, ends: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Linear maps of consecutive groups of rows, each with its weight.

    Args:
        x: [N, in], sorted by group.
        ends: int32 [G], the row after the last of each group; the last of them is N.
        weights: G times [out, in].

    Returns:
        [N, out], in the type of the products (autocast's, where it is on).
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        computed = torch.get_autocast_dtype(device)
        x, weights = x.to(computed), [weight.to(computed) for weight in weights]
    rows, columns = weights[0].shape
    unit = _KERNEL_BYTES // x.element_size()
    short_rows, short_columns = -rows % unit, -columns % unit
    if short_rows or short_columns:  # a tensor of odd sizes costs a copy with zeros
        x = F.pad(x, (0, short_columns))
        weights = [F.pad(weight, (0, short_columns, 0, short_rows)) for weight in weights]
    with torch.autocast(device, enabled=False):
        out: torch.Tensor = _GroupedProduct.apply(x, ends, *weights)
    return out[:, :rows] if short_rows else out


class _GroupedProduct(torch.autograd.Function):
    """`grouped_product` of one type, keeping the weights themselves and no copy."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, ends: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, ends, *weights)
        return _multiply(x, _stacked(weights).transpose(1, 2), ends)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, ends, *weights = ctx.saved_tensors
        gradient = gradient.contiguous()
        for_x = _multiply(gradient, _stacked(weights), ends)
        for_weights = _multiply(gradient.t(), x, ends)
        return for_x, None, *for_weights.unbind(0)


def _multiply(left: torch.Tensor, right: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Grouped product, as our own operation where the compiler lacks the type."""
    if not left.numel():  # no row for any of this rank's experts; the kernel refuses that
        groups = () if right.dim() == 3 else (len(ends),)
        return left.new_zeros((*groups, left.shape[0], right.shape[-1]))
    compiled_by_name = torch.compiler.is_compiling() and left.dtype is not torch.bfloat16
    product: Callable[..., torch.Tensor] = torch.ops.assay.grouped_product if compiled_by_name else F.grouped_mm
    return product(left, right, offs=ends)


_LIBRARY: Any = torch.library.Library("assay", "DEF")
_LIBRARY.define("grouped_product(Tensor left, Tensor right, Tensor offs) -> Tensor")
_LIBRARY.impl(
    "grouped_product", lambda left, right, offs: F.grouped_mm(left, right, offs=offs), "CompositeExplicitAutograd"
)


@torch.library.register_fake("assay::grouped_product", lib=_LIBRARY)
def _(left: torch.Tensor, right: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    groups = () if right.dim() == 3 else (len(offs),)
    return left.new_empty((*groups, left.shape[0], right.shape[-1]))


def _stacked(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Weights as [G, out, in]: a view if evenly spaced, else copied."""
    first = weights[0]
    if torch.compiler.is_compiling() or (len(weights) == 1 and not first.is_contiguous()):
        return torch.stack(list(weights))
    if len(weights) == 1:
        return first.unsqueeze(0)
    distance = weights[1].storage_offset() - first.storage_offset()
    storage = first.untyped_storage().data_ptr()
    even = all(
        weight.is_contiguous()
        and weight.untyped_storage().data_ptr() == storage
        and weight.storage_offset() == first.storage_offset() + number * distance
        for number, weight in enumerate(weights)
    )
    if not even or distance < first.numel():
        return torch.stack(list(weights))
    return first.as_strided((len(weights), *first.shape), (distance, *first.stride()), first.storage_offset())


def balance_losses(
    logits: torch.Tensor, targets: torch.Tensor, moe: MoeConfig, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Balance losses of one layer, an fp32 scalar summed over targets.

    They are the load balance (arXiv:2101.03961, eq. 4) and the router z-loss (arXiv:2202.08906, eq. 5), over the tokens
    that predict. Shares and mean probabilities are taken per row, weighted by its targets, not per micro batch: so the
    objective does not depend on how rows are spread over micro batches and ranks (as in arXiv:2412.19437, eq. 17).

    Args:
        logits: the router's, fp32 [B, L, experts].
        targets: int64 [B, L], -100 where nothing is predicted.
        moe: the section `[model.moe]`.
        bias: the experts' selection bias, if they have one.
    """
    counted = (targets >= 0).float()
    of_row = counted.sum(1)
    count = moe.num_experts_per_tok
    used = logits.topk(count, dim=-1).indices if bias is None else select_experts(logits, count, bias)[1]
    chosen = F.one_hot(used, moe.num_local_experts).sum(2).float()
    share = torch.einsum("ble,bl->be", chosen, counted) / count
    probability = torch.einsum("ble,bl->be", logits.softmax(-1), counted)
    balance = (moe.num_local_experts * (share * probability).sum(-1) / of_row.clamp(min=1)).sum()
    level = (logits.logsumexp(-1).square() * counted).sum()
    return moe.router_aux_loss_coef * balance + moe.router_z_loss_coef * level
