"""Training of one model of the experiment, and its measurements.

The loop is plain torch on the CPU in fp32, because the trainer's engine holds one kind of model; rows, their order,
loss, optimizer, groups and schedule are the trainer's. Times count steps alone: neither evaluations nor the building of
the model.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from data_pipeline.tokens.token_shards import TokenShard
from governance.errors import PipelineError
from pretrain.config.optim import OptimConfig
from pretrain.data.batch_size import BatchSizes
from pretrain.data.dataset import Rows, spread
from pretrain.data.sampler import RowSampler
from pretrain.experiments.claims_config import (
    Architecture,
    ClaimsConfig,
    LanguageTraining,
    ModelTraining,
    RecallTraining,
    Shape,
)
from pretrain.experiments.planted_recall import (
    FactForm,
    Integers,
    longest_distance,
    plant,
    row_length,
    trained_distances,
)
from pretrain.experiments.recurrent import LanguageModel, build
from pretrain.optim.optimizers import make_optimizer, parameter_groups, rate_factor

_WARM_UP = 10  # a tenth of the steps
_DECAY, _CLIP = 0.1, 1.0
_EVALUATED_TOKENS = 16_384  # tokens evaluated at once
_MAX_ROWS = 50  # times `rows`, until each distance has a question
_RECALL_SEED = 1 << 20  # seeds the rows on which recall is measured: no training has them
Advance = Callable[..., None]


@contextlib.contextmanager
def arithmetic(threads: int) -> Iterator[None]:
    """Fix the number of threads, and with it the order of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Learner:
    """A model with its optimizer and schedule."""

    def __init__(self, model: LanguageModel, recipe: ModelTraining, steps: int) -> None:
        self.model, self.steps, self.step, self.seconds = model, steps, 0, 0.0
        self.config = OptimConfig(
            optimizer=recipe.optimizer, learning_rate=recipe.learning_rate, weight_decay=_DECAY,
            gradient_clipping=_CLIP, schedule="linear", warmup_steps=max(1, steps // _WARM_UP), min_lr_ratio=0.02,
        )  # fmt: skip
        groups = parameter_groups(list(model.named_parameters()), self.config, lambda parameter: parameter.shape)
        self.optimizer = make_optimizer(groups, self.config)

    def learn(self, tokens: torch.Tensor, targets: torch.Tensor) -> bool:
        """One step; False where the loss is not finite."""
        begun = time.monotonic()
        self.step += 1
        objective, nats = self.model.nats(tokens, targets)
        (objective / max(1, len(nats))).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
        factor = rate_factor(self.step, self.steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        finite = math.isfinite(objective.item())
        self.seconds += time.monotonic() - begun
        return finite


def train_language(
    recipe: LanguageTraining, rows: Rows, validation: Rows, advance: Advance
) -> tuple[dict[str, Any], list[float]]:
    """Learning curve, loss by position, and seconds at each point.

    A loss of None: the training diverged.
    """
    model = build(recipe.architecture, recipe.shape, rows.vocabulary_size, recipe.seed)
    sizes = BatchSizes((0,), (0,), (recipe.batch_rows,))
    learner, order = _Learner(model, recipe, recipe.steps), RowSampler(rows.count, recipe.seed, sizes)
    points = {-(-recipe.steps * index // recipe.evaluations) for index in range(1, recipe.evaluations + 1)}
    nats, counts = by_position(model, validation, recipe)
    curve, seconds = [_point(0, nats, counts, recipe)], [0.0]
    for step in range(1, recipe.steps + 1):
        batch = rows.batch(order.rows(step))
        finite = learner.learn(batch.tokens, batch.targets)
        advance(batch.tokens.numel())
        if step in points or not finite:
            nats, counts = by_position(model, validation, recipe)
            curve.append(_point(step, nats, counts, recipe))
            seconds.append(round(learner.seconds, 4))
        if not finite:
            curve[-1]["loss"] = None
            break
    places = [
        {"from": low, "to": high, "targets": int(counts[low:high].sum()),
         "loss": round(float(nats[low:high].sum() / counts[low:high].sum()), 6)}
        for low, high in position_ranges(recipe.sequence_length)
        if counts[low:high].sum() and math.isfinite(nats[low:high].sum())
    ]  # fmt: skip
    return {"curve": curve, "positions": places}, seconds


def _point(step: int, nats: Any, counts: Any, recipe: LanguageTraining) -> dict[str, Any]:
    loss = float(nats.sum() / counts.sum())
    tokens = step * recipe.batch_rows * recipe.sequence_length
    return {"step": step, "tokens": tokens, "loss": round(loss, 6) if math.isfinite(loss) else None}


def position_ranges(length: int) -> list[tuple[int, int]]:
    """Ranges of positions, each half of the remaining ones before it."""
    edges = [length >> power for power in range(length.bit_length(), -1, -1)]
    return list(itertools.pairwise(edges))


@torch.no_grad()
def by_position(model: LanguageModel, rows: Rows, recipe: LanguageTraining) -> tuple[Any, Any]:
    """Nats and targets of the validation rows, summed by position."""
    length = recipe.sequence_length
    nats, counts = np.zeros(length), np.zeros(length, np.int64)
    numbers, most = spread(rows.count, recipe.validation_rows), max(1, _EVALUATED_TOKENS // length)
    for start in range(0, len(numbers), most):
        batch = rows.batch(numbers[start : start + most])
        _, found = model.nats(batch.tokens, batch.targets)
        places = (batch.targets >= 0).nonzero()[:, 1].numpy()
        np.add.at(nats, places, found.double().numpy())
        np.add.at(counts, places, 1)
    return nats, counts


def train_recall(
    recipe: RecallTraining, shards: Sequence[TokenShard], advance: Advance
) -> tuple[dict[str, Any], list[float]]:
    """Recall by distance after a training on planted facts, and its seconds.

    First the rows grow to the longest distance, then they vary up to it, alike for all models: a recurrent network
    learns no long distance that it has not met as a short one.
    """
    config, draw = recipe.recall, np.random.default_rng(recipe.seed)
    form = FactForm(shards[0].vocabulary_size, config.slots, config.values)
    model = build(recipe.architecture, recipe.shape, form.vocabulary_size, recipe.seed)
    learner = _Learner(model, recipe, config.steps)
    for step in range(1, config.steps + 1):
        longest = longest_distance(step, config.steps, config.distances)
        length = row_length(longest)
        text = _text(shards, max(1, config.batch_tokens // length), length, draw)
        tokens, targets, _ = plant(text, form, trained_distances(longest), draw)
        finite = learner.learn(torch.from_numpy(tokens), torch.from_numpy(targets))
        advance(tokens.size)
        if not finite:
            return {"recall": None}, [round(learner.seconds, 4)]
    right = dict.fromkeys(config.distances, 0)
    asked = dict.fromkeys(config.distances, 0)
    draw = np.random.default_rng(_RECALL_SEED + recipe.seed)
    length = row_length(config.distances[-1])
    with torch.no_grad():
        for row in range(_MAX_ROWS * config.rows):
            if row >= config.rows and all(asked.values()):
                break
            tokens, targets, distances = plant(_text(shards, 1, length, draw), form, config.distances, draw)
            wanted = torch.from_numpy(targets) >= 0
            hidden = model(torch.from_numpy(tokens))[wanted]
            logits = (hidden @ model.embed_tokens.weight.T)[:, : form.vocabulary_size]
            hits = logits.argmax(-1).numpy() == targets[targets >= 0]
            for distance in config.distances:
                mine = distances[targets >= 0] == distance
                right[distance] += int(hits[mine].sum())
                asked[distance] += int(mine.sum())
    if unasked := [distance for distance, count in asked.items() if not count]:
        raise PipelineError(
            f"claims.recall: no row has a question at {unasked[0]} tokens; raise claims.recall.rows or slots, or leave "
            f"that distance out"
        )
    rows = [{"distance": distance, "asked": asked[distance], "right": right[distance]} for distance in config.distances]
    return {"recall": rows}, [round(learner.seconds, 4)]


def _text(shards: Sequence[TokenShard], rows: int, length: int, draw: np.random.Generator) -> Integers:
    """Stretches of the run's text; a short shard is repeated."""
    found = []
    for _ in range(rows):
        tokens = shards[int(draw.integers(len(shards)))].tokens
        start = int(draw.integers(max(1, len(tokens) - length)))
        found.append(np.resize(np.asarray(tokens[start : start + length], np.int64), length))
    return np.stack(found)


def seconds_of(
    config: ClaimsConfig, architecture: Architecture, shape: Shape, vocabulary: int, *, planted: bool
) -> float:
    """Expected seconds of all trainings of one model.

    They follow from a few steps on random tokens. Evaluations count as the forward pass that they are, a third of a
    step.
    """
    draw = torch.Generator().manual_seed(0)

    def step_seconds(rows: int, length: int, size: int, asked: float = 1.0) -> float:
        recipe = LanguageTraining(
            architecture=architecture, shape=shape, sequence_length=length, batch_rows=rows, steps=10, evaluations=1,
            validation_rows=1, optimizer=config.optimizer, learning_rate=1e-3, seed=0,
        )  # fmt: skip
        learner = _Learner(build(architecture, shape, size, 0), recipe, 10)
        tokens = torch.randint(vocabulary, (rows, length), generator=draw)
        targets = tokens.masked_fill(torch.rand(tokens.shape, generator=draw) > asked, -100)
        learner.learn(tokens, targets)
        before = learner.seconds
        learner.learn(tokens, targets)
        return learner.seconds - before

    one = step_seconds(config.batch_rows, config.sequence_length, vocabulary)
    tried = len(config.tried_rates)
    trainings = tried + config.seeds * len(config.budgets)
    steps = tried * config.steps(config.budgets[0]) + config.seeds * sum(map(config.steps, config.budgets))
    passes = trainings * (config.evaluations + 1) * config.validation_rows / config.batch_rows
    seconds = one * (steps + passes / 3)
    if planted:
        recall = config.recall
        form = FactForm(vocabulary, recall.slots, recall.values)
        lengths = [
            row_length(longest_distance(step, recall.steps, recall.distances)) for step in range(1, recall.steps + 1)
        ]
        longest = row_length(recall.distances[-1])
        known = {length: step_seconds(max(1, recall.batch_tokens // length), length, form.vocabulary_size, 0.1)
                 for length in {min(lengths), longest}}  # fmt: skip
        rate = {length: known[length] / (max(1, recall.batch_tokens // length) * length) for length in known}
        for length in lengths:  # a token's time grows with the row's length, from the shortest to the longest
            share = (length - min(lengths)) / max(1, longest - min(lengths))
            a_token = rate[min(lengths)] + share * (rate[longest] - rate[min(lengths)])
            seconds += config.seeds * a_token * max(1, recall.batch_tokens // length) * length
        seconds += config.seeds * recall.rows * known[longest] / 3
    return seconds
