"""The `[data]` section of a run's file, one field a stage."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from data_pipeline.code.licences import listed_licences
from data_pipeline.code.select_code import CodeConfig
from data_pipeline.decontamination.decontaminate import DecontaminateConfig
from data_pipeline.dedup.duplicates import ATTRIBUTES, DedupConfig
from data_pipeline.dedup.paragraphs import ParagraphsConfig
from data_pipeline.dedup.substrings import SubstringsConfig
from data_pipeline.filters.blocklists import BlocklistsConfig
from data_pipeline.filters.classifier import ClassifierConfig
from data_pipeline.filters.clean import CleanConfig, cuts_lines
from data_pipeline.filters.own_filters import OwnFilterConfig
from data_pipeline.ingest import IngestConfig
from data_pipeline.pii.redact import PiiConfig
from data_pipeline.readers.file_types.code_settings import LicenceLists
from data_pipeline.readers.sources import (
    CodeSource,
    ParallelSource,
    Source,
    SyntheticSource,
    kept_columns,
    licence_lists,
)
from data_pipeline.tokens.encode import EncodeConfig
from data_pipeline.tokens.mixture_sizes import SOURCE, MixConfig, fault_of_shares
from data_pipeline.tokens.pack import PackConfig
from data_pipeline.tokens.tokenizer import TokenizerConfig
from governance.config import Section


class DataConfig(Section):
    """The data half of a run's file: one field for each stage."""

    sources: tuple[Source, ...] = Field(min_length=1)
    """Sources of raw text, in the order in which ties between duplicates are broken."""
    ingest: IngestConfig = IngestConfig()
    lists: BlocklistsConfig | None = None
    """Block lists and word lists, which `clean` uses; absent: none."""
    clean: CleanConfig = CleanConfig()
    code: CodeConfig | None = Field(default=None, validate_default=True)
    """Rules on source files; absent: no such stage, unless a source is of type `code`: then the defaults hold."""
    filters: tuple[OwnFilterConfig, ...] = ()
    """Bounds on kept columns, and functions of the run's own, that remove documents; none: no such stage."""
    classifiers: tuple[ClassifierConfig, ...] = ()
    """Models that are trained from labelled files and judge every document; none: no such stage."""
    dedup: DedupConfig = DedupConfig()
    paragraphs: ParagraphsConfig | None = None
    """Cut repeated paragraphs and lines; absent: no such stage."""
    substrings: SubstringsConfig | None = None
    """Cut repeated substrings, wherever paragraphs begin; absent: no such stage."""
    decontaminate: DecontaminateConfig | None = None
    """Keep the corpus clean of evaluation sets; absent: no such stage."""
    pii: PiiConfig = PiiConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    mix: MixConfig | None = None
    """Weigh sources and languages; absent: each document once."""
    encode: EncodeConfig = EncodeConfig()
    pack: PackConfig | None = None
    """Fill rows by best fit; absent: rows are stretches of the token stream."""

    @model_validator(mode="after")
    def _mix_fits_sources(self) -> DataConfig:
        names = [source.name for source in self.sources]
        config = self.mix or MixConfig()
        if config.by != SOURCE:
            if without := [source.name for source in self.sources if config.by not in kept_columns(source)]:
                raise ValueError(
                    f'mix.by names {config.by!r}, which is neither "source" nor in `columns` of the source(s) '
                    f"{', '.join(without)}; correct it, or keep the column (sources keep: {self._kept_names()})"
                )
            return self
        for field in ("weights", "max_epochs_of", "source_quotas"):
            if unknown := sorted(getattr(config, field).keys() - set(names)):
                raise ValueError(
                    f"mix.{field} names {unknown[0]!r}, which is not a source; the sources are: {', '.join(names)}"
                )
        if config.weights and (unnamed := [name for name in names if name not in config.weights]):
            raise ValueError(f"mix.weights does not name {', '.join(unnamed)}; give each a weight, 0 to leave it out")
        mixed = [name for name in names if config.weights.get(name, 1) and config.max_epochs_of.get(name, 1)]
        if fault := fault_of_shares("source", mixed, config.source_quotas):
            raise ValueError(fault)
        return self

    @model_validator(mode="after")
    def _answers_are_whole(self) -> DataConfig:
        loss_on = self.encode.loss_on
        pairs = [one.name for one in self.sources if isinstance(one, ParallelSource)]
        if loss_on != "targets" and pairs:
            raise ValueError(
                f"source {pairs[0]} has pairs of texts: set encode.loss_on = 'targets', which keeps the two apart"
            )
        if loss_on == "all":
            return self
        if loss_on == "targets":
            other, needed = [one.name for one in self.sources if one.name not in pairs], "type = 'parallel'"
        else:
            other = [one.name for one in self.sources if getattr(one, "messages_form", "") != "instructions"]
            needed = "messages_form = 'instructions'"
        if other:
            raise ValueError(
                f"encode.loss_on = {loss_on!r} needs {needed} in every source; it is not in {', '.join(other)}"
            )
        if self.pack is None or self.pack.min_used_share:
            raise ValueError(
                f"encode.loss_on = {loss_on!r} needs [data.pack] with min_used_share = 0, so that no row cuts a chat "
                "or a pair"
            )
        if self.paragraphs is not None or self.substrings is not None:
            raise ValueError(
                f"encode.loss_on = {loss_on!r} excludes [data.paragraphs] and [data.substrings], which cut repeated "
                "text out of chats and pairs, such as a system prompt; remove the section"
            )
        if cuts_lines(self.clean):
            raise ValueError(
                f"encode.loss_on = {loss_on!r} excludes clean.c4_lines, which the preset 'fineweb' turns on: it cuts "
                "lines out of chats and pairs; set clean.c4_lines = false"
            )
        return self

    @model_validator(mode="after")
    def _labels_are_whole(self) -> DataConfig:
        config = self.encode.classification
        if config is None:
            return self
        for source in self.sources:
            if without := [name for name in config.columns if name not in kept_columns(source)]:
                raise ValueError(
                    f"encode.classification reads {without[0]!r}, which is not in `columns` of the source "
                    f"{source.name}; keep the column there, or correct its name (sources keep: {self._kept_names()})"
                )
        if self.encode.loss_on != "all" or self.mix is not None:
            raise ValueError("encode.classification excludes encode.loss_on = 'answers' and [data.mix]; remove them")
        if self.pack is None or self.pack.min_used_share:
            raise ValueError(
                "encode.classification needs [data.pack] with min_used_share = 0, so that no row cuts a text"
            )
        return self

    @model_validator(mode="after")
    def _qualities_exist(self) -> DataConfig:
        quality = self.mix.quality if self.mix else None
        if quality is None:
            return self
        classifiers = [model.name for model in self.classifiers]
        known = ", ".join(classifiers) or "there is none"
        for name in quality.names:
            if name in classifiers:
                if name == quality.topic:
                    raise ValueError(
                        f'mix.quality.topic = "{name}" is a classifier; write a list: topic = ["{name}", ...]'
                    )
                continue
            if name != quality.score and name != quality.topic:
                raise ValueError(
                    f"mix.quality.topic lists {name!r}, which is not a classifier ({known}); a value of `columns` is "
                    f'written without brackets: topic = "{name}"'
                )
            if without := [source.name for source in self.sources if name not in kept_columns(source)]:
                raise ValueError(
                    f"mix.quality names {name!r}, which is neither a classifier ({known}) nor in `columns` of the "
                    f"source(s) {', '.join(without)}; correct it, or keep the column (sources keep: "
                    f"{self._kept_names()})"
                )
        return self

    def _kept_names(self) -> str:
        """Names of the columns that any source keeps."""
        return ", ".join(dict.fromkeys(name for one in self.sources for name in kept_columns(one))) or "none"

    @model_validator(mode="after")
    def _preferences_exist(self) -> DataConfig:
        classifiers = [model.name for model in self.classifiers]
        columns = [name for source in self.sources for name in kept_columns(source)]
        for name in self.dedup.prefer:
            if name not in (*ATTRIBUTES, *classifiers, *columns):
                raise ValueError(
                    f"dedup.prefer names {name!r}, which is neither {', '.join(ATTRIBUTES)} nor a classifier "
                    f"({', '.join(classifiers) or 'there is none'}) nor in `columns` of a source "
                    f"({', '.join(dict.fromkeys(columns)) or 'none keeps any'}); correct it, or keep the column"
                )
        return self

    @model_validator(mode="after")
    def _columns_exist(self) -> DataConfig:
        columns = [name for source in self.sources for name in kept_columns(source)]
        for one in self.filters:
            if one.column and one.column not in columns:
                raise ValueError(
                    f"filters {one.name}: column = {one.column!r} is in `columns` of no source "
                    f"({', '.join(dict.fromkeys(columns)) or 'none keeps any'}); correct it, or keep the column"
                )
        return self

    @field_validator("sources")
    @classmethod
    def _licences_exist(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        """Spell licences of lists as documents have them."""
        return tuple(map(_with_licences, sources))

    @field_validator("code")
    @classmethod
    def _code_has_rules(cls, code: CodeConfig | None, info: ValidationInfo) -> CodeConfig | None:
        of_code = any(licence_lists(source) is not None for source in info.data.get("sources", ()))
        return CodeConfig() if code is None and of_code else code

    @field_validator("sources")
    @classmethod
    def _seeds_exist(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        read = [source.name for source in sources if not isinstance(source, SyntheticSource)]
        for source in sources:
            if isinstance(source, SyntheticSource) and source.seeds and source.seeds not in read:
                raise ValueError(
                    f"source {source.name}: seeds = {source.seeds!r} is not a source with texts of its own; those are: "
                    f"{', '.join(read) or 'none'}"
                )
        return sources

    @field_validator("decontaminate")
    @classmethod
    def _sets_once(cls, config: DecontaminateConfig | None) -> DecontaminateConfig | None:
        names = [wanted.name for wanted in config.sets] if config else []
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two evaluation sets are named {twice[0]!r}; rename one")
        return config

    @field_validator("sources", "classifiers", "filters")
    @classmethod
    def _names_once(cls, named: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        names = [one.name for one in named]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two {info.field_name} are named {twice[0]!r}; give each a name of its own")
        return named


def _with_licences(source: Source) -> Source:
    given = licence_lists(source)
    if given is None:
        return source
    lists = {}
    for field in LicenceLists.model_fields:
        try:
            lists[field] = listed_licences(getattr(given, field))
        except ValueError as error:
            raise ValueError(f"source {source.name}: {field}: {error}") from error
    if isinstance(source, CodeSource):
        return source.model_copy(update=lists)
    return source.model_copy(update={"code": given.model_copy(update=lists)})
