"""Ranks in separate processes, with faults planted into the trainer before they start."""

from __future__ import annotations

import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from pretrain.distributed import launcher
from pretrain.distributed.launcher import launch, progress_in
from tests.pretrain.rank_runs import ENDING, start_rank

# A rank in a separate process; `plant` is Python that may replace parts of the trainer before it starts.
SCRIPT = """
import importlib.util, os, signal, sys, time
from pathlib import Path
from governance.errors import PipelineError
from governance.log import set_up_logging
set_up_logging(int(os.environ.get("RANK", 0)))
from pretrain import loop, train; from pretrain.data import dataset; from pretrain.distributed import watchdog
root, rank = Path({root!r}), int(os.environ.get("RANK", 0))
def once(what=""):
    try:
        (root / f"planted-{{what}}").open("x").close()
    except FileExistsError:
        return False
    return True
def at_step(planted, action):
    plain = loop.rate_factor
    def rate(step, *others):
        if step == planted:
            action()
        return plain(step, *others)
    loop.rate_factor = rate
{plant}
spec = importlib.util.spec_from_file_location("conftest", {conftest!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
try:
    print(module._run_training(root, **{settings!r}).digest)
except PipelineError as error:
    sys.stderr.write(f"{{type(error).__name__}}: {{error}}\\n")
    sys.exit(error.exit_code)
"""


def script(root: Path, plant: str = "", **settings) -> str:
    root.mkdir(parents=True, exist_ok=True)
    conftest = str(Path(__file__).parent / "conftest.py")
    return SCRIPT.format(conftest=conftest, root=str(root), plant=plant, settings=settings)


def words(root: Path, plant: str = "", **settings) -> list[str]:
    """The command of one rank, which ends as Assay's do."""
    return [sys.executable, "-c", ENDING, "-c", script(root, plant, **settings)]


def start_one(root: Path, plant: str = "", **settings) -> BaseProcess:
    """Start one rank, whose output is in the root's log."""
    return start_rank(["-c", script(root, plant, **settings)], root / "log")


def launch_two(root: Path, plant: str = "", restarts: int = 0, **settings) -> int:
    """Train on two ranks of this machine, as the command does; returns its status."""
    command = words(root, plant, **settings)

    def standing():
        [folder] = (root / "train").glob("*")
        return progress_in(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "_command", lambda _: command)
        return launch(2, [], restarts=restarts, progress_of=standing)
