"""Plan of a run on a named cluster, from memory to cost.

The estimate of memory, the forecast of a step and the rules of a start are those of `assay train --dry-run`; this
module multiplies the forecast by its calibration and continues from a step to a run. It imports no torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from assay.config import LoadedRun
from assay.planning.cluster import Cluster
from assay.planning.costs import costs
from assay.planning.data_stages import DataPlan, data_plan
from assay.planning.failures import Failures, expected
from assay.planning.time_calibration import CPU, GPU, Calibration, compiled
from governance.energy.band import Band
from governance.energy.factors import Factors, resolve
from governance.errors import ConfigError, PipelineError
from pretrain.checkpoint.native import reads_native
from pretrain.config.model import ModelConfig
from pretrain.config.training import EngineConfig, Settings, TrainRecipe
from pretrain.data.batch_size import batch_sizes
from pretrain.distributed.process_group import Ranks
from pretrain.finetuning.trained_parameters import training_flops
from pretrain.preflight.compatibility import check_start, faults_of
from pretrain.preflight.forecast import forecast
from pretrain.preflight.hardware import Hardware
from pretrain.preflight.memory import Estimate, estimate
from pretrain.preflight.memory_room import fits, refuse_what_cannot_fit
from pretrain.preflight.node_checks import base_bytes, checkpoint_bytes, save_bytes


@dataclass(frozen=True)
class Correction:
    """Measured over predicted, from a run's record; 1 and None change nothing."""

    time: float = 1.0
    memory: float = 1.0
    watts: float | None = None
    """Power of a node, measured."""
    words: str = ""
    document_tokens: float | None = None
    """Mean tokens of a document of the corpus; None: it is not known, and a row counts as one document."""
    near: bool = True
    """False where the run's model is of quite another size, so that its ratio may not hold for this one."""


@dataclass(frozen=True)
class PlanInputs:
    """Inputs of a plan besides the run's own file."""

    vocabulary: int
    """Size of the tokenizer's vocabulary."""
    cluster: Cluster
    nodes: int
    teacher: ModelConfig | None = None
    """Model that runs alongside the student; None without one."""
    correction: Correction = Correction()
    spare_nodes: int = 0
    """Idle nodes of the same job (`slurm.spare_nodes`)."""
    begun: int = 0
    """Steps that the checkpoint of `train.continue_from` has made."""


@dataclass(frozen=True)
class StepPlan:
    """Predicted memory and time of one layout."""

    engine: EngineConfig
    hardware: Hardware
    nodes: int
    memory: Estimate
    refusal: str
    """The reason why a start would be refused; "" where it would not."""
    parts: dict[str, float]
    """Seconds of a step by part."""
    tokens: int
    """Tokens of a step."""
    flops: float
    """Operations of a step that the model needs, over all ranks."""
    peak: float

    @property
    def ranks(self) -> int:
        """Training processes on all nodes."""
        return self.hardware.world_size or 1

    @property
    def seconds(self) -> float:
        """Seconds of a step."""
        return sum(self.parts.values())

    @property
    def tight(self) -> bool:
        """Return whether the estimate is above the memory, yet tolerated."""
        return not fits(self.memory, self.hardware)

    @property
    def tokens_per_rank(self) -> float:
        """Tokens per second and rank."""
        return self.tokens / self.seconds / self.ranks

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization, of the data sheet's peak."""
        return self.flops / self.seconds / self.ranks / self.peak

    def as_dict(self) -> dict[str, Any]:
        """Values for --json."""
        return {
            "nodes": self.nodes,
            "ranks": self.ranks,
            "zero_stage": self.engine.zero_stage,
            "micro_batch_size": self.engine.micro_batch_size,
            "refused": self.refusal,
            "memory_bytes": {"device": self.memory.device, "host": self.memory.host},
            "step_seconds": self.seconds,
            "step_parts": self.parts,
            "tokens_per_second_per_rank": self.tokens_per_rank,
            "mfu": self.mfu,
        }


@dataclass(frozen=True)
class Plan:
    """Plan of a whole run."""

    cluster: Cluster
    step: StepPlan
    begun: int
    """Steps of `train.continue_from`, which cost nothing here."""
    steps: int
    """Steps after those."""
    tokens: int
    """Tokens of the steps."""
    wall: Band
    """Seconds of the training, failures included."""
    checkpoint: dict[str, float]
    """Bytes of one, stall and time to write in seconds, bytes kept."""
    failures: Failures
    costs: dict[str, Band]
    data: DataPlan
    correction: Correction
    precision: str
    spare_nodes: int = 0

    @property
    def unlike(self) -> str:
        """Note on settings whose effect on the time is not predicted."""
        if self.correction.words:
            return ""
        moved = [f"engine.{name} = {place!r}" for name, place in offloads(self.step.engine).items() if place != "none"]
        own = [f"train.precision = {self.precision!r}"] * (self.precision not in ("bf16", "bf16_masters")) + moved
        if not own:
            return ""
        usual = "bf16" + " without offload" * bool(moved)
        adds = "adds" if len(own) == 1 else "add"
        return f"time, money and energy are those of {usual}; what {' and '.join(own)} {adds} is not known"

    def as_dict(self) -> dict[str, Any]:
        """Values for --json."""
        data = self.data
        return {
            "cluster": self.cluster.name,
            **self.step.as_dict(),
            "spare_nodes": self.spare_nodes,
            "days": self.wall.each(1 / 86400, "*")._asdict(),
            "checkpoint": self.checkpoint,
            "failures": {**asdict(self.failures), "lost": self.failures.lost},
            **{name: band._asdict() for name, band in self.costs.items()},
            "data": {
                "core_hours": data.core_hours._asdict(),
                "disk_bytes": data.disk_bytes._asdict(),
                "not_measured": data.unmeasured,
            },
            "corrected_by": self.correction.words,
            "unlike": self.unlike,
        }


def step_plan(recipe: TrainRecipe, settings: Settings, inputs: PlanInputs) -> StepPlan:
    """Memory and time of a step.

    A layout that cannot start has a refusal.

    Raises:
        ConfigError: the batch does not divide over the ranks.
    """
    engine, cluster, vocabulary, correction = settings.engine, inputs.cluster, inputs.vocabulary, inputs.correction
    ranks = Ranks(0, inputs.nodes * cluster.ranks_per_node, 0, cluster.ranks_per_node)
    hardware = hardware_of_cluster(cluster, ranks)
    found = forecast(recipe, engine, vocabulary, ranks, cluster.machine, inputs.teacher, correction.document_tokens)
    parts = calibration_of(cluster).seconds(found, compiled(engine))
    parts = {name: correction.time * part for name, part in parts.items()}
    needed = estimate(recipe, engine, vocabulary, ranks.world_size, cluster.device, inputs.teacher)
    needed = Estimate(*({name: int(correction.memory * count) for name, count in where.items()}
                        for where in (needed.device, needed.host)))  # fmt: skip
    tokens = recipe.train.global_batch_size * recipe.train.sequence_length
    faults = faults_of(recipe, settings, hardware)
    refusal = "\n".join(faults) or _does_not_fit(recipe, engine, hardware, inputs)
    flops = float(training_flops(recipe, vocabulary) * tokens)
    return StepPlan(engine, hardware, inputs.nodes, needed, refusal, parts, tokens, flops, cluster.machine.peak)


def offloads(engine: EngineConfig) -> dict[str, str]:
    """Settings of the engine that move state off the device."""
    return {"offload_optimizer": engine.offload_optimizer, "offload_parameters": engine.offload_parameters}


def calibration_of(cluster: Cluster) -> Calibration:
    """Calibration of the cluster's kind of device."""
    return GPU if cluster.device == "cuda" else CPU


def hardware_of_cluster(cluster: Cluster, ranks: Ranks) -> Hardware:
    """Hardware of a rank on a cluster's nodes."""
    device = int(cluster.memory_gib.value * 2**30)
    host = int(cluster.host_memory_gib.value * 2**30) // ranks.local_world_size
    if cluster.device == "cpu":
        return Hardware(ranks, "cpu", device_bytes=device, host_bytes=device)
    return Hardware(ranks, "cuda", gpus=ranks.local_world_size, device_bytes=device, host_bytes=host)


def _does_not_fit(recipe: TrainRecipe, engine: EngineConfig, hardware: Hardware, inputs: PlanInputs) -> str:
    room, correction = hardware, inputs.correction
    if correction.memory != 1.0:  # measured memory needs as much more room
        room = replace(
            hardware,
            device_bytes=int((hardware.device_bytes or 0) / correction.memory),
            host_bytes=int((hardware.host_bytes or 0) / correction.memory),
        )
    try:
        refuse_what_cannot_fit(recipe, engine, inputs.vocabulary, room, inputs.teacher)
    except PipelineError as error:
        return str(error)
    return ""


def make_plan(run: LoadedRun, inputs: PlanInputs) -> Plan:
    """The plan of a run.

    Raises:
        ConfigError: the batch does not divide over the ranks, the cluster has another device than the run asks for, or
            no step is left.
    """
    recipe, settings = run.config.recipe, run.settings
    cluster, vocabulary, correction = inputs.cluster, inputs.vocabulary, inputs.correction
    if settings.engine.device not in ("auto", cluster.device):
        raise ConfigError(
            f"engine.device = {settings.engine.device!r}, and the nodes of {cluster.name!r} compute on "
            f"{cluster.device!r}. Name another cluster, or set engine.device = 'auto'."
        )
    train, sizes, begun = recipe.train, batch_sizes(recipe.train), inputs.begun
    if begun >= train.steps:
        raise ConfigError(
            f"train.steps = {train.steps}: the checkpoint of train.continue_from has made {begun} steps, which "
            "count, so none is left to plan. Raise train.steps."
        )
    step = step_plan(recipe, settings, inputs)
    whole = sizes.before(train.steps + 1) * train.sequence_length
    tokens = whole - sizes.before(begun + 1) * train.sequence_length
    calibration = calibration_of(cluster)
    if correction.words and correction.near:  # measured on such nodes, so their rates count as known
        cases = [(0.9, cluster), (1.0, cluster), (1.1, cluster)]
    else:
        cases = [(calibration.low, cluster.at("fast")), (1.0, cluster), (calibration.high, cluster.at("slow"))]
    mtbf, restart = cluster.node_mtbf_hours.bounds, cluster.restart_minutes.bounds
    found = [
        _expected(recipe, settings, replace(inputs, cluster=nodes), tokens, share, 60 * minutes, hours)
        for (share, nodes), hours, minutes in zip(cases, reversed(mtbf), restart, strict=True)
    ]
    wall = Band(*(one.wall for one in found))
    saves = _checkpoint(recipe, settings, inputs, step) | {"stall_seconds": found[1].stall}
    spent = costs(cluster, factors_of(run), inputs.nodes, wall, correction.watts, inputs.spare_nodes)
    return Plan(
        cluster, step, begun, train.steps - begun, tokens, wall,
        saves, found[1], spent, data_plan(run.config.data, whole, vocabulary),
        correction, train.precision, inputs.spare_nodes,
    )  # fmt: skip


def _expected(
    recipe: TrainRecipe, settings: Settings, inputs: PlanInputs, tokens: int, share: float, restart: float, hours: float
) -> Failures:
    """Failures of a run of this many tokens.

    Its steps take `share` of the predicted time; a restart takes seconds, and a node fails once in these hours.
    """
    step = step_plan(recipe, settings, inputs)
    seconds, save = share * step.seconds, _checkpoint(recipe, settings, inputs, step)
    return expected(
        seconds * tokens / step.tokens, settings.checkpoint.every_steps * seconds, save["stall_seconds"],
        save["write_seconds"], restart + save["read_seconds"], 3600 * hours, inputs.nodes,
    )  # fmt: skip


def refuse(run: LoadedRun, inputs: PlanInputs, step: StepPlan) -> None:
    """Refuse settings that a start would refuse, as a dry run does.

    Raises:
        ConfigError: the settings do not work on these ranks.
        PipelineError: the model does not fit; with settings that would.
    """
    check_start(run.config.recipe, run.settings, step.hardware)
    if step.refusal:
        refuse_what_cannot_fit(run.config.recipe, step.engine, inputs.vocabulary, step.hardware, inputs.teacher)
        raise PipelineError(step.refusal)  # it fits by the estimate, and not by what was measured


def factors_of(run: LoadedRun) -> Factors:
    """The run's factors of carbon and water, public averages included."""
    return resolve(run.config.energy.factors, run.folder)


def _checkpoint(recipe: TrainRecipe, settings: Settings, inputs: PlanInputs, step: StepPlan) -> dict[str, float]:
    """Sizes and times of a checkpoint."""
    config, cluster, vocabulary = settings.checkpoint, inputs.cluster, inputs.vocabulary
    size, base = checkpoint_bytes(recipe, vocabulary), base_bytes(recipe, vocabulary)
    kept = config.keep_last + config.keep_best
    if config.keep_every_steps:
        kept += recipe.train.steps // config.keep_every_steps - inputs.begun // config.keep_every_steps
    if step.ranks > 1 and config.native and reads_native(settings.engine):
        kept += 1  # the native shards of the newest
    rate = 1e9 * min(cluster.storage_total_gb_s.value, cluster.storage_gb_s.value * step.nodes)
    copy = size / step.ranks / (1e9 * cluster.host_link_gb_s.value)
    write = (save_bytes(recipe, vocabulary, step.ranks) - base) / rate
    return {
        "bytes": size,
        "kept_bytes": base + size * kept,
        "stall_seconds": copy if config.asynchronous else write,
        "write_seconds": write if config.asynchronous else 0.0,
        "read_seconds": size / rate,
    }
