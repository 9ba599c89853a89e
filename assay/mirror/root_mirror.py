"""Copies of a root in S3, GCS and other stores, by digest.

    <URL>/blobs/<SHA-256>        each content once, whatever its names
    <URL>/index.json             {"files": {"encode/0123.../train-00000.tokens": ["<SHA-256>", bytes], ...}}

`push_root` sends what the store lacks, then writes the index: an interrupted one is repeated by the same command and
sends the rest. A file that a manifest lists must exist with its size, and with its digest if it is sent, else neither
the index nor a whole object changes. Unfinished files, links and locks stay here, but for the locks that a training's
manifest lists; of a file that grows (the journal, a record) the bytes at the moment of its digest are sent.
`pull_root` verifies each digest and overwrites nothing. Price: a push reads what is sent once, and what no manifest
lists again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from data_pipeline.readers.remote import file_system, public_url
from governance.errors import AlteredFile, ConfigError, ManifestError, MissingInput, PipelineError, StorageError
from governance.files import atomic_file, is_temporary, json_text, running_sha256, sha256_file
from governance.log import get_logger
from governance.manifest import FILE_NAME, read_manifest
from governance.signing.journal_lines import FILE_NAME as JOURNAL

_BLOCK_BYTES = 8 << 20
_AT_ONCE = 8
_BLOBS, _INDEX, _LOCK = "blobs", "index.json", ".lock"
_OBJECT_STORES = ("s3://", "s3a://", "gs://", "gcs://", "az://", "abfs://", "abfss://")
"""Stores without folders; a bucket must exist."""


@dataclass(frozen=True)
class Mirrored:
    """Files of a copy, in total and transferred."""

    files: int
    bytes: int
    sent: int
    """Files whose content was transferred; the others were there."""
    sent_bytes: int


def push_root(root: Path, url: str) -> Mirrored:
    """Send a root's files to a store.

    Raises:
        MissingInput: the root has no manifest, or the store needs a package that is not installed.
        AlteredFile: a file is missing or not what its manifest states.
        ConfigError: the store has the copy of another root, or of a later state of this one.
        StorageError: the store refuses or cannot be reached, or a file was rewritten while it was sent.
    """
    listed, locks = _listed(root)
    if not listed:
        raise MissingInput(f"{root}: holds no artifact. Give the root of a run (default: runs/<name of its file>).")
    # Artifacts before what names them.
    files = sorted(_files(root, locks), key=lambda path: (path.name == JOURNAL, path))
    if gone := sorted(listed.keys() - {path.relative_to(root).as_posix() for path in files}):
        raise AlteredFile(
            f"{root / gone[0]}: a manifest lists this file, but it is missing or a link ({len(gone)} such files). "
            "Remove the folder of its manifest and make it again."
        )
    with _reported(url):
        system, base = file_system(url)
        if system.exists(f"{base}/{_INDEX}"):
            _refuse_other_copy(system.cat_file(f"{base}/{_INDEX}"), url, root / JOURNAL)
        if not url.startswith(_OBJECT_STORES):
            system.makedirs(f"{base}/{_BLOBS}", exist_ok=True)
        there = {
            PurePosixPath(name).name: about["size"]
            for name, about in system.find(f"{base}/{_BLOBS}", detail=True).items()
        }

        def send(path: Path) -> tuple[str, int, bool]:
            size = path.stat().st_size
            name = path.relative_to(root).as_posix()
            digest, stated = listed.get(name) or (_digest(path, size), size)
            altered = AlteredFile(f"{path}: is not what its manifest states. Remove its folder and make it again.")
            if size != stated:
                raise altered
            if there.get(digest) == size:
                return digest, size, False
            with path.open("rb") as source, system.open(f"{base}/{_BLOBS}/{digest}", "wb") as target:
                sent = _copy(source, target.write, size)
            if sent != digest:  # the object was absent or cut, so nothing whole is lost
                system.rm(f"{base}/{_BLOBS}/{digest}")
                if name in listed:
                    raise altered
                raise StorageError(f"{path}: was rewritten while it was sent. Run the same command again.")
            return digest, size, True

        done = dict(zip(files, _at_once(send, files), strict=True))
        index = {path.relative_to(root).as_posix(): [digest, size] for path, (digest, size, _) in done.items()}
        system.pipe_file(f"{base}/{_INDEX}", json_text({"files": index}).encode())
    return _counted(done.values())


def pull_root(url: str, root: Path) -> Mirrored:
    """Fetch a root from a store into a new folder.

    Files of an interrupted fetch are kept.

    Raises:
        MissingInput: the store has no such copy, or needs a package that is not installed.
        ManifestError: an object is not what the index names.
        ConfigError: the folder has a file of the same name with other content.
        StorageError: the store refuses or cannot be reached.
    """
    with _reported(url):
        system, base = file_system(url)
        if not system.exists(f"{base}/{_INDEX}"):
            raise MissingInput(f"{public_url(url)}: holds no copy of a root (no {_INDEX}). Give the URL of a push.")
        index = _read_index(system.cat_file(f"{base}/{_INDEX}"), url)

        def fetch(entry: tuple[str, tuple[str, int]]) -> tuple[str, int, bool]:
            name, (digest, size) = entry
            target = root / name
            if target.exists():
                if target.stat().st_size == size and sha256_file(target) == digest:
                    return digest, size, False
                raise ConfigError(f"{target}: exists with other content. Fetch into a new folder.")
            with system.open(f"{base}/{_BLOBS}/{digest}", "rb") as source, atomic_file(target) as out:
                if _copy(source, out.write, size) != digest:
                    raise ManifestError(
                        f"{public_url(url)}/{_BLOBS}/{digest}: the object of {name} is damaged. Remove it there, then "
                        "push the root again: a push sends only what the store lacks."
                    )
            return digest, size, True

        ordered = sorted(index.items(), key=lambda entry: PurePosixPath(entry[0]).name == JOURNAL)
        return _counted(_at_once(fetch, ordered))


def _refuse_other_copy(index: bytes, url: str, journal: Path) -> None:
    """Raise unless the copy's journal is the beginning of the root's.

    A new index takes the names of all that only the old one lists.
    """
    try:
        held = _read_index(index, url).get(JOURNAL)
    except ManifestError:
        return  # cut while it was written: this push writes it again
    if held is None:
        return
    digest, size = held
    if not journal.is_file() or journal.stat().st_size < size or _digest(journal, size) != digest:
        raise ConfigError(
            f"{public_url(url)}: has the copy of another root, or of a later state of this one: its {JOURNAL} is not "
            f"the beginning of {journal}. Give another URL."
        )


def _listed(root: Path) -> tuple[dict[str, tuple[str, int]], set[str]]:
    """SHA-256 and bytes of each listed output, by name; listed locks."""
    found: dict[str, tuple[str, int]] = {}
    locks: set[str] = set()
    for path in sorted(root.glob(f"*/*/{FILE_NAME}")):
        manifest = read_manifest(path)
        found |= {output.path: (output.sha256, output.bytes) for output in manifest.outputs}
        locks |= {item.path for item in manifest.beside if item.path.endswith(_LOCK)}
    return found, locks


def _files(root: Path, locks: Collection[str]) -> Iterator[Path]:
    for path in root.rglob("*"):
        if path.suffix == _LOCK and path.relative_to(root).as_posix() not in locks:
            continue
        if path.is_file() and not path.is_symlink() and not is_temporary(path):
            yield path


def _digest(path: Path, size: int) -> str:
    with path.open("rb") as source:
        return _copy(source, lambda block: None, size)


def _copy(source: BinaryIO, write: Callable[[bytes], Any], size: int) -> str:
    """Copy the first `size` bytes; return their SHA-256."""
    digest = running_sha256()
    while size > 0 and (block := source.read(min(size, _BLOCK_BYTES))):
        digest.update(block)
        write(block)
        size -= len(block)
    return digest.hexdigest()


def _at_once(work: Callable[[Any], tuple[str, int, bool]], items: Iterable[Any]) -> list[tuple[str, int, bool]]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        waiting = [pool.submit(work, item) for item in items]
        try:
            return [one.result() for one in waiting]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _counted(done: Iterable[tuple[str, int, bool]]) -> Mirrored:
    whole = list(done)
    sent = [size for _, size, new in whole if new]
    return Mirrored(len(whole), sum(size for _, size, _ in whole), len(sent), sum(sent))


def _read_index(data: bytes, url: str) -> dict[str, tuple[str, int]]:
    try:
        index = {str(name): (str(digest), int(size)) for name, (digest, size) in json.loads(data)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"{public_url(url)}/{_INDEX}: cannot be read ({error}). Push the root again.") from error
    for name in index:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ManifestError(f"{public_url(url)}/{_INDEX}: names {name!r}, which is outside the root.")
    return index


@contextlib.contextmanager
def _reported(url: str) -> Iterator[None]:
    """Turn exceptions of a file system into our errors."""
    try:
        yield
    except PipelineError:
        raise
    except ImportError as error:
        raise MissingInput(
            f"{public_url(url)}: {error}. Install the package: s3fs for s3://, gcsfs for gs://."
        ) from error
    except ValueError as error:
        raise ConfigError(f"{public_url(url)}: {error}. Give a URL such as s3://bucket/runs/mine.") from error
    except Exception as error:  # the packages raise unrelated classes
        reason = f"{type(error).__name__}: {error}".splitlines()[0].replace(url, public_url(url))
        get_logger(__name__).debug("mirror", exc_info=True)
        if isinstance(error, FileNotFoundError):
            raise MissingInput(
                f"{public_url(url)}: {reason}. Create the bucket or folder, or correct the URL."
            ) from error
        raise StorageError(
            f"{public_url(url)}: the store failed ({reason}). What was copied is kept; run the same command again when "
            "the cause is gone."
        ) from error
