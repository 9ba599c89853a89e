"""Process that talks to a Ray cluster, and its tasks.

It gets tasks from a pipe, hands them to the cluster, and sends their outcomes back as they come. Tasks and outcomes
stay pickled here, so that this process imports little. It ends when its parent does, and when the head is gone.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import threading
import time
import traceback
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from governance.errors import ConfigError, MissingInput
from governance.processes import end_with_parent

RETRIES = 5
"""Times that a task is tried again after its process or node died."""
_LOOK_SECONDS = 2.0
_LOST_SECONDS = 20.0  # without an answer of the head, which may be started again meanwhile; Ray itself ends us at 60
_SEEN_SECONDS = 60.0  # until a new file is seen everywhere: file systems over a network cache that there is none


@dataclass(frozen=True)
class Conditions:
    """Conditions that a process of the cluster must fulfil."""

    marker: str
    """File of the root, which every node must see under this path."""
    version: str
    """Version of Assay that started the tasks."""
    host: str
    """Name of the host that started them."""


def serve(pipe: Connection, parent: int, address: str) -> None:
    """Carry tasks and outcomes between the pipe and the cluster."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)
    os.dup2(2, 1)  # Ray prints what its workers print; standard output is the command's
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it sends statistics by default
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))  # Ray's default is for ever
    sending = threading.Lock()

    def send(*message: Any) -> None:
        with sending:
            pipe.send(message)

    try:
        require_listener(address)
        import ray

        ray.init(address=address, logging_level="ERROR", namespace="assay")
        run = ray.remote(_task).options(max_retries=RETRIES, num_cpus=1)
        head = _split(address if ":" in address else ray.get_runtime_context().gcs_address)
        send("width", _cores())
    except Exception as error:  # Ray raises many classes here, none of them public
        send("lost", " ".join(str(error).split()) or type(error).__name__)
        return
    threading.Thread(target=_watch, args=(send, head), daemon=True).start()

    def pass_on(number: int, done: Any) -> None:
        error = done.exception()
        send(number, done.result() if error is None else " ".join(str(error).split()))

    while True:
        try:
            number, work, conditions = pipe.recv()
        except EOFError:
            return
        run.remote(work, conditions).future().add_done_callback(partial(pass_on, number))


def require_listener(address: str) -> None:
    """Raise an OSError where nothing listens; Ray tries for minutes."""
    if ":" in address:
        socket.create_connection(_split(address), timeout=_LOST_SECONDS).close()


def _cores() -> int:
    import ray

    return int(ray.cluster_resources().get("CPU", 0))


def _split(address: str) -> tuple[str, int]:
    """Host and port of an address, which may begin with "ray://"."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        raise ValueError("the address has no port")
    return host.strip("[]"), int(port)


def _watch(send: Any, head: tuple[str, int]) -> None:
    """Send the number of cores; end this process without the head."""
    answered, width = time.monotonic(), 0
    while True:
        time.sleep(_LOOK_SECONDS)
        try:
            socket.create_connection(head, timeout=_LOOK_SECONDS).close()
            answered = time.monotonic()
        except OSError as error:
            if time.monotonic() - answered > _LOST_SECONDS:
                send("lost", f"its head, {head[0]}:{head[1]}, has not answered for {_LOST_SECONDS:.0f} s: {error}")
                os._exit(1)
            continue
        try:
            now = _cores()
        except Exception:  # the head has started again and is not ready; the next look counts
            continue
        if now != width:
            width = now
            send("width", width)


def _task(work: bytes, conditions: Conditions) -> bytes:
    """Do one task on the cluster.

    Returns the result and the error, pickled: Ray would wrap the error.
    """
    try:
        _checked(conditions)
        task, item = pickle.loads(work)
        return pickle.dumps((task(item), None))
    except Exception as error:  # the one who waits raises it
        raised = "".join(traceback.format_exception(error))
        with contextlib.suppress(Exception):  # not every exception can be pickled, or read again
            error.add_note(f"On {socket.gethostname()}:\n{raised}")
            pickled = pickle.dumps((None, error))
            pickle.loads(pickled)
            return pickled
        return pickle.dumps((None, RuntimeError(raised)))


@cache
def _checked(conditions: Conditions) -> None:
    """Check once that this process sees the root, with this version.

    Raises:
        ConfigError: it has another version of Assay.
        MissingInput: it does not see the root.
    """
    host, here = socket.gethostname(), metadata.version("assay-pretrain")
    if here != conditions.version:
        raise ConfigError(
            f"--engine ray: {host} has Assay {here}, and {conditions.host} has {conditions.version}. Install the same "
            "version on all nodes of the cluster"
        )
    marker = Path(conditions.marker)
    if not is_seen(marker):
        raise MissingInput(
            f"--engine ray: {host} does not see {marker.parent} of {conditions.host}. Use a --root on a file "
            "system that all nodes of the cluster mount under one path"
        )


def is_seen(path: Path) -> bool:
    """Wait for a file of another node.

    Returns False if it does not come.
    """
    end = time.monotonic() + _SEEN_SECONDS
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True
