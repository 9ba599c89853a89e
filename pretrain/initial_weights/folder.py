"""Folder of Hugging Face weights: files, digests and tensors.

    config.json                                          model_type and sizes (`model_settings.py`)
    model.safetensors                                    or model-0000i-of-0000N.safetensors with an index
    tokenizer.json                                       compared with the tokenizer of the token shards
    README.md, LICENSE*, NOTICE*, USE_POLICY*            card and terms, carried on into an export's card
    export.statement.json                                a signed statement on an export, for runs in other roots

The digest of the folder is that of its files' names and digests, without the journal's line: it has the same weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from governance.errors import CheckpointError, ConfigError, MissingInput
from governance.files import sha256_bytes, sha256_file
from governance.log import get_logger
from governance.verified_files import file_state

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
FIELD = "train.initial_weights"
CONFIG, TOKENIZER, CARD = "config.json", "tokenizer.json", "README.md"
STATEMENT = "export.statement.json"
"""The envelope of a statement on the weights as an export."""
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_TERMS = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY|COPYING)[^/]*", re.IGNORECASE)
_CARD_FACTS = ("license", "license_name", "license_link", "language", "base_model", "datasets")
_OTHER_FORMS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.msgpack", "*.h5")


@dataclass(frozen=True)
class WeightsFolder:
    """Files of a folder with weights, and the tensors in them."""

    path: Path
    files: Mapping[str, str]
    """Name -> SHA-256, of every file that is read."""
    address: str = ""
    """hf://OWNER/NAME@COMMIT of a model of the hub."""
    states: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Name -> `file_state` before the digest was taken, or as the file was last found to have it."""

    @property
    def name(self) -> str:
        """Its name in manifests and cards: the model's, or the folder's."""
        return self.address.rpartition("/")[2].partition("@")[0] or self.path.name

    @property
    def digest(self) -> str:
        """Digest of the files' names and digests."""
        return sha256_bytes("\n".join(f"{self.files[name]}  {name}" for name in sorted(self.files)).encode())

    @cached_property
    def config(self) -> dict[str, Any]:
        """Fields of config.json."""
        return self._unchanged(CONFIG, lambda: read_object(self.path / CONFIG))

    @cached_property
    def tensors(self) -> dict[str, str]:
        """Name of each tensor -> its file.

        Raises:
            CheckpointError: a file is torn, or the index names a tensor that is not in its file.
        """
        from safetensors import SafetensorError, safe_open

        found: dict[str, str] = {}
        for name in sorted(name for name in self.files if name.endswith(".safetensors")):
            try:
                with safe_open(self.path / name, framework="np") as file:
                    found |= dict.fromkeys(file.keys(), name)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{self.path / name}: is truncated or damaged ({error}). Fetch it again; its digest is "
                    f"{self.files[name][:16]}…"
                ) from error
        if INDEX in self.files:
            listed = read_object(self.path / INDEX)["weight_map"]
            if absent := sorted(tensor for tensor, file in listed.items() if found.get(tensor) != file):
                raise CheckpointError(
                    f"{self.path / INDEX}: names {absent[0]} in {listed[absent[0]]}, which does not hold it. Fetch "
                    f"both files again."
                )
        return found

    def read(self, name: str) -> torch.Tensor:
        """Tensor of a name, fp32 on the CPU.

        Raises:
            CheckpointError: its file was changed since its digest was taken.
        """
        import torch
        from safetensors import safe_open

        def tensor() -> torch.Tensor:
            with safe_open(self.path / self.tensors[name], framework="pt") as file:
                found: torch.Tensor = file.get_tensor(name)
                return found.to(torch.float32, copy=True)  # no view of the file

        return self._unchanged(self.tensors[name], tensor)

    def _unchanged(self, name: str, read: Callable[[], T]) -> T:
        """Result of reading a file that has the bytes of its digest.

        A second name or another mode moves the time of a file's entry alone: it is then hashed, and read, once more.

        Raises:
            CheckpointError: it was changed since its digest was taken.
        """
        path = self.path / name
        while True:
            found, before, now = read(), self.states.get(name), file_state(path)
            if before is None or now == before:
                return found
            if now[:-1] != before[:-1] or sha256_file(path) != self.files[name]:
                raise CheckpointError(
                    f"{path}: was changed since its digest was taken. Fetch it again, then run the same command again."
                )
            self.states[name] = now

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; reads no weights."""
        from safetensors import safe_open

        with safe_open(self.path / self.tensors[name], framework="np") as file:
            return tuple(file.get_slice(name).get_shape())

    def facts(self) -> dict[str, Any]:
        """Facts of the folder's model card, and its files of terms."""
        terms = {name: digest for name, digest in self.files.items() if _TERMS.fullmatch(name)}
        facts = _card_facts(self.path / CARD) if CARD in self.files else {}
        return {
            "name": self.name,
            "digest": self.digest,
            **({"address": self.address} if self.address else {}),
            "model_type": self.config.get("model_type"),
            "card": facts,
            **({"terms": terms} if terms else {}),
        }


def is_read(name: str) -> bool:
    """Return whether a file of a model's repository is read."""
    known = name in (CONFIG, TOKENIZER, CARD, INDEX, SINGLE) or _TERMS.fullmatch(name)
    return bool(known or re.fullmatch(r"model-\d+-of-\d+\.safetensors", name))


def open_folder(path: Path, digest_of: Callable[[Path], str] = sha256_file, address: str = "") -> WeightsFolder:
    """Hash the files of a folder of weights, by `digest_of`.

    Raises:
        MissingInput: there is no such folder, or it lacks a file.
        ConfigError: the weights have another form than safetensors.
    """
    if not path.is_dir():
        raise MissingInput(
            f"{FIELD}: there is no folder {path}. Give a folder, relative to the run's file, or hf://OWNER/NAME."
        )
    required = [CONFIG, TOKENIZER]
    if (path / INDEX).exists() and not (path / SINGLE).exists():  # if both exist, transformers reads the single file
        weights = sorted(set(read_object(path / INDEX).get("weight_map", {}).values()))
        if any(Path(name).name != name for name in weights):
            raise ConfigError(f"{path / INDEX}: names files outside its folder. Fetch it again.")
        required += [INDEX, *weights]
    else:
        required.append(SINGLE)
        other = [found for pattern in _OTHER_FORMS for found in sorted(path.glob(pattern))]
        if not (path / SINGLE).exists() and other:
            raise ConfigError(
                f"{FIELD}: {other[0]} is not in the safetensors format. Load the model with transformers and write it "
                f"with save_pretrained(safe_serialization=True)."
            )
    if absent := [name for name in required if not (path / name).is_file()]:
        raise MissingInput(f"{FIELD}: {path} lacks {', '.join(absent)}. Fetch the whole folder again.")
    known = [entry.name for entry in path.iterdir() if entry.name == CARD or _TERMS.fullmatch(entry.name)]
    names = [*required, *(name for name in known if (path / name).is_file())]
    states = {name: file_state(path / name) for name in names}
    return WeightsFolder(path, {name: digest_of(path / name) for name in names}, address, states)


def _card_facts(path: Path) -> dict[str, Any]:
    """Facts of a model card; none if its YAML is invalid."""
    from huggingface_hub import ModelCard

    try:
        held = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    except Exception as error:  # the library raises unrelated classes for broken YAML
        get_logger(__name__).warning(
            "%s: its metadata cannot be read, so the run has no licence of it: %s", path, error
        )
        return {}
    return {name: held[name] for name in _CARD_FACTS if held.get(name)}


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: it is torn, or is not an object.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). Fetch it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds no JSON object. Fetch it again.")
    return value
