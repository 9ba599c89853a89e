"""Hugging Face datasets at one commit, from the hub or on disk.

Rows are streamed; nothing is copied into the library's cache. What the hub serves is identified by its commit, local
files by their SHA-256. Of local folders there are two kinds: what `save_to_disk` wrote (Arrow streams, of which only
those are read that its state names, so no left-over of the library's cache; of several splits the one that the source
names), and any other, whose Parquet and JSON Lines files are read.

A file whose rows cannot be decoded to the end gives all rows before the damage, then one fault. Parquet, Arrow and
JSON *Lines* go through our own readers: the library gives up a whole block of rows for one bad one, takes a column of
texts that all look like dates for dates, and holds a row group in memory whole.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipeline.readers.jsonl import read_jsonl
from data_pipeline.readers.local import LocalFile, find_files
from data_pipeline.readers.parquet import read_parquet
from data_pipeline.readers.record import Fields, Record, RecordFault, sample, to_record
from data_pipeline.readers.rows import read_batch, wanted
from data_pipeline.readers.sources import HubSource
from data_pipeline.readers.streams import blocks, open_source, plain_name
from governance.errors import ConfigError, MissingInput

_ENDINGS = (".parquet", ".arrow", ".jsonl", ".json")
_LOOSE = (".parquet", *(f"{ending}{more}" for ending in (".jsonl", ".json") for more in ("", ".gz", ".zst")))
_STATE, _SPLITS = "state.json", "dataset_dict.json"  # what `save_to_disk` writes next to its files


def local_files(source: HubSource, folder: Path) -> list[LocalFile]:
    """The local files that a source without a revision names.

    Raises:
        MissingInput: the file, folder or split is missing.
        ConfigError: the file is of a kind that is not read.
    """
    path = folder / Path(source.dataset).expanduser()
    if (path / _SPLITS).is_file():
        path = path / _split(path, source)
    elif source.split != "train":
        raise ConfigError(
            f"source {source.name}: {path} was not saved with several splits, so split = {source.split!r} names none. "
            "Take the line out, or give the hub's commit as revision."
        )
    if (path / _STATE).is_file():
        patterns = _saved(path, source)
    elif path.is_dir():
        patterns = tuple(f"{glob.escape(str(path))}/**/*{ending}" for ending in _LOOSE)
    elif path.is_file():
        if Path(plain_name(path.name)).suffix not in _ENDINGS:
            raise ConfigError(f"source {source.name}: {path.name} is not one of {', '.join(_ENDINGS)} (.gz, .zst).")
        patterns = (glob.escape(str(path)),)
    else:
        raise MissingInput(
            f"source {source.name}: dataset = {source.dataset!r} is not a file or folder in {folder.absolute()}. For a "
            "data set of the hub give its commit too: revision = 40 hexadecimal digits."
        )
    loose = path.is_dir() and not (path / _STATE).is_file()
    return find_files(patterns, folder, source.name, follow_links=source.follow_links, any_of=loose)


def _split(path: Path, source: HubSource) -> str:
    splits = sorted(state.parent.name for state in path.glob(f"*/{_STATE}"))
    if source.split not in splits:
        raise MissingInput(
            f"source {source.name}: {path} has the splits {', '.join(splits) or '(none)'}, not {source.split!r}. "
            "Change its `split`."
        )
    return source.split


def _saved(path: Path, source: HubSource) -> tuple[str, ...]:
    """The files of a data set that `save_to_disk` wrote."""
    try:
        names = [file["filename"] for file in json.loads((path / _STATE).read_bytes())["_data_files"]]
        return tuple(glob.escape(str(path / Path(name).name)) for name in names)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MissingInput(
            f"source {source.name}: {path / _STATE} is not what save_to_disk writes ({error}). Save the data set again."
        ) from error


def read_local(path: Path, file: str, fields: Fields) -> Iterator[Record | RecordFault]:
    """The rows of one local file."""
    ending = Path(plain_name(path.name)).suffix
    if ending == ".jsonl":
        yield from read_jsonl(blocks(path), file, fields)
    elif ending == ".parquet":
        yield from read_parquet(path, file, fields)
    elif ending == ".arrow":
        yield from _read_arrow(path, file, fields)
    else:
        yield from _read_json(path, file, fields)


def _read_arrow(path: Path, file: str, fields: Fields) -> Iterator[Record | RecordFault]:
    """The rows of an Arrow stream, a batch at a time.

    `datasets` writes 1000 rows a batch.
    """
    position = 0
    with open_source(path) as source:
        try:
            with pa.ipc.open_stream(source) as stream:
                ways = wanted(stream.schema, fields)
                for batch in stream:
                    batch.validate(full=True)  # offsets of a damaged file may point anywhere
                    yield from read_batch(batch, ways, fields, file, position)
                    position += batch.num_rows
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            yield RecordFault(file, position, "unreadable_rows", sample(f"{type(error).__name__}: {error}"))


def _read_json(path: Path, file: str, fields: Fields) -> Iterator[Record | RecordFault]:
    """Rows of a JSON array or JSON lines file."""
    position = 0
    try:
        for row in _door().load_dataset("json", data_files=[str(path)], split="train", streaming=True):
            yield _piece(row, fields, file, position)
            position += 1
    except Exception as error:  # a damaged file: Arrow, fsspec and the library raise types of their own
        yield RecordFault(file, position, "unreadable_rows", sample(f"{type(error).__name__}: {error}"))


def read_hub(source: HubSource) -> Iterator[Record | RecordFault]:
    """The rows of a data set of the hub at its commit.

    Raises:
        MissingInput: the hub cannot be reached (also half-way: what was lost is not a property of the data), or
            has no such data set, commit, configuration or split.
    """
    datasets = _door()
    try:
        rows = datasets.load_dataset(
            source.dataset,
            source.config_name or None,
            split=source.split,
            revision=source.revision,
            streaming=True,
        )
        for position, row in enumerate(rows):
            yield _piece(row, source.fields, source.dataset, position)
    except Exception as error:  # the library raises a dozen types here, of three packages; all mean this
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise MissingInput(
            f"source {source.name}: the data set {source.dataset!r} at {source.revision} cannot be read from the hub "
            f"({said}). Where the hub cannot be reached, fetch it elsewhere with `hf download --repo-type dataset "
            f'{source.dataset} --revision {source.revision} --local-dir FOLDER`, and give dataset = "FOLDER" without '
            "a revision."
        ) from error


def _piece(row: Mapping[str, Any], fields: Fields, file: str, position: int) -> Record | RecordFault:
    record = to_record(row, fields, file, position)
    return RecordFault(file, position, record, sample(str(row))) if isinstance(record, str) else record


def _door() -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets
