"""Processes of the pool end with the one that started them; a file made once is checked when it is found."""

import functools
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from governance.config import Section
from governance.files import write_bytes
from governance.parallel import Shard, ShardMade, map_shards, once
from governance.stage import Recipe, Runtime


class Nothing(Section):
    """The stage under test has no settings."""


def test_a_file_made_once_that_was_altered_is_made_again(tmp_path):
    path = tmp_path / "records" / "key.total"
    one = functools.partial(write_bytes, data=b"one")
    for _ in range(2):
        assert once(Runtime(tmp_path), path, one).read_bytes() == b"one"
        path.write_bytes(b"two")


def dawdle(section, payload, path_of) -> ShardMade:
    write_bytes(path_of("pids"), str(os.getpid()).encode())
    time.sleep(600)
    return ShardMade({"pids": path_of("pids")}, {})


def _dawdle(root: Path) -> None:
    shards = [Shard(f"{i}", (str(i),), None) for i in range(2)]
    map_shards(Recipe("slow", 1, Nothing()), dawdle, shards, root / "slow" / "a", Runtime(root, workers=2), ".txt")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_process_that_started_them(tmp_path, number):
    parent = multiprocessing.get_context("spawn").Process(target=_dawdle, args=(tmp_path,))
    parent.start()
    until = time.monotonic() + 300
    while len(found := list(tmp_path.glob("slow/a/pids/*.txt"))) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    workers = [int(path.read_text()) for path in found]
    assert len(set(workers) - {parent.pid}) == 2
    os.kill(parent.pid, number)
    parent.join()
    until = time.monotonic() + 300
    while (left := [pid for pid in workers if _runs(pid)]) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left


def _runs(pid: int) -> bool:
    """True for a process that exists and is not a zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
