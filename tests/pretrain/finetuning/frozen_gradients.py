"""Models with frozen parameters, trained by the engine and by torch alone: `gradient_errors`; as in
`tests/pretrain/engine/repeated_modules.py`, plain descent at a rate of 1 shows the gradients of two steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch

from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig
from pretrain.config.training import EngineConfig, TrainConfig, TrainRecipe
from pretrain.distributed.process_group import join, read_ranks
from pretrain.engine import deepspeed_config
from pretrain.engine import engine as door
from pretrain.engine.state import full_state
from pretrain.finetuning.adapters import begin_pass, freeze
from pretrain.model.decoder import Decoder
from pretrain.model.init import initial_weight
from tests.pretrain.engine.repeated_modules import CASES, MODEL, STEPS, Case, Masters, descend, descent
from tests.pretrain.engine.test_engine_state import LENGTH, MICRO, ROWS, VOCABULARY, batches

WHOLE = [case for case in CASES if case[2] == "none"]
"""Cases without recomputation."""
UNTIED = MODEL.model_copy(update={"tie_word_embeddings": False})
TRAINED: dict[str, dict[str, Any]] = {
    "adapters": {"adapter": {"rank": 4, "alpha": 4.0}},
    "dropout": {"adapter": {"rank": 2, "alpha": 4.0, "dropout": 0.3, "targets": ["q_proj", "down_proj"]}},
    "last block": {"trained": [r"layers\.1\.", r"model\.norm"]},
    "head and adapters": {"trained": ["lm_head"], "adapter": {"rank": 2, "targets": ["o_proj"]}},
    "embedding": {"trained": ["embed_tokens"]},
    "adapter of a tied embedding": {"adapter": {"rank": 2, "embedding_rank": 3, "targets": ["o_proj"]}},
}


def model_of(what: str) -> ModelConfig:
    return MODEL if "tied" in what else UNTIED


def drawn(name: str, shape: torch.Size) -> torch.Tensor:
    """Initial weights that bf16 holds exactly, and no factor of an adapter zero: both get gradients."""
    return initial_weight(name, shape, UNTIED, 0).bfloat16().float()


def recipe_of(what: str, precision: str) -> TrainRecipe:
    optim = OptimConfig(optimizer="lion", learning_rate=1.0, weight_decay=0.0, gradient_clipping=0.0)
    sizes = {"sequence_length": LENGTH, "global_batch_size": ROWS, "steps": STEPS}
    return TrainRecipe(
        model=model_of(what), optim=optim, train=TrainConfig(**sizes, precision=precision, **TRAINED[what])
    )


def by_the_engine(what: str, case: Case) -> Masters:
    """Masters after `STEPS` steps, and the frozen parameters as they are then."""
    precision, stage, kept = case
    settings = EngineConfig(zero_stage=stage, micro_batch_size=MICRO, threads=1, activation_checkpointing=kept)
    ranks, recipe = read_ranks(), recipe_of(what, precision)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deepspeed_config, "BUCKET", 600)  # elements: every backward pass fills several buckets
        patch.setattr(door, "make_optimizer", descent)
        engine = door.open_engine(recipe, settings, VOCABULARY, ranks, join(ranks, 60.0), drawn)
    for step in range(1, STEPS + 1):
        mine = batches(step)
        for number, batch in enumerate(mine):
            begin_pass(engine.deepspeed.module, (0, step, ranks.rank, number))
            objective, _ = engine.forward(batch)
            engine.backward(objective, ROWS * LENGTH, last=batch is mine[-1])
        engine.update(1.0, torch.zeros(()))
    return {name: values["master"].clone() for name, values in full_state(engine)}


def by_torch(what: str, precision: str) -> tuple[Masters, Masters]:
    """Masters before and after the steps without DeepSpeed, on one rank."""
    model = Decoder(model_of(what), VOCABULARY)
    freeze(model, recipe_of(what, precision), VOCABULARY)
    start = {name: drawn(name, value.shape) for name, value in model.named_parameters()}

    def objectives(step: int) -> Iterator[torch.Tensor]:
        for number, batch in enumerate(batches(step, share=False)):
            begin_pass(model, (0, step, 0, number))
            yield model(batch.tokens, batch.targets, batch.segments, batch.positions)[0] / (ROWS * LENGTH)

    return start, descend(model, precision, drawn, objectives)[0]


def gradient_errors(cases: Iterable[Case] = WHOLE) -> dict[str, float]:
    """By what learns and case, the largest error of a parameter's movement as a share of what torch alone gives."""
    found = {}
    # Other ranks drop other elements.
    for what in (name for name in TRAINED if name != "dropout" or read_ranks().world_size == 1):
        known = {precision: by_torch(what, precision) for precision in {case[0] for case in cases}}
        for case in (case for case in cases if case[1] < 3 or "tied" not in what):  # at stage 3 it is refused
            start, theirs = known[case[0]]
            ours = by_the_engine(what, case)
            assert ours.keys() == theirs.keys(), (what, case, ours.keys() ^ theirs.keys())
            moved = {name: value - start[name] for name, value in theirs.items()}
            assert all(float(movement.norm()) > 0.0 for movement in moved.values()), (what, moved)
            errors = [float((ours[name] - theirs[name]).norm() / moved[name].norm()) for name in theirs]
            found[f"{what}: {' '.join(map(str, case))}"] = max(errors)
    return found
