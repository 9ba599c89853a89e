"""The graph of jobs of a run.

    sources -> ingest (array) -> ingest-join -> clean (array) -> clean-join -> ...
            -> data -> audit -> train -> evaluate -> report

The job "sources" is a join: it fetches remote files and records the digests of the sources, by which shares find
them. Each task of an array makes every n-th shard of one data step, starting with its own number; a join does the
work of a single process between two steps. The job "data" is the plain command: it finds all finished artifacts and
makes the rest. So the numbers of steps and shards decide only the degree of parallelism.

Every arrow is `afterok`, except two: the report is written when the evaluation has ended in any way, even when the
gate is closed; a link of a chain of training jobs starts when the one before has ended.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from slurm.config import SlurmConfig

Kind = Literal["share", "join", "data", "audit", "train", "evaluate", "report"]
Condition = Literal["afterok", "afterany"]


@dataclass(frozen=True)
class PlannedRun:
    """A run, as far as scheduling needs it."""

    name: str
    """The run's, for the jobs' names."""
    steps: tuple[str, ...]
    """The data steps in order, each over all shards."""
    shards: int
    """Estimated number of shards per step."""
    words: tuple[str, ...]
    """CONFIG --root ROOT and the overrides."""
    node_counts: tuple[int, ...] = ()
    """Numbers of nodes on which a failed training starts again in its allocation, most first; empty: on none."""


@dataclass(frozen=True)
class SlurmJob:
    """One job, or one array."""

    name: str
    kind: Kind
    command: tuple[str, ...]
    """The command that a person would type."""
    options: tuple[str, ...]
    """Options of sbatch."""
    after: tuple[tuple[Condition, str], ...] = ()
    """(condition, name of the job that it waits for)."""
    tasks: int = 0
    """Tasks of an array, numbered from 0; 0 for a single job."""
    node_counts: tuple[int, ...] = ()
    """Numbers of nodes of a restarted training, as in `PlannedRun`."""


def plan(work: PlannedRun, config: SlurmConfig, max_array_size: int) -> list[SlurmJob]:
    """The jobs in the order of submission, dependencies first."""
    jobs: list[SlurmJob] = []
    tasks = tasks_of(work.shards, config, max_array_size)

    def add(
        name: str,
        kind: Kind,
        command: Sequence[str],
        after: Sequence[tuple[Condition, str]],
        tasks: int = 0,
        last: Sequence[str] = (),
    ) -> None:
        options = _options(work.name, name, kind, config, tasks)
        counts = work.node_counts if kind == "train" else ()
        words = ("assay", *command, *work.words, *last)
        jobs.append(SlurmJob(name, kind, words, options, tuple(after), tasks, counts))

    def after_previous() -> list[tuple[Condition, str]]:
        return [("afterok", jobs[-1].name)] if jobs else []

    if tasks > 1:  # with one task, an array would only repeat "data"
        add("sources", "join", ("data", "prepare", "--merge"), [])
        for step in work.steps:
            add(step, "share", ("data", "prepare"), after_previous(), tasks)
            add(f"{step}-join", "join", ("data", "prepare", "--merge"), after_previous())
    add("data", "data", ("data", "prepare"), after_previous())
    add("audit", "audit", ("governance", "check"), after_previous())
    for link in range(config.chain):
        before: list[tuple[Condition, str]] = [("afterany", jobs[-1].name)] if link else []
        add("train" if not link else f"train-{link + 1}", "train", ("train",), [("afterok", "audit"), *before])
    add("evaluate", "evaluate", ("evaluate",), after_previous(), last=("last",))
    add("report", "report", ("report",), [("afterok", "data"), ("afterany", "evaluate")])
    return jobs


def tasks_of(shards: int, config: SlurmConfig, max_array_size: int) -> int:
    """Tasks of an array over this many shards."""
    needed = -(-shards // config.shards_per_task)
    bounds = [needed, max(1, max_array_size), *[config.max_tasks] * bool(config.max_tasks)]
    return max(1, min(bounds))


def _options(run: str, name: str, kind: Kind, config: SlurmConfig, tasks: int) -> tuple[str, ...]:
    training, model = kind == "train", kind in ("train", "evaluate")
    signal = f"USR1@{config.signal_seconds}"
    mail_user = config.mail_user if kind in ("train", "report") else ""
    if training:
        gpus = config.gpus_per_node
    elif model:  # an evaluation
        gpus = min(1, config.gpus_per_node)
    else:
        gpus = 0
    texts = {
        "job-name": f"{run}.{name}",
        "output": "/dev/null",  # each attempt opens its own log; a job whose log Slurm cannot open fails for good
        **config.placement(data=not model),
        "reservation": config.reservation,
        "constraint": config.constraint if model else "",
        "exclude": config.exclude,
        "time": config.time_limit if model else config.data_time_limit,
        "mem": config.memory if model else config.data_memory,
        # to the ranks too while they train; else only to the script, which then ends its children
        "signal": signal if training else f"B:{signal}",
        "mail-user": mail_user,
        "mail-type": config.mail_type if mail_user else "",
    }
    numbers = {
        "nodes": config.requested_nodes if training else 1,
        "ntasks-per-node": config.tasks_per_node if training else 1,
        "cpus-per-task": config.cpus_per_task if model else config.data_cpus,
        "gpus-per-node": gpus,
    }
    more = config.options if model else config.data_options
    if any(option.startswith("--gres=gpu") for option in more):  # it states their type and number
        numbers["gpus-per-node"] = 0
    options = [f"--{option}={value}" for option, value in (texts | numbers).items() if value]
    options += more if training else [_with_one_gpu(option) for option in more]
    options += ["--no-kill"] * (training and config.retries_inside)  # a node that dies does not end the others
    options += ["--open-mode=append", "--requeue", "--kill-on-invalid-dep=yes"]
    if tasks:
        options.append(f"--array=0-{tasks - 1}{throttled(config)}")
    return tuple(options)


def _with_one_gpu(option: str) -> str:
    """An option for one task: `--gres=gpu[:TYPE]:N` with one GPU."""
    return re.sub(r"^(--gres=gpu(:[^:,]+)?:)\d+$", r"\g<1>1", option)


def throttled(config: SlurmConfig) -> str:
    """Suffix that limits an array's concurrent tasks."""
    return f"%{config.throttle}" if config.throttle else ""
