"""Export of a checkpoint's adapter in PEFT's format.

    adapter_config.json           rank, alpha, targets, and the base: its name and revision
    adapter_model.safetensors     base_model.model.<matrix>.lora_A.weight [rank, inputs], ...lora_B.weight
    README.md                     card: facts and digests

`peft.PeftModel.from_pretrained(base, folder)` computes the logits of the merged export to rounding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from governance.errors import ConfigError
from governance.files import write_json, write_text
from governance.manifest import Manifest
from pretrain.checkpoint.format import CheckpointIdentity, identity_of, read_checkpoint, weights
from pretrain.checkpoint.safetensors_files import write_rounded
from pretrain.config.training import AdapterConfig
from pretrain.export.architectures import tensors_of
from pretrain.export.new_folder import new_folder
from pretrain.finetuning.trained_parameters import DOWN, UP, adapted_matrices, trained_count

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def export_adapter(checkpoint: Path, target: Path, root: Path, unverified: str = "") -> tuple[Manifest, dict[str, str]]:
    """Write a checkpoint's adapter into the new folder `target`, in fp32.

    `unverified` is the reason why the checkpoint's origin is not verified. Returns the checkpoint's manifest, and the
    SHA-256 of the weights as they were written, by file.

    Raises:
        CheckpointError: the checkpoint or its base is damaged.
        ConfigError: it has no adapter, other parameters learned too, or the base's tensors have other forms.
    """
    with new_folder(target):
        return _export(checkpoint, target, root, unverified)


def _export(checkpoint: Path, target: Path, root: Path, unverified: str) -> tuple[Manifest, dict[str, str]]:
    manifest = read_checkpoint(checkpoint, root)
    identity, base = identity_of(manifest), manifest.stats.get("initial_weights", {})
    adapter, others = identity.recipe.train.adapter, list(identity.recipe.train.trained)
    others += ["the adapter of the embedding"] if adapter is not None and adapter.embedding_rank else []
    others += ["lm_head"] if identity.recipe.model.num_labels else []
    if adapter is None or others:
        what = "no adapter" if adapter is None else f"parameters besides it that learned ({', '.join(others)})"
        raise ConfigError(f"--adapter: {checkpoint} has {what}. Leave the option out: the whole model is written then")
    names = _names(identity, adapter, str(base.get("model_type")))
    with weights(manifest, root) as files:
        tensors = {
            f"base_model.model.{name}.{part}": files.read(f"{matrix}.{part}")
            for matrix, name in names.items()
            for part in (DOWN, UP)
        }
    digests = {_WEIGHTS: write_rounded(target / _WEIGHTS, tensors)}
    write_json(target / _CONFIG, _settings(adapter, sorted(names.values()), base))
    write_text(target / "README.md", "\n".join(_card(manifest, identity, adapter, unverified)))
    return manifest, digests


def _names(identity: CheckpointIdentity, adapter: AdapterConfig, model_type: str) -> dict[str, str]:
    """Module of the base, by the matrix that it computes with.

    Raises:
        ConfigError: the base holds a matrix joined or turned.
    """
    model = identity.recipe.model
    wanted = [f"{matrix}.weight" for matrix in adapted_matrices(model, adapter)]
    held = {source: tensor for tensor in tensors_of(model_type, model, wanted) for source in tensor.sources}
    probe: Any = object()
    for matrix, tensor in held.items():
        if tensor.sources != (matrix,) or tensor.make([probe]) is not probe:
            raise ConfigError(
                f"--adapter: {model_type!r} holds {matrix} in {tensor.name} in another form, to which this adapter "
                f"does not apply. Leave the option out: the whole model is written then"
            )
    return {matrix.removesuffix(".weight"): held[matrix].name.removesuffix(".weight") for matrix in wanted}


def _settings(adapter: AdapterConfig, modules: Sequence[str], base: dict[str, Any]) -> dict[str, Any]:
    address = str(base.get("address", "")).removeprefix("hf://")
    name, _, revision = address.partition("@")
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name or base.get("name"),
        "revision": revision or None,
        "r": adapter.rank,
        "lora_alpha": int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha,
        "lora_dropout": adapter.dropout,
        "use_rslora": adapter.rank_stabilised,
        "target_modules": list(modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _card(manifest: Manifest, identity: CheckpointIdentity, adapter: AdapterConfig, unverified: str) -> list[str]:
    base = manifest.stats.get("initial_weights", {})
    learned = trained_count(identity.recipe, identity.vocabulary_size)
    licence = base.get("card", {}).get("license", "not stated in its card")
    return [
        "---",
        "library_name: peft",
        f"base_model: {json.dumps(base.get('name'), ensure_ascii=False)}",
        "---",
        "",
        f"# Adapter of training run {identity.train_key[:16]}",
        "",
        "| | |",
        "|---|---|",
        f"| base | {base.get('name')} ({base.get('model_type')}), digest {base.get('digest')} |",
        f"| licence of the base | {licence} |",
        f"| adapter | LoRA of rank {adapter.rank}, alpha {adapter.alpha:g}, {learned:,} parameters |",
        f"| optimizer steps | {identity.step:,} |",
        f"| tokens predicted in training | {manifest.stats['tokens']:,} |",
        f"| checkpoint, digest | {manifest.digest} |",
        f"| training run, key | {identity.train_key} |",
        *(f"| made from {item.stage}, digest | {item.digest} |" for item in manifest.inputs),
        *([f"| origin of the weights | not verified: {unverified} |"] if unverified else []),
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f'base = AutoModelForCausalLM.from_pretrained("{base.get("name")}")  # the folder or model named above',
        'model = PeftModel.from_pretrained(base, ".")',
        "```",
        "",
    ]
