"""Evaluation of a run's checkpoint: validation loss, tasks, bias, memorisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from assay.config import LoadedRun
from assay.corpus_audit import bias_counts
from assay.corpus_gate import require_corpus
from assay.training_recipe import training_rows
from data_pipeline.normalised_text import normalise
from data_pipeline.text_index.search import find_spans
from data_pipeline.tokens.tokenizer import load_encoder
from governance.gate.chain import require_chain
from governance.manifest import Manifest
from governance.stage import Runtime
from pretrain.checkpoint.format import identity_of, read_checkpoint
from pretrain.config.training import EvaluationConfig
from pretrain.data.tokenizer_check import refuse_foreign_tokenizer
from pretrain.evaluation.model_bias import Score, audit_model, scorer_of
from pretrain.evaluation.scores import Suite, encode_tasks
from pretrain.evaluation.tasks import open_tasks
from pretrain.evaluation.validation import Measurement, evaluate
from pretrain.inference.loaded_model import load_model
from pretrain.inference.memorisation import probe_memorisation
from pretrain.inference.verbatim_generations import VerbatimConfig, measure_verbatim

_GENERATIONS, _GENERATED = 100, 256
"""Most generations of a split whose verbatim share is measured, and most tokens of each."""


def task_suite(
    run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime, config: EvaluationConfig, window: int
) -> Suite:
    """The questions of `config`, encoded with the run's tokenizer.

    Those of a training are pinned, so that a file that is exchanged meanwhile is refused.
    """
    encode = load_encoder(artifacts["tokenizer"], runtime.root).encode
    return encode_tasks(open_tasks(config, run.folder), encode, window)


def evaluation(
    run: LoadedRun, artifacts: Mapping[str, Manifest], checkpoint: Path, runtime: Runtime, others: Sequence[Manifest]
) -> tuple[Measurement, list[dict[str, Any]]]:
    """Validation loss and task scores of a checkpoint's mean with `others`.

    Raises:
        GateClosed: the validation shards are not as the journal states them.
    """
    require_corpus(run, artifacts, runtime, "validation")
    tokens = training_rows(artifacts)
    suite = partial(task_suite, run, artifacts, runtime, run.config.evaluation) if run.config.evaluation.tasks else None
    return evaluate(checkpoint, tokens, run.config.engine, runtime.root, suite, others)


def model_audit(run: LoadedRun, artifacts: Mapping[str, Manifest], checkpoint: Path, runtime: Runtime) -> Manifest:
    """Make or find a checkpoint's bias measurement."""
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
    require_corpus(run, artifacts, runtime, "train", "validation")
    verified = read_checkpoint(checkpoint, runtime.root)
    refuse_foreign_tokenizer(verified, artifacts["encode"], runtime.root)
    model = partial(load_model, verified, run.config.engine, runtime.root)
    return probe_memorisation(verified, artifacts["encode"], run.config.memorisation, model, runtime)


def verbatim(run: LoadedRun, artifacts: Mapping[str, Manifest], checkpoint: Path, runtime: Runtime) -> Manifest | None:
    """Make or find the verbatim share of a checkpoint's generations.

    The result is None where the corpus has no index (`assay data index`).

    Raises:
        GateClosed: a token shard or the index is not as the journal states it.
        AlteredFile: a file of the index was altered.
    """
    from assay.trace_text.traced_text import find_index, open_sound_index
    from pretrain.inference.generation import generate

    tokens, engine, settings = artifacts["encode"], run.config.engine, run.config.memorisation
    if (made := find_index(tokens, runtime.root)) is None:
        return None
    require_corpus(run, artifacts, runtime, "train", "validation")
    require_chain((made,), runtime.root, run.journal(runtime.root))
    verified = read_checkpoint(checkpoint, runtime.root)
    room = identity_of(verified).recipe.train.sequence_length - settings.prefix_tokens
    config = VerbatimConfig(
        prefix_tokens=settings.prefix_tokens,
        max_tokens=min(_GENERATED, room),
        generations=min(_GENERATIONS, settings.sequences),
    )

    def continued(prompts: Sequence[Any]) -> list[str]:
        encoder = load_encoder(artifacts["tokenizer"], runtime.root)
        model = load_model(verified, engine, runtime.root)
        found = generate(model, prompts, encoder.end_of_document, config.max_tokens, batch_rows=engine.micro_batch_size)
        pairs = zip(prompts, found, strict=True)
        return [normalise(encoder.decode_after(prompt.tolist(), one.ids)) for prompt, one in pairs]

    opened = cache(lambda: open_sound_index(made, runtime.root, runtime.hooks))

    def passages(text: str, least: int) -> list[tuple[int, int]]:
        return find_spans(opened(), text, least)

    return measure_verbatim((verified, tokens, made), config, continued, passages, runtime)
