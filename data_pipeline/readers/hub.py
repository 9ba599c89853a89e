"""Data sets through Hugging Face `datasets` (its door): the hub at one commit, or local Parquet and JSON Lines files.

Rows are streamed; nothing is copied into the library's cache. What the hub serves is identified by its commit, local
files by their SHA-256. A file whose rows cannot be decoded to the end gives all rows before the damage, then one fault.
Local JSON *Lines* go through our own reader: the library gives up a whole block of rows for one bad line, and takes a
column of texts that all look like dates for dates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.readers.jsonl import read_jsonl
from data_pipeline.readers.record import Fault, Fields, Record, sample, to_record
from data_pipeline.readers.sources import HubSource
from data_pipeline.readers.streams import blocks, plain_name
from governance.errors import ConfigError, MissingInput

_BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": ""}  # the library's own; "": our reader


def local_patterns(source: HubSource, folder: Path) -> tuple[str, ...]:
    """The patterns of the local files that a source without a revision names.

    Raises:
        MissingInput: there is no such file or folder.
        ConfigError: the file is of a kind that is not read.
    """
    import glob

    path = folder / Path(source.dataset).expanduser()
    if path.is_dir():
        inside = glob.escape(str(path))
        endings = [f"{ending}{more}" for ending in _BUILDERS for more in ("", ".gz", ".zst") if ending != ".parquet"]
        patterns = [f"{inside}/**/*{ending}" for ending in (".parquet", *endings)]
        found = tuple(pattern for pattern in patterns if glob.glob(pattern, recursive=True))
        if not found:
            raise MissingInput(f"source {source.name}: {path} holds no .parquet, .jsonl or .json file.")
        return found
    if not path.is_file():
        raise MissingInput(
            f"source {source.name}: dataset = {source.dataset!r} is no file or folder in {folder.absolute()}. For a "
            "data set of the hub give its commit too: revision = 40 hexadecimal digits."
        )
    if Path(plain_name(path.name)).suffix not in _BUILDERS:
        raise ConfigError(f"source {source.name}: {path.name} is none of {', '.join(_BUILDERS)} (.gz, .zst).")
    return (glob.escape(str(path)),)


def read_local(path: Path, file: str, fields: Fields) -> Iterator[Record | Fault]:
    """The rows of one local file."""
    ending = Path(plain_name(path.name)).suffix
    if ending == ".jsonl":
        yield from read_jsonl(blocks(path), file, fields)
        return
    datasets = _door()
    position = 0
    try:
        for row in datasets.load_dataset(_BUILDERS[ending], data_files=[str(path)], split="train", streaming=True):
            yield _piece(row, fields, file, position)
            position += 1
    except Exception as error:  # a damaged file, told by Arrow, fsspec or the library in types of their own
        yield Fault(file, position, "unreadable_rows", sample(f"{type(error).__name__}: {error}"))


def read_hub(source: HubSource) -> Iterator[Record | Fault]:
    """The rows of a data set of the hub at its commit.

    Raises:
        MissingInput: the hub cannot be reached (also half-way: what was lost then is no property of the data), or
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


def _piece(row: Mapping[str, Any], fields: Fields, file: str, position: int) -> Record | Fault:
    record = to_record(row, fields, file, position)
    return Fault(file, position, record, sample(str(row))) if isinstance(record, str) else record


def _door() -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets
