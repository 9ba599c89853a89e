"""Engine overhead on one rank: ours, DeepSpeed's own, and torch alone, in turn in one process.

A whole step of one row, ours against the same model with torch's own update; and the update alone, from the gradients
that autograd left to new bf16 weights: sums in fp32, norms, clipping, fused AdamW, the copy back. On one thread, by its
own clock, so neighbours hardly count.
"""

from __future__ import annotations

import statistics
import time
import tomllib
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measures.goals import Goal, figure
from benchmarks.measures.training.training_speed import GPT
from pretrain.config.training import EngineConfig, TrainRecipe
from pretrain.distributed.process_group import Ranks, join
from pretrain.engine.engine import Engine, open_engine
from pretrain.engine.step import accumulate_in_one_pass
from pretrain.model.decoder import Batch
from pretrain.model.init import initial_weight


def update(quick: bool) -> list[Goal]:
    """Milliseconds of each, and what ours adds to torch alone as a share of a step's arithmetic; the GPT of `speed`."""
    rounds = 20 if quick else 60
    torch.set_num_threads(1)
    engine, batch, step = _engine()
    parameters = [parameter for _, parameter in engine.parameters()]
    gradients = [torch.randn_like(parameter) * 1e-3 for parameter in parameters]
    ways = {"torch": _torch(parameters, gradients), "ours": _ours(engine, parameters, gradients)}
    ways["deepspeed"] = _theirs(engine, parameters, gradients)
    ways |= {"step_of_torch": _bare_step(engine, batch, ways["torch"]), "step_of_ours": _own_step(engine, batch)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 2):
        for name, way in ways.items():
            taken = way()
            if number >= 2:
                seconds[name].append(taken)
    pairs = {"update": ("ours", "torch"), "engine": ("step_of_ours", "step_of_torch")}
    added = {
        name: statistics.median(a - b for a, b in zip(seconds[ours], seconds[bare], strict=True))
        for name, (ours, bare) in pairs.items()
    }
    goals = [Goal(f"training_{name}_tax_share_of_a_step", taken / step, 0.02, "<=") for name, taken in added.items()]
    return goals + [
        figure(f"training_update_ms_{name}", 1000 * statistics.median(all_)) for name, all_ in seconds.items()
    ]


def _engine() -> tuple[Engine, Batch, float]:
    """The engine of `speed`'s GPT at stage 1, one row, and the seconds of a forward and backward pass of 16 rows."""
    raw = tomllib.loads(GPT)
    recipe = TrainRecipe.model_validate({section: raw[section] for section in ("model", "optim", "train")})
    ranks, settings = Ranks(), EngineConfig(micro_batch_size=16, threads=1)
    weight = lambda name, shape: initial_weight(name, shape, recipe.model, 1)  # noqa: E731
    engine = open_engine(recipe, settings, 257, ranks, join(ranks, 600.0, "cpu"), weight)
    shape = (16, recipe.train.sequence_length)
    tokens, places = torch.randint(0, 256, shape), torch.arange(shape[1], dtype=torch.int32).expand(shape).contiguous()
    batch, taken = Batch(tokens, tokens, torch.zeros(shape, dtype=torch.int32), places), []
    for _ in range(4):
        began = time.thread_time()
        engine.backward(engine.forward(batch)[0], tokens.numel(), last=True)
        taken.append(time.thread_time() - began)
        engine.update(1.0, torch.zeros(()))
    return engine, Batch(tokens[:1], tokens[:1], batch.segments[:1], places[:1]), min(taken)


def _torch(parameters: list[Any], gradients: list[torch.Tensor]) -> Callable[[], float]:
    masters = [torch.nn.Parameter(parameter.detach().float()) for parameter in parameters]
    optimizer = torch.optim.AdamW(masters, lr=1e-5, fused=True)

    def way() -> float:
        began = time.thread_time()
        for master, gradient in zip(masters, gradients, strict=True):
            master.grad = gradient.float()
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(parameters, masters, strict=True):
                parameter.copy_(master)
                master.grad = None
        return time.thread_time() - began

    return way


def _ours(engine: Engine, parameters: list[Any], gradients: list[torch.Tensor]) -> Callable[[], float]:
    def way() -> float:
        accumulate_in_one_pass(engine.deepspeed.optimizer)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()  # autograd hands its own over: not counted
        began = time.thread_time()
        engine.deepspeed.optimizer.backward_epilogue()
        engine.update(1.0, torch.zeros(()))
        return time.thread_time() - began

    return way


def _theirs(engine: Engine, parameters: list[Any], gradients: list[torch.Tensor]) -> Callable[[], float]:
    """Its own methods, its sum over one rank, and the gradients that autograd adds to what it has set to zero."""
    optimizer = engine.deepspeed.optimizer

    def way() -> float:
        for name in ("update_hp_grads", "clear_hp_grads"):
            vars(optimizer).pop(name, None)
        optimizer.clear_hp_grads()
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        began = time.thread_time()
        optimizer.backward_prologue()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad.add_(gradient)
        optimizer.backward_epilogue()
        engine.deepspeed.allreduce_gradients()
        engine.update(1.0, torch.zeros(()))
        return time.thread_time() - began

    return way


def _own_step(engine: Engine, batch: Batch) -> Callable[[], float]:
    def way() -> float:
        accumulate_in_one_pass(engine.deepspeed.optimizer)
        began = time.thread_time()
        engine.backward(engine.forward(batch)[0], batch.tokens.numel(), last=True)
        engine.update(1.0, torch.zeros(()))
        return time.thread_time() - began

    return way


def _bare_step(engine: Engine, batch: Batch, update: Callable[[], float]) -> Callable[[], float]:
    """The passes through the model itself, without DeepSpeed's `forward` and `backward`, and torch's own update."""
    model, columns = engine.deepspeed.module, (batch.tokens, batch.targets, batch.segments, batch.positions)

    def way() -> float:
        for parameter in model.parameters():
            parameter.grad = None
        began = time.thread_time()
        (model(*columns)[0] / batch.tokens.numel()).backward()
        return time.thread_time() - began + update()

    return way
