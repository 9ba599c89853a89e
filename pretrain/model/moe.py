"""Mixture of experts without dropped tokens (arXiv:2211.15841).

Parameters are named as in Qwen 3's mixtures: `mlp.gate` and `mlp.experts.E.up_proj`. Every expert is called on every
rank in every pass, if need be without tokens: at ZeRO-3 all ranks gather its weights together.

Price: tokens are sorted by expert, and the host must know how many each has: one wait per layer on CUDA.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pretrain.config.model import ModelConfig, MoeConfig
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
        self.used, self.normalised = moe.num_experts_per_tok, moe.norm_topk_prob

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states after the experts, and router logits.

        [B, L, hidden] -> [B, L, hidden], and fp32 [B, L, experts].
        """
        tokens = x.flatten(0, 1)
        logits = self.gate(tokens)
        weights, chosen = logits.softmax(-1).topk(self.used, dim=-1)
        if self.normalised:
            weights = weights / weights.sum(-1, keepdim=True)
        order = chosen.flatten().argsort(stable=True)
        counts = F.one_hot(chosen, len(self.experts)).sum((0, 1)).tolist()
        parts = tokens[order // self.used].split(counts)
        outputs = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        outputs = outputs[order.argsort()].view(*chosen.shape, -1)
        out = torch.einsum("nkd,nk->nd", outputs, weights.to(outputs.dtype))
        return out.view(x.shape), logits.view(*x.shape[:2], -1)


def balance_losses(logits: torch.Tensor, targets: torch.Tensor, moe: MoeConfig) -> torch.Tensor:
    """Balance losses of one layer, an fp32 scalar summed over targets.

    Load balance (arXiv:2101.03961, eq. 4) and router z-loss (arXiv:2202.08906, eq. 5), over the tokens that predict.
    Shares and mean probabilities are taken per row, weighted by its targets, not per micro batch: so the objective does
    not depend on how rows are spread over micro batches and ranks (as in arXiv:2412.19437, eq. 17).

    Args:
        logits: the router's, fp32 [B, L, experts].
        targets: int64 [B, L], -100 where nothing is predicted.
        moe: the section `[model.moe]`.
    """
    counted = (targets >= 0).float()
    of_row = counted.sum(1)
    chosen = F.one_hot(logits.topk(moe.num_experts_per_tok, dim=-1).indices, moe.num_local_experts).sum(2).float()
    share = torch.einsum("ble,bl->be", chosen, counted) / moe.num_experts_per_tok
    probability = torch.einsum("ble,bl->be", logits.softmax(-1), counted)
    balance = (moe.num_local_experts * (share * probability).sum(-1) / of_row.clamp(min=1)).sum()
    level = (logits.logsumexp(-1).square() * counted).sum()
    return moe.router_aux_loss_coef * balance + moe.router_z_loss_coef * level
