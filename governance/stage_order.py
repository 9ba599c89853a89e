"""Stages of a run, in order, for pipeline, audit and report.

A new stage is a row here, its own module, and its call in `data_pipeline/prepare.py` (of the corpus) or
`assay/pipeline.py`. Artifacts that a single stage uses (`lists`, `evaluation_sets`, ...) are not steps of a run and
have no row.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StageRow:
    """Facts of a stage, for readers of its artifact and settings."""

    name: str
    optional: bool = False
    """True where a run can be without it."""
    switch: str = ""
    """Field of `[data]` that adds an optional stage to the corpus; empty: the field with the stage's name."""
    settings: str | None = None
    """Prefix, in a run's file, of the settings in its recipe; None: its recipe holds none."""
    passes: int = 1
    """Data steps: passes over all shards that an array of jobs can share."""
    documents: bool = True
    """It passes documents on: `documents_in`, `documents_kept` and their bytes are in its stats."""
    removes: bool = False
    """It writes the texts that it removes, so the bias audit counts them."""
    audited: bool = True
    """It is an input of the audit."""


CORPUS_STAGES = (
    StageRow("ingest"),
    StageRow("clean", settings="data.clean.", removes=True),
    StageRow("code", optional=True, removes=True),
    StageRow("filter", optional=True, switch="filters", removes=True),
    StageRow("classify", optional=True, switch="classifiers", removes=True),
    StageRow("dedup", settings="data.dedup.", passes=2, removes=True),
    StageRow("paragraphs", optional=True, settings="data.paragraphs.", passes=2, removes=True),
    StageRow("substrings", optional=True, settings="data.substrings.", passes=2, removes=True),
    StageRow("decontaminate", optional=True, settings="data.decontaminate.", removes=True),
    StageRow("redact", settings="data.pii."),
    StageRow("tokenizer", settings="data.tokenizer.", passes=0, documents=False),
    StageRow("mix", optional=True, settings="data.mix.", passes=2, documents=False),
    StageRow("encode", settings="data.encode."),
    StageRow("pack", optional=True, settings="data.pack.", documents=False, audited=False),
)
"""From sources to token shards; `ingest` may have more passes, by the files that it reads."""

STAGES = (
    *CORPUS_STAGES,
    StageRow("bias", optional=True, settings="audit.bias.", documents=False),
    StageRow("audit", settings="", documents=False, audited=False),
    StageRow("train", settings="", documents=False, audited=False),
    StageRow("report", documents=False, audited=False),
)
"""The whole run."""
