"""Checksums and number plans of cards, bank accounts and coin addresses.

A checksum alone is weak (one number in ten passes Luhn, one in ninety-seven passes IBAN), so each check also requires a
prefix and a length that the plan assigns.
"""

from __future__ import annotations

from stdnum import luhn

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


def is_card(digits: str) -> bool:
    """Return whether prefix, length and check digit are a card's."""
    planned = any(
        low <= int(digits[: len(str(low))]) <= high and len(digits) in sizes for low, high, sizes in _CARD_PLANS
    )
    return planned and luhn.is_valid(digits)


_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_BECH32_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_BECH32_CONSTANTS = (1, 0x2BC830A3)  # Bech32 (BIP 173) and Bech32m (BIP 350)


def is_bech32(text: str, prefix: str = "bc") -> bool:
    """Return whether a segwit address has its checksum and one case.

    BIP 173 and BIP 350 define both.
    """
    if text not in (text.lower(), text.upper()) or not text.lower().startswith(prefix + "1"):
        return False
    values = [_BECH32.find(letter) for letter in text.lower()[len(prefix) + 1 :]]
    if min(values) < 0 or len(values) < 8:
        return False
    spread = [ord(letter) >> 5 for letter in prefix] + [0] + [ord(letter) & 31 for letter in prefix]
    check = 1
    for value in (*spread, *values):
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_BECH32_GENERATOR):
            check ^= generator if top >> bit & 1 else 0
    return check in _BECH32_CONSTANTS
