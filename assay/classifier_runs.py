"""Classifiers of a run: the evaluation of a checkpoint, and cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from assay.config import LoadedRun
from assay.corpus_gate import require_corpus
from assay.pipeline import corpus, judge_corpus, training
from data_pipeline.decontamination.evaluation_sets import read_rows
from data_pipeline.documents import DOCUMENT_SCHEMA
from data_pipeline.normalised_text import normalise
from data_pipeline.tokens.labels import (
    ClassificationConfig,
    Labelled,
    group_of,
    number_of_label,
    refuse_overlap,
    split_documents,
)
from data_pipeline.tokens.tokenizer import load_encoder
from governance.errors import AlteredFile, CheckpointError, ConfigError
from governance.files import sha256_file
from governance.gate.chain import require_chain
from governance.log import get_logger
from governance.manifest import Manifest, output_fault, read_manifest
from governance.stage import Runtime
from governance.verified_files import hashed
from pretrain.checkpoint.format import identity_of, read_checkpoint
from pretrain.classification.classifier_scores import ClassificationRecipe, Examples, classify, require_classifier
from pretrain.classification.folds import join_folds
from pretrain.data.tokenizer_check import refuse_foreign_tokenizer
from pretrain.inference.loaded_model import LoadedModel, load_classifier

if TYPE_CHECKING:
    import pyarrow as pa


def require_labels(run: LoadedRun) -> ClassificationConfig:
    """The run's section on labels.

    Raises:
        ConfigError: it has none.
    """
    config = run.config.data.encode.classification
    if config is None:
        raise ConfigError(
            f"{run.path}: has no [data.encode.classification], so its model is not a classifier. Add the section with "
            "its labels"
        )
    return config


def labels_of(run: LoadedRun, artifacts: Mapping[str, Manifest], checkpoint: Manifest) -> Sequence[str]:
    """Names of a classifier's labels, in the order of its head.

    Raises:
        ConfigError: the run has no labels.
        CheckpointError: it was trained on other rows, so its labels or test documents may be others.
    """
    labels = require_labels(run).labels
    require_classifier(checkpoint, labels)
    if artifacts["pack"].digest not in [item.digest for item in checkpoint.inputs]:
        raise CheckpointError(
            f"{checkpoint.folder}: was trained on {checkpoint.inputs[0].path}, not on {artifacts['pack'].path}, so "
            f"these test documents may have trained it, and labels may have other numbers. Give the configuration "
            f"of its training; of a fold with --set data.encode.classification.fold=NUMBER"
        )
    return labels


def evaluate_classifier(
    run: LoadedRun, artifacts: dict[str, Manifest], checkpoint: Path, runtime: Runtime, test: Path | None = None
) -> Manifest:
    """Make or find the evaluation of a checkpoint.

    The test documents are those of the split, or the rows of a file.

    Raises:
        ConfigError: there is neither.
        CheckpointError: it was trained on other rows, so its labels or test documents may be others.
        PipelineError: a test document is in the training set, or a label is missing or unknown.
    """
    config = require_labels(run)
    if test is None and not (config.test_from or config.test_share or config.folds):
        raise ConfigError(
            "there is no test: set test_from, test_share or folds in [data.encode.classification], or give --test FILE"
        )
    require_corpus(run, artifacts, runtime)
    verified = read_checkpoint(checkpoint, runtime.root)
    refuse_foreign_tokenizer(verified, artifacts["encode"], runtime.root)
    labels_of(run, artifacts, verified)
    recipe = ClassificationRecipe(labels=config.labels, test="" if test is None else sha256_file(test))
    opened = partial(_opened, run, artifacts, verified, runtime, (test, recipe.test))
    return classify(verified, artifacts["encode"], recipe, opened, runtime)


def _opened(
    run: LoadedRun,
    artifacts: dict[str, Manifest],
    checkpoint: Manifest,
    runtime: Runtime,
    given: tuple[Path | None, str],
) -> tuple[LoadedModel, Examples, Examples]:
    """The model, and the documents of the test and of the validation.

    `given` are the test file, if any, and its digest.
    """
    import pyarrow as pa

    (test, digest), most = given, identity_of(checkpoint).recipe.train.sequence_length
    table, labelled = _documents(run, artifacts, runtime)
    sides = {side: np.flatnonzero(labelled.sides == side) for side in ("train", "validation", "test")}
    by_side = {side: (table.take(pa.array(places)), labelled.at(places)) for side, places in sides.items()}
    if test is not None:
        seen = pa.concat_tables([by_side["train"][0], by_side["validation"][0]]).combine_chunks()
        by_side["test"] = _file(test, digest, require_labels(run))
        refuse_overlap(_texts(by_side["test"][0]), _texts(seen))
        _warn_of_known_groups(
            require_labels(run), by_side["test"][1], [by_side[side][1] for side in ("train", "validation")]
        )
    examples = [_examples(artifacts, runtime, most, *by_side[side]) for side in ("test", "validation")]
    return load_classifier(checkpoint, run.config.engine, runtime.root), examples[0], examples[1]


def _warn_of_known_groups(config: ClassificationConfig, test: Labelled, seen: Sequence[Labelled]) -> None:
    known = int(np.isin(test.units, np.concatenate([side.units for side in seen])).sum())
    if config.group and known:
        get_logger(__name__).warning(
            "--test: %d of %d documents belong to a group (%s) in the training data; the figures do not hold for new "
            "groups",
            known, len(test.units), config.group,
        )  # fmt: skip


def _texts(table: pa.Table) -> tuple[Sequence[str], pa.Array]:
    return table["id"].to_pylist(), table["text"].combine_chunks()


def _documents(run: LoadedRun, artifacts: dict[str, Manifest], runtime: Runtime) -> tuple[pa.Table, Labelled]:
    """Documents behind the token shards, with labels and sides."""
    import pyarrow as pa

    from data_pipeline.documents import DOCUMENT_SCHEMA, document_shards, read_groups

    source = artifacts["encode"].inputs[0]
    documents = read_manifest(runtime.root / source.path)
    require_chain((documents,), runtime.root, run.journal(runtime.root))
    listed = document_shards(documents, runtime.root)
    if faults := [fault for output, _ in listed if (fault := output_fault(output, runtime.root))]:
        raise AlteredFile(f"{documents.folder}: {faults[0]}. Remove the folder, then prepare the corpus again.")
    encode = run.config.data.encode
    paths = [path for _, path in listed]
    parts = split_documents(paths, require_labels(run), encode.validation_share)
    schema = pa.schema([DOCUMENT_SCHEMA.field("id"), DOCUMENT_SCHEMA.field("text")])
    table = pa.concat_tables([schema.empty_table(), *(group for path in paths for group in read_groups(path, schema))])
    joined = [np.concatenate([getattr(part, name) for part in parts]) for name in ("numbers", "sides", "units")]
    return table.combine_chunks(), Labelled(*joined)


def _file(path: Path, digest: str, config: ClassificationConfig) -> tuple[pa.Table, Labelled]:
    """Documents of a test file: `text`, the label, and the group.

    Raises:
        AlteredFile: it has not the digest of which the evaluation is.
    """
    import pyarrow as pa

    names, texts, numbers, units = [], [], [], []
    with hashed([path]) as [found]:
        rows = list(read_rows(path, "--test"))
    if found != digest:
        raise AlteredFile(f"--test {path}: was changed since the command began. Run the same command again.")
    for number, row in enumerate(rows, 1):
        name = f"{path.name}#{number}"
        text = row.get("text")
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"--test {path}, row {number}: has no text; correct the row, or leave it out")
        names.append(name)
        texts.append(normalise(text))
        numbers.append(number_of_label(name, row, config))
        units.append(group_of(name, row, config) if config.group else name)
    if not names:
        raise ConfigError(f"--test {path}: has no row; give JSON Lines with a text and a {config.label!r} each")
    fields = pa.schema([DOCUMENT_SCHEMA.field("id"), DOCUMENT_SCHEMA.field("text")])
    labelled = Labelled(np.array(numbers, np.int64), np.full(len(names), "test"), np.array(units))
    return pa.table({"id": names, "text": texts}, fields), labelled


def _examples(
    artifacts: dict[str, Manifest], runtime: Runtime, most: int, table: pa.Table, labelled: Labelled
) -> Examples:
    """Documents as tokens, cut to `most` as training cuts them."""
    ids, ends = load_encoder(artifacts["tokenizer"], runtime.root).encode_column(table["text"])
    tokens = [
        ids[first : min(last - 1, first + most)]
        for first, last in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
    ]
    return Examples(table["id"].to_pylist(), tokens, labelled.numbers, labelled.units.tolist())


def cross_validate(
    run: LoadedRun, loaded: Callable[[str], LoadedRun], runtime: Runtime, processes: int, argv: Sequence[str]
) -> Manifest:
    """Train and test on each fold, and join the figures.

    `loaded` gives the run with one more override; `argv` gives its configuration on a command line.

    Every fold passes the stages, the audit and the gate of its own token shards, and has its own training.

    Raises:
        ConfigError: the run has no folds.
    """
    config = require_labels(run)
    if not config.folds:
        raise ConfigError("set data.encode.classification.folds to the number of parts, such as 5")
    evaluated, trained = [], []
    for fold in range(config.folds):
        chosen = f"data.encode.classification.fold={fold}"
        part = replace(loaded(chosen), journals=run.journals)
        artifacts = corpus(part, runtime)
        judge_corpus(part, artifacts, runtime)
        ended = training(part, artifacts, runtime, processes, [*argv, "--set", chosen])
        checkpoint = runtime.root / str(ended.stats["checkpoint"]["path"])
        evaluated.append(evaluate_classifier(part, artifacts, checkpoint, runtime))
        trained.append(sum(artifacts["encode"].stats["label_counts"]["train"].values()))
    return join_folds(evaluated, trained, runtime)
