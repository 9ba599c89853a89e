"""Token shards whose text can be learned, and a training run small enough for a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.tokens.token_shards import EncodedDocument, write_token_shard
from governance.hooks import Budget, Hooks, Meter, no_meter
from governance.manifest import FILE_NAME, Manifest, describe, read_manifest, write_manifest
from governance.stage import Runtime
from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig
from pretrain.config.training import (
    CheckpointConfig,
    EngineConfig,
    EvaluationConfig,
    ProfileConfig,
    Settings,
    TrackingConfig,
    TrainConfig,
    TrainRecipe,
)
from pretrain.metrics import peak_flops as peaks
from tests.manifests import manifest_of

VOCABULARY = 200
_PASSED = ("make", "suite", "evaluation")


def _document(generator: np.random.Generator, name: str, longest: int) -> EncodedDocument:
    """Token t is followed by t + 7 (modulo the vocabulary): a rule that a tiny model finds in a few steps."""
    length = int(generator.integers(2, longest))
    tokens = (generator.integers(1, VOCABULARY) + np.arange(length) * 7) % (VOCABULARY - 1) + 1
    tokens[-1] = 0
    return EncodedDocument(name, tokens, 3 * length, f"{('web', 'books')[length % 2]}/{('en', 'de')[length % 3 > 0]}")


def _make_tokens(root: Path, documents: int = 60, validation: int = 10, longest: int = 80) -> Manifest:
    folder = root / "encode" / ("e" * 16)
    if (folder / FILE_NAME).exists():
        return read_manifest(folder / FILE_NAME)
    generator = np.random.default_rng(0)
    outputs = []
    for role, count in (("train", documents), ("validation", validation)):
        for shard in range(2 if count else 0):
            path = folder / role / f"{shard:05d}.tokens"
            made = [_document(generator, f"{role}{shard}{index}", longest) for index in range(count // 2)]
            write_token_shard(path, made, VOCABULARY, 0)
            outputs.append(describe(path, root))
    manifest = manifest_of("encode", outputs, key="e")
    write_manifest(manifest, root)
    return manifest


def _run_training(root: Path, meter: Meter = no_meter, budget: Budget | None = None, **settings: Any) -> Manifest:
    """Train in `root`, with settings by the field's name, whatever their section; other arguments are passed on."""
    from pretrain.train import train

    extra = {name: settings.pop(name) for name in (*_PASSED, "profile", "folder", "until_step") if name in settings}
    defaults: dict[type, dict[str, Any]] = {
        ModelConfig: {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
        },
        OptimConfig: {"learning_rate": 3e-3, "warmup_steps": 2, "decay_steps": 4},
        TrainConfig: {
            "sequence_length": 32,
            "global_batch_size": 8,
            "steps": 10,
            "precision": "fp32",
            "validate_every_steps": 4,
            "validation_rows": 6,
        },
        CheckpointConfig: {"every_steps": 4},
        EngineConfig: {"micro_batch_size": 4, "threads": 1},
        TrackingConfig: {"mode": "disabled"},
    }
    sections: dict[type, Any] = {}
    for section, values in defaults.items():
        values |= {name: settings.pop(name) for name in list(settings) if name in section.model_fields}
        sections[section] = section(**values)
    assert not settings, f"unknown settings: {sorted(settings)}"
    runtime = Runtime(root=root, make=extra.pop("make", True), hooks=Hooks(meter=meter, budget=budget or Budget()))
    recipe = TrainRecipe(
        model=sections[ModelConfig], optim=sections[OptimConfig], train=sections[TrainConfig],
        evaluation=extra.pop("evaluation", EvaluationConfig()),
    )  # fmt: skip
    settings = Settings(
        sections[CheckpointConfig], sections[EngineConfig], sections[TrackingConfig],
        profile=extra.pop("profile", ProfileConfig()), folder=extra.pop("folder", Path()),
        until_step=extra.pop("until_step", 0),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        # Each start measures matrix products for a second; test_peaks and the runs of the command do so for real.
        patch.setitem(peaks._SIZES, "cpu", (64,))
        patch.setattr(peaks, "_SECONDS_PER_SIZE", 0.0)
        return train(_make_tokens(root), recipe, settings, runtime, **extra)


class Killed(Exception):
    """The end of a training in the middle of a step."""


def _train_until_killed(step: int, root: Path, **settings: Any) -> None:
    from pretrain import loop

    rate = loop.rate_factor

    def killed(now: int, *others: Any) -> float:
        if now == step:
            raise Killed
        return rate(now, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "rate_factor", killed)
        with pytest.raises(Killed):
            _run_training(root, **settings)


def _losses(manifest: Manifest, root: Path) -> list[float]:
    return json.loads((root / manifest.folder / "losses.json").read_bytes())["losses"]


@pytest.fixture(scope="session")
def make_tokens() -> Callable[..., Manifest]:
    return _make_tokens


@pytest.fixture(scope="session")
def run_training() -> Callable[..., Manifest]:
    return _run_training


@pytest.fixture(scope="session")
def kill_at() -> Callable[..., None]:
    """`kill_at(step, root, **settings)`: a training that dies in the middle of a step, without saving."""
    return _train_until_killed


@pytest.fixture(scope="session")
def losses_of() -> Callable[[Manifest, Path], list[float]]:
    return _losses


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Do something in the middle of a step, once."""
    from pretrain import loop
    from pretrain.optim.optimizers import rate_factor

    def plan(step: int, action: Callable[[], None]) -> None:
        def rate(now: int, steps: int, config: OptimConfig) -> float:
            if now == step:
                monkeypatch.setattr(loop, "rate_factor", rate_factor)
                action()
            return rate_factor(now, steps, config)

        monkeypatch.setattr(loop, "rate_factor", rate)

    return plan


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A root with a finished fp32 run, for tests that only read."""
    root = tmp_path_factory.mktemp("finished")
    return root, _run_training(root)
