"""Render, submit and watch the job of a run.

The template `run.sbatch` beside this file is valid bash before it is filled in; the rendered script is kept with the
run (`<root>/slurm/run.sbatch`), and Slurm gets exactly that file. Whatever Slurm refuses becomes a `ClusterError`
with Slurm's own words.
"""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from pydantic import Field

from governance.config import Section
from governance.errors import ClusterError, MissingInput
from governance.files import append_line, write_text

_TEMPLATE = Path(__file__).with_name("run.sbatch")


class SlurmConfig(Section):
    """What is asked of the cluster; an empty text leaves the choice to the cluster's default."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    nodes: int = Field(default=1, ge=1)
    """Nodes for training."""
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs on each node, one training process each; 0: one process a node on its CPUs."""
    cpus_per_task: int = Field(default=0, ge=0)
    """Cores for each training process; 0: the cluster's default."""
    memory: str = ""
    """Memory a node in Slurm's notation, for example "64G"."""
    time_limit: str = "24:00:00"
    """Wall time in Slurm's notation."""
    signal_seconds: int = Field(default=180, ge=10)
    """Seconds before the limit at which the trainer is told to save and leave."""
    constraint: str = ""
    environment: str = ""
    """A shell script that is sourced first: modules, a virtual environment."""


def render(config: Path, root: Path, section: SlurmConfig) -> str:
    """The job script of the run at `config`: directives, then the template with its three values filled in."""
    name = config.stem
    options = [
        f"--job-name=assay-{name}",
        f"--output={root / 'slurm' / '%x-%j.log'}",
        "--open-mode=append",
        "--requeue",
        f"--nodes={section.nodes}",
        f"--ntasks-per-node={max(1, section.gpus_per_node)}",
        f"--time={section.time_limit}",
        f"--signal=USR1@{section.signal_seconds}",
    ]
    if section.gpus_per_node:
        options.append(f"--gpus-per-node={section.gpus_per_node}")
    if section.cpus_per_task:
        options.append(f"--cpus-per-task={section.cpus_per_task}")
    texts = {
        "partition": section.partition, "account": section.account, "qos": section.qos, "mem": section.memory,
        "constraint": section.constraint,
    }  # fmt: skip
    options += [f"--{option}={value}" for option, value in texts.items() if value]
    values = {"@CONFIG@": str(config), "@ROOT@": str(root), "@ENVIRONMENT@": section.environment}
    first, _, rest = _TEMPLATE.read_text(encoding="utf-8").partition("\n")
    for mark, value in values.items():
        rest = rest.replace(mark, shlex.quote(value))
    return "\n".join([first, *(f"#SBATCH {option}" for option in options), rest])


def submit(config: Path, root: Path, section: SlurmConfig) -> str:
    """Keep the rendered script with the run, hand it to `sbatch`, record and return the job's id.

    Raises:
        ClusterError: Slurm is not there, or refuses.
    """
    script = root / "slurm" / "run.sbatch"
    write_text(script, render(config, root, section))
    job = _ask("sbatch", "--parsable", str(script)).split(";")[0].strip()
    append_line(root / "slurm" / "jobs", job)
    return job


def status(root: Path) -> str:
    """The state of the run's newest job: from the queue, or from accounting once it has left.

    Raises:
        MissingInput: nothing was submitted from this root.
        ClusterError: Slurm is not there, or refuses.
    """
    jobs = root / "slurm" / "jobs"
    if not jobs.exists():
        raise MissingInput(f"no job was submitted for {root}. Submit it with: assay slurm submit CONFIG")
    job = jobs.read_text(encoding="utf-8").split()[-1]
    queued = _ask(
        "squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%i %T %M/%l %D nodes %R", quiet=True
    )
    if queued.strip():
        return queued.strip()
    return _ask("sacct", "--noheader", "--parsable2", f"--jobs={job}", "--format=JobID,State,ExitCode,Elapsed").strip()


def _ask(*words: str, quiet: bool = False) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError as error:
        raise ClusterError(f"{words[0]}: not on this machine. Run this on a login node of a Slurm cluster.") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{words[0]}: no answer within 60 s; is slurmctld up?") from error
    if done.returncode != 0 and not quiet:
        raise ClusterError(f"{words[0]} refused: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout if done.returncode == 0 else ""
