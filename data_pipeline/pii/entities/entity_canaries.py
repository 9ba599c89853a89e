"""Canaries of names and places, planted in sentences that state them.

The words are common given names, family names and towns; a name is put together by chance and nobody's on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data_pipeline.pii.canaries import Canary
from data_pipeline.pii.detections import Detection
from data_pipeline.pii.draws import Draw

_GIVEN = ("Ines", "Thomas", "Sofia", "Ahmed", "Brigitte", "Carlos", "Yuki", "Oluwaseun", "Anna", "David", "Mei", "Lars")
_FAMILY = ("Okafor", "Rossi", "Nguyen", "Schneider", "García", "Kowalska", "Tanaka", "Johansson", "Miller", "Haddad")
_TOWNS = ("Lisbon", "Nairobi", "Osaka", "Hamburg", "Toronto", "Kraków", "Santiago", "Jakarta", "Manchester", "Lyon")

ENTITY_MAKERS: dict[str, Callable[[Draw], str]] = {
    "name": lambda draw: f"{draw.one(*_GIVEN)} {draw.one(*_FAMILY)}",
    "place": lambda draw: draw.one(*_TOWNS),
}
"""Type -> maker of one name or place."""

ENTITY_SENTENCES: dict[str, Sequence[str]] = {
    "name": (
        "My name is {} and I work here.", "Yesterday {} called the office.", "The letter was signed by {}.",
        "Sie heißt {} und wohnt hier.", "Je m'appelle {}.", "Me llamo {}.",
    ),
    "place": (
        "She lives in {} with her family.", "He moved to {} last year.", "They met in {} in the spring.",
        "Er wohnt seit Jahren in {}.", "Elle habite à {}.", "Vive en {} desde hace años.",
    ),
}  # fmt: skip


def is_covered(canary: Canary, found: Sequence[Detection]) -> bool:
    """Return whether detections of its type cover the canary."""
    start, end, kind = canary.expected
    held = {place for mark in found if mark.type == kind for place in range(mark.start, mark.end)}
    return all(place in held or not canary.text[place].isalnum() for place in range(start, end))
