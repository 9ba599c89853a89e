from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from unittest import mock

import pytest

from governance.errors import ConfigError, Preempted
from pretrain.distributed import process_group
from pretrain.distributed.launcher import _free_port
from pretrain.distributed.preemption import SIGNALS, watch_signals
from pretrain.distributed.process_group import (
    Ranks,
    interface_to,
    read_ranks,
    rendezvous_address,
    slurm_attempt,
    threads_of,
)
from pretrain.distributed.watchdog import RECORDER
from tests.pretrain.rank_runs import run_ranks


def test_nobody_launched_it():
    assert read_ranks({}) == Ranks(0, 1, 0, 1)


def test_torchrun():
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert read_ranks(environment) == Ranks(5, 8, 1, 4)


def test_srun():
    environment = {
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "3",
        "SLURM_NTASKS": "8",
        "SLURM_LOCALID": "3",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
        "SLURM_JOB_ID": "1234",
        "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7",
    }
    assert read_ranks(environment) == Ranks(3, 8, 3, 4)
    assert rendezvous_address(environment) == ("10.0.0.7", 21_234)
    assert rendezvous_address({**environment, "MASTER_ADDR": "node1"}) == ("node1", 21_234)
    assert rendezvous_address({**environment, "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}) == ("node1", 29_500)
    with pytest.raises(ConfigError, match="MASTER_PORT"):
        rendezvous_address({**environment, "MASTER_PORT": "many"})


def test_a_slurm_attempt():
    assert slurm_attempt({}) == ("", 0, 0)
    assert slurm_attempt({"SLURM_JOB_ID": "7"}) == ("/7", 0, 0)
    environment = {"SLURM_CLUSTER_NAME": "big", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "3"}
    assert slurm_attempt(environment) == ("big/7", 3, 0)
    assert slurm_attempt({**environment, "ASSAY_RETRY": "2"}) == ("big/7", 3, 2)


def test_the_interface_is_the_one_of_the_way_there():
    names = {name for _, name in socket.if_nameindex()}
    assert interface_to("192.0.2.77") in {None, *names} - {"lo"}
    assert interface_to("127.0.0.1") == interface_to("192.0.2.1")  # a node's own name, others resolve it differently


@pytest.mark.parametrize("step", [None, "4294967291", "4294967295"])
def test_a_batch_script_is_one_process(step):
    environment = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}
    if step:
        environment["SLURM_STEP_ID"] = step
    assert read_ranks(environment) == Ranks()


@pytest.mark.parametrize(
    "environment", [{"RANK": "0"}, {"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}]
)
def test_a_broken_launch_is_reported(environment):
    with pytest.raises(ConfigError):
        read_ranks(environment)


def test_threads_are_shared_among_the_ranks_of_a_node(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    assert threads_of(Ranks(0, 1, 0, 1), 0) == 6
    assert threads_of(Ranks(0, 4, 0, 2), 0) == 3
    assert threads_of(Ranks(0, 1000, 0, 1000), 0) == 1
    assert threads_of(Ranks(), 3) == 3


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_becomes_a_flag_and_the_handler_returns(number):
    before = signal.getsignal(number)
    with watch_signals() as leave:
        leave.defer()
        assert not leave()
        os.kill(os.getpid(), number)
        assert leave()
    assert signal.getsignal(number) is before


_RANK = """
import atexit, sys, torch
from assay.cli import main as cli
from pretrain.distributed.process_group import join, read_ranks

def command():
    join(read_ranks(), 60.0)
    torch.distributed.all_reduce(torch.ones(1))
    print("worked")
    return 75

atexit.register(lambda: print("the interpreter was taken down"))
cli.main = command
sys.exit(cli.program())
"""


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_rank_ends_with_its_status_before_the_interpreter_is_taken_down(world_size):
    port = str(_free_port())
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK],
            env=environment
            | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            | dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(world_size)),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    output = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [75] * world_size
    assert all(text.startswith("worked\n") for text in output)
    assert not any("taken down" in text for text in output)


_SOCKETS = """
import contextlib, os
from pathlib import Path
from pretrain.distributed.process_group import HOST, add_up, gather, join, read_ranks
join(read_ranks(), 120.0)
assert add_up([1], HOST) == [5]
assert gather(read_ranks().rank) == [0, 1, 2, 3, 4]
mine = set()
for name in os.listdir("/proc/self/fd"):
    with contextlib.suppress(FileNotFoundError):
        mine.add(os.readlink(f"/proc/self/fd/{name}"))
rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]]
held = sum(row[3] == "01" and f"socket:[{row[9]}]" in mine for row in rows) - 1  # the store's
counts = gather(held)  # a rank that ended would take its neighbours' connections with it
assert counts[1:] == [2] * 4, counts
"""


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_collectives_are_recorded_on_a_gpu_for_the_evidence_of_a_hang(monkeypatch, device):
    """Tested without a GPU: torch is asked to record collectives in its flight recorder, which `watchdog.py` writes."""
    import torch

    monkeypatch.setattr(process_group, "device_of", lambda ranks, requested: torch.device(device))
    monkeypatch.setattr(torch.cuda, "set_device", lambda chosen: None)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with mock.patch.dict(os.environ):
        os.environ.pop(RECORDER, None)
        process_group.join(Ranks(), 60.0)
        assert os.environ.get(RECORDER) == {"cpu": None, "cuda": "2000"}[device]


@pytest.mark.parametrize(("device", "size", "bound"), [("cuda", 2, True), ("cuda", 1, False), ("cpu", 2, False)])
def test_on_gpus_the_group_is_bound_to_the_device_and_memory_grows_in_place(device, size, bound, monkeypatch):
    """Tested without a GPU, by the calls that torch receives. A user's own setting of the allocator stays."""
    import torch

    received = []
    monkeypatch.setattr(process_group, "device_of", lambda ranks, requested: torch.device(device))
    monkeypatch.setattr(torch.cuda, "set_device", lambda chosen: None)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda **options: received.append(options))
    monkeypatch.setattr(torch.distributed, "new_group", lambda **options: None)
    monkeypatch.setattr(process_group, "_HOSTS", {})
    monkeypatch.setattr(process_group.atexit, "register", lambda function: None)
    with mock.patch.dict(os.environ):
        for given, expected in ((None, "expandable_segments:True"), ("max_split_size_mb:64", None)):
            os.environ.pop("PYTORCH_ALLOC_CONF", None)
            os.environ.pop("PYTORCH_CUDA_ALLOC_CONF", None)
            if given:
                os.environ["PYTORCH_CUDA_ALLOC_CONF"] = given
            process_group.join(Ranks(0, size, 0, size), 60.0)
            assert os.environ.get("PYTORCH_ALLOC_CONF") == (expected if device == "cuda" else None)
            assert received.pop().get("device_id") == (torch.device(device) if bound else None)


@pytest.mark.slow
def test_a_rank_is_connected_to_those_it_talks_to_and_not_to_all(tmp_path):
    """A ring has two neighbours; of a full mesh of five ranks each would have four."""
    well, output = run_ranks(tmp_path, ["-c", _SOCKETS], 5)
    assert well, output[-6000:]


_FIND_FINISHED = """
import sys
from pathlib import Path

from tests.pretrain.rank_runs import load_conftest

manifest = load_conftest()._run_training(Path(sys.argv[1]), device="cuda")
print("found", manifest.folder)
"""


def test_ranks_find_a_finished_run_on_a_node_without_its_devices(finished, tmp_path, monkeypatch):
    """Its report can be written on any machine."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    root, manifest = finished
    well, output = run_ranks(tmp_path, ["-c", _FIND_FINISHED, str(root)], 2)
    assert well, output[-6000:]
    assert output.count(f"found {manifest.folder}") == 2


@pytest.mark.parametrize("number", SIGNALS)
def test_with_nothing_to_save_a_signal_ends_at_once_what_runs(number):
    """Not even a compiler that catches every Exception stops it."""
    before, reached = signal.getsignal(number), []

    def compile_it():
        with watch_signals():
            with contextlib.suppress(Exception):
                os.kill(os.getpid(), number)
            reached.append("here")

    with pytest.raises(Preempted, match="before the first step"):
        compile_it()
    assert not reached
    assert signal.getsignal(number) is before


def test_a_rank_that_waited_for_one_that_left_is_preempted_too():
    def wait_in_a_collective():
        with watch_signals() as leave:
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), signal.SIGTERM)
            assert leave()
            raise RuntimeError("Connection closed by peer")

    with pytest.raises(Preempted):
        wait_in_a_collective()
    with pytest.raises(RuntimeError, match="our own"), watch_signals():
        raise RuntimeError("our own mistake")
