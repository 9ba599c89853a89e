"""Preflight of the corpus: every path that the configuration names.

Promise: everything that can be checked without reading the corpus is reported now, in one message, not hours later by
its stage. `check` looks up each path (sources, opt-out files, lists, labelled files, evaluation sets, earlier corpora,
a given tokenizer, the key of the pseudonyms) and the languages that are named. `make_file_artifacts` makes the
artifacts that depend on files alone (lists, classifiers, evaluation sets), so that a wrong field in them is reported
before the corpus is read; their stages find them.

Not checked: what is behind a URL, in a package or on the hub. `ingest` fetches that first and reports the errors of the
network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.code.select_code import CodeConfig, check_opt_outs
from data_pipeline.decontamination.evaluation_sets import evaluation_sets
from data_pipeline.dedup.dedup import earlier_corpora
from data_pipeline.dedup.join import require_engine
from data_pipeline.documents import CODE_LANGUAGE
from data_pipeline.filters.blocklists import make_lists
from data_pipeline.filters.classifier import train_classifier
from data_pipeline.filters.language import known_codes
from data_pipeline.filters.model_files import model_files
from data_pipeline.filters.own_filters import find_filters
from data_pipeline.filters.own_language_model import own_language_model, require_file
from data_pipeline.pii.credential_rules import read_rules
from data_pipeline.pii.entities.entity_finder import finder_files
from data_pipeline.pii.pii_actions import read_key
from data_pipeline.pii.redact import PiiConfig
from data_pipeline.readers.items import find_source
from data_pipeline.readers.local import find_files
from data_pipeline.readers.sources import SyntheticSource
from data_pipeline.synthetic.synthesize import check_synthetic
from data_pipeline.tokens.tokenizer import take_over
from governance.errors import ConfigError, PipelineError
from governance.stage import Runtime

if TYPE_CHECKING:
    from data_pipeline.config import DataConfig


def check(config: DataConfig, folder: Path, root: Path, engine: str) -> None:
    """Look up every path of the configuration.

    Relative ones start at `folder`, earlier corpora at `root`.

    `engine` is that of the joins, which must be installed.

    Raises:
        ConfigError: at least one named file or setting is of the wrong kind.
        PipelineError: files are missing; faults of one kind keep their class, mostly `MissingInput`.
    """
    faults: list[PipelineError] = []
    looks: list[Callable[[], Any]] = [*_looks(config, folder, root), partial(require_engine, engine)]
    for look in looks:
        try:
            look()
        except PipelineError as error:
            faults.append(error)
    if len(faults) > 1:
        kinds = {type(fault) for fault in faults}
        kind = kinds.pop() if len(kinds) == 1 else ConfigError
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise kind(f"{len(faults)} faults; nothing was made yet\n{lines}")
    if faults:
        raise faults[0]


def _looks(config: DataConfig, folder: Path, root: Path) -> Iterator[Callable[[], Any]]:
    for source in config.sources:
        yield from find_source(source, folder)
    taught = [source for source in config.sources if isinstance(source, SyntheticSource)]
    yield from (partial(check_synthetic, source, config.sources, folder) for source in taught)
    yield partial(_check_languages, config, folder)
    for kind, patterns in config.lists.files() if config.lists else ():
        yield partial(find_files, patterns, folder, f"data.lists.{kind}")
    yield partial(check_opt_outs, config.code or CodeConfig(), folder)
    if config.filters:
        yield partial(find_filters, config.filters, folder)
    for model in config.classifiers:
        if model.model:
            yield partial(model_files, folder / model.model, model.name)
        else:
            yield partial(find_files, model.paths, folder, f"classifier {model.name}")
    for wanted in config.decontaminate.sets if config.decontaminate else ():
        yield partial(find_files, wanted.paths, folder, f"evaluation set {wanted.name}")
    for name in config.dedup.against:
        yield partial(earlier_corpora, config.dedup.model_copy(update={"against": (name,)}), root)
    yield from _personal_data(config.pii, folder)
    if config.tokenizer.path:
        yield partial(take_over, folder / config.tokenizer.path, config.tokenizer)


def _personal_data(config: PiiConfig, folder: Path) -> Iterator[Callable[[], Any]]:
    if "pseudonymise" in config.plan().values():
        yield partial(read_key, config.key_file, folder)
    if config.credential_rules:
        yield partial(read_rules, folder / config.credential_rules)
    if config.finder is not None:
        yield partial(finder_files, config.finder, folder)


def _check_languages(config: DataConfig, folder: Path) -> None:
    """Refuse language codes that no document can have."""
    own = folder / config.clean.language_model if config.clean.language_model else None
    if own is not None:
        require_file(own)
    named = {
        "data.clean.languages": config.clean.languages,
        "data.clean.by_language": config.clean.by_language,
        "data.lists.words": [code for code in config.lists.words if code != "*"] if config.lists else (),
        "data.mix.language_quotas": config.mix.language_quotas if config.mix else (),
    }
    if not any(named.values()):
        return
    known = known_codes(own) | {CODE_LANGUAGE}
    for field, codes in named.items():
        for code in codes:
            if code not in known:
                raise ConfigError(
                    f"{field}: {code!r} is not a language that documents are identified as. Use the code of ISO 639-1 "
                    f"(en, fr, zh), else of 639-3 (ceb, arz), and und for unknown."
                )


def make_file_artifacts(config: DataConfig, folder: Path, runtime: Runtime) -> None:
    """Make the artifacts next to the corpus that depend on files alone.

    Raises:
        PipelineError: a list, a labelled file or an evaluation set cannot be used; each stage says which.
    """
    if config.lists:
        make_lists(config.lists, folder, runtime)
    if config.clean.language_model:
        own_language_model(folder / config.clean.language_model, runtime)
    for model in config.classifiers:
        train_classifier(model, folder, runtime)
    if config.decontaminate:
        evaluation_sets(config.decontaminate.sets, folder, runtime)
