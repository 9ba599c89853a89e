"""Compiled kernels: numba's cache, keyed by the kernels' sources.

Numba keeps compiled code next to the source and checks only whether the function's own file changed. A kernel that is
built from functions of another file would go on running the old ones after an update. Here the state of every file of
the kernel's folder, and of this one, is part of the cache's key.

On a new machine all workers meet the same kernels first. One process compiles each and the others wait for it: as many
compilations as workers would share the cores and each would take this much longer.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import sys
import time
from collections.abc import Callable, Iterable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import entrypoints, event
from numba.core.caching import FunctionCache
from numba.core.runtime import rtsys
from numba.np import linalg

from governance.first_use import add_compile_seconds, compilation_begins


def kernel(function: Callable[..., Any]) -> Any:
    """Compile at the first call, without the GIL, cached on disk."""
    dispatcher = njit(cache=True, nogil=True, error_model="numpy", no_cfunc_wrapper=True)(function)
    dispatcher._cache = _FolderCache(function)
    dispatcher._compilation_chain_init_hook = lambda: None  # the cache does it, before a compilation only
    return dispatcher


def part(function: Callable[..., Any]) -> Any:
    """A function that kernels call and nothing else does.

    Compiled into each kernel that calls it.
    """
    return njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """A `part` that is inlined wherever it is called."""
    return njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True)(function)


def loose(function: Callable[..., Any]) -> Any:
    """Inline a part with reassociated floating point; NaN and infinity stay exact.

    It vectorises and its last bits depend on the processor, so nothing that a digest covers may come out of it.
    """
    free = {"reassoc", "contract", "nsz"}
    return njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True, fastmath=free)(
        function
    )


class _CompileClock(event.Listener):  # type: ignore[misc]
    """Seconds that this process compiles; nested compilations count once."""

    def __init__(self) -> None:
        self._depth, self._began = 0, 0.0

    def on_start(self, event: Any) -> None:
        if not self._depth:
            self._began = time.monotonic()
            compilation_begins()
        self._depth += 1

    def on_end(self, event: Any) -> None:
        self._depth -= 1
        if not self._depth:
            add_compile_seconds(time.monotonic() - self._began)
        if event is not None and not self._depth:
            compiled, made = event.data["dispatcher"], tuple(event.data["args"])
            saves = getattr(compiled, "_cache", None) if made in compiled.overloads else None  # else it failed
            _let_others(source for source, (_, cache) in [*_ALONE.items()] if cache is not saves)


_CLOCK = _CompileClock()
event.register("numba:compile", _CLOCK)
_load_extensions = entrypoints.init_all


def _load_used_extensions() -> None:
    """Load numba's extensions only where the package of one is imported.

    Awkward's, which comes with gigatoken, would cost each process 0.3 CPU-s at its first kernel.
    """
    _load_without_linear_algebra()
    if any(package in sys.modules for package in _extension_packages()):
        _load_extensions()


@functools.cache
def _load_without_linear_algebra() -> None:
    """Load numba's functions of arrays without the matrix products.

    No kernel calls these; they would make each process load SciPy at its first kernel, for 0.1 CPU-s.
    """
    find_blas = linalg.ensure_blas
    linalg.ensure_blas = _no_blas
    try:
        import_module("numba.np.arraymath")
    finally:
        linalg.ensure_blas = find_blas


def _no_blas() -> None:
    raise ImportError("kernels have no matrix products")


@functools.cache
def _extension_packages() -> frozenset[str]:
    found = metadata.entry_points(group="numba_extensions", name="init")
    return frozenset(point.module.partition(".")[0] for point in found)


entrypoints.init_all = _load_used_extensions


_LONGEST_SECONDS = 600.0  # a process that was stopped holds up the others no longer
_ALONE: dict[str, tuple[int, FunctionCache]] = {}
"""Source file that this process has locked -> the descriptor, and the kernel's cache that will give it back."""
_GIVEN_UP: set[str] = set()
"""Source files that could not be locked: each of their kernels would wait as long again."""


def _compile_alone(source: str, cache: FunctionCache) -> None:
    """Wait until no other process compiles kernels of this file.

    Threads wait for numba's own lock. Where the file system has no locks, each process compiles for itself.
    """
    if source in _ALONE or source in _GIVEN_UP:  # in the first case, a kernel being compiled calls another
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(source, os.O_RDONLY)
        if _locked(descriptor):
            _ALONE[source] = descriptor, cache
        else:
            _GIVEN_UP.add(source)
            os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Lock an open file; return False if that fails.

    Time of waiting counts as compilation.
    """
    give_up, waits = time.monotonic() + _LONGEST_SECONDS, False
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > give_up:
                    return False
            except OSError:
                return False
            if not waits:
                waits = True
                _CLOCK.on_start(None)
            time.sleep(0.02)
    finally:
        if waits:
            _CLOCK.on_end(None)


def _let_others(sources: Iterable[str]) -> None:
    """Give back the lock of source files."""
    for source in sources:
        descriptor, _ = _ALONE.pop(source)
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may hold the descriptor, too
        os.close(descriptor)


def _leave_to_parent() -> None:
    """Forget the locks of the parent, in a forked child.

    It would keep them when the parent is killed.
    """
    for descriptor, _ in _ALONE.values():
        os.close(descriptor)
    _ALONE.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


class _FolderCache(FunctionCache):  # type: ignore[misc]
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._source = function.__code__.co_filename
        self._folders = (Path(self._source).parent, Path(__file__).parent)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Load a compiled kernel, without the compiler's tables.

        Numba would fill them first, which takes longer than the rest; a compilation fills them itself.
        """
        rtsys.initialize(target_context)  # arrays are allocated through it
        with self._guard_against_spurious_io_errors():
            found = self._load_overload(sig, target_context)
            if found is None:
                _compile_alone(self._source, self)
                found = self._load_overload(sig, target_context)  # another process may have compiled it meanwhile
                if found is not None:
                    self._let_others()
        if found is None:
            entrypoints.init_all()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save a compiled kernel for the processes that wait for it."""
        try:
            super().save_overload(sig, data)
        finally:
            self._let_others()

    def _let_others(self) -> None:
        _let_others(source for source, (_, cache) in [*_ALONE.items()] if cache is self)

    def _index_key(self, *key: Any) -> tuple[Any, ...]:
        return (*super()._index_key(*key), *map(folder_state, self._folders))


@functools.cache
def folder_state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and change time of each kernel file."""
    files = sorted(folder.glob("*.py"))
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
