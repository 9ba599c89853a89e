"""Muon (Jordan et al. 2024), with AdamW for other parameters.

Promise: the same weights to rounding at every ZeRO stage and number of ranks, as the orthogonal factor is always taken
of a whole matrix (see `muon_sharding.py`); `found_inf` as in `optimizers.py`; nothing is compiled. Price: 4 bytes of
moment per parameter, and an update of r x c weights (r <= c) costs `muon_steps` x (4 r^2 c + 2 r^3) operations in bf16.

DeepSpeed's own Muon is never active: its hooks look for its class (stage 3) or for parameters marked `use_muon` (stages
1 and 2), and neither is present. Why: docs/decisions/0004-training.md.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from pretrain.config.optim import OptimConfig
from pretrain.optim.lion import keep_where, skipped
from pretrain.optim.muon_sharding import Sharing

_A, _B, _C = 3.4445, -4.7750, 2.0315  # the paper's quintic: steep at zero, and within 0.7 to 1.2 of one beyond it
ARITHMETIC = torch.bfloat16
"""Type of the iteration, and of the tensors that ranks exchange for it."""
_BATCH_BYTES = 64 << 20  # matrices that are orthogonalised together: more takes memory without being faster


class Muon(torch.optim.AdamW):
    """Torch's fused AdamW, with Muon updates for groups of kind "muon".

    For a matrix W of r rows and c columns with gradient G and moment M, where `orthogonal` is `newton_schulz`:
    M <- b M + (1 - b) G;  W <- W (1 - lr decay) - lr max(1, r / c)^0.5 orthogonal(b M + (1 - b) G).

    Only the part that AdamW updates can be clipped: an orthogonal update does not depend on the length of its gradient,
    and clipping it afterwards would divide it by its own norm.
    """

    found_inf: torch.Tensor | None = None
    """fp32 scalar, equal on all ranks: where it is 1, a step changes nothing."""
    grad_scale: torch.Tensor | None = None
    """fp32 scalar that AdamW divides its gradients by; `clip` sets it."""

    def __init__(self, groups: list[dict[str, Any]], config: OptimConfig) -> None:
        super().__init__(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)
        self._momentum, self._steps, self._clipping = config.muon_momentum, config.muon_steps, config.gradient_clipping
        self._sharings: dict[torch.Tensor, Sharing] = {}

    def share(self, sharings: dict[torch.Tensor, Sharing]) -> None:
        """Register which matrices each of ZeRO's flats holds.

        Any other parameter is a matrix itself.
        """
        self._sharings = sharings

    def clip(self, norms: dict[str, torch.Tensor]) -> None:
        """Clip AdamW's coming update by the groups' gradient norms."""
        rest = {group["label"] for group in self.param_groups if group["kind"] != "muon"}
        if self._clipping and rest:
            norm = torch.linalg.vector_norm(torch.stack([norms[label] for label in norms if label in rest]))
            self.grad_scale = (norm / self._clipping).clamp(min=1.0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update every parameter that has a gradient; takes no closure.

        It is collective where ZeRO cut matrices.
        """
        groups = self.param_groups
        rest = [group for group in groups if group["kind"] != "muon"]
        if rest:
            self.param_groups = rest
            try:
                super().step()
            finally:
                self.param_groups = groups
        for group in groups:
            if group["kind"] == "muon":
                self._update([parameter for parameter in group["params"] if parameter.grad is not None], group)

    def _update(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        if not parameters:
            return
        found = None if self.found_inf is None else self.found_inf.to(parameters[0].device)
        if skipped(found):
            return
        masked = found is not None and found.device.type != "cpu"
        moments, updates = [], []
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            held = state["momentum_buffer"]
            gradient, share = parameter.grad.to(held.dtype), 1.0 - self._momentum
            moments.append(torch.lerp(held, gradient, share) if masked else held.lerp_(gradient, share))
            updates.append(torch.lerp(gradient, moments[-1], self._momentum).to(ARITHMETIC))
        kept = 1.0 - group["lr"] * group["weight_decay"]
        updates = self._orthogonal(parameters, updates)
        for parameter, moment, update in zip(parameters, moments, updates, strict=True):
            if masked:
                keep_where(found, self.state[parameter]["momentum_buffer"], moment)
                keep_where(found, parameter, (parameter * kept).add_(update, alpha=-group["lr"]))
            else:
                parameter.mul_(kept).add_(update, alpha=-group["lr"])

    def _orthogonal(self, parameters: list[torch.Tensor], updates: list[torch.Tensor]) -> list[torch.Tensor]:
        cut = [self._sharings.get(parameter) for parameter in parameters]
        matrices = [
            sharing.collect(update) if sharing else [update] for sharing, update in zip(cut, updates, strict=True)
        ]
        made = iter(orthogonalize([matrix for some in matrices for matrix in some], self._steps))
        results = []
        for sharing, some, update in zip(cut, matrices, updates, strict=True):
            whole = [next(made) for _ in some]
            results.append(sharing.hand_out(whole, update) if sharing else whole[0])
        return results


def orthogonalize(matrices: list[torch.Tensor], steps: int) -> list[torch.Tensor]:
    """Muon's update of each matrix, in bf16.

    The matrix's orthogonal factor times max(1, rows / columns)^0.5.

    The last two axes are rows and columns; earlier axes count separate matrices. Matrices of one size are computed
    together, which makes many small ones fast.
    """
    by_size = defaultdict(list)
    for index, matrix in enumerate(matrices):
        rows, columns = matrix.shape[-2:]
        flat = matrix.reshape(-1, rows, columns)
        by_size[min(rows, columns), max(rows, columns)].append((index, flat.mT if rows > columns else flat))
    results = list(matrices)
    for (short, long), members in by_size.items():
        together = torch.cat([flat for _, flat in members])
        made = together.split(max(1, _BATCH_BYTES // (2 * short * long)))
        made = torch.cat([newton_schulz(batch, steps) for batch in made])
        counts = [flat.shape[0] for _, flat in members]
        for (index, _), part in zip(members, made.split(counts), strict=True):
            rows, columns = matrices[index].shape[-2:]
            part = part.mT * (rows / columns) ** 0.5 if rows > columns else part
            results[index] = part.reshape(matrices[index].shape)
    return results


def newton_schulz(matrices: torch.Tensor, steps: int) -> torch.Tensor:
    """Orthogonalise a batch [n, r, c], r <= c, in bf16.

    The result is about U V^T of each U S V^T (Jordan et al. 2024).

    It is a quintic iteration of matrix products alone that brings all singular values to within about 0.3 of one.
    """
    held = matrices.to(ARITHMETIC)
    norms = torch.linalg.vector_norm(held, dim=(-2, -1), keepdim=True)
    held = held / (norms + 1e-7).to(held.dtype)
    other = torch.empty_like(held)
    gram = held.new_empty(held.shape[0], held.shape[1], held.shape[1])
    polynomial = torch.empty_like(gram)
    for _ in range(steps):
        torch.bmm(held, held.mT, out=gram)
        torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C, out=polynomial)
        torch.baddbmm(held, polynomial, held, beta=_A, out=other)
        held, other = other, held
    return held
