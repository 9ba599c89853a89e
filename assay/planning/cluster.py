"""Cluster files: figures of a kind of node, each with its source.

    peak_tflops = { value = 989.4, source = "NVIDIA H100 Tensor Core GPU data sheet, SXM5" }
    price_hour = { value = 2.5, low = 1.9, high = 4.5, source = "assumed: ..." }

`low` and `high` bound a figure; without them it is taken as exact. The shipped files are in configs/clusters, and a
site's own is any path. Rates are those that a device or network reaches; only `peak_tflops` is the data sheet's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from assay.run_file import CONFIGS
from governance.config import Section, read_toml, validate
from governance.energy.band import MOST, Band, Bounded
from governance.errors import ConfigError
from pretrain.preflight.forecast import Machine
from slurm.config import SlurmConfig

FOLDER = CONFIGS / "clusters"
"""The shipped cluster files."""


class ClusterFigure(Bounded):
    """One figure of a cluster."""

    value: float = Field(gt=0, le=MOST, allow_inf_nan=False)
    source: str
    """Data sheet, paper or measurement; or "assumed: " and the reason."""

    @model_validator(mode="before")
    @classmethod
    def _is_a_table(cls, given: Any) -> Any:
        if isinstance(given, int | float):
            raise ValueError(f'has no source; write {{ value = {given:g}, source = "..." }}')
        return given

    @field_validator("source")
    @classmethod
    def _says_something(cls, source: str) -> str:
        if len(source.strip()) < 3:
            raise ValueError('names no source; write the data sheet, paper or measurement, or "assumed: " and why')
        return source

    def times(self, factor: float) -> ClusterFigure:
        """The figure and its bounds, multiplied."""
        if factor == 1:
            return self
        low, value, high = (factor * bound for bound in self.bounds)
        return ClusterFigure(value=value, low=low, high=high, source=self.source)


_REACHED = (
    "gemm_tflops_768", "gemm_tflops_2048", "attention_tflops_64_forward", "attention_tflops_64_backward",
    "attention_tflops_128_forward", "attention_tflops_128_backward",
)  # fmt: skip
"""Rates that kernels reach of `peak_tflops`."""

_SHARED = ("peak_tflops", *_REACHED, "memory_gib", "memory_gb_s", "host_link_gb_s", "price_hour")
"""Figures of a rank that are its share of a node without GPUs."""

_RATES = (
    *_REACHED, "memory_gb_s", "node_link_gb_s", "network_gb_s", "host_link_gb_s", "storage_gb_s", "storage_total_gb_s",
)  # fmt: skip
"""Figures that make a run faster as they grow."""


class Cluster(Section):
    """Nodes of one kind, and their costs."""

    name: str = Field(min_length=1)
    device: Literal["cuda", "cpu"]
    ranks_per_node: int = Field(gt=0)
    """GPUs of a node; of a node without them, its training processes."""
    peak_tflops: ClusterFigure
    """Dense bf16 TFLOP/s of a device, by its data sheet."""
    gemm_tflops_768: ClusterFigure
    """Rate that products of width 768 reach."""
    gemm_tflops_2048: ClusterFigure
    """The same from width 2048 on."""
    attention_tflops_64_forward: ClusterFigure
    """Rate that attention reaches with heads of up to 64 channels."""
    attention_tflops_64_backward: ClusterFigure
    attention_tflops_128_forward: ClusterFigure
    attention_tflops_128_backward: ClusterFigure
    memory_gib: ClusterFigure
    """Memory of a device that a process may use."""
    memory_gb_s: ClusterFigure
    """Bandwidth that copies within it reach."""
    node_link_gb_s: ClusterFigure
    """Bandwidth of a ring of the ranks of a node."""
    network_gb_s: ClusterFigure
    """Bandwidth of a node to the others."""
    hop_us: ClusterFigure
    """Latency from a rank to the next, in microseconds."""
    host_memory_gib: ClusterFigure
    """Host memory of a node."""
    host_link_gb_s: ClusterFigure
    """Bandwidth from a device to host memory."""
    storage_gb_s: ClusterFigure
    """Bandwidth of a node to the file system."""
    storage_total_gb_s: ClusterFigure
    """Bandwidth of the file system for all nodes."""
    load_node_watts: ClusterFigure
    """Power of a node that trains, at its plug."""
    pue: ClusterFigure
    """Power usage effectiveness of the data centre, where the run sets none."""
    wue: ClusterFigure
    """Litres on site per kWh, where the run sets none."""
    grid_water: ClusterFigure
    """Litres that making a kWh takes, where the run sets none."""
    price_hour: ClusterFigure
    """US dollars for an hour of a rank's device."""
    node_mtbf_hours: ClusterFigure
    """Mean time between failures of a node that end a job."""
    restart_minutes: ClusterFigure
    """From a failure to the first step after it, without reading the checkpoint."""

    @model_validator(mode="after")
    def _within_reason(self) -> Self:
        peak = self.peak_tflops.bounds[2]
        for name in _REACHED:
            if (most := getattr(self, name).bounds[2]) > peak:
                raise ValueError(f"{name}: {most:g} is above peak_tflops = {peak:g}, which no kernel exceeds")
        if (least := self.pue.bounds[0]) < 1:
            raise ValueError(f"pue: {least:g} is below 1, yet a data centre takes at least what its computers take")
        return self

    def band(self, name: str) -> Band:
        """Low, value and high of a figure."""
        figure: ClusterFigure = getattr(self, name)
        return figure.band

    def with_ranks(self, a_node: int) -> Cluster:
        """The same nodes with another number of ranks on each.

        Ranks on CPUs share all that the node has. Of GPUs a job takes as many as ranks, and its share of the node's
        power, as it is metered (`governance/energy/cgroup.py`).
        """
        share = a_node / self.ranks_per_node
        scaled = {"load_node_watts": share} if self.device == "cuda" else dict.fromkeys(_SHARED, 1 / share)
        figures = {name: getattr(self, name).times(factor) for name, factor in scaled.items()}
        return self.model_copy(update={"ranks_per_node": a_node, **figures})

    def at(self, speed: Literal["slow", "fast"]) -> Cluster:
        """The nodes with every rate at its worse or better bound."""
        rate = 0 if speed == "slow" else 2
        ends = {**dict.fromkeys(_RATES, rate), "hop_us": 2 - rate}
        figures: dict[str, ClusterFigure] = {name: getattr(self, name) for name in ends}
        bounds = {name: ClusterFigure(value=figures[name].bounds[end], source=figures[name].source)
                  for name, end in ends.items()}  # fmt: skip
        return self.model_copy(update=bounds)

    @property
    def machine(self) -> Machine:
        """Rates for the forecast of a step."""

        def rate(name: str, scale: float) -> float:
            return float(f"{getattr(self, name).value * scale:.15g}")

        small, large = (
            (rate(f"attention_tflops_{size}_forward", 1e12), rate(f"attention_tflops_{size}_backward", 1e12))
            for size in (64, 128)
        )
        return Machine(
            rate("peak_tflops", 1e12),
            rate("memory_gb_s", 1e9),
            rate("gemm_tflops_768", 1e12),
            rate("gemm_tflops_2048", 1e12),
            small,
            large,
            rate("node_link_gb_s", 1e9),
            rate("network_gb_s", 1e9),
            rate("hop_us", 1e-6),
            rows_apart=self.device == "cuda",
        )


def read_cluster(named: str, folder: Path = Path()) -> Cluster:
    """Read a cluster file, by path or by a shipped name.

    A path starts from `folder`.

    Raises:
        ConfigError: there is none, or a figure is missing or wrong; it names the figure.
    """
    path = folder / named if (folder / named).is_file() else FOLDER / f"{named}.toml"
    if not path.is_file():
        raise ConfigError(f"cluster {named!r}: no such file; the shipped ones are: {', '.join(shipped_clusters())}")
    return validate(read_toml(path), Cluster, str(path))


def cluster_of_job(section: SlurmConfig, folder: Path) -> Cluster:
    """Read `slurm.cluster`, with the ranks of a job on each node.

    Raises:
        ConfigError: there is none, a figure is wrong, or its nodes have fewer GPUs than the job takes.
    """
    cluster = read_cluster(section.cluster, folder)
    has, takes = cluster.ranks_per_node, max(section.tasks_per_node, section.gpus_per_node)
    if cluster.device == "cpu":
        has, takes = 0, section.gpus_per_node
    if takes > has:
        raise ConfigError(
            f"slurm.cluster = {section.cluster!r}: a node of {cluster.name} has {has} GPU(s), and the job takes "
            f"{takes}. Name another cluster, or set fewer of slurm.gpus_per_node and processes_per_node"
        )
    return cluster.with_ranks(section.tasks_per_node)


def shipped_clusters() -> list[str]:
    """Names of the shipped cluster files."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))
