"""Weights of a model on the Hugging Face hub, fetched once.

    initial_weights = "hf://OWNER/NAME"             the commit of its branch "main" at the first use
    initial_weights = "hf://OWNER/NAME@REVISION"    a branch, a tag or a commit

The commit and the files that are read, each with its SHA-256 where the hub keeps one, are listed in a signed note
(`fetch/hub-...json` below the root), so that a branch that moves changes nothing until that note is removed. The files
are in the hub's own cache (HF_HOME), which runs share; an interrupted download continues.

The note names the server that listed the files (`HF_ENDPOINT` may name another one than the hub). The weights are
known to be the hub's where `HUB` listed the SHA-256 of each file; who serves their bytes does not matter then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governance.errors import CheckpointError, ConfigError, MissingInput
from governance.files import sha256_bytes
from governance.hub_client import HubPlace, ask_hub
from governance.log import get_logger
from governance.signed_notes import read_note, write_first_note
from governance.stage import Runtime
from pretrain.initial_weights.folder import FIELD, STATEMENT, is_read

_ADDRESS = re.compile(r"hf://(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?/?")
SCHEME = "hf://"
HUB = "https://huggingface.co"
"""The server whose listing verifies an origin."""


@dataclass(frozen=True)
class HubWeights:
    """A model of the hub in the hub's cache on this machine."""

    folder: Path
    address: str
    """hf://OWNER/NAME@COMMIT."""
    listed: Mapping[str, str]
    """SHA-256 of each file that the hub keeps one of."""
    endpoint: str
    """Address of the server that listed them."""

    def unverified(self, files: Mapping[str, str]) -> str:
        """Reason why they may not be the hub's; "" if they are."""
        if self.endpoint != HUB:
            return f"listed by {self.endpoint}, not by {HUB}"
        weights = sorted(name for name in files if name.endswith(".safetensors"))
        unlisted = next((name for name in weights if self.listed.get(name) != files[name]), "")
        return f"{HUB} listed no SHA-256 of its {unlisted}" if unlisted else ""

    def refuse_other(self, files: Mapping[str, str]) -> None:
        """Raise unless the files have the digests that the hub listed.

        Raises:
            CheckpointError: one differs.
        """
        if other := sorted(name for name, digest in self.listed.items() if files.get(name, digest) != digest):
            raise CheckpointError(
                f"{FIELD}: {self.folder / other[0]} is not what the hub listed for {self.address} (another SHA-256). "
                "Remove it and run the same command again; if it stays so, the copy on the hub is damaged."
            )


def fetched(address: str, runtime: Runtime) -> HubWeights:
    """Fetch a model's files into the hub's cache, or find them there.

    Raises:
        ConfigError: the address is not hf://OWNER/NAME[@REVISION].
        MissingInput: the hub refuses or cannot be reached; or the model is not fetched yet and `runtime.make` is off.
    """
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        raise ConfigError(f"{FIELD} = {address!r}: is not hf://OWNER/NAME[@REVISION]")
    name, revision = parts["name"], parts["revision"] or "main"
    place = HubPlace(FIELD, "model", name, revision, f'{FIELD} = "FOLDER"')
    note = _note(place, runtime)
    commit, files = str(note["commit"]), note["files"]
    folder = _cached(name, commit, files)
    if folder is None:
        if not runtime.make:
            raise MissingInput(f"{FIELD}: {place} is not fetched yet. Fetch it with: {runtime.command}")
        patterns = sorted(files)
        folder = Path(ask_hub(place, lambda api: api.snapshot_download(name, revision=commit, allow_patterns=patterns)))
    listed = {file: sha for file, sha in files.items() if sha}
    return HubWeights(folder, f"{SCHEME}{name}@{commit}", listed, note["endpoint"])


def _note(place: HubPlace, runtime: Runtime) -> dict[str, Any]:
    """Commit of a model and the SHA-256 of its files; listed once."""
    root, signer = runtime.root, runtime.hooks.signer
    name = sha256_bytes(json.dumps(["model", place.name, place.revision]).encode())[:16]
    path = root / "fetch" / f"hub-{name}.json"
    if (known := read_note(path, root, signer)) is not None and _sound(known):
        return known
    if not runtime.make:
        raise MissingInput(f"{FIELD}: {place} is not fetched yet. Fetch it with: {runtime.command}")

    def request(api: Any) -> tuple[Any, str]:
        return api.model_info(place.name, revision=place.revision, files_metadata=True), str(api.endpoint).rstrip("/")

    info, endpoint = ask_hub(place, request)
    read = [file for file in info.siblings if is_read(file.rfilename) or file.rfilename == STATEMENT]
    files = {file.rfilename: file.lfs.sha256 if file.lfs else "" for file in read}
    note = {"model": place.name, "revision": place.revision, "commit": info.sha, "files": files, "endpoint": endpoint}
    note = write_first_note(path, note, root, signer, _sound)  # the branch may move between the answers to two ranks
    get_logger(__name__).info("%s: %s is commit %s; written to %s", FIELD, place, note["commit"], path)
    return note


def _sound(note: Mapping[str, Any]) -> bool:
    kinds = {"files": dict, "commit": str, "endpoint": str}
    return all(isinstance(note.get(name), kind) for name, kind in kinds.items())


def _cached(name: str, commit: str, files: Iterable[str]) -> Path | None:
    """The model's folder in the hub's cache; None unless it is whole."""
    from huggingface_hub import try_to_load_from_cache

    paths = [try_to_load_from_cache(name, file, revision=commit) for file in files]
    found = [Path(path) for path in paths if isinstance(path, str)]
    return found[0].parent if found and len(found) == len(paths) else None
