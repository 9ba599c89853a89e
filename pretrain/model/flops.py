"""Parameter, FLOP and activation counts in closed form.

It imports no torch.
"""

from __future__ import annotations

from pretrain.config.model import ModelConfig, padded_vocabulary

_NORMS_OF_BLOCK = {"pre": 2, "post": 2, "sandwich": 4, "reordered": 2}
_PIECE_TOKENS = 1024  # least tokens of a piece: each adds a gradient of the projection's size
_PIECE_LOGITS = {"cpu": 1 << 21, "cuda": 1 << 29}  # CUDA: few pieces, as each adds a gradient in fp32


def parameter_count(config: ModelConfig, vocabulary_size: int) -> int:
    """Parameters, padding included, tied ones once."""
    experts = 1 if config.moe is None else config.moe.num_local_experts
    return _embeddings(config, vocabulary_size) + _body(config, vocabulary_size, experts)


def active_parameter_count(config: ModelConfig, vocabulary_size: int) -> int:
    """Parameters that one token meets: of experts only those that it uses."""
    return _embeddings(config, vocabulary_size) + _body(config, vocabulary_size, _experts_used(config))


def expert_parameter_count(config: ModelConfig) -> int:
    """Parameters of all experts, without their routers."""
    if config.moe is None:
        return 0
    return config.num_hidden_layers * (_block(config, config.moe.num_local_experts) - _block(config, 0))


def parameter_shapes(config: ModelConfig, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the model's parameters by name, in the model's order."""
    width, table = config.hidden_size, (padded_vocabulary(vocabulary_size), config.hidden_size)
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": table}
    if config.position_embedding == "learned":
        found["model.embed_positions.weight"] = (config.max_position_embeddings, width)
    if config.embedding_norm:
        found |= _norm_shapes(config, "model.embedding_norm")
    for layer in range(config.num_hidden_layers):
        found |= _block_shapes(config, f"model.layers.{layer}")
    if config.norm_position != "post":
        found |= _norm_shapes(config, "model.norm")
    return found if config.tied else {**found, "lm_head.weight": (config.head_rows(vocabulary_size), width)}


def _block_shapes(config: ModelConfig, block: str) -> dict[str, tuple[int, ...]]:
    width, narrow = config.hidden_size, config.num_key_value_heads * config.head_dim
    wide, order, attention = config.attention_width, config.norm_position, f"{block}.self_attn"
    found = {} if order == "reordered" else _norm_shapes(config, f"{block}.input_layernorm")
    for name, inputs, outputs in (("q", width, wide), ("k", width, narrow), ("v", width, narrow), ("o", wide, width)):
        found |= _linear_shapes(config, f"{attention}.{name}_proj", inputs, outputs)
    if config.qk_norm and config.norm_weights:
        sizes = (wide, narrow) if config.qk_norm_whole else (config.head_dim, config.head_dim)
        found |= {f"{attention}.{name}_norm.weight": (size,) for name, size in zip("qk", sizes, strict=True)}
    found |= _norm_shapes(config, f"{block}.post_attention_layernorm")
    if order == "sandwich":
        found |= _norm_shapes(config, f"{block}.pre_feedforward_layernorm")
    if order in ("sandwich", "reordered"):
        found |= _norm_shapes(config, f"{block}.post_feedforward_layernorm")
    if config.moe is None:
        return found | _feed_forward_shapes(config, f"{block}.mlp")
    found[f"{block}.mlp.gate.weight"] = (config.moe.num_local_experts, width)
    for expert in range(config.moe.num_local_experts):
        found |= _feed_forward_shapes(config, f"{block}.mlp.experts.{expert}")
    return found


def _feed_forward_shapes(config: ModelConfig, name: str) -> dict[str, tuple[int, ...]]:
    width, inner = config.hidden_size, config.intermediate_size
    found = _linear_shapes(config, f"{name}.gate_proj", width, inner) if config.gated else {}
    found |= _linear_shapes(config, f"{name}.up_proj", width, inner)
    return found | _linear_shapes(config, f"{name}.down_proj", inner, width)


def _linear_shapes(config: ModelConfig, name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if config.bias else {})}


def _norm_shapes(config: ModelConfig, name: str) -> dict[str, tuple[int, ...]]:
    parts = ("weight", "bias") if config.norm == "layernorm" and config.bias else ("weight",)
    return {f"{name}.{part}": (config.hidden_size,) for part in parts} if config.norm_weights else {}


def flops_per_token(
    config: ModelConfig, vocabulary_size: int, sequence_length: int, sides: tuple[float, float] = (0.5, 0.5)
) -> int:
    """Floating-point operations of forward and backward per token.

    They are 6 N + 12 x width x tokens seen.

    N counts every weight that a token multiplies: of experts those that it uses, the output projection tied or not, and
    not the look-ups (embedding, learned positions). Attention's width is that of all query heads, and tokens seen are
    added up over layers. The term takes each row as one document and both
    triangles, as PaLM does (arXiv:2204.02311, appendix B), so that MFU compares with others'; a layer with a window
    sees that many tokens. What activation checkpointing computes twice is not counted. `sides`
    are an encoder-decoder's tokens of sources and of targets for each token of a row.
    """
    weights = _body(config, vocabulary_size, _experts_used(config))
    if config.tied:
        weights += padded_vocabulary(vocabulary_size) * config.hidden_size
    if config.encoder_layers:
        return _flops_per_token_of_pairs(config, weights, sequence_length, sides)
    windows = (config.window(layer) for layer in range(config.num_hidden_layers))
    seen = sum(min(sequence_length, window or sequence_length) for window in windows)
    return 6 * weights + 12 * config.attention_width * seen


def _flops_per_token_of_pairs(
    config: ModelConfig, weights: int, sequence_length: int, sides: tuple[float, float]
) -> int:
    """FLOPs per token of an encoder-decoder.

    The encoder's weights are met by sources, the others by targets. The encoder sees a row's sources, the decoder its
    targets and its sources.
    """
    source, target = sides
    encoder = _pair_blocks(config.model_copy(update={"num_hidden_layers": 0}))
    met = source * encoder + target * (weights - encoder)
    sources, targets = int(source * sequence_length), int(target * sequence_length)
    seen = config.encoder_layers * source * sources + config.num_hidden_layers * target * (targets + sources)
    return round(6 * met + 12 * config.attention_width * seen)


def block_weights(config: ModelConfig) -> int:
    """Weights of a block that one token multiplies."""
    return _block(config, _experts_used(config))


def piece_tokens(vocabulary: int, device: str) -> int:
    """Tokens whose logits exist at once (see `loss.py`)."""
    return max(_PIECE_TOKENS, _PIECE_LOGITS["cpu" if device == "cpu" else "cuda"] // vocabulary)


def _experts_used(config: ModelConfig) -> int:
    return 1 if config.moe is None else config.moe.num_experts_per_tok


def _embeddings(config: ModelConfig, vocabulary_size: int) -> int:
    """The tables that tokens and positions are looked up in."""
    rows = padded_vocabulary(vocabulary_size)
    if config.position_embedding == "learned":
        rows += config.max_position_embeddings
    return rows * config.hidden_size


def _body(config: ModelConfig, vocabulary_size: int, experts: int) -> int:
    """All but the look-ups, with this many experts in each layer.

    An untied output projection belongs to it.
    """
    width = config.hidden_size
    output = 0 if config.tied else config.head_rows(vocabulary_size) * width
    if config.encoder_layers:
        return output + _pair_blocks(config)
    norms = int(config.norm_position != "post") + int(config.embedding_norm)
    return output + norms * _norm(config) + config.num_hidden_layers * _block(config, experts)


def _pair_blocks(config: ModelConfig) -> int:
    """Blocks of an encoder-decoder, whose attention has no biases (arXiv:1706.03762, section 3).

    A block of the decoder has a second attention and a third norm.
    """
    one = config.model_copy(update={"encoder_layers": 0, "bias": False})
    attention = 4 * config.hidden_size * config.attention_width
    biases = 0
    if config.bias:
        biases = config.intermediate_size * (2 if config.gated else 1) + config.hidden_size
    plain = _block(one, 1) - 2 * _norm(one) + biases
    encoder, decoder = plain + 2 * _norm(config), plain + attention + 3 * _norm(config)
    return config.encoder_layers * encoder + config.num_hidden_layers * decoder


def _norm(config: ModelConfig) -> int:
    """One norm over the stream."""
    if not config.norm_weights:
        return 0
    return config.hidden_size * (2 if config.norm == "layernorm" and config.bias else 1)


def _linear(inputs: int, outputs: int, bias: bool) -> int:
    return inputs * outputs + (outputs if bias else 0)


def _block(config: ModelConfig, experts: int) -> int:
    width, inner, bias = config.hidden_size, config.intermediate_size, config.bias
    narrow = config.num_key_value_heads * config.head_dim
    heads = config.attention_width
    attention = _linear(width, heads, bias) + _linear(heads, width, bias) + 2 * _linear(width, narrow, bias)
    if config.qk_norm and config.norm_weights:
        attention += heads + narrow if config.qk_norm_whole else 2 * config.head_dim
    maps_in = 2 if config.gated else 1
    expert = maps_in * _linear(width, inner, bias) + _linear(inner, width, bias)
    router = 0 if config.moe is None else width * config.moe.num_local_experts
    return attention + experts * expert + router + _NORMS_OF_BLOCK[config.norm_position] * _norm(config)
