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
from collections.abc import Callable, Iterator

_LOGGER = logging.getLogger("assay")
_PLAIN_INTERVAL_SECONDS = 10.0
_DRAWN_A_SECOND = 2  # rich's own ten take more than 1 % of a core


def set_up_logging(rank: int = 0, *, verbose: bool = False, quiet: bool = False) -> None:
    """Send the program's messages to standard error.

    Ranks above 0 speak only of warnings, and say who they are.
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


def get_logger(name: str) -> logging.Logger:
    """A logger below the program's own; `name` is the module's."""
    return _LOGGER.getChild(name)


Advance = Callable[..., None]


@contextlib.contextmanager
def progress(description: str, total: float, unit: str, *, done: float = 0) -> Iterator[Advance]:
    """Show progress with rate and time left; yields `advance(amount, note="")`.

    A bar on a terminal, a line every ten seconds elsewhere, nothing on ranks above 0.
    """
    if not _LOGGER.isEnabledFor(logging.INFO) or not _LOGGER.handlers:
        yield lambda amount, note="": None
    elif sys.stderr.isatty():
        with _bar(description, total, unit, done) as advance:
            yield advance
    else:
        yield _lines(description, total, unit, done)


@contextlib.contextmanager
def _bar(description: str, total: float, unit: str, done: float) -> Iterator[Advance]:
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.TextColumn("{task.fields[rate]}"),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[note]}"),
    )
    started = time.monotonic()
    console = Console(stderr=True)
    with rich_progress.Progress(*columns, console=console, refresh_per_second=_DRAWN_A_SECOND) as bar:
        task = bar.add_task(description, total=total, completed=int(done), rate="", note="")

        def advance(amount: float, note: str = "") -> None:
            made = bar.tasks[0].completed + amount - done
            rate = made / max(time.monotonic() - started, 1e-9)
            bar.update(task, advance=amount, rate=f"{rate:,.1f} {unit}/s", note=note)

        yield advance


def _lines(description: str, total: float, unit: str, done: float) -> Advance:
    started = last = time.monotonic()
    count = done

    def advance(amount: float, note: str = "") -> None:
        nonlocal last, count
        count += amount
        now = time.monotonic()
        finished = count >= total
        if now - last < _PLAIN_INTERVAL_SECONDS and not (finished and now - started > _PLAIN_INTERVAL_SECONDS):
            return
        last = now
        rate = (count - done) / max(now - started, 1e-9)
        left = f"{datetime.timedelta(seconds=round((total - count) / rate))} left" if rate else "time left unknown"
        parts = (f"{count:g} of {total:g} {unit}", f"{rate:.3g} {unit}/s", left, note)
        _LOGGER.info("%s: %s", description, ", ".join(part for part in parts if part))

    return advance
