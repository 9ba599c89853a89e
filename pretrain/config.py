"""The trainer's sections of a run's file. Imports no torch, so that a login node can read and check a configuration.

`ModelConfig`, `OptimConfig` and `TrainConfig` decide what is learned: they enter the key of the training run.
`CheckpointConfig`, `EngineConfig` and `TrackingConfig` decide where and how it runs, and never enter a key. How sums
are split (micro batches, ranks, threads) may change the last bit of a loss: such runs agree to rounding, and runs of
one layout agree exactly.

Everything that follows from these values is a function of them (`gradient_accumulation_steps`, the whole DeepSpeed
dictionary in `engine.py`, the learning rate in `optim.py`), never a second setting.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from governance.config import Section
from governance.errors import ConfigError


class ModelConfig(Section):
    """A decoder-only Transformer; fields as in a Hugging Face Llama configuration, so that export is a copy.

    The vocabulary's size is no setting: it is the token shards', padded to a multiple of 128 (`padded_vocabulary`).
    """

    hidden_size: int = Field(gt=0)
    """Width of the residual stream, in channels."""
    intermediate_size: int = Field(gt=0)
    """Inner width of the SwiGLU feed-forward layer, in channels."""
    num_hidden_layers: int = Field(gt=0)
    """Transformer blocks."""
    num_attention_heads: int = Field(gt=0)
    """Query heads; each is hidden_size / num_attention_heads channels wide."""
    num_key_value_heads: int = Field(gt=0)
    """Key and value heads; fewer than the query heads is grouped-query attention (arXiv:2305.13245)."""
    max_position_embeddings: int = Field(gt=0)
    """Upper bound of the sequence length, in tokens."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    """Base wavelength of the rotary position embedding (arXiv:2104.09864)."""
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the mean square in RMSNorm (arXiv:1910.07467)."""
    tie_word_embeddings: bool = False
    """Use the input embedding as the output projection too."""

    @model_validator(mode="after")
    def _heads(self) -> ModelConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} is not a multiple of num_attention_heads = "
                f"{self.num_attention_heads}; change one of them"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads = {self.num_attention_heads} is not a multiple of num_key_value_heads = "
                f"{self.num_key_value_heads}; choose a divisor of {self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"hidden_size / num_attention_heads = {self.head_dim} is odd; the rotary embedding turns pairs of "
                f"channels, so choose fewer or more heads"
            )
        return self

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_attention_heads


class OptimConfig(Section):
    """AdamW (arXiv:1711.05101) under a warm-up-stable-decay schedule (arXiv:2404.06395)."""

    learning_rate: float = Field(gt=0)
    """The rate of the stable phase."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and second moment per step."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled decay per step and unit of learning rate, of matrices only; vectors (norms) are not decayed."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 does not clip."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear rise to the learning rate, at the start."""
    decay_steps: int = Field(default=0, ge=0)
    """Steps of linear fall, at the end."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """The rate of the last step, as a share of the learning rate."""

    @field_validator("betas")
    @classmethod
    def _betas(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("each beta must be at least 0 and below 1, for example [0.9, 0.95]")
        return betas


class TrainConfig(Section):
    """How long, on what batches, in which arithmetic."""

    sequence_length: int = Field(gt=1)
    """Tokens of one row."""
    global_batch_size: int = Field(gt=0)
    """Rows of one optimizer step, over all ranks and micro batches."""
    steps: int = Field(gt=0)
    """Optimizer steps."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Decides the initial weights and the order of rows."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Arithmetic of forward and backward; master weights, gradient sums and moments are fp32 in both."""
    validate_every_steps: int = Field(default=100, ge=0)
    """Steps between measurements on the validation shards; 0 measures only at the end."""
    validation_rows: int = Field(default=64, gt=0)
    """The most rows of each measurement, spread evenly over the validation shards."""


class CheckpointConfig(Section):
    """When the run is saved, and how long it is kept."""

    every_steps: int = Field(default=100, gt=0)
    """Steps between checkpoints; the last step is always saved."""
    keep_last: int = Field(default=2, gt=0)
    """Checkpoints kept; older ones of this run are removed once a newer one stands."""


class EngineConfig(Section):
    """How the work is spread over this hardware."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed spreads over ranks (arXiv:1910.02054): 1 optimizer state, 2 gradients too, 3 parameters too."""
    micro_batch_size: int = Field(default=8, gt=0)
    """Rows of one forward and backward pass on one rank."""
    compile: bool = False
    """Compile the model with torch.compile: slower to start, faster to run; wants a C++ compiler on CPU."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of one rank; 0 shares the cores that this node allows among its ranks."""
    shared_memory_collectives: bool = False
    """On CPU: build and use DeepSpeed's shared-memory extension for ranks on one node (minutes, once per node)."""
    extension_build_seconds: float = Field(default=600.0, gt=0)
    """Time limit of that build, in seconds."""
    collective_timeout_seconds: float = Field(default=1800.0, gt=0)
    """How long a rank waits for the others before the run fails, in seconds."""


class TrackingConfig(Section):
    """The mirror at Weights & Biases; metrics.jsonl is written in any case and is the record."""

    mode: Literal["auto", "offline", "online", "disabled"] = "auto"
    """auto: online when WANDB_API_KEY is set, else offline (upload later with `wandb sync`)."""
    project: str = Field(default="assay", min_length=1)
    """Project that the run appears under."""
    name: str | None = None
    """Name of the run; none: `train-` and the first 8 characters of its key."""


class TrainRecipe(Section):
    """All that decides what is learned from given token shards: what the key of a training run is made of."""

    model: ModelConfig
    optim: OptimConfig
    train: TrainConfig


def padded_vocabulary(vocabulary_size: int) -> int:
    """Rows of the embedding: the vocabulary rounded up to a multiple of 128, which matrix units like."""
    return -(-vocabulary_size // 128) * 128


def check_together(recipe: TrainRecipe, engine: EngineConfig) -> None:
    """Refuse combinations of sections that cannot work, each with its mend.

    Raises:
        ConfigError: names the fields, their values and what to change.
    """
    optim, train, model = recipe.optim, recipe.train, recipe.model
    faults = []
    if train.sequence_length > model.max_position_embeddings:
        faults.append(
            f"train.sequence_length = {train.sequence_length} is above model.max_position_embeddings = "
            f"{model.max_position_embeddings}; raise the latter"
        )
    if optim.warmup_steps + optim.decay_steps > train.steps:
        faults.append(
            f"optim.warmup_steps + optim.decay_steps = {optim.warmup_steps + optim.decay_steps} is above "
            f"train.steps = {train.steps}; shorten the warm-up or the decay"
        )
    if train.precision == "bf16" and engine.zero_stage == 0:
        faults.append(
            "engine.zero_stage = 0 with train.precision = 'bf16' would keep no fp32 master weights; "
            "set zero_stage = 1 or precision = 'fp32'"
        )
    if faults:
        raise ConfigError("\n".join(faults))


def gradient_accumulation_steps(global_batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Micro batches that each rank adds up for one optimizer step.

    Raises:
        ConfigError: the global batch does not divide evenly.
    """
    rows = micro_batch_size * world_size
    if global_batch_size % rows:
        raise ConfigError(
            f"train.global_batch_size = {global_batch_size} is not a multiple of engine.micro_batch_size x ranks = "
            f"{micro_batch_size} x {world_size} = {rows}; choose a micro batch that divides "
            f"{global_batch_size / world_size:g} rows a rank"
        )
    return global_batch_size // rows
