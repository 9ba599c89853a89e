"""Fine-tuned classifiers against twins from scratch, by number of examples, on real novels.

The task: which of four novelists wrote a passage of 60 words. Passages of a chapter are either for training or for the
test. The decoder was pretrained by Assay on the English novels of other authors. Both arms have the same examples,
steps, batches and seeds; each arm's learning rate is the better of two on examples of a seed that is not counted.
A gain is the mean over seeds, each with other examples, of the difference in accuracy on one test, with Student's 95 %
interval.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measures.corpora import rows, write_jsonl
from benchmarks.measures.goals import Goal, figure
from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.readers.sources import JsonlSource
from data_pipeline.tokens.encode import EncodeConfig, encode
from data_pipeline.tokens.labels import ClassificationConfig
from data_pipeline.tokens.pack import PackConfig, pack
from data_pipeline.tokens.tokenizer import TokenizerConfig, load_encoder, train_tokenizer
from governance.manifest import Manifest
from governance.stage import Runtime

AUTHORS = ("Ouida", "Disraeli", "Lee", "Caird")
WORDS, LENGTH = 60, 64
STEPS = {25: 30, 100: 40, 400: 80, 1600: 160}
_RATES = (1e-3, 3e-3)
_TUNING_SEED, _TUNING_EXAMPLES = 99, 100
_BATCH = 16


def curve(quick: bool) -> Iterator[Goal]:
    """Gain in accuracy of the fine-tuned classifier over its twin, at each number of examples."""
    with tempfile.TemporaryDirectory() as scratch:
        yield from measured(Path(scratch), *(((100,), 3, 300) if quick else (tuple(STEPS), 5, 800)))


def measured(folder: Path, sizes: Sequence[int], seeds: int, pretraining_steps: int) -> Iterator[Goal]:
    """Goals of `curve`; a folder that holds some of the trainings gives them again."""
    chapters = [row for row in rows("corpora/books.jsonl.gz") if row["lang"] == "en"]
    parent, tokenizer = _pretrained([row for row in chapters if not _author(row)], folder, pretraining_steps)
    work = _Arms(folder, parent, tokenizer, *_passages([row for row in chapters if _author(row)]))
    arms = ("scratch", "tuned")
    tuning = [[work.accuracy(arm, _TUNING_EXAMPLES, _TUNING_SEED, rate) for rate in _RATES] for arm in arms]
    rates = {arm: _RATES[int(np.argmax(found))] for arm, found in zip(arms, tuning, strict=True)}
    for arm, rate in rates.items():
        yield figure(f"finetuned_learning_rate_{arm}", rate)
    for size in sizes:
        scratch, tuned = (
            np.array([work.accuracy(arm, size, seed, rates[arm]) for seed in range(seeds)]) for arm in arms
        )
        mean, margin = _interval(tuned - scratch)
        values = f"tuned {tuned.mean():.3f}, scratch {scratch.mean():.3f}"
        note = f"{values}, gain {mean:+.3f} +- {margin:.3f}, {seeds} seeds"
        name = f"finetuned_gain_lower_bound_{size}"
        yield Goal(name, mean - margin, 0.0, ">=", note) if size <= 400 else figure(name, mean - margin, note)


def _author(row: dict[str, Any]) -> str:
    return next((name for name in AUTHORS if row["author"].startswith(name)), "")


def _interval(values: Any) -> tuple[float, float]:
    from scipy import stats

    margin = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values)), float(margin)


def _passages(chapters: Sequence[dict[str, Any]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Passages of training and of the test, shuffled; every fourth chapter is of the test."""
    sides: tuple[list[dict[str, str]], ...] = ([], [])
    for number, row in enumerate(chapters):
        words = row["text"].split()
        for first in range(0, len(words) - WORDS, WORDS):
            text = " ".join(words[first : first + WORDS])
            sides[number % 4 == 0].append({"id": f"{number}-{first}", "text": text, "label": _author(row)})
    for side in sides:
        random.Random(0).shuffle(side)
    return sides[0], _balanced(sides[1], 800)


def _balanced(found: Sequence[dict[str, str]], count: int) -> list[dict[str, str]]:
    """The first `count` rows, of each label as many as of others."""
    share = [count // len(AUTHORS) + (place < count % len(AUTHORS)) for place in range(len(AUTHORS))]
    mine = [[row for row in found if row["label"] == name][:size] for name, size in zip(AUTHORS, share, strict=True)]
    return [row for part in mine for row in part]


def _model(rate: float, steps: int, labels: int = 0, weights: str = "", seed: int = 0) -> tuple[Any, Any]:
    from pretrain.config.model import ModelConfig
    from pretrain.config.optim import OptimConfig
    from pretrain.config.training import (
        CheckpointConfig,
        EngineConfig,
        Settings,
        TrackingConfig,
        TrainConfig,
        TrainRecipe,
    )

    model = ModelConfig(
        hidden_size=96, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=LENGTH, tie_word_embeddings=True, num_labels=labels,
    )  # fmt: skip
    train = TrainConfig(
        sequence_length=LENGTH, global_batch_size=_BATCH if labels else 32, steps=steps, precision="fp32", seed=seed,
        validate_every_steps=0, initial_weights=weights,
    )  # fmt: skip
    recipe = TrainRecipe(
        model=model, train=train,
        optim=OptimConfig(learning_rate=rate, warmup_steps=steps // 10, decay_steps=steps // 2),
    )  # fmt: skip
    engine = EngineConfig(micro_batch_size=train.global_batch_size, device="cpu", zero_stage=0, threads=1)
    return recipe, Settings(CheckpointConfig(every_steps=steps), engine, TrackingConfig(mode="disabled"))


def _ingested(folder: Path, name: str, found: Sequence[dict[str, Any]], columns: tuple[str, ...] = ()) -> Manifest:
    write_jsonl(folder / name / "all.jsonl", found)
    source = JsonlSource(
        type="jsonl", name=name, paths=(f"{name}/*.jsonl",), licence="CC0-1.0", id_field="id", columns=columns
    )
    return ingest((source,), IngestConfig(), folder, Runtime(folder / "root"))


def _pretrained(chapters: Sequence[dict[str, Any]], folder: Path, steps: int) -> tuple[Path, Manifest]:
    """Exported decoder of other authors' novels, and its tokenizer."""
    from pretrain.export.huggingface import export
    from pretrain.train import train

    runtime = Runtime(folder / "root")
    documents = _ingested(folder, "novels", [{"id": row["id"], "text": row["text"]} for row in chapters])
    tokenizer = train_tokenizer(documents, TokenizerConfig(vocabulary_size=2048), runtime)
    tokens = encode(documents, tokenizer, EncodeConfig(validation_share=0.0), runtime)
    recipe, settings = _model(3e-3, steps)
    made = train(pack(tokens, PackConfig(sequence_length=LENGTH), runtime), recipe, settings, runtime)
    checkpoint = runtime.root / made.stats["checkpoint"]["path"]
    if not (folder / "parent").exists():
        export(checkpoint.parent if checkpoint.suffix else checkpoint, tokenizer, folder / "parent", runtime.root)
    return folder / "parent", tokenizer


class _Arms:
    """Both arms: their examples, trainings and tests."""

    def __init__(
        self, folder: Path, parent: Path, tokenizer: Manifest, train: list[dict[str, str]], test: list[dict[str, str]]
    ) -> None:
        self.folder, self.parent, self.tokenizer, self.train = folder, parent, tokenizer, train
        encoder = load_encoder(tokenizer, folder / "root")
        self.test = [encoder.encode(row["text"])[:LENGTH] for row in test]
        self.numbers = np.array([AUTHORS.index(row["label"]) for row in test])

    def accuracy(self, arm: str, size: int, seed: int, rate: float) -> float:
        from pretrain.checkpoint.format import read_checkpoint
        from pretrain.classification.classifier_scores import logits_of
        from pretrain.inference.loaded_model import load_classifier
        from pretrain.train import train

        runtime, name = Runtime(self.folder / "root"), f"set-{size}-{seed}"
        drawn = random.Random(seed).sample(self.train, len(self.train))
        documents = _ingested(self.folder, name, _balanced(drawn, size), ("label",))
        config = EncodeConfig(validation_share=0.0, classification=ClassificationConfig(labels=AUTHORS))
        tokens = encode(documents, self.tokenizer, config, runtime)
        packed = pack(tokens, PackConfig(sequence_length=LENGTH, min_used_share=0), runtime)
        weights = str(self.parent) if arm == "tuned" else ""
        recipe, settings = _model(rate, STEPS[size], len(AUTHORS), weights, seed)
        made = train(packed, recipe, settings, runtime)
        checkpoint = read_checkpoint(runtime.root / made.stats["checkpoint"]["path"], runtime.root)
        logits = logits_of(load_classifier(checkpoint, settings.engine, runtime.root), self.test, rows=64)
        return float((logits.argmax(1) == self.numbers).mean())
