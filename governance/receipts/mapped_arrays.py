"""File of several arrays, mapped at once.

A file costs a stage two syncs and a digest, whatever its size. The form: 1,024 bytes of JSON, type and shape of each
array by name, closed with spaces and a line end; then the arrays in this order, each from a multiple of 64 bytes on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from governance.files import atomic_file

_HEADER_BYTES = 1024
_ALIGNED = 64


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays into one file.

    Args:
        path: of the file.
        arrays: contiguous numpy arrays by name, in the order of the file.
    """
    known = {name: [array.dtype.str, array.shape] for name, array in arrays.items()}
    header = json.dumps(known).encode("ascii")
    with atomic_file(path) as file:
        file.write(header.ljust(_HEADER_BYTES - 1) + b"\n")
        for array in arrays.values():
            file.write(array.reshape(-1).view(np.uint8).data)
            file.write(bytes(-array.nbytes % _ALIGNED))


def map_arrays(path: Path) -> dict[str, Any]:
    """The arrays of a file, by name.

    Raises:
        ValueError: it has another form or size.
        OSError: it cannot be read.
    """
    mapped = np.asarray(np.memmap(path, mode="r"))
    try:
        return dict(_parts(mapped, json.loads(bytes(mapped[:_HEADER_BYTES]))))
    except (TypeError, AttributeError, RecursionError, SyntaxError) as error:  # the header was altered
        raise ValueError(f"{path.name} has another form") from error


def _parts(mapped: Any, known: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    begin = _HEADER_BYTES
    for name, (kind, shape) in known.items():
        size = np.dtype(kind).itemsize * math.prod(shape)
        yield name, mapped[begin : begin + size].view(kind).reshape(shape)
        begin += size + -size % _ALIGNED
    if begin != len(mapped):
        raise ValueError(f"has {len(mapped)} bytes, and its header states {begin}")
