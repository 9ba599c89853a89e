"""Pool of a Ray cluster's processes, used like a local pool.

    pool = RayPool(root)
    future = pool.submit(function, item)

A process of its own (`ray_connection.py`) talks to the cluster, because Ray ends a process that loses its head: here
the loss is an error, and what is finished is kept. A task that dies with its process or node is tried again by Ray
`RETRIES` times; it makes the same bytes under the same names. Each process that does tasks first checks that it sees
this root and has this version of Assay.

Price: 2 to 4 CPU-seconds to connect; each process of the cluster imports what its first task needs.
"""

from __future__ import annotations

import importlib.util
import itertools
import multiprocessing
import os
import pickle
import socket
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from governance.errors import MissingInput, PipelineError
from governance.files import remove_file, write_bytes
from governance.processes import interrupts_held
from governance.ray_cluster.ray_connection import Conditions, serve

ADDRESS_VARIABLE = "RAY_ADDRESS"
_MARKER = ".ray.tmp~"  # begins the name of a file that shows who sees the root; a temporary name, so no foreign file
_ENDED = (
    "Finished shards are kept: when the cluster runs again, repeat the command; without --engine it goes on without Ray"
)


def address() -> str:
    """Address of the cluster; "auto": the one of this machine."""
    return os.environ.get(ADDRESS_VARIABLE) or "auto"


def no_cluster(engine: str, why: object) -> MissingInput:
    """The error of an address at which no cluster answers."""
    return MissingInput(
        f"--engine {engine}: no Ray cluster at {address()!r} ({why}). Start one with: ray start --head; or set "
        f"{ADDRESS_VARIABLE} to its address, and RAY_AUTH_MODE=token where it wants a token"
    )


def went_away(why: str) -> PipelineError:
    """The error of a cluster that was lost at work."""
    return PipelineError(f"the Ray cluster at {address()!r} went away{why and f' ({why})'}. {_ENDED}")


class RayPool:
    """Connection to a cluster, until `shutdown` or the end of this process.

    Raises:
        MissingInput: Ray is not installed, or no cluster answers at the address.
    """

    def __init__(self, root: Path) -> None:
        self.width = 1
        """Processor cores of the cluster, by its last message; this many tasks run at a time."""
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[Any]] = {}
        self._lost = ""
        self._lock = threading.Lock()
        if importlib.util.find_spec("ray") is None:
            raise MissingInput("--engine ray: Ray is not installed. Install it: pip install 'assay-pretrain[ray]'")
        host = socket.gethostname()
        for left in root.glob(f"{_MARKER}{host}~*"):
            if not Path(f"/proc/{left.name.split('~')[2]}").exists():
                remove_file(left)
        self._marker = root / f"{_MARKER}{host}~{os.getpid()}~{uuid.uuid4().hex[:8]}"
        write_bytes(self._marker, b"")
        self._conditions = Conditions(str(self._marker), metadata.version("assay-pretrain"), host)
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._server = context.Process(target=serve, args=(other, os.getpid(), address()), daemon=True)
        with interrupts_held():
            self._server.start()
        other.close()
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            kind, value = "lost", "the process that connects to it ended"
        if kind != "width":
            self.shutdown()
            raise no_cluster("ray", value)
        self.width = max(1, value)
        threading.Thread(target=self._read, args=(self._pipe,), daemon=True).start()

    def submit(self, task: Callable[[Any], Any], item: Any) -> Future[Any]:
        """Start `task(item)` on the cluster.

        Its error, or a `PipelineError` where the cluster or its process failed, is raised by the future's result.
        """
        future: Future[Any] = Future()
        work = pickle.dumps((task, item))
        with self._lock:
            number = next(self._numbers)
            self._waiting[number] = future
            future.set_running_or_notify_cancel()
            try:
                if self._lost:
                    raise OSError(self._lost)
                self._pipe.send((number, work, self._conditions))
            except OSError:
                del self._waiting[number]
                future.set_exception(went_away(self._lost))
        return future

    def shutdown(self, *, cancel_futures: bool = True) -> None:
        """End the connection; the cluster drops the tasks that run there."""
        self._server.kill()
        self._server.join()
        remove_file(self._marker)

    def _read(self, pipe: Connection) -> None:
        """Pass results on until the connection ends."""
        while True:
            try:
                kind, value = pipe.recv()
            except (EOFError, OSError):
                break
            if kind == "width":
                self.width = max(1, value)
            elif kind == "lost":
                self._lost = value
                break
            else:
                self._finish(kind, value)
        with self._lock:
            self._lost = self._lost or "the process that is connected to it ended"
            left, self._waiting = self._waiting, {}
        for future in left.values():
            future.set_exception(went_away(self._lost))

    def _finish(self, number: int, outcome: bytes | str) -> None:
        with self._lock:
            future = self._waiting.pop(number)
        if isinstance(outcome, str):
            future.set_exception(PipelineError(f"a task failed on the Ray cluster: {outcome}. {_ENDED}"))
            return
        try:
            result, error = pickle.loads(outcome)
        except Exception as fault:  # a class that only that process knows
            result, error = None, PipelineError(f"the outcome of a task cannot be read: {fault}. {_ENDED}")
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
