"""Manifests that tests write by hand."""

from collections.abc import Iterable
from typing import Any

from governance.manifest import Manifest, Output


def manifest_of(stage: str, outputs: Iterable[Output] = (), key: str = "0", **fields: Any) -> Manifest:
    """The manifest of an artifact; what `fields` do not state is empty.

    `key` is repeated until it has 64 characters.
    """
    empty = {"version": 1, "config": {}, "inputs": (), "stats": {}, "run": {}}
    return Manifest(stage=stage, key=(key * 64)[:64], outputs=tuple(outputs), **{**empty, **fields})
