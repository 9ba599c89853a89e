"""One-machine Ray cluster of two cores, for tests: it runs until its standard input ends, and prints its address."""

import sys
import time

import ray
from ray._private import services

LIMIT = 300  # time limit of the start in seconds; Ray's own, 30, is too short beside a test run


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
