"""Activation memory of a forward pass in closed form.

It is a part of `memory.py`. Every term names what saves it. On CPU they were compared with the tensors that autograd
saves for a block (distinct storages), over attention's implementations, norms, feed-forward layers, experts and
precisions: within 6 %, except for rows of many short documents, whose saved probabilities are up to a third smaller.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.config.model import ModelConfig, padded_vocabulary
from pretrain.config.training import EngineConfig, TrainRecipe
from pretrain.distributed.layout import parameter_shares
from pretrain.model.flops import piece_tokens

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

    They are those of its input and its activations.
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
    """The model with so many layers."""
    return model.model_copy(update={"num_hidden_layers": count})


def head(recipe: TrainRecipe, engine: EngineConfig, vocabulary_size: int, device: str) -> int:
    """Peak bytes of `loss.py`.

    They are those of a piece of logits and the sums, or of the gradients and their product.
    """
    of, rows = _pass_of(recipe, engine), padded_vocabulary(vocabulary_size) // engine.tensor_parallel_size
    if recipe.train.precision == "fp16":
        return of.tokens * rows * (of.size + 8)
    piece = min(of.tokens, piece_tokens(rows, device))
    part = of.size * rows * of.width
    total = 4 * rows * of.width if piece < of.tokens or of.stream != of.size else 0  # fp32 sums, or gradients
    cast = part if of.stream != of.size else 0
    forward = piece * rows * of.size + part + total + cast + of.tokens * of.size * of.width
    backward = 2 * of.stream * (rows + of.tokens) * of.width
    return max(forward, backward)
