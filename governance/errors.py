"""Error classes with their exit codes (sysexits.h).

    PipelineError          1    anything that a user can cause and we can explain
      ConfigError         78    the file or an override is wrong: file, section, field, value, the fix
      MissingInput        66    an input or an artifact is missing; names the command that makes it
      ManifestError       65    unknown schema, digest mismatch: the difference in the message
        AlteredFile       65    a file is not what its manifest lists; where a verdict rests on it, 77
      GateClosed          77    the verdict does not allow this corpus: reasons and owners
      CheckpointError     65    cannot load: missing shard, torn file, another model
      Occupied            73    another live process does the same work: host, process, since when
      StorageError        74    the disk is full or refuses; no final name holds a half-written file
      ClusterError        69    the scheduler refused; carries its message
      BudgetReached       71    an energy budget (or one for a teacher's answers) leaves no room; not requeued
      Preempted           75    checkpointed and ended; the job requeues on 75
      Diverged            76    the training cannot continue as configured (pretrain/loss_spikes.py)

A message states what is wrong (with the value), where, and how to fix it. Anything that is not a
`PipelineError` is a defect of this program and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path


class PipelineError(Exception):
    """An error that a user can cause, reported without a traceback.

    `exit_code` is the process's exit status.
    """

    exit_code = 1


class ConfigError(PipelineError):
    """The run's file, or an override of it, is wrong."""

    exit_code = 78


class MissingInput(PipelineError):
    """A source file or an artifact is missing."""

    exit_code = 66
    stage = ""
    """The stage whose artifact a look-up did not find; "" where a file is missing."""


class ManifestError(PipelineError):
    """A manifest that is unreadable or disagrees with its files."""

    exit_code = 65


class AlteredFile(ManifestError):
    """A file that differs from its manifest."""


class GateClosed(PipelineError):
    """The verdict does not let this corpus through.

    `by_verdict` is True where a valid verdict says so itself, and False for an altered file or another cause.
    """

    exit_code = 77
    by_verdict = False


class CheckpointError(PipelineError):
    """A checkpoint is torn, altered, or belongs to another model."""

    exit_code = 65


class Occupied(PipelineError):
    """Another living process does the same work."""

    exit_code = 73


class StorageError(PipelineError):
    """The storage is full or refuses to write."""

    exit_code = 74


class ClusterError(PipelineError):
    """The scheduler refused a request."""

    exit_code = 69


class BudgetReached(PipelineError):
    """A budget of energy, or of a teacher's answers, is used up.

    Also raised where the use of energy is unknown. What was made so far, or the training state, is saved.

    71 is EX_OSERR, "a resource of the system is used up": the only code of its kind that nothing else of ours has.
    """

    exit_code = 71


class Preempted(PipelineError):
    """The run received a signal, saved a checkpoint and ended.

    The same command continues from there.
    """

    exit_code = 75


_MAX_NAMES = 20_000  # most names of a folder that is searched for a similar name, at 3 us each


def near_path(path: Path, *others: str) -> str:
    """A hint with the nearest existing name, or "".

    The hint is about the first part of the path that does not exist. `others` are words that may be given in place of
    a path.
    """
    try:
        while path.name and not path.parent.exists():
            path = path.parent
        names = sorted(os.listdir(path.parent))
    except OSError:  # not a folder, or one that may not be read: the caller's error is the one to report
        return ""
    if len(names) > _MAX_NAMES:
        return ""
    known = {name: str(path.parent / name) for name in names if name[:1] != "."}
    known |= {word: word for word in others}
    typed, ending = path.stem, path.suffix
    alike = {Path(name).stem if ending and Path(name).suffix == ending else name: name for name in known}
    near = difflib.get_close_matches(typed if ending else path.name, alike, n=1)
    return f" Did you mean {known[alike[near[0]]]}?" if near else ""


_STORAGE_ERRNOS = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file-size limit is reached",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission to write",
    errno.EPERM: "no permission to write",
    errno.ENOTDIR: "a part of its path is a file, not a folder",
    errno.EISDIR: "it is a folder",
    errno.EEXIST: "a part of its path is a file, or a link to a folder that does not exist",
    errno.EIO: "the device reports an input/output error",
    errno.ENOENT: "no folder can be made there",
}


_STORAGE_FIXES = {
    errno.ENOSPC: "Make room, or name a folder on another disk",
    errno.EDQUOT: "Make room, or name a folder on another disk",
    errno.EROFS: "Name a folder that can be written",
    errno.EISDIR: "Name a file in it",
    errno.EACCES: "Let this account write there, or name another folder",
    errno.EPERM: "Let this account write there, or name another folder",
}


def require_writable(folder: Path) -> None:
    """Raise unless this account may make files in a folder.

    The folder need not exist yet. It asks the file system for the rights, before minutes of work; a full disk shows
    only when it is written.

    Raises:
        StorageError: they cannot.
    """
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    with storage_errors(folder):
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
        if not os.access(there, os.W_OK | os.X_OK):
            number = errno.EROFS if os.statvfs(there).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(number, os.strerror(number), str(there))


def hub_hint(path: Path) -> str:
    """Advice where a missing path is hf://OWNER/NAME; else ""."""
    if "hf:" not in path.parts:
        return ""
    owner_and_name = "/".join(path.parts[path.parts.index("hf:") + 1 :][:2]).partition("@")[0]
    return f" Models of the hub are fetched first: hf download {owner_and_name} --local-dir FOLDER; then give FOLDER."


@contextlib.contextmanager
def read_errors(
    path: Path, fault: str = "cannot be read", fix: str = "Remove its folder and make it again."
) -> Iterator[None]:
    """Turn errors of reading a file of the root into `ManifestError`.

    These are errors of the system, of Arrow and of JSON, and a column or key that is missing.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        arrow = getattr(sys.modules.get("pyarrow"), "ArrowException", OSError)
        if not isinstance(error, (OSError, ValueError, KeyError, arrow)):
            raise
        raise ManifestError(f"{path}: {fault}: {error}. {fix}") from error


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn OS write errors on `path` into `StorageError`.

    Libraries that write for us (Arrow, safetensors, torch) raise other types with the system's message inside;
    those are recognised by that message.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number is None and "No space left on device" in str(error):
            number = errno.ENOSPC
        if (number == errno.ENOENT and path.parent.is_dir()) or (number == errno.EISDIR and not path.is_dir()):
            raise  # of a file that was to be read
        if number not in _STORAGE_ERRNOS:
            raise
        raise StorageError(
            f"cannot write {path}: {_STORAGE_ERRNOS[number]}. Nothing half-written was left under a final name. "
            f"{_STORAGE_FIXES.get(number, 'Name another folder')}, then run the same command again: finished work is "
            f"kept."
        ) from error
