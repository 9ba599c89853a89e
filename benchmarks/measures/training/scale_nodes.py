"""Cost of `assay slurm status`, of the checks before a submission and of a plan on 100, 1,000 and 10,000 nodes.

Slurm's tools are stand-ins that print what a cluster of so many nodes prints. A run has two arrays with a task for each
node, of which the first is done and the second runs, each task with the record of its attempt.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measures.goals import Goal, figure

_ROOT = Path(__file__).resolve().parents[3]
COUNTS = (100, 1_000, 10_000)
_SHARDS_OF = ("ingest", "clean")
_TOOLS = {
    "sbatch": 'n=$(($(cat "$HERE/id" 2>/dev/null || echo 100) + 1)); echo $n >"$HERE/id"; echo $n',
    "squeue": 'cat "$HERE/queue"',
    "sacct": 'cat "$HERE/accounts" 2>/dev/null || true',
    "scontrol": 'case "$2" in node) cat "$HERE/nodes" ;; partition) cat "$HERE/partition" ;; esac',
    "sacctmgr": "true",
}


def goals(quick: bool) -> Iterator[Goal]:
    """Figures of each count of nodes, and the goal of a plan."""
    for count in COUNTS[:2] if quick else COUNTS:
        words = [sys.executable, "-c", f"from {__name__} import child; child({count})"]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=_ROOT)
        found = json.loads(done.stdout.splitlines()[-1])
        peak = f"largest size of the process so far: {found['peak_mb']:.0f} MB"
        yield figure(f"nodes.{count}.status_cpu_seconds", found["status_seconds"], peak)
        yield figure(
            f"nodes.{count}.status_files_opened",
            found["opened"],
            f"of {2 * count:,} tasks' records, half of them of finished tasks",
        )
        yield figure(f"nodes.{count}.status_listings", found["listed"])
        yield figure(f"nodes.{count}.checks_cpu_seconds", found["checks_seconds"], "nodes read, and compared")
        yield Goal(f"nodes.{count}.plan_cpu_seconds", found["plan_seconds"], 1.0, "<=", "plan and its layouts")


def child(count: int) -> None:
    """Measure one count in this process; prints JSON."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ.update(HERE=scratch, PATH=f"{folder}:{os.environ['PATH']}")
        for name, body in _TOOLS.items():
            (folder / name).write_text(f"#!/bin/bash\n{body}\n")
            (folder / name).chmod(0o755)
        root = _submitted(folder, count)
        found = _status(root) | _checks() | _plan(count)
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found))


def _submitted(folder: Path, count: int) -> Path:
    """A run's root, and the answers of the cluster's tools."""
    from slurm.config import SlurmConfig
    from slurm.graph import PlannedRun, plan
    from slurm.submit import JobRequest, submit

    root, config = folder / "root", SlurmConfig(nodes=count, throttle=0)
    (root / "slurm" / "attempts").mkdir(parents=True)
    work = PlannedRun("run", _SHARDS_OF, count, ("run.toml", "--root", str(root)))
    (folder / "queue").write_text("")
    lines = submit([JobRequest(job) for job in plan(work, config, count + 1)], root, config)
    queue, accounts = [], []
    for line in lines:
        for number in line.numbers or (None,):
            unit = line.job if number is None else f"{line.job}_{number}"
            node = f"n{number or 0:05d}"
            name = f"run.{line.name}"
            if line.name in _SHARDS_OF:
                done = line.name == _SHARDS_OF[0]
                _record(root, unit, node, done)
                if done:
                    fields = (unit, "COMPLETED", "0:0", "60", node, "60", "1000", name, "")
                    accounts.append("\x1f".join(fields))
                else:
                    queue.append(f"{unit}|RUNNING|None|1:00|{node}|N/A|(null)|{name}")
            else:
                queue.append(f"{unit}|PENDING|Dependency|0:00||N/A|(null)|{name}")
    (folder / "queue").write_text("\n".join(queue) + "\n")
    (folder / "accounts").write_text("\n".join(accounts) + "\n")
    (folder / "nodes").write_text(
        "".join(
            f"NodeName=n{number:05d} Arch=x86_64 CPUEfctv=96 CPUTot=96 Gres=gpu:h100:8 RealMemory=2000000 State=IDLE "
            f"Partitions=gpu BootTime=2026-01-01T00:00:00 CfgTRES=cpu=96,mem=2000000M,gres/gpu=8\n"
            for number in range(count)
        )
    )
    (folder / "partition").write_text(
        f"PartitionName=gpu MaxTime=1-0 TotalNodes={count} MaxNodes=UNLIMITED Default=YES\n"
    )
    return root


def _record(root: Path, unit: str, node: str, done: bool) -> None:
    line = {"attempt": 0, "event": "started", "job": unit, "nodes": node, "started": "2026-01-01T00:00:00Z"}
    lines = [line, {**line, "event": "ended", "status": 0, "outcome": "done", "cause": "done"}][: 1 + done]
    text = "".join(json.dumps({**each, "time": "2026-01-01T00:01:00Z"}, sort_keys=True) + "\n" for each in lines)
    (root / "slurm" / "attempts" / f"{unit}.jsonl").write_text(text)


def _status(root: Path) -> dict[str, float]:
    from slurm.job_states import gather
    from slurm.status import Progress, describe

    counts = {"opened": 0, "listed": 0}

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        name = {"open": "opened", "os.listdir": "listed", "os.scandir": "listed"}.get(event)
        second = event == "open" and arguments[1] is None  # of one opening: by `open`, and by its opener
        if name and not second and str(arguments[0]).startswith(str(root)):
            counts[name] += 1

    sys.addaudithook(hear)
    started = time.process_time()
    view = gather(root)
    assert view is not None
    shown = describe(view, Progress("run.toml", root, steps=_SHARDS_OF), None)
    spent = time.process_time() - started
    assert any("RUNNING" in line for line in shown), shown
    return {"status_seconds": spent, **counts}


def _checks() -> dict[str, float]:
    from slurm import commands as tools
    from slurm.config import SlurmConfig
    from slurm.submit_preflight import training_nodes, unavailable

    started = time.process_time()
    fitting = training_nodes(SlurmConfig(gpus_per_node=8), tools.partitions().values(), tools.nodes())
    assert fitting
    assert not unavailable(fitting)
    return {"checks_seconds": time.process_time() - started}


def _plan(count: int) -> dict[str, float]:
    from assay.config import load_run
    from assay.planning.cluster import read_cluster
    from assay.planning.layouts import layouts
    from assay.planning.plan import PlanInputs, make_plan
    from assay.planning.plan_page import layout_rows, lines

    settings = [f"train.global_batch_size={8 * count}", "engine.micro_batch_size=1"]
    run, cluster = load_run(_ROOT / "configs" / "7b.toml", settings, needs="model"), read_cluster("h100")
    started = time.process_time()
    inputs = PlanInputs(32000, cluster, count)
    found = make_plan(run, inputs)
    list(lines(found))
    layout_rows(found, layouts(run, inputs))
    return {"plan_seconds": time.process_time() - started}
