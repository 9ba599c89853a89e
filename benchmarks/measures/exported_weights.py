"""A model without a run as a folder of its architecture in `transformers`, without a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from governance.files import write_json


def write_weights(model: Any, target: Path) -> Path:
    """Write the weights and the configuration of a `Decoder` to a new folder, and return it."""
    from safetensors.torch import save_file

    from pretrain.export.architectures import family_of

    family = family_of(model.config)
    held = {name: value.detach() for name, value in model.named_parameters()}
    target.mkdir(parents=True)
    pieces = family.tensors(list(held))
    save_file(
        {piece.name: piece.make([held[name] for name in piece.sources]).contiguous() for piece in pieces},
        target / "model.safetensors",
        metadata={"format": "pt"},
    )
    settings = {**family.config, "architectures": [family.architecture], "vocab_size": model.lm_head.out_features}
    write_json(target / "config.json", settings)
    return target
