"""Ranks in separate processes: `run_ranks`, and training in them: `losses_of_runs`. As a script: one such rank.

Ranks are forked from a server that has imported torch and the trainer, without DeepSpeed, which starts a thread: a
start of two ranks costs three CPU-seconds less than with two new interpreters.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from pretrain.distributed.launcher import _free_port

Runs = dict[str, dict[str, Any]]
SHORT = {"steps": 4, "validate_every_steps": 0, "every_steps": 100, "warmup_steps": 1, "decay_steps": 2}
_LAST_WORDS_SECONDS = 30.0  # time that the others have after one has failed
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["torch", "pretrain.train", "pretrain.engine.engine"])
# A rank ends as Assay's do: an interpreter that is torn down with gloo's threads alive aborts now and then.
ENDING = """
import runpy, sys, traceback
status, sys.argv = 0, sys.argv[1:]
try:
    if sys.argv[0] == "-c":
        text = sys.argv.pop(1)
        exec(compile(text, "<rank>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as leave:
    status = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    if isinstance(leave.code, str):
        print(leave.code, file=sys.stderr)
except BaseException:
    traceback.print_exc()
    status = 1
from pretrain.distributed.process_group import end_rank
end_rank(status)
sys.exit(status)
"""


def run_ranks(folder: Path, words: Sequence[str], ranks: int, timeout: float = 900.0) -> tuple[bool, str]:
    """Start `python WORDS` as so many ranks; whether all ended well, and their output."""
    own = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)} for rank in range(ranks)]
    ended = ends_of_ranks(folder, words, own, timeout)
    return not any(status for status, _ in ended), "\n".join(output for _, output in ended)


def found_by_ranks(folder: Path, module: str, call: str, ranks: int) -> Any:
    """Value of a call in a module of `tests.pretrain`, made by every rank with one thread, as rank 0 found it."""
    file = folder / "found.json"
    script = (
        f"import json, os, pathlib, torch\n"
        f"import tests.pretrain.{module} as module\n"
        f"torch.set_num_threads(1)\n"
        f"found = module.{call}\n"
        f"if os.environ['RANK'] == '0':\n"
        f"    pathlib.Path({str(file)!r}).write_text(json.dumps(found))\n"
    )
    well, messages = run_ranks(folder, ["-c", script], ranks)
    assert well, messages[-6000:]
    return json.loads(file.read_text())


def ends_of_ranks(
    folder: Path, words: Sequence[str], own: Sequence[dict[str, str]], timeout: float = 900.0
) -> list[tuple[int | None, str]]:
    """Start `python WORDS` as a rank for each environment of its own; status and output of each."""
    folder.mkdir(parents=True, exist_ok=True)
    port = str(_free_port())  # below the ports that the system gives to connections meanwhile
    all_of_them = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(len(own))}
    logs = [folder / f"rank{rank}.log" for rank in range(len(own))]
    processes = [start_rank(words, path, {**all_of_them, **each}) for each, path in zip(own, logs, strict=True)]
    deadline, failed = time.monotonic() + timeout, False
    try:
        while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
            time.sleep(0.05)
            if not failed and any(process.exitcode for process in processes):
                failed, deadline = True, min(deadline, time.monotonic() + _LAST_WORDS_SECONDS)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [(process.exitcode, path.read_text()) for process, path in zip(processes, logs, strict=True)]


def start_rank(words: Sequence[str], log: Path, own: Mapping[str, str] = MappingProxyType({})) -> BaseProcess:
    """Start `python WORDS` with more in its environment and its output in a file."""
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **own}
    process = _SERVER.Process(target=_be_rank, args=(list(words), environment, log))
    process.start()
    return process


def _be_rank(words: Sequence[str], environment: dict[str, str], log: Path) -> None:
    """Run `python WORDS` in this process, its output in a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for standard in (1, 2):
        os.dup2(file, standard)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *words]
    exec(compile(ENDING, "<ending>", "exec"), {"__name__": "__main__"})


def losses_of_runs(
    folder: Path, runs: Runs, ranks: int, timeout: float = 900.0, length: dict[str, Any] = SHORT
) -> dict[str, list[float]]:
    """Train each of `runs` (its name, its settings) one after the other in `ranks` processes; the losses by name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runs.json").write_text(json.dumps({name: {**length, **settings} for name, settings in runs.items()}))
    well, output = run_ranks(folder, [__file__, str(folder)], ranks, timeout)
    assert well, output[-8000:]
    return json.loads((folder / "losses.json").read_text())


def load_conftest() -> ModuleType:
    """The fixtures' functions, in a process that pytest did not start."""
    path = Path(__file__).parent / "conftest.py"
    spec = importlib.util.spec_from_file_location("conftest", path)
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    return conftest


def _run(folder: Path) -> None:
    conftest, losses = load_conftest(), {}
    for name, settings in json.loads((folder / "runs.json").read_text()).items():
        root = folder / name
        losses[name] = conftest._losses(conftest._run_training(root, **settings), root)
    if os.environ["RANK"] == "0":
        (folder / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    _run(Path(sys.argv[1]))
