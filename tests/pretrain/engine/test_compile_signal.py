"""A signal during torch.compile, with a real C++ compiler below a real rank, because a fake pass proves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from governance.files import read_lines
from tests.pretrain.planted_faults import words

SMALL = {"num_hidden_layers": 1}
GIVEN_SECONDS = 30  # Slurm's KillWait: its pause between SIGTERM and SIGKILL
# Where the main thread was when the signal came.
WHERE = """
import traceback
from pretrain.distributed import preemption
plain = preemption.StopRequested.note
def note(leave, number, frame):
    (root / "where").write_text("".join(traceback.format_stack(frame)))
    plain(leave, number, frame)
preemption.StopRequested.note = note
"""


def compilers_of(parent: int) -> list[int]:
    """Processes of GCC's C++ compiler below `parent`, by /proc (proc_pid_stat(5): name and parent)."""
    names, parents = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue  # it has ended
        name, _, rest = text.partition("(")[2].rpartition(")")
        names[int(path.parent.name)], parents[int(path.parent.name)] = name, int(rest.split()[1])

    def below(process: int) -> bool:
        while process in parents:
            if process == parent:
                return True
            process = parents[process]
        return False

    return [process for process, name in names.items() if name == "cc1plus" and below(process)]


def start(root: Path, plant: str) -> subprocess.Popen:
    """A rank that compiles, into a cache that only this test uses, so that it is empty."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(root / "compiled")}
    command = words(root, plant, compile=True, **SMALL)
    with (root / "log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


@pytest.mark.slow
def test_a_signal_while_the_compiler_works_ends_it_at_once_and_the_same_command_goes_on(
    tmp_path, run_training, losses_of
):
    root = tmp_path / "root"
    root.mkdir()
    child = start(root, WHERE)
    try:
        deadline = time.monotonic() + 900
        while not compilers_of(child.pid):
            assert child.poll() is None, (root / "log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        assert child.wait(GIVEN_SECONDS) == 75
    finally:
        child.kill()
        child.wait()
    where = (root / "where").read_text()
    assert "torch/_dynamo" in where
    assert "engine.forward" in where
    assert "before the first step" in (root / "log").read_text()
    assert not list(root.glob("checkpoint/*"))  # nothing was learned, nothing is lost

    # The cache and locks that the killed compiler left do not block the next start, whose step completes.
    child = start(root, "at_step(1, lambda: os.kill(os.getpid(), signal.SIGTERM))")
    try:
        assert child.wait(900) == 75, (root / "log").read_text()[-2000:]
    finally:
        child.kill()
        child.wait()
    [metrics] = root.glob("train/*/metrics.jsonl")
    assert [line["step"] for line in read_lines(metrics) if line["event"] == "left"] == [1]
    made = run_training(root, **SMALL)  # uncompiled: compilation does not change what is learned
    assert [line["step"] for line in read_lines(metrics) if line["event"] == "step"] == list(range(1, 11))
    whole = run_training(tmp_path / "whole", **SMALL)
    assert losses_of(made, root) == pytest.approx(losses_of(whole, tmp_path / "whole"), rel=1e-5)
