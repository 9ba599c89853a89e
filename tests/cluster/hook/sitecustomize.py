"""Faults from inside a process of the run; Python imports this as it starts, where this folder is on PYTHONPATH.

`$ASSAY_TEST_FAULTS` names a folder. Tests write into it while jobs run:

- `slow`: seconds that each training step takes longer, read at each step; no file: none;
- `memory`: megabytes that rank 1 takes before its next step, once: the file goes;
- `clock`: the name of a node whose clock is four minutes ahead, as its check before training measures;
- `bad-node`: the name of a node whose GPUs' memory has errors, as its check before training finds;
- `fail-once/<stage>.<index>`: the shard is not made, its process fails, and the file goes;
- `fail-always/<stage>.<index>`: the same as long as the file is there.

`made` gets a line for each shard that was made: stage, index, job, task. A shard with an even index fails by an
exception, one with an odd index by SIGKILL.
"""

import contextlib
import functools
import importlib.abc
import importlib.util
import os
import signal
import sys
import time
import types
from pathlib import Path

FOLDER = Path(os.environ["ASSAY_TEST_FAULTS"])


def of_training(loop):
    agree = loop._agree

    @functools.wraps(agree)
    def slow(*arguments):
        with contextlib.suppress(FileNotFoundError):
            time.sleep(float((FOLDER / "slow").read_text() or 0))
        if os.environ.get("SLURM_PROCID") == "1":
            eat()
        return agree(*arguments)

    loop._agree = slow


def eat():
    """Take memory until the process is ended, at most for a minute."""
    try:
        size = int((FOLDER / "memory").read_text()) << 20
        (FOLDER / "memory").unlink()
    except (FileNotFoundError, ValueError):
        return
    taken = b"x" * size
    time.sleep(60)
    del taken


def of_checks(checks):
    ecc = checks.ecc

    @functools.wraps(ecc)
    def planted(asked, node, query):
        with contextlib.suppress(FileNotFoundError):
            if (FOLDER / "bad-node").read_text() == node:
                return checks.NodeFinding("ecc", "GPU 0: 2 uncorrected errors", bad=True, nodes=(node,))
        return ecc(asked, node, query)

    checks.ecc = planted
    exchange = checks.exchange

    @functools.wraps(exchange)
    def shifted(store, ranks):
        with contextlib.suppress(FileNotFoundError):
            if (FOLDER / "clock").read_text() == os.environ["SLURMD_NODENAME"]:
                checks.time = types.SimpleNamespace(time=lambda: time.time() + 240, monotonic=time.monotonic)
        return exchange(store, ranks)

    checks.exchange = shifted


def of_shards(parallel):
    make = parallel._make_shard

    @functools.wraps(make)
    def watched(function, section, records, *more):
        name = f"{records.parent.name}.{more[-1][0]}"
        fail(name)
        made = make(function, section, records, *more)
        job, task = (os.environ.get(name, "-") for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"))
        with (FOLDER / "made").open("a") as file:  # one short line is one write
            file.write(f"{name.replace('.', ' ')} {job} {task}\n")
        return made

    parallel._make_shard = watched


def fail(name):
    once, always = FOLDER / "fail-once" / name, FOLDER / "fail-always" / name
    if not once.exists() and not always.exists():
        return
    once.unlink(missing_ok=True)
    if int(name.rpartition(".")[2]) % 2:
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError(f"a fault that a test planted: {name}")


CHANGES = {"pretrain.loop": of_training, "governance.parallel": of_shards, "pretrain.preflight.node_checks": of_checks}


class Watch(importlib.abc.MetaPathFinder):
    """Changes a module as soon as it is imported, so that the hook itself imports nothing heavy."""

    def find_spec(self, name, path, target=None):
        if name not in CHANGES:
            return None
        change = CHANGES.pop(name)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def run_and_change(module):
            run(module)
            change(module)

        spec.loader.exec_module = run_and_change
        return spec


sys.meta_path.insert(0, Watch())
