"""Sums of a step in an order that no rank decides (`engine.rank_invariant`).

On any number of ranks and at any ZeRO stage the bits are equal. A sum of floats depends on its order. Here that is a
binary tree over the step's micro batches, whose number and size the settings fix:

    T(m0, m1, ..., mk) = T(m0, m2, ...) + T(m1, m3, ...) while their number is even, else m0 + m1 + ... + mk

Rank r of N = 2^n ranks reads micro batches r, r + N, r + 2N, ..., which are a subtree. The ranks' sums are added in
pairs, r and r ^ N/2 first, r and r ^ 1 last: two summands have no order. So each rank has the whole gradient, whose
norms it computes parameter by parameter; it updates what ZeRO gave it. DeepSpeed gathers weights and hands out copies,
and neither reduces nor clips. AdamW is torch's plain one, because the fused one computes the last elements of a tensor
otherwise, and where a tensor ends depends on the ranks.

Price: a rank holds the whole gradient in fp32 2 + log2(its micro batches) times, and sends it log2(N) times (a ring:
2 (N - 1) / N times). `benchmarks/governance.py` measures the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from pretrain.engine.fragments import publish_masters
from pretrain.engine.state import flats, fragments, full_shape, optimizer_of
from pretrain.optim.muon import Muon

if TYPE_CHECKING:
    from pretrain.engine.wrapped import Wrapped

T = TypeVar("T")
_ABOVE_ZERO = 1e-6  # added to a norm before it divides, as in `step.py`


def tree_order(items: Sequence[T]) -> list[T]:
    """The leaves of the tree from left to right."""
    return [*tree_order(items[::2]), *tree_order(items[1::2])] if items and len(items) % 2 == 0 else list(items)


class TreeSum:
    """Sum of tensors that come in the tree's order.

    It takes them over: the first ones are overwritten.
    """

    def __init__(self, leaves: int) -> None:
        self._run = leaves // (leaves & -leaves)
        self._parts: list[torch.Tensor] = []
        self._count = 0

    def add(self, leaf: torch.Tensor) -> None:
        """Add the next leaf, and join the subtrees that are whole now."""
        if self._count % self._run:
            self._parts[-1].add_(leaf)
        else:
            self._parts.append(leaf)
        self._count += 1
        runs, rest = divmod(self._count, self._run)
        while not rest and runs % 2 == 0:
            right = self._parts.pop()
            self._parts[-1].add_(right)
            runs //= 2

    def total(self) -> torch.Tensor:
        """The sum of all leaves."""
        [whole] = self._parts
        return whole


def tree_sum(leaves: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum of tensors in the tree's order."""
    tree = TreeSum(len(leaves))
    for leaf in leaves:
        tree.add(leaf)
    return tree.total()


@dataclass
class FixedOrder:
    """Gradient of a step, as it comes; `open_engine` makes it."""

    named: list[tuple[str, nn.Parameter]]
    pairs: list[Any]
    """Process groups of two, in the order of adding."""
    _places: dict[str, slice] = field(default_factory=dict)
    _leaf: torch.Tensor | None = None
    _missing: set[str] = field(default_factory=set)
    _sum: TreeSum | None = None

    def __post_init__(self) -> None:
        start = 0
        for name, parameter in self.named:
            self._places[name] = slice(start, start := start + full_shape(parameter).numel())
            parameter.register_post_accumulate_grad_hook(lambda held, name=name: self._take(name, held))

    def begin(self, micro_batches: int) -> None:
        """Expect the gradients of this many micro batches, in the tree's order."""
        self._sum = TreeSum(micro_batches)

    def backward(self, deepspeed: Any, objective: torch.Tensor) -> None:
        """Compute a micro batch's gradient, and add it."""
        assert self._sum is not None
        self._leaf = torch.empty(self._places[self.named[-1][0]].stop)
        self._missing = set(self._places)
        deepspeed.backward(objective, scale_wrt_gas=False)
        for name in self._missing:
            self._leaf[self._places[name]].zero_()
        self._sum.add(self._leaf)
        self._leaf = None

    def _take(self, name: str, parameter: nn.Parameter) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is None or self._leaf is None:
            return
        place = self._leaf[self._places[name]]
        if name in self._missing:
            self._missing.discard(name)
            place.copy_(gradient.reshape(-1))
        else:
            place.add_(gradient.reshape(-1))

    def over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place. Collective."""
        for pair in self.pairs:
            torch.distributed.all_reduce(values, group=pair)
        return values

    def gradients(self) -> dict[str, torch.Tensor]:
        """The whole gradient of each parameter, flat. Collective.

        It is called after the step's last micro batch.
        """
        assert self._sum is not None
        whole = self.over_ranks(self._sum.total())
        self._sum = None
        return {name: whole[place] for name, place in self._places.items()}


def rank_pairs(ranks: int) -> list[list[list[int]]]:
    """Pairs of ranks, level by level of the tree."""
    levels = [ranks >> level for level in range(1, ranks.bit_length())]
    return [[[rank, rank ^ apart] for rank in range(ranks) if not rank & apart] for apart in levels]


def take_over(wrapped: Any) -> None:
    """Let DeepSpeed leave gradients alone, and AdamW compute each element alike."""
    zero = wrapped.optimizer
    wrapped.enable_backward_allreduce = False
    for hook in (*getattr(zero, "_grad_acc_hooks", ()), *getattr(zero, "_leaf_module_hooks", ())):
        hook.remove()
    if hasattr(zero, "bf16_groups"):
        zero.update_hp_grads = lambda clear_lp_grads=False: None
    for group in zero.param_groups:
        if "fused" in group:
            group["fused"], group["foreach"] = False, False


def update_in_order(engine: Wrapped, factor: float, skip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`step.update` with the gradients of `FixedOrder`."""
    assert engine.fixed is not None
    gradients = engine.fixed.gradients()
    norms = _norms(engine, gradients)
    norm = torch.linalg.vector_norm(torch.stack([*norms.values()]))
    skipped = torch.maximum(skip, (~torch.isfinite(norm)).float())
    if engine.zero_stage == 3:
        engine.deepspeed.optimizer._partition_all_parameters()
    if not skipped:
        _clip(engine, gradients, norms, norm)
        _update(engine, gradients, factor)
        publish_masters(engine)
    return skipped, torch.stack([norm, *norms.values()]).float()


def _norms(engine: Wrapped, gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """L2 norm of each group's gradient, fp64, added up by parameter."""
    labels = dict.fromkeys(group["label"] for group in optimizer_of(engine).param_groups)
    squares = {label: torch.zeros((), dtype=torch.float64) for label in labels}
    names = engine.parameter_names()
    label_of = {names[member]: group["label"] for _, group, members in flats(engine) for member in members}
    for name, gradient in gradients.items():
        squares[label_of[name]] += torch.linalg.vector_norm(gradient).double().square()
    return {label: square.sqrt() for label, square in squares.items()}


def _clip(
    engine: Wrapped, gradients: dict[str, torch.Tensor], norms: dict[str, torch.Tensor], norm: torch.Tensor
) -> None:
    """Shorten gradients to the norm of `gradient_clipping`.

    With Muon they are those that it leaves to AdamW.
    """
    optimizer, clipped = optimizer_of(engine), [*gradients.values()]
    over = (norm + _ABOVE_ZERO) / engine.clipping if engine.clipping else norm.new_ones(())
    if isinstance(optimizer, Muon):
        optimizer.clip(norms)
        over, optimizer.grad_scale = optimizer.grad_scale if optimizer.grad_scale is not None else over, None
        names = engine.parameter_names()
        rest = [members for _, group, members in flats(engine) if group["kind"] != "muon"]
        clipped = [gradients[names[member]] for members in rest for member in members]
    if over > 1 and clipped:
        torch._foreach_mul_(clipped, float(over.reciprocal()))


def _update(engine: Wrapped, gradients: dict[str, torch.Tensor], factor: float) -> None:
    """Update the masters and moments that this rank owns."""
    optimizer, owned = optimizer_of(engine), fragments(engine)
    listed = [group["params"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["params"], group["lr"] = [], group["base_lr"] * factor
    for flat, group, local in owned:
        group["params"].append(flat)  # DeepSpeed lists none at stage 3
        flat.grad = torch.zeros_like(flat)
        for fragment in local:
            fragment.place(flat.grad).copy_(fragment.cut(gradients[fragment.name]))
    optimizer.step()
    for group, parameters in zip(optimizer.param_groups, listed, strict=True):
        for flat in group["params"]:
            flat.grad = None
        group["params"] = parameters
