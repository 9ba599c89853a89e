"""Results of commands: lines, or with --json one JSON object.

A command prints with `say(line, name=value)`: a person gets the line, a program the values. Lists of several calls are
joined, tables are merged, other values are replaced. Messages and progress go to standard error either way.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from governance.errors import StorageError, storage_errors
from governance.log import get_logger
from governance.manifest import Manifest

_RESULT: list[dict[str, Any]] = []  # at most one; state with a lifetime: `one_object`


def say(line: str, **values: Any) -> None:
    """Print one line of a result, or collect its values."""
    if not _RESULT:
        write_out(line + "\n")
        return
    for name, value in values.items():
        before = _RESULT[0].get(name)
        if isinstance(before, list):
            before.extend(value)
        elif isinstance(before, dict):
            before.update(value)
        else:
            _RESULT[0][name] = value


@contextlib.contextmanager
def one_object(interrupted: str, interrupted_status: int, prints: bool = True) -> Iterator[None]:
    """Collect the values and print them as one JSON object.

    An error is in it, and passed on. NaN and infinities, which JSON does not have, become null. `interrupted` is the
    message of a Ctrl-C. Without `prints`, as on all ranks of a training but the first, nothing is printed.
    """
    _RESULT.append({})
    try:
        yield
    except KeyboardInterrupt:
        _RESULT[0]["error"] = _error("KeyboardInterrupt", interrupted, interrupted_status)
        raise
    except Exception as error:
        status = getattr(error, "exit_code", 1)  # 1: an unexpected error, whose traceback Python prints
        _RESULT[0]["error"] = _error(type(error).__name__, str(error), status)
        raise
    finally:
        found = _RESULT.pop()
        if prints:
            text = json.dumps(_finite(found), indent=1, ensure_ascii=False, allow_nan=False, default=_plain)
            write_last(text + "\n", failed="error" in found)


def write_out(text: str, *, flush: bool = False) -> None:
    """Write to standard output.

    Raises:
        StorageError: it is a file on a full disk.
    """
    if sys.stdout is None:  # closed by who started this process; `print` says nothing either
        return
    try:
        with storage_errors(Path("standard output")):
            sys.stdout.write(text)
            if flush:
                sys.stdout.flush()
    except (StorageError, OSError):  # what is still buffered would fail again when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def write_last(text: str, *, failed: bool) -> None:
    """Write and flush the rest of a command's output.

    If the command has failed, the caller reports that error, and one of standard output must not replace it.

    Raises:
        StorageError: the command has not failed, and standard output is a file on a full disk.
    """
    try:
        write_out(text, flush=True)
    except (StorageError, OSError) as error:
        if not failed:
            raise
        if not isinstance(error, BrokenPipeError):
            get_logger(__name__).error("%s", error)


def _error(name: str, message: str, status: int) -> dict[str, Any]:
    return {"class": name, "message": message, "exit_code": status}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    """JSON's form of other values: an artifact's facts, else text."""
    if isinstance(value, Manifest):
        return {"stage": value.stage, "digest": value.digest, "folder": value.folder}
    return str(value)


def artifact(manifest: Manifest, root: Path) -> dict[str, str]:
    """An artifact as the JSON object names it."""
    return {"stage": manifest.stage, "digest": manifest.digest, "folder": str(root / manifest.folder)}
