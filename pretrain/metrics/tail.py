"""Tail of metrics.jsonl, in a separate thread."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from governance.signing.signed_lines import without_signature

_TEXTS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_CHUNK_BYTES = 1 << 20
_POLL_SECONDS = 5.0  # between two reads without a call of `more`


class Follower:
    """Lines of a growing file, with numbers as in `read_lines`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._more, self._over = threading.Event(), threading.Event()

    def more(self) -> None:
        """Announce an appended line; takes a microsecond."""
        self._more.set()

    def end(self) -> None:
        """Announce that no more lines will come."""
        self._over.set()
        self._more.set()

    def lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each whole line with its number, from 0, as it arrives.

        The iteration ends when `end` was called and everything is read. Numbers that are not finite, which the file
        holds as text, are numbers here. A line torn by a kill has no number.
        """
        number, at, rest = 0, 0, b""
        while True:
            last = self._over.is_set()  # checked before reading, so that all that is written before `end` is read
            self._more.clear()
            while data := self._read(at):
                at += len(data)
                *whole, rest = (rest + data).split(b"\n")
                for text in whole:
                    try:
                        line = json.loads(text)
                    except ValueError:
                        continue
                    yield number, _numbers(without_signature(line))
                    number += 1
            if last:
                return
            if not self._over.is_set():
                self._more.wait(_POLL_SECONDS)

    def _read(self, at: int) -> bytes:
        try:
            with self._path.open("rb") as handle:
                handle.seek(at)
                return handle.read(_CHUNK_BYTES)
        except FileNotFoundError:  # nothing is written yet
            return b""


def _numbers(value: Any) -> Any:
    if isinstance(value, str):
        return _TEXTS.get(value, value)
    if isinstance(value, Mapping):
        return {name: _numbers(inner) for name, inner in value.items()}
    return value
