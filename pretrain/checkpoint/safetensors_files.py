"""Safetensors files: streaming writer and lazy reader.

Promise: `write_tensors` and `write_rounded` write byte for byte what the safetensors library writes of the same
tensors, and hold none of them: each piece goes straight to the file. Price: one pass over the bytes, no copy in memory.
`TensorFiles` reads only the bytes of tensors that are requested.

    8 bytes        length of the header, little endian
    the header     JSON: name -> dtype, shape, data_offsets; widest tensors first, then by name; padded to 8 bytes
    the tensors    in that order, row-major, without gaps
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from governance.errors import CheckpointError
from governance.files import atomic_file, running_sha256

_ITEM = 4  # bytes of a float32
_DTYPES = {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16"}

Shapes = Sequence[tuple[str, tuple[int, ...]]]
"""Name and full shape of each parameter, in the model's order."""


@dataclass(frozen=True)
class TensorEntry:
    """A tensor to write, in flat fp32 pieces in row-major order."""

    name: str
    shape: tuple[int, ...]
    pieces: Sequence[Any]
    """Contiguous fp32 arrays, or tensors in host memory."""


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


def write_tensors(path: Path, entries: Iterable[TensorEntry], metadata: Mapping[str, str] | None = None) -> None:
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
    with atomic_file(path) as file:
        file.write(_header_bytes(header))
        for entry in ordered:
            arrays = [numpy.asarray(piece).reshape(-1) for piece in entry.pieces]
            if sum(array.size for array in arrays) != math.prod(entry.shape):
                raise ValueError(f"{path}: the pieces of {entry.name} do not add up to its shape {entry.shape}")
            for array in arrays:
                file.write(memoryview(array.astype("<f4", copy=False)).cast("B"))


def write_rounded(path: Path, tensors: Mapping[str, Any]) -> str:
    """Write fp32, bf16 or fp16 tensors; return the SHA-256.

    The digest is that of the bytes that were written: whoever can write to the folder may replace the file before it
    could be read again.

    Raises:
        StorageError: the disk is full or refuses.
    """
    import torch

    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        kind = _DTYPES[str(tensor.dtype)]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    running = running_sha256()
    with atomic_file(path) as file:
        for piece in (_header_bytes(header), *(tensor for _, tensor in ordered)):
            if not isinstance(piece, bytes):
                piece = memoryview(piece.contiguous().reshape(-1).view(torch.uint8).numpy())
            running.update(piece)
            file.write(piece)
    return running.hexdigest()


def _header_bytes(header: Mapping[str, Any]) -> bytes:
    """The header as it begins a file, with its length."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True)
class TensorLocation:
    """Location of a tensor in its file."""

    offset: int
    """Its first byte."""
    shape: tuple[int, ...]


def read_header(path: Path, file: BinaryIO) -> tuple[dict[str, TensorLocation], dict[str, str]]:
    """Location of each fp32 tensor of an open file, and its metadata.

    Raises:
        CheckpointError: it is torn, or holds a tensor that is not fp32.
    """
    try:
        length = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size - 8 - length
        header = json.loads(file.read(length)) if size >= 0 else {}
        metadata = header.pop("__metadata__", {})
        places, end = {}, 0
        for name, value in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            place = TensorLocation(8 + length + value["data_offsets"][0], tuple(value["shape"]))
            fits = value["dtype"] == "F32" and place.offset == 8 + length + end
            end += _ITEM * math.prod(place.shape)
            if not fits or value["data_offsets"][1] != end:
                raise ValueError(f"{name} is not fp32 of its shape at its offset")
            places[name] = place
        if end != size:
            raise ValueError("its header does not fit its length")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, MemoryError, OverflowError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    return places, metadata


def map_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Memory-mapped fp32 tensors of a file, flat, and its metadata.

    Raises:
        CheckpointError: it is missing or torn, or holds a tensor that is not fp32.
    """
    import numpy

    try:
        with open(path, "rb") as file:
            places, metadata = read_header(path, file)
        mapped = numpy.memmap(path, mode="c")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    return {
        name: mapped[place.offset : place.offset + _ITEM * math.prod(place.shape)].view("<f4")
        for name, place in places.items()
    }, metadata


class TensorFiles:
    """Tensors of several fp32 safetensors files, by name.

    A context that keeps the files open.

    Price: only the requested elements are read.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._stack = ExitStack()
        self._files: dict[str, tuple[BinaryIO, TensorLocation]] = {}
        self._of: dict[str, list[str]] = {}

    def __enter__(self) -> TensorFiles:
        for path in self._paths:
            try:
                file = self._stack.enter_context(open(path, "rb", buffering=0))
                places, _ = read_header(path, file)
            except (OSError, CheckpointError) as error:
                self._stack.close()
                if isinstance(error, CheckpointError):
                    raise
                raise CheckpointError(f"{path}: cannot be read: {error}") from error
            self._files |= {name: (file, place) for name, place in places.items()}
        for name in self._files:
            parameter, _, what = name.rpartition(".")
            self._of.setdefault(parameter, []).append(what)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self._files.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._files)

    def of(self, parameter: str, start: int, count: int) -> dict[str, Any]:
        """Elements of the tensors "<parameter>.<what>", such as moments, by what."""
        return {what: self.stretch(f"{parameter}.{what}", start, count) for what in self._of.get(parameter, ())}

    def read(self, name: str, shape: Any = None) -> Any:
        """The whole tensor of this name.

        Raises:
            CheckpointError: it is missing or has another shape: the checkpoint belongs to another model.
        """
        found = self._place(name).shape
        if shape is not None:
            self.refuse_other(name, shape)
        return self.stretch(name, 0, math.prod(found)).view(found)

    def refuse_other(self, name: str, shape: Sequence[int]) -> None:
        """Raise unless the tensor of this name has this shape.

        No tensor is read.

        Raises:
            CheckpointError: it is missing or has another shape.
        """
        if (found := self._place(name).shape) != tuple(shape):
            raise CheckpointError(f"{self._paths[0].parent}: {name} has shape {found}, the model needs {tuple(shape)}")

    def stretch(self, name: str, start: int, count: int) -> Any:
        """Elements `start` to `start + count` of a tensor, flattened row-major.

        Raises:
            CheckpointError: the tensor is missing or smaller: the checkpoint belongs to another model.
        """
        import torch

        place = self._place(name)
        if start + count > math.prod(place.shape):
            raise CheckpointError(
                f"{self._paths[0].parent}: {name} of shape {place.shape} has no elements {start} to {start + count}: "
                f"it belongs to another model"
            )
        read = torch.empty(count, dtype=torch.float32)
        file, room, offset = self._files[name][0], memoryview(read.numpy()).cast("B"), place.offset + _ITEM * start
        while room:
            got = os.preadv(file.fileno(), [room], offset)
            if not got:
                raise CheckpointError(f"{file.name}: ends within {name}")
            room, offset = room[got:], offset + got
        return read

    def _place(self, name: str) -> TensorLocation:
        if name not in self._files:
            raise CheckpointError(f"{self._paths[0].parent}: has no {name}: it belongs to another model")
        return self._files[name][1]
