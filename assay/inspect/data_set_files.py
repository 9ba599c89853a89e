"""Hub data sets on disk: files without rows, and stated licences.

A folder of `save_to_disk` has rows only in the Arrow files that its state names; others are left over from the
library's cache. A `README.md` that begins with a YAML block is a card, whatever else the folder holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.code.licences import UNKNOWN, normalised

_STATE, _INFO = "state.json", "dataset_info.json"
_CARD = "README.md"
_ABOUT = (_STATE, _INFO, "dataset_infos.json", "dataset_dict.json")
_CARD_BYTES = 1 << 20


def without_rows(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Kinds of the files without rows, by name."""
    found = {}
    saved = _saved(folder / _STATE) if _STATE in names else None
    if saved is not None:
        found = {name: "left-over of a cache" for name in names if name.endswith(".arrow") and name not in saved}
    if saved is not None or "dataset_dict.json" in names or (_CARD in names and card(folder / _CARD)):
        found |= {name: "facts of a data set" for name in names if name in _ABOUT}
    if _CARD in names and card(folder / _CARD):
        found[_CARD] = "card of a data set"
    return found


def _saved(state: Path) -> set[str] | None:
    """Names of the Arrow files in a state; None: another file."""
    try:
        return {Path(file["filename"]).name for file in json.loads(state.read_bytes())["_data_files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def card(path: Path) -> dict[str, Any]:
    """The YAML block of a card; empty where a file has none."""
    import yaml

    try:
        with path.open(encoding="utf-8") as file:
            head = file.read(_CARD_BYTES)
        block = yaml.safe_load(head.split("\n---", 1)[0][3:]) if head.startswith("---") else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return block if isinstance(block, dict) else {}


def stated_licences(about: Iterable[Path]) -> dict[Path, set[str]]:
    """Folder -> SPDX names of licences that its card and facts state."""
    stated: dict[Path, set[str]] = {}
    for file in about:
        values: Any = card(file) if file.name == _CARD else _facts(file)
        licence = values.get("license")
        names = licence if isinstance(licence, list) else [licence]
        stated.setdefault(file.parent, set()).update(
            normalised(name) if isinstance(name, str) else UNKNOWN for name in names if name
        )  # as text, lists that YAML's aliases repeat in lists may be of any length
    return stated


def licence_of(files: Iterable[Path], stated: Mapping[Path, set[str]]) -> str:
    """The one licence stated in folders above each file; else `UNKNOWN`.

    A card says nothing about other files next to its data set.
    """
    above = ({folder, *folder.parents} & stated.keys() for folder in {file.parent for file in files})
    found = {frozenset(name for folder in folders for name in stated[folder]) for folders in above}
    [names, *others] = found
    return min(names) if len(names) == 1 and not others else UNKNOWN


def _facts(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes()) if path.name == _INFO else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
