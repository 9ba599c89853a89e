"""First weights of a student, from those of a larger teacher.

*Depth*: layer i of n takes the teacher's layer round(i (N - 1) / (n - 1)): evenly chosen, the first and the last among
them (arXiv:1910.01108 takes every other one). A student of one layer takes the first.

*Width*: a student keeps the units of the residual stream whose embeddings have the largest norm, the same ones in every
matrix, and of each feed-forward layer the inner units whose columns of `down_proj` have. Of attention it keeps evenly
chosen groups of heads, and of each group the first heads. What is kept stays in the teacher's order. The student's
matrices are parts of the teacher's; nothing is scaled, and training does the rest.

The vocabulary, the size of a head and everything else that decides the form of the layers must be the teacher's.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch

from governance.errors import ConfigError
from pretrain.config.model import ModelConfig
from pretrain.model.decoder import Decoder

_LAYER = re.compile(r"(.*\.layers\.)(\d+)(\..*)")
_SMALLER = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings",
)  # fmt: skip
_OF_TRAINING = ("initializer_range", "embedding_range", "zero_init_outputs", "z_loss")
"""Fields that do not change the form of the layers."""


def refuse_other_form(student: ModelConfig, teacher: ModelConfig) -> None:
    """Raise unless the student can begin with the teacher's layers.

    Raises:
        ConfigError: names every field that differs, with both values.
    """
    ours, theirs = student.model_dump(mode="json"), teacher.model_dump(mode="json")
    bounded = _SMALLER if student.position_embedding == "learned" else _SMALLER[:-1]
    faults = [
        f"model.{name} is {ours[name]!r}, the teacher's {theirs.get(name)!r}"
        for name in ours
        if name not in (*_SMALLER, *_OF_TRAINING) and ours[name] != theirs.get(name)
    ]
    faults += [
        f"model.{name} is {ours[name]}, above the teacher's {theirs[name]}"
        for name in bounded
        if ours[name] > theirs[name]
    ]
    if student.num_attention_heads // student.num_key_value_heads > (
        teacher.num_attention_heads // teacher.num_key_value_heads
    ):
        faults.append("each key-value head serves more query heads than the teacher's")
    if student.moe is not None and _narrower(student, teacher):
        faults.append("a student with experts keeps the teacher's width: set the sizes to the teacher's")
    if student.qk_norm_whole and student.num_attention_heads != teacher.num_attention_heads:
        faults.append("model.qk_norm_whole normalises all heads together: keep the teacher's number of heads")
    if faults:
        raise ConfigError(
            "train.distillation.start = 'teacher': the student cannot begin with the teacher's weights:\n  "
            + "\n  ".join(faults)
            + "\n  Set these, or start = 'random'."
        )


def narrowed(teacher: Decoder, student: ModelConfig) -> Callable[[str, torch.Size], torch.Tensor]:
    """Initial fp32 values of the student's parameters, by name and shape."""
    held = {name: value.detach() for name, value in teacher.named_parameters()}
    units = _largest(held["model.embed_tokens.weight"].square().sum(0), student.hidden_size)
    queries, keys = kept_heads(student, teacher.config)

    def weight(name: str, shape: torch.Size) -> torch.Tensor:
        source = name
        if found := _LAYER.fullmatch(name):
            layer = kept_layer(int(found[2]), student.num_hidden_layers, teacher.config.num_hidden_layers)
            source = f"{found[1]}{layer}{found[3]}"
        whole = held[source]
        if tuple(whole.shape) == tuple(shape):
            return whole.clone()
        prefix, _, part = source.rpartition(".")
        part = prefix.rpartition(".")[2]
        rows, columns = units, units
        if part in ("q_proj", "k_proj", "v_proj"):
            rows = queries if part == "q_proj" else keys
        elif part == "o_proj":
            columns = queries
        elif part in ("gate_proj", "up_proj", "down_proj"):
            out = held[f"{prefix.rpartition('.')[0]}.down_proj.weight"]
            inner = _largest(out.square().sum(0), student.intermediate_size)
            rows, columns = (units, inner) if part == "down_proj" else (inner, units)
        elif part in ("embed_tokens", "lm_head", "embed_positions"):
            rows = torch.arange(shape[0])
        elif part == "k_norm":  # one norm over all heads together
            rows = keys
        return (whole[rows] if len(shape) == 1 else whole[rows][:, columns]).contiguous()

    return weight


def kept_layer(layer: int, layers: int, of: int) -> int:
    """Layer of the teacher from which layer `layer` of `layers` starts."""
    return round(layer * (of - 1) / (layers - 1)) if layers > 1 else 0


def kept_heads(student: ModelConfig, teacher: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Kept rows of the query, and of the key and value projections."""
    groups = [
        kept_layer(group, student.num_key_value_heads, teacher.num_key_value_heads)
        for group in range(student.num_key_value_heads)
    ]
    each, of_each = (one.num_attention_heads // one.num_key_value_heads for one in (student, teacher))
    heads = [group * of_each + head for group in groups for head in range(each)]
    size = torch.arange(teacher.head_dim)
    queries, keys = (torch.cat([number * teacher.head_dim + size for number in chosen]) for chosen in (heads, groups))
    return queries, keys


def _largest(norms: torch.Tensor, count: int) -> torch.Tensor:
    return norms.topk(count).indices.sort().values


def _narrower(student: ModelConfig, teacher: ModelConfig) -> bool:
    sizes = (*_SMALLER[:2], *_SMALLER[3:5])
    return any(getattr(student, name) != getattr(teacher, name) for name in sizes)
