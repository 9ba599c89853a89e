"""Callbacks: custom functions that see the events of a training.

    [[train.callbacks]]
    function = "mylab.hooks:on_step"
    events = ["step", "evaluation", "checkpoint", "end"]

Rank 0 calls them in its main thread, after the update of a step, with a copy of the record's line
(`docs/monitoring.md`). A checkpoint becomes durable in another thread, so its event waits for the end of a step. The
time of all calls since the preceding step's record is a part of a step's `seconds`, and its `seconds_callbacks`. An
exception is reported once and counted, or with `on_error = "fail"` saves the steps so far and ends the training.
"""

from __future__ import annotations

import copy
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governance.log import get_logger
from governance.own_code import find_code, load
from governance.processes import time_limit
from pretrain.config.training import CallbackConfig
from pretrain.metrics.metrics_log import Record

_EVENTS = {"step": "step", "validation": "evaluation", "task": "evaluation", "checkpoint": "checkpoint"}
"""Event of the record -> event of `[[train.callbacks]]`."""


@dataclass
class OwnCallback:
    """A function with its counts in this attempt."""

    config: CallbackConfig
    function: Callable[..., Any]
    sha256: str
    """SHA-256 of its source."""
    calls: int = 0
    errors: int = 0
    seconds: float = 0.0

    def facts(self) -> dict[str, Any]:
        """Fields of the event "callback"."""
        counts = {"calls": self.calls, "errors": self.errors, "seconds": self.seconds}
        return {"function": self.config.function, "sha256": self.sha256, **counts}


def most_seconds(configs: Sequence[CallbackConfig], tasks: int) -> float:
    """Most seconds of all calls after one step.

    `tasks` is the number of evaluation tasks, each an event.
    """
    calls = {"step": 1, "evaluation": 1 + tasks, "checkpoint": 2, "end": 1}  # a save may end while the next begins
    return sum(config.seconds * sum(calls[event] for event in set(config.events)) for config in configs)


class Callbacks:
    """Functions of this rank, and events that they have not seen yet."""

    def __init__(self, functions: Sequence[OwnCallback]) -> None:
        self._functions = functions
        self._waiting: deque[tuple[str, Mapping[str, Any]]] = deque()
        self._seconds = 0.0
        self.failure = ""
        """The error of a function with `on_error = "fail"`; empty: none."""

    def observing(self, record: Record) -> Record:
        """The record function, which also keeps each event for the callbacks."""
        if not self._functions:
            return record

        def observed(event: str, step: int, **values: Any) -> None:
            record(event, step, **values)
            if event in _EVENTS:
                self._waiting.append((_EVENTS[event], copy.deepcopy({"event": event, "step": step, **values})))

        return observed

    def run(self) -> None:
        """Call the functions with every event that waits."""
        while self._waiting and not self.failure:
            name, values = self._waiting.popleft()
            for own in self._functions:
                if name in own.config.events and not self.failure:
                    self._call(own, values)

    def end(self, step: int, **values: Any) -> None:
        """Keep the event "end", after the last events of the record."""
        if self._functions:
            self._waiting.append(("end", {"event": "end", "step": step, **values}))

    def _call(self, own: OwnCallback, values: Mapping[str, Any]) -> None:
        import torch

        began, threads, dtype = time.perf_counter(), torch.get_num_threads(), torch.get_default_dtype()
        own.calls += 1
        try:
            with torch.no_grad(), time_limit(own.config.seconds):
                own.function(copy.deepcopy(values))
        except (Exception, SystemExit) as error:  # own code may raise anything, and sys.exit() would end with 0
            own.errors += 1
            event = f"the event {values['event']!r} of step {values['step']}"
            where = f"train.callbacks: {own.config.function} failed at {event}"
            words = "".join(traceback.format_exception(error)).rstrip()
            if own.config.on_error == "fail":
                self.failure = f"{where}; the steps so far are saved. Correct the function, and start again.\n{words}"
            elif own.errors == 1:
                get_logger(__name__).warning("%s; training continues, later errors are only counted.\n%s", where, words)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)  # it decides the order of sums
        torch.set_default_dtype(dtype)
        passed = time.perf_counter() - began
        own.seconds += passed
        self._seconds += passed

    def step_values(self) -> dict[str, float]:
        """The field `seconds_callbacks` of a step's record; none without functions."""
        seconds, self._seconds = self._seconds, 0.0
        return {"seconds_callbacks": seconds} if self._functions else {}

    def facts(self) -> list[dict[str, Any]]:
        """Fields of the event "callback" for each function."""
        return [own.facts() for own in self._functions]

    def warn_of_errors(self) -> None:
        """Warn of functions that failed more than once."""
        for own in self._functions:
            if own.errors > 1:
                get_logger(__name__).warning(
                    "train.callbacks: %s failed %d times in %d calls", own.config.function, own.errors, own.calls
                )


def open_callbacks(configs: Sequence[CallbackConfig], folder: Path, *, first: bool = True) -> Callbacks:
    """Import the functions; `folder` is that of the run's file.

    Every rank imports them, so that all report a wrong name, and only the `first` one calls them.

    Raises:
        MissingInput: a module is missing.
        ConfigError: a module cannot be imported or lacks the function.
    """
    found = []
    for config in configs:
        code = find_code(config.function, folder, "train.callbacks: function")
        digest = code.digest
        found.append(OwnCallback(config, load(code, digest), digest))
    return Callbacks(found if first else ())
