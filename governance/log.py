"""Logging: one format, one level switch, progress lines.

On a terminal: rich. In a job: plain lines with time and rank, and a progress line every ten seconds. Nothing is set
up at import; `set_up_logging` is called once by the command line.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from governance.first_use import compile_seconds

_LOGGER = logging.getLogger("assay")
_PLAIN_INTERVAL_SECONDS = 10.0
_WIDE = 140
"""Columns of a terminal that hold a bar with its time left and note."""
_DRAWN_PER_SECOND = 2  # rich's own ten take more than 1 % of a core


def set_up_logging(rank: int = 0, *, verbose: bool = False, quiet: bool = False) -> None:
    """Send the program's messages to standard error.

    Ranks above 0 log only warnings, with their rank.
    """
    handler: logging.Handler
    if sys.stderr.isatty() and rank == 0:
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False, markup=False, log_time_format="%H:%M:%S")
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        name = f" rank {rank}" if rank else ""
        handler.setFormatter(logging.Formatter(f"%(asctime)s{name} %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    _LOGGER.handlers[:] = [handler]
    _LOGGER.setLevel(level if rank == 0 else logging.WARNING)
    _LOGGER.propagate = False
    logging.raiseExceptions = False  # a library's log on a full disk (W&B's) would print a traceback for each line


def get_logger(name: str) -> logging.Logger:
    """A logger below the program's own; `name` is the module's."""
    return _LOGGER.getChild(name)


@dataclass(frozen=True)
class _RunSteps:
    """Steps of the run in progress, and expected seconds where known."""

    names: tuple[str, ...]
    seconds: Mapping[str, float]

    def left(self, name: str) -> float | None:
        """Expected seconds of the steps after `name`; None where one is unknown."""
        later = self.names[self.names.index(name) + 1 :]
        known = [self.seconds[step] for step in later if step in self.seconds]
        return sum(known) if len(known) == len(later) else None


_STEPS: list[_RunSteps] = []  # at most one; state with a lifetime: `run_steps`


@contextlib.contextmanager
def run_steps(names: Sequence[str], seconds: Mapping[str, float]) -> Iterator[None]:
    """Number the run's steps in messages and progress while the context lasts.

    Within another call nothing changes: the whole run counts its data stages itself.

    Args:
        names: of all steps in order, each as `progress` and `run_stage` call it.
        seconds: step -> expected duration, for those that are known.
    """
    if _STEPS:
        yield
        return
    _STEPS.append(_RunSteps(tuple(names), seconds))
    try:
        yield
    finally:
        _STEPS.clear()


def step_label(name: str) -> str:
    """A step with its number in the run: "clean (2 of 11)"."""
    if not _STEPS or name not in _STEPS[0].names:
        return name
    return f"{name} ({_STEPS[0].names.index(name) + 1} of {len(_STEPS[0].names)})"


def rest_of_run(name: str) -> str:
    """Time of a step and those after it, in words, or ""."""
    later = _STEPS[0].left(name) if _STEPS and name in _STEPS[0].names else None
    if later is None or (own := _STEPS[0].seconds.get(name)) is None:
        return ""
    return f", about {datetime.timedelta(seconds=round(own + later))} left in all"


def _time_left(name: str, seconds: float | None) -> str:
    """Time left of a step, and of the run where known."""
    if seconds is None:
        return "time left unknown"
    left = f"{datetime.timedelta(seconds=round(seconds))} left"
    later = _STEPS[0].left(name) if _STEPS and name in _STEPS[0].names else None
    return f"{left}, about {datetime.timedelta(seconds=round(seconds + later))} in all" if later else left


def _stopwatch() -> Callable[[], float]:
    """Seconds since now without those of compilation, which is done once."""
    started, compiled = time.monotonic(), compile_seconds()
    return lambda: time.monotonic() - started - (compile_seconds() - compiled)


Advance = Callable[..., None]


def _amount(value: float, digits: int) -> str:
    """A number of this many digits, never with an exponent."""
    if value >= 10**digits - 0.5:  # `g` would round it to a power of ten with an exponent
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    return f"{value:.{digits + 6}f}".rstrip("0").rstrip(".") if "e" in text else text


@contextlib.contextmanager
def progress(description: str, total: float, unit: str, *, done: float = 0) -> Iterator[Advance]:
    """Show progress with rate and time left; yields `advance(amount, note="", found=False)`.

    Work that was found, as `done` before, took no time of this process: it is left out of the rate. A bar on a
    terminal, a line every ten seconds elsewhere, nothing on ranks above 0.
    """
    if not _LOGGER.isEnabledFor(logging.INFO) or not _LOGGER.handlers:
        yield lambda amount, note="", found=False: None
    elif sys.stderr.isatty():
        with _bar(description, total, unit, done) as advance:
            yield advance
    else:
        yield _lines(description, total, unit, done)


@contextlib.contextmanager
def _bar(description: str, total: float, unit: str, done: float) -> Iterator[Advance]:
    from rich import progress as rich_progress
    from rich.console import Console
    from rich.text import Text

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(20),
        rich_progress.TaskProgressColumn(),
        rich_progress.TextColumn("{task.fields[rate]}"),
        rich_progress.TextColumn("{task.fields[left]}"),
        rich_progress.TextColumn("{task.fields[note]}"),
    )
    console = Console(stderr=True)
    narrow = console.width < _WIDE

    class TwoLineBar(rich_progress.Progress):
        def get_renderables(self) -> Iterator[Any]:
            """The bar, and in a narrow window a second line."""
            yield from super().get_renderables()
            for task in self.tasks if narrow else []:
                words = ", ".join(filter(None, (task.fields["left"], task.fields["note"])))
                yield Text(f"  {words}", no_wrap=True, overflow="ellipsis")

    shown = columns[:4] if narrow else columns
    elapsed = _stopwatch()
    with TwoLineBar(*shown, console=console, refresh_per_second=_DRAWN_PER_SECOND, transient=True) as bar:
        task = bar.add_task(step_label(description), total=total, completed=int(done), rate="", left="", note="")

        def advance(amount: float, note: str = "", found: bool = False) -> None:
            nonlocal done
            done += amount if found else 0
            made = bar.tasks[0].completed + amount - done
            rate = made / max(elapsed(), 1e-9)
            left = _time_left(description, max(0.0, total - made - done) / rate if rate else None)
            bar.update(task, advance=amount, rate=f"{rate:,.1f} {unit}/s", left=left, note=note)

        yield advance


def _lines(description: str, total: float, unit: str, done: float) -> Advance:
    started = last = time.monotonic()
    count, elapsed = done, _stopwatch()

    def advance(amount: float, note: str = "", found: bool = False) -> None:
        nonlocal last, count, done
        count, done = count + amount, done + (amount if found else 0)
        now = time.monotonic()
        finished = count >= total
        if now - last < _PLAIN_INTERVAL_SECONDS and not (finished and now - started > _PLAIN_INTERVAL_SECONDS):
            return
        last = now
        rate = (count - done) / max(elapsed(), 1e-9)
        left = _time_left(description, (total - count) / rate if rate else None)
        parts = (f"{_amount(count, 6)} of {_amount(total, 6)} {unit}", f"{_amount(rate, 3)} {unit}/s", left, note)
        _LOGGER.info("%s: %s", step_label(description), ", ".join(part for part in parts if part))

    return advance
