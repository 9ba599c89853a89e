"""The loop that an engine is measured against: the run's own model, rows, arithmetic and rates, under torch alone.

Weights are bf16 copies of fp32 masters; bf16 gradients are added up in fp32, clipped by their norm and given to torch's
fused AdamW, and the masters are copied back: what DeepSpeed does for `precision = "bf16"`. Rows are read ahead by one
thread, as in training, and losses are read one step late on CUDA, as there; so what is left between the two is the
engine, and what a run writes down. Both have the same losses to rounding (`tests/benchmarks/test_training_gpu.py`).
`bare_in_turn.py` takes its steps in turn.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from pretrain.config.training import TrainRecipe
from pretrain.data.dataset import Rows, micro_batches
from pretrain.data.loader import read_ahead
from pretrain.data.sampler import sampler_of
from pretrain.model.decoder import Batch, Decoder
from pretrain.model.init import initial_weight, learning_rate_scale
from pretrain.optim.optimizers import make_optimizer, parameter_groups, rate_factor
from pretrain.step_log import Read, read_later


def bare_steps(recipe: TrainRecipe, rows: Rows, micro_rows: int, device: torch.device) -> Iterator[Read]:
    """Take the steps of `recipe`, in passes of `micro_rows` rows; yields what reads each step's loss, nats per token.

    Compiled on CUDA.

    Raises:
        ValueError: the recipe needs arithmetic or an optimizer that this loop does not have.
    """
    train, optim = recipe.train, recipe.optim
    if (train.precision, optim.optimizer) != ("bf16", "adamw"):
        raise ValueError(f"the bare loop knows bf16 and adamw, not {train.precision} and {optim.optimizer}")
    model = _model(recipe, rows.vocabulary_size).to(device)
    weights = dict(model.named_parameters())
    masters = {name: nn.Parameter(weight.detach().float()) for name, weight in weights.items()}
    scale = functools.partial(learning_rate_scale, config=recipe.model)
    optimizer = make_optimizer(parameter_groups(masters.items(), optim, lambda master: master.shape, scale), optim)
    run = torch.compile(model) if device.type == "cuda" else model
    with read_ahead(_reader(recipe, rows, micro_rows, device), range(1, train.steps + 1)) as loader:
        for step, (batches, targets) in enumerate(loader, 1):
            nats = [_add_gradients(run, batch.to(device), targets, weights, masters) for batch in batches]
            torch.nn.utils.clip_grad_norm_(masters.values(), optim.gradient_clipping)
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * rate_factor(step, train.steps, optim)
            optimizer.step()
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(masters[name])
                    masters[name].grad = None
            yield read_later(torch.stack(nats).sum()[None] / targets)


def _model(recipe: TrainRecipe, vocabulary_size: int) -> Decoder:
    """The run's model with its starting weights, in bf16."""
    model = Decoder(recipe.model, vocabulary_size)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_weight(name, parameter.shape, recipe.model, recipe.train.seed))
    return model.bfloat16()


def _reader(
    recipe: TrainRecipe, rows: Rows, micro_rows: int, device: torch.device
) -> Callable[[int], tuple[list[Batch], int]]:
    """Function that returns the micro batches of a step, and the tokens that they predict."""
    order = sampler_of(rows, recipe.train)

    def read(step: int) -> tuple[list[Batch], int]:
        batches = [rows.batch(numbers) for numbers in micro_batches(order.rows(step), micro_rows, 0, 1)]
        targets = sum(int(np.count_nonzero(batch.targets.numpy() >= 0)) for batch in batches)
        return [batch.pinned() for batch in batches] if device.type == "cuda" else batches, targets

    return read


def _add_gradients(
    run: Callable[..., Any],
    batch: Batch,
    targets: int,
    weights: dict[str, nn.Parameter],
    masters: dict[str, nn.Parameter],
) -> torch.Tensor:
    """Forward and backward of a micro batch; the sum of its nats, fp64, on the device."""
    objective, nats = run(batch.tokens, batch.targets, batch.segments, batch.positions)
    (objective * (1.0 / targets)).backward()
    for name, weight in weights.items():
        master, gradient = masters[name], weight.grad
        if gradient is not None:
            master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)
        weight.grad = None
    return nats.double().sum()
