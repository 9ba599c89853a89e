"""Model settings of a Hugging Face `config.json`.

The inverse of `pretrain/export/architectures.py`, and Qwen 2. A setting that changes what the model computes and has no
counterpart in `[model]` is refused, so that imported weights mean the same here as in `transformers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from governance.errors import ConfigError
from pretrain.config.model import ModelConfig
from pretrain.export.exported_architecture import SIZES, expert_bias_names, layer_types

Fields = Mapping[str, Any]
_FREE = (
    "initialisation", "mup_base_width", "initializer_range", "embedding_range", "zero_init_outputs", "z_loss",
    "max_position_embeddings", "query_pre_attn_scalar", "moe",
    "dropout", "label_smoothing",
)  # fmt: skip
"""Settings of `[model]` that do not change what given weights compute, or that `computed` compares in another form."""


def read_model(config: Fields) -> ModelConfig:
    """Model settings that compute what `transformers` does with `config`.

    Raises:
        ConfigError: the family is unknown, or it computes something that `[model]` cannot express.
    """
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        raise ConfigError(f"model_type is {family!r}; known are {', '.join(sorted(FAMILIES))}")
    try:
        return ModelConfig.model_validate(FAMILIES[family](config))
    except KeyError as error:
        raise ConfigError(f"config.json has no field {error.args[0]!r}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors(include_url=False))
        raise ConfigError(f"config.json: {faults}") from error


def differences(theirs: ModelConfig, ours: ModelConfig) -> list[str]:
    """Settings by which the two models compute different functions, one text each."""
    there, here = computed(theirs), computed(ours)
    here = {name: here.get(name, getattr(ours, name, None)) for name in there}  # one of two forms may lack a setting
    unlike = [
        f"model.{name} is {here[name]!r}, the folder needs {there[name]!r}"
        for name in there
        if there[name] != here[name]
    ]
    if expert_bias_names(theirs) and not expert_bias_names(ours):
        unlike.append("model.moe.router_bias_update_rate is 0, the folder needs a rate: a bias selects its experts")
    return unlike


def computed(model: ModelConfig) -> dict[str, Any]:
    """Values that decide the function that weights compute."""
    found = {name: value for name, value in model.model_dump(mode="json").items() if name not in _FREE}
    found |= {"attention_scale": model.attention_scale, "width_ratio": model.width_ratio}
    found["encoder_layers"] = model.encoder_layers  # a dump leaves out 0
    if model.position_embedding == "learned":
        found["max_position_embeddings"] = model.max_position_embeddings
    experts = ("num_local_experts", "num_experts_per_tok", "norm_topk_prob")
    found["moe"] = None if model.moe is None else {name: getattr(model.moe, name) for name in experts}
    return found


def lacks_bias(config: Fields, name: str) -> bool:
    """Return whether the model of `config` has no such bias.

    `[model] bias` gives one to all maps or to none; some families have them in some maps only.
    """
    family, (part, kind) = config.get("model_type"), name.split(".")[-2:]
    if kind != "bias" or family in ("assay", "gpt2", "gpt_neox"):
        return False
    if part in ("gate_proj", "up_proj", "down_proj"):
        return not (family in ("llama", "granite") and config.get("mlp_bias"))
    if family == "qwen2":
        return part == "o_proj"
    return not config.get("attention_bias")


def _llama(config: Fields, rms_norm_eps: float = 1e-6, tied: bool = False, silu: bool = True) -> dict[str, Any]:
    """Settings that Llama's relatives share; without window, experts and norms of heads."""
    if silu:
        _require(config, hidden_act="silu")
    _require(config, pretraining_tp=1)
    for fields in (config, config.get("rope_parameters") or {}, config.get("rope_scaling") or {}):
        if (share := fields.get("partial_rotary_factor")) not in (None, 1.0):  # versions of transformers differ in it
            raise ConfigError(f"partial_rotary_factor = {share!r}: is supported for gpt_neox only")
    heads = config["num_attention_heads"]
    sizes = {name: config[name] for name in SIZES if name != "num_key_value_heads"}
    return {
        **sizes,
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "rms_norm_eps": config.get("rms_norm_eps", rms_norm_eps),
        "tie_word_embeddings": config.get("tie_word_embeddings", tied),
        "bias": bool(config.get("attention_bias") or config.get("mlp_bias")),
        **_rotary(config),
    }


def _rotary(config: Fields, kind: str | None = None, base: float | None = 10_000.0) -> dict[str, Any]:
    """Base wavelength and scaling, in the form of transformers 4 or 5.

    Args:
        config: fields of config.json.
        kind: of one kind of layer.
        base: the family's own, where the file has none; None: the file must have it.
    """
    parameters: dict[str, Any] = config.get("rope_parameters") or {}
    parameters = parameters.get(kind, parameters) if kind else parameters
    scaling: dict[str, Any] = config.get("rope_scaling") or parameters
    name = scaling.get("rope_type", scaling.get("type", "default"))
    found: dict[str, Any] = {"rope_theta": parameters.get("rope_theta", config.get("rope_theta", base))}
    if found["rope_theta"] is None:
        raise _absent("rope_theta")
    if name == "default":
        return found
    known = {
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        "yarn": ("factor", "beta_fast", "beta_slow", "original_max_position_embeddings"),
    }
    if name not in known:
        raise ConfigError(f"rotary scaling {name!r} is unknown; known are {', '.join(known)}")
    passive = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}
    if other := sorted(
        key for key, value in scaling.items() if value is not None and key not in {*known[name], *passive}
    ):
        raise ConfigError(f"rotary scaling {name!r} with {other[0]} has no counterpart in [model.rope_scaling]")
    values = {key: scaling[key] for key in known[name] if scaling.get(key) is not None}
    if name == "yarn":
        values.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    return {**found, "rope_scaling": {"rope_type": name, **values}}


def _absent(name: str) -> ConfigError:
    """Error for a field whose default `transformers` changes from family to family."""
    return ConfigError(f"config.json has no field {name!r}. Add the value that the model was trained with")


def _windows(
    config: Fields, model: dict[str, Any], default: Callable[[int], bool], required: bool = True
) -> dict[str, Any]:
    """Settings with the layers' windows.

    Args:
        config: fields of config.json.
        model: the other settings.
        default: whether a layer has a window, where the file does not state it.
        required: the family has a window where the file has no `sliding_window` at all; null is none.
    """
    if required and "sliding_window" not in config:
        raise _absent("sliding_window")
    layers, window = config["num_hidden_layers"], config.get("sliding_window")
    kinds = config.get("layer_types") or [
        "sliding_attention" if default(layer) else "full_attention" for layer in range(layers)
    ]
    if window is None or "sliding_attention" not in kinds:
        return model
    every = kinds.index("full_attention") + 1 if "full_attention" in kinds else 0
    found = {**model, "sliding_window": window, "full_attention_every": every}
    if layer_types(ModelConfig.model_validate(found)) != list(kinds):
        raise ConfigError(f"layer_types = {kinds}: [model] has one layer of full attention every so many layers")
    return found


def _mistral(config: Fields) -> dict[str, Any]:
    return _windows(config, _llama(config), lambda layer: True)


def _qwen2(config: Fields) -> dict[str, Any]:
    """Qwen 2: biases of queries, keys and values alone.

    The biases of other maps are zero here.
    """
    return _qwen3(config) | {"bias": True, "qk_norm": False}


def _qwen3(config: Fields) -> dict[str, Any]:
    model = {**_llama(config), "qk_norm": True}
    first = config.get("max_window_layers", 28)  # the class' own, as of all Qwen families
    return _windows(config, model, lambda layer: layer >= first) if config.get("use_sliding_window") else model


def _qwen3_moe(config: Fields) -> dict[str, Any]:
    _require(config, decoder_sparse_step=1, mlp_only_layers=[], use_sliding_window=False)
    moe = {
        "num_local_experts": config.get("num_experts", config.get("num_local_experts")),
        "num_experts_per_tok": config["num_experts_per_tok"],
        "norm_topk_prob": config.get("norm_topk_prob", False),
    }
    return {**_llama(config), "qk_norm": True, "intermediate_size": config["moe_intermediate_size"], "moe": moe}


def _mixtral(config: Fields) -> dict[str, Any]:
    moe = {"num_local_experts": config["num_local_experts"], "num_experts_per_tok": config["num_experts_per_tok"]}
    model = {**_llama(config, 1e-5), **_rotary(config, base=None)}
    return {**_windows(config, model, lambda layer: True, required=False), "moe": moe}


def _granite(config: Fields) -> dict[str, Any]:
    """Granite with muP's multipliers, as export writes it."""
    _require(config, embedding_multiplier=1.0, residual_multiplier=1.0)
    model = _llama(config)
    base = model["hidden_size"] / config.get("logits_scaling", 1.0)
    scale = config.get("attention_multiplier", 1.0)
    if not base.is_integer() or not math.isclose(scale, 8 / model["head_dim"]):
        raise ConfigError(
            f"attention_multiplier = {scale} and logits_scaling = {config.get('logits_scaling')} are not those of muP: "
            f"8 / head_dim, and hidden_size over a whole mup_base_width"
        )
    return {**model, "initialisation": "mup", "mup_base_width": int(base)}


def _olmo2(config: Fields) -> dict[str, Any]:
    return {**_llama(config, 1e-5), "norm_position": "reordered", "qk_norm": True, "qk_norm_whole": True}


def _gemma(config: Fields) -> dict[str, Any]:
    gate = config.get("hidden_activation") or config.get("hidden_act") or "gelu_pytorch_tanh"
    gates = {"gelu_pytorch_tanh": "geglu", "silu": "swiglu"}
    if gate not in gates:
        raise ConfigError(f"hidden_activation = {gate!r} is unknown; known are {', '.join(gates)}")
    model = _llama(config, tied=True, silu=False) | {
        "norm_position": "sandwich",
        "feed_forward": gates[gate],
        "head_dim": config.get("head_dim", 256),
        "embedding_multiplier": math.sqrt(config["hidden_size"]),
        "query_pre_attn_scalar": config.get("query_pre_attn_scalar", 256),
    }
    return model | {name: config[name] for name in _CAPS if config.get(name) is not None}


_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")


def _gemma2(config: Fields) -> dict[str, Any]:
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}  # the class' own, where the file has none
    given = {**caps, **config}
    return _windows(given, _gemma(given), lambda layer: layer % 2 == 0)


def _gemma3(config: Fields) -> dict[str, Any]:
    if config.get("attn_logit_softcapping") is not None:
        config = {**config, "attn_logit_softcapping": None}  # Gemma 3's code ignores it
    if config.get("use_bidirectional_attention"):
        raise ConfigError("use_bidirectional_attention = true: Assay's models are causal")
    pattern = config.get("sliding_window_pattern", 6)
    model = {**_gemma(config), "qk_norm": True, **_rotary(config, "full_attention", None)}
    model = _windows(config, model, lambda layer: bool((layer + 1) % pattern))
    local = _rotary({"rope_parameters": config.get("rope_parameters")}, "sliding_attention")
    base = local["rope_theta"] if config.get("rope_parameters") else config.get("rope_local_base_freq", 10_000.0)
    stretched = {name: model.get(name) for name in ("rope_theta", "rope_scaling")}
    if "sliding_window" not in model or local == {key: value for key, value in stretched.items() if value is not None}:
        return model
    if "rope_scaling" in local:
        raise ConfigError("rotary positions of layers with a window are scaled, which [model] does not do")
    return {**model, "rope_local_base_freq": base}


_ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "relu2": "relu2"}


def _activation(name: str) -> str:
    if name not in _ACTIVATIONS:
        raise ConfigError(f"activation {name!r} has no counterpart in model.feed_forward: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _gpt2(config: Fields) -> dict[str, Any]:
    _require(config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    width, heads = config["n_embd"], config["n_head"]
    return {
        "hidden_size": width,
        "intermediate_size": config.get("n_inner") or 4 * width,
        "num_hidden_layers": config["n_layer"],
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": config["n_positions"],
        "position_embedding": "learned",
        "norm": "layernorm",
        "bias": True,
        "rms_norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "feed_forward": _activation(config.get("activation_function", "gelu_new")),
        "tie_word_embeddings": config.get("tie_word_embeddings", True),
    }


def _gpt_neox(config: Fields) -> dict[str, Any]:
    _require({"use_parallel_residual": True, **config}, use_parallel_residual=False)
    _require(config, attention_bias=True)
    parameters = config.get("rope_parameters") or {}
    heads = config["num_attention_heads"]
    sizes = {name: config[name] for name in SIZES if name != "num_key_value_heads"}
    rotary = _rotary({"rope_theta": config.get("rotary_emb_base", 10_000.0), **config})
    return {
        **sizes,
        "num_key_value_heads": heads,
        "norm": "layernorm",
        "bias": True,
        "rms_norm_eps": config.get("layer_norm_eps", 1e-5),
        "feed_forward": _activation(config.get("hidden_act", "gelu")),
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
        "partial_rotary_factor": parameters.get("partial_rotary_factor", config.get("rotary_pct", 0.25)),
        **rotary,
    }


def _require(config: Fields, **values: Any) -> None:
    """Raise unless each field has this value, or is absent."""
    for name, value in values.items():
        if config.get(name, value) != value:
            raise ConfigError(f"{name} = {config[name]!r} has no counterpart in [model], which computes {value!r}")


FAMILIES: dict[str, Callable[[Fields], dict[str, Any]]] = {
    "assay": lambda config: dict(config["assay_model"]),
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "granite": _granite,
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "olmo2": _olmo2,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
}
"""model_type -> settings of `[model]`."""
