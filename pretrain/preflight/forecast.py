"""Roofline forecast of a step on GPUs.

The parts of a step are summed; communication counts only where it outlasts the computation it overlaps. Promise: an
estimate for comparing settings, never a measurement (`benchmarks/training.py gpu` measures). Imports no torch.

    products    6 FLOPs per token and weight that this rank holds; 8 in a block that is recomputed
    attention   4 x keys x width per token and block forward, 2.5 times that backward; see `_keys`
    between     bytes that norms, rotation, residuals and activations read and write, after fusion
    loss        bytes of the logits: written by the product, read and overwritten by one kernel, read by two products
    update      bytes of gradients, sums, masters and moments
    waits       DeepSpeed's waits for the device in overlapped reduction, at stage 2
    collectives a ring: (n - 1) / n x bytes / bandwidth + (n - 1) x hop (arXiv:2207.00032, appendix; NCCL's tests)

Half of an encoder-decoder's tokens are sources, as in `flops_per_token`; its cross-attention reads them all.

Assumptions for an H100: 989.4 TFLOP/s and 3.35 TB/s (NVIDIA's data sheet, SXM5), of which copies reach 3.0; products
reach 620 TFLOP/s at width 768 and 680 from 2048 on; attention reaches 300 and 230 (forward, backward) with heads of 64,
400 and 320 with wider ones (FlexAttention's own figures); rings reach 360 GB/s within a node (NVLink 4, 450 GB/s each
way) and 320 between nodes (8 x 400 Gb/s InfiniBand per node, 80 % of it), or what a `Machine` has.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from pretrain.config.model import ModelConfig
from pretrain.config.training import EngineConfig, TrainRecipe, gradient_accumulation_steps
from pretrain.distributed.layout import data_ranks, parameter_shares
from pretrain.distributed.process_group import Ranks
from pretrain.engine.deepspeed_config import BUCKET, bytes_per_gradient, compiles_blocks, many_owners
from pretrain.finetuning.trained_parameters import trained_count, training_flops
from pretrain.model.flops import active_parameter_count, expert_parameter_count, parameter_count, piece_tokens
from pretrain.preflight.memory import parameters_of_sides

PEAK, COPIES = 989.4e12, 3.0e12
_WAIT = 0.25e-3  # the kernel queue drains and refills
_BLOCK = 128  # tokens along a side of attention's blocks


@dataclass(frozen=True)
class Machine:
    """Rates of a device and its networks, by default an H100's.

    In operations or bytes per second.
    """

    peak: float = PEAK
    copies: float = COPIES
    narrow: float = 620e12
    """Products of width 768."""
    wide: float = 680e12
    """Products of width 2048 and more."""
    small_heads: tuple[float, float] = (300e12, 230e12)
    """Attention with heads of up to 64 channels: forward, backward."""
    large_heads: tuple[float, float] = (400e12, 320e12)
    in_node: float = 360e9
    """A ring within a node."""
    network: float = 320e9
    """A ring between nodes."""
    hop: float = 4e-6
    """Seconds from one rank of a ring to the next."""
    rows_apart: bool = True
    """Attention leaves out the keys of earlier documents in each row by itself; on a CPU (rows of up to 1,024 tokens)
    only those that no row of the pass needs."""


H100 = Machine()


@dataclass(frozen=True)
class Forecast:
    """Predicted time of one optimizer step on one rank."""

    seconds: dict[str, float]
    """Seconds by part; of communication only what computation does not hide."""
    hidden: float
    """Seconds of communication that overlap computation."""
    flops: float
    """Floating-point operations that the model needs (`training_flops`), without recomputation."""
    within: float
    """Seconds of communication within blocks (tensor, sequence and expert ranks), a part of `communication`.

    The fit to published runs (`benchmarks/`) needs it.
    """
    peak: float = PEAK
    """Floating-point operations per second of the data sheet."""

    @property
    def step(self) -> float:
        """Seconds of the whole step."""
        return sum(self.seconds.values())

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization: share of the data sheet's peak."""
        return self.flops / self.step / self.peak

    def in_words(self) -> str:
        """One line."""
        parts = ", ".join(f"{name} {1e3 * part:,.0f} ms" for name, part in self.seconds.items() if part >= 0.5e-3)
        return (
            f"{self.step:,.3g} s per step, {100 * self.mfu:.0f} % of an H100's bf16 peak, by a roofline estimate "
            f"(not measured): {parts}; {1e3 * self.hidden:,.0f} ms of communication overlaps computation"
        )


@dataclass(frozen=True)
class _Work:
    """Sizes that several parts of the estimate need."""

    model: ModelConfig
    engine: EngineConfig
    ranks: Ranks
    tokens: int
    """Tokens of one pass on this rank."""
    passes: int
    length: int
    block: int
    """Parameters of a block that one token uses, on this rank."""
    stored: int
    """Parameters of a block on this rank, its experts included."""
    outside: int
    """Embedding, head, norms."""
    vocabulary: int
    machine: Machine
    reduced: float
    """Bytes per gradient element sent in the reduction."""
    shares: list[tuple[int, int, int]]
    """Numbers of a rank's trained parameters and of their holders, and these' distance."""
    trained: float
    """Share of the weights whose gradients are computed."""
    document: float | None
    """Mean tokens of a document; None: a row is one document."""
    of_pairs: tuple[float, float]
    """Tokens of sources and of targets for each token of a row."""

    @property
    def targets(self) -> int:
        """Tokens of one pass that are predicted."""
        return int(self.of_pairs[1] * self.tokens) if self.model.encoder_layers else self.tokens

    @property
    def sides(self) -> float:
        """Blocks that a token passes; a cross-attention is half of one."""
        layers, (source, target) = self.model.num_hidden_layers, self.of_pairs
        return source * self.model.encoder_layers + target * 1.5 * layers if self.model.encoder_layers else layers

    @property
    def parameters(self) -> int:
        """Parameters of this rank's part of the model."""
        return sum(count for count, *_ in self.shares)

    @property
    def node(self) -> int:
        """ZeRO ranks on one node."""
        return max(1, self.ranks.local_world_size // self.engine.tensor_parallel_size)

    @property
    def zero_ranks(self) -> int:
        """Ranks over which ZeRO partitions state."""
        return self.ranks.world_size // self.engine.tensor_parallel_size


def forecast(
    recipe: TrainRecipe,
    engine: EngineConfig,
    vocabulary_size: int,
    ranks: Ranks,
    machine: Machine = H100,
    teacher: ModelConfig | None = None,
    document_tokens: float | None = None,
) -> Forecast:
    """Roofline of a step in bf16, compiled.

    `teacher` runs alongside a student. Without the mean length of a document a row is one, the most that attention
    can cost.
    """
    work = _work(recipe, engine, vocabulary_size, ranks, machine, document_tokens)
    forward, backward = _computed(work)
    kept = {name: work.passes * (forward[name] + backward[name]) for name in forward}
    if teacher is not None:
        alone = recipe.model_copy(update={"model": teacher})
        taught = _work(alone, engine, vocabulary_size, ranks, machine, document_tokens)
        head = 2 * taught.vocabulary * teacher.hidden_size * taught.tokens / _products(taught)
        kept["teacher"] = work.passes * (sum(_computed(taught)[0].values()) - 2 * head)  # its loss has one product
    kept |= {"loss": work.passes * _loss(work), "update": _update(work), "waits": _waits(work)}
    hidden, exposed = _communication(work, sum(forward.values()), sum(backward.values()))
    within = work.passes * _within_blocks(work)
    flops = training_flops(recipe, vocabulary_size) * work.tokens * work.passes
    parts = {**kept, "communication": exposed + within}
    return Forecast(parts, hidden, flops / engine.tensor_parallel_size, within, machine.peak)


def _work(
    recipe: TrainRecipe,
    engine: EngineConfig,
    vocabulary_size: int,
    ranks: Ranks,
    machine: Machine,
    document_tokens: float | None,
) -> _Work:
    model, tensor = recipe.model, engine.tensor_parallel_size
    layers, one = model.num_hidden_layers, model.model_copy(update={"num_hidden_layers": 1})
    two = model.model_copy(update={"num_hidden_layers": 2})
    stored, met = (
        count(two, vocabulary_size) - count(one, vocabulary_size) for count in (parameter_count, active_parameter_count)
    )
    tokens = engine.micro_batch_size * recipe.train.sequence_length // engine.sequence_parallel_size
    copies = data_ranks(ranks.world_size, engine)
    passes = gradient_accumulation_steps(recipe.train.global_batch_size, engine.micro_batch_size, copies)
    if model.encoder_layers:  # with as many blocks as the decoder, each with a share of both sides
        blocks = parameters_of_sides(model, vocabulary_size)
        stored = sum(blocks) // layers
        met = int(sum(share * count for share, count in zip(recipe.train.sides, blocks, strict=True))) // layers
    outside = parameter_count(model, vocabulary_size) - layers * stored
    experts = expert_parameter_count(one)
    elsewhere = experts - experts // engine.expert_parallel_size
    sizes = (recipe.train.sequence_length, met // tensor, stored // tensor - elsewhere, outside // tensor)
    shares = parameter_shares(model, engine, vocabulary_size, ranks.world_size)
    trained = trained_count(recipe, vocabulary_size)
    if recipe.train.freezes:
        shares = [(trained, shares[0][1])]
    distant = [(count, holders, ranks.world_size // tensor // holders) for count, holders in shares]
    return _Work(
        model,
        engine,
        ranks,
        tokens,
        passes,
        *sizes,
        model.head_rows(vocabulary_size),
        machine,
        bytes_per_gradient(recipe.train),
        distant,
        min(1.0, trained / parameter_count(model, vocabulary_size)),
        document_tokens,
        recipe.train.sides,
    )


def _products(work: _Work) -> float:
    """FLOP/s of products of this width, interpolated between two assumed rates."""
    share = min(1.0, max(0.0, (work.model.hidden_size - 768) / (2048 - 768)))
    return work.machine.narrow + share * (work.machine.wide - work.machine.narrow)


def _computed(work: _Work) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of a pass by part, forward and backward."""
    model, engine, layers = work.model, work.engine, work.model.num_hidden_layers
    # Selective checkpointing keeps the results of products and of attention's kernel.
    computed_again = engine.activation_checkpointing == "full"
    read_again = engine.activation_checkpointing != "none"
    rate, head = _products(work), work.vocabulary * model.hidden_size // engine.tensor_parallel_size
    body = 2 * layers * work.block * work.tokens / rate
    output = 2 * head * work.targets / rate  # the loss computes all three of its products in the forward pass
    fast = work.machine.large_heads if model.head_dim > 64 else work.machine.small_heads
    width = model.attention_width // engine.tensor_parallel_size
    if model.encoder_layers:
        source, target = work.of_pairs
        wide, long = int(source * work.length), int(target * work.length)
        keys = source * model.encoder_layers * wide + target * layers * (wide + _keys(long, None))
    else:
        nearest = _keys_of_documents(work)
        keys = sum(min(nearest, _keys(work.length, model.window(layer))) for layer in range(layers))
    operations = 4 * keys * width * work.tokens
    stream, inner = 2 * work.tokens * model.hidden_size, 2 * work.tokens * model.intermediate_size
    inner = inner // engine.tensor_parallel_size * (1 if model.moe is None else model.moe.num_experts_per_tok)
    there = work.sides * (14 * stream + 3 * inner) / work.machine.copies
    back = work.sides * (22 * stream + 6 * inner) / work.machine.copies
    forward = {"products": body + 3 * output, "attention": operations / fast[0], "between": there}
    backward = {
        "products": (1 + work.trained + computed_again) * body,
        "attention": 2.5 * operations / fast[1] + computed_again * operations / fast[0],
        "between": back + read_again * there,
    }
    return forward, backward


def _keys(length: int, window: int | None) -> float:
    """Keys that attention multiplies per query, on average.

    The row is one document.

    The mask leaves w - w^2 / (2 length) of them, w the window or else the length; the block on the diagonal and the
    one at the window's far edge are computed whole, of which half a block each is masked.
    """
    seen = min(length, window or length)
    return seen - seen**2 / (2 * length) + _BLOCK / 2 * (2 - seen / length)


def _keys_of_documents(work: _Work) -> float:
    """Keys that attention multiplies per query, where documents are shorter than rows.

    A block of queries begins a share of a document after the document does, evenly distributed, and reads the keys from
    there to its own end. Where rows share their blocks, the earliest of them counts. Documents count as of one length.
    """
    if work.document is None:
        return math.inf
    rows = 1 if work.machine.rows_apart else work.engine.micro_batch_size
    return work.document * rows / (rows + 1) + _BLOCK


def _loss(work: _Work) -> float:
    """Seconds of a pass, without its products.

    Four passes over bf16 logits, and an fp32 sum of the output weights' gradient.
    """
    pieces = work.targets / min(work.targets, piece_tokens(work.vocabulary, "cuda"))
    weight = work.vocabulary * work.model.hidden_size
    return (4 * 2 * work.targets * work.vocabulary + pieces * 10 * weight) / work.machine.copies


def _update(work: _Work) -> float:
    """Seconds of a step.

    It puts gradients into fp32 sums in each pass, then computes norms, clipping, AdamW and the copy back.
    """
    stage, every = work.engine.zero_stage, work.parameters
    own = sum(held / ranks for held, ranks, _ in work.shares) if stage else every  # stage 0 partitions nothing
    # Stage 0 adds to fp32 gradients in place; stages 2 and 3 copy into buckets and add up their own part.
    summed = {0: 12 * every, 1: 20 * every}.get(stage, 8 * every + 12 * own)
    once = (24 * every if stage == 1 else 0) + 46 * own
    return (work.passes * summed + once) / work.machine.copies


def _waits(work: _Work) -> float:
    """Seconds per step of DeepSpeed's waits for the device.

    At stage 2 there is one per backward pass, and one before each reduction to an owner. Where ranks divide experts
    the host waits in each layer, for the numbers of tokens.
    """
    stage, ranks = work.engine.zero_stage, work.zero_ranks
    times = 0 if work.engine.expert_parallel_size == 1 else 1 if work.engine.activation_checkpointing == "none" else 2
    layers = times * work.passes * _WAIT * work.model.num_hidden_layers
    if stage != 2 or ranks == 1:
        return layers
    buckets = work.parameters / BUCKET
    owners = 0.0 if many_owners(work.parameters, ranks) else buckets + ranks
    return work.passes * _WAIT * (1 + owners) + layers


def _ring(work: _Work, count: float, ranks: int, apart: int = 1) -> float:
    """Seconds to gather, or to reduce and scatter, `count` bytes among `ranks`.

    The ranks are every `apart`-th one; the rings of the ranks between them share a node's network.
    """
    inside = ranks * apart <= work.node
    speed = work.machine.in_node if inside else work.machine.network / min(apart, work.node)
    return (ranks - 1) / ranks * count / speed + (ranks - 1) * work.machine.hop


def _exchange(work: _Work, count: float, ranks: int) -> float:
    """Seconds of an all-to-all of `count` bytes of each of `ranks`.

    What leaves a node shares its network with that of its other ranks.
    """
    if ranks <= work.node:
        return _ring(work, count, ranks)
    return (ranks - work.node) / ranks * count * work.node / work.machine.network + (ranks - 1) * work.machine.hop


def _communication(work: _Work, forward: float, backward: float) -> tuple[float, float]:
    """Seconds of ZeRO's communication per step: hidden behind computation, and exposed."""
    engine, ranks = work.engine, work.zero_ranks
    every, ring = work.parameters, functools.partial(_ring, work)
    update = sum(ring(2 * held, *sharing) for held, *sharing in work.shares)  # weights after it, at stages 1 and 2
    if engine.zero_stage <= 1:  # one all-reduce of the sums of a step; at stage 0 each rank has all weights already
        summed = sum(2 * ring(work.reduced * held, *sharing) for held, *sharing in work.shares)
        return 0.0, summed + (update if engine.zero_stage else 0.0)
    times = -(-every // BUCKET)
    reduced = sum(times * ring(work.reduced * held // times, *sharing) for held, *sharing in work.shares)
    if engine.zero_stage == 2:
        reduced *= 2 if many_owners(every, ranks) else 1
        overlapped = backward if compiles_blocks(engine) or not engine.compile else 0.0
        hidden = min(reduced * (1 - 1 / times), overlapped)
        return work.passes * hidden, work.passes * (reduced - hidden) + update
    layers = work.model.num_hidden_layers
    blocks = {True: 2 * work.stored, False: 2 * work.outside}
    gather = layers * ring(blocks[True], ranks) + ring(blocks[False], ranks)
    copies = engine.hpz_partition_size if engine.hpz_partition_size > 1 else ranks
    again = layers * ring(blocks[True], copies) + ring(blocks[False], copies)
    ends = ring(blocks[True], ranks) + ring(work.reduced * BUCKET, ranks)  # the first gather, the last reduction
    hidden = min(gather, forward) + min(again + reduced, backward)
    exposed = gather + again + reduced - hidden + ends
    return work.passes * hidden, work.passes * exposed


def _within_blocks(work: _Work) -> float:
    """Seconds per pass of tensor, sequence and expert parallelism.

    There are four all-reduces, and eight and four all-to-alls per block; tensor ranks also sum embeddings and the
    loss's gradient. A recomputed block exchanges its tokens again, whatever else of it is kept.
    """
    engine = work.engine
    stream = 2 * work.tokens * work.model.hidden_size
    again = 1.5 if engine.activation_checkpointing == "full" else 1.0
    summed = 2 * _ring(work, stream, engine.tensor_parallel_size)
    sequence = 8 * _ring(work, stream, engine.sequence_parallel_size) / max(1, engine.sequence_parallel_size)
    used = 0 if work.model.moe is None else work.model.moe.num_experts_per_tok
    experts = 4 * _exchange(work, used * stream, engine.expert_parallel_size)
    experts *= 1.0 if engine.activation_checkpointing == "none" else 1.5
    return work.model.num_hidden_layers * (again * (4 * summed + sequence) + experts) + 2 * summed
