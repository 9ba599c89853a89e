"""Sections `train`, `engine`, `checkpoint`, `evaluation`, `profile` and `tracking`.

It imports no torch, so that a login node can read and check a configuration.

`ModelConfig`, `OptimConfig` and `TrainConfig` decide what is learned: they enter the key of the training run.
`CheckpointConfig`, `EngineConfig`, `TrackingConfig` and `ProfileConfig` decide where and how it runs, and never enter a
key. How sums are split (micro batches, ranks, threads) may change the last bit of a loss: such runs agree to rounding,
and runs of one layout agree exactly.

Everything that follows from these values is a function of them (`gradient_accumulation_steps`, the whole DeepSpeed
dictionary in `deepspeed_config.py`, the learning rate in `optim.py`), never a second setting. Settings that cannot work
together are refused in `compatibility.py`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import not_
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from governance.config import Section
from governance.errors import ConfigError
from governance.own_code import DOTTED
from pretrain.config.distillation import DistillationConfig
from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig

FLASH_PACKAGES = ("flash_attn_interface", "flash_attn")
"""Packages of `flash_attn_varlen_func`: FlashAttention 3, then 2."""


class RampConfig(Section):
    """One stage of a growing batch."""

    until_step: int = Field(gt=0)
    """The last optimizer step of this stage."""
    global_batch_size: int = Field(gt=0)
    """Rows of each of its steps, over all ranks and micro batches."""


class MixtureConfig(Section):
    """Proportions of the sources from a step on."""

    from_step: int = Field(gt=0)
    """The first optimizer step of these weights."""
    weights: dict[str, float]
    """Source -> its share of the rows, relative to the others'; a source without one, or with 0, is not read."""

    @model_validator(mode="after")
    def _check(self) -> MixtureConfig:
        wrong = {name: weight for name, weight in self.weights.items() if not 0.0 <= weight < math.inf}
        if wrong or not sum(self.weights.values()) > 0.0:
            raise ValueError(f"weights {wrong or self.weights} must be 0 or more, and one of them more than 0")
        return self


class SkipConfig(Section):
    """Conditions for skipped batches and for giving up."""

    z_score: float = Field(default=8.0, ge=0)
    """A loss this many robust standard deviations above the last accepted ones is a spike; 0 looks for none."""
    window: int = Field(default=128, ge=8)
    """Number of accepted losses that a loss is compared with; also the steps over which skips are counted."""
    warmup_steps: int = Field(default=200, ge=0)
    """Steps before spikes are looked for: a loss that still falls steeply says little about the next one."""
    most_skips: int = Field(default=8, ge=0)
    """More skipped steps than this within `window` steps end the run with a verdict."""


class CallbackConfig(Section):
    """A `[[train.callbacks]]` section: a custom function that sees events of the training."""

    function: str = Field(pattern=DOTTED)
    """The function: `package.module:function`, in the folder of the run's file or installed."""
    events: tuple[Literal["step", "evaluation", "checkpoint", "end"], ...] = Field(default=("step",), min_length=1)
    """Events for which it is called; evaluation: each validation and each task."""
    on_error: Literal["warn", "fail"] = "warn"
    """warn: report its first exception, count all, and continue; fail: save, and end the training."""
    seconds: float = Field(default=60, gt=0)
    """Time that one call may take."""


class AdapterConfig(Section):
    """`[train.adapter]`: low-rank adapters of frozen matrices (LoRA, arXiv:2106.09685).

    A matrix W of the blocks computes W + scale B A, and only A [rank, inputs] and B [outputs, rank] learn.
    """

    rank: int = Field(default=16, gt=0)
    """Rows of A and columns of B."""
    alpha: float = Field(default=32.0, gt=0)
    """The scale is alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of A's inputs that training sets to zero."""
    targets: tuple[str, ...] = ()
    """Matrices by the end of their name, as in PEFT: `q_proj`, `layers.0.mlp.up_proj`; none: all of the blocks."""
    embedding_rank: int = Field(default=0, ge=0, exclude_if=not_)
    """Rank of an adapter of the embedding (and so of the output projection, where the two are tied), with the scale of
    the others; 0: none."""
    rank_stabilised: bool = False
    """The scale is alpha / sqrt(rank) (rsLoRA, arXiv:2312.03732)."""

    @property
    def scale(self) -> float:
        """Factor of the product B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


class SpanCorruptionConfig(Section):
    """`[train.span_corruption]`: an encoder-decoder predicts spans that its source lacks (arXiv:1910.10683)."""

    share: float = Field(default=0.15, gt=0, lt=1)
    """Share of a text's tokens that spans leave out."""
    mean_length: float = Field(default=3.0, ge=1)
    """Mean tokens of a span."""

    def sizes(self, length: int) -> tuple[int, int]:
        """Tokens that a text loses, and in how many spans."""
        lost = min(max(1, round(self.share * length)), max(1, length - 1))
        return lost, min(max(1, round(lost / self.mean_length)), lost, max(1, length - lost))

    @property
    def sides(self) -> tuple[float, float]:
        """Tokens of source and target for each token of a text.

        Sentinels are included; the text is long.
        """
        spans = self.share / self.mean_length
        return 1 - self.share + spans, self.share + spans


class TrainConfig(Section):
    """Length, batches and precision of training."""

    sequence_length: int = Field(gt=1)
    """Tokens of one row."""
    global_batch_size: int = Field(gt=0)
    """Rows of one optimizer step, over all ranks and micro batches."""
    batch_size_ramp: tuple[RampConfig, ...] = ()
    """`[[train.batch_size_ramp]]`: other batch sizes for the first steps, stage after stage; afterwards
    `global_batch_size`. The learning rate stays a function of the step."""
    mixture: tuple[MixtureConfig, ...] = ()
    """`[[train.mixture]]`: weights of the sources, each from a step on; before the first, each source weighs its rows.
    None: all rows in one order, independent of their source."""
    source_share: float = Field(default=1.0, gt=0, le=1, exclude_if=lambda share: share == 1)
    """Share of each source's rows that `mixture` reads, spread evenly; a short run with as small a share of the rows
    repeats each source as often as a long run."""
    late_sources: tuple[str, ...] = Field(default=(), exclude_if=lambda named: not named)
    """Sources whose rows are read last, in their share of the run, so that a takedown repeats few steps; those of
    `[[data.sources]]` with `contested`."""
    steps: int = Field(gt=0)
    """Optimizer steps, those of `continue_from` included."""
    continue_from: str = Field(default="", exclude=True)
    """A checkpoint of another run to continue: its folder, relative to the run's file, or `checkpoint/<key>` of this
    root; empty: begin with initial weights. In a run's file, Hugging Face weights here count as `initial_weights`. Its
    location decides nothing; its digest is in the key."""
    initial_weights: str = Field(default="", exclude=True)
    """Hugging Face weights to begin from at step 0: a folder, relative to the run's file, or a model of the hub
    ("hf://owner/name@revision"); empty: random weights. Its path decides nothing; its digest is in the key."""
    adapter: AdapterConfig | None = Field(default=None, exclude_if=not_)
    """`[train.adapter]`: train low-rank adapters; the weights of `initial_weights` stay as they are."""
    trained: tuple[str, ...] = Field(default=(), exclude_if=not_)
    """Regular expressions, searched for in the parameters' names, of those that learn; the others stay as they are in
    `initial_weights`. With adapters these learn too. Empty: all learn, or the adapters alone."""
    distillation: DistillationConfig | None = Field(default=None, exclude_if=not_)
    """`[train.distillation]`: a teacher to learn from; None: the text alone."""
    span_corruption: SpanCorruptionConfig | None = Field(default=None, exclude_if=not_)
    """`[train.span_corruption]`: an encoder-decoder learns from texts without a translation; None: from pairs."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Decides the initial weights and the order of rows."""
    precision: Literal["fp32", "bf16", "bf16_masters", "autocast", "fp16", "fp8"] = "bf16"
    """Arithmetic of forward and backward. fp32: all of it. bf16, fp16: weights are copies of fp32 masters, and gradient
    sums and moments are fp32. bf16_masters: masters, sums and moments are bf16 too, a quarter of the memory and less
    exact. autocast: fp32 weights, products in bf16. fp8, experimental: as bf16, with the blocks' products in 8 bits."""
    quantized_weights: bool = False
    """CUDA, stage 3: gather weights in 8 bits (qwZ, arXiv:2306.10209): passes compute with rounded weights."""
    quantized_gradients: bool = False
    """CUDA, stage 3, several nodes: reduce gradients in 4 bits (qgZ, arXiv:2306.10209), from which updates learn."""
    gradient_reduction: Literal["fp32", "bf16"] = "fp32"
    """Type in which gradients are summed over ranks. bf16 sends half the bytes; its error grows with the ranks."""
    validate_every_steps: int = Field(default=100, ge=0)
    """Steps between measurements on the validation shards; 0 measures only at the end."""
    patience: int = Field(default=0, ge=0, exclude_if=not_)
    """Early stopping: training ends once the last `patience` validations have none below the least loss before them.
    0: never."""
    validation_rows: int = Field(default=64, gt=0)
    """The most rows of each measurement, spread evenly over the validation shards."""
    removed_documents: tuple[str, ...] = Field(default=(), max_length=10_000, exclude_if=lambda named: not named)
    """Documents (the first 16 bytes of the SHA-256 of each id, hexadecimal) whose places in the rows are as padding; a
    checkpoint in `continue_from` must not have read them. `assay governance takedown` writes it."""
    skip: SkipConfig = SkipConfig()
    """Conditions for skipped batches."""
    callbacks: tuple[CallbackConfig, ...] = Field(default=(), exclude=True)
    """`[[train.callbacks]]`: custom functions that see events of the training. They change no artifact, so they are not
    in the key."""

    @property
    def sides(self) -> tuple[float, float]:
        """Tokens of source and target for each token of a row."""
        return self.span_corruption.sides if self.span_corruption is not None else (0.5, 0.5)

    @property
    def freezes(self) -> bool:
        """Return whether some parameters stay as `initial_weights` has them."""
        return self.adapter is not None or bool(self.trained)

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        for name, starts in (
            ("batch_size_ramp: until_step", [stage.until_step for stage in self.batch_size_ramp]),
            ("mixture: from_step", [phase.from_step for phase in self.mixture]),
        ):
            if any(after <= before for before, after in itertools.pairwise(starts)):
                raise ValueError(f"{name} is {starts}; it must increase from each entry to the next")
        if wrong := [named for named in self.removed_documents if not re.fullmatch("[0-9a-f]{32}", named)]:
            raise ValueError(
                f"removed_documents: {wrong[0]!r} is not 32 hexadecimal digits, the identity of a document"
            )
        if self.mixture and self.late_sources:
            raise ValueError(
                "mixture and late_sources (contested = true) both order the rows; remove contested, and give these "
                "sources a weight in a last entry of the mixture only"
            )
        for pattern in self.trained:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"trained: {pattern!r} is not a regular expression: {error}") from error
        if self.source_share < 1 and not self.mixture:
            raise ValueError(
                f"source_share = {self.source_share:g} is of the sources of train.mixture: name their weights"
            )
        if self.patience and not self.validate_every_steps:
            raise ValueError(
                f"patience = {self.patience} counts validations, and validate_every_steps = 0 makes only one; set "
                f"validate_every_steps"
            )
        return self


class CheckpointConfig(Section):
    """Intervals and retention of checkpoints."""

    every_steps: int = Field(default=100, gt=0)
    """Steps between checkpoints; the last step is always saved."""
    keep_last: int = Field(default=2, gt=0)
    """Newest checkpoints kept; older ones of this run are removed once a newer one is durable."""
    keep_every_steps: int = Field(default=0, ge=0)
    """Checkpoints at multiples of this step are kept for ever; 0: none."""
    keep_best: int = Field(default=0, ge=0)
    """Number of checkpoints of least validation loss that are kept too (of those validated at their own step)."""
    native: bool = True
    """With several ranks: keep each rank's own part with the newest checkpoint, for a fast restart."""
    asynchronous: bool = True
    """Write in the background, from a copy in host memory; false: training waits until it is durable."""
    from_scratch: bool = False
    """Train from step 1 where durable checkpoints of this run are lost or damaged; otherwise that is refused."""


LAYOUT = (
    "zero_stage", "micro_batch_size", "activation_checkpointing", "compile", "deepcompile", "sequence_parallel_size",
    "tensor_parallel_size", "expert_parallel_size", "hpz_partition_size", "offload_optimizer", "offload_parameters",
    "deepspeed",
)  # fmt: skip
"""Settings of the engine that `assay plan` predicts a step from."""


class EngineConfig(Section):
    """Distribution of the work over hardware; see `docs/engine.md`."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one. cuda: a start without one is an error."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """State that DeepSpeed spreads over ranks (arXiv:1910.02054): 1 optimizer, 2 and gradients, 3 and parameters."""
    micro_batch_size: int = Field(default=8, gt=0)
    """Rows of one forward and backward pass on one rank."""
    activation_checkpointing: Literal["none", "full", "selective"] = "none"
    """Activations that the backward pass computes again: none; full: all of each block; selective: all of a block but
    the results of its linear maps and of attention."""
    attention: Literal["auto", "flash"] = "auto"
    """CUDA: auto: FlexAttention, a part of torch. flash: FlashAttention's kernel for rows of several lengths, from the
    package flash_attn_interface (3) or flash_attn (2), whichever is installed."""
    compile: bool = False
    """Compile the model with torch.compile: slower to start, faster to run; needs a C++ compiler on CPU."""
    deepcompile: bool = False
    """CUDA: compile ZeRO's communication into the graph too (DeepCompile, arXiv:2504.09983); implies `compile`."""
    sequence_parallel_size: int = Field(default=1, gt=0)
    """Ranks that share each row, every one with a stretch of its tokens (Ulysses, arXiv:2309.14509)."""
    tensor_parallel_size: int = Field(default=1, gt=0)
    """Ranks that share each matrix of a block (AutoTP); they read the same rows."""
    expert_parallel_size: int = Field(default=1, gt=0)
    """Ranks that share the experts of each layer, every one with some of them, and exchange tokens."""
    hpz_partition_size: int = Field(default=1, gt=0)
    """Stage 3: ranks (of one node) that hold a second copy of the weights among them, gathered in the backward pass
    without crossing nodes (hpZ, arXiv:2306.10209); 1 keeps none."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """Place of masters and moments: on the device, in host memory, or (stage 3) in files below `nvme_path`; the CPU
    updates what is not on the device."""
    offload_parameters: Literal["none", "cpu", "nvme"] = "none"
    """Stage 3: place of weights between uses: on the device, in host memory, or in files below `nvme_path`."""
    nvme_path: str | None = None
    """Folder on a fast local disk for what is offloaded to nvme, of one run of a node; worthless after it."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """`[engine.deepspeed]`: keys of DeepSpeed's configuration without a setting here, passed through."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of one rank; 0 shares the cores that this node allows among its ranks."""
    deterministic: bool = False
    """CUDA: only kernels that add in a fixed order, at a price in speed and memory, so that equal runs give equal bits.
    On CPU that is always so."""
    rank_invariant: bool = False
    """On CPU: add gradients, losses and norms in one order, so that any number of ranks that is a power of two, and any
    ZeRO stage, gives equal bits; see `docs/recompute.md`."""
    shared_memory_collectives: bool = False
    """On CPU: build and use DeepSpeed's shared-memory extension for ranks on one node (minutes, once per node)."""
    extension_build_seconds: float = Field(default=600.0, gt=0)
    """Time limit of that build, in seconds."""
    collective_timeout_seconds: float = Field(default=1800.0, gt=0)
    """Seconds that a rank waits for the others before the run fails."""
    first_step_timeout_seconds: float = Field(default=3600.0, ge=0)
    """Seconds without a heartbeat, before the first step is done or in a save, after which a rank hangs; 0: never."""
    step_timeout_seconds: float = Field(default=300.0, ge=0)
    """The same after the first step, but at least 20 times the slowest step so far; 0: never."""
    restarts: int = Field(default=3, ge=0)
    """Restarts by the launcher, from the last checkpoint, after a crash or a hang."""
    straggler_window_steps: int = Field(default=50, ge=0)
    """Steps over which ranks compare the time of their own work; 0: never."""

    @property
    def layout(self) -> dict[str, Any]:
        """Settings that decide a step's memory and time, without defaults."""
        default = EngineConfig()
        return {name: value for name in LAYOUT if (value := getattr(self, name)) != getattr(default, name)}


class ProfileConfig(Section):
    """Steps to profile; enters no key."""

    from_step: int = Field(default=0, ge=0)
    """The first optimizer step that is profiled; 0: none is."""
    steps: int = Field(default=3, gt=0)
    """Steps that are profiled."""
    warmup: int = Field(default=1, ge=0)
    """Steps before these in which the profiler runs and keeps nothing: starting it distorts the first one."""
    ranks: tuple[int, ...] = (0,)
    """Ranks that are profiled; the report has the table of rank 0."""
    record_shapes: bool = False
    """Tell operators on tensors of different shapes apart."""
    memory: bool = False
    """Bytes that operators allocate; on CUDA also a snapshot of the allocator, for https://pytorch.org/memory_viz."""
    stacks: bool = False
    """The lines of Python in which operators were called, in the trace."""


class TrackingConfig(Section):
    """Mirrors at Weights & Biases, TensorBoard, MLflow and Prometheus.

    metrics.jsonl has the whole record either way.
    """

    mode: Literal["auto", "offline", "online", "disabled"] = "auto"
    """auto: as WANDB_MODE says, else online after `wandb login` or with WANDB_API_KEY, else offline (upload later with
    `wandb sync`)."""
    project: str = Field(default="assay", min_length=1)
    """Project of the run; unless it is set here, WANDB_PROJECT is used where that is set."""
    name: str | None = None
    """Name of the run; None: WANDB_NAME, or `train-` and the first 8 characters of its key."""
    entity: str | None = None
    """User or team that owns the project; None: WANDB_ENTITY, or the account's default."""
    group: str | None = None
    """Group of the data, gate and training runs; None: WANDB_RUN_GROUP, or `tokens-` and part of the corpus' digest."""
    tags: tuple[str, ...] = ()
    """Tags of the runs; none: WANDB_TAGS."""
    notes: str | None = None
    """Notes on the runs; None: WANDB_NOTES."""
    job_type: str = Field(default="train", min_length=1)
    """Job type of the training run, unless WANDB_JOB_TYPE is set; those of the other runs are `data` and `gate`."""
    system_metrics: bool = True
    """Sample processor, memory, network and GPUs of rank 0's node."""
    alerts: bool = True
    """Send alerts when a run diverges, hangs or uses up its energy budget, or when the gate is closed."""
    tensorboard: bool = False
    """Write TensorBoard's event files, too; needs the extra `tensorboard`."""
    mlflow: str = ""
    """MLflow's tracking URI, such as http://host:5000; empty: none. Needs the extra `mlflow`."""
    prometheus: str = ""
    """Folder of node_exporter's textfile collector, for the latest values; empty: none are written."""


SHORT = 256  # tokens of a row of short texts: dense attention costs the square of a row's length

Format = Literal[
    "choices", "pairs", "arc", "blimp", "boolq", "commonsenseqa", "hellaswag", "mmlu", "openbookqa", "piqa",
    "truthfulqa_mc1",
]  # fmt: skip


class TaskConfig(Section):
    """One set of questions, in a file of the user's.

    Assay ships none.
    """

    name: str = Field(min_length=1)
    """Its name in the results."""
    format: Format
    """Form of its records and of the prompts made from them (`tasks.py`)."""
    path: str = Field(default="", exclude=True)
    """A file (.jsonl, .json, .parquet, each also as .gz but the last), or a folder of them; relative to the run's file.
    Its location decides nothing; its digest is in the key."""
    task: str = Field(default="", pattern=f"^$|{DOTTED}", exclude_if=not_)
    """Instead of `path`: a custom function (`package.module:function`) that yields the records. The digests of its
    source and of its records are in the key."""
    seconds: float = Field(default=600, gt=0, exclude=True)
    """Time limit of that function, in seconds."""
    sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """The digest that file or records must have; empty: their digest at the start of the run, recorded then."""
    code_sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$", exclude_if=not_)
    """The same for the source of `task`."""
    limit: int = Field(default=0, ge=0)
    """The most questions, chosen by the seed; 0: all."""

    @model_validator(mode="after")
    def _one_origin(self) -> TaskConfig:
        if self.task and self.path:
            raise ValueError(f"{self.name} has a path and a task; give the file, or the function that yields records")
        return self


class EvaluationConfig(Section):
    """Tasks during training and their interval.

    They say what `losses.json` holds, and so enter the key of a training run.
    """

    tasks: tuple[TaskConfig, ...] = ()
    """The sets; `[[evaluation.tasks]]` in TOML."""
    every_steps: int = Field(default=0, ge=0)
    """Steps between two evaluations of the tasks; 0: only at the end."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Chooses the questions where a limit leaves some out."""

    @model_validator(mode="after")
    def _names(self) -> EvaluationConfig:
        names = [task.name for task in self.tasks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"tasks has the name {twice[0]!r} twice; give each its own")
        return self


class TrainRecipe(Section):
    """Sections that decide the weights learned from given token shards.

    It is the source of a run's key.
    """

    model: ModelConfig
    optim: OptimConfig
    train: TrainConfig
    evaluation: EvaluationConfig = EvaluationConfig()


@dataclass(frozen=True)
class Settings:
    """Sections that enter no key."""

    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    notice_seconds: int = 0
    """Seconds between the scheduler's signal and the end of a job; 0: unknown."""
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    folder: Path = Path()
    """Folder of the run's file, where own code is searched for first."""
    until_step: int = 0
    """Save and stop after this step, as on a signal; 0: never."""
    nudge: float = 0.0
    """Relative change of each weight at the start, up and down by turns; audits measure what becomes of it."""
    origin: Mapping[str, Any] | None = None
    """Source of the weights that the run starts from, for its record; None: random."""


def gradient_accumulation_steps(
    global_batch_size: int, micro_batch_size: int, world_size: int, field: str = "train.global_batch_size"
) -> int:
    """Micro batches that each rank adds up for one optimizer step.

    `world_size` counts the ranks that read rows of their own; `field` names the batch in the error.

    Raises:
        ConfigError: the global batch does not divide evenly.
    """
    rows = micro_batch_size * world_size
    if global_batch_size % rows:
        near = rows * max(1, round(global_batch_size / rows))
        each = max(1, round(global_batch_size / world_size))
        micro = max(size for size in range(1, micro_batch_size + 1) if each % size == 0)
        batch = f"{field} = {each * world_size} and " if each * world_size != global_batch_size else ""
        or_smaller = f", or {batch}engine.micro_batch_size = {micro}" if micro < micro_batch_size else ""
        raise ConfigError(
            f"{field} = {global_batch_size} is not a multiple of engine.micro_batch_size x ranks = "
            f"{micro_batch_size} x {world_size} = {rows}; set {field} = {near}{or_smaller}"
        )
    return global_batch_size // rows
