"""A model whose induction head is written by hand."""

from __future__ import annotations

import torch

from pretrain.inference.loaded_model import LoadedModel
from pretrain.model.decoder import Decoder
from tests.pretrain.small_models import config

TOKENS = 24  # of the planted model's vocabulary; its context is twice as long


def induction_model() -> LoadedModel:
    """Head 0.0 copies the token before into the stream; head 1.0 looks for its own token there (arXiv:2209.11895).

    The stream has a channel for each token, for each token before, and for each position.
    """
    places = 2 * TOKENS
    settings = config(
        hidden_size=4 * TOKENS, num_attention_heads=2, num_key_value_heads=2, head_dim=places,
        position_embedding="learned", max_position_embeddings=places,
    )  # fmt: skip
    model = Decoder(settings, TOKENS).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(float(name.endswith("norm.weight")))
        tokens, before, positions = slice(0, TOKENS), slice(TOKENS, places), slice(places, 2 * places)
        model.model.embed_tokens.weight[:TOKENS, tokens] = torch.eye(TOKENS)
        model.model.embed_positions.weight[:, positions] = torch.eye(places)
        first, second = (layer.self_attn for layer in model.model.layers)
        first.q_proj.weight[:places, positions] = 10 * torch.eye(places).roll(-1, 0)
        first.q_proj.weight[places - 1, places] = 0.0  # the first token has none before it
        first.k_proj.weight[:places, positions] = torch.eye(places)
        first.v_proj.weight[:TOKENS, tokens] = torch.eye(TOKENS)
        first.o_proj.weight[before, :TOKENS] = torch.eye(TOKENS)
        second.q_proj.weight[:TOKENS, tokens] = 10 * torch.eye(TOKENS)
        second.k_proj.weight[:TOKENS, before] = torch.eye(TOKENS)
    return LoadedModel(model, places, TOKENS)
