"""The `[slurm]` section, and the site's defaults.

Settings that a whole site shares (account, partition, the script that loads modules) are in one file with the same
fields, without a section: `$ASSAY_SLURM_SITE`, else `~/.config/assay/slurm.toml`. A field in the run's file wins.
Nothing here can change a byte of a run's artifacts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from governance.config import Section, load_config
from governance.errors import ConfigError
from governance.signing.dsse import default_key_path

SITE_VARIABLE = "ASSAY_SLURM_SITE"
Word = Annotated[str, Field(pattern=r"^\S*$")]
"""A value of one of Slurm's options: nothing in it that would end a directive."""
Time = Annotated[str, Field(pattern=r"^(\d+(-\d+(:\d+){0,2})?|\d+(:\d+){1,2}|infinite|)$")]
"""Wall time in Slurm's notation: minutes, "2:30:00", "3-12"."""
Memory = Annotated[str, Field(pattern=r"^(\d+(\.\d+)?[KMGTkmgt]?B?|)$")]
"""Memory in Slurm's notation: "64G"; a bare number is megabytes."""


_IMAGES = (".sif", ".sqsh", ".squashfs", ".img", ".simg")


_OURS = {
    "partition": "partition", "account": "account", "qos": "qos", "reservation": "reservation",
    "constraint": "constraint", "exclude": "exclude", "mail-user": "mail_user", "mail-type": "mail_type",
    "nodes": "nodes", "gpus-per-node": "gpus_per_node", "gpus": "gpus_per_node", "gpus-per-task": "gpus_per_node",
    "ntasks": "processes_per_node", "ntasks-per-node": "processes_per_node", "cpus-per-task": "cpus_per_task",
    "mem": "memory", "time": "time_limit", "signal": "signal_seconds", "dependency": "chain", "array": "max_tasks",
    "begin": "", "hold": "", "job-name": "", "output": "", "error": "", "open-mode": "", "requeue": "",
    "no-requeue": "", "kill-on-invalid-dep": "", "export": "environment", "export-file": "environment",
    "parsable": "", "test-only": "", "wrap": "", "wait": "", "quiet": "", "chdir": "", "help": "", "version": "",
    "deadline": "",
}  # fmt: skip
"""Options of sbatch that a job has already, and the field of [slurm] that says it; "": it is set by the program."""
_OURS_OF_SRUN = {
    "nodes": "nodes", "ntasks": "processes_per_node", "ntasks-per-node": "processes_per_node",
    "cpus-per-task": "cpus_per_task", "kill-on-bad-exit": "", "wait": "", "output": "", "error": "", "input": "",
    "export": "environment", "multi-prog": "", "immediate": "", "jobid": "", "container-image": "container",
    "container-mounts": "container_mounts", "time": "time_limit", "help": "", "version": "", "quit-on-interrupt": "",
}  # fmt: skip


def _checked(values: tuple[str, ...], ours: Mapping[str, str], where: str) -> tuple[str, ...]:
    for value in values:
        found = re.fullmatch(r"--([a-z][a-z0-9-]*)(=[^\n\r\"\\]*)?", value)
        if found is None:
            raise ValueError(
                f'{value!r}: write an option by its long name, as "--name" or "--name=value", without double '
                "quotes, backslashes and line breaks"
            )
        for option, field in ours.items():
            if option.startswith(found[1]):  # getopt takes parts of a name
                fix = f"set slurm.{field} instead" if field else f"the program sets --{option} itself"
                raise ValueError(f"{value!r} is not allowed for {where}: {fix}")
    return values


class SlurmConfig(Section):
    """Resources to request; empty or 0 leaves the cluster's default."""

    partition: Word = ""
    """Partition of training and evaluation."""
    data_partition: Word = ""
    """Partition of all other jobs; empty: `partition`."""
    account: Word = ""
    """Account charged for training and evaluation."""
    qos: Word = ""
    data_account: Word = ""
    """Account charged for all other jobs; empty: `account`."""
    data_qos: Word = ""
    """The qos of all other jobs; empty: `qos`."""
    reservation: Word = ""
    constraint: Word = ""
    """Features of the nodes that train, in Slurm's grammar, for example "a100&ib"."""
    exclude: Word = ""
    """Nodes that no job gets, for example "node[3-5],node9"."""
    mail_user: Word = ""
    mail_type: Word = "END,FAIL"
    """Slurm's mails that `mail_user` gets, about the jobs of the training and the report."""

    nodes: int = Field(default=1, ge=1)
    """Nodes for training."""
    spare_nodes: int = Field(default=0, ge=0)
    """Further nodes that the training job holds idle: after a failure it starts again in its allocation, with them in
    place of the nodes at fault."""
    min_nodes: int = Field(default=0, ge=0)
    """Fewest nodes on which the training starts again in its allocation once no spare node is left; 0: `nodes`."""
    cluster: str = ""
    """Kind of these nodes, for `assay plan` and the plan's line of a submission: a shipped cluster file by its name
    ("h100"), or the path of one; empty: a submission prints no plan."""
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs on each node, one training process each; 0: training runs on the CPUs."""
    gpu_memory: Memory = ""
    """Memory of each of these GPUs, for example "80G": what cannot fit is refused at submit; empty: unknown, and only
    what no GPU can hold is refused."""
    processes_per_node: int = Field(default=0, ge=0)
    """Training processes on each node; 0: one for each GPU, and one on a node without."""
    cpus_per_task: int = Field(default=0, ge=0)
    """Cores for each training process; 0: its share of a node's cores, which `submit` says."""
    memory: Memory = ""
    """Memory of a node that trains, for example "64G"; "0": all of it."""
    time_limit: Time = "24:00:00"
    """Wall time of training, and of evaluation."""
    signal_seconds: int = Field(default=180, ge=10, le=65535)
    """Seconds before the limit at which the trainer is signalled to save and exit; the save must fit in."""
    notice_seconds: int = Field(default=0, ge=0)
    """Seconds from a preemption's SIGTERM until the kill, as the site gives them (the partition's GraceTime); 0:
    unknown. A save that took more than half of it is warned of."""
    chain: int = Field(default=1, ge=1, le=100)
    """Training jobs in a row, each begun when the one before has left: for a run longer than the time limit on a
    cluster that does not let a job go back into its queue."""
    options: tuple[str, ...] = ()
    """More options of sbatch for training and evaluation, for example ["--gres=gpu:h100:8", "--exclusive"]."""
    data_options: tuple[str, ...] = ()
    """The same for every other job."""
    srun_options: tuple[str, ...] = ()
    """More options of the srun that starts the ranks, for example ["--cpu-bind=cores", "--hint=nomultithread"]."""
    interface: Word = ""
    """Network interface of the nodes, for example "ib0"; empty: chosen in the job."""

    data_cpus: int = Field(default=0, ge=0)
    """Cores of each job that makes data, audits or reports, all used; 0: the cluster's default."""
    data_memory: Memory = ""
    """Memory of such a job."""
    data_time_limit: Time = "24:00:00"
    """Wall time of such a job."""
    shards_per_task: int = Field(default=1, ge=1)
    """Shards that an array task makes; more where there would be more tasks than the cluster or `max_tasks` allows."""
    max_tasks: int = Field(default=0, ge=0)
    """Most tasks of an array; 0: as many as the cluster's MaxArraySize allows."""
    throttle: int = Field(default=100, ge=0)
    """Most tasks of an array that run at once; 0: no bound."""

    retries: int = Field(default=3, ge=0, le=100)
    """Times that a job goes back into the queue after a failure that another try, or another node, may fix."""
    environment: str = ""
    """A shell script that is sourced first (modules, a virtual environment); from the folder of the file naming it."""
    container: str = ""
    """An image that every command runs in: a file (a path that begins with / or ., or ends like .sif; from the folder
    of the file naming it), or a name that `container_runtime` understands ("docker://...")."""
    container_runtime: Literal["none", "pyxis", "apptainer"] = "none"
    """Runtime of the image: pyxis (enroot, an option of srun) or apptainer."""
    container_mounts: tuple[str, ...] = ()
    """Folders that are seen inside under the same path, besides the run's and its root."""

    @field_validator("options", "data_options")
    @classmethod
    def _are_not_ours(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _checked(value, _OURS, "sbatch here")

    @field_validator("srun_options")
    @classmethod
    def _are_not_ours_of_srun(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _checked(value, _OURS_OF_SRUN, "srun here")

    @property
    def image_file(self) -> Path | None:
        """Container image file; None for a registry name."""
        named = self.container
        if "://" in named or "#" in named or not named:  # "docker://image", pyxis' "registry#image"
            return None
        return Path(named) if named.startswith(("/", "./", "../", "~")) or named.endswith(_IMAGES) else None

    @property
    def warning_seconds(self) -> int:
        """Shortest warning before a job of this run is killed."""
        return min(self.signal_seconds, self.notice_seconds or self.signal_seconds)

    @property
    def requested_nodes(self) -> int:
        """Nodes of the training job."""
        return self.nodes + self.spare_nodes

    @property
    def retries_inside(self) -> bool:
        """True where a failed training starts again in its allocation."""
        return self.spare_nodes > 0 or 0 < self.min_nodes < self.nodes

    @property
    def tasks_per_node(self) -> int:
        """Training processes on each node."""
        return self.processes_per_node or max(1, self.gpus_per_node)

    def placement(self, *, data: bool) -> dict[str, str]:
        """Partition, account and qos of training and evaluation, or of data jobs."""
        shared = {"partition": self.partition, "account": self.account, "qos": self.qos}
        return {name: getattr(self, f"data_{name}") or value for name, value in shared.items()} if data else shared


def site_path() -> Path:
    """The site's file, whether it is there or not."""
    named = os.environ.get(SITE_VARIABLE)
    return Path(named) if named else default_key_path().with_name("slurm.toml")


def with_site(section: SlurmConfig, folder: Path) -> SlurmConfig:
    """The run's section over the site's defaults.

    A field that the run's file, in `folder`, sets wins.

    The paths of the script that is sourced, of an image that is a file, and of a site's cluster file are absolute
    afterwards.

    Raises:
        ConfigError: the site's file is wrong, or `$ASSAY_SLURM_SITE` names none; or an image has no runtime.
    """
    path = site_path()
    site = SlurmConfig()
    if path.exists() or os.environ.get(SITE_VARIABLE):
        site = load_config(path, SlurmConfig)
    ours = {name: getattr(section, name) for name in section.model_fields_set}
    merged = site.model_copy(update=ours)
    for field, named in (("environment", merged.environment), ("container", str(merged.image_file or ""))):
        if named:
            base = folder if field in ours else path.parent
            merged = merged.model_copy(update={field: str((base / Path(named).expanduser()).absolute())})
    beside = path.parent / Path(merged.cluster).expanduser()
    if "cluster" not in ours and beside.is_file():  # else a shipped one's name
        merged = merged.model_copy(update={"cluster": str(beside.absolute())})
    if bool(merged.container) != (merged.container_runtime != "none"):
        raise ConfigError(
            f"slurm.container = {merged.container!r} with container_runtime = {merged.container_runtime!r}: "
            'give both, the image and "pyxis" or "apptainer", or neither'
        )
    return merged


def minutes(time: str) -> float:
    """Minutes of a wall time in Slurm's notation, not rounded.

    Infinite for "infinite", "UNLIMITED", "" and, as in Slurm, for a limit of 0.

    Raises:
        ValueError: it is not one.
    """
    if time in ("", "infinite", "UNLIMITED", "NOT_SET"):
        return float("inf")
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", time):
        raise ValueError(f"{time!r} is not a wall time in Slurm's notation")
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minute, second = (*parts, 0, 0)[:3]
    elif len(parts) == 1:
        hours, minute, second = 0, parts[0], 0
    else:
        hours, minute, second = (0, *parts)[-3:]
    return (int(days or 0) * 24 + hours) * 60 + minute + second / 60 or float("inf")
