"""Cache of the SHA-256 of files outside the root: sources and weights."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from governance.errors import MissingInput, PipelineError
from governance.files import atomic_path, sha256_file
from governance.log import get_logger
from governance.manifest import Input
from governance.signed_notes import read_note, write_note
from governance.stage import Runtime, ShareDone
from governance.verified_files import file_state

_SETTLED_NANOSECONDS = 2_000_000_000  # a file changed this lately can change again within one tick of its clock
_UNSETTLED = -1  # after the facts of such a file


class Digests:
    """SHA-256 of files outside the root, cached as a signed note.

    The cache is a signed note (`governance/signed_notes.py`). An entry holds only for the same path, size, times
    and inode, and only for a file that had not changed for two seconds when it was read. Without it everything is
    read again; but a share of an array, of which there are many, reads nothing for it and leaves. So the join before
    it waits until what it reads is unchanged for two seconds at most, and not for each file, since all are
    fetched before one is read.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._path = runtime.root / "fetch" / "digests.json"
        self._runtime = runtime
        self._mode = runtime.mode
        self._changed = False
        self._facts: dict[str, tuple[int, ...]] = {}
        self._known: dict[str, list[object]] = read_note(self._path, runtime.root, runtime.hooks.signer) or {}

    def of(self, path: Path) -> str:
        """The file's SHA-256.

        Raises:
            MissingInput: it is missing or cannot be read.
            ShareDone: it is not cached, and this is a share.
        """
        name = str(path.absolute())
        before = _facts(path)
        known = self._known.get(name)
        if isinstance(known, list) and known[:-1] == before:
            self._facts[name] = tuple(before)
            return str(known[-1])
        if self._mode == "share":
            raise ShareDone("sources", f"the digest of {path} is not known yet; a join reads the file")
        started = time.time_ns()
        left = max(before[1:3]) + _SETTLED_NANOSECONDS - started
        if self._mode == "join" and 0 <= left <= _SETTLED_NANOSECONDS:  # a time in the future is never cached
            time.sleep(left / 1e9 + 0.01)
            started = time.time_ns()
        digest = sha256_file(path)
        if before == _facts(path) and started - max(before[1], before[2]) > _SETTLED_NANOSECONDS:
            self._known[name] = [*before, digest]
            self._changed = True
            self._facts[name] = tuple(before)
        else:
            self._facts[name] = (*before, _UNSETTLED)
        return digest

    def facts(self, path: Path) -> tuple[int, ...]:
        """Size, times and inode of a file before its digest was taken.

        One more number follows where the file had changed within two seconds: equal times do not exclude another change
        then. Empty where no digest was taken here.
        """
        return self._facts.get(str(path.absolute()), ())

    def save(self) -> None:
        """Write the new digests.

        A disk that refuses costs only the time to read again.
        """
        if not self._changed:
            return
        try:
            write_note(self._path, self._known, self._runtime.root, self._runtime.hooks.signer)
        except PipelineError as error:
            get_logger(__name__).warning("the digests of the files that were read are not cached: %s", error)


def file_inputs(files: Iterable[tuple[str, Path]], runtime: Runtime) -> list[Input]:
    """Inputs of an artifact that is made of files outside the root.

    Each file has the name under which the manifest lists it.

    Raises: as `Digests.of`.
    """
    digests = Digests(runtime)
    inputs = [Input(stage="file", digest=digests.of(path), path=name) for name, path in files]
    digests.save()
    return inputs


def is_unchanged(path: Path, facts: tuple[int, ...], digest: str, *, again: bool = True) -> bool:
    """Return whether a file is still the one whose digest was taken.

    With other facts (`Digests.facts`) it is always read; with equal ones of a file that had just changed, or with none,
    it is read `again`, or else taken as unchanged.

    Raises:
        MissingInput: it is missing or cannot be read.
    """
    now = tuple(_facts(path))
    if now == facts or (not again and facts in ((), (*now, _UNSETTLED))):
        return True
    return sha256_file(path) == digest


def copy_unchanged(path: Path, digest: str, target: Path) -> None:
    """Copy a file whose digest was taken.

    No link: it would change the file's times, and a write to the file the copy.

    Raises:
        MissingInput: it was changed since.
        StorageError: the disk is full or refuses.
    """
    with atomic_path(target) as temporary:
        shutil.copyfile(path, temporary)
        if sha256_file(temporary) != digest:
            raise _changed(path)


@contextlib.contextmanager
def unchanged(files: Iterable[tuple[Path, str]]) -> Iterator[None]:
    """Read files by the digests that were taken of them.

    Raises:
        MissingInput: one has another digest when the reading ends, or was changed meanwhile.
    """
    held = [(path, digest, _facts(path)) for path, digest in files]
    yield
    for path, digest, before in held:
        if _facts(path) != before or sha256_file(path) != digest:
            raise _changed(path)


def _changed(path: Path) -> MissingInput:
    return MissingInput(
        f"{path} was changed while it was read; no artifact was made. Run the command again when nothing writes to the "
        "file."
    )


def _facts(path: Path) -> list[int]:
    _, number, *size_and_times = file_state(path)
    return [*size_and_times, number]
