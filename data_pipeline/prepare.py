"""The corpus on a page: from sources to packed token shards.

    sources -> ingest -> clean -> [code] -> [filter] -> [classify] -> dedup -> [paragraphs] -> [substrings]
            -> [decontaminate] -> redact -> tokenizer -> [mix] -> encode -> [pack]

Each line below is a stage: it finds its artifact or makes it. This call graph is the whole schedule; running it again
resumes where it stopped. A stage in brackets runs only if its section is in the run's file. Before the first one,
`corpus_preflight.py` checks that everything exists that the file names.

A *data step* is one pass of a stage over all its shards: what the tasks of an array can share (`Runtime.mode`).
`survey` says beforehand how many arrays there will be, and of what size; no artifact depends on it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.code.select_code import select_code
from data_pipeline.config import DataConfig
from data_pipeline.corpus_preflight import check, make_file_artifacts
from data_pipeline.decontamination.decontaminate import decontaminate
from data_pipeline.decontamination.evaluation_sets import evaluation_sets
from data_pipeline.dedup.dedup import dedup, earlier_corpora
from data_pipeline.dedup.paragraphs import drop_paragraphs
from data_pipeline.dedup.substrings import drop_substrings
from data_pipeline.filters.blocklists import make_lists
from data_pipeline.filters.classifier import classify, train_classifier
from data_pipeline.filters.clean import clean
from data_pipeline.filters.own_filters import own_filters
from data_pipeline.filters.own_language_model import own_language_model
from data_pipeline.ingest import ingest
from data_pipeline.pii.redact import redact
from data_pipeline.readers.parts import expected_items, has_lines, may_overflow, plan, text_bytes
from data_pipeline.tokens.encode import encode
from data_pipeline.tokens.mix import mix
from data_pipeline.tokens.pack import pack
from data_pipeline.tokens.tokenizer import train_tokenizer
from governance.errors import ConfigError
from governance.log import get_logger, run_steps
from governance.manifest import Manifest
from governance.parallel import close_pool
from governance.stage import Runtime, earlier_seconds
from governance.stage_order import CORPUS_STAGES, StageRow


def stages(config: DataConfig, folder: Path, runtime: Runtime) -> Iterator[Manifest]:
    """Make or find the artifacts of the corpus, in order.

    `folder` is where relative paths start.

    Raises:
        PipelineError: something that the configuration names is missing or cannot be used, before anything is made.
        ConfigError: a stage left no document.
        MissingInput: `runtime.make` is False and this stage is not made yet.
    """
    try:
        if runtime.make:
            joins = runtime.mode != "share"
            check(config, folder, runtime.root, runtime.engine if joins else "duckdb")
            if joins:
                make_file_artifacts(config, folder, runtime)
        for manifest in _stages(config, folder, runtime):
            if runtime.make and manifest.stage in _MAY_REMOVE:
                _refuse_empty(manifest)
            yield manifest
    finally:
        close_pool()  # idle workers hold memory that training needs


def _stages(config: DataConfig, folder: Path, runtime: Runtime) -> Iterator[Manifest]:
    """The call graph: each stage takes the documents of the one before."""
    yield (documents := ingest(config.sources, config.ingest, folder, runtime))
    lists = None if config.lists is None else make_lists(config.lists, folder, runtime)
    own = config.clean.language_model
    language_model = own_language_model(folder / own, runtime) if own else None
    yield (documents := clean(documents, config.clean, runtime, lists, language_model))
    if config.code is not None:
        yield (documents := select_code(documents, config.code, config.sources, runtime, folder))
    if config.filters:
        yield (documents := own_filters(documents, config.filters, runtime, folder))
    scored = None
    if config.classifiers:
        models = [(model, train_classifier(model, folder, runtime)) for model in config.classifiers]
        yield (documents := (scored := classify(documents, models, runtime)))
    earlier = earlier_corpora(config.dedup, runtime.root)
    yield (documents := dedup(documents, config.dedup, runtime, earlier))
    if config.paragraphs is not None:
        yield (documents := drop_paragraphs(documents, config.paragraphs, runtime))
    if config.substrings is not None:
        yield (documents := drop_substrings(documents, config.substrings, runtime))
    if config.decontaminate is not None:
        sets = evaluation_sets(config.decontaminate.sets, folder, runtime)
        yield (documents := decontaminate(documents, sets, config.decontaminate, runtime))
    yield (documents := redact(documents, config.pii, runtime, folder))
    yield (tokenizer := train_tokenizer(documents, config.tokenizer, runtime, folder))
    mixture = None
    if config.mix is not None:
        ranked = config.mix.ranked_by(model.name for model in config.classifiers)
        yield (mixture := mix(documents, config.mix, runtime, scored if ranked else None))
    yield (tokens := encode(documents, tokenizer, config.encode, runtime, mixture))
    if config.pack is not None:
        yield pack(tokens, config.pack, runtime)


_MAY_REMOVE = frozenset(row.name for row in CORPUS_STAGES if row.removes) | {"ingest"}
"""Stages that may leave no document."""
_SECTIONS = {
    "ingest": "[[data.sources]]: type, paths and the names of fields",
    "filter": "the bounds and functions of [[data.filters]]",
    "classify": "the bounds of [[data.classifiers]]",
}
"""Stage -> settings that an error names; `[data.STAGE]` for any other stage."""


def _refuse_empty(documents: Manifest) -> None:
    """Refuse a stage's result without any document.

    Warns if a source lost all of its documents.

    Raises:
        ConfigError: the stage removed all of them, so that later stages would have nothing to do.
    """
    stats, stage = documents.stats, documents.stage
    if stats["documents_kept"]:
        for source, counts in sorted(stats.get("by_source", {}).items()):
            if not counts["documents_kept"] and (why := _reasons(counts)):
                words = "%s: no document of source %s is left of %s (%s)"
                get_logger(__name__).warning(words, stage, source, f"{counts['documents_in']:,}", why)
        return
    why = _reasons(stats)
    what = "no record became a document" if stage == "ingest" else "no document is left"
    raise ConfigError(
        f"{stage}: {what} of {stats['documents_in']:,}{f' ({why})' if why else ''}. "
        f"Change {_SECTIONS.get(stage, f'[data.{stage}]')}; see examples with: assay data show CONFIG"
    )


def _reasons(counts: Mapping[str, Any]) -> str:
    """Reasons of removals, the most frequent first; then those of skipped records."""
    removed = sorted(counts["removed"].items(), key=lambda item: -item[1])
    skipped = sorted(counts.get("passed_over", {}).items())
    lists = (("", removed), ("skipped: ", skipped))
    return "; ".join(head + ", ".join(f"{why} {count:,}" for why, count in rows) for head, rows in lists if rows)


def stage_names(config: DataConfig) -> tuple[str, ...]:
    """The stages of the corpus, in order."""
    return tuple(row.name for row in _present(config))


def _present(config: DataConfig) -> Iterator[StageRow]:
    """Rows of the stages that the configuration switches on."""
    return (row for row in CORPUS_STAGES if not row.optional or getattr(config, row.switch or row.name))


def prepare(config: DataConfig, folder: Path, runtime: Runtime) -> dict[str, Manifest]:
    """Every artifact of the corpus by stage, in order."""
    names = stage_names(config)
    with run_steps(names, earlier_seconds(runtime.root, names) if runtime.make else {}):
        return {manifest.stage: manifest for manifest in stages(config, folder, runtime)}


@dataclass(frozen=True)
class Survey:
    """Expected size of the sources, by file names and sizes alone."""

    steps: tuple[str, ...]
    """The data steps in order, each named after its stage: "ingest", "clean", "dedup", "dedup-2", ..."""
    shards: int
    """About how many document shards `ingest` will make, at least one."""
    bytes: int
    """About how much text the sources hold."""
    folders: tuple[Path, ...]
    """The local folder of each source; a fetched source has none."""


def survey(config: DataConfig, folder: Path, runtime: Runtime) -> Survey:
    """List the files of each source once.

    The server of a remote source is queried for their names; what the hub lists is kept below the root.

    The steps of `ingest` depend on the files: large plain ones are cut before they are read; afterwards a source's own
    ids are compared, and the shards of a packed file or an archive get their numbers. A step without work costs an
    empty array.

    Raises:
        MissingInput: a source's file is missing.
    """
    size = config.ingest.shard_bytes
    found = [(source, expected_items(source, folder, size, runtime)) for source in config.sources]
    items = [(source, item) for source, of_source in found for item in of_source]
    cut = any(item.part and has_lines(source, item) for source, item in items)
    placed = any(source.fields.id or may_overflow(item, size) for source, item in items)
    passes = {row.name: row.passes for row in _present(config)} | {"ingest": 1 + cut + placed}
    readings = [reading for source, of_source in found for reading in plan(source, of_source, size)]
    parents = [
        {str(item.path.absolute().parent) for item in of_source if item.path is not None} for _, of_source in found
    ]
    return Survey(
        tuple(f"{stage}-{n}" if n > 1 else stage for stage, count in passes.items() for n in range(1, count + 1)),
        sum(max(1, math.ceil(sum(map(text_bytes, reading.items)) / size)) for reading in readings),
        sum(text_bytes(item) for _, item in items),
        tuple(Path(os.path.commonpath(paths)) for paths in parents if paths),
    )
