"""Exported architectures: tensors, and configuration fields of Llama's relatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pretrain.config.model import ModelConfig

if TYPE_CHECKING:
    import torch

Make = Callable[[Sequence["torch.Tensor"]], "torch.Tensor"]
Invert = Callable[["torch.Tensor"], Sequence["torch.Tensor"]]


@dataclass(frozen=True)
class ExportedTensor:
    """Tensor of the exported model."""

    name: str
    sources: tuple[str, ...]
    """Parameters of the checkpoint that it is made of."""
    make: Make
    """Sources -> exported tensor."""
    invert: Invert
    """Exported tensor -> sources; its imports read weights by it."""


@dataclass(frozen=True)
class Family:
    """Architecture of `transformers` with a model's settings."""

    architecture: str
    config: dict[str, Any]
    """Fields of config.json, without `vocab_size` and the ids of special tokens."""
    tensors: Callable[[Sequence[str]], list[ExportedTensor]]
    """Checkpoint's parameter names -> tensors to write."""

    @property
    def own_code(self) -> bool:
        """Return whether it needs `modeling_assay.py`."""
        return self.architecture == "AssayForCausalLM"


def same(names: Sequence[str]) -> list[ExportedTensor]:
    """Tensors copied under their own names."""
    return [copied(name, name) for name in names]


def copied(name: str, source: str) -> ExportedTensor:
    """A parameter copied under another name."""
    return ExportedTensor(name, (source,), lambda tensors: tensors[0], lambda tensor: [tensor])


EXPERT_BIAS = "e_score_correction_bias"
"""Selection bias of a layer's experts, fp32 in every export."""


def expert_bias_names(model: ModelConfig) -> list[str]:
    """Names of the experts' selection biases, by layer; none without a rate."""
    if model.moe is None or not model.moe.router_bias_update_rate:
        return []
    return [f"model.layers.{layer}.mlp.gate.{EXPERT_BIAS}" for layer in range(model.num_hidden_layers)]


SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings",
)  # fmt: skip


def llama_fields(model: ModelConfig) -> dict[str, Any]:
    """Configuration fields that Llama's relatives share."""
    return {
        **{name: getattr(model, name) for name in SIZES},
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": model.rms_norm_eps,
        "initializer_range": model.initializer_range,
        "tie_word_embeddings": model.tie_word_embeddings,
        "attention_bias": model.bias,
        "mlp_bias": model.bias,
        "rope_theta": model.rope_theta,
        "rope_scaling": scaling_fields(model),
    }


def scaling_fields(model: ModelConfig) -> dict[str, Any] | None:
    """Fields of scaled rotary positions; None: not scaled."""
    scaling = model.rope_scaling
    if scaling is None:
        return None
    fields = {
        "linear": (),
        "llama3": ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
        "yarn": ("original_max_position_embeddings", "beta_fast", "beta_slow"),
    }[scaling.rope_type]
    return {name: getattr(scaling, name) for name in ("rope_type", "factor", *fields)}


_NEUTRAL = {
    "partial_rotary_factor": 1.0, "embedding_multiplier": 1.0, "query_pre_attn_scalar": None,
    "rope_local_base_freq": None, "qk_norm_whole": False,
}  # fmt: skip


def rotary_rms(model: ModelConfig, gates: tuple[str, ...] = ("swiglu",), free: tuple[str, ...] = ()) -> bool:
    """Return whether the model is a rotary, RMSNorm, gated decoder.

    Its gate must be one of `gates`.

    Fields of other families must be neutral, except those in `free`.
    """
    return (
        model.position_embedding == "rope"
        and model.norm == "rmsnorm"
        and model.norm_weights
        and model.feed_forward in gates
        and not model.embedding_norm
        and model.hidden_size % model.num_attention_heads == 0  # `transformers` refuses others
        and all(getattr(model, name) == value for name, value in _NEUTRAL.items() if name not in free)
    )


def capped(model: ModelConfig) -> bool:
    """Return whether any logits have a soft cap."""
    return model.attn_logit_softcapping is not None or model.final_logit_softcapping is not None


def layer_types(model: ModelConfig) -> list[str]:
    """Kind of attention of each layer, as `transformers` names it."""
    windows = [model.window(layer) for layer in range(model.num_hidden_layers)]
    return ["full_attention" if window is None else "sliding_attention" for window in windows]
