"""A corpus prepared as a user prepares it, with what its making cost, for the measures of governance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks.measures.corpora import write_jsonl
from benchmarks.measures.goals import cpu_seconds
from data_pipeline.config import DataConfig
from data_pipeline.prepare import prepare, stages
from data_pipeline.readers.sources import JsonlSource
from data_pipeline.tokens.token_shards import TokenShard
from data_pipeline.tokens.tokenizer import load_encoder
from governance.checks.tokens import TokenReaders
from governance.manifest import Manifest
from governance.stage import Runtime


def prepared(
    documents: Sequence[dict[str, Any]],
    folder: Path,
    runtime_of: Callable[[Path], Runtime] = Runtime,
    watched: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[dict[str, Manifest], Runtime, TokenReaders, dict[str, float]]:
    """The artifacts of documents, where they lie, how their tokens are read, and each stage's CPU-seconds.

    They are made twice, in this process, and the second time is counted: the first one compiles. `runtime_of(root)`
    gives the second one's runtime; it is made within `watched()`.
    """
    write_jsonl(folder / "raw" / "all.jsonl", documents)
    source = JsonlSource(type="jsonl", name="mixed", paths=("raw/*.jsonl",), licence="CC0-1.0", id_field="id")
    config = DataConfig(sources=(source,))
    prepare(config, folder, Runtime(folder / "warm"))
    runtime = runtime_of(folder / "root")
    artifacts, spent = {}, {}
    with watched():
        started = cpu_seconds()
        for manifest in stages(config, folder, runtime):
            artifacts[manifest.stage], spent[manifest.stage] = manifest, cpu_seconds() - started
            started = cpu_seconds()
    return artifacts, runtime, TokenReaders(TokenShard.open, load_encoder), spent
