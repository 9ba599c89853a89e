"""An exported architecture: its tensors, and fields of Llama's relatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pretrain.config.model import ModelConfig

if TYPE_CHECKING:
    import torch

Make = Callable[[Sequence["torch.Tensor"]], "torch.Tensor"]


@dataclass(frozen=True)
class Piece:
    """One tensor of the exported model."""

    name: str
    sources: tuple[str, ...]
    """The checkpoint's parameters that it is made of."""
    make: Make


@dataclass(frozen=True)
class Family:
    """An architecture, with this model's settings."""

    architecture: str
    config: dict[str, Any]
    """What config.json says of it, `vocab_size` and the ids of special tokens apart."""
    pieces: Callable[[Sequence[str]], list[Piece]]
    """Of the checkpoint's parameter names, the tensors to write."""

    @property
    def own_code(self) -> bool:
        """Return whether it needs `modeling_assay.py`."""
        return self.architecture == "AssayForCausalLM"


def same(names: Sequence[str]) -> list[Piece]:
    """Copies under their own names."""
    return [Piece(name, (name,), lambda tensors: tensors[0]) for name in names]


SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings",
)  # fmt: skip


def llama_fields(model: ModelConfig) -> dict[str, Any]:
    """The fields that Llama's relatives share."""
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
    """The stretching of rotary positions, if any."""
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

    Nothing of others but `free`; gates of `gates`.
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
    """Return whether any logits are."""
    return model.attn_logit_softcapping is not None or model.final_logit_softcapping is not None


def layer_types(model: ModelConfig) -> list[str]:
    """The name of each layer's kind of attention."""
    windows = [model.window(layer) for layer in range(model.num_hidden_layers)]
    return ["full_attention" if window is None else "sliding_attention" for window in windows]
