"""Evaluation of a run's checkpoint: validation loss, tasks, bias, memorisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.config import LoadedRun
from assay.corpus_audit import bias_counts
from assay.corpus_gate import require_corpus
from governance.manifest import Manifest
from governance.stage import Runtime
from pretrain.evaluation.tasks import open_tasks

if TYPE_CHECKING:
    from pretrain.evaluation.scores import Suite
    from pretrain.evaluation.validation import Measurement


def task_suite(run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime, window: int) -> Suite:
    """The questions of the run, encoded with its tokenizer."""
    from data_pipeline.tokens.tokenizer import load_encoder
    from pretrain.evaluation.scores import encode_tasks

    encode = load_encoder(artifacts["tokenizer"], runtime.root).encode
    return encode_tasks(open_tasks(run.config.evaluation, run.folder), encode, window)


def evaluation(
    run: LoadedRun, artifacts: Mapping[str, Manifest], checkpoint: Path, runtime: Runtime, others: Sequence[Manifest]
) -> tuple[Measurement, list[dict[str, Any]]]:
    """Validation loss and task scores of a checkpoint's mean with `others`.

    Raises:
        GateClosed: the validation shards are not as the journal states them.
    """
    from pretrain.evaluation.validation import evaluate

    require_corpus(run, artifacts, runtime, "validation")
    tokens = artifacts.get("pack", artifacts["encode"])
    suite = partial(task_suite, run, artifacts, runtime) if run.config.evaluation.tasks else None
    return evaluate(checkpoint, tokens, run.config.engine, runtime.root, suite, others)


def model_audit(run: LoadedRun, artifacts: Mapping[str, Manifest], checkpoint: Path, runtime: Runtime) -> Manifest:
    """Make or find a checkpoint's bias measurement."""
    from data_pipeline.tokens.tokenizer import load_encoder
    from pretrain.checkpoint.format import identity_of, read_checkpoint
    from pretrain.evaluation.model_bias import Score, audit_model, scorer_of

    verified = read_checkpoint(checkpoint, runtime.root)
    tokenizer = artifacts["tokenizer"]

    def scorer() -> Score:
        window = identity_of(verified).recipe.train.sequence_length
        encode = load_encoder(tokenizer, runtime.root).encode
        return scorer_of(verified, encode, window, runtime.root, run.config.engine.device)

    bias_of = partial(bias_counts, run, dict(artifacts), runtime)
    return audit_model(verified, tokenizer, scorer, run.config.model_audit, run.folder, runtime, bias_of)


def memorisation(run: LoadedRun, artifacts: Mapping[str, Manifest], checkpoint: Path, runtime: Runtime) -> Manifest:
    """Make or find a checkpoint's memorisation probe.

    Raises:
        GateClosed: a token shard is not as the journal states it.
        CheckpointError: the checkpoint was not trained on the run's token shards.
    """
    from pretrain.checkpoint.format import read_checkpoint
    from pretrain.data.tokenizer_check import refuse_foreign_tokenizer
    from pretrain.inference.loaded_model import load_model
    from pretrain.inference.memorisation import probe_memorisation

    for role in ("train", "validation"):
        require_corpus(run, artifacts, runtime, role)
    verified = read_checkpoint(checkpoint, runtime.root)
    refuse_foreign_tokenizer(verified, artifacts["encode"], runtime.root)
    model = partial(load_model, verified, run.config.engine, runtime.root)
    return probe_memorisation(verified, artifacts["encode"], run.config.memorisation, model, runtime)
