"""Write a checkpoint as a Hugging Face folder of type Llama: config.json, model.safetensors, tokenizer.json.

Parameter names and shapes are Llama's already, so this is a copy; the rotary embedding turns the same pairs of channels
(first half with second half). Weights are written in fp32, as the optimizer keeps them, vocabulary padding included.
"""

from __future__ import annotations

import json
from pathlib import Path

from governance.errors import ConfigError
from governance.files import atomic_path, place, write_json
from governance.manifest import Manifest
from pretrain.checkpoint import identity_of, read_checkpoint, weights
from pretrain.model_config import padded_vocabulary


def export(checkpoint: Path, tokenizer: Path, end_of_document: int, target: Path, root: Path) -> Manifest:
    """Write the model of `checkpoint` and its `tokenizer.json` into the new folder `target`.

    Args:
        checkpoint: the checkpoint's folder; its files are verified first.
        tokenizer: the tokeniser's JSON file.
        end_of_document: the id that ends a document.
        target: a folder that does not exist yet, or is empty.
        root: the artifacts' root.

    Returns:
        The checkpoint's manifest.

    Raises:
        CheckpointError: the checkpoint is damaged.
        ConfigError: the target is not empty.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target}: is not empty; an export never overwrites. Give a new folder.")
    manifest = read_checkpoint(checkpoint, root)
    identity = identity_of(manifest)
    model = identity.recipe.model
    _write_weights(manifest, target / "model.safetensors", root)
    place(tokenizer, target / "tokenizer.json")
    end = next(
        token["content"]
        for token in json.loads(tokenizer.read_bytes())["added_tokens"]
        if token["id"] == end_of_document
    )
    write_json(target / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end})
    write_json(
        target / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **model.model_dump(mode="json"),
            "vocab_size": padded_vocabulary(identity.vocabulary_size),
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "eos_token_id": end_of_document,
            "bos_token_id": None,
            "torch_dtype": "float32",
        },
    )
    return manifest


def _write_weights(manifest: Manifest, target: Path, root: Path) -> None:
    from safetensors.torch import save_file

    with weights(manifest, root) as files:
        tensors = {name: files.read(name) for name in files.names()}
    with atomic_path(target) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
