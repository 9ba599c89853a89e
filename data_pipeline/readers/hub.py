"""Hugging Face datasets at one commit, from the hub or on disk.

On the hub a data set is listed once: its commit and its Parquet files, each with the SHA-256 that the hub keeps of it,
are written down below the root as a signed note (`fetch/hub-...json`), so that a branch that moves changes nothing
until that file is removed; one that is damaged, or that no trusted key signed, is made again. Each Parquet file is an
item of its own: a worker fetches it into a temporary folder, checks its digest, and reads it as a local one. A data set
without such files is streamed whole by one worker. Local files are identified by their SHA-256. Of local folders there
are two kinds: what `save_to_disk` wrote (Arrow streams, of which only those are read that its state names, so no
left-over of the library's cache; of several splits the one that the source names), and any other, whose Parquet and
JSON Lines files are read.

A file whose rows cannot be decoded to the end gives all rows before the damage, then one fault. Parquet, Arrow and
JSON *Lines* go through our own readers: the library gives up a whole block of rows for one bad one, takes a column of
texts that all look like dates for dates, and holds a row group in memory whole.
"""

from __future__ import annotations

import glob
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from data_pipeline.readers.local import FoundFiles, search_files
from data_pipeline.readers.parquet import read_parquet
from data_pipeline.readers.record import Fields, Record, RecordFault, sample, to_record
from data_pipeline.readers.sources import HubSource
from data_pipeline.readers.streams import PACKED, blocks, plain_name
from governance.errors import ConfigError, MissingInput, PipelineError, storage_errors
from governance.files import sha256_bytes, sha256_file
from governance.hub_client import HubPlace, ask_hub
from governance.log import get_logger
from governance.signed_notes import read_note, write_first_note
from governance.stage import Runtime

_ENDINGS = (".parquet", ".arrow", ".jsonl", ".json")
_LOOSE = (".parquet", *(f"{ending}{packed}" for ending in (".json", ".jsonl") for packed in ("", *PACKED)))
_COMPANIONS = re.compile(
    r"^(README|LICEN[CS]E|NOTICE|CITATION)|\.(md|py|ipynb|ya?ml|toml|cfg|sh|png|jpe?g|svg|gif|pdf|sha256|md5)$", re.I
)  # files beside a data set's rows that hold none
_STATE, _SPLITS = "state.json", "dataset_dict.json"  # files that `save_to_disk` adds


def local_files(source: HubSource, folder: Path) -> FoundFiles:
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
            raise ConfigError(
                f"source {source.name}: {path.name} is not one of {', '.join(_ENDINGS)} ({', '.join(PACKED)})."
            )
        patterns = (glob.escape(str(path)),)
    else:
        raise MissingInput(
            f"source {source.name}: dataset = {source.dataset!r} is not a file or folder in {folder.absolute()}. For a "
            "data set of the hub give its revision too: a commit, a tag or a branch."
        )
    loose, owner = path.is_dir() and not (path / _STATE).is_file(), f"source {source.name}"
    found = search_files(patterns, folder, owner, follow_links=source.follow_links, any_of=loose)
    if not loose:
        return found
    everything = search_files((f"{glob.escape(str(path))}/**",), folder, owner, follow_links=source.follow_links)
    read = {file.path for file in found.files}
    others = [
        file.path for file in everything.files if file.path not in read and not _COMPANIONS.search(file.path.name)
    ]
    return replace(found, unread=sorted({*everything.unread, *((str(other), "unknown_file") for other in others)}))


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


def read_json(path: Path, file: str, fields: Fields) -> Iterator[Record | RecordFault]:
    """Rows of a JSON array or JSON lines file.

    Raises:
        MissingInput: the device fails while it is read.
        StorageError: the disk of temporary files is full.
    """
    position = 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            if path.suffix == ".lz4":  # the library does not unpack it
                packed, path = path, Path(folder, "plain.json")
                with storage_errors(path), path.open("wb") as out:
                    out.writelines(blocks(packed))
            for row in _door().load_dataset("json", data_files=[str(path)], split="train", streaming=True):
                yield to_record(row, fields, file, position)
                position += 1
        except PipelineError:  # the machine's: another run may read the file whole
            raise
        except Exception as error:  # a damaged file: Arrow, fsspec and the library raise types of their own
            yield RecordFault(file, position, "unreadable_rows", sample(f"{type(error).__name__}: {error}"))


@dataclass(frozen=True)
class HubFile:
    """A Parquet file of the hub."""

    name: str
    """Its path in the repository."""
    bytes: int
    sha256: str
    """As the hub keeps it of files in its large-file storage; "" for others."""


@dataclass(frozen=True)
class HubListing:
    """A data set's commit and the Parquet files of a split."""

    commit: str
    files: tuple[HubFile, ...]


def list_hub(source: HubSource, runtime: Runtime) -> HubListing:
    """A data set's listing, kept as a signed note below the root.

    Raises:
        MissingInput: the hub does not answer, or has no such data set, revision or file.
        ConfigError: the files belong to several configurations, and the source names none.
    """
    root, signer = runtime.root, runtime.hooks.signer
    path = _note(source, root)
    if (known := _listing(read_note(path, root, signer))) is not None:
        return known
    info = ask_hub(
        _place(source), lambda api: api.dataset_info(source.dataset, revision=source.revision, files_metadata=True)
    )
    found = [
        HubFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else "")
        for file in info.siblings
        if _belongs(file.rfilename, source)
    ]
    if source.files and not found:
        raise MissingInput(
            f"source {source.name}: no file of {source.dataset!r} at {info.sha} matches {', '.join(source.files)}. "
            'Correct `files`; a folder is "folder/*" there, and "folder/" at the end of an hf:// path. Only .parquet '
            "files are read here: name others in the `paths` of a source of type jsonl or text."
        )
    _refuse_mixture([file.name for file in found], source)
    found.sort(key=lambda file: file.name)
    files = [[file.name, file.bytes, file.sha256] for file in found]
    note = {"dataset": source.dataset, "revision": source.revision, "commit": info.sha, "files": files}
    # The branch may move between the answers to two workers: the first one's listing counts for both.
    for place in (_note(source.model_copy(update={"revision": info.sha}), root), path):
        first = write_first_note(place, note, root, signer, lambda known: _listing(known) is not None)
    listing = HubListing(first["commit"], tuple(HubFile(*file) for file in first["files"]))
    get_logger(__name__).info(
        "source %s: %s at %s is commit %s, with %d Parquet files; written to %s",
        source.name, source.dataset, source.revision, listing.commit, len(listing.files), path,
    )  # fmt: skip
    return listing


def _listing(note: Mapping[str, Any] | None) -> HubListing | None:
    """The listing in a note; None without a sound one."""
    try:
        return None if note is None else HubListing(note["commit"], tuple(HubFile(*file) for file in note["files"]))
    except (KeyError, TypeError):
        return None


def _note(source: HubSource, root: Path) -> Path:
    """Path of a written listing."""
    listed = [source.dataset, source.revision, source.config_name, source.split, list(source.files)]
    return root / "fetch" / f"hub-{sha256_bytes(json.dumps(listed).encode())[:16]}.json"


def at_commit(source: HubSource, runtime: Runtime) -> HubSource:
    """The source with its branch or tag replaced by the commit."""
    if not source.revision or re.fullmatch("[0-9a-f]{40}", source.revision):
        return source
    return source.model_copy(update={"revision": list_hub(source, runtime).commit})


def _place(source: HubSource) -> HubPlace:
    local = 'dataset = "FOLDER" without a revision'
    return HubPlace(f"source {source.name}", "dataset", source.dataset, source.revision, local)


def _belongs(name: str, source: HubSource) -> bool:
    """Return whether a file holds rows of the split.

    It is named after the split (`train.parquet`, `train-00000-of-00002.parquet`, also with a digest after that), or
    is in a folder named after it, unless the file is named after another.
    """
    if not name.endswith(".parquet"):
        return False
    if source.files:
        return any(fnmatchcase(name, pattern) for pattern in source.files)
    *folders, file = name.split("/")
    named = _SHARD.fullmatch(file)
    of_file = named["split"] if named else ""
    of_split = of_file == source.split or (source.split in folders and of_file not in _SPLIT_NAMES)
    return of_split and (not source.config_name or source.config_name in folders)


_SHARD = re.compile(r"(?P<split>.+?)([-_.]\d+([-_]of[-_]\d+)?)?(-[0-9a-f]{8,})?\.parquet")
_SPLIT_NAMES = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"}


def _refuse_mixture(names: Sequence[str], source: HubSource) -> None:
    """Refuse files of several configurations, whose rows are often the same.

    Raises:
        ConfigError: they are in several folders, and the source chooses none.
    """
    if source.config_name or source.files:
        return
    found = set()
    for name in names:
        folders = name.split("/")[:-1]
        before = folders[: folders.index(source.split)] if source.split in folders else folders
        found.add("/".join(before[1:] if before[:1] == ["data"] else before))
    if len(found) > 1:
        raise ConfigError(
            f"source {source.name}: the files of split {source.split!r} of {source.dataset!r} are in {len(found)} "
            f"folders ({', '.join(sorted(found)[:8])}{', ...' * (len(found) > 8)}), which may be configurations of the "
            'same rows. Set config_name to one of them, or files = ["data/*.parquet"] with patterns of those you need.'
        )


def read_hub_file(source: HubSource, commit: str, file: str, sha256: str) -> Iterator[Record | RecordFault]:
    """The rows of one Parquet file of the hub.

    Raises:
        MissingInput: it cannot be fetched, or is not what was listed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(
            ask_hub(
                _place(source),
                lambda api: api.hf_hub_download(
                    source.dataset, file, repo_type="dataset", revision=commit, local_dir=folder
                ),
            )
        )
        if sha256 and sha256_file(path) != sha256:
            raise MissingInput(
                f"source {source.name}: {file} of {source.dataset!r} is not what the hub listed (another SHA-256). "
                "Run the same command again; if this persists, the copy on the hub is damaged."
            )
        yield from read_parquet(path, file, source.fields)


def read_hub(source: HubSource) -> Iterator[Record | RecordFault]:
    """The rows of a data set of the hub at its commit.

    Raises:
        MissingInput: the hub cannot be reached (also half-way: what was lost is not a property of the data), or
            has no such data set, commit, configuration or split.
    """
    datasets = _door()
    try:
        rows = datasets.load_dataset(
            source.dataset, source.config_name or None, split=source.split, revision=source.revision, streaming=True
        )
        for position, row in enumerate(rows):
            yield to_record(row, source.fields, source.dataset, position)
    except Exception as error:  # the library raises a dozen types here, of three packages; all mean this
        place = _place(source)
        raise MissingInput(f"{place.setting}: {place.unreachable(error)}") from error


def _door() -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets
