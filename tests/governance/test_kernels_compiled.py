"""A kernel's first compilation: one process makes it and the others find it."""

import importlib.util
import multiprocessing
import os
import signal
import sys

import numpy as np
import pytest
from numba.core.errors import TypingError

from governance.first_use import compile_seconds
from governance.kernels import compiled

KERNELS = """
from governance.kernels.compiled import kernel

@kernel
def doubled(values):
    return values + values

@kernel
def quadrupled(values):
    return doubled(doubled(values))

@kernel
def wrong(values):
    return values.no_such_thing

@kernel
def calls_wrong(values):
    return wrong(doubled(values))
"""
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def kernels(tmp_path):
    """A module of kernels that no process has compiled."""
    (tmp_path / "some_kernels.py").write_text(KERNELS)
    spec = importlib.util.spec_from_file_location("some_kernels", tmp_path / "some_kernels.py")
    module = sys.modules["some_kernels"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["some_kernels"]


def called(function, missed, output):
    """Call a kernel in a process; it and the others have all found no compiled one before any compiles."""
    look, met = compiled._FolderCache._load_overload, []

    def looked(cache, *given):
        found = look(cache, *given)
        if cache is function._cache and not met:
            met.append(True)
            missed.wait(300)
        return found

    compiled._FolderCache._load_overload = looked
    result = function(np.arange(3))
    output.put((result.tolist(), sum(function.stats.cache_misses.values()), len(compiled._ALONE)))


@pytest.mark.parametrize(("name", "times"), [("doubled", 2), ("quadrupled", 4)])
def test_of_processes_that_lack_a_kernel_one_compiles_it(kernels, name, times):
    missed, output = FORK.Barrier(3), FORK.Queue()
    processes = [FORK.Process(target=called, args=(getattr(kernels, name), missed, output)) for _ in range(3)]
    for process in processes:
        process.start()
    found = sorted(output.get(timeout=300) for _ in processes)
    for process in processes:
        process.join(300)
    assert found == [([0, times, 2 * times], 0, 0)] * 2 + [([0, times, 2 * times], 1, 0)]


@pytest.mark.parametrize("name", ["wrong", "calls_wrong"])
def test_a_kernel_that_cannot_be_compiled_holds_up_nobody(kernels, name):
    for _ in range(2):
        with pytest.raises(TypingError, match="no_such_thing"):
            getattr(kernels, name)(np.arange(3))
        assert compiled._ALONE == {}


def test_who_waits_too_long_compiles_too(kernels, monkeypatch):
    """The process that holds the lock may have been stopped while it compiled; it is not waited for again."""
    monkeypatch.setattr(compiled, "_LONGEST_SECONDS", 0.05)
    before = compile_seconds()
    with open(kernels.__file__) as source:
        compiled.fcntl.flock(source, compiled.fcntl.LOCK_EX)
        assert kernels.doubled(np.arange(3)).tolist() == [0, 2, 4]
        monkeypatch.setattr(compiled, "_LONGEST_SECONDS", 1e6)
        assert kernels.quadrupled(np.arange(3)).tolist() == [0, 4, 8]  # whose turn is not waited for again
    assert kernels.doubled.stats.cache_misses.total() == 1
    assert compile_seconds() - before >= 0.05


def test_a_killed_process_leaves_no_lock_to_its_children(kernels):
    given, asked = FORK.Pipe(duplex=False)

    def lock_and_die():
        compiled._compile_alone(kernels.__file__, kernels.doubled._cache)
        child = FORK.Process(target=given.poll, args=(300,))
        child.start()
        os.kill(os.getpid(), signal.SIGKILL)

    holder = FORK.Process(target=lock_and_die)
    holder.start()
    holder.join()  # with a time it would wait for the child, too
    with open(kernels.__file__) as source:
        compiled.fcntl.flock(source, compiled.fcntl.LOCK_EX | compiled.fcntl.LOCK_NB)
    asked.send(None)
