"""Bias stage: count tables of mentions, tone and removals.

Reads the kept documents (`redact`) and those that each filter removed, once each, and writes the count tables
of `counts.py` (role `counts`, one Parquet file per table); `parts` holds the same of each shard. Of the counts
`tables.json` is made: suite -> rows with intervals (`tables.py`), which the gates judge.
`findings.json` has the evidence of each significant row (`findings.py`); its sentences are not masked.
Word lists and classifiers are instruments, and are checked by neutral sentences first (`instrument_check.py`).

Promise: any number of workers, in any order, after any crash, gives the same bytes. Documents of a language without
term lists are counted (`documents_without_terms` in the stats, `fates` with the axis "", and the metric `coverage`) and
reported; they never count as documents without a mention.

Price: one pass over the texts. One core of a busy AMD EPYC counts 5.4 million words (35 MB of text) per second, reading
included; removed documents at the same rate. A process needs 0.4 GB of memory.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import not_
from pathlib import Path
from typing import Annotated

import pyarrow as pa
from pydantic import Field, StringConstraints, model_validator

from governance.checks.bias.adverse_impact import Reference
from governance.checks.bias.count_tables import ALL_TABLES, TABLES, merge_parts, write_counts
from governance.checks.bias.counts import KEPT, CountTask, count_shard
from governance.checks.bias.findings import findings_of
from governance.checks.bias.instrument_check import instrument_rows, lexicon_scorers, load_templates
from governance.checks.bias.interval_rows import Row
from governance.checks.bias.representation import uncovered_note
from governance.checks.bias.sentence_tables import Scorer, SentenceScorer
from governance.checks.bias.tables import Choices, Recorded, bias_tables
from governance.checks.bias.word_lists.lexicons import Lexicons, load_lexicons, scale_of
from governance.checks.bias.word_lists.lists_config import SCORED, WordListsConfig
from governance.config import Section
from governance.errors import ConfigError, MissingInput
from governance.files import write_json
from governance.kernels.word_lookup import joined
from governance.log import get_logger
from governance.manifest import Manifest, describe
from governance.parallel import Shard, map_shards
from governance.stage import Made, Recipe, Runtime, run_stage
from governance.stage_order import STAGES
from governance.verified_files import intact

VERSION = 16
FINAL = "redact"
"""The stage whose documents are the corpus."""
FILTERS = tuple(row.name for row in STAGES if row.removes)
"""The stages that remove documents, in order; those that the run has are counted."""
TABLES_FILE = "tables.json"
FINDINGS_FILE = "findings.json"

Models = Mapping[str, tuple[Manifest, Scorer]]
"""Name -> a classifier's artifact, and how it scores texts."""


class SentenceClassifierConfig(Section):
    """Settings `[audit.bias.classifiers.NAME]`: a model of the tone of sentences.

    A sentence's score is the probability of the positive labels minus that of the negative ones, from -1 to 1, or the
    number itself where the model gives one.
    """

    model: str = Field(min_length=1)
    """A fastText file (.bin, .ftz) or a folder of `transformers`, relative to the run's file."""
    positive: tuple[str, ...] = ()
    """Labels of praise; none for a model that gives a number."""
    negative: tuple[str, ...] = ()
    """Labels of blame; others, such as "neutral", count as 0."""
    languages: tuple[str, ...] = Field(min_length=1)
    """Languages whose sentences it scores."""

    @model_validator(mode="after")
    def _check(self) -> SentenceClassifierConfig:
        if bool(self.positive) != bool(self.negative):
            raise ValueError("give both positive and negative: a score is above 0 for praise and below for blame")
        return self


class BiasConfig(WordListsConfig):
    """Settings `[audit.bias]`: word lists, classifiers and comparisons."""

    classifiers: dict[Annotated[str, StringConstraints(pattern="^[a-z0-9_-]+$")], SentenceClassifierConfig] = Field(
        default={}
    )
    """NAME -> a model that scores sentences; instrument "sentiment:NAME"."""
    reference: Reference = "none"
    """Reference of a filter's keep rate: "none", the documents that mention no group of the axis; "highest", the group
    of the axis with the highest rate."""
    parity_reference: str = Field(default="en", pattern="^[a-z]{2,3}$")
    """The language against which the tokenizer's premium is taken."""

    @model_validator(mode="after")
    def _named_apart(self) -> BiasConfig:
        if both := sorted(set(self.classifiers) & set(self.sentiment)):
            raise ValueError(
                f"classifiers and sentiment both have the name {both[0]!r}, so both would be the instrument "
                f'"{SCORED}{both[0]}"; rename one'
            )
        return self


class ScoredBy(Section):
    """A classifier of sentences."""

    model: str
    """Digest of its artifact."""
    languages: tuple[str, ...]


class BiasSection(Section):
    """Settings that decide the bytes."""

    lists: dict[str, str]
    """List -> SHA-256 of its content; its path is not hashed."""
    templates: int
    """Version of the neutral sentences."""
    reference: Reference
    parity_reference: str
    classifiers: dict[str, ScoredBy] = Field(default={}, exclude_if=not_)
    """Instrument -> the model; none enter no key, so that earlier keys stay valid."""


def sentence_scorers(config: BiasConfig, lexicons: Lexicons, tone: Models) -> tuple[SentenceScorer, ...]:
    """The classifiers of `[audit.bias.classifiers]`.

    Args:
        config: the settings.
        lexicons: the word lists.
        tone: the models, by NAME.

    Raises:
        ConfigError: a language has no identity terms.
    """
    for name, of in sorted(config.classifiers.items()):
        if alone := sorted(set(of.languages) - set(lexicons.languages)):
            raise ConfigError(
                f"audit.bias.classifiers.{name}: languages has {alone[0]!r}, which has no identity terms, so nothing "
                "would be scored. Add terms of it with lists.terms, or remove it."
            )
    return tuple(
        SentenceScorer(f"{SCORED}{name}", of.languages, tone[name][1])
        for name, of in sorted(config.classifiers.items())
    )


def bias_audit(
    artifacts: Mapping[str, Manifest],
    config: BiasConfig,
    runtime: Runtime,
    folder: Path = Path(),
    models: Models | None = None,
    tone: Models | None = None,
) -> Manifest:
    """Count the corpus of these artifacts, and measure it.

    Args:
        artifacts: stage -> manifest; `redact`, the filters that the run has, and `encode` where it is made.
        config: word lists and comparisons.
        runtime: where to write.
        folder: base of relative paths in `config`.
        models: classifiers of this corpus, checked as instruments.
        tone: those of `config.classifiers`.

    Raises:
        MissingInput: `redact` is missing.
        ConfigError: a word list is invalid, or a classifier's language has none.
        PipelineError: a classifier gives a score that is not a number.
        ManifestError: a shard cannot be read.
    """
    if FINAL not in artifacts:
        raise MissingInput(f"bias: the artifact {FINAL} is missing. Make it with: {runtime.command}")
    lexicons = load_lexicons(config, folder)
    templates, models, tone = _templates(), models or {}, tone or {}
    scorers = sentence_scorers(config, lexicons, tone)
    section = BiasSection(
        lists=dict(lexicons.files),
        templates=templates.version,
        reference=config.reference,
        parity_reference=config.parity_reference,
        classifiers={
            f"{SCORED}{name}": ScoredBy(model=tone[name][0].digest, languages=of.languages)
            for name, of in sorted(config.classifiers.items())
        },
    )
    recipe = Recipe("bias", VERSION, section)
    filters = [stage for stage in FILTERS if stage in artifacts]

    def make(folder: Path) -> Made:
        task = partial(CountTask, lexicons=lexicons, scorers=scorers)
        shards = _shards(artifacts[FINAL], "documents", partial(task, stage=KEPT), runtime.root)
        for stage in filters:
            shards += _shards(artifacts[stage], "removed", partial(task, stage=stage), runtime.root)
        done = map_shards(recipe, count_shard, shards, folder, runtime)
        parts = [shard.outputs["parts"] for shard in done]
        with contextlib.ExitStack() as reading:
            counts = merge_parts([reading.enter_context(intact(part, runtime.root)) for part in parts])
        for name, table in counts.items():
            write_counts(folder / "counts" / f"{name}.parquet", table)
        present = set(counts["documents"]["language"].to_pylist())
        checked = _checked(lexicons, models, scorers, sorted(present & lexicons.languages.keys()))
        with_attributes = [code for code, lexicon in lexicons.languages.items() if lexicon.categories]
        choices = Choices(
            listed={code: lexicon.groups for code, lexicon in lexicons.languages.items()},
            scored={**lexicons.scored, "attributes": with_attributes},
            classified={scorer.instrument: scorer.languages for scorer in scorers},
            reference=config.reference,
            parity_reference=config.parity_reference,
        )
        recorded = Recorded(
            redact=artifacts[FINAL].stats,
            actions=artifacts[FINAL].config.get("actions", {}),
            encode=artifacts["encode"].stats if "encode" in artifacts else {},
        )
        tables = bias_tables(counts, recorded, checked, choices)
        write_json(folder / TABLES_FILE, tables)
        write_json(folder / FINDINGS_FILE, findings_of(tables, counts, lexicons))
        written = [describe(folder / "counts" / f"{name}.parquet", runtime.root) for name in ALL_TABLES]
        written += [describe(folder / name, runtime.root) for name in (TABLES_FILE, FINDINGS_FILE)]
        return Made([*parts, *written], _stats(counts, lexicons))

    inputs = [artifacts[stage].as_input() for stage in (*filters, FINAL, "encode") if stage in artifacts]
    inputs += [model.as_input() for model, _ in (*models.values(), *tone.values())]
    return run_stage(recipe, inputs, runtime, make)


_templates = functools.cache(load_templates)


def _checked(
    lexicons: Lexicons, models: Models, scorers: Sequence[SentenceScorer], languages: Sequence[str]
) -> list[Row]:
    """The rows of all instruments of these languages: word lists and classifiers."""
    of_models = {f"classifier:{name}": scorer for name, (_, scorer) in models.items()}  # no list has such a name
    classifiers = {
        code: of_models | {scorer.instrument: scorer.score for scorer in scorers if code in scorer.languages}
        for code in languages
    }
    rows = instrument_rows(classifiers, _terms(lexicons), _templates())
    rows += [dict(row) for code in languages for row in _list_rows(lexicons, code)]
    return sorted(rows, key=lambda row: (str(row["language"]), str(row["instrument"])))


@functools.lru_cache(maxsize=64)
def _list_rows(lexicons: Lexicons, code: str) -> tuple[Row, ...]:
    """The rows of a language's word lists, which nothing else decides."""
    return tuple(instrument_rows({code: _list_scorers(lexicons, code)}, _terms(lexicons), _templates()))


def _list_scorers(lexicons: Lexicons, code: str) -> dict[str, Scorer]:
    """A scorer for each word list of a language."""
    from governance.kernels.mentions import WEIGHT

    lexicon = lexicons.languages[code]
    weights: dict[str, dict[str, float]] = {name: {} for name in lexicons.instruments}
    for term, labels in lexicon.others.items():
        for kind, number, weight in labels:
            if kind == WEIGHT:
                name = lexicons.instruments[number]
                weights[name][joined(term)] = weight / scale_of(name)
    return lexicon_scorers({name: of for name, of in weights.items() if of}, lexicon.identity)


@functools.lru_cache(maxsize=4)
def _terms(lexicons: Lexicons) -> dict[str, dict[tuple[str, str], list[str]]]:
    """Language -> (axis, group) -> its terms, as text."""
    found: dict[str, dict[tuple[str, str], list[str]]] = {}
    for code, lexicon in lexicons.languages.items():
        groups: dict[tuple[str, str], list[str]] = {group: [] for group in lexicon.groups}
        for term, of in lexicon.identity.items():
            for number in of:
                groups[lexicon.groups[number]].append(joined(term))
        found[code] = {group: terms for group, terms in groups.items() if terms}
    return found


def _shards(manifest: Manifest, role: str, task_of: Callable[[Path], CountTask], root: Path) -> list[Shard]:
    tasks = [(task_of(root / of.path), of) for of in manifest.listed(role)]
    return [Shard(f"{task.stage}-{Path(of.path).stem}", (task.stage, of.sha256), task, (of,)) for task, of in tasks]


def _stats(counts: Mapping[str, pa.Table], lexicons: Lexicons) -> dict[str, object]:
    """Sizes of the tables, as integers."""
    documents = counts["documents"]
    by_language: dict[str, int] = {}
    for code, number in zip(documents["language"].to_pylist(), documents["documents"].to_pylist(), strict=True):
        by_language[code] = by_language.get(code, 0) + number
    without = {code: number for code, number in by_language.items() if code not in lexicons.languages}
    if without:
        note = uncovered_note(without, sum(by_language.values()))
        get_logger(__name__).warning("bias: %s; their mentions are unknown", note)
    totals = {name: sum(documents[name].to_pylist()) for name in TABLES["documents"][1]}
    rows = {name: table.num_rows for name, table in counts.items()}
    left_out = {"left_out_terms": lexicons.left_out}
    if lexicons.left_out_names is not None:
        left_out["left_out_names"] = lexicons.left_out_names
    return {**totals, "documents_without_terms": without, **left_out, "rows": rows}
