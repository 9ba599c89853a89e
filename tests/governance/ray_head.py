"""One-machine Ray cluster of two cores, for tests: it runs until its standard input ends, and prints its address."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from governance.parallel import close_pool

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 300  # time limit of the start in seconds; Ray's own, 30, is too short beside a test run


@contextlib.contextmanager
def head(monkeypatch):
    """The process group of a cluster that RAY_ADDRESS names."""
    close_pool()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": ""}
    environment["RAY_memory_monitor_refresh_ms"] = "0"  # else it kills workers when other programs fill the memory
    del environment["RAY_ADDRESS"]
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("ray_head.py"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment,
    )  # fmt: skip
    try:
        monkeypatch.setenv("RAY_ADDRESS", process.stdout.readline().strip())
        yield process.pid
    finally:
        close_pool()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def serve():
    """Start the cluster in this process."""
    import ray
    from ray._private import services

    def patient(*words):
        """Facts of the node, once it has started."""
        end = time.monotonic() + LIMIT
        while True:
            try:
                return of_node(*words)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)

    of_node, services.get_node = services.get_node, patient
    context = ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, logging_level="ERROR", log_to_driver=False
    )
    sys.stdout.write(f"{context.address_info['gcs_address']}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    serve()
