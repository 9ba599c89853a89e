"""Kernels of the last stages, compiled ahead by a second process.

The largest kernels count mentions of groups and find personal data, and an inspection comes to them last. The process
starts where the first kernel has to be compiled, and never on a machine that has them all.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.process import BaseProcess

from governance.first_use import when_compiling
from governance.processes import end_with_parent, interrupts_held


@contextlib.contextmanager
def compiled_ahead() -> Iterator[None]:
    """Compile ahead if this block compiles, and a second core is there."""
    started: list[BaseProcess] = []

    def start() -> None:
        process = multiprocessing.get_context("spawn").Process(target=_compile, args=(os.getpid(),), daemon=True)
        with interrupts_held():
            process.start()
        started.append(process)

    if len(os.sched_getaffinity(0)) < 2:
        yield
        return
    with when_compiling(start):
        try:
            yield
        finally:
            for process in started:
                process.kill()
                process.join()


def _compile(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)
    compile_last()


def compile_last() -> None:
    """Call the last kernels on a small document, with usual types."""
    import pyarrow as pa

    from data_pipeline.pii.detect import replace_all
    from governance.checks.bias.bias import BiasConfig
    from governance.checks.bias.counts import KEPT, count_groups
    from governance.checks.bias.word_lists.lexicons import load_lexicons

    document = {"id": "1", "text": "She is kind.", "source": "a", "url": "", "language": "en", "licence": ""}
    count_groups([pa.Table.from_pylist([document])], KEPT, load_lexicons(BiasConfig()))
    replace_all(document["text"])
