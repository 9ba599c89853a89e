"""An even sample of files within a bound of bytes.

Small files are taken whole, every n-th one; of a larger one evenly spaced stretches of whole lines or row groups are
copied. A compressed file and a web archive can only be read from the start: its head is copied.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from assay.inspect.formats import InputFiles
from data_pipeline.readers.streams import TornStream, blocks, lines
from governance.files import atomic_file, atomic_path, place

MAX_FILES = 5_000
"""Files of one kind that are read."""
_WHOLE_BYTES = 4 << 20
_STRETCH_BYTES = 1 << 20
_GZIP_MEMBER = b"\x1f\x8b\x08"


def sample_files(inputs: InputFiles, fraction: float, folder: Path) -> tuple[InputFiles, bool]:
    """The files to read, and whether they are only a part.

    Files that are read whole keep their place unless others were left out; CSV becomes JSON Lines.

    Args:
        inputs: files of one kind.
        fraction: how much of their bytes may be read, up to 1.
        folder: where copies are written.
    """
    count = len(inputs.files)
    every = min(fraction, MAX_FILES / count) if fraction < 1 or count > MAX_FILES else 1.0
    if every == 1.0 and inputs.kind != "csv":
        return inputs, False
    copies = []
    for number, file in enumerate(inputs.files):
        target = folder / f"{number:06d}-{file.name}"
        if file.stat().st_size > _WHOLE_BYTES or inputs.kind == "csv":
            copies.append(_cut(inputs, file, target, fraction))
        elif int((number + 1) * every) > int(number * every) or (number == 0 and count * every < 1):
            place(file, target)
            copies.append(target)
    kind, ending = ("jsonl", ".jsonl") if inputs.kind == "csv" else (inputs.kind, inputs.ending)
    return InputFiles(kind, ending, tuple(copies), sum(path.stat().st_size for path in copies)), every < 1


def _cut(inputs: InputFiles, file: Path, target: Path, fraction: float) -> Path:
    """A copy of the file's share."""
    size = int(file.stat().st_size * fraction)
    if inputs.kind == "parquet":
        return _row_groups(file, target, fraction)
    if inputs.kind == "csv":
        return _json_lines(file, target.with_name(f"{target.name}.jsonl"), inputs.text_bytes * fraction)
    if inputs.kind == "jsonl" and inputs.ending.count(".") == 1:
        pieces = _stretches(file, size)
    elif inputs.kind == "warc" and inputs.ending.endswith(".gz"):
        pieces = iter([_whole_members(file, size)])
    elif inputs.kind in ("jsonl", "warc"):
        target = target.with_name(target.name.removesuffix(".gz").removesuffix(".zst") + ".jsonl")
        pieces = _head(file, size * 4)
    else:
        place(file, target)
        return target
    with atomic_file(target) as out:
        for piece in pieces:
            out.write(piece)
    return target


def _stretches(file: Path, size: int) -> Iterator[bytes]:
    """Whole lines at evenly spaced places."""
    number = max(1, size // _STRETCH_BYTES)
    step = file.stat().st_size // number
    with file.open("rb") as source:
        for at in range(0, step * number, step):
            source.seek(at)
            if at:
                source.readline()  # the rest of a line that began before
            stretch = source.read(min(size, _STRETCH_BYTES))
            yield stretch + source.readline() if not stretch.endswith(b"\n") else stretch


def _whole_members(file: Path, size: int) -> bytes:
    with file.open("rb") as source:
        head = source.read(size)
    end = head.rfind(_GZIP_MEMBER)
    return head[:end] if end > 0 else head


def _head(file: Path, size: int) -> Iterator[bytes]:
    for line in lines(blocks(file)):
        yield line + b"\n"
        size -= len(line)
        if size < 0:
            return


def _row_groups(file: Path, target: Path, fraction: float) -> Path:
    with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as parquet:
        groups = parquet.num_row_groups
        taken = [number for number in range(groups) if int((number + 1) * fraction) > int(number * fraction)] or [0]
        rows = max(1, int(parquet.metadata.num_rows * fraction))
        with atomic_path(target) as temporary, pq.ParquetWriter(temporary, parquet.schema_arrow) as writer:
            for batch in parquet.iter_batches(1024, row_groups=taken, use_threads=False):
                writer.write_batch(batch)
                rows -= batch.num_rows
                if rows <= 0:
                    break
    return target


def _json_lines(file: Path, target: Path, size: float) -> Path:
    """The rows of a CSV file as JSON Lines."""
    text = (line.decode("utf-8", "replace") + "\n" for line in lines(blocks(file)))
    with atomic_file(target) as out:
        try:
            for row in csv.DictReader(text):
                out.write(json.dumps({str(name): value for name, value in row.items()}).encode() + b"\n")
                size -= sum(len(str(value)) for value in row.values())
                if size < 0:
                    break
        except (csv.Error, TornStream):  # the rows in front of the damage are read
            pass
    return target
