"""Files read only while they match their manifest.

A manifest lists each file with its digest, but a size is all that a look-up compares. So code that reads a shard to
make or to judge something reads it here: its bytes are hashed as it is opened, and it must be the same file,
unchanged, when the reading ends. `map_shards` does so for every file that a shard declares as read; a check that runs
outside of it opens its files with `intact` itself (`test_fail_open_before.py` alters a file of every role that a
check reads). A stage whose shards all read the same files (word lists, a tokenizer) wraps its body in `guarded`, and a
join of all shards reads them within `all_intact`: what it decided of an altered file would count when that was put
back.

Price: one more pass of SHA-256 over what is read, from memory, about 1 % of the pipeline.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from governance.errors import AlteredFile, MissingInput
from governance.files import sha256_file
from governance.manifest import Output

T = TypeVar("T")
_MEND = "Put it back, or remove its folder and make it again: assay data prepare CONFIG"


@contextlib.contextmanager
def intact(output: Output, root: Path) -> Iterator[Path]:
    """Path of a listed file, guarded while the context lasts.

    Raises:
        MissingInput: it is missing.
        AlteredFile: it has other bytes, or was changed meanwhile.
    """
    path = root / output.path
    before = file_state(path)
    if before[2] != output.bytes:  # not read: a sparse file may be of any size
        raise AlteredFile(
            f"{path}: has {before[2]} bytes, its manifest states {output.bytes}: it was altered since it was written. "
            f"{_MEND}"
        )
    _compare(output, path)
    yield path
    require_unchanged(output, path, before)


def require_unchanged(output: Output, path: Path, before: tuple[int, ...]) -> tuple[int, ...]:
    """Raise where a file was changed since `before`; its state now.

    Both are of `file_state`. The state differs from `before` where only its own time has moved: by a second name or
    another mode, or because the bytes and the time of modification were altered and put back.

    Raises:
        MissingInput: it is missing.
        AlteredFile: it was changed.
    """
    now = file_state(path)
    if now[:-1] != before[:-1]:
        raise AlteredFile(f"{path}: was changed while it was read. Put it back, or remove its folder; then run again.")
    if now != before:  # as a second name does, from `put_in_place`
        _compare(output, path)
    return now


def guarded(make: Callable[[Path], T], outputs: Iterable[Output], root: Path) -> Callable[[Path], T]:
    """A stage's body that runs while these files are intact."""

    def run(folder: Path) -> T:
        with all_intact(outputs, root):
            return make(folder)

    return run


@contextlib.contextmanager
def all_intact(outputs: Iterable[Output], root: Path) -> Iterator[None]:
    """`intact` of several files.

    Raises:
        MissingInput: one is missing.
        AlteredFile: one has other bytes, or was changed meanwhile.
    """
    with contextlib.ExitStack() as reading:
        for output in outputs:
            reading.enter_context(intact(output, root))
        yield


@contextlib.contextmanager
def hashed(paths: Sequence[Path]) -> Iterator[tuple[str, ...]]:
    """Digests of files that no manifest lists, guarded while the context lasts.

    So what is read there has these digests.

    Raises:
        MissingInput: one is missing.
        AlteredFile: one was changed meanwhile.
    """
    before = [file_state(path) for path in paths]
    yield tuple(map(sha256_file, paths))
    for path, state in zip(paths, before, strict=True):
        if file_state(path) != state:
            raise AlteredFile(f"{path}: was changed while it was read. Run the same command again.")


def _compare(output: Output, path: Path) -> None:
    if (found := sha256_file(path)) != output.sha256:
        raise AlteredFile(
            f"{path}: has sha256 {found[:16]}…, its manifest states {output.sha256[:16]}…: it was altered since it was "
            f"written. {_MEND}"
        )


def file_state(path: Path) -> tuple[int, ...]:
    """Device, number, size and times of a file.

    Raises:
        MissingInput: it is missing.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise MissingInput(f"cannot read {path}: {error.strerror}") from error
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns
