"""Inputs that raised an unexplained exception, one for each place."""

from __future__ import annotations

import hashlib
import traceback
from pathlib import Path

FOUND = Path(__file__).parent / "found"


def place_of(error: Exception) -> str:
    """The kind of an exception, and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} at {Path(frames[-1].filename).name}:{frames[-1].lineno}"


def keep(name: str, data: bytes) -> str:
    """Write an input to `found/TARGET/`, where a test reads it from then on; its path."""
    path = FOUND / name / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)
