"""Parts of a huge file: byte ranges of lines, Parquet row groups.

The cuts depend on the file's bytes and on the target alone, so any number of workers gives the same parts. Each record
keeps the number that it has in the whole file, which is why a plain file is read once to count its line ends (a pass
without parsing). A compressed file, a WARC and a tar cannot be cut without reading them from their start: one process
reads them, and `ingest` begins a new document shard whenever one is full.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.readers.parquet_pages import row_groups
from data_pipeline.readers.streams import blocks, open_source

_NEWLINE = 10


@dataclass(frozen=True)
class FilePart:
    """A range of a file's bytes or row groups, `end` exclusive."""

    begin: int
    end: int
    first: int
    """The number of its first record within the file."""
    bytes: int
    """Unpacked."""


def line_parts(path: Path, target: int) -> list[FilePart]:
    """Cut a plain file between lines.

    A part has at most `target` bytes, or one line. A file of white space alone is one part.
    """
    cuts = [(0, 0)]  # where a part begins, and the number of its first line
    last = (0, 0)  # where the last line so far begins, and its number
    size, blank = 0, True
    for block in blocks(path):
        starts = np.flatnonzero(np.frombuffer(block, np.uint8) == _NEWLINE) + (size + 1)
        _cut(cuts, last, starts, target)
        if len(starts):
            last = (int(starts[-1]), last[1] + len(starts))
        size += len(block)
        blank = blank and block.isspace()
    if size - cuts[-1][0] > target and last[0] > cuts[-1][0]:
        cuts.append(last)
    if blank:
        cuts = cuts[:1]
    ends = [*(begin for begin, _ in cuts[1:]), size]
    return [
        FilePart(begin, end, first, end - begin) for (begin, first), end in zip(cuts, ends, strict=True) if end > begin
    ]


def _cut(cuts: list[tuple[int, int]], last: tuple[int, int], starts: NDArray[np.int64], target: int) -> None:
    """Add the certain cuts of one more block of lines."""
    while (fit := int(np.searchsorted(starts, cuts[-1][0] + target, side="right"))) < len(starts):
        if fit and starts[fit - 1] > cuts[-1][0]:
            cuts.append((int(starts[fit - 1]), last[1] + fit))
        elif last[0] > cuts[-1][0]:
            cuts.append(last)
        else:  # a line longer than the target is a part of its own
            cuts.append((int(starts[fit]), last[1] + fit + 1))


def group_parts(path: Path, target: int) -> list[FilePart]:
    """Cut a Parquet file between row groups.

    A part has at most `target` bytes, or one group. No parts where the footer cannot be read: the file is then read
    whole, which yields its fault.
    """
    parts: list[FilePart] = []
    begin = first = rows = size = 0
    with open_source(path) as source:
        try:
            groups = row_groups(source)
        except ValueError:
            return []
    for index, group in enumerate(groups):
        if size and size + group.unpacked > target:
            parts.append(FilePart(begin, index, first, size))
            begin, first, rows, size = index, first + rows, 0, 0
        rows += group.rows
        size += group.unpacked
    return [*parts, FilePart(begin, len(groups), first, size)] if groups else []
