"""Substring deduplication stage: cut passages that occurred before.

A byte is cut if it is in a run of `min_bytes` bytes that occurs earlier: in an earlier document (in the order of the
corpus), or in the same one at least `min_bytes` before. So the first copy stays, wherever paragraphs begin, and repeats
are found at their full length (Lee et al. 2022; Dolma 3). Every byte that is cut was compared with its earlier copy.
The edges of a cut move inward to the nearest blank within 32 bytes, so that no word is torn, and otherwise to the
nearest character. A gap of at most `bridge_bytes` between two cuts of a document is cut too, though it is not a repeat.
A document of which less than `min_left_bytes` remains is removed as `duplicate_text`, and nothing is cut because it
occurs in such a document.

`kernels/substring_windows.py` selects windows of `min_bytes / 2` bytes such that each run of `min_bytes` bytes has one;
the join says which windows share a hash; the walk over those, in the order of the corpus, compares the texts.

Roles: `documents`, `removed` (with the text as it came in), `cuts` (id, kind, start and end in bytes of the text that
came in; `earlier` and `earlier_start`: the document with the copy, and where it begins there; kind `gap` has none),
`windows` (row, start, hash).

Missed: where a window occurs in more than 64 different surroundings, a repeat that only a later one shows (counted as
`windows_cut_short`); parts of text that repeats itself within `min_bytes / 2` bytes.

Price: two passes; 12 bytes for each 125 bytes of text (at `min_bytes` = 500) go through the join, which spills. One
process walks, with some 60 bytes a shared window; the texts that have one are mapped from an unnamed file.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from data_pipeline.dedup.cutting import CUT_SCHEMA, SPAN_SCHEMA, Cutting, cut_repeats, first_rows
from data_pipeline.dedup.join import shared_units
from data_pipeline.documents import CODE_LANGUAGE, DOCUMENT_SCHEMA, cut_spans, read_groups, rows_by_group, table_writer
from governance.config import Section
from governance.errors import storage_errors
from governance.manifest import Manifest
from governance.parallel import ShardMade
from governance.stage import Recipe, Runtime

Integers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

VERSION = 2
_KINDS = ("repeat", "gap")
_REPEAT, _GAP = range(2)
_WORD_BYTES = 32  # a cut moves by at most as much so that no word is torn
_A_ROW_GROUP = 1 << 16
_BLANKS = b" \t\n\v\f\r"
_WINDOWS = pa.schema([("row", pa.int32()), ("start", pa.int32()), ("hash", pa.uint64())])
_EARLIER = (("earlier", pa.string()), ("earlier_start", pa.int64()))
_SPANS, _CUTS = pa.schema([*SPAN_SCHEMA, *_EARLIER]), pa.schema([*CUT_SCHEMA, *_EARLIER])


class SubstringsConfig(Section):
    """Sizes that decide which repeats are cut."""

    min_bytes: int = Field(default=500, ge=64)
    """Bytes of a repeat, from which it is cut."""
    bridge_bytes: int = Field(default=0, ge=0)
    """Bytes of a gap between two cuts, up to which it is cut too."""
    min_left_bytes: int = Field(default=100, ge=0)
    """Bytes, below which a document that was cut is removed."""

    @property
    def window(self) -> tuple[int, int]:
        """Bytes of a window; number of windows that yield one."""
        width = self.min_bytes // 2
        return width, self.min_bytes - width + 1


def _windows_shard(config: SubstringsConfig, path: Path, path_of: Callable[[str], Path]) -> ShardMade:
    from data_pipeline.kernels.substring_windows import select_windows
    from governance.kernels.buffers import text_buffers

    rows = count = 0
    with table_writer(path_of("windows"), _WINDOWS) as append:
        for group in read_groups(path):
            row, start, value = select_windows(*text_buffers(group["text"]), *config.window)
            prose = pc.not_equal(group["language"], CODE_LANGUAGE).to_numpy()[row]  # code keeps its headers and imports
            windows = pa.table({"row": row + rows, "start": start, "hash": value}).filter(pa.array(prose))
            append(windows)
            rows += len(group)
            count += len(windows)
    return ShardMade({"windows": path_of("windows")}, {"windows": count})


@dataclass(frozen=True)
class _SharedWindows:
    """Windows that share a hash, in the order of the corpus."""

    document: Integers
    """Number in the corpus."""
    start: Integers
    group: Integers
    """Label of the hash."""


def repeated_spans(
    config: SubstringsConfig, documents: Sequence[Path], windows: Sequence[Path], engine_name: str, target: Path
) -> None:
    """Write the spans to cut, ordered by document and byte.

    The metadata holds `windows_cut_short`.

    Raises:
        StorageError: the disk is full.
        PipelineError: the join fails, in the engine's words.
    """
    from data_pipeline.kernels.substring_windows import find_repeats

    firsts = first_rows(documents)
    shared = _shared_windows(windows, firsts, engine_name, target.parent)
    numbers, text = np.unique(shared.document, return_inverse=True)
    with _texts(documents, firsts, numbers, target.parent) as (data, offsets, ids):
        rows: list[tuple[int, int, int, int, str, int]] = []
        tables: list[pa.Table] = []

        def pack() -> None:
            tables.append(pa.Table.from_arrays([*map(pa.array, zip(*rows, strict=True))], _SPANS.names).cast(_SPANS))
            rows.clear()

        def stays(place: int, repeats: Integers) -> bool:
            whole = data[offsets[place] : offsets[place + 1]]
            repeats = repeats[np.lexsort((repeats[:, 3], repeats[:, 2], -repeats[:, 1], repeats[:, 0]))]
            left = len(whole)
            for kind, start, end, other, other_start in spans_of(repeats, whole, config.bridge_bytes):
                earlier = ids[other].as_py() if kind == _REPEAT else ""
                rows.append((int(numbers[place]), kind, start, end, earlier, other_start))
                left -= end - start
            if len(rows) >= _A_ROW_GROUP:
                pack()
            return left == len(whole) or left >= max(1, config.min_left_bytes)  # as `_cut_group` decides

        short = find_repeats(
            data, offsets, text.astype(np.int64), shared.start, shared.group, config.window[0], config.min_bytes, stays
        )
        if rows:
            pack()
    schema = _SPANS.with_metadata({"windows_cut_short": str(short)})
    with table_writer(target, schema, bounds=("document",)) as append:
        for table in tables:
            append(table)


def _shared_windows(windows: Sequence[Path], documents: Integers, engine_name: str, folder: Path) -> _SharedWindows:
    firsts = first_rows(windows)
    hashes = (pq.read_table(path, columns=["hash"], partitioning=None)["hash"].to_numpy() >> 2 for path in windows)
    numbers, groups, label = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for key, number in shared_units(hashes, firsts, engine_name, folder):
        numbers.append(number)
        groups.append(np.cumsum(np.diff(key, prepend=key[:1]) != 0) + label)
        label = int(groups[-1][-1]) + 1 if len(key) else label
    number, group = np.concatenate(numbers), np.concatenate(groups)
    order = np.argsort(number)
    number, group = number[order], group[order]
    document, start = np.zeros(len(number), np.int64), np.zeros(len(number), np.int64)
    bounds = np.searchsorted(number, firsts)
    for place, path in enumerate(windows):
        here = slice(bounds[place], bounds[place + 1])
        if here.start < here.stop:
            table = pq.read_table(path, columns=["row", "start"], partitioning=None)
            table = table.take(pa.array(number[here] - firsts[place]))
            document[here] = table["row"].to_numpy() + documents[place]
            start[here] = table["start"].to_numpy()
    return _SharedWindows(document, start, group)


@contextlib.contextmanager
def _texts(
    documents: Sequence[Path], firsts: Integers, numbers: Integers, folder: Path
) -> Iterator[tuple[Bytes, Integers, pa.Array]]:
    """Texts (mapped from an unnamed file), offsets and ids of documents."""
    from governance.kernels.buffers import text_buffers

    schema = pa.schema([DOCUMENT_SCHEMA.field(name) for name in ("id", "text")])
    offsets, ids, written = [np.zeros(1, np.int64)], [pa.array([], pa.large_string())], 0
    bounds = np.searchsorted(numbers, firsts)
    folder.mkdir(parents=True, exist_ok=True)
    with storage_errors(folder), tempfile.TemporaryFile(dir=folder) as scratch:
        for place, path in enumerate(documents):
            chosen = rows_by_group(path, numbers[bounds[place] : bounds[place + 1]] - firsts[place])
            groups = read_groups(path, schema, [group for group, _ in chosen])
            for table, (_, rows) in zip(groups, chosen, strict=True):
                table = table.take(pa.array(rows))
                data, ends = text_buffers(table["text"].combine_chunks())
                scratch.write(data[ends[0] : ends[-1]].data)
                offsets.append(ends[1:] - ends[0] + written)
                written = int(offsets[-1][-1])
                ids.append(table["id"].combine_chunks().cast(pa.large_string()))
        scratch.flush()
        mapped = np.asarray(np.memmap(scratch, np.uint8, mode="c")) if written else np.zeros(0, np.uint8)
        yield mapped, np.concatenate(offsets), pa.concat_arrays(ids)


def spans_of(repeats: Integers, text: Bytes, bridge: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Spans to cut of one text, ascending, without overlap.

    A span is (kind, start, end, earlier text, its start). `repeats` are (start, end, earlier text, its start), by
    start, the longest first.
    """
    runs: list[list[int]] = []
    for start, end, _, _ in repeats.tolist():
        if runs and start <= runs[-1][1] + bridge:
            runs[-1][1] = max(runs[-1][1], end)
        else:
            runs.append([start, end])
    first = 0
    for run_start, run_end in runs:
        at, high = _whole_words(text, run_start, run_end)
        while at < high:
            # As few spans as cover the run: of the repeats that begin here or before, the one that ends last.
            last = first + int(np.searchsorted(repeats[first:, 0], at, side="right"))
            here = repeats[first:last]
            best = int(np.argmax(here[:, 1])) if len(here) else -1
            if best >= 0 and here[best, 1] > at:
                start, end, other, other_start = here[best].tolist()
                yield _REPEAT, at, min(end, high), other, other_start + at - start
            else:
                end = int(repeats[last, 0])
                yield _GAP, at, min(end, high), -1, -1
            at = end
        first = int(np.searchsorted(repeats[:, 0], run_end, side="right"))


def _whole_words(text: Bytes, start: int, end: int) -> tuple[int, int]:
    """The span without torn words at its edges.

    Where no blank is near, it is at least without torn characters.
    """
    if start > 0 and text[start - 1] not in _BLANKS:
        blank = next((i for i in range(start, min(end, start + _WORD_BYTES)) if text[i] in _BLANKS), -1)
        start = blank + 1 if blank >= 0 else next((i for i in range(start, end) if text[i] & 0xC0 != 0x80), end)
    if end < len(text) and text[end] not in _BLANKS and text[end - 1] not in _BLANKS:
        blank = next((i for i in range(end, max(start, end - _WORD_BYTES), -1) if text[i - 1] in _BLANKS), -1)
        end = blank if blank >= 0 else next((i for i in range(end, start, -1) if text[i] & 0xC0 != 0x80), start)
    return start, end


def drop_substrings(documents: Manifest, config: SubstringsConfig, runtime: Runtime) -> Manifest:
    """Cut repeated substrings except where they occur first.

    `stats` adds to the common counts `cut`: repeats, gaps, and documents that lost any; and `windows_cut_short`.

    Raises:
        ManifestError: a shard cannot be read.
        PipelineError: the join fails.
    """
    join = functools.partial(repeated_spans, config)
    cutting = Cutting("windows", _windows_shard, join, _KINDS, _CUTS, cut_spans, config.min_left_bytes)
    return cut_repeats(Recipe("substrings", VERSION, config), documents, runtime, cutting)
