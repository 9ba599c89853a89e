r"""Parameters that learn, and those that stay as `train.initial_weights` has them.

    [train] trained = ["lm_head", "layers\.11\."]      these learn
    [train.adapter]                                      low-rank adapters learn (`adapters.py`)

Everything follows from names and shapes in closed form; nothing here imports torch.
"""

from __future__ import annotations

import difflib
import math
import re

from governance.errors import ConfigError
from pretrain.config.model import ModelConfig
from pretrain.config.training import AdapterConfig, TrainConfig, TrainRecipe
from pretrain.model.flops import block_weights, flops_per_token, parameter_count, parameter_shapes

Shapes = dict[str, tuple[int, ...]]
EMBEDDING = "model.embed_tokens"
DOWN, UP = "lora_A.weight", "lora_B.weight"
"""Ends of the names of A [rank, inputs] and B [outputs, rank], as in PEFT."""
HEAD = "lm_head.weight"
_MATRIX = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_LOOKED_UP = ("embed_tokens.weight", "embed_positions.weight")


def adapted_matrices(model: ModelConfig, adapter: AdapterConfig) -> Shapes:
    """Shapes of the matrices that get an adapter, by name without `.weight`.

    Raises:
        ConfigError: a target matches none, or the rank is larger than a matrix.
    """
    known = {name[:-7]: shape for name, shape in parameter_shapes(model, 1).items() if _MATRIX.fullmatch(name)}
    found = {name: shape for name, shape in known.items() if not adapter.targets or _named(name, adapter.targets)}
    if unmatched := [target for target in adapter.targets if not any(_named(name, (target,)) for name in known)]:
        near = sorted({name.rpartition(".")[2] for name in known})
        of_experts = "; the matrices of experts take no adapters" if model.moe is not None else ""
        raise ConfigError(
            f"train.adapter.targets: {unmatched[0]!r} is the end of no matrix's name; there are {', '.join(near)} in "
            f"the blocks model.layers.0 to {model.num_hidden_layers - 1}{of_experts}"
        )
    for name, shape in found.items():
        if adapter.rank > min(shape):
            raise ConfigError(
                f"train.adapter.rank = {adapter.rank} is above {min(shape)}, the smaller side of {name} "
                f"{list(shape)}: a product of rank {min(shape)} can be any matrix of this shape. Lower the rank, or "
                f"leave it out of train.adapter.targets"
            )
    return found


def trained_shapes(model: ModelConfig, train: TrainConfig, vocabulary_size: int) -> Shapes:
    """Shapes of the parameters that learn, by name.

    Raises:
        ConfigError: a pattern or target matches nothing, or the rank is larger than a matrix.
    """
    shapes = parameter_shapes(model, vocabulary_size)
    if not train.freezes:
        return shapes
    for pattern in train.trained:
        if not any(re.search(pattern, name) for name in shapes):
            raise ConfigError(_no_match(pattern, list(shapes), model))
    patterns = (*train.trained, *([f"^{HEAD}$"] if model.num_labels else []))  # the head of a classifier is new
    found = {name: shape for name, shape in shapes.items() if any(re.search(one, name) for one in patterns)}
    if train.adapter is not None:
        for name, (outputs, inputs) in adapted_matrices(model, train.adapter).items():
            found |= {f"{name}.{DOWN}": (train.adapter.rank, inputs), f"{name}.{UP}": (outputs, train.adapter.rank)}
        (rows, width), rank = shapes[f"{EMBEDDING}.weight"], train.adapter.embedding_rank
        if rank > width:
            raise ConfigError(
                f"train.adapter.embedding_rank = {rank} is above {width}, the width of the embedding: lower it, or "
                f"train the embedding whole with train.trained = ['embed_tokens']"
            )
        if rank:
            found |= {f"{EMBEDDING}.{DOWN}": (rank, width), f"{EMBEDDING}.{UP}": (rows, rank)}
    return found


def trained_count(recipe: TrainRecipe, vocabulary_size: int) -> int:
    """Number of parameters that learn."""
    if not recipe.train.freezes:
        return parameter_count(recipe.model, vocabulary_size)
    return sum(map(math.prod, trained_shapes(recipe.model, recipe.train, vocabulary_size).values()))


def parameters_of(recipe: TrainRecipe, vocabulary_size: int) -> dict[str, int]:
    """Numbers of a run's parameters: all, and trained ones.

    The second is there only where some are frozen.
    """
    trained = {"trained_parameters": trained_count(recipe, vocabulary_size)} if recipe.train.freezes else {}
    return {"parameters": parameter_count(recipe.model, vocabulary_size), **trained}


def trained_in_words(recipe: TrainRecipe, vocabulary_size: int) -> str:
    """Trained share in words; "" where everything learns."""
    if not recipe.train.freezes:
        return ""
    trained, every = trained_count(recipe, vocabulary_size), parameter_count(recipe.model, vocabulary_size)
    kind = "in adapters " if recipe.train.adapter is not None else ""
    return f", {trained:,} {kind}learn ({100 * trained / every:.2g} %)"


def training_flops(recipe: TrainRecipe, vocabulary_size: int) -> int:
    """Floating-point operations of forward and backward per token.

    Where all learn they are `flops_per_token`. Else the backward pass ends at the lowest block with a parameter that
    learns, and computes the gradients of trained weights alone: 2 of 6 operations per frozen weight are saved.
    """
    model, length = recipe.model, recipe.train.sequence_length
    every = flops_per_token(model, vocabulary_size, length, recipe.train.sides)
    if not recipe.train.freezes:
        return every
    learning = trained_shapes(model, recipe.train, vocabulary_size)
    layers = [int(found[1]) for name in learning if (found := _LAYER.match(name))]
    embeds = any(name.startswith(f"{EMBEDDING}.") or name.endswith(_LOOKED_UP) for name in learning)
    embeds = embeds or any("embedding_norm" in name for name in learning)
    lowest = 0 if embeds else min(layers, default=model.num_hidden_layers)
    seen = [min(length, model.window(layer) or length) for layer in range(model.num_hidden_layers)]
    attention = [model.attention_width * tokens for tokens in seen]
    weights = (every - 12 * sum(attention)) // 6
    passed = weights - lowest * block_weights(model) if set(learning) - {HEAD} else 0
    used = 1.0 if model.moe is None else model.moe.num_experts_per_tok / model.moe.num_local_experts
    products = {
        name: math.prod(shape) * (used if ".experts." in name else 1.0)
        for name, shape in learning.items()
        if not name.endswith(_LOOKED_UP) or (model.tied and "tokens" in name)
    }
    added = sum(count for name, count in products.items() if name.endswith((DOWN, UP)))
    backward = 2 * (passed + added) + 8 * sum(attention[lowest:])
    return round(2 * (weights + added) + 4 * sum(attention) + backward + 2 * sum(products.values()))


def _named(name: str, targets: tuple[str, ...]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _no_match(pattern: str, names: list[str], model: ModelConfig) -> str:
    if model.tied and re.search(pattern, HEAD):
        return (
            f"train.trained: {pattern!r} names the output projection, which is the embedding here "
            f"(model.tie_word_embeddings = true); name embed_tokens, and both learn"
        )
    near = difflib.get_close_matches(pattern.replace("\\", "").strip("^$"), names, n=3, cutoff=0.0)
    return f"train.trained: pattern {pattern!r} matches no parameter; the nearest names are {', '.join(near)}"
