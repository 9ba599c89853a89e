"""How the background threads of several ranks meet: by files in a folder that all of them see.

Collectives are the main threads' own: one from a background thread would be matched with another rank's collective of
training. So a rank says a thing by writing `<name>.<rank>.json`, and hears the others by finding theirs. The folder
carries a number drawn afresh for each meeting, so that what a killed run said is never heard.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governance.files import remove_tree, write_json

_POLL_SECONDS = 0.02
_GRACE_SECONDS = 20.0  # how long the others are waited for once this rank's training has failed


class MeetingOver(Exception):
    """Nobody waits for this meeting's end any more."""


@dataclass(frozen=True)
class Meeting:
    """One meeting of the background threads."""

    folder: Path
    rank: int
    world_size: int
    over: threading.Event
    """Set by the main thread: stop waiting now."""
    failing: threading.Event
    """Set by the main thread, whose training has failed: stop waiting soon."""

    def share(self, name: str, value: Any) -> list[Any]:
        """The value of every rank, in rank order; each must be plain JSON.

        Raises:
            MeetingOver: the main thread called it off.
            StorageError: the disk is full or refuses.
        """
        if self.world_size == 1:
            return [value]
        write_json(self.folder / f"{name}.{self.rank}.json", value)
        wanted = [f"{name}.{rank}.json" for rank in range(self.world_size)]
        patience = _GRACE_SECONDS
        while not set(wanted) <= set(os.listdir(self.folder)):  # a list of names: network file systems remember misses
            patience -= _POLL_SECONDS if self.failing.is_set() else 0.0
            if self.over.is_set() or patience < 0:
                raise MeetingOver
            time.sleep(_POLL_SECONDS)
        return [json.loads((self.folder / file).read_bytes()) for file in wanted]

    def clear(self, *, others: bool) -> None:
        """Remove the records of this meeting, or of the `others` that were held at this place."""
        if not others:
            remove_tree(self.folder)
            return
        for folder in self.folder.parent.glob("*"):
            if folder != self.folder:
                remove_tree(folder)
