"""IBANs, payment cards and Bitcoin addresses: number plans and checksums.

A checksum alone is weak (one number in ten passes Luhn, one in ninety-seven passes IBAN), so each check also requires a
prefix and a length that the plan assigns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stdnum import bitcoin, iban, luhn

from data_pipeline.pii.detections import HYPHENS, SPACES, TOUCHES, WORD, Detection, DigitRun

# Total length by country, from the IBAN registry of ISO 13616 (kept by SWIFT).
IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29,
    "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29,
    "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28,
    "HN": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20,
    "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19,
    "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29,
    "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24, "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24,
    "SM": 27, "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
    "YE": 30,
}  # fmt: skip

# Issuer ranges: first and last prefix, and the lengths in use (ISO/IEC 7812-1; the networks' public rules).
_CARD_PLANS: tuple[tuple[int, int, frozenset[int]], ...] = (
    (4, 4, frozenset({13, 16, 19})),  # Visa
    (51, 55, frozenset({16})),  # Mastercard
    (2221, 2720, frozenset({16})),
    (34, 34, frozenset({15})),  # American Express
    (37, 37, frozenset({15})),
    (6011, 6011, frozenset({16, 19})),  # Discover
    (644, 659, frozenset({16, 19})),
    (3528, 3589, frozenset({16, 19})),  # JCB
    (1800, 1800, frozenset({15})),
    (2131, 2131, frozenset({15})),
    (300, 305, frozenset({14, 16})),  # Diners Club
    (3095, 3095, frozenset({14, 16})),
    (36, 36, frozenset({14, 16})),
    (38, 39, frozenset({14, 16})),
    (62, 62, frozenset({16, 17, 18, 19})),  # UnionPay
    (2200, 2204, frozenset({16})),  # Mir
    (50, 50, frozenset({12, 13, 14, 15, 16, 18, 19})),  # Maestro
    (56, 58, frozenset({12, 13, 14, 15, 16, 18, 19})),
    (63, 63, frozenset({12, 13, 14, 15, 16, 18, 19})),
    (67, 67, frozenset({12, 13, 14, 15, 16, 18, 19})),
)

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


def is_card(digits: str) -> bool:
    """Return whether prefix, length and check digit are a card's."""
    planned = any(
        low <= int(digits[: len(str(low))]) <= high and len(digits) in sizes for low, high, sizes in _CARD_PLANS
    )
    return planned and luhn.is_valid(digits)


def _in_a_series(run: DigitRun, first: int, last: int) -> bool:
    """Return whether more groups of four come before or after.

    Such a run is a table of years, not a card. A group after another sign (the full stop of a sentence) is not of it.
    """
    sign = run.between[first].strip()
    before = first > 0 and run.ends[first - 1] - run.starts[first - 1] == 4 == run.ends[first] - run.starts[first]
    after = last < len(run.ends) and run.ends[last] - run.starts[last] == 4
    return (before and run.between[first - 1].strip() == sign) or (after and run.between[last - 1].strip() == sign)


_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_BECH32_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_BECH32_CONSTANTS = (1, 0x2BC830A3)  # Bech32 (BIP 173) and Bech32m (BIP 350)


def is_bech32(text: str) -> bool:
    """Return whether a segwit address of the main network is valid.

    It has one case, and the checksum that BIP 173 or BIP 350 defines.
    """
    if text not in (text.lower(), text.upper()) or not text.lower().startswith("bc1"):
        return False
    values = [_BECH32.find(letter) for letter in text.lower()[3:]]
    if min(values) < 0 or len(values) < 8:
        return False
    check = 1
    for value in (3, 3, 0, 2, 3, *values):  # "bc", high bits and low bits apart
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_BECH32_GENERATOR):
            check ^= generator if top >> bit & 1 else 0
    return check in _BECH32_CONSTANTS


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
