"""Memory estimate of a rank in closed form.

The terms follow what DeepSpeed 0.19 keeps (its fp32 copies of fp32 weights included) and what the backward pass of a
block saves. `memory_room.py` compares the sum with the memory available.

Measured on CPU, peak memory of whole runs over the estimate (16.8 M parameters, 2,048 to 4,096 tokens per pass): .93 to
1.05 over eleven cases with torch's CPU build, .95 to 1.05 with a build for GPUs. The lowest are soft caps and selective
checkpointing, the highest eight experts. `benchmarks/training.py memory` has the cases. Pages of libraries and of token
shards are not counted: the system drops them on demand. Not measured on a GPU, whose allocator's
fragmentation is not counted.
"""

from __future__ import annotations

import functools
import importlib.util
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretrain.config.training import EngineConfig, TrainRecipe
from pretrain.distributed.layout import parameter_shares
from pretrain.engine.deepspeed_config import BUCKET, SWAP_BUFFERS, SWAPPED_GROUP
from pretrain.model.flops import parameter_count
from pretrain.optim.optimizers import moment_count
from pretrain.preflight.memory_passes import activations, head, with_layers

_LIVE_PARAMETERS = 1_000_000_000  # DeepSpeed's max_live_parameters: those that stage 3 keeps gathered
_SUB_GROUP = 1_000_000_000  # DeepSpeed's sub_group_size, in elements
_REDUCED_AT_ONCE = 500_000_000  # DeepSpeed's MEMORY_OPT_ALLREDUCE_SIZE, in elements
_SWAPPED_BYTES = 8 << 30  # buffers in host memory for weights in files
_COPY = "copy for checkpoints"  # fp32, of this rank's masters and moments, throughout training
_RUNTIME = {"cpu": 210 << 20, "cuda": 500 << 20}  # torch and DeepSpeed; CUDA's context
_NCCL = 1000 << 20  # NCCL's channels to other ranks
_FRAGMENTED = 0.14  # share of free pieces within the memory that the host's allocator holds; measured 0 to .2
_COMPILER = 90 << 20  # of torch, which its selective checkpointing imports
_GPU_LIBRARIES = 152 << 20  # of a torch built for GPUs: relocated on the CPU, too; measured with 2.13


@dataclass(frozen=True)
class Estimate:
    """Bytes that one rank needs, by purpose."""

    device: dict[str, int]
    """Memory of the computing device: the GPU's, or the host's on CPU."""
    host: dict[str, int]
    """Host memory with a GPU: offloaded state, and the model during its construction."""

    @property
    def device_bytes(self) -> int:
        """Device memory at the peak of a step."""
        return sum(self.device.values())

    @property
    def host_bytes(self) -> int:
        """Host memory for this rank."""
        return sum(self.host.values())


def estimate(
    recipe: TrainRecipe, engine: EngineConfig, vocabulary_size: int, world_size: int, device: Literal["cpu", "cuda"]
) -> Estimate:
    """Memory of one rank at the peak of a step."""
    block = parameter_count(with_layers(recipe.model, 2), vocabulary_size) - parameter_count(
        with_layers(recipe.model, 1), vocabulary_size
    )
    blocks = block * recipe.model.num_hidden_layers
    every = parameter_count(recipe.model, vocabulary_size)
    # Tensor ranks hold norms and learned positions whole, which are negligible.
    shares = parameter_shares(recipe.model, engine, vocabulary_size, world_size)
    parameters, held = sum(count for count, _ in shares), Counter[str]()
    for number, (count, ranks) in enumerate(shares):
        moments = moment_count(recipe.optim, count, 0 if number else every - blocks)
        held.update(_state(recipe, engine, (count, moments), ranks))
    compiler = _COMPILER if device == "cpu" and engine.activation_checkpointing == "selective" else 0
    libraries = _GPU_LIBRARIES if device == "cpu" and _built_for_gpus() else 0
    on_device = {"runtime": _RUNTIME[device] + libraries + compiler, "activations": activations(recipe, engine, device)}
    on_device |= {"loss": head(recipe, engine, vocabulary_size, device)}
    # Allocated after activations are freed, whose memory the host's allocator keeps:
    flat = _flat_gradients(recipe, engine, parameters, world_size)
    reduced = flat if device == "cpu" else max(0, flat - on_device["activations"])
    on_device["buffers of communication"] = reduced + _buckets(recipe, engine, parameters)
    if device == "cuda" and world_size > 1:
        on_device["buffers of communication"] += _NCCL
    on_host: dict[str, int] = {}
    for name, count in held.items():
        place = _place(name, engine)
        if place == "device":
            on_device[name] = count
        elif place == "host":
            on_host[name] = count
    if engine.offload_parameters == "nvme":
        on_host["swap buffers"] = min(_SWAPPED_BYTES, held["parameters"])
    if engine.offload_optimizer == "nvme":
        on_host["swap buffers of state"] = SWAP_BUFFERS * min(held["masters"], 4 * SWAPPED_GROUP)
    if device == "cpu":
        moved = {name if name == _COPY else f"offloaded {name}": count for name, count in on_host.items()}
        on_device |= moved
        on_device["fragmentation"] = int(_FRAGMENTED * (sum(on_device.values()) - on_device["runtime"]))
        return Estimate(on_device, {})
    if engine.zero_stage < 3:
        on_host["model while it is built"] = 4 * parameters * engine.tensor_parallel_size  # they cut it afterwards
    return Estimate(on_device, on_host)


@functools.cache
def _built_for_gpus() -> bool:
    """Return whether the installed torch is built for GPUs, without importing it."""
    found = importlib.util.find_spec("torch")
    folders = (found.submodule_search_locations or []) if found else []
    return any(Path(folder, "lib", f"libtorch_{kind}.so").exists() for folder in folders for kind in ("cuda", "hip"))


def _place(name: str, engine: EngineConfig) -> str:
    """Location of a part of the state: device, host or file."""
    setting = {
        "parameters": engine.offload_parameters,
        "masters": engine.offload_optimizer,
        "moments": engine.offload_optimizer,
        "gradient sums": engine.offload_optimizer,
        "gradients of the update": engine.offload_optimizer,
    }.get(name, "none")
    if name == _COPY:
        return "file" if engine.offload_optimizer == "nvme" else "host"
    if name == "gradient sums" and setting == "nvme":
        return "host"  # they go to files only once they are complete
    return {"none": "device", "cpu": "host", "nvme": "file"}[setting]


def _state(recipe: TrainRecipe, engine: EngineConfig, counts: tuple[int, int], ranks: int) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer state.

    `ranks` share what the stage partitions.

    `counts` are those of parameters, and of the optimizer's moments (two per parameter with AdamW, one of Muon's
    matrices).
    """
    (parameters, moments), stage, precision = counts, engine.zero_stage, recipe.train.precision
    full = precision in ("fp32", "autocast")
    weight, master = (4 if full else 2), (2 if precision == "bf16_masters" else 4)
    piece = -(-parameters // ranks)
    values = {
        "parameters": weight * (piece if stage == 3 else parameters),
        "masters": master * piece if stage else 0,
        "moments": master * (-(-moments // ranks) if stage else moments),
        "gradients": weight * parameters if stage < 2 else 0,
        "gradient sums": master * piece if stage else 0,
        _COPY: 4 * (piece - (-moments // ranks)),
    }
    if _accumulates_whole_gradients(recipe, engine):
        values["gradient sums"] = 4 * parameters
    if stage == 3:  # DeepSpeed flattens a copy of each sub-group in turn, and on the host of all
        values["gradients of the update"] = master * (
            piece if engine.offload_optimizer == "cpu" else min(piece, _SUB_GROUP)
        )
    if stage == 3:
        values["gathered parameters"] = weight * min(parameters, _LIVE_PARAMETERS)
        if engine.hpz_partition_size > 1:
            values["second copy of parameters"] = weight * parameters // engine.hpz_partition_size
    return values


def _accumulates_whole_gradients(recipe: TrainRecipe, engine: EngineConfig) -> bool:
    """Return whether stage 1 accumulates whole bf16 gradients in fp32."""
    return engine.zero_stage == 1 and recipe.train.precision in ("bf16", "fp8") and engine.offload_optimizer == "none"


def _buckets(recipe: TrainRecipe, engine: EngineConfig, parameters: int) -> int:
    """Bytes of the gradient buckets of stages 2 and 3.

    A half-precision bucket that is reduced in fp32 is copied first; stage 3 joins the parts of each rank in a copy.
    """
    train = recipe.train
    whole = train.precision in ("fp32", "autocast")
    copied = not whole and not train.quantized_gradients and train.gradient_reduction == "fp32"
    weight = 4 if whole else 2
    width = weight + (4 if copied else 0) + (weight if engine.zero_stage == 3 else 0)
    return width * min(parameters, BUCKET) * (engine.zero_stage >= 2)


def _flat_gradients(recipe: TrainRecipe, engine: EngineConfig, parameters: int, world_size: int) -> int:
    """Bytes of the flat copies in which ranks reduce whole sums.

    Sums that are not reduced whole go in `BUCKET`s.
    """
    summed = world_size > 1 and _accumulates_whole_gradients(recipe, engine)
    return 4 * min(parameters, _REDUCED_AT_ONCE) if summed else 0
