"""Classifiers in local folders of `transformers`, loaded offline.

No code of a folder runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from governance.errors import ManifestError, MissingInput

_MAX_TOKENS = 512


class LoadedClassifier(NamedTuple):
    """A model in float32, ready to run."""

    tokenizer: Any
    """With a token for padding."""
    model: Any
    device: str
    """The GPU where there is one ("cuda"), else the processor ("cpu")."""
    longest: int
    """Tokens of the longest text that it takes."""


def require_safetensors(where: str, names: Iterable[str]) -> None:
    """Refuse a folder without weights as safetensors.

    Raises:
        MissingInput: no name is of such a file.
    """
    if not any(name.endswith(".safetensors") for name in names):
        raise MissingInput(
            f"{where}: has no weights as safetensors. Pickled ones can run code and are not read: load the model in "
            "transformers and save it with save_pretrained."
        )


def load_classifier_of(where: str, path: Path, kind: Literal["sequence", "token"]) -> LoadedClassifier:
    """Load the model in a folder.

    Raises:
        MissingInput: `transformers` is not installed.
        ManifestError: the folder is not such a classifier, or lacks some of its weights.
    """
    try:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer
    except ImportError as error:
        raise MissingInput(
            f"{where}: transformers is not installed. Install it with: pip install transformers"
        ) from error
    opened: Any = AutoModelForTokenClassification if kind == "token" else AutoModelForSequenceClassification
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, **options)
        model, state = opened.from_pretrained(
            path, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
        )
    except Exception as error:  # whatever its many readers raise
        message = str(error).strip().split("\n")[0][:200]
        raise ManifestError(f"{where}: transformers cannot load {path} as a {kind} classifier: {message}") from error
    if missing := sorted(state["missing_keys"]):
        raise ManifestError(f"{where}: {path} has no weights for {missing[:4]}: it is not a trained {kind} classifier.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    model.config.pad_token_id = tokenizer.pad_token_id
    device = "cuda" if torch.cuda.is_available() else "cpu"
    most = getattr(model.config, "max_position_embeddings", _MAX_TOKENS)
    return LoadedClassifier(
        tokenizer, model.to(device).eval(), device, min(_MAX_TOKENS, tokenizer.model_max_length, most)
    )
