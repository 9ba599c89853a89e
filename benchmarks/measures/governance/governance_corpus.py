"""A corpus prepared as a user prepares it, with what its making cost, for the measures of governance."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.measures.corpora import mixed, write_jsonl
from benchmarks.measures.goals import cpu_seconds
from data_pipeline.config import DataConfig
from data_pipeline.prepare import prepare, stages
from data_pipeline.readers.sources import JsonlSource
from data_pipeline.tokens.token_shards import TokenShard
from data_pipeline.tokens.tokenizer import load_encoder
from governance.checks.tokens import TokenReaders
from governance.manifest import Manifest
from governance.stage import Runtime

_WARM_BYTES = 5_000_000


def prepared(
    documents: Sequence[dict[str, Any]],
    folder: Path,
    runtime_of: Callable[[Path], Runtime] = Runtime,
    watched: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[dict[str, Manifest], Runtime, TokenReaders, dict[str, float]]:
    """The artifacts of documents, where they lie, how their tokens are read, and each stage's CPU-seconds.

    Not counted is a smaller corpus, once in this process, which compiles and loads what is needed. `runtime_of(root)`
    gives the runtime; it is made within `watched()`.
    """
    _warm()
    config = _config(documents, folder)
    runtime = runtime_of(folder / "root")
    artifacts, spent = {}, {}
    with watched():
        started = cpu_seconds()
        for manifest in stages(config, folder, runtime):
            artifacts[manifest.stage], spent[manifest.stage] = manifest, cpu_seconds() - started
            started = cpu_seconds()
    return artifacts, runtime, TokenReaders(TokenShard.open, load_encoder), spent


def _config(documents: Sequence[dict[str, Any]], folder: Path) -> DataConfig:
    write_jsonl(folder / "raw" / "all.jsonl", documents)
    url = "url" if "url" in documents[0] else ""
    source = JsonlSource(
        type="jsonl", name="mixed", paths=("raw/*.jsonl",), licence="CC0-1.0", id_field="id", url_field=url
    )
    return DataConfig(sources=(source,))


@cache
def _warm() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(_config(mixed(_WARM_BYTES), folder), folder, Runtime(folder / "root"))
