"""IBANs, payment cards and Bitcoin addresses, each with a checksum."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stdnum import bitcoin, iban, luhn

from data_pipeline.pii.checksums import IBAN_LENGTHS, is_bech32, is_card
from data_pipeline.pii.detections import HYPHENS, SPACES, TOUCHES, WORD, Detection, DigitRun

VOID = "void"
"""Type of an account number with a wrong checksum: no detection, and no other type may match inside it."""

_IBAN_NEXT = re.compile(rf"[{SPACES}{HYPHENS}.]?([A-Za-z0-9])")


def iban_at(text: str, start: int) -> Iterator[Detection]:
    """The IBAN whose letters begin at `start`, with optional separators."""
    head = text[start : start + 4]
    length = IBAN_LENGTHS.get(head[:2].upper())
    if length is None or head[0].isupper() != head[1].isupper() or (start and TOUCHES.match(text, start - 1)):
        return
    compact, end = head, start + 4
    while len(compact) < length and (step := _IBAN_NEXT.match(text, end)):
        compact, end = compact + step.group(1), step.end()
    if len(compact) == length and not TOUCHES.match(text, end):
        if iban.is_valid(compact, check_country=False):
            yield Detection(start, end, "iban")
        elif compact.isupper() and sum(letter.isdigit() for letter in compact) >= 10:
            yield Detection(start, end, VOID)


CARD_SHAPES = {"4 4 4 4 3", "4 4 4 4", "4 6 5", "4 6 4", "6 13", "4-4-4-4-3", "4-4-4-4", "4-6-5", "4-6-4"}
_SAYS_CARD = re.compile(
    r"(?:card|carte|karte|tarjeta|cartão|carta|kaart|visa|maestro|amex|卡|credit|debit|\bpan\b|\bcc\b)", re.I
)
_GLUED_LEFT = re.compile(rf"(?:[{WORD}]|[0-9][.,:/]|[{WORD}][{HYPHENS}])\Z")
_GLUED_RIGHT = re.compile(rf"[{WORD}]|[.:/{HYPHENS}][0-9]")


def card_at(text: str, run: DigitRun, first: int, shapes: list[str]) -> int | None:
    """End of the card number that starts at this group, or None.

    Args:
        text: the text of the run.
        run: its groups.
        first: the group to begin with.
        shapes: the shape of one, two, ... groups from there, as `slice_shapes` gives them.
    """
    start, size = run.starts[first], run.ends[first] - run.starts[first]
    if not (size in (4, 6) or 12 <= size <= 19):
        return None
    if size < 12:
        count = next((n for n in (5, 4, 3, 2) if n <= len(shapes) and shapes[n - 1] in CARD_SHAPES), 0)
        if not count or _in_a_series(run, first, first + count):
            return None
    else:
        count = 1
    last = first + count
    if _GLUED_LEFT.search(text[max(0, start - 2) : start]) or _GLUED_RIGHT.match(text, run.ends[last - 1]):
        return None
    digits = "".join(text[a:b] for a, b in zip(run.starts[first:last], run.ends[first:last], strict=True))
    if count > 1:
        return last if is_card(digits) else None
    if _SAYS_CARD.search(text[max(0, start - 40) : start]):
        return last if luhn.is_valid(digits) else None
    return last if size in (15, 16) and is_card(digits) else None


def _in_a_series(run: DigitRun, first: int, last: int) -> bool:
    """Return whether more groups of four come before or after.

    Such a run is a table of years, not a card.
    """
    before = first > 0 and run.ends[first - 1] - run.starts[first - 1] == 4 == run.ends[first] - run.starts[first]
    return before or (last < len(run.ends) and run.ends[last] - run.starts[last] == 4)


def bitcoin_at(text: str, start: int, end: int) -> Iterator[Detection]:
    """A Bitcoin address of the main network.

    It is in Base58check (P2PKH, P2SH) or Bech32 (segwit).
    """
    word = text[start:end]
    if (start and TOUCHES.match(text, start - 1)) or TOUCHES.match(text, end):
        return
    if (word[0] in "13" and len(word) <= 35 and bitcoin.is_valid(word)) or (
        word[:3].lower() == "bc1" and is_bech32(word)
    ):
        yield Detection(start, end, "bitcoin")
