"""Resources of the configured nodes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from slurm import commands as tools
from slurm.config import SlurmConfig

_AWAY = re.compile(r"DOWN|DRAIN|FAIL|NOT_RESPONDING|\*|POWER(ED|ING)_DOWN|MAINT|REBOOT|INVAL|FUTURE|UNKNOWN|RESERVED")


def megabytes(memory: str) -> int:
    """Megabytes of Slurm's notation.

    The result is 0 for "" and "0", which request nothing in particular.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTkmgt]?)B?", memory)
    if not found:
        return 0
    scale = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}[found[2].upper()]
    return int(float(found[1]) * scale)


def of_training(
    config: SlurmConfig, partitions: Iterable[tools.Partition], nodes: Sequence[tools.ClusterNode]
) -> list[tools.ClusterNode]:
    """Nodes of the training partition with a rank's resources, up or down."""
    names = set(config.partition.split(",")) if config.partition else {each.name for each in partitions if each.default}
    requested = (config.cpus_per_task * config.tasks_per_node, megabytes(config.memory), config.gpus_per_node)
    return [
        node
        for node in nodes
        if names & set(node.partitions)
        and all(has >= needs for has, needs in zip((node.cpus, node.memory_mb, node.gpus), requested, strict=True))
    ]


def away(nodes: Sequence[tools.ClusterNode]) -> list[tools.ClusterNode]:
    """Nodes that are down, drained or otherwise unavailable."""
    return [node for node in nodes if _AWAY.search(node.state.upper())]


def with_cores(
    config: SlurmConfig, partitions: Iterable[tools.Partition], nodes: Sequence[tools.ClusterNode]
) -> tuple[SlurmConfig, str]:
    """Fill in `cpus_per_task` where it is 0, with an explanation.

    A rank gets its share of the smallest fitting node; on a node with more GPUs than requested, its share of the cores
    of the requested GPUs.
    """
    fitting = of_training(config, partitions, nodes)
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
