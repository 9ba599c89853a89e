"""Submit-time checks: refuse jobs that would fail or never start.

First what the tools show: Slurm, the partition, the account, the limits, the nodes' resources, the file system. Then
`sbatch --test-only` of every script, the controller's own check (it ignores a partition's longest time unless the site
enforces it, so that is checked here). Each line has the request, the limit and the fix; Slurm's own message follows.

An entry of the queue is a job, or a task of an array. MaxJobCount bounds a cluster's, MaxSubmitJobs and GrpSubmitJobs
of an association or a QOS a user's or an account's. Other entries of the user may end in time, so they only cause a
warning.
"""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from governance.errors import ClusterError, ConfigError
from governance.log import get_logger
from slurm import commands
from slurm.config import SlurmConfig, minutes
from slurm.graph import SlurmJob
from slurm.render import script_of

_SHARED = {
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "fuse.ceph", "glusterfs", "fuse.glusterfs", "9p", "virtiofs",
    "cifs", "smb3", "afs", "orangefs", "wekafs", "panfs", "fuse.juicefs", "gfs2", "ocfs2",
}  # fmt: skip
_OF_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}
_LATER = re.compile(r"down, drained or reserved|ReqNodeNotAvail|Resources|Priority|MaxSubmit|QOSMax|AssocMax|AssocGrp")
_NO_SUCH_NODE = "Requested node configuration is not available"
"""Answer of `sbatch --test-only` also where suitable nodes are down; the job itself is queued."""
_FIXES = {
    "partition": "set slurm.partition (and data_partition) to one of: {partitions}",
    "account": "set slurm.account to one that you may charge: {accounts}",
    "qos": "set slurm.qos to one that your account has, or leave it out",
    "time limit": "lower slurm.time_limit or data_time_limit; for a longer run, slurm.chain = N makes N jobs in a row",
    "node configuration": "request less of a node (slurm.gpus_per_node, cpus_per_task, memory, data_memory, ...)",
    "node count": "lower slurm.nodes",
    "memory": "lower slurm.memory or data_memory",
    "reservation": "correct slurm.reservation, or leave it out",
    "feature": "correct slurm.constraint",
    "mail": "correct slurm.mail_type",
    "node name": "correct slurm.exclude",
}  # fmt: skip


def refuse(
    jobs: Sequence[SlurmJob],
    config: SlurmConfig,
    root: Path,
    config_file: Path,
    sources: Sequence[Path],
    entries: Mapping[str, int] | None = None,
) -> None:
    """Refuse a submission that the cluster would refuse.

    The scripts are already written; `sources` are the folders of the sources.

    `entries` states how many tasks of each array are submitted; with None all are.

    Raises:
        ConfigError: a setting contradicts another, or the script to source does not exist.
        ClusterError: the cluster would refuse it, or never start it.
    """
    check_settings(config, root)
    faults = list(_cluster_faults(config))
    faults += over_limits(jobs, entries or {job.name: entries_of([job]) for job in jobs}, config)
    lines = faults or list(_rehearsal_faults(jobs, root, _absent_nodes(config)))
    if lines:
        raise ClusterError("nothing was queued:\n" + "\n".join(f"  {line}" for line in lines))
    files = [Path(config.environment)] * bool(config.environment) + [config.image_file] * bool(config.image_file)
    folders = [file.parent for file in files if file is not None]
    refuse_unshared([root, config_file.parent, *folders, *sources], config)


def check_settings(config: SlurmConfig, root: Path) -> None:
    """Refuse settings that are wrong on any cluster.

    Raises:
        ConfigError: names the setting and the fix.
    """
    for field in ("time_limit", "data_time_limit"):
        limit = minutes(getattr(config, field))
        if config.signal_seconds > limit * 60 / 2:
            raise ConfigError(
                f"slurm.{field} = {getattr(config, field)!r} with signal_seconds = {config.signal_seconds}: more than "
                "half of the time would be left for the save. Raise the limit, or lower signal_seconds."
            )
    if config.min_nodes > config.nodes:
        raise ConfigError(
            f"slurm.min_nodes = {config.min_nodes} is above slurm.nodes = {config.nodes}. Set at most {config.nodes}."
        )
    if config.environment and not Path(config.environment).is_file():
        raise ConfigError(f"slurm.environment: there is no {config.environment}. Name a shell script to source.")
    image = config.image_file
    if image is not None and not image.exists():
        raise ConfigError(
            f"slurm.container: there is no {image}. Name an image file, or what the runtime fetches (docker://...)."
        )
    for mount in config.container_mounts:
        if not Path(mount).is_absolute():  # it may be on the nodes alone
            raise ConfigError(f"slurm.container_mounts: {mount!r} is not an absolute path; start it with /.")
    if odd := sorted(set(str(root)) & set('%\\"\n\r`$')):
        raise ConfigError(
            f"{root}: Slurm reads {odd[0]!r} in the path of a log as a pattern or a quote. Choose another --root."
        )


def _cluster_faults(config: SlurmConfig) -> Iterator[str]:
    """Faults that can be seen by looking at the cluster."""
    known, all_nodes = commands.partitions(), commands.nodes()
    allowed = commands.accounts(getpass.getuser()) if config.account or config.data_account else []
    for field, account in (("account", config.account), ("data_account", config.data_account)):
        if account and allowed and account not in allowed:
            answer = _slurm_answer([f"--account={account}"])
            yield f"slurm.{field} = {account!r}: you may charge {', '.join(allowed)}. Use one.{answer}"
    unknown = False
    for field, names in (("partition", config.partition), ("data_partition", config.data_partition)):
        for part in names.split(",") if names else []:
            if part not in known:
                unknown = True
                answer = _slurm_answer([f"--partition={part}"])
                yield f"slurm.{field} = {names!r}: there is no {part!r}; there are {', '.join(sorted(known))}.{answer}"
    if unknown:
        return
    default = [partition for partition in known.values() if partition.default]

    def named(names: str) -> list[commands.Partition]:
        return [known[name] for name in names.split(",")] if names else default

    for field, data in (("time_limit", False), ("data_time_limit", True)):
        placement = config.placement(data=data)
        among = named(placement["partition"])
        faults = list(_time_faults(config, field, among))
        yield from faults or _wall_faults(config, field, placement, among)
    yield from _node_faults(config, named(config.partition), all_nodes)


def _time_faults(config: SlurmConfig, field: str, among: Sequence[commands.Partition]) -> Iterator[str]:
    requested = getattr(config, field)
    if among and requested and all(minutes(requested) > minutes(partition.limit) for partition in among):
        limits = ", ".join(f"{partition.name} MaxTime={partition.limit}" for partition in among)
        answer = _slurm_answer(
            [f"--partition={','.join(partition.name for partition in among)}", f"--time={requested}"]
        )
        longer = "; for a longer run, slurm.chain = N makes N jobs in a row" if field == "time_limit" else ""
        yield f"slurm.{field} = {requested!r} is above the partition's limit ({limits}). Lower it{longer}.{answer}"


def _wall_faults(
    config: SlurmConfig, field: str, placement: Mapping[str, str], among: Sequence[commands.Partition]
) -> Iterator[str]:
    """Check a wall time against limits of account and qos.

    Slurm queues a job that is longer, and never starts it (QOSMaxWallDurationPerJobLimit). A partition's own qos may
    overrule both, so a partition with one is not judged.
    """
    requested = getattr(config, field)
    if not requested or any(partition.qos for partition in among):
        return
    limits = commands.site_limits(getpass.getuser(), **placement)
    if limits.wall and minutes(requested) > minutes(limits.wall):
        longer = "; for a longer run, slurm.chain = N makes N jobs in a row" if field == "time_limit" else ""
        yield f"slurm.{field} = {requested!r} is above what {limits.wall_name} allows, {limits.wall}. Lower it{longer}."


def _node_faults(
    config: SlurmConfig, among: Sequence[commands.Partition], all_nodes: Sequence[commands.ClusterNode]
) -> Iterator[str]:
    """Check that some partition has enough suitable nodes."""
    names = {partition.name for partition in among}
    listed = ", ".join(sorted(names))
    there = [node for node in all_nodes if names & set(node.partitions)]
    if not there:
        return
    most = max((min(partition.most_nodes, partition.nodes or partition.most_nodes) for partition in among), default=0)
    if config.requested_nodes > most:
        answer = _slurm_answer(_training_options(config, nodes=config.requested_nodes))
        spare = f" and spare_nodes = {config.spare_nodes}" * bool(config.spare_nodes)
        yield f"slurm.nodes = {config.nodes}{spare}: a job gets at most {most} of {listed}. Lower it.{answer}"
    named = {
        "gpus_per_node": (config.gpus_per_node, max(node.gpus for node in there), "GPUs"),
        "cpus_per_task": (config.cpus_per_task * config.tasks_per_node, max(node.cpus for node in there), "CPUs"),
        "memory": (megabytes(config.memory), max(node.memory_mb for node in there), "MB"),
    }
    for field, (requested, has, what) in named.items():
        if requested > has:
            answer = _slurm_answer(_training_options(config))
            yield (
                f"slurm.{field} = {getattr(config, field)!r}: {requested:,} {what} are requested on a node, and none "
                f"of {listed} has more than {has:,}. Lower it, or choose another partition.{answer}"
            )


def _training_options(config: SlurmConfig, nodes: int = 1) -> list[str]:
    options = [f"--nodes={nodes}", f"--ntasks-per-node={config.tasks_per_node}", "--time=1"]
    options += [f"--partition={config.partition}"] * bool(config.partition)
    options += [f"--gpus-per-node={config.gpus_per_node}"] * bool(config.gpus_per_node)
    options += [f"--cpus-per-task={config.cpus_per_task}"] * bool(config.cpus_per_task)
    return options + [f"--mem={config.memory}"] * bool(config.memory)


def _slurm_answer(options: Sequence[str]) -> str:
    """Sbatch's own objection to these options, if any."""
    answer = commands.rehearse(*options, "--wrap=true")
    return f" Slurm says: {'; '.join(answer.splitlines())}" if answer else ""


def _absent_nodes(config: SlurmConfig) -> str:
    """Reason why training cannot start now; "" if it can.

    The reason is that enough nodes are configured, and some are away.
    """
    fitting = training_nodes(config, commands.partitions().values(), commands.nodes())
    gone = unavailable(fitting)
    needed = config.requested_nodes
    if not gone or len(fitting) < needed or len(fitting) - len(gone) >= needed:
        return ""
    return f"{len(fitting)} nodes fit, of which {', '.join(f'{node.name} is {node.state}' for node in gone)}"


def _rehearsal_faults(jobs: Sequence[SlurmJob], root: Path, gone: str) -> Iterator[str]:
    """Objections of `sbatch --test-only`, each once.

    `gone` states why nodes that fit are unavailable now.
    """
    objections: dict[str, str] = {}
    for job in jobs:
        answer = commands.rehearse(str(script_of(root, job.name)))
        if not answer:
            continue
        if _LATER.search(answer):
            get_logger(__name__).warning("%s cannot start now: %s", job.name, answer)
        elif gone and job.kind == "train" and _NO_SUCH_NODE in answer:
            get_logger(__name__).warning("%s cannot start now: %s (Slurm says: %s)", job.name, gone, answer)
        else:
            objections.setdefault(answer, job.name)
    if not objections:
        return
    values = {
        "partitions": ", ".join(sorted(commands.partitions())),
        "accounts": ", ".join(commands.accounts(getpass.getuser())) or "see sacctmgr show assoc",
    }
    for answer, name in objections.items():
        fixes = [fix for word, fix in _FIXES.items() if word in answer.lower()]
        fix = (
            fixes[0].format(**values)
            if fixes
            else "correct [slurm]; sinfo and scontrol show partition list what exists"
        )
        yield f"{name}: {'; '.join(answer.splitlines())}. Fix: {fix}"


def refuse_unshared(paths: Sequence[Path], config: SlurmConfig) -> None:
    """Refuse a path that the nodes do not share.

    A network file system is taken as shared. For any other, a free node is queried; if none is free, a file system in
    memory is refused, and a disk causes a warning, because the first job checks again.

    Raises:
        ClusterError: a node does not see the path, or it is in this machine's memory.
    """
    mounts = Path("/proc/mounts").read_text(encoding="utf-8").splitlines() if Path("/proc/mounts").exists() else []
    for path in dict.fromkeys(paths):
        kind = file_system_of(Path(os.path.realpath(path)), mounts)
        if kind in _SHARED:
            continue
        fix = "Choose a --root, and a place for the run's file and its sources, on the cluster's shared file system."
        values = {**config.placement(data=True), "reservation": config.reservation, "exclude": config.exclude}
        options = [f"--{option}={value}" for option, value in values.items() if value]
        look = 'test -d "$0" || { echo "node $(hostname -s) does not see $0" >&2; exit 1; }'
        try:
            commands.on_a_node(options, "sh", "-c", look, str(path))
        except ClusterError as error:
            started = re.search(r"task \d+.*exit", str(error), re.IGNORECASE) or str(error).endswith("status 1")
            if started:
                raise ClusterError(
                    f"nothing was queued:\n  {path}: the nodes do not see it (here it is on {kind or 'a disk'}). "
                    f"{fix} Slurm says: {error}"
                ) from error
            if kind in _OF_MEMORY:
                raise ClusterError(
                    f"nothing was queued:\n  {path}: is on {kind}, in the memory of this machine alone. {fix}"
                ) from error
            get_logger(__name__).warning(
                "%s is on %s, and no node is free to check whether it sees it; the first job checks. %s",
                path, kind or "a local disk", fix,
            )  # fmt: skip


def file_system_of(path: Path, mounts: Sequence[str]) -> str:
    """File system type of a path, from /proc/mounts."""
    best, kind = -1, ""
    for line in mounts:
        fields = line.split()
        if len(fields) < 3:
            continue
        point = Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), fields[1]))
        if (path == point or point in path.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind


def entries_of(jobs: Sequence[SlurmJob], tasks: int | None = None) -> int:
    """Entries of these jobs in the queue.

    With `tasks`, counts arrays as if they had at most this many tasks.
    """
    most = max((job.tasks for job in jobs), default=0) if tasks is None else tasks
    return sum(max(1, min(job.tasks, most)) for job in jobs)


def over_limits(jobs: Sequence[SlurmJob], entries: Mapping[str, int], config: SlurmConfig) -> Iterator[str]:
    """Limits that these jobs exceed, each with a setting that fits.

    `entries` states for each job, by its name, how many are submitted now.
    """
    model = [job for job in jobs if job.kind in ("train", "evaluate")]
    others = [job for job in jobs if job not in model]
    bounds = [(jobs, "the cluster (MaxJobCount)", int(commands.settings().get("MaxJobCount", "0") or 0))]
    user = getpass.getuser()
    of_model, of_others = (config.placement(data=kind) for kind in (False, True))
    same = all(of_model[name] == of_others[name] for name in ("account", "qos"))
    for of_kind, charged in ((model, of_model), (others, of_others)):
        among = jobs if same else of_kind
        bounds += [(among, name, most) for name, most in commands.site_limits(user, **charged).entries.items()]
    warned: set[str] = set()
    for among, name, most in bounds:
        needed = sum(entries[job.name] for job in among)
        if not most or name in warned:
            continue
        warned.add(name)
        if needed > most:
            found = f"{needed:,} entries in the queue (jobs and tasks of arrays), of which {name} allows {most:,}."
            yield f"{found} {_fitting_setting(among, most)}"
        elif (queued := commands.mine()) + needed > most:
            get_logger(__name__).warning(
                "%s allows %s entries in the queue; this run has %s, and you have %s already: sbatch may refuse it",
                name, f"{most:,}", f"{needed:,}", f"{queued:,}",
            )  # fmt: skip


def _fitting_setting(jobs: Sequence[SlurmJob], most: int) -> str:
    arrays = sum(job.tasks > 0 for job in jobs)
    tasks = (most - (len(jobs) - arrays)) // arrays if arrays else 0
    if tasks < 1:
        return "Request another qos or account, or ask for a higher limit."
    return (
        f"Set slurm.max_tasks = {tasks:,} (or a larger slurm.shards_per_task): then it has {entries_of(jobs, tasks):,}."
    )


_AWAY = re.compile(r"DOWN|DRAIN|FAIL|NOT_RESPONDING|\*|POWER(ED|ING)_DOWN|MAINT|REBOOT|INVAL|FUTURE|UNKNOWN|RESERVED")


def megabytes(memory: str) -> int:
    """Megabytes of Slurm's notation.

    Returns 0 for "" and "0", which request no amount of their own.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTkmgt]?)B?", memory)
    if not found:
        return 0
    scale = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}[found[2].upper()]
    return int(float(found[1]) * scale)


def training_nodes(
    config: SlurmConfig, partitions: Iterable[commands.Partition], nodes: Sequence[commands.ClusterNode]
) -> list[commands.ClusterNode]:
    """Nodes of the training partition with a rank's resources, up or down."""
    names = set(config.partition.split(",")) if config.partition else {each.name for each in partitions if each.default}
    requested = (config.cpus_per_task * config.tasks_per_node, megabytes(config.memory), config.gpus_per_node)
    return [
        node
        for node in nodes
        if names & set(node.partitions)
        and all(has >= needs for has, needs in zip((node.cpus, node.memory_mb, node.gpus), requested, strict=True))
    ]


def unavailable(nodes: Sequence[commands.ClusterNode]) -> list[commands.ClusterNode]:
    """Nodes that are down, drained or otherwise unavailable."""
    return [node for node in nodes if _AWAY.search(node.state.upper())]


def with_cores(
    config: SlurmConfig, partitions: Iterable[commands.Partition], nodes: Sequence[commands.ClusterNode]
) -> tuple[SlurmConfig, str]:
    """Fill in `cpus_per_task` where it is 0, with an explanation.

    A rank gets its share of the smallest fitting node; on a node with more GPUs than requested, its share of the cores
    of the requested GPUs.
    """
    fitting = training_nodes(config, partitions, nodes)
    if config.cpus_per_task or not fitting:
        return config, ""
    if config.gpus_per_node:
        shares = [node.cpus * config.gpus_per_node // max(1, node.gpus) // config.tasks_per_node for node in fitting]
    else:
        shares = [node.cpus // config.tasks_per_node for node in fitting]
    share = max(1, min(shares))
    words = (
        f"slurm.cpus_per_task = 0: each rank gets {share} cores, its share of the smallest of {len(fitting)} nodes that"
        f" fit ({min(node.cpus for node in fitting)} CPUs)"
    )
    return config.model_copy(update={"cpus_per_task": share}), words
