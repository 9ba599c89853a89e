"""Signed notes that a run leaves for the next.

A finished shard's record, the note of a file that a join makes, the remembered digests of source files: each is
trusted without making the thing again, so an account that could write one could decide what the corpus becomes. A
note is written by a `NoteSigner` and counts only if that signer trusts it; one that does not count is ignored, and
what it describes is made again. Without keys the signer is `NoteSigner` itself, which trusts every note.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from governance.files import json_text, write_json, write_new
from governance.log import get_logger
from governance.regular_files import read_whole


class NoteSigner:
    """Signer of a run without keys; one with keys overrides it.

    Picklable, so that workers sign.
    """

    def sign(self, name: str, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """`content` as it is written under `name`: here as it is."""
        return content

    def open(self, name: str, written: Any) -> Any:
        """Content written under `name`; here everything counts.

        Subclasses return None where a signature does not count.
        """
        return written


def write_note(path: Path, content: Mapping[str, Any], root: Path, signer: NoteSigner) -> None:
    """Leave a note below `root`.

    The name is signed with the content, so that no note passes for another.
    """
    write_json(path, signer.sign(path.relative_to(root).as_posix(), content))


def write_first_note(
    path: Path, content: Mapping[str, Any], root: Path, signer: NoteSigner, sound: Callable[[Mapping[str, Any]], bool]
) -> dict[str, Any]:
    """Leave a note unless there is one; return the one that counts.

    Processes that look up the same thing at the same time thus agree on one answer. A note that is not `sound`, or
    whose signature does not count, is replaced.
    """
    if not write_new(path, json_text(signer.sign(path.relative_to(root).as_posix(), content)).encode("utf-8")):
        if (known := read_note(path, root, signer)) is not None and sound(known):
            return known
        write_note(path, content, root, signer)
    return dict(content)


def read_note(path: Path, root: Path, signer: NoteSigner) -> dict[str, Any] | None:
    """The content of a note.

    Returns None where there is no note, or, with a warning, where its signature does not count.
    """
    try:
        written = json.loads(read_whole(path))
    except (OSError, ValueError, RecursionError):
        return None
    content = signer.open(path.relative_to(root).as_posix(), written)
    if not isinstance(content, dict):
        get_logger(__name__).warning("%s: no trusted key signed this note; what it describes is made again", path)
        return None
    return content
