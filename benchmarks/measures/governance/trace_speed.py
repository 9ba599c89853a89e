"""Traced texts: size and cost of the index, time of a query, planted quotes, and what larger corpora would cost."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.measures.corpora import mixed
from benchmarks.measures.goals import Goal, cpu_seconds, figure
from data_pipeline.documents import DOCUMENT_SCHEMA, table_writer
from data_pipeline.text_index.index_stage import TextIndexConfig, text_index
from data_pipeline.text_index.search import TextIndex, find_spans, holders_of, open_index, read_listed
from data_pipeline.tokens.token_shards import EncodedDocument, write_token_shard
from governance.manifest import Manifest, describe
from governance.stage import Runtime

_MIN_CHARACTERS = 50
_QUERY = 1000


def _files() -> Iterator[str]:
    """Text files of this machine: the installed packages' sources, the system's documentation."""
    for folder in (sysconfig.get_paths()["purelib"], sysconfig.get_paths()["stdlib"], "/usr/share", "/usr/lib/python3"):
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix in (".py", ".md", ".rst", ".txt", ".h", ".html", ".pyi", ".json") and path.is_file():
                try:
                    yield path.read_text(encoding="utf-8")
                except (OSError, ValueError):
                    continue


def _texts(size: int) -> Iterator[str]:
    """Different texts of at most 100 kB, up to so many bytes: the corpora, then files of this machine."""
    seen: set[bytes] = set()
    for whole in (*(row["text"] for row in mixed(size)), *_files()):
        for start in range(0, len(whole), 100_000):
            text = whole[start : start + 100_000]
            digest = hashlib.sha256(text.encode()).digest()
            if text and digest not in seen:
                seen.add(digest)
                yield text
                size -= len(text.encode())
                if size <= 0:
                    return


def _cut(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """The texts in lists of about so many characters."""
    held, part = 0, []
    for text in texts:
        part.append(text)
        held += len(text)
        if held >= size:
            yield part
            held, part = 0, []
    yield part


def _corpus(root: Path, texts: Iterable[str]) -> tuple[Manifest, Manifest, list[str]]:
    """Documents and token shards as the stages write them, and some of the texts."""
    kept, chance, paths = [], random.Random(3), {"redact": [], "encode": []}
    for number, part in enumerate(_cut(texts, 64_000_000)):
        names = [f"web/{number}.jsonl#{row}" for row in range(len(part))]
        path = root / "redact" / ("0" * 16) / "documents" / f"{number:05}.parquet"
        with table_writer(path, DOCUMENT_SCHEMA) as append:
            rows = iter(names)
            for group in _cut(part, 8_000_000):
                append(_table([next(rows) for _ in group], group))
        shard = root / "encode" / ("1" * 16) / "train" / f"{number:05}.tokens"
        held = zip(names, part, strict=True)
        write_token_shard(shard, [EncodedDocument(name, np.array([0]), len(text)) for name, text in held], 1, 0)
        paths["redact"].append(path)
        paths["encode"].append(shard)
        kept += [text for text in part if len(text) > 400 and chance.random() < 0.02]
    made = [
        Manifest(
            stage=stage, version=1, key=key * 64, config={}, inputs=(), stats={}, run={},
            outputs=tuple(describe(path, root) for path in paths[stage]),
        )
        for stage, key in (("encode", "1"), ("redact", "0"))
    ]  # fmt: skip
    return made[0], made[1], kept


def _table(names: list[str], texts: list[str]) -> pa.Table:
    alike = {"source": "web", "url": "https://site.example/page", "language": "en", "licence": "CC0-1.0"}
    columns = {"id": names, "text": texts, "position": [0] * len(names)}
    return pa.Table.from_arrays(
        [pa.array(columns.get(one.name, [alike.get(one.name, "")] * len(names)), one.type) for one in DOCUMENT_SCHEMA],
        schema=DOCUMENT_SCHEMA,
    )


def _query(kept: Sequence[str], chance: random.Random) -> tuple[str, str]:
    """A text of `_QUERY` characters around a planted quote of 60 to 300, and the quote.

    The rest is words of the corpus in another order, as a model's own sentences are.
    """
    source = chance.choice(kept)
    size = chance.randrange(60, 300)
    first = chance.randrange(len(source) - size)
    quote = source[first : first + size]
    words = [word for text in chance.choices(kept, k=20) for word in text[:2000].split()]
    chance.shuffle(words)
    own = " ".join(words)[: _QUERY - size - 2]
    cut = len(own) // 2
    return f"{own[:cut]} {quote} {own[cut:]}", quote


def _ask(index: TextIndex, text: str) -> list[tuple[int, int]]:
    """Answer a query but for the steps: spans, documents, and their listed facts."""
    spans = find_spans(index, text, _MIN_CHARACTERS)
    held = [holders_of(index, text[start:end], 10) for start, end in spans]
    read_listed(index, [one for found in held for one in found.first])
    return spans


def _cold_ms(made: Manifest, root: Path, queries: Sequence[str]) -> float:
    """Median milliseconds by the clock of opening an index, none of whose pages is in memory, and asking it."""
    waits = []
    for query in queries:
        for output in made.outputs:
            with open(root / output.path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        _ask(open_index(made, root), query)
        waits.append(time.perf_counter() - began)
    return 1e3 * statistics.median(waits)


def trace_text(quick: bool) -> list[Goal]:
    """Real text, each query around a planted quote; the shards of more text are simulated by their number."""
    size = 100_000_000 if quick else 1_000_000_000
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        tokens, documents, kept = _corpus(root, _texts(size))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        cost, began = cpu_seconds(), time.perf_counter()
        made = text_index(tokens, documents, TextIndexConfig(), Runtime(root))
        cost, elapsed = cpu_seconds() - cost, time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        text, on_disk = made.stats["bytes"], sum(output.bytes for output in made.outputs)
        index, chance = open_index(made, root), random.Random(5)
        lost, times, waits, count = 0, [], [], 30 if quick else 200
        queries = [_query(kept, chance) for _ in range(count)]
        for path in made.files("text", root) + made.files("suffixes", root):
            path.read_bytes()
        for query, quote in queries:
            began, used = time.perf_counter(), time.process_time()
            spans = _ask(index, query)
            times.append(time.process_time() - used)
            waits.append(time.perf_counter() - began)
            place = query.index(quote)
            lost += not any(start <= place and place + len(quote) <= end for start, end in spans)
        del index
        cold = _cold_ms(made, root, [query for query, _ in queries])
    note = f"{text / 1e6:.0f} MB in {made.stats['documents']} documents, {made.stats['shards']} shard(s)"
    shards = -(-10_000_000_000 // TextIndexConfig().shard_bytes) / made.stats["shards"]
    query = 1e3 * statistics.median(times)
    return [
        Goal("trace_text.bytes_a_byte", on_disk / text, 7, "<=", note),
        Goal("trace_text.quotes_lost", lost, 0, "<=", f"{count} planted quotes of 60 to 300 characters"),
        Goal("trace_text.query_ms", query, 100, "<=", f"{_QUERY} characters; CPU, median, from memory"),
        Goal("trace_text.query_ms_at_10GB_simulated", shards * query, 100, "<=", f"{shards:g} shards, each as costly"),
        Goal("trace_text.cold_query_wall_ms", cold, 100, "<=", "the same by the clock, none of the index in memory"),
        figure("trace_text.query_wall_ms", 1e3 * statistics.median(waits)),
        figure("trace_text.index_mb_a_second", text / 1e6 / cost, "CPU of one process"),
        figure("trace_text.index_seconds", elapsed),
        figure(
            "trace_text.index_memory_a_byte", 1024 * (peak - before) / (text / made.stats["shards"]),
            "growth of the process over the text of a shard",
        ),
    ]  # fmt: skip
