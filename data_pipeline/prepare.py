"""The recipe on a page: from sources to packed token shards, in order.

    sources -> ingest -> clean -> dedup -> redact -> tokenizer -> encode

Each line below is a stage: it finds its artifact or makes it. This call graph is the whole schedule; running it again
resumes wherever it was left.
"""

from __future__ import annotations

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


def prepare(config: DataConfig, folder: Path, runtime: Runtime) -> dict[str, Manifest]:
    """Make or find every artifact of the corpus; `folder` is where relative source paths start.

    Returns:
        The manifests by stage, in order: ingest, clean, dedup, redact, tokenizer, encode.
    """
    try:
        raw = ingest(config.sources, config.ingest, folder, runtime)
        cleaned = clean(raw, config.clean, runtime)
        unique = dedup(cleaned, config.dedup, runtime)
        redacted = redact(unique, config.pii, runtime)
        tokenizer = train_tokenizer(redacted, config.tokenizer, runtime)
        tokens = encode(redacted, tokenizer, config.encode, runtime)
    finally:
        close_pool()  # idle workers hold memory that training wants
    return {manifest.stage: manifest for manifest in (raw, cleaned, unique, redacted, tokenizer, tokens)}
