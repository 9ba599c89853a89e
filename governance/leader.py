"""Leader election in an array: one worker makes, the others wait.

Worker 0 makes it. Meanwhile it gives a sign of life each `BEAT_SECONDS`: it touches `<sign>.alive`, from a thread. When
its work raises, it leaves the message and the exit code in `<sign>.failed`. A waiting worker

- ends with that message and exit code, when such a note comes while it waits. One that stood there before may be of an
  earlier run, and counts for nothing; whoever begins the work removes it;
- makes it itself, when worker i has neither found it nor seen a sign of life for i times `PATIENCE_SECONDS`: a killed
  process leaves no note. Two that make the same make the same bytes, so that is never wrong, and costs their time at
  worst. For its number in the wait, one worker takes over and not all; its signs of life let the others wait on.

A share of an array (`Runtime.mode`) does not come here: it leaves instead of waiting, and a join, which is one process,
makes what is next.

Nothing here is a lock or a lease, and no file decides what is made. Clocks of nodes are not compared: a sign of life is
a change of the file's time, whatever it says. Price: two renames and a touch each ten seconds.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from governance.errors import PipelineError, StorageError
from governance.files import remove_file, touch, write_json
from governance.log import get_logger

BEAT_SECONDS = 10.0
PATIENCE_SECONDS = 300.0
POLL_SECONDS = 0.5
_REMIND_SECONDS = 60.0

Found = TypeVar("Found")


def make_alone(
    sign: Path, worker: tuple[int, int], find: Callable[[], Found | None], make: Callable[[], Found]
) -> Found:
    """Find what worker 0 makes; take over if it is gone.

    Args:
        sign: what signs of life and of failure are named after; its name holds the key of what is made.
        worker: (i, n), as in `Runtime`.
        find: the finished thing, or None; called often.
        make: makes it.

    Raises:
        PipelineError: the worker that makes it has failed; this one has its message and its exit code.
    """
    if worker[0] and (found := _await(sign, worker[0], find)) is not None:
        return found
    if worker[1] == 1:
        return make()
    with _signs(sign, worker[0]):
        return make()


def _await(sign: Path, number: int, find: Callable[[], Found | None]) -> Found | None:
    """Result of another worker; None after too long a silence."""
    alive, failed = _alive(sign), _failed(sign)
    beat, old_note = _changed(alive), _changed(failed)
    heard = said = time.monotonic()
    while (found := find()) is None:
        note = _changed(failed)
        if note is not None and note != old_note:
            _tell(failed)
        now = time.monotonic()
        if (last := _changed(alive)) != beat:
            beat, heard = last, now
        if now - heard > number * PATIENCE_SECONDS:
            get_logger(__name__).warning(
                "no sign of life of the worker that makes %s for %d s; making it here", sign, now - heard
            )
            return None
        if now - said > _REMIND_SECONDS:
            get_logger(__name__).info("another worker makes %s for all; waiting for it", sign)
            said = now
        time.sleep(POLL_SECONDS)
    return found


def _tell(failed: Path) -> None:
    try:
        note = json.loads(failed.read_bytes())
    except (OSError, ValueError):
        return  # removed in this moment: the work began again
    error = PipelineError(
        f"worker {note['worker']} of this array failed in what it makes for all, at {note['time']}: {note['message']}\n"
        "Mend that, then run the same command again: finished work is kept."
    )
    error.exit_code = note.get("exit_code", error.exit_code)  # so that all end with one: an energy budget's 71, too
    raise error


@contextlib.contextmanager
def _signs(sign: Path, number: int) -> Iterator[None]:
    """Give signs of life while the context lasts.

    Leave a note if it fails.
    """
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            with contextlib.suppress(StorageError, OSError):  # the work itself will say that the disk is full
                touch(_alive(sign))

    remove_file(_failed(sign))
    touch(_alive(sign))
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    except Exception as error:
        message = str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with contextlib.suppress(StorageError, OSError):
            code = getattr(error, "exit_code", PipelineError.exit_code)
            note = {"worker": number, "time": stamp, "message": message, "exit_code": code}
            write_json(_failed(sign), note)
        raise
    finally:
        ended.set()
        thread.join()
        remove_file(_alive(sign))


def _alive(sign: Path) -> Path:
    return sign.with_name(f"{sign.name}.alive")


def _failed(sign: Path) -> Path:
    return sign.with_name(f"{sign.name}.failed")


def _changed(path: Path) -> int | None:
    """Modification time by the file system's clock; None if missing."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
