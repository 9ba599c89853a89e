"""Training runs in processes of their own, as ranks of one group: `losses_of_runs`. As a script: one such rank."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

Runs = dict[str, dict[str, Any]]
SHORT = {"steps": 4, "validate_every_steps": 0, "every_steps": 100, "warmup_steps": 1, "decay_steps": 2}


def losses_of_runs(folder: Path, runs: Runs, ranks: int, timeout: float = 400.0) -> dict[str, list[float]]:
    """Train each of `runs` (its name, its settings) one after the other in `ranks` processes; the losses by name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runs.json").write_text(json.dumps(runs))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    sizes = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    processes = []
    for rank in range(ranks):
        environment = {**os.environ, **meeting, **sizes, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        with (folder / f"rank{rank}.log").open("wb") as log:
            command = [sys.executable, __file__, str(folder)]
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert not any(codes), "\n".join((folder / f"rank{rank}.log").read_text()[-4000:] for rank in range(ranks))
    return json.loads((folder / "losses.json").read_text())


def _run(folder: Path) -> None:
    path = Path(__file__).parent / "conftest.py"
    spec = importlib.util.spec_from_file_location("conftest", path)
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    losses = {}
    for name, settings in json.loads((folder / "runs.json").read_text()).items():
        root = folder / name
        losses[name] = conftest._losses(conftest._run_training(root, **{**SHORT, **settings}), root)
    if os.environ["RANK"] == "0":
        (folder / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    _run(Path(sys.argv[1]))
