"""Measures of a model's inside: patterns against TransformerLens, completeness of attribution, induction.

The models are those of the tests, with random weights ten times as large as at a start: two layers of four heads.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measures.exported_weights import write_weights
from benchmarks.measures.goals import Goal
from benchmarks.measures.rivals import lens_patterns

IDS = [5, 17, 33, 33, 8, 91, 4, 17, 33, 60, 2]


def inside(quick: bool) -> Iterator[Goal]:
    """The goals on interpretability; `quick` changes nothing, since all takes less than a minute."""
    import torch

    from pretrain.inference.loaded_model import LoadedModel
    from pretrain.interpretability.token_attribution import attribute
    from tests.pretrain.small_models import VARIANTS, config, model_of

    torch.set_num_threads(1)
    yield from _patterns()
    errors, steps = {}, {}
    for name, changes in VARIANTS.items():
        if "moe" not in changes:
            model = LoadedModel(model_of(config(**changes)).eval().requires_grad_(False), 40, 100)
            found = attribute(model, IDS, 0, 42)
            errors[name], steps[name] = found.completeness_error, found.steps
    worst = max(errors, key=lambda name: errors[name])
    note = f"of {len(errors)} variants, worst {worst}; most steps {max(steps.values())}"
    yield Goal("integrated_gradients_completeness_error_nats", errors[worst], 1e-3, "<=", note)
    yield from _induction()


def _patterns() -> Iterator[Goal]:
    from safetensors.torch import load_file

    from tests.pretrain.interpretability.test_interpretability import FAMILIES, loaded, patterns_of

    with tempfile.TemporaryDirectory() as scratch:
        models: dict[str, Any] = {name: loaded(**changes) for name, changes in FAMILIES.items()}
        folders = [write_weights(model.decoder, Path(scratch) / name) for name, model in models.items()]
        tokens = Path(scratch) / "tokens.json"
        tokens.write_text(json.dumps(IDS))
        versions = lens_patterns(folders, tokens, Path(scratch))
        errors = {}
        for name, model in models.items():
            theirs = load_file(Path(scratch) / f"{name}.safetensors")["patterns"]
            errors[name] = float((patterns_of(model, IDS) - theirs).abs().max())
    worst = max(errors, key=lambda name: errors[name])
    note = f"of {len(errors)} architectures, worst {worst}; TransformerLens {versions['transformer-lens']}"
    yield Goal("patterns_difference_from_transformer_lens", errors[worst], 1e-5, "<=", note)


def _induction() -> Iterator[Goal]:
    from pretrain.inference.loaded_model import LoadedModel
    from pretrain.interpretability.attention_heads import induction
    from tests.pretrain.interpretability.planted_models import induction_model
    from tests.pretrain.small_models import config, model_of

    planted = induction(induction_model())
    random = induction(LoadedModel(model_of(config(), factor=1.0).eval(), 64, 100))
    assert planted is not None
    assert random is not None
    yield Goal("induction_score_of_the_planted_head", planted.scores[1][0], 0.9)
    others = max(planted.scores[0] + planted.scores[1][1:])
    yield Goal("induction_score_of_the_planted_models_other_heads", others, 0.1, "<=")
    equal = f"equal attention has about 1 / {1.5 * random.repeated_tokens:.0f}"
    yield Goal("induction_score_of_a_random_models_best_head", max(map(max, random.scores)), 0.1, "<=", equal)
