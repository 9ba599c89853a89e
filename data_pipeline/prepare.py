"""The recipe on a page: from sources to packed token shards, in order.

    sources -> ingest -> clean -> dedup -> redact -> tokenizer -> encode

Each line below is a stage: it finds its artifact or makes it. This call graph is the whole schedule; running it again
resumes wherever it was left.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from data_pipeline.clean import CleanConfig, clean
from data_pipeline.dedup import DedupConfig, dedup
from data_pipeline.encode import EncodeConfig, encode
from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.parallel import close_pool
from data_pipeline.pii import PiiConfig, redact
from data_pipeline.readers import Source
from data_pipeline.tokenizer import TokenizerConfig, train_tokenizer
from governance.config import Section
from governance.manifest import Manifest
from governance.stage import Runtime


class DataConfig(Section):
    """The data half of a run's file; each field is one stage's own section."""

    sources: tuple[Source, ...] = Field(min_length=1)
    """Where raw text comes from, in the order in which ties between duplicates are broken."""
    ingest: IngestConfig = IngestConfig()
    clean: CleanConfig = CleanConfig()
    dedup: DedupConfig = DedupConfig()
    pii: PiiConfig = PiiConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    encode: EncodeConfig = EncodeConfig()


def stages(config: DataConfig, folder: Path, runtime: Runtime) -> Iterator[Manifest]:
    """Make or find the artifacts of the corpus one after the other, in order; `folder` is where relative paths start.

    Raises:
        MissingInput: a source is not there; or `runtime.make` is False and this stage is not made yet.
    """
    try:
        yield (raw := ingest(config.sources, config.ingest, folder, runtime))
        yield (cleaned := clean(raw, config.clean, runtime))
        yield (unique := dedup(cleaned, config.dedup, runtime))
        yield (redacted := redact(unique, config.pii, runtime))
        yield (tokenizer := train_tokenizer(redacted, config.tokenizer, runtime))
        yield encode(redacted, tokenizer, config.encode, runtime)
    finally:
        close_pool()  # idle workers hold memory that training wants


def prepare(config: DataConfig, folder: Path, runtime: Runtime) -> dict[str, Manifest]:
    """Every artifact of the corpus by stage: ingest, clean, dedup, redact, tokenizer, encode."""
    return {manifest.stage: manifest for manifest in stages(config, folder, runtime)}
