"""Home anchor: journal heads in the user's state folder.

    <state>/assay/heads/<first line's SHA-256>.json
    {"heads": {"/runs/a": {"head": "30:...64 hex", "over": ["21:..."], "real": "/disk/runs/a",
                           "time": "2026-01-01T00:00:00Z"}}, "given_up": []}

`<state>` is `$XDG_STATE_HOME`, else `~/.local/state`. A journal is known by its first line, so a root may be moved,
copied or reached by another name; one that was made again is another. Each place of a root has a head of its own,
because copies diverge. A journal is *behind* when

- its place has a head, and it lacks that line; or
- its place is new, it holds none of the latest heads (`over`: earlier ones that a later journal held already), these
  are not all at a known place, and it is not a copy of a root that still has its last head.

The second cannot be distinguished from an earlier copy whose original went on, was moved, and has not been used
since; that is refused until the original is used, or the lines are given up. A place is a path as it is typed: an
account that may write to a root can also replace it by a symbolic link.

A journal that is behind advances no head, however long it grows: only its owner can give lines up (`give_up`), which
leaves a trace here and in the journal. A head that cannot be written is one warning. Without a state folder nothing is
known, and nothing is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from governance.errors import StorageError
from governance.files import locked, sha256_bytes, write_json
from governance.log import get_logger

Holds = Callable[[str], bool]
"""True where a journal has the line of a head, "index:SHA-256"."""
_FIX = 'Restore the journal; or, to give these lines up, its owner runs: assay governance anchor CONFIG --accept "why"'


def state_folder() -> Path:
    """Folder of the heads."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "assay" / "heads"


class HomeAnchor:
    """The heads that were left of the root at one place."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._warned = False

    def known(self, first: str) -> bool:
        """Return whether any head of this journal is known."""
        return bool(self._read(first)["heads"])

    def fault(self, first: str, holds: Holds) -> str:
        """Reason why the journal is behind its head; "" if not."""
        lost = self._lost(self._read(first)["heads"], holds)
        if not lost:
            return ""
        place, item = max(lost.items(), key=lambda found: _index(found[1]["head"]))
        return (
            f"the journal lacks line {_index(item['head'])} that it had on {item['time']} at {place}: it was "
            f"truncated, rewritten, or is an older copy. {_FIX}"
        )

    def leave(self, first: str, head: str, holds: Holds, time: str) -> None:
        """Keep a journal's head, unless that journal is behind."""
        try:
            path = _file(first)
            with locked(path.with_suffix(".lock")):
                values = self._read(first)
                heads, place = values["heads"], self._place()
                if fault := self.fault(first, holds):
                    self._warn(fault)
                elif place not in heads or _index(heads[place]["head"]) < _index(head):
                    over = [item["head"] for name, item in heads.items() if name != place and holds(item["head"])]
                    real = os.path.realpath(self._root)
                    heads[place] = {"head": head, "over": sorted(over), "real": real, "time": time}
                    write_json(path, values)
        except (OSError, RuntimeError, StorageError) as error:  # RuntimeError: the user has no home
            self._warn(f"the journal's head cannot be kept in the user's state folder ({error}); the run goes on")

    def give_up(self, first: str, head: str, holds: Holds, words: Mapping[str, str]) -> list[str]:
        """Accept the journal as the latest; return the heads it lacks.

        They are kept with these words.


        Raises:
            StorageError: the state folder cannot be written.
        """
        path = _file(first)
        with locked(path.with_suffix(".lock")):
            values = self._read(first)
            lost = self._lost(values["heads"], holds)
            for place in lost:
                del values["heads"][place]
            real = os.path.realpath(self._root)
            values["heads"][self._place()] = {"head": head, "over": [], "real": real, "time": words["time"]}
            values["given_up"] += [{**words, "place": place, "head": item["head"]} for place, item in lost.items()]
            write_json(path, values)
        return sorted(item["head"] for item in lost.values())

    def _lost(self, heads: Mapping[str, Any], holds: Holds) -> dict[str, Any]:
        """The heads that this journal should hold and does not."""
        own = heads.get(self._place())
        if own is not None:
            return {} if holds(own["head"]) else {self._place(): own}
        over = {head for item in heads.values() for head in item["over"]}
        latest = {place: item for place, item in heads.items() if item["head"] not in over}
        if any(holds(item["head"]) for item in latest.values()):
            return {}
        if any(holds(item["head"]) and _has_line(Path(place), item["head"]) for place, item in heads.items()):
            return {}
        there = [Path(name) for place, item in heads.items() for name in {place, item["real"]}]
        return {
            place: item for place, item in latest.items() if not any(_has_line(root, item["head"]) for root in there)
        }

    def _place(self) -> str:
        return os.path.abspath(self._root)

    def _read(self, first: str) -> dict[str, Any]:
        try:
            values = json.loads(_file(first).read_bytes())
            return {"heads": dict(values["heads"]), "given_up": list(values["given_up"])}
        except (OSError, RuntimeError, ValueError, KeyError, TypeError):
            return {"heads": {}, "given_up": []}

    def _warn(self, words: str) -> None:
        if not self._warned:
            self._warned = True
            get_logger(__name__).warning("%s", words)


def _file(first: str) -> Path:
    return state_folder() / f"{first}.json"


def _index(head: str) -> int:
    return int(head.partition(":")[0])


def _has_line(root: Path, head: str) -> bool:
    """Return whether the journal contains a head's line."""
    try:
        lines = (root / "journal.jsonl").read_bytes().split(b"\n")
    except OSError:
        return False
    number, _, digest = head.partition(":")
    return int(number) < len(lines) and sha256_bytes(lines[int(number)]) == digest
