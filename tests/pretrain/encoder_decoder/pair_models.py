"""Small encoder-decoders, rows of random pairs, and the same model in torch's own modules."""

from __future__ import annotations

from typing import Any

import torch

from pretrain.config.model import ModelConfig
from pretrain.encoder_decoder.model_of_pairs import EncoderDecoder
from pretrain.model.decoder import Batch
from pretrain.model.init import initial_weight

VOCABULARY, LENGTH, END = 96, 24, 0
Pair = tuple[list[int], list[int]]


def small(**changes: Any) -> ModelConfig:
    """The original Transformer, 32 channels wide."""
    values = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "encoder_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64,
        "position_embedding": "sinusoidal", "norm": "layernorm", "norm_position": "post", "feed_forward": "relu",
        "bias": True, "tie_word_embeddings": True, "initialisation": "xavier",
    }  # fmt: skip
    return ModelConfig(**{**values, **changes})


def drawn_weight(config: ModelConfig, seed: int, name: str, shape: torch.Size) -> torch.Tensor:
    """Initial weights; biases and norms, which begin at 0 and 1, are moved, so that a test sees each of them."""
    weight = initial_weight(name, shape, config, seed)
    if len(shape) == 1:
        weight = weight + 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(len(name) + seed))
    return weight


def made(config: ModelConfig, seed: int = 0) -> EncoderDecoder:
    model = EncoderDecoder(config, VOCABULARY)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(drawn_weight(config, seed, name, parameter.shape))
    return model


def random_pairs(seed: int, count: int, longest: int = 6) -> list[Pair]:
    generator = torch.Generator().manual_seed(seed)

    def side() -> list[int]:
        length = int(torch.randint(1, longest + 1, (1,), generator=generator))
        return torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()

    return [(side(), side()) for _ in range(count)]


def packed(rows: list[list[Pair]], length: int = LENGTH) -> Batch:
    """Rows that hold these pairs, as `packed_rows.py` reads them."""
    shape = (len(rows), length)
    tokens, targets = torch.full(shape, END), torch.full(shape, -100)
    segments, positions = torch.zeros(shape, dtype=torch.int32), torch.zeros(shape, dtype=torch.int32)
    for row, pairs in enumerate(rows):
        at = 0
        for number, (source, target) in enumerate(pairs):
            text = [*source, END, *target, END]
            end = at + len(text) - 1
            tokens[row, at:end] = torch.tensor(text[:-1])
            targets[row, at + len(source) : end] = torch.tensor(text[len(source) + 1 :])
            segments[row, at:end], positions[row, at:end] = number, torch.arange(end - at, dtype=torch.int32)
            at = end
        assert at <= length
        segments[row, at:], positions[row, at:] = len(pairs), torch.arange(length - at, dtype=torch.int32)
    return Batch(tokens, targets, segments, positions)


def by_torch(model: EncoderDecoder, pair: Pair) -> torch.Tensor:
    """Logits [targets + 1, rows] of one pair by torch's `nn.Transformer`, with this model's weights."""
    config = model.config
    theirs = torch.nn.Transformer(
        config.hidden_size, config.num_attention_heads, config.encoder_layers, config.num_hidden_layers,
        config.intermediate_size, 0.0, "relu", layer_norm_eps=config.rms_norm_eps, batch_first=True,
    )  # fmt: skip
    theirs.encoder.norm = theirs.decoder.norm = None
    norms = {"input_layernorm": "norm1", "post_attention_layernorm": "norm3"}
    with torch.no_grad():
        for ours, other in (*zip(model.model.encoder.layers, theirs.encoder.layers, strict=True),
                            *zip(model.model.layers, theirs.decoder.layers, strict=True)):  # fmt: skip
            decodes = hasattr(ours, "cross_attn")
            attentions = [(ours.self_attn, other.self_attn)]
            attentions += [(ours.cross_attn, other.multihead_attn)] if decodes else []
            for mine, their in attentions:
                their.in_proj_weight.copy_(torch.cat([mine.q_proj.weight, mine.k_proj.weight, mine.v_proj.weight]))
                their.in_proj_bias.zero_()
                their.out_proj.weight.copy_(mine.o_proj.weight)
                their.out_proj.bias.zero_()
            pairs = [(ours.mlp.up_proj, other.linear1), (ours.mlp.down_proj, other.linear2)]
            names = norms | (
                {"cross_attention_layernorm": "norm2"} if decodes else {"post_attention_layernorm": "norm2"}
            )
            pairs += [(getattr(ours, mine), getattr(other, their)) for mine, their in names.items()]
            for mine, their in pairs:
                their.weight.copy_(mine.weight)
                their.bias.copy_(mine.bias)
        theirs.eval()
        table = model.model.embed_tokens.weight
        source, target = ([*pair[0], END], [END, *pair[1]])

        def embedded(ids: list[int]) -> torch.Tensor:
            width, places = table.shape[1], torch.arange(len(ids), dtype=torch.float64)[:, None]
            angles = places / 10_000 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
            vectors = torch.zeros(len(ids), width, dtype=torch.float64)
            vectors[:, 0::2], vectors[:, 1::2] = angles.sin(), angles.cos()
            return (table[torch.tensor(ids)] * width**0.5 + vectors.float())[None]

        causal = torch.nn.Transformer.generate_square_subsequent_mask(len(target))
        out = theirs(embedded(source), embedded(target), tgt_mask=causal)
        return (out @ model.lm_head.weight.t())[0]
