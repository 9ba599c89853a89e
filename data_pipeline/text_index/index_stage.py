"""Stage "text_index": suffix arrays of the texts of a token corpus.

An index shard covers whole row groups of document shards, in their order, up to about `shard_bytes` of text; only
documents that the token shards hold are in it, each once. All numbers are little-endian. Its files:

    text/00000.bin        the UTF-8 bytes of each document, each followed by a byte 0xFF, which UTF-8 never has: so no
                          passage is found across two documents
    suffixes/00000.bin    uint32: where each suffix of `text` begins that begins with a character, in the order of bytes
    samples/00000.bin     the first 24 bytes of each n-th suffix, beginning with the first (n = `sample_stride`); where
                          the text ends before, zeros follow
    ends/00000.bin        uint32: where the text of each document ends
    listed/00000.arrow    of each document: id, source, url, licence, and its copies in the training (`copies`) and the
                          validation split (`held_out`); an Arrow file, each batch of which has `LISTED_ROWS` rows
                          but for the last, so that a document is found without reading others'

Price: 5 bytes for each byte of text and some 50 for each document, less in scripts of several bytes per character. To
make a shard takes five times its text in memory, and most of the time is libdivsufsort's. `search.py` reads the files.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from data_pipeline.documents import DOCUMENT_SCHEMA, document_shards, group_bytes, read_groups, required
from data_pipeline.tokens.token_shards import TokenShard, document_identity
from governance.config import Section
from governance.errors import PipelineError
from governance.files import atomic_file, atomic_path
from governance.manifest import Manifest
from governance.parallel import Shard, ShardMade, map_shards, sum_stats
from governance.stage import Made, Recipe, Runtime, run_stage

STAGE = "text_index"
VERSION = 3
LISTED_SCHEMA = required(
    id=pa.string(), source=pa.string(), url=pa.string(), licence=pa.string(), copies=pa.int64(), held_out=pa.int64()
)
SPLITS = ("train", "validation")
LISTED_ROWS = 256  # rows of a batch, which a look-up of one document unpacks
SAMPLE_BYTES = 24
_SUFFIXES = {"text": ".bin", "suffixes": ".bin", "samples": ".bin", "ends": ".bin", "listed": ".arrow"}
_READ = pa.schema([DOCUMENT_SCHEMA.field(name) for name in ("id", "text", "source", "url", "licence")])
_END = b"\xff"
_MAX_SORTED_BYTES = 2**31 - 1  # bytes that libdivsufsort's 32-bit form sorts
_MAX_SAMPLES = 1 << 16  # 1.5 MB, which a search reads whole
_MIN_STRIDE = 256  # these suffixes are a quarter of a page
_COUNTED_AT_ONCE = 1 << 22


class TextIndexConfig(Section):
    """Size of an index shard."""

    shard_bytes: int = Field(default=1 << 30, gt=0, le=1_900_000_000)
    """Bytes of text after which an index shard ends; making it takes five times its text in memory."""


@dataclass(frozen=True)
class _Part:
    """Row groups of a document shard, and its token shards by split."""

    documents: Path
    groups: tuple[int, ...]
    tokens: tuple[tuple[Path, ...], ...]


def sample_stride(suffixes: int) -> int:
    """Suffixes from one sample to the next."""
    return max(_MIN_STRIDE, 1 << max(0, (suffixes - 1) // _MAX_SAMPLES).bit_length())


def text_index(tokens: Manifest, documents: Manifest, config: TextIndexConfig, runtime: Runtime) -> Manifest:
    """Find or make the index of a token corpus.

    Args:
        tokens: the token corpus.
        documents: what was encoded.
        config: how large a shard is.
        runtime: where.

    Raises:
        PipelineError: a document or row group is too large for a shard.
    """
    recipe = Recipe("text_index", VERSION, config)

    def make(folder: Path) -> Made:
        shards = list(_shards(tokens, documents, config, runtime.root))
        done = map_shards(recipe, _index_shard, shards, folder, runtime, _SUFFIXES)
        stats = sum_stats([{"documents": 0, "bytes": 0, "suffixes": 0}, *(one.stats for one in done)])
        return Made([output for one in done for output in one.outputs.values()], {**stats, "shards": len(done)})

    return run_stage(recipe, [tokens.as_input(), documents.as_input()], runtime, make)


def _shards(tokens: Manifest, documents: Manifest, config: TextIndexConfig, root: Path) -> Iterator[Shard]:
    """Consecutive row groups, as many as an index shard holds."""
    of_documents = document_shards(documents, root)
    of_tokens = [{Path(one.path).stem: one for one in tokens.listed(split)} for split in SPLITS]
    units: list[list[tuple[int, int]]] = [[]]
    held = 0
    for place, (_, path) in enumerate(of_documents):
        for group, size in enumerate(group_bytes(path)):
            if held and held + size > config.shard_bytes:
                units.append([])
                held = 0
            units[-1].append((place, group))
            held += size
    for number, unit in enumerate(filter(None, units)):
        parts, inputs, reads = [], [f"{number:05}"], []
        for place, of_place in groupby(unit, key=itemgetter(0)):
            output, path = of_documents[place]
            groups = tuple(group for _, group in of_place)
            splits = [[split[path.stem]] if path.stem in split else [] for split in of_tokens]
            parts.append(_Part(path, groups, tuple(tuple(root / one.path for one in split) for split in splits)))
            read = [output, *chain.from_iterable(splits)]
            inputs += [path.stem, ",".join(map(str, groups)), *(one.sha256 for one in read)]
            reads += read
        yield Shard(f"{number:05}", tuple(inputs), tuple(parts), tuple(reads))


def _index_shard(config: TextIndexConfig, parts: Sequence[_Part], path_of: Callable[[str], Path]) -> ShardMade:
    from pydivsufsort import divsufsort

    text, ends = bytearray(), array("I")
    with _listed_writer(path_of("listed")) as append:
        for part in parts:
            copies, held_out = (_identities(paths) for paths in part.tokens)
            for table in read_groups(part.documents, _READ, part.groups):
                identities = [document_identity(name) for name in table["id"].to_pylist()]
                counts = [(copies[one], held_out[one]) for one in identities]
                kept = [place for place, count in enumerate(counts) if any(count)]
                for place in kept:
                    text += table["text"][place].as_py().encode("utf-8")
                    if len(text) >= _MAX_SORTED_BYTES:
                        raise PipelineError(
                            f"text_index: {part.documents} has more text in a row group than an index shard can hold "
                            f"({_MAX_SORTED_BYTES:,} bytes). Lower --shard-size; a document of that size must be split"
                        )
                    ends.append(len(text))
                    text += _END
                rows = table.select(LISTED_SCHEMA.names[:4]).take(pa.array(kept, pa.int64()))
                for at, name in enumerate(LISTED_SCHEMA.names[4:]):
                    rows = rows.append_column(name, pa.array([counts[place][at] for place in kept], pa.int64()))
                append(rows)
    _write(path_of("text"), text)
    _write(path_of("ends"), np.frombuffer(ends, np.uint32) if ends else b"")
    suffixes = divsufsort(text) if text else np.zeros(0, np.int32)
    # They are in the order of their first bytes: those that begin within a character (0x80 to 0xBF) or at the end of a
    # document (0xFF) are two stretches of it.
    # Counted in pieces: `bincount` makes 8 bytes of each.
    data = np.frombuffer(text, np.uint8)
    pieces = (data[at : at + _COUNTED_AT_ONCE] for at in range(0, len(data), _COUNTED_AT_ONCE))
    starts = np.cumsum(sum((np.bincount(piece, minlength=256) for piece in pieces), np.zeros(256, np.int64)))
    kept_suffixes = [suffixes[: starts[0x7F]], suffixes[starts[0xBF] : starts[0xFE]]]
    _write(path_of("suffixes"), *kept_suffixes)
    count, (ascii_first, other_first) = sum(map(len, kept_suffixes)), kept_suffixes
    stride = sample_stride(count)
    sampled = chain(ascii_first[::stride], other_first[-len(ascii_first) % stride :: stride])
    heads = (bytes(text[start : start + SAMPLE_BYTES]).ljust(SAMPLE_BYTES, b"\0") for start in sampled)
    _write(path_of("samples"), b"".join(heads))
    stats = {"documents": len(ends), "bytes": len(text), "suffixes": count}
    return ShardMade({role: path_of(role) for role in _SUFFIXES}, stats)


@contextmanager
def _listed_writer(path: Path) -> Iterator[Callable[[pa.Table], None]]:
    """Write listed facts, each batch but the last of `LISTED_ROWS` rows."""
    options = pa.ipc.IpcWriteOptions(compression="lz4")  # zstd takes six times as long to unpack one
    rest = LISTED_SCHEMA.empty_table()
    with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), LISTED_SCHEMA, options=options) as writer:

        def append(table: pa.Table) -> None:
            nonlocal rest
            rows = pa.concat_tables([rest, table.cast(LISTED_SCHEMA)]).combine_chunks()
            whole = rows.num_rows - rows.num_rows % LISTED_ROWS
            writer.write_table(rows.slice(0, whole), max_chunksize=LISTED_ROWS)
            rest = rows.slice(whole)

        yield append
        writer.write_table(rest)


def _identities(paths: Sequence[Path]) -> Counter[bytes]:
    """Copies of each document in token shards."""
    return Counter(row.tobytes() for path in paths for row in TokenShard.open(path).identities)


def _write(path: Path, *parts: Any) -> None:
    with atomic_file(path) as file:
        for part in parts:
            if isinstance(part, np.ndarray) and sys.byteorder == "big":
                part = part.byteswap()
            file.write(memoryview(part).cast("B") if len(part) else b"")
