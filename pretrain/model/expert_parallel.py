"""Expert parallelism: the experts of each layer are distributed over ranks (arXiv:2006.16668).

Each rank computes its own experts for the tokens of all ranks of its group:

    choices of this rank, sorted by expert -> exchange -> rows for this rank's experts, sorted by expert
                                           <- exchange <- their outputs

No token is dropped, so what ranks send differs in each layer. Price: two exchanges per layer and pass, and one wait of
the host per layer in the forward pass (again where a block is recomputed), for the numbers of rows; gradients travel
back by the same numbers, without a wait. On CPU (gloo) the host waits for each exchange too. Each buffer of an exchange
is freed once it is read, so at a balanced load a layer's peak memory is that of an undivided one (`memory.py`
counts no more); a rank whose experts get more rows than the mean needs more for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd

_EXPERT = re.compile(r"\.mlp\.experts\.\d+\.")
Shapes = tuple[tuple[str, torch.Size], ...]


@dataclass(frozen=True)
class ExpertParts:
    """Distribution of each layer's experts over ranks."""

    size: int = 1
    """Ranks that hold the experts of a layer among them."""
    rank: int = 0
    """This rank's number among them: it holds the experts `rank` x n to `rank` x n + n - 1, n = experts / size."""
    group: Any = None
    """Process group of these ranks."""
    replicas: Any = None
    """Process group of the ranks that hold the same experts."""


def is_expert(name: str) -> bool:
    """Return whether a parameter belongs to one expert."""
    return _EXPERT.search(name) is not None


def split_experts(model: nn.Module, parts: ExpertParts) -> Shapes:
    """Keep this rank's experts of each layer.

    Parameters keep their names. It returns the names and shapes of the whole model.
    """
    shapes = tuple((name, parameter.shape) for name, parameter in model.named_parameters())
    for layer in model.model.layers:
        mixture = layer.mlp
        count = len(mixture.experts) // parts.size
        own = range(parts.rank * count, (parts.rank + 1) * count)
        mixture.experts = nn.ModuleDict({str(number): mixture.experts[number] for number in own})
        mixture.group = parts.group
    return shapes


def computed_by_owners(
    tokens: torch.Tensor,
    sources: torch.Tensor,
    counts: torch.Tensor,
    group: Any,
    compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Outputs of experts that the ranks of `group` hold. Collective.

    Args:
        tokens: [T, hidden].
        sources: int64 [N], the token of each choice; choices are sorted by expert.
        counts: int64 [experts], choices of each.
        group: ranks that hold equal numbers of consecutive experts, in their order.
        compute: (rows sorted by expert [M, hidden], rows of each of this rank's experts) -> [M, hidden].

    Returns:
        [N, hidden], in the order of `sources`.
    """
    size = distributed.get_world_size(group)
    sent = counts.view(size, -1)
    received = torch.empty_like(sent)
    distributed.all_to_all_single(received, sent, group=group)
    leaving, arriving = torch.stack([sent.sum(1), received.sum(1)]).tolist()  # the host waits here
    # No name keeps a buffer that only the next line reads: autograd keeps none of them either.
    arrived = all_to_all_single_autograd(tokens[sources], arriving, leaving, group)
    # They are sorted by rank, then by expert; the products need them sorted by expert.
    numbers = torch.arange(sent.shape[1], device=tokens.device).repeat(size)
    order = numbers.repeat_interleave(received.flatten(), output_size=sum(arriving)).argsort(stable=True)
    sorted_rows = arrived[order]
    del arrived
    outputs = compute(sorted_rows, received.sum(0))[order.argsort()]
    return all_to_all_single_autograd(outputs, leaving, arriving, group)
