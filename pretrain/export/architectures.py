"""Architectures of `transformers` for each variant of `[model]`.

    architecture             what it expresses exactly
    Llama                    RMSNorm before each part, rotary positions (plain, linear, llama3, yarn), SwiGLU, any bias
    Granite                  the same under muP: its multipliers are our scales
    Mistral                  the same without bias, every layer with a window
    Qwen3                    with norms of queries and keys, heads of any width; windows in some layers
    Qwen3Moe, Mixtral        experts, with and without norms of queries and keys
    GPT2                     learned positions, LayerNorm, biases, GELU, ReLU or squared ReLU, no shared key heads
    GPTNeoX                  the same with rotary positions
    Gemma2, Gemma3           norms around each part, windows, soft caps, either gate; the second with norms of heads
    Olmo2                    norms of what a part writes, and of all queries and all keys
    Assay                    all others (experts chosen with a bias, too): `modeling_assay.py` in
                             `remote_code` travels with the weights (`trust_remote_code`)

Exact means that logits in fp32 agree to rounding. Tests load each with `transformers` and compare.

In the export Gemma's norms multiply by 1 + weight, and its embedding by sqrt(hidden_size), which is
`embedding_multiplier` here; with another multiplier the exported table differs by the quotient and is not tied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from governance.errors import ConfigError
from pretrain.config.model import ModelConfig
from pretrain.export.exported_architecture import (
    SIZES,
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

if TYPE_CHECKING:
    import torch

_HEAD, _HEADS = "lm_head.weight", ("lm_head.weight", "embed_out.weight")


def family_of(model: ModelConfig) -> Family:
    """Native architecture that computes exactly what `model` does, else Assay's own.

    An encoder-decoder has none: its folder begins other trainings of Assay.
    """
    if model.encoder_layers:
        config = {"model_type": "assay", "assay_model": model.model_dump(mode="json")}
        return Family("AssayEncoderDecoder", config, same)
    for candidate in (_llama, _experts, _gpt, gemma, olmo):
        found = candidate(model)
        if found is not None:
            return found
    return _own(model)


_CLASSIFIERS = ("Llama", "Mistral", "Qwen3", "Qwen3Moe", "Mixtral", "GPT2", "GPTNeoX", "Gemma2", "Gemma3")
"""Architectures of `transformers` with a class for sequence classification."""


def classifier_of(model: ModelConfig, labels: Sequence[str]) -> Family:
    """The classifier of the native architecture.

    Its `score` reads the last token that is not padding.

    Raises:
        ConfigError: `transformers` has no such class for the architecture, or the head reads the mean of all tokens.
    """
    if model.pooling == "mean":
        raise ConfigError(
            "model.pooling = 'mean': the classes of transformers read the last token, so this model has no form there; "
            "use it with: assay classify"
        )
    base = family_of(model.model_copy(update={"num_labels": 0, "tie_word_embeddings": True}))
    name = base.architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    if name not in _CLASSIFIERS:
        raise ConfigError(
            f"transformers has no {name}ForSequenceClassification, so this model has no form there "
            f"({', '.join(_CLASSIFIERS)} have one); use it with: assay classify"
        )
    config = {**base.config, "id2label": dict(enumerate(labels)), "label2id": {one: n for n, one in enumerate(labels)}}
    config |= {"problem_type": "single_label_classification"}

    def tensors(names: Sequence[str]) -> list[ExportedTensor]:
        below = [tensor for tensor in base.tensors([one for one in names if one != _HEAD]) if tensor.name not in _HEADS]
        return [*below, copied("score.weight", _HEAD)]

    text = "Text" if name == "Gemma3" else ""
    return Family(f"{name}{text}ForSequenceClassification", config, tensors)


def tensors_of(model_type: str, model: ModelConfig, names: Sequence[str]) -> list[ExportedTensor]:
    """Tensors in which an architecture of `transformers` holds these parameters of `model`."""
    if model_type == "mixtral":
        return _mixtral(names)
    if model_type == "gpt2":
        return _gpt2(names)
    if model_type == "gpt_neox":
        return _neox(names, model.num_attention_heads)
    if model_type in ("gemma2", "gemma3_text"):
        return gemma_tensors(names)
    return same(names)


def _own(model: ModelConfig) -> Family:
    config = {
        "model_type": "assay",
        "auto_map": {
            "AutoConfig": "configuration_assay.AssayConfig",
            "AutoModelForCausalLM": "modeling_assay.AssayForCausalLM",
        },
        "assay_model": model.model_dump(mode="json"),
        **{name: getattr(model, name) for name in SIZES},
        "tie_word_embeddings": False,
    }
    return Family("AssayForCausalLM", config, same)


def _llama(model: ModelConfig) -> Family | None:
    if not rotary_rms(model) or model.norm_position != "pre" or model.moe is not None or capped(model):
        return None
    fields, mup = llama_fields(model), model.initialisation == "mup"
    window = model.sliding_window
    if model.qk_norm:
        if model.bias or mup:
            return None
        fields |= {"model_type": "qwen3", "use_sliding_window": window is not None, "sliding_window": window}
        return Family("Qwen3ForCausalLM", fields | {"layer_types": layer_types(model)}, same)
    if window is not None:
        if model.bias or mup or model.full_attention_every:
            return None
        return Family("MistralForCausalLM", fields | {"model_type": "mistral", "sliding_window": window}, same)
    if mup:
        scales = {"attention_multiplier": model.attention_scale, "logits_scaling": model.width_ratio}
        scales |= {"embedding_multiplier": 1.0, "residual_multiplier": 1.0}
        return Family("GraniteForCausalLM", fields | {"model_type": "granite"} | scales, same)
    return Family("LlamaForCausalLM", fields | {"model_type": "llama"}, same)


def _experts(model: ModelConfig) -> Family | None:
    moe = model.moe
    plain = rotary_rms(model) and model.norm_position == "pre" and not capped(model) and not model.bias
    if (
        moe is None
        or moe.router_bias_update_rate
        or not plain
        or model.initialisation == "mup"
        or model.full_attention_every
    ):
        return None
    fields = llama_fields(model) | {
        "num_experts_per_tok": moe.num_experts_per_tok,
        "router_aux_loss_coef": moe.router_aux_loss_coef,
    }
    if model.qk_norm and model.sliding_window is None:
        fields |= {
            "model_type": "qwen3_moe",
            "num_experts": moe.num_local_experts,
            "moe_intermediate_size": model.intermediate_size,
            "norm_topk_prob": moe.norm_topk_prob,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
        return Family("Qwen3MoeForCausalLM", fields, same)
    if not model.qk_norm and moe.norm_topk_prob:
        fields |= {
            "model_type": "mixtral",
            "num_local_experts": moe.num_local_experts,
            "sliding_window": model.sliding_window,
        }
        return Family("MixtralForCausalLM", fields, _mixtral)
    return None


def _renamed(names: Sequence[str], words: dict[str, str]) -> list[ExportedTensor]:
    """Tensors copied under names with each of `words` replaced, in order."""
    pieces = []
    for name in names:
        target = name
        for ours, theirs in words.items():
            target = target.replace(ours, theirs)
        pieces.append(copied(target, name))
    return pieces


def _mixtral(names: Sequence[str]) -> list[ExportedTensor]:
    return _renamed(
        names, {".mlp.": ".block_sparse_moe.", "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    )  # fmt: skip


def _gpt(model: ModelConfig) -> Family | None:
    if not (
        model.norm == "layernorm"
        and model.norm_weights
        and model.bias
        and model.norm_position == "pre"
        and not model.gated
        and model.attention_width == model.hidden_size
        and model.embedding_multiplier == 1.0
        and model.query_pre_attn_scalar is None
        and model.num_key_value_heads == model.num_attention_heads
    ):
        return None
    extras = (model.qk_norm, model.embedding_norm, model.moe, model.sliding_window, model.rope_scaling)
    if any(extras) or capped(model) or model.initialisation == "mup":
        return None
    shared = {"initializer_range": model.initializer_range, "tie_word_embeddings": model.tie_word_embeddings}
    if model.position_embedding == "learned":
        return Family("GPT2LMHeadModel", _gpt2_fields(model) | shared, _gpt2)
    if model.position_embedding == "rope":
        heads = model.num_attention_heads
        return Family("GPTNeoXForCausalLM", _neox_fields(model) | shared, lambda names: _neox(names, heads))
    return None


def _gpt2_fields(model: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "n_positions": model.max_position_embeddings,
        "n_embd": model.hidden_size,
        "n_layer": model.num_hidden_layers,
        "n_head": model.num_attention_heads,
        "n_inner": model.intermediate_size,
        "activation_function": model.feed_forward,
        "layer_norm_epsilon": model.rms_norm_eps,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


def _gpt2(names: Sequence[str]) -> list[ExportedTensor]:
    """GPT-2's tensors: transposed maps; queries, keys and values in one."""
    words = {
        "model.layers.": "transformer.h.",
        "model.embed_tokens": "transformer.wte",
        "model.embed_positions": "transformer.wpe",
        "model.norm": "transformer.ln_f",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
        "self_attn.q_proj": "attn.c_attn",
        "self_attn.o_proj": "attn.c_proj",
        "mlp.up_proj": "mlp.c_fc",
        "mlp.down_proj": "mlp.c_proj",
    }
    pieces = []
    for piece in _renamed([name for name in names if not _key_or_value(name)], words):
        sources, transposed = _joined(piece.sources[0]), "_proj.weight" in piece.sources[0]
        count = len(sources)
        if transposed:
            tensor = ExportedTensor(piece.name, sources, _join_transposed, partial(_split_transposed, count=count))
        else:
            tensor = ExportedTensor(piece.name, sources, _join, partial(_split, count=count))
        pieces.append(tensor)
    return pieces


def _key_or_value(name: str) -> bool:
    return ".k_proj." in name or ".v_proj." in name


def _joined(name: str) -> tuple[str, ...]:
    """Parameters that one tensor holds together.

    For a query map they are the key and value maps too.
    """
    return tuple(name.replace(".q_proj.", f".{kind}_proj.") for kind in "qkv") if ".q_proj." in name else (name,)


def _join(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.cat(list(tensors))


def _join_transposed(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return _join(tensors).t().contiguous()


def _split(tensor: torch.Tensor, count: int) -> Sequence[torch.Tensor]:
    return tensor.chunk(count)


def _split_transposed(tensor: torch.Tensor, count: int) -> Sequence[torch.Tensor]:
    return tensor.t().chunk(count)


def _neox_fields(model: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox",
        **{name: getattr(model, name) for name in SIZES if name != "num_key_value_heads"},
        "hidden_act": model.feed_forward,
        "layer_norm_eps": model.rms_norm_eps,
        "rotary_pct": model.partial_rotary_factor,
        "rotary_emb_base": model.rope_theta,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": model.rope_theta,
            "partial_rotary_factor": model.partial_rotary_factor,
        },
        "use_parallel_residual": False,
        "attention_bias": True,
    }


def _neox(names: Sequence[str], heads: int) -> list[ExportedTensor]:
    """GPT-NeoX's tensors: query, key and value of a head side by side."""
    words = {
        "model.layers.": "gpt_neox.layers.",
        "model.embed_tokens": "gpt_neox.embed_in",
        "model.norm": "gpt_neox.final_layer_norm",
        "lm_head": "embed_out",
        "self_attn.q_proj": "attention.query_key_value",
        "self_attn.o_proj": "attention.dense",
        "mlp.up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
    }

    def interleave_heads(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        import torch

        by_head = torch.stack([tensor.unflatten(0, (heads, -1)) for tensor in tensors], dim=1)
        return by_head.flatten(0, 2).contiguous()

    def separate_heads(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        by_head = tensor.unflatten(0, (heads, 3, -1))
        return [part.flatten(0, 1) for part in by_head.unbind(1)]

    tensors = []
    for piece in _renamed([name for name in names if not _key_or_value(name)], words):
        sources = _joined(piece.sources[0])
        joined = ExportedTensor(piece.name, sources, interleave_heads, separate_heads)
        tensors.append(joined if len(sources) > 1 else piece)
    return tensors


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
    if not float(model.query_pre_attn_scalar or 1).is_integer():  # `transformers` refuses the folder
        return None
    scale = math.sqrt(model.hidden_size)
    standard = math.isclose(model.embedding_multiplier, scale, rel_tol=1e-6)
    tied, divisor = model.tie_word_embeddings, 1.0 if standard else scale / model.embedding_multiplier
    fields = llama_fields(model) | {
        "hidden_activation": _GATES[model.feed_forward],
        "query_pre_attn_scalar": int(model.query_pre_attn_scalar or model.head_dim),
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
