"""The encoder-decoder's gradients at every ZeRO stage equal those of torch alone, dropout and smoothing included."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig
from pretrain.config.training import EngineConfig, TrainConfig, TrainRecipe
from pretrain.data.loader import seeds_of
from pretrain.distributed.process_group import join, read_ranks
from pretrain.encoder_decoder.model_of_pairs import EncoderDecoder
from pretrain.engine import deepspeed_config
from pretrain.engine import engine as door
from pretrain.engine.state import full_state
from pretrain.model.decoder import Batch
from tests.pretrain.encoder_decoder.pair_models import LENGTH, VOCABULARY, drawn_weight, packed, random_pairs, small
from tests.pretrain.engine.repeated_modules import CASES, STEPS, Case, Masters, descend, descent
from tests.pretrain.rank_runs import found_by_ranks

ROWS, MICRO, TOKENS = 8, 2, 64
MODELS = {"fp32": small(dropout=0.1, label_smoothing=0.1), "bf16": small(dropout=0.1, label_smoothing=0.1, bias=False)}
"""In bf16 without biases: DeepSpeed's linear map of stage 3 rounds before it adds them, torch's afterwards."""
FAST = (("bf16", 2, "none"), ("fp32", 1, "none"), ("fp32", 3, "none"))
AGREE = 2e-5
"""Share of a parameter's movement over two steps."""
NOISE = 1.3
"""In bf16 at stage 3 the hooks around each matrix change the order in which gradients of the stream are added, so the
two agree to rounding: the error against fp32 is at most this many times that of torch alone."""


def drawn(name: str, shape: torch.Size) -> torch.Tensor:
    """Values that bf16 holds exactly."""
    return drawn_weight(MODELS["fp32"], 0, name, shape).bfloat16().float()


def batches(step: int, share: bool = True) -> list[Batch]:
    pairs = random_pairs(step, 3 * ROWS, longest=3)
    rows = [pairs[3 * row : 3 * row + 3] for row in range(ROWS)]
    rank, ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if share else (0, 1)
    found = []
    for first in list(range(0, ROWS, MICRO))[rank::ranks]:
        batch = packed(rows[first : first + MICRO], LENGTH)
        seeds = seeds_of(7, range(step * ROWS + first, step * ROWS + first + MICRO))
        found.append(Batch(batch.tokens, batch.targets, batch.segments, batch.positions, seeds=seeds))
    return found


def by_the_engine(case: Case) -> Masters:
    precision, stage, kept = case
    optim = OptimConfig(optimizer="lion", learning_rate=1.0, weight_decay=0.0, gradient_clipping=0.0)
    train = TrainConfig(sequence_length=LENGTH, global_batch_size=ROWS, steps=STEPS, precision=precision)
    settings = EngineConfig(zero_stage=stage, micro_batch_size=MICRO, threads=1, activation_checkpointing=kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deepspeed_config, "BUCKET", 600)  # elements: every backward pass fills several buckets
        patch.setattr(door, "make_optimizer", descent)
        recipe = TrainRecipe(model=MODELS[precision], optim=optim, train=train)
        engine = door.open_engine(recipe, settings, VOCABULARY, read_ranks(), join(read_ranks(), 60.0), drawn)
    for step in range(1, STEPS + 1):
        mine = batches(step)
        for batch in mine:
            objective, _ = engine.forward(batch)
            engine.backward(objective, TOKENS, last=batch is mine[-1])
        engine.update(1.0, torch.zeros(()))
    return {name: values["master"].clone() for name, values in full_state(engine)}


def by_torch(precision: str, config: ModelConfig | None = None) -> Masters:
    model = EncoderDecoder(config or MODELS[precision], VOCABULARY)

    def objectives(step: int) -> Iterator[torch.Tensor]:
        for batch in batches(step, share=False):
            yield model(batch.tokens, batch.targets, batch.segments, batch.positions, seeds=batch.seeds)[0] / TOKENS

    return descend(model, precision, drawn, objectives)[0]


def gradient_errors(cases: tuple[Case, ...] = CASES) -> dict[str, float]:
    found, expected = {}, {precision: by_torch(precision) for precision in {case[0] for case in cases}}
    exact = by_torch("fp32", MODELS["bf16"])
    for case in cases:
        ours, theirs = by_the_engine(case), expected[case[0]]
        assert ours.keys() == theirs.keys()
        if case[:2] == ("bf16", 3):
            far = [sum(float((one[name] - value).square().sum()) for name, value in exact.items()) ** 0.5
                   for one in (ours, theirs)]  # fmt: skip
            found[f"{' '.join(case[::2])} noise"] = far[0] / far[1]
            continue
        moved = {name: (value - drawn(name, value.shape)).norm() for name, value in theirs.items()}
        assert all(float(distance) > 0 for distance in moved.values())
        found[" ".join(map(str, case))] = max(
            float((ours[name] - value).norm() / moved[name]) for name, value in theirs.items()
        )
    return found


def check(errors: dict[str, float]) -> None:
    bounds = {case: NOISE if case.endswith("noise") else AGREE for case in errors}
    assert not {case: error for case, error in errors.items() if not error < bounds[case]}


def test_pairs_learn_as_in_torch_alone():
    check(gradient_errors(FAST))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_matrix_of_stages_learns_as_in_torch_alone(tmp_path, ranks):
    errors = found_by_ranks(tmp_path, "encoder_decoder.test_stages_of_pairs", "gradient_errors()", ranks)
    assert len(errors) == len(CASES)
    check(errors)
