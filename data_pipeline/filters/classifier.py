"""Classifier stages: train models, or take them over, and apply them.

    [[data.classifiers]]                       [[data.classifiers]]
    name = "toxic"                             name = "quality"
    paths = ["labels/toxic-*.jsonl.gz"]        model = "models/quality.bin"
    label_field = "label"                      positive = ["hq"]
    positive = ["toxic", "1"]                  min_score = 0.1
    max_score = 0.9

`train_classifier` reads labelled JSON Lines, holds a share of the documents out by the hash of their text, trains
(`kernels/linear.py`), and writes `weights.parquet` (bucket, weight; nonzero ones only) with its metrics on the held-out
documents: AUC with a 95 % interval (Hanley and McNeil 1982), precision, recall and F1 at one half, and the calibration
error. A model that does not separate them (AUC at most a half) is refused. With `model` it takes the files of a model
made elsewhere (`model_files.py`) into its artifact instead.

`classify` scores every document and removes those outside `min_score` and `max_score` as `classifier:<name>`; roles
`documents`, `removed`, `scores` (id, source, language, one column a model, kept).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from operator import not_
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator, model_validator

from data_pipeline.documents import (
    DOCUMENT_SCHEMA,
    REMOVED_SCHEMA,
    funnel,
    gathered,
    judged,
    map_documents,
    pass_on,
    write_table,
)
from data_pipeline.filters.model_files import FASTTEXT, Scorer, model_files, open_model
from data_pipeline.readers.local import find_files
from data_pipeline.readers.streams import TornStream, blocks, lines
from governance.config import Section
from governance.errors import ConfigError, ManifestError, PipelineError
from governance.file_digests import copy_unchanged, file_inputs, unchanged
from governance.files import sha256_bytes
from governance.manifest import Manifest, Output, describe
from governance.parallel import ShardMade
from governance.stage import Made, Recipe, Runtime, run_stage
from governance.verified_files import intact

VERSION = 2
_COLUMNS = ("id", "source", "language", "kept")  # next to the scores
_BINS = 10  # bins of the calibration error


class ClassifierConfig(Section):
    """A linear model, its training texts, and the documents that it removes."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    """Names the model, its scores' column and its reason."""
    paths: tuple[str, ...] = ()
    """Labelled JSON Lines (.gz, .zst too) to train on: shell patterns, relative to the run's file."""
    model: str = Field(default="", exclude_if=not_)
    """A model to use instead of training one: a fastText file (.bin, .ftz) or a folder of `transformers`, relative to
    the run's file."""
    text_field: str = Field(default="text", min_length=1)
    """The field with the text."""
    label_field: str = Field(default="label", min_length=1)
    """The field with the label: text, number, true or false."""
    positive: tuple[str, ...] = ("1", "true")
    """Labels that count as positive, as text; every other one is negative. Of `model`: those whose probability, added
    up, is the score."""
    negative: tuple[str, ...] = Field(default=(), exclude_if=not_)
    """Labels of `model` whose probability is subtracted from the score."""
    ngram: int = Field(default=2, ge=1, le=5)
    """Words of the longest n-gram."""
    buckets: int = Field(default=1 << 20, ge=1 << 8, le=1 << 26)
    """Features after hashing; 4 bytes each."""
    epochs: int = Field(default=5, ge=1, le=100)
    """Passes over the documents."""
    learning_rate: float = Field(default=0.5, gt=0)
    """Learning rate of AdaGrad."""
    penalty: float = Field(default=1e-6, ge=0)
    """L2 penalty on the weights that a document touches."""
    held_out_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of the labelled documents that is not trained on and gives the metrics."""
    seed: int = Field(default=0, ge=0)
    """Seed of the order of the documents."""
    min_score: float | None = None
    """Documents that score below are removed; absent: none. From 0 to 1, but for a `model` that gives a number."""
    max_score: float | None = None
    """Documents that score above are removed; absent: none."""

    @field_validator("name")
    @classmethod
    def _no_column_of_its_own(cls, name: str) -> str:
        if name in _COLUMNS:
            raise ValueError(f"{name!r} is the name of another column of the scores; choose another")
        return name

    @model_validator(mode="after")
    def _check(self) -> ClassifierConfig:
        if bool(self.paths) == bool(self.model):
            raise ValueError("give either paths, the labelled files to train on, or model, a model made elsewhere")
        if self.negative and not self.model:
            raise ValueError("negative is for a model made elsewhere; with paths every label that is not positive is")
        labels = (*self.positive, *self.negative)
        if self.model and len({label.removeprefix("__label__") for label in labels}) < len(labels):
            raise ValueError(f"positive and negative, {list(labels)}, name a label twice; name each once")
        for name in ("min_score", "max_score"):
            bound = getattr(self, name)
            if bound is not None and not self.model and not 0 <= bound <= 1:
                raise ValueError(f"{name} = {bound:g} is not within 0 and 1, where scores are")
        if self.min_score is not None and self.max_score is not None and self.min_score > self.max_score:
            raise ValueError(
                f"min_score = {self.min_score:g} is above max_score = {self.max_score:g}: no score is within"
            )
        return self


class ModelIdentity(Section):
    """Recipe of a classifier's weights."""

    model: ClassifierConfig


class ClassifyIdentity(Section):
    """Recipe of the classifier's removals."""

    bounds: dict[str, tuple[float | None, float | None]]


def labelled(config: ClassifierConfig, paths: Sequence[Path]) -> Iterator[tuple[str, bool]]:
    """The texts of the files and whether their label is positive.

    Raises:
        ManifestError: a line is not an object with text and label; names file and line.
    """
    for path in paths:
        try:
            for number, line in enumerate(lines(blocks(path)), 1):
                if line.strip():
                    yield _labelled_row(config, line, f"{path}, line {number}")
        except TornStream as error:
            raise ManifestError(f"{path}: {error.reason}. Fetch the file again.") from error


def _labelled_row(config: ClassifierConfig, line: bytes, where: str) -> tuple[str, bool]:
    try:
        row = json.loads(line)
        text, label = row[config.text_field], row[config.label_field]
        text.encode("utf-8")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(
            f"{where}: must be an object with {config.text_field!r} (text) and {config.label_field!r}: {error}"
        ) from error
    shown = json.dumps(label) if isinstance(label, bool) else str(label)
    return text, shown in config.positive


def train_classifier(config: ClassifierConfig, config_folder: Path, runtime: Runtime) -> Manifest:
    """Train a model on its labelled files, or take over `model`.

    `stats` holds its metrics, or kind and labels of a model that was taken over.

    Raises:
        MissingInput: a pattern finds no file, or the model's files are missing.
        ManifestError: a line is not labelled, or the model cannot be read.
        PipelineError: the model gives a plain sentence a score that is not a number.
        ConfigError: one of the two labels is missing, the model does not separate what was held out, or `positive`
            names a label that it does not have.
    """
    if config.model:
        return _take_over(config, config_folder / config.model, runtime)
    files = find_files(config.paths, config_folder, f"classifier {config.name}")
    inputs = file_inputs(((file.name, file.path) for file in files), runtime)
    identity = config.model_copy(update={"paths": ("",), "min_score": None, "max_score": None})
    recipe = Recipe("classifier", VERSION, ModelIdentity(model=identity))

    def make(folder: Path) -> Made:
        with unchanged((file.path, item.digest) for file, item in zip(files, inputs, strict=True)):
            rows = list(labelled(config, [file.path for file in files]))
        weights, stats = fit(config, rows)
        used = np.flatnonzero(weights)
        table = {"bucket": pa.array(used, pa.int64()), "weight": pa.array(weights[used], pa.float32())}
        write_table(folder / "weights.parquet", pa.table(table))
        return Made([describe(folder / "weights.parquet", runtime.root)], stats)

    return run_stage(recipe, inputs, runtime, make, alone=True)


def _take_over(config: ClassifierConfig, path: Path, runtime: Runtime) -> Manifest:
    kind, files = model_files(path, config.name)
    inputs = file_inputs(((file.name, file) for file in files), runtime)
    identity = config.model_copy(update={"model": path.name, "min_score": None, "max_score": None})

    def make(folder: Path) -> Made:
        scorer, labels = open_model(kind, path, config.name, config.positive, config.negative)
        _scores(config.name, scorer, pa.array(["A sentence."], pa.large_string()), ["a plain sentence"])
        for file, item in zip(files, inputs, strict=True):
            copy_unchanged(file, item.digest, folder / file.name)
        made = [describe(folder / file.name, runtime.root) for file in files]
        return Made(made, {"kind": kind, "file": path.name if kind == FASTTEXT else "", "labels": len(labels)})

    return run_stage(Recipe("classifier", VERSION, ModelIdentity(model=identity)), inputs, runtime, make, alone=True)


def fit(config: ClassifierConfig, rows: Sequence[tuple[str, bool]]) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    """The weights, and the metrics on the documents that were held out.

    Raises:
        ConfigError: a label is missing on either side, or the model does not separate what was held out.
    """
    from data_pipeline.kernels.linear import score, train
    from governance.kernels.buffers import text_buffers

    held = np.array([int(sha256_bytes(text.encode())[:8], 16) < config.held_out_share * 2**32 for text, _ in rows])
    labels = np.array([float(label) for _, label in rows])
    if len({(*pair,) for pair in zip(held.tolist(), labels.tolist(), strict=True)}) < 4:
        raise ConfigError(
            f"classifier {config.name}: {len(rows)} documents, {int(labels.sum())} positive: both labels must occur "
            "in the documents to train on and in those held out. "
            f"Check `positive` = {list(config.positive)}, or give more documents."
        )
    texts = text_buffers(pa.array([text for text, _ in rows], pa.large_string()))
    weights = np.zeros(config.buckets + 1, np.float32)
    chance = np.random.default_rng(config.seed)
    order = np.concatenate([chance.permutation(np.flatnonzero(~held)) for _ in range(config.epochs)])
    train(texts, labels, order, weights, config.ngram, config.learning_rate, config.penalty)
    found = measure(score(*texts, weights, config.ngram)[held], labels[held] > 0)
    if found["auc"] <= 0.5:
        raise ConfigError(
            f"classifier {config.name}: AUC {found['auc']} on what was held out: it does not separate the labels. "
            "Check the labels, or train on more documents."
        )
    trained = int((~held).sum())
    return weights, {"documents": len(rows), "positive": int(labels.sum()), "trained_documents": trained, **found}


def measure(scores: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Metrics at the threshold one half, and those that need none.

    They are rounded to 1e-6.

    AUC is the probability that a positive document scores above a negative one (ties count half), its standard error
    that of Hanley and McNeil (1982); the calibration error is the mean distance of score and share, in ten bins.
    """
    from scipy.stats import rankdata

    ranks = rankdata(scores)
    pos, neg = int(positive.sum()), int((~positive).sum())
    auc = (ranks[positive].sum() - pos * (pos + 1) / 2) / (pos * neg)
    spread = auc * (1 - auc) + (pos - 1) * (auc / (2 - auc) - auc**2) + (neg - 1) * (2 * auc**2 / (1 + auc) - auc**2)
    margin = 1.96 * float(np.sqrt(max(spread, 0.0) / (pos * neg)))
    called = scores > 0.5
    hits, calls = int((called & positive).sum()), int(called.sum())
    precision, recall = hits / calls if calls else 0.0, hits / pos
    bins = np.minimum((scores * _BINS).astype(np.int64), _BINS - 1)
    gaps = [abs(scores[bins == b].sum() - positive[bins == b].sum()) for b in range(_BINS)]
    values = {
        "auc": auc, "auc_low": max(0.0, auc - margin), "auc_high": min(1.0, auc + margin), "precision": precision,
        "recall": recall, "f1": 2 * hits / (calls + pos), "calibration_error": sum(gaps) / len(scores),
    }  # fmt: skip
    counts = {"held_out_documents": len(scores), "held_out_positive": pos, "true_positives": hits, "called": calls}
    return {**{name: round(float(value), 6) for name, value in values.items()}, **counts}


def load_weights(model: Manifest, root: Path) -> npt.NDArray[np.float32]:
    """The weights of a trained model, the intercept first."""
    table = pq.read_table(root / model.folder / "weights.parquet")
    weights = np.zeros(int(model.config["model"]["buckets"]) + 1, np.float32)
    weights[table["bucket"].to_numpy()] = table["weight"].to_numpy()
    return weights


def load_scorer(model: Manifest, root: Path) -> Scorer:
    """Scorer of a model, trained or taken over.

    Raises:
        AlteredFile: a file of it differs from its manifest.
    """
    for output in model.outputs:
        state = (root / output.path).stat()
        _compared(output.path, output.sha256, root, (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino))
    settings, stats = model.config["model"], model.stats
    if "kind" in stats:
        path = root / model.folder / stats["file"]
        sides = (tuple(settings["positive"]), tuple(settings.get("negative", ())))
        return _opened(stats["kind"], path, settings["name"], *sides)
    from data_pipeline.kernels.linear import score
    from governance.kernels.buffers import text_buffers

    weights, ngram = load_weights(model, root), int(settings["ngram"])
    return lambda texts: score(*text_buffers(texts), weights, ngram)


@functools.lru_cache(maxsize=256)
def _compared(path: str, sha256: str, root: Path, state: tuple[int, ...]) -> None:
    """Compare a model's file with its manifest, once in a state."""
    with intact(Output(path=path, bytes=state[0], sha256=sha256), root):
        pass


@functools.lru_cache(maxsize=8)
def _opened(kind: str, path: Path, name: str, positive: tuple[str, ...], negative: tuple[str, ...]) -> Scorer:
    """The scorer of a model in its artifact, loaded once per process."""
    return open_model(kind, path, name, positive, negative)[0]


def scores_of(model: Manifest, root: Path, texts: Sequence[str]) -> list[float]:
    """Probability of the positive label of each text."""
    column, name = pa.array(list(texts), pa.large_string()), model.config["model"]["name"]
    places = [f"text {number}" for number in range(1, len(texts) + 1)]
    return [float(value) for value in _scores(name, load_scorer(model, root), column, places)]


def _scores(
    name: str, scorer: Scorer, texts: pa.Array | pa.ChunkedArray, places: Sequence[str]
) -> npt.NDArray[np.float64]:
    """Finite scores to 1e-6; NaN would be within any bounds."""
    scores = np.round(scorer(texts), 6)
    if len(wrong := np.flatnonzero(~np.isfinite(scores))):
        raise PipelineError(
            f"classifier {name}: the score of {places[wrong[0]]} is {scores[wrong[0]]} ({len(wrong)} such of "
            f"{len(scores)} texts). The model's weights are damaged or overflow: fetch the model again, or use another."
        )
    return scores


Judges = tuple[tuple[str, Manifest, float | None, float | None], ...]


def _classify_shard(section: Section, payload: tuple[Path, Judges, Path], path_of: Callable[[str], Path]) -> ShardMade:
    path, judges, root = payload
    scorers = [load_scorer(model, root) for _, model, *_ in judges]
    described = [(name, pa.string()) for name in ("id", "source", "language")]
    scores_schema = pa.schema([*described, *((judge[0], pa.float64()) for judge in judges), ("kept", pa.bool_())])
    schemas = {"documents": DOCUMENT_SCHEMA, "removed": REMOVED_SCHEMA, "scores": scores_schema}

    def judge(group: pa.Table) -> tuple[Sequence[pa.Table], dict[str, Any]]:
        reasons, evidence = [""] * len(group), [""] * len(group)
        columns: dict[str, Any] = {name: group[name] for name, _ in described}
        for (name, _, low, high), scorer in zip(judges, scorers, strict=True):
            scores = _scores(name, scorer, group["text"], group["id"].to_pylist())
            columns[name] = scores
            outside = (scores < (-np.inf if low is None else low)) | (scores > (np.inf if high is None else high))
            for row in np.flatnonzero(outside).tolist():
                if not reasons[row]:
                    reasons[row], evidence[row] = f"classifier:{name}", f"score={scores[row]:.6g}"
        columns["kept"] = pa.array([not reason for reason in reasons], pa.bool_())
        tables, counts = judged(group, reasons, evidence)
        return (*tables, pa.table(columns)), counts

    return pass_on(path, path_of, schemas, judge, funnel([], [], [], []))


def classify(documents: Manifest, models: Sequence[tuple[ClassifierConfig, Manifest]], runtime: Runtime) -> Manifest:
    """Score every document with each model and remove those outside its bounds.

    The reason names the first model whose bounds a document breaks.

    Raises:
        ConfigError: two models have one name.
        PipelineError: a score is not a finite number.
    """
    bounds = {config.name: (config.min_score, config.max_score) for config, _ in models}
    if len(bounds) < len(models):
        raise ConfigError(
            "data.classifiers: two models have one name. Rename one: reasons and scores are named after it."
        )
    recipe = Recipe("classify", VERSION, ClassifyIdentity(bounds=bounds))
    judges: Judges = tuple((c.name, model, c.min_score, c.max_score) for c, model in models)

    def make(folder: Path) -> Made:
        digests = tuple(model.digest for _, model in models)
        done = map_documents(recipe, _classify_shard, documents, [judges, runtime.root], digests, folder, runtime)
        return gathered(done, funnel([], [], [], []))

    return run_stage(recipe, [documents.as_input(), *(model.as_input() for _, model in models)], runtime, make)
