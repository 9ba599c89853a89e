"""Export of Gemma 2, Gemma 3 and OLMo 2.

Gemma's norms multiply by 1 + weight there, and its embedding by sqrt(hidden_size): ours says so with
`embedding_multiplier`; where it says another number, the exported table differs by the quotient and is not tied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pretrain.config.model import ModelConfig
from pretrain.export.export_family import (
    Family,
    Piece,
    capped,
    layer_types,
    llama_fields,
    rotary_rms,
    same,
    scaling_fields,
)

_GATES = {"swiglu": "silu", "geglu": "gelu_pytorch_tanh"}


def olmo(model: ModelConfig) -> Family | None:
    """OLMo 2: norms after each part, and of whole queries and keys."""
    if not rotary_rms(model, free=("qk_norm_whole",)) or model.norm_position != "reordered" or not model.qk_norm_whole:
        return None
    if any((model.moe, model.sliding_window, model.initialisation == "mup", capped(model), model.bias)):
        return None
    return Family("Olmo2ForCausalLM", llama_fields(model) | {"model_type": "olmo2"}, same)


def gemma(model: ModelConfig) -> Family | None:
    """Gemma 2, or with norms of heads Gemma 3."""
    free = ("embedding_multiplier", "query_pre_attn_scalar", "rope_local_base_freq")
    if not rotary_rms(model, tuple(_GATES), free) or model.norm_position != "sandwich" or model.bias:
        return None
    if model.moe is not None or model.initialisation == "mup":
        return None
    if model.rope_local_base_freq and not model.qk_norm:
        return None
    if model.attn_logit_softcapping and model.qk_norm:  # Gemma 3's code reads the setting and caps nothing
        return None
    scale = math.sqrt(model.hidden_size)
    as_theirs = math.isclose(model.embedding_multiplier, scale, rel_tol=1e-6)
    tied, divisor = model.tie_word_embeddings, 1.0 if as_theirs else scale / model.embedding_multiplier
    fields = llama_fields(model) | {
        "hidden_activation": _GATES[model.feed_forward],
        "query_pre_attn_scalar": _whole(model.query_pre_attn_scalar or model.head_dim),
        "attn_logit_softcapping": model.attn_logit_softcapping,
        "final_logit_softcapping": model.final_logit_softcapping,
        "sliding_window": model.sliding_window or model.max_position_embeddings,
        "layer_types": layer_types(model),
        "tie_word_embeddings": tied and as_theirs,
    }
    if model.attn_logit_softcapping is not None:
        fields["attn_implementation"] = "eager"  # the fused kernels there leave the cap out
    copied = tied and not as_theirs

    def pieces(names: Sequence[str]) -> list[Piece]:
        return _pieces(names, divisor, copied)

    if not model.qk_norm:
        return Family("Gemma2ForCausalLM", fields | {"model_type": "gemma2"}, pieces)
    return Family("Gemma3ForCausalLM", fields | _of_gemma_3(model), pieces)


def _of_gemma_3(model: ModelConfig) -> dict[str, Any]:
    """Gemma 3: text model, and a rotary base for each layer kind."""
    plain = {"rope_type": "default", "rope_theta": model.rope_theta}
    stretched = {**plain, **(scaling_fields(model) or {})}
    local = plain | {"rope_theta": model.rope_local_base_freq} if model.rope_local_base_freq else stretched
    parameters = {"full_attention": stretched, "sliding_attention": local}
    return {"model_type": "gemma3_text", "rope_parameters": parameters, "rope_scaling": None}


def _whole(value: float) -> float | int:
    """An integer where it is one: `transformers` takes no other."""
    return int(value) if float(value).is_integer() else value


def _pieces(names: Sequence[str], divisor: float, copied: bool) -> list[Piece]:
    """`divisor` is of the table of tokens.

    `copied`: the output projection is that table, whole.
    """
    table, pieces = "model.embed_tokens.weight", []
    for name in names:
        if name == table:
            pieces.append(Piece(name, (name,), lambda tensors: tensors[0] / divisor))
        elif name.endswith("norm.weight"):
            pieces.append(Piece(name, (name,), lambda tensors: tensors[0] - 1.0))
        else:
            pieces.append(Piece(name, (name,), lambda tensors: tensors[0]))
    return [*pieces, Piece("lm_head.weight", (table,), lambda tensors: tensors[0].clone())] if copied else pieces
