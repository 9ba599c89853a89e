"""Rendezvous of the ranks' background threads through the process group's store.

Collectives are the main threads' own: one from a background thread would be matched with another rank's collective of
training. So a rank sets a key of its own in the store that the ranks' process group was formed by (rank 0's), by a
connection that is the thread's alone; rank 0 collects the keys and sets the answer, for which the others wait. Keys
begin with a number drawn afresh for each meeting. Price: three short messages a rank, whatever the number of ranks.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

_LOOK_SECONDS = 0.5  # longest pause between two looks at the store and at this rank's own events
_GRACE_SECONDS = 20.0  # how long the others are waited for once this rank's training has failed


class MeetingOver(Exception):
    """Nobody waits for this meeting's end any more."""


@dataclass(frozen=True)
class Meeting:
    """One meeting of the background threads."""

    store: Any
    """A `torch.distributed.Store` that all ranks share; the connection of this thread alone. None: of one rank."""
    number: str
    """Of this meeting; no other has it."""
    rank: int
    world_size: int
    over: threading.Event
    """Set by the main thread: stop waiting now."""
    failing: threading.Event
    """Set by the main thread, whose training has failed: stop waiting soon."""
    _answers: list[str] = field(default_factory=list)

    def collect(self, name: str, value: Any) -> list[Any] | None:
        """The value of every rank, in rank order, on rank 0.

        Each must be plain JSON. Returns once all are there.

        Raises:
            MeetingOver: the main thread called it off.
        """
        if self.world_size == 1:
            return [value]
        answer, mine = f"{self.number}/{name}", f"{self.number}/{name}/{self.rank}"
        if self.rank:
            self.store.set(mine, json.dumps(value))
            self._await([answer])
            return None
        keys = [f"{answer}/{rank}" for rank in range(1, self.world_size)]
        self._await(keys)
        values = [value, *(json.loads(text) for text in self.store.multi_get(keys))]
        for key in keys:
            self.store.delete_key(key)
        self.store.set(answer, "")
        self._answers.append(answer)
        return values

    def clear(self) -> None:
        """Remove what is left of this meeting.

        On rank 0, once no rank waits for it.
        """
        for answer in self._answers:
            self.store.delete_key(answer)
        self._answers.clear()

    def _await(self, keys: list[str]) -> None:
        pause, patience = 0.01, _GRACE_SECONDS
        while not self.store.check(keys):  # a wait in the store would log a warning for each look in vain
            patience -= pause if self.failing.is_set() else 0.0
            if self.over.is_set() or patience < 0:
                raise MeetingOver
            time.sleep(pause)
            pause = min(2 * pause, _LOOK_SECONDS)
