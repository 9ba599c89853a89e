"""Pair of a source and its target as one text."""

from __future__ import annotations

from data_pipeline.normalised_text import normalise

MARK = "␞"
"""Between the two texts, on a line of its own."""


def pair_text(source: str, target: str) -> str | None:
    """The text of a pair; None: a side holds the mark.

    The sides are normalised first, as `clean` does, and stripped, so that nothing after the reader moves the mark.
    """
    texts = [normalise(text).strip() for text in (source, target)]
    return None if any(MARK in text for text in texts) else f"\n{MARK}\n".join(texts)


def prompt_of(source: str) -> str:
    """The text of a pair up to its target."""
    return f"{normalise(source).strip()}\n{MARK}\n"


def sides(text: str) -> tuple[str, str] | None:
    """Source and target of a text; None: no whole pair."""
    parts = text.split(f"\n{MARK}\n")
    whole = len(parts) == 2 and all(map(str.strip, parts)) and text.count(MARK) == 1
    return (parts[0], parts[1]) if whole else None
