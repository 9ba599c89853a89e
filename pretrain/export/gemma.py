"""Export of Gemma 2, Gemma 3 and OLMo 2.

There Gemma's norms multiply by 1 + weight, and its embedding by sqrt(hidden_size), which is `embedding_multiplier`
here; with another multiplier the exported table differs by the quotient and is not tied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pretrain.config.model import ModelConfig
from pretrain.export.exported_architecture import (
    ExportedTensor,
    Family,
    capped,
    copied,
    layer_types,
    llama_fields,
    rotary_rms,
    same,
    scaling_fields,
)

_GATES = {"swiglu": "silu", "geglu": "gelu_pytorch_tanh"}


def olmo(model: ModelConfig) -> Family | None:
    """OLMo 2: norms after each part, and over whole queries and keys."""
    if not rotary_rms(model, free=("qk_norm_whole",)) or model.norm_position != "reordered" or not model.qk_norm_whole:
        return None
    if any((model.moe, model.sliding_window, model.initialisation == "mup", capped(model), model.bias)):
        return None
    return Family("Olmo2ForCausalLM", llama_fields(model) | {"model_type": "olmo2"}, same)


def gemma(model: ModelConfig) -> Family | None:
    """Gemma 2, or Gemma 3 for a model with norms of heads."""
    free = ("embedding_multiplier", "query_pre_attn_scalar", "rope_local_base_freq")
    if not rotary_rms(model, tuple(_GATES), free) or model.norm_position != "sandwich" or model.bias:
        return None
    if model.moe is not None or model.initialisation == "mup":
        return None
    if model.rope_local_base_freq and not model.qk_norm:
        return None
    if model.attn_logit_softcapping and model.qk_norm:  # Gemma 3's code ignores the cap
        return None
    scale = math.sqrt(model.hidden_size)
    standard = math.isclose(model.embedding_multiplier, scale, rel_tol=1e-6)
    tied, divisor = model.tie_word_embeddings, 1.0 if standard else scale / model.embedding_multiplier
    fields = llama_fields(model) | {
        "hidden_activation": _GATES[model.feed_forward],
        "query_pre_attn_scalar": _as_integer(model.query_pre_attn_scalar or model.head_dim),
        "attn_logit_softcapping": model.attn_logit_softcapping,
        "final_logit_softcapping": model.final_logit_softcapping,
        "sliding_window": model.sliding_window or model.max_position_embeddings,
        "layer_types": layer_types(model),
        "tie_word_embeddings": tied and standard,
    }
    if model.attn_logit_softcapping is not None:
        fields["attn_implementation"] = "eager"  # fused kernels there omit the cap
    separate_head = tied and not standard

    def tensors(names: Sequence[str]) -> list[ExportedTensor]:
        return gemma_tensors(names, divisor, separate_head)

    if not model.qk_norm:
        return Family("Gemma2ForCausalLM", fields | {"model_type": "gemma2"}, tensors)
    return Family("Gemma3ForCausalLM", fields | _gemma_3_fields(model), tensors)


def _gemma_3_fields(model: ModelConfig) -> dict[str, Any]:
    """Fields of Gemma 3's text model, with rotary bases by layer kind."""
    plain = {"rope_type": "default", "rope_theta": model.rope_theta}
    stretched = {**plain, **(scaling_fields(model) or {})}
    local = plain | {"rope_theta": model.rope_local_base_freq} if model.rope_local_base_freq else stretched
    parameters = {"full_attention": stretched, "sliding_attention": local}
    return {"model_type": "gemma3_text", "rope_parameters": parameters, "rope_scaling": None}


def _as_integer(value: float) -> float | int:
    """Whole numbers as integers, which `transformers` requires."""
    return int(value) if float(value).is_integer() else value


def gemma_tensors(names: Sequence[str], divisor: float = 1.0, separate_head: bool = False) -> list[ExportedTensor]:
    """Gemma's tensors, with the token table divided by `divisor`.

    With `separate_head` the tied projection is written, too.
    """
    table, tensors = "model.embed_tokens.weight", []
    for name in names:
        if name == table:
            tensors.append(ExportedTensor(name, (name,), lambda held: held[0] / divisor, lambda held: [held * divisor]))
        elif name.endswith("norm.weight"):
            tensors.append(ExportedTensor(name, (name,), lambda held: held[0] - 1.0, lambda held: [held + 1.0]))
        else:
            tensors.append(copied(name, name))
    if separate_head:
        head = ExportedTensor("lm_head.weight", (table,), lambda held: held[0].clone(), lambda held: [held])
        tensors.append(head)
    return tensors
