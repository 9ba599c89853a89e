"""Models small enough for a test, one for each variant, and rows of documents for them."""

from __future__ import annotations

from dataclasses import replace

import torch

from pretrain.config.model import ModelConfig
from pretrain.model.decoder import Batch, Decoder
from pretrain.model.expert_bias import attach_expert_bias
from pretrain.model.init import initial_weight

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32}
VARIANTS = {
    "llama": {},
    "mha": {"num_key_value_heads": 4},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "llama3": {"rope_scaling": LLAMA3},
    "yarn": {"rope_scaling": YARN},
    "gpt2": {"position_embedding": "learned", "norm": "layernorm", "bias": True, "feed_forward": "gelu"},
    "sinusoidal": {"position_embedding": "sinusoidal", "norm_position": "post", "feed_forward": "relu"},
    "nope": {"position_embedding": "none", "embedding_norm": True},
    "olmo": {"norm": "layernorm", "norm_weights": False},
    "speedy": {"qk_norm": True, "feed_forward": "relu2", "norm_weights": False, "final_logit_softcapping": 15.0},
    "mistral": {"sliding_window": 5},
    "gemma": {
        "sliding_window": 4,
        "full_attention_every": 2,
        "norm_position": "sandwich",
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 8.0,
        "qk_norm": True,
    },
    "wide_heads": {"head_dim": 12, "qk_norm": True},
    "partial": {"partial_rotary_factor": 0.5, "query_pre_attn_scalar": 5.0},
    "reordered": {"norm_position": "reordered", "qk_norm": True, "qk_norm_whole": True},
    "gemma3": {
        "head_dim": 16,
        "sliding_window": 4,
        "full_attention_every": 2,
        "norm_position": "sandwich",
        "qk_norm": True,
        "feed_forward": "geglu",
        "embedding_multiplier": 32**0.5,
        "query_pre_attn_scalar": 24,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "tie_word_embeddings": True,
    },
    "z_loss": {"z_loss": 0.01},
    "mup": {"initialisation": "mup", "mup_base_width": 16},
    "mixtral": {"moe": {"num_local_experts": 4, "num_experts_per_tok": 2}},
    "switch": {"moe": {"num_local_experts": 3, "num_experts_per_tok": 1, "norm_topk_prob": False}, "bias": True},
}


def config(**changes) -> ModelConfig:
    values = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    return ModelConfig(**{**values, **changes})


TINY = config(intermediate_size=64, num_hidden_layers=1)


def model_of(settings: ModelConfig, vocabulary: int = 100, factor: float = 10.0, **options) -> Decoder:
    """With matrices larger than at the start of training, so that a wrong term would show."""
    model = Decoder(settings, vocabulary, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            start = initial_weight(name, parameter.shape, settings, seed=1)
            if parameter.dim() == 1:  # neither all one nor all zero: then exchanged norms would not show
                start = start + 0.1 * torch.sin(torch.arange(len(start)) + len(name))
            parameter.copy_(start * (1 if parameter.dim() == 1 else factor))
    attach_expert_bias(model, settings)
    return model


def rows(lengths: list[list[int]], vocabulary: int = 100, seed: int = 0) -> Batch:
    """One row for each list of document lengths."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths[0])
    tokens = torch.randint(0, vocabulary, (len(lengths), total), generator=generator)
    segments = torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths])
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    targets = tokens.roll(-1, 1)
    targets[:, -1] = -100
    return Batch(tokens, targets, segments.int(), positions.int())


def with_tokens(batch: Batch, tokens: torch.Tensor) -> Batch:
    return replace(batch, tokens=tokens)
