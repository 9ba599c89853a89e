"""Parameter, FLOP and activation counts in closed form.

It imports no torch.
"""

from __future__ import annotations

from pretrain.config.model import ModelConfig, padded_vocabulary

_NORMS_OF_BLOCK = {"pre": 2, "post": 2, "sandwich": 4, "reordered": 2}
_PIECE_TOKENS = 1024  # at least: each piece adds a gradient of the projection's size
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


def flops_per_token(config: ModelConfig, vocabulary_size: int, sequence_length: int) -> int:
    """Floating-point operations of forward and backward per token.

    They are 6 N + 12 x width x tokens seen.

    N counts every weight that a token multiplies: of experts those that it uses, the output projection tied or not, and
    not the look-ups (embedding, learned positions). Attention's width is that of all query heads, and tokens seen are
    added up over layers. The term takes each row as one document and both
    triangles, as PaLM does (arXiv:2204.02311, appendix B), so that MFU compares with others'; a layer with a window
    sees that many tokens. What activation checkpointing computes twice is not counted.
    """
    weights = _body(config, vocabulary_size, _experts_used(config))
    if config.tied:
        weights += padded_vocabulary(vocabulary_size) * config.hidden_size
    if config.encoder_layers:
        return _flops_per_token_of_pairs(config, weights, sequence_length)
    windows = (config.window(layer) for layer in range(config.num_hidden_layers))
    seen = sum(min(sequence_length, window or sequence_length) for window in windows)
    return 6 * weights + 12 * config.attention_width * seen


def _flops_per_token_of_pairs(config: ModelConfig, weights: int, sequence_length: int) -> int:
    """FLOPs per token of an encoder-decoder; half are sources.

    Each weight is met by half of the tokens. The two sides see half a row each: the encoder's and the decoder's own
    half, and the decoder's the encoder's too.
    """
    layers = config.encoder_layers + 2 * config.num_hidden_layers
    return 3 * weights + 12 * config.attention_width * (sequence_length // 2) * layers // 2


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
    """All but the look-ups, with so many experts in each layer.

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
