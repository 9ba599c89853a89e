"""Safetensors files of fp32 tensors: written tensor by tensor from pieces, read when asked for.

Promise: `write_tensors` gives byte for byte what the safetensors library writes of the same tensors, and holds none of
them: each piece goes from where it lies to the file. Price: one pass over the bytes, no copy in memory.

    8 bytes        length of the header, little endian
    the header     JSON: name -> dtype, shape, data_offsets; tensors by name; padded with spaces to 8 bytes
    the tensors    in that order, row-major, without gaps
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governance.errors import CheckpointError
from governance.files import atomic_file

_ITEM = 4  # bytes of a float32


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: flat fp32 pieces that, one after the other, are its elements in row-major order."""

    name: str
    shape: tuple[int, ...]
    pieces: Sequence[Any]
    """Each a contiguous fp32 array, or tensor in host memory."""


def write_tensors(path: Path, entries: Iterable[Entry], metadata: Mapping[str, str] | None = None) -> None:
    """Write a whole file, or nothing.

    Raises:
        StorageError: the disk is full or refuses.
        ValueError: the pieces of an entry do not add up to its shape.
    """
    import numpy

    ordered = sorted(entries, key=lambda entry: entry.name)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for entry in ordered:
        start, end = end, end + _ITEM * math.prod(entry.shape)
        header[entry.name] = {"dtype": "F32", "shape": list(entry.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in ordered:
            arrays = [numpy.asarray(piece).reshape(-1) for piece in entry.pieces]
            if sum(array.size for array in arrays) != math.prod(entry.shape):
                raise ValueError(f"{path}: the pieces of {entry.name} do not add up to its shape {entry.shape}")
            for array in arrays:
                file.write(memoryview(array.astype("<f4", copy=False)).cast("B"))


def map_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors of a file of fp32, each a flat array that stays on disk until it is read; and its metadata.

    Raises:
        CheckpointError: it is not there, torn, or holds something else than fp32.
    """
    import numpy

    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        mapped = numpy.memmap(path, mode="c", offset=8 + length)
        metadata = header.pop("__metadata__", {})
        places = {name: tuple(value["data_offsets"]) for name, value in header.items() if value["dtype"] == "F32"}
        tensors = {name: mapped[start:end].view("<f4") for name, (start, end) in places.items()}
        if len(tensors) != len(header) or sum(end - start for start, end in places.values()) != mapped.size:
            raise ValueError("its header does not fit its length")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    return tensors, metadata


class TensorFiles:
    """The tensors of some safetensors files by name, read when asked for; a context, as files stay mapped."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        self._of: dict[str, list[str]] = {}

    def __enter__(self) -> TensorFiles:
        from safetensors import SafetensorError, safe_open

        for path in self._paths:
            try:
                file = self._stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                self._stack.close()
                raise CheckpointError(f"{path}: cannot be read: {error}") from error
            self._files |= dict.fromkeys(file.keys(), file)
        for name in self._files:
            parameter, _, what = name.rpartition(".")
            self._of.setdefault(parameter, []).append(what)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self._files.clear()

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._files)

    def of(self, parameter: str) -> dict[str, Any]:
        """The tensors named "<parameter>.<what>", by what: whatever moments the optimizer that wrote them keeps."""
        return {what: self.read(f"{parameter}.{what}") for what in self._of.get(parameter, ())}

    def read(self, name: str, shape: Any = None) -> Any:
        """The tensor of this name.

        Raises:
            CheckpointError: there is none, or it has another shape: the checkpoint is of another model.
        """
        if name not in self._files:
            raise CheckpointError(f"{self._paths[0].parent}: has no {name}: it is of another model")
        tensor = self._files[name].get_tensor(name)
        if shape is not None and tuple(tensor.shape) != tuple(shape):
            raise CheckpointError(
                f"{self._paths[0].parent}: {name} has shape {tuple(tensor.shape)}, the model wants {tuple(shape)}"
            )
        return tensor
