"""Command line: error handling and exit codes.

Each command is one function of a `*_commands.py` in this folder, imported when it is called, so that `assay --help`
needs neither torch nor pydantic. `surface.py` has all commands and options; `tests/assay/test_cli.py` pins them.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from importlib import import_module

from assay.cli.command_words import current_words, in_order, join_files, last_without_file, refuse_missing
from assay.cli.surface import parser

_INTERRUPTED = "interrupted; finished work is kept, and the same command resumes it"
_INTERRUPTED_STATUS = 130


def program() -> int:
    """Run `main`, then end the process without Python's teardown after training."""
    status = main()
    if "torch.distributed" in sys.modules:
        from pretrain.distributed.process_group import end_rank

        end_rank(status)
    return status


def main(argv: list[str] | None = None) -> int:
    """Run one command; return the process's exit status."""
    # Read once, when torch loads OpenMP: a waiting thread spins for a moment and then sleeps. By default it spins on,
    # on the core that the other thread needs when the machine is shared (benchmarks/RESULTS.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    warnings: list[str] = []
    top = parser()
    words = current_words(sys.argv[1:] if argv is None else argv, top, warnings.append)
    if not words:
        top.print_help(sys.stderr)
        return 2
    if fault := last_without_file(words):
        top.error(fault)
    arguments = top.parse_args(join_files(words, top))
    if getattr(arguments, "wait", False) and arguments.task is None:
        top.error("--wait requires --task I/N: it waits for the other tasks")
    in_order(arguments, warnings.append)
    from governance.errors import PipelineError
    from governance.log import get_logger, set_up_logging
    from governance.processes import count_interrupts, end_with_parent, importing
    from pretrain.distributed.process_group import read_ranks

    verbosity = {"verbose": arguments.verbose, "quiet": arguments.quiet}
    set_up_logging(**verbosity)
    if threading.current_thread() is threading.main_thread():
        count_interrupts()
    if launcher := os.environ.pop("ASSAY_LAUNCHER", ""):  # launcher.py sets it; its import would slow every command
        end_with_parent(int(launcher), signal.SIGTERM)
    _mute_repeated_warnings(launcher)
    try:
        ranks = read_ranks()
        set_up_logging(ranks.rank, **verbosity)
        for warning in warnings:
            get_logger(__name__).warning("%s", warning)
        prints = ranks.first or arguments.command not in ("run", "train")  # tasks of `srun` may prepare, each its own
        printed = _one_object(prints) if getattr(arguments, "json", False) else contextlib.nullcontext()
        with _flushed(), printed, _lost_interrupts():
            refuse_missing(arguments)
            with importing():
                commands = import_module(f"assay.cli.{arguments.group or 'run'}_commands")
            return int(getattr(commands, arguments.command)(arguments) or 0)
    except PipelineError as error:
        get_logger(__name__).error("%s: %s", type(error).__name__, error)
        return error.exit_code
    except KeyboardInterrupt:
        get_logger(__name__).error("%s", _INTERRUPTED)
        return _INTERRUPTED_STATUS
    except BrokenPipeError:  # `assay data show ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _lost_interrupts() -> Iterator[None]:
    """Raise an interruption that a library dropped, not its later error."""
    from governance.errors import PipelineError
    from governance.processes import pass_on_interrupt

    try:
        yield
    except PipelineError:
        raise
    except Exception:  # a Ctrl-C in a library's import may be lost, and the half-imported module fails later
        pass_on_interrupt()
        raise


def _mute_repeated_warnings(launcher: str) -> None:
    """Mute the warnings of a rank that its launcher has printed already."""
    from governance.log import get_logger

    for name in ("assay.config", "assay.run_file"):
        get_logger(name).setLevel(logging.ERROR if launcher else logging.NOTSET)


@contextlib.contextmanager
def _flushed() -> Iterator[None]:
    """Flush while a full disk can still be reported as such."""
    failed = True
    try:
        yield
        failed = False
    finally:
        if output := sys.modules.get("assay.cli.output"):  # else nothing was written; its import takes long
            output.write_last("", failed=failed)


def _one_object(prints: bool) -> contextlib.AbstractContextManager[object]:
    from assay.cli.output import one_object

    return one_object(_INTERRUPTED, _INTERRUPTED_STATUS, prints)
