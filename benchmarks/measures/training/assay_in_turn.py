"""`assay` as anyone runs it, but each training step waits for its turn, as the rivals' do (`rivals/turns.py`).

    python assay_in_turn.py train my.toml --root root

Each answer splits the processor time since the last one: `arithmetic` is that of forward, backward and update on all
threads, `rest` that of the main thread outside them (reading, guard, record), `threads` that of the other Python
threads took (loader, saver, meters, mirror), `children` other processes that it started (the mirror's service).
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(HERE), str(HERE / "benchmarks" / "rivals")]

import turns  # noqa: E402

from assay.cli import main as cli  # noqa: E402
from pretrain import loop  # noqa: E402
from pretrain.engine import engine  # noqa: E402
from pretrain.model.kernels.threads import NAME  # noqa: E402

_TICK = os.sysconf("SC_CLK_TCK")
_arithmetic = 0.0
_inside = 0.0


def _counted(method: Callable[..., Any]) -> Callable[..., Any]:
    """Copy of a method that accumulates its time."""

    def timed(*arguments: Any, **options: Any) -> Any:
        global _arithmetic, _inside
        whole, own = time.process_time(), time.thread_time()
        try:
            return method(*arguments, **options)
        finally:
            _arithmetic += time.process_time() - whole
            _inside += time.thread_time() - own

    return timed


def _threads() -> float:
    """Seconds of the other Python threads so far, without those that share the arithmetic."""
    mine = threading.get_native_id()
    return sum(
        _seconds(f"/proc/self/task/{thread.native_id}/stat")
        for thread in threading.enumerate()
        if thread.native_id != mine and not thread.name.startswith(NAME)
    )


def _children() -> float:
    """Seconds of the processes that this one started so far."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return sum(_seconds(f"/proc/{number}/stat") for number in listed)


def _seconds(path: str) -> float:
    try:
        fields = Path(path).read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICK


def main() -> int:
    """Wait for a turn where the loop requests a step's rate, once per step after its rows are read."""
    rate_factor, before = loop.rate_factor, [0.0] * 4
    for name in ("forward", "backward", "update"):
        setattr(engine.Engine, name, _counted(getattr(engine.Engine, name)))

    def in_turn(*arguments: Any) -> float:
        nonlocal before
        now = [_arithmetic, time.thread_time() - _inside, _threads(), _children()]
        spent = [after - earlier for after, earlier in zip(now, before, strict=True)]
        if any(before):
            turns.answer(**dict(zip(("arithmetic", "rest", "threads", "children"), spent, strict=True)))
        else:
            turns.answer(ready=True)
        before = now
        turns.wait()
        return rate_factor(*arguments)

    vars(loop)["rate_factor"] = in_turn
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
