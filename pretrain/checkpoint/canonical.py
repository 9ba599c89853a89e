"""Canonical checkpoints from the fragments of all ranks.

The division of parameters over files, and so every byte, is a function of the model and of what was learned, not of the
ranks, the ZeRO stage or the time of writing. Price: each byte is copied once, from a rank's fragment to its file;
nothing is held in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.manifest import Output, describe
from pretrain.checkpoint.safetensors_files import TensorEntry, write_tensors

if TYPE_CHECKING:
    from pretrain.engine.fragments import Owned

FILE_BYTES = 1 << 30  # of fp32 weights in a file; a larger parameter has a file of its own
_MASTER = "master"

Shapes = Sequence[tuple[str, tuple[int, ...]]]
"""Name and full shape of each parameter, in the model's order."""


def file_plan(shapes: Shapes, limit: int) -> list[list[str]]:
    """Parameters of each file, in order, up to `limit` bytes."""
    files: list[list[str]] = []
    filled = limit + 1
    for name, shape in shapes:
        size = 4 * math.prod(shape)
        if filled + size > limit:
            files.append([])
            filled = 0
        files[-1].append(name)
        filled += size
    return files


def write_canonical(
    folder: Path,
    root: Path,
    shapes: Shapes,
    fragments: Callable[[list[str]], Iterable[Owned]],
    ranks: tuple[int, int],
) -> list[Output]:
    """Write this rank's files of the plan, and hash them.

    `fragments(names)` are all ranks' fragments of these parameters, in any order.

    Raises:
        StorageError: the disk is full or failing.
        ValueError: the fragments do not cover a parameter once.
    """
    full = dict(shapes)
    outputs = []
    rank, world_size = ranks
    for number, names in enumerate(file_plan(shapes, FILE_BYTES)):
        if number % world_size != rank:
            continue
        found: dict[str, list[Owned]] = {name: [] for name in names}
        for fragment in fragments(names):
            found[fragment.name].append(fragment)
        entries = {name: _entries(name, full[name], found[name]) for name in names}
        parts = {
            "weights": [TensorEntry(name, full[name], kinds[_MASTER]) for name, kinds in entries.items()],
            "moments": [
                TensorEntry(f"{name}.{kind}", full[name], pieces)
                for name, kinds in entries.items()
                for kind, pieces in kinds.items()
                if kind != _MASTER
            ],
        }
        for role, tensors in parts.items():
            path = folder / role / f"{number:05d}.safetensors"
            write_tensors(path, tensors)
            outputs.append(describe(path, root))
    return outputs


def _entries(name: str, shape: tuple[int, ...], fragments: list[Owned]) -> Mapping[str, list[Any]]:
    """Pieces of a parameter's master and moments, by kind, in order."""
    ordered = sorted((fragment for fragment in fragments if fragment.length), key=lambda fragment: fragment.start)
    end = 0
    for fragment in ordered:
        if fragment.start != end or fragment.tensors.keys() != ordered[0].tensors.keys():
            raise ValueError(f"{name}: the ranks' fragments do not fit together at element {end}")
        end += fragment.length
    if not ordered:
        raise ValueError(f"{name} {shape}: no rank has it")
    return {kind: [fragment.tensors[kind] for fragment in ordered] for kind in ordered[0].tensors}
