"""Table of an inspection."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InspectTable:
    """One table of the result."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str | int, ...], ...]
    note: str = ""
