"""Memory estimate of a rank in closed form.

The terms follow what DeepSpeed 0.19 keeps (its fp32 copies of fp32 weights included) and what the backward pass of a
block saves. `memory_room.py` compares the sum with the memory available.

Measured on CPU, peak memory of whole runs over the estimate (16.8 M parameters, 2,048 to 4,096 tokens per pass): .93 to
1.05 over eleven cases with torch's CPU build, .95 to 1.05 with a build for GPUs. The lowest are soft caps and selective
checkpointing, the highest rows of many documents. An encoder-decoder: .95 to 1.02 over three cases whose sources and
targets are equally long, as is assumed. `benchmarks/training.py memory` has the cases. Pages of libraries and of token
shards are not counted: the system drops them on demand. Not measured on a GPU, whose allocator's fragmentation is not
counted.

Every term of a pass's activations names what saves it. On CPU they were compared with the tensors that autograd
saves for a block (distinct storages), over attention's implementations, norms, feed-forward layers, experts and
precisions: within 6 %, except for rows of many short documents, whose saved probabilities are up to a third smaller.
"""

from __future__ import annotations

import functools
import importlib.util
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pretrain.config.model import ModelConfig
from pretrain.config.training import EngineConfig, TrainRecipe
from pretrain.data.batch_size import batch_sizes
from pretrain.distributed.layout import parameter_shares
from pretrain.engine.deepspeed_config import BUCKET, SWAP_BUFFERS, SWAPPED_GROUP
from pretrain.finetuning.trained_parameters import trained_count
from pretrain.model.flops import parameter_count, piece_tokens
from pretrain.optim.optimizers import moment_count

_LIVE_PARAMETERS = 1_000_000_000  # DeepSpeed's max_live_parameters: those that stage 3 keeps gathered
_SUB_GROUP = 1_000_000_000  # DeepSpeed's sub_group_size, in elements
_REDUCED_AT_ONCE = 500_000_000  # DeepSpeed's MEMORY_OPT_ALLREDUCE_SIZE, in elements
_SWAPPED_BYTES = 8 << 30  # buffers in host memory for weights in files
_COPY = "copy for checkpoints"  # fp32, of this rank's masters and moments, throughout training
_RUNTIME = {"cpu": 210 << 20, "cuda": 500 << 20}  # torch and DeepSpeed; CUDA's context
_NCCL = 1000 << 20  # NCCL's channels to other ranks
_FRAGMENTED = 0.14  # share of free pieces within the memory that the host's allocator holds; measured 0 to .2
_COMPILER = 90 << 20  # torch's compiler, which selective checkpointing imports
_COMPILED_PRODUCTS = 110 << 20
"""oneDNN's 1,024 compiled products: experts get other rows at every step. 92 MB with AVX-512, 183 MB with AMX."""
_GPU_LIBRARIES = 152 << 20  # libraries of a torch built for GPUs, relocated on the CPU, too; measured with 2.13


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
    recipe: TrainRecipe,
    engine: EngineConfig,
    vocabulary_size: int,
    world_size: int,
    device: Literal["cpu", "cuda"],
    teacher: ModelConfig | None = None,
) -> Estimate:
    """Memory of one rank at the peak of a step.

    `teacher` runs alongside a student.
    """
    every, blocks = parameter_count(recipe.model, vocabulary_size), block_parameters(recipe.model, vocabulary_size)
    # Tensor ranks hold norms and learned positions whole, which are negligible.
    shares = parameter_shares(recipe.model, engine, vocabulary_size, world_size)
    parameters, held = sum(count for count, _ in shares), Counter[str]()
    learning = trained_count(recipe, vocabulary_size) if recipe.train.freezes else parameters
    for number, (count, ranks) in enumerate(shares):
        trained, outside = (learning, learning) if recipe.train.freezes else (count, 0 if number else every - blocks)
        held.update(_state(recipe, engine, (count, trained, moment_count(recipe.optim, trained, outside)), ranks))
    compiler = _COMPILER if device == "cpu" and engine.activation_checkpointing == "selective" else 0
    libraries = _GPU_LIBRARIES if device == "cpu" and _built_for_gpus() else 0
    products = _COMPILED_PRODUCTS if device == "cpu" and recipe.model.moe else 0
    runtime = _RUNTIME[device] + libraries + compiler + products
    on_device = {"runtime": runtime, "activations": activations(recipe, engine, device)}
    on_device |= {"loss": head(recipe, engine, vocabulary_size, device)}
    on_device |= _teacher_bytes(teacher, recipe, engine, vocabulary_size, device)
    on_device |= _ordered_sums(recipe, engine, learning, world_size)
    # Allocated after activations are freed, whose memory the host's allocator keeps:
    flat = _flat_gradients(recipe, engine, learning, world_size)
    reduced = flat if device == "cpu" else max(0, flat - on_device["activations"])
    on_device["buffers of communication"] = reduced + _buckets(recipe, engine, learning)
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


def _ordered_sums(recipe: TrainRecipe, engine: EngineConfig, learning: int, world_size: int) -> dict[str, int]:
    """Bytes of whole gradients in a tree of sums (`engine/fixed_order.py`)."""
    if not engine.rank_invariant:
        return {}
    passes = max(1, max(batch_sizes(recipe.train).sizes) // (engine.micro_batch_size * world_size))
    return {"sums in one order": 4 * learning * (2 + passes.bit_length())}


def _teacher_bytes(
    teacher: ModelConfig | None, recipe: TrainRecipe, engine: EngineConfig, vocabulary_size: int, device: str
) -> dict[str, int]:
    """Bytes of a teacher: whole weights, and its pass beyond the student's."""
    if teacher is None:
        return {}
    one = recipe.model_copy(update={"model": with_layers(teacher, 1)})
    of, rows = _pass_of(one, engine), teacher.head_rows(vocabulary_size)
    size = 4 if recipe.train.precision == "autocast" else of.size
    piece = min(of.tokens, piece_tokens(rows, device))
    kept = of.tokens * of.stream * of.width + 3 * 4 * piece * rows  # hidden states; logits, softmax, and its copy
    block = activations(one, engine.model_copy(update={"activation_checkpointing": "none"}), device)
    passed = max(0, block - activations(recipe, engine, device))  # freed before the student's pass
    return {"teacher": size * parameter_count(teacher, vocabulary_size) + kept + passed}


def block_parameters(model: ModelConfig, vocabulary_size: int) -> int:
    """Parameters of all blocks."""
    return sum(parameters_of_sides(model, vocabulary_size))


def parameters_of_sides(model: ModelConfig, vocabulary_size: int) -> tuple[int, int]:
    """Parameters of the encoder's blocks, and of the others."""

    def blocks(name: str) -> int:
        one, two = (parameter_count(model.model_copy(update={name: count}), vocabulary_size) for count in (1, 2))
        return (two - one) * int(getattr(model, name))

    return blocks("encoder_layers") if model.encoder_layers else 0, blocks("num_hidden_layers")


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


def _state(recipe: TrainRecipe, engine: EngineConfig, counts: tuple[int, int, int], ranks: int) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer state.

    `ranks` share what the stage partitions.

    `counts` are those of parameters, of those that learn, and of the optimizer's moments (two per parameter with AdamW,
    one of Muon's matrices).
    """
    (parameters, learning, moments), stage, precision = counts, engine.zero_stage, recipe.train.precision
    full = precision in ("fp32", "autocast")
    weight, master = (4 if full else 2), (2 if precision == "bf16_masters" else 4)
    piece = -(-learning // ranks)
    values = {
        "parameters": weight * (-(-parameters // ranks) if stage == 3 else parameters),
        "masters": master * piece if stage else 0,
        "moments": master * (-(-moments // ranks) if stage else moments),
        "gradients": weight * learning if stage < 2 else 0,
        "gradient sums": master * piece if stage else 0,
        _COPY: 4 * (piece - (-moments // ranks)),
    }
    if _accumulates_whole_gradients(recipe, engine):
        values["gradient sums"] = 4 * learning
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


# attention.SHORT and cpu_ops.QUERIES, repeated because this imports no torch; a test compares them
SHORT_ROWS, BLOCK = 1024, 128


@dataclass(frozen=True)
class _Pass:
    """Sizes of one pass on one rank."""

    tokens: int
    """Tokens that the rank computes together."""
    size: int
    """Bytes of an element in products."""
    stream: int
    """Bytes of an element of the stream and the norms."""
    width: int
    heads: int
    """Channels of the queries; also of keys and values on CPU, where they are repeated for the heads."""
    keys: int
    inner: int
    """Channels of the feed-forward layers that a token uses."""
    chosen: int
    """Experts that a token uses; 0: the model has none."""


def _pass_of(recipe: TrainRecipe, engine: EngineConfig) -> _Pass:
    model, tensor, precision = recipe.model, engine.tensor_parallel_size, recipe.train.precision
    chosen = 0 if model.moe is None else model.moe.num_experts_per_tok
    return _Pass(
        tokens=engine.micro_batch_size * recipe.train.sequence_length // engine.sequence_parallel_size,
        size=4 if precision == "fp32" else 2,
        stream=4 if precision in ("fp32", "autocast") else 2,
        width=model.hidden_size,
        heads=model.num_attention_heads * model.head_dim // tensor,
        keys=model.num_key_value_heads * model.head_dim // tensor,
        inner=model.intermediate_size // tensor * max(1, chosen),
        chosen=chosen,
    )


def activations(recipe: TrainRecipe, engine: EngineConfig, device: str) -> int:
    """Peak activation bytes of the blocks, with scratch."""
    model, kind, dims = recipe.model, engine.activation_checkpointing, _pass_of(recipe, engine)
    if model.encoder_layers:
        return _pair_activations(recipe, engine, dims, device)
    saved, scratch = _attention_tables(recipe, engine, device)
    whole = dims.tokens * (_attention_bytes(recipe, dims, device) + _feed_forward_bytes(recipe, dims, device)) + saved
    if recipe.train.precision == "autocast":  # bf16 copies of a block's weights
        shares = (parameter_shares(with_layers(recipe.model, count), engine, 1, 1) for count in (1, 2))
        one, two = (sum(held for held, _ in share) for share in shares)
        whole += dims.size * (two - one)
    layers = model.num_hidden_layers
    if kind == "none":
        return layers * whole + scratch
    products = (
        dims.width * (1 + max(1, dims.chosen)) + dims.heads + 2 * dims.keys + (2 if model.gated else 1) * dims.inner
    )
    if device != "cpu" or (recipe.train.sequence_length > SHORT_ROWS and model.attn_logit_softcapping is None):
        products += dims.heads  # attention's result, where it is one kernel
    kept = dims.stream * dims.width + (dims.size * products if kind == "selective" else 0)
    return layers * dims.tokens * kept + whole + scratch


def _pair_activations(recipe: TrainRecipe, engine: EngineConfig, of: _Pass, device: str) -> int:
    """Peak activation bytes of an encoder-decoder.

    Sources and targets are the shares of `train.sides`, as in `flops_per_token`. A block of the decoder also saves the
    keys and values of sources, and queries, result, input and sum of targets. Each attention keeps the mask that its
    kernel adds to the logits. A dropped output keeps its factors, and its hash takes four words for each element of one
    sub-layer.
    """
    model, shares = recipe.model, recipe.train.sides
    sources, targets = (int(share * of.tokens) for share in shares)
    wide, long = (int(share * recipe.train.sequence_length) for share in shares)
    dropped = of.size * of.width if model.dropout else 0
    block = _attention_bytes(recipe, of, device) + _feed_forward_bytes(recipe, of, device)
    keys = of.heads if device == "cpu" else of.keys
    masked = of.size * engine.micro_batch_size
    cross = of.stream * of.width + of.size * (2 * of.heads + of.width)
    encoder = sources * (block + 2 * dropped) + masked * wide**2
    decoder = targets * (block + cross + 3 * dropped) + sources * 2 * of.size * keys + masked * long * (long + wide)
    products = 2 * of.width + of.heads + 2 * of.keys + of.inner
    kept = of.stream * of.width + (of.size * products if engine.activation_checkpointing == "selective" else 0)
    ends = (sources + targets) * (of.stream * of.width + dropped)
    ends += max(sources, targets) * 16 * of.width if model.dropout else 0
    if engine.activation_checkpointing == "none":
        return model.encoder_layers * encoder + model.num_hidden_layers * decoder + ends
    inputs = model.encoder_layers * sources + model.num_hidden_layers * targets
    return inputs * kept + max(encoder, decoder) + ends


def _attention_bytes(recipe: TrainRecipe, of: _Pass, device: str) -> int:
    """Bytes per token that a block's norms and attention save."""
    model = recipe.model
    keys = of.heads if device == "cpu" else of.keys
    norms = 4 if model.norm_position == "sandwich" else 2
    found = norms * of.stream * of.width + of.size * (2 * of.heads + 2 * keys)
    copies = 3 if recipe.train.precision == "autocast" else 1  # each product casts what it reads
    found += copies * of.size * of.width
    return found + (of.size * (of.heads + of.keys) if model.qk_norm else 0)


def _feed_forward_bytes(recipe: TrainRecipe, of: _Pass, device: str) -> int:
    """Bytes per token that a feed-forward layer saves.

    Its input and its activations.
    """
    kind = recipe.model.feed_forward
    gated = recipe.model.gated
    kept = {"swiglu": 3 if device == "cpu" else 4, "geglu": 4, "relu": 1}.get(
        kind, 2
    )  # cpu_ops.SwiGlu keeps no sigmoid
    copies = 2 if gated and recipe.train.precision == "autocast" else 1
    found = of.size * (copies * of.width + kept * of.inner)
    if of.chosen:  # the router's fp32 copy; a copy of the token for each expert, and each one's output
        found += (4 if of.size < 4 else 0) * of.width + of.chosen * (2 * of.size * of.width + 36)
        found -= of.size * of.width
    return found


def _attention_tables(recipe: TrainRecipe, engine: EngineConfig, device: str) -> tuple[int, int]:
    """Bytes that attention keeps for token pairs, and its scratch, per block.

    Short rows on CPU keep their probabilities, for each query those of the keys up to the end of its block. Longer rows
    with several documents, or a window, keep the mask that the kernel adds to its logits. Without FlexAttention a soft
    cap is computed by its formula: tanh and softmax in fp32, and the probabilities.
    """
    if device != "cpu":
        return 0, 0
    model, length, rows = recipe.model, recipe.train.sequence_length, engine.micro_batch_size
    size = 4 if recipe.train.precision == "fp32" else 2
    heads = rows * model.num_attention_heads // (engine.sequence_parallel_size * engine.tensor_parallel_size)
    if model.attn_logit_softcapping is not None:
        pairs = heads * length**2
        return pairs * (8 + (size if size < 4 else 0)), pairs * 12
    if length <= SHORT_ROWS:
        return heads * length * (length + min(length, BLOCK)) // 2 * size, 0
    return rows * length**2 * size, rows * length**2


def with_layers(model: ModelConfig, count: int) -> ModelConfig:
    """The model with another number of layers."""
    return model.model_copy(update={"num_hidden_layers": count})


def head(recipe: TrainRecipe, engine: EngineConfig, vocabulary_size: int, device: str) -> int:
    """Peak bytes of `loss.py`.

    A piece of logits and the sums, or the gradients and their product.
    """
    of, rows = _pass_of(recipe, engine), recipe.model.head_rows(vocabulary_size) // engine.tensor_parallel_size
    if recipe.model.encoder_layers:
        of = replace(of, tokens=int(recipe.train.sides[1] * of.tokens))
    if recipe.train.precision == "fp16":
        return of.tokens * rows * (of.size + 8)
    piece = min(of.tokens, piece_tokens(rows, device))
    part = of.size * rows * of.width
    total = 4 * rows * of.width if piece < of.tokens or of.stream != of.size else 0  # fp32 sums, or gradients
    cast = part if of.stream != of.size else 0
    forward = piece * rows * of.size + part + total + cast + of.tokens * of.size * of.width
    backward = 2 * of.stream * (rows + of.tokens) * of.width
    return max(forward, backward)
