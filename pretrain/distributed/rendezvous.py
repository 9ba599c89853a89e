"""Rendezvous of ranks outside collectives, by keys of a shared store.

A rank sets a key of its own; rank 0 collects the keys and sets the answer, for which the others wait. The store is
that of the process group (`torch.distributed.Store`, a connection for each thread). The saving threads meet so, because
a collective of theirs would be matched with another rank's collective of training; so do the nodes before there is a
process group. Price: three short messages per rank, whatever the number of ranks.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import distributed

_LONGEST_PAUSE_SECONDS = 0.5
_GRACE_SECONDS = 20.0  # how long the others are waited for once this rank's training has failed


def await_keys(store: distributed.Store, keys: Sequence[str], patient: Callable[[float], bool]) -> list[str]:
    """Wait for keys.

    Return those that are missing when `patient` ends the wait.

    Args:
        store: that all ranks reach.
        keys: to wait for.
        patient: gets the seconds of the pause before each look, and returns whether to continue waiting.
    """
    pause = 0.01
    while not store.check(list(keys)):
        if not patient(pause):
            return [key for key in keys if not store.check([key])]
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    return []


def until(deadline: float) -> Callable[[float], bool]:
    """A `patient` of `await_keys`: wait until a monotonic time."""
    return lambda pause: time.monotonic() < deadline


class RendezvousOver(Exception):
    """Raised where the main thread called the rendezvous off."""


@dataclass(frozen=True)
class Rendezvous:
    """One rendezvous of the ranks' background threads."""

    store: Any
    """A `torch.distributed.Store`, by a connection of this thread alone; None where there is one rank."""
    name: str
    """Unique name of this rendezvous."""
    rank: int
    world_size: int
    over: threading.Event
    """Set by the main thread: stop waiting now."""
    failing: threading.Event
    """Set by the main thread, whose training has failed: stop waiting soon."""
    _answers: list[str] = field(default_factory=list)

    def collect(self, topic: str, value: Any) -> list[Any] | None:
        """The value of every rank, in rank order, on rank 0.

        Each must be plain JSON. Returns once all have come.

        Raises:
            RendezvousOver: the main thread called it off.
        """
        if self.world_size == 1:
            return [value]
        answer, mine = f"{self.name}/{topic}", f"{self.name}/{topic}/{self.rank}"
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
        """Remove the answers of this rendezvous.

        Rank 0 does so, once no rank waits for them.
        """
        for answer in self._answers:
            self.store.delete_key(answer)
        self._answers.clear()

    def _await(self, keys: list[str]) -> None:
        left = _GRACE_SECONDS

        def patient(pause: float) -> bool:
            nonlocal left
            left -= pause if self.failing.is_set() else 0.0
            return left >= 0 and not self.over.is_set()

        # A wait inside the store would log a warning for each look.
        if await_keys(self.store, keys, patient):
            raise RendezvousOver
