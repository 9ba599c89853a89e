"""Coordinate check: growth of activations with the width.

Small models of the run's kind, two layers deep, of one to eight heads, take ten steps on the same tokens with the run's
optimizer at its peak rate. Where activations keep their size from width to width, a rate that is right for one is right
for the others; under a standard parametrisation they grow, and the best rate falls with the width (arXiv:2203.03466,
appendix D.1). It computes in fp32 on the CPU, in seconds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.config.model import ModelConfig
from pretrain.config.training import TrainRecipe
from pretrain.experiments.scaling.ladder import narrowed

if TYPE_CHECKING:
    import torch

    from pretrain.data.dataset import Rows
    from pretrain.model.decoder import Batch

STEPS = 10
LIMIT = 0.5
"""Largest exponent of a rate that transfers: standard parametrisations have about 1, muP about 0."""
_HEADS = (1, 2, 4, 8)
_WIDEST = 1024
_LAYERS, _ROWS, _TOKENS = 2, 4, 128


@dataclass(frozen=True)
class CoordinateCheck:
    """Mean magnitudes of activations after the steps, by width."""

    widths: tuple[int, ...]
    sizes: dict[str, tuple[float, ...]]
    """Part of the model -> magnitude at each width."""
    exponents: dict[str, float]
    """Part -> exponent of the width."""

    @property
    def worst(self) -> str:
        """The part that grows most."""
        return max(self.exponents, key=lambda name: self.exponents[name])

    @property
    def transfers(self) -> bool:
        """Return whether one rate suits all widths."""
        return self.exponents[self.worst] <= LIMIT

    def as_dict(self) -> dict[str, Any]:
        """Values for the report."""
        worst = {"worst": self.worst, "largest": self.exponents[self.worst], "transfers": self.transfers}
        return {**asdict(self), **worst, "steps": STEPS, "limit": LIMIT}


def part_in_words(name: str) -> str:
    """A part of the model, for a reader."""
    block, _, part = name.rpartition(".")
    return {"self_attn": f"attention, block {block}", "mlp": f"feed-forward part, block {block}"}.get(part, name)


def check_widths(model: ModelConfig) -> list[int]:
    """Widths of the check; one, where the model has one head."""
    head = model.hidden_size // model.num_attention_heads
    return [head * count for count in _HEADS if count <= model.num_attention_heads and head * count <= _WIDEST]


def rows_for_check(rows: Rows) -> Batch:
    """First tokens of a few rows."""
    from pretrain.data.dataset import spread
    from pretrain.model.decoder import Batch

    whole = rows.batch(spread(rows.count, _ROWS))
    columns = (whole.tokens, whole.targets, whole.segments, whole.positions)
    return Batch(*(column[:, :_TOKENS].contiguous() for column in columns))


def coordinate_check(
    recipe: TrainRecipe, vocabulary_size: int, batch: Batch, folder: Path = Path()
) -> CoordinateCheck | None:
    """Magnitudes of a run's activations by width.

    None where its model has one head.

    Args:
        recipe: the run.
        vocabulary_size: the data's.
        batch: tokens to learn from.
        folder: where an own optimizer is searched for.
    """
    import numpy as np

    widths = check_widths(recipe.model)
    if len(widths) < 2:
        return None
    found = [_magnitudes(recipe, width, vocabulary_size, batch, folder) for width in widths]
    sizes = {name: tuple(one[name] for one in found) for name in found[0]}
    exponents = {
        name: float(np.polyfit(np.log(widths), np.log(np.maximum(values, 1e-30)), 1)[0])
        for name, values in sizes.items()
    }
    return CoordinateCheck(tuple(widths), sizes, exponents)


def _magnitudes(recipe: TrainRecipe, width: int, vocabulary_size: int, batch: Batch, folder: Path) -> dict[str, float]:
    """Mean magnitude of each part's output after the steps."""
    import torch

    from pretrain.model.decoder import Decoder
    from pretrain.model.init import initial_weight, learning_rate_scale
    from pretrain.optim.optimizers import make_optimizer, parameter_groups

    settings = narrowed(recipe.model, width).model_copy(update={"num_hidden_layers": _LAYERS})
    model, found = Decoder(settings, vocabulary_size), dict[str, float]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_weight(name, parameter.shape, settings, recipe.train.seed))
    scale = functools.partial(learning_rate_scale, config=settings)
    groups = parameter_groups(model.named_parameters(), recipe.optim, lambda parameter: parameter.shape, scale)
    optimizer = make_optimizer(groups, recipe.optim, folder)

    def listen(name: str) -> Callable[..., None]:
        def keep(_module: torch.nn.Module, _inputs: Sequence[Any], out: Any) -> None:
            found[name] = float((out[0] if isinstance(out, tuple) else out).detach().abs().mean())

        return keep

    for name, module in model.named_modules():
        if name.endswith(("self_attn", "mlp")):
            module.register_forward_hook(listen(name.removeprefix("model.layers.")))
    for _ in range(STEPS):
        objective, _ = model(batch.tokens, batch.targets, batch.segments, batch.positions)
        optimizer.zero_grad()
        (objective / max(1, int((batch.targets >= 0).sum()))).backward()
        optimizer.step()
    with torch.no_grad():  # the other parts are read once more, too
        found["logits"] = float(model.logits(batch).abs().mean())
    return found
