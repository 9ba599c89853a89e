"""A model that uses its modules twice in a step, trained by the engine and by torch alone: `gradient_errors`.

Plain descent at a rate of 1 moves the masters by the gradient, so the masters after two steps show both gradients, at
any stage. Torch alone computes them on one rank, micro batch by micro batch, with fp32 masters and fp32 sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig
from pretrain.config.training import EngineConfig, TrainConfig, TrainRecipe
from pretrain.distributed.process_group import join, read_ranks
from pretrain.engine import deepspeed_config
from pretrain.engine import engine as door
from pretrain.engine.state import full_state
from pretrain.model.decoder import Decoder
from pretrain.model.init import initial_weight
from tests.pretrain.engine.test_engine_state import LENGTH, MICRO, ROWS, VOCABULARY, batches

STEPS = 2
MODEL = ModelConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    max_position_embeddings=LENGTH, tie_word_embeddings=True,
)  # fmt: skip
Masters = dict[str, torch.Tensor]


class Repeating(Decoder):
    """Student of one block that is every layer, with two passes, tied embeddings, a head used twice, a frozen teacher.

    The second pass reads the rows backwards. The head predicts the next token, and from the same hidden states the one
    after it.
    """

    repeats_blocks = True

    def __init__(self, config: ModelConfig, *given: Any) -> None:
        super().__init__(config, *given)
        self.model.layers = nn.ModuleList([self.model.layers[0]] * config.num_hidden_layers)
        self.teacher = Decoder(config, *given)
        self.teacher.requires_grad_(False)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Objective and nats, as those of a decoder."""
        hidden, _ = self.model(tokens, *given)
        objective, nats = self.lm_head(hidden, targets)
        objective = objective + self.lm_head(hidden[:, :-1], targets[:, 1:])[0]
        with torch.no_grad():
            aim, _ = self.teacher.model(tokens, *given)
        objective = objective + (hidden.float() - aim.float()).square().sum()
        return objective + super().forward(tokens.flip(1), targets.flip(1), *given)[0], nats


Case = tuple[str, int, str]
"""Precision, ZeRO stage, activation checkpointing."""
CASES: tuple[Case, ...] = tuple(
    (precision, stage, kept)
    for precision in ("fp32", "bf16")
    for stage in range(4)
    for kept in ("none", "full")
    if (precision, stage) != ("bf16", 0)
)
"""Without bf16 at stage 0, which is refused (`compatibility.py`)."""


def drawn(name: str, shape: torch.Size) -> torch.Tensor:
    """Initial weights that bf16 holds exactly: DeepSpeed's masters begin as the rounded weights."""
    return initial_weight(name, shape, MODEL, 0).bfloat16().float()


def descent(groups: list[dict[str, Any]], config: OptimConfig, folder: Path) -> torch.optim.Optimizer:
    """Plain gradient descent, in place of `make_optimizer`."""
    for group in groups:
        group |= {"kind": "descent", "moments": ()}
    return torch.optim.SGD(groups, lr=config.learning_rate, fused=True)  # it knows `found_inf`


def opened(made: type[Decoder], case: Case) -> door.Engine:
    """Engine of a model that descends at a rate of 1."""
    precision, stage, kept = case
    optim = OptimConfig(optimizer="lion", learning_rate=1.0, weight_decay=0.0, gradient_clipping=0.0)
    train = TrainConfig(sequence_length=LENGTH, global_batch_size=ROWS, steps=STEPS, precision=precision)
    recipe, ranks = TrainRecipe(model=MODEL, optim=optim, train=train), read_ranks()
    settings = EngineConfig(zero_stage=stage, micro_batch_size=MICRO, threads=1, activation_checkpointing=kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deepspeed_config, "BUCKET", 600)  # elements: every backward pass fills several buckets
        patch.setattr(door, "Decoder", made)
        patch.setattr(door, "make_optimizer", descent)
        return door.open_engine(recipe, settings, VOCABULARY, ranks, join(ranks, 60.0), drawn)


def by_the_engine(case: Case, made: type[Decoder] = Repeating) -> Masters:
    """Masters after `STEPS` steps, and under "norms" the gradients' norms."""
    engine, norms = opened(made, case), []
    for step in range(1, STEPS + 1):
        mine = batches(step)
        for batch in mine:
            objective, _ = engine.forward(batch)
            engine.backward(objective, ROWS * LENGTH, last=batch is mine[-1])
        norms.append(engine.update(1.0, torch.zeros(()))[1][0])
    return {"norms": torch.stack(norms), **{name: values["master"].clone() for name, values in full_state(engine)}}


def by_torch(precision: str, made: type[Decoder] = Repeating) -> Masters:
    """The same without DeepSpeed, on one rank."""
    model = made(MODEL, VOCABULARY, "none", "auto")

    def objectives(step: int) -> Iterator[torch.Tensor]:
        for batch in batches(step, share=False):
            yield model(batch.tokens, batch.targets, batch.segments, batch.positions)[0] / (ROWS * LENGTH)

    masters, norms = descend(model, precision, drawn, objectives)
    return {"norms": torch.stack(norms), **masters}


def descend(
    model: nn.Module,
    precision: str,
    initial: Callable[[str, torch.Size], torch.Tensor],
    objectives: Callable[[int], Iterable[torch.Tensor]],
) -> tuple[Masters, list[torch.Tensor]]:
    """Plain descent by torch alone: masters of what learns after `STEPS` steps, and the norm of each step's gradient.

    `objectives` are those of a step's micro batches; each is computed after the backward pass of the one before.
    """
    learned = {name: value for name, value in model.named_parameters() if value.requires_grad}
    masters, norms = {name: initial(name, value.shape) for name, value in model.named_parameters()}, []
    if precision == "bf16":
        model.bfloat16()
    for step in range(1, STEPS + 1):
        sums = {name: torch.zeros_like(masters[name]) for name in learned}
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(masters[name])
        for objective in objectives(step):
            objective.backward()
            for name, value in learned.items():
                sums[name] += value.grad.float()
                value.grad = None
        norms.append(torch.stack([total.norm() for total in sums.values()]).norm())
        masters |= {name: masters[name] - total for name, total in sums.items()}
    return {name: masters[name] for name in learned}, norms


def gradient_errors(
    cases: Iterable[Case] = CASES, made_for: Callable[[str], type[Decoder]] = lambda precision: Repeating
) -> dict[str, float]:
    """By case, the largest error of a parameter's movement, and of the norms, as a share of what torch alone gives."""
    cases, found = list(cases), {}
    models = {precision: made_for(precision) for precision in dict.fromkeys(case[0] for case in cases)}
    expected = {precision: by_torch(precision, made) for precision, made in models.items()}
    for case in cases:
        ours, theirs = by_the_engine(case, models[case[0]]), expected[case[0]]
        assert ours.keys() == theirs.keys(), (case, ours.keys() ^ theirs.keys())
        start = {name: drawn(name, value.shape) for name, value in theirs.items() if name != "norms"}
        start["norms"] = torch.zeros(STEPS)
        errors = [float((ours[name] - value).norm() / (value - start[name]).norm()) for name, value in theirs.items()]
        found[" ".join(map(str, case))] = max(errors)
    return found
