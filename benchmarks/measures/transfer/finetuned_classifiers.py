"""Fine-tuned classifiers against twins from scratch, by number of examples, on real texts.

Two tasks, each with a decoder that Assay pretrained on other texts of the kind:

- novelists: which of four novelists wrote 60 words. Pretrained on English novels of other authors; passages of a
  chapter are either for training or for the test.
- languages: the language of 40 characters of a help page that exists in 19 languages. Pages are for pretraining,
  training or the test, in all languages at once, so no subject tells the language. Chosen after the first fell short.

Both arms have the same examples, steps, batches and seeds; each arm's learning rate and pooling are the best of four
choices on examples of a seed that is not counted. A gain is the mean over seeds, each with other examples, of the
difference in accuracy on one test, with Student's 95 % interval.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
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
WORDS, CHARACTERS, LENGTH = 60, 40, 64
STEPS = {25: 30, 100: 40, 400: 80, 1600: 160}
Choice = tuple[float, str]
_CHOICES: tuple[Choice, ...] = ((1e-3, "last"), (3e-3, "last"), (1e-3, "mean"), (3e-3, "mean"))
"""Learning rate and `model.pooling`."""
_TUNING_SEED, _TUNING_EXAMPLES = 99, 100
_TEST_EXAMPLES = 800


@dataclass(frozen=True)
class Task:
    """Texts of pretraining, and labelled passages."""

    labels: tuple[str, ...]
    pretraining: list[dict[str, str]]
    train: list[dict[str, str]]
    test: list[dict[str, str]]
    steps: int
    """Steps of pretraining."""
    batch: int
    """Rows of a step of fine-tuning; a row of 64 tokens holds one passage of a novel, or about three of a page."""


def curve(quick: bool) -> Iterator[Goal]:
    """Gain in accuracy of the fine-tuned classifier over its twin, at each number of examples."""
    for name, task in TASKS.items():
        if quick and name == "novelists":  # its parent takes most of the time
            continue
        with tempfile.TemporaryDirectory() as scratch:
            yield from measured(name, task(), Path(scratch), *(((100,), 3, 300) if quick else (tuple(STEPS), 5, 800)))


def measured(name: str, task: Task, folder: Path, sizes: Sequence[int], seeds: int, most_steps: int) -> Iterator[Goal]:
    """Goals of one task; a folder that holds some of the trainings gives them again."""
    parent, tokenizer = _pretrained(task.pretraining, folder, min(task.steps, most_steps))
    work = _Arms(folder, parent, tokenizer, task)
    arms = ("scratch", "tuned")
    tuning = [[work.accuracy(arm, _TUNING_EXAMPLES, _TUNING_SEED, one) for one in _CHOICES] for arm in arms]
    best = {arm: _CHOICES[int(np.argmax(found))] for arm, found in zip(arms, tuning, strict=True)}
    for arm, (rate, pooling) in best.items():
        yield figure(f"finetuned_{name}_learning_rate_{arm}", rate, f"pooling {pooling}")
    for size in sizes:
        scratch, tuned = (
            np.array([work.accuracy(arm, size, seed, best[arm]) for seed in range(seeds)]) for arm in arms
        )
        mean, margin = _interval(tuned - scratch)
        values = f"tuned {tuned.mean():.3f}, scratch {scratch.mean():.3f}"
        note = f"{values}, gain {mean:+.3f} +- {margin:.3f}, {seeds} seeds"
        title = f"finetuned_{name}_gain_lower_bound_{size}"
        yield Goal(title, mean - margin, 0.0, ">=", note) if size <= 400 else figure(title, mean - margin, note)


def _author(row: dict[str, Any]) -> str:
    return next((name for name in AUTHORS if row["author"].startswith(name)), "")


def _interval(values: Any) -> tuple[float, float]:
    from scipy import stats

    margin = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values)), float(margin)


def novelists() -> Task:
    """Novels of four authors, and of the others."""
    chapters = [row for row in rows("corpora/books.jsonl.gz") if row["lang"] == "en"]
    sides: tuple[list[dict[str, str]], ...] = ([], [])
    for number, row in enumerate(row for row in chapters if _author(row)):
        words = row["text"].split()
        for first in range(0, len(words) - WORDS, WORDS):
            text = " ".join(words[first : first + WORDS])
            sides[number % 4 == 0].append({"id": f"{number}-{first}", "text": text, "label": _author(row)})
    return _task(AUTHORS, [row for row in chapters if not _author(row)], *sides, steps=800, batch=16)


def languages() -> Task:
    """Pages of help in 19 languages: half for pretraining, a quarter each for training and the test."""
    pages = list(rows("corpora/multilingual.jsonl.gz"))
    keys = sorted({row["parallel_key"] for row in pages})
    random.Random(0).shuffle(keys)
    place = {key: number % 4 for number, key in enumerate(keys)}
    sides: tuple[list[dict[str, str]], ...] = ([], [])
    seen: set[str] = set()  # the pages share lines
    for row in pages:
        text = " ".join(row["text"].split())
        for first in range(0, len(text) - CHARACTERS, CHARACTERS):
            part = text[first : first + CHARACTERS].strip()
            if place[row["parallel_key"]] >= 2 and part not in seen:
                seen.add(part)
                one = {"id": f"{row['id']}-{first}", "text": part, "label": row["lang"]}
                sides[place[row["parallel_key"]] == 3].append(one)
    labels = tuple(sorted({row["lang"] for row in pages}))
    return _task(labels, [row for row in pages if place[row["parallel_key"]] < 2], *sides, steps=300, batch=4)


TASKS: dict[str, Callable[[], Task]] = {"novelists": novelists, "languages": languages}


def _task(
    labels: tuple[str, ...],
    pretraining: Iterable[dict[str, Any]],
    train: list[dict[str, str]],
    test: list[dict[str, str]],
    steps: int,
    batch: int,
) -> Task:
    """Shuffled passages, and a balanced test."""
    for side in (train, test):
        random.Random(0).shuffle(side)
    texts = [{"id": row["id"], "text": row["text"]} for row in pretraining]
    return Task(labels, texts, train, _balanced(labels, test, _TEST_EXAMPLES), steps, batch)


def _balanced(labels: Sequence[str], found: Sequence[dict[str, str]], count: int) -> list[dict[str, str]]:
    """The first `count` rows, of each label as many as of others."""
    share = [count // len(labels) + (place < count % len(labels)) for place in range(len(labels))]
    mine = [[row for row in found if row["label"] == name][:size] for name, size in zip(labels, share, strict=True)]
    return [row for part in mine for row in part]


def _model(
    choice: Choice, steps: int, batch: int, labels: int = 0, weights: str = "", seed: int = 0
) -> tuple[Any, Any]:
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
        max_position_embeddings=LENGTH, tie_word_embeddings=True, num_labels=labels, pooling=choice[1],
    )  # fmt: skip
    train = TrainConfig(
        sequence_length=LENGTH, global_batch_size=batch, steps=steps, precision="fp32", seed=seed,
        validate_every_steps=0, initial_weights=weights,
    )  # fmt: skip
    recipe = TrainRecipe(
        model=model, train=train,
        optim=OptimConfig(learning_rate=choice[0], warmup_steps=steps // 10, decay_steps=steps // 2),
    )  # fmt: skip
    engine = EngineConfig(micro_batch_size=train.global_batch_size, device="cpu", zero_stage=0, threads=1)
    return recipe, Settings(CheckpointConfig(every_steps=steps), engine, TrackingConfig(mode="disabled"))


def _ingested(folder: Path, name: str, found: Sequence[dict[str, Any]], columns: tuple[str, ...] = ()) -> Manifest:
    write_jsonl(folder / name / "all.jsonl", found)
    source = JsonlSource(
        type="jsonl", name=name, paths=(f"{name}/*.jsonl",), licence="CC0-1.0", id_field="id", columns=columns
    )
    return ingest((source,), IngestConfig(), folder, Runtime(folder / "root"))


def _pretrained(texts: Sequence[dict[str, Any]], folder: Path, steps: int) -> tuple[Path, Manifest]:
    """Exported decoder of these texts, and its tokenizer."""
    from pretrain.export.huggingface import export
    from pretrain.train import train

    runtime = Runtime(folder / "root")
    documents = _ingested(folder, "pretraining", texts)
    tokenizer = train_tokenizer(documents, TokenizerConfig(vocabulary_size=2048), runtime)
    tokens = encode(documents, tokenizer, EncodeConfig(validation_share=0.0), runtime)
    recipe, settings = _model((3e-3, "last"), steps, 32)
    made = train(pack(tokens, PackConfig(sequence_length=LENGTH), runtime), recipe, settings, runtime)
    checkpoint = runtime.root / made.stats["checkpoint"]["path"]
    if not (folder / "parent").exists():
        export(checkpoint.parent if checkpoint.suffix else checkpoint, tokenizer, folder / "parent", runtime.root)
    return folder / "parent", tokenizer


class _Arms:
    """Both arms: their examples, trainings and tests."""

    def __init__(self, folder: Path, parent: Path, tokenizer: Manifest, task: Task) -> None:
        self.folder, self.parent, self.tokenizer, self.task = folder, parent, tokenizer, task
        encoder = load_encoder(tokenizer, folder / "root")
        self.test = [encoder.encode(row["text"])[:LENGTH] for row in task.test]
        self.numbers = np.array([task.labels.index(row["label"]) for row in task.test])

    def accuracy(self, arm: str, size: int, seed: int, choice: Choice) -> float:
        from pretrain.checkpoint.format import read_checkpoint
        from pretrain.classification.classifier_scores import logits_of
        from pretrain.inference.loaded_model import load_classifier
        from pretrain.train import train

        runtime, name = Runtime(self.folder / "root"), f"set-{size}-{seed}"
        drawn = random.Random(seed).sample(self.task.train, len(self.task.train))
        documents = _ingested(self.folder, name, _balanced(self.task.labels, drawn, size), ("label",))
        config = EncodeConfig(validation_share=0.0, classification=ClassificationConfig(labels=self.task.labels))
        tokens = encode(documents, self.tokenizer, config, runtime)
        packed = pack(tokens, PackConfig(sequence_length=LENGTH, min_used_share=0), runtime)
        weights = str(self.parent) if arm == "tuned" else ""
        recipe, settings = _model(choice, STEPS[size], self.task.batch, len(self.task.labels), weights, seed)
        made = train(packed, recipe, settings, runtime)
        checkpoint = read_checkpoint(runtime.root / made.stats["checkpoint"]["path"], runtime.root)
        logits = logits_of(load_classifier(checkpoint, settings.engine, runtime.root), self.test, rows=64)
        return float((logits.argmax(1) == self.numbers).mean())
