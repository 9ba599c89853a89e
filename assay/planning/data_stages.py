"""Core-hours and disk of a plan's data stages.

Rates are CPU milliseconds for a megabyte of text, measured on a core of an Intel Xeon (benchmarks/RESULTS.md). What
the filters remove is not known before they ran: the low bound is the text that training reads, the high one three times
that. Stages without a measured rate are named.
"""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.config import DataConfig
from governance.energy.band import Band
from governance.stage_order import CORPUS_STAGES

MILLISECONDS = {"ingest": 16.7, "clean": 27.9, "dedup": 16.2, "redact": 14.7, "encode": 23.5, "pack": 0.2}
"""CPU milliseconds for a megabyte of text."""
_BYTES_PER_TOKEN = Band(3.0, 4.2, 5.0)
"""Bytes of text that a token stands for."""
_READ = Band(1.0, 1.8, 3.0)
"""Text before the filters for each byte that they keep."""
_STORED = Band(0.3, 0.4, 0.5)
"""Bytes on disk of a byte of text: Parquet with zstd."""


@dataclass(frozen=True)
class DataPlan:
    """Work and disk of the corpus."""

    core_hours: Band
    """Core hours of the stages with a measured rate."""
    disk_bytes: Band
    unmeasured: tuple[str, ...]
    """Stages of the run without a rate."""


def data_plan(config: DataConfig, tokens: int, vocabulary: int) -> DataPlan:
    """Cost of a corpus of this many tokens, each read once."""
    raw = _BYTES_PER_TOKEN.each(tokens, "*").each(_READ, "*")
    stages = [row for row in CORPUS_STAGES if not row.optional or getattr(config, row.switch or row.name)]
    milliseconds = sum(MILLISECONDS.get(row.name, 0.0) for row in stages)
    writers = sum(row.documents and row.name != "encode" for row in stages)
    stored = raw.each(_STORED, "*").each(writers, "*")
    shards = float(tokens * (2 if vocabulary <= 1 << 16 else 4))
    unmeasured = tuple(row.name for row in stages if row.passes and row.name not in MILLISECONDS)
    core_hours = raw.each(milliseconds / 1e6 / 3.6e6, "*")
    return DataPlan(core_hours, stored.each(shards, "+"), unmeasured)
