"""Tokenizer parity: tokens that each language needs for equal text.

    tokens_per_byte = tokens / bytes of UTF-8                                 tokens per byte
    premium         = tokens_per_byte / tokens_per_byte of the reference      1 is equal

Petrov, La Malfa, Torr & Bibi 2023, "Language Model Tokenizers Introduce Unfairness Between Languages" (NeurIPS), define
the premium as the tokens of a text over those of its translation. Without translations this is a substitute: a byte
carries unequal meaning in two scripts (a letter is one byte of English, two of Greek, three of Thai), so compare a
language with itself over tokenizers, and languages of one script with each other.

There is no interval: the counts are of every token of this corpus. Tokens include the end-of-document tokens, copies
that a mix makes are counted as often as they are written. `n` is the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from governance.checks.bias.interval_rows import Row, interval_row

NO_COUNTS = "encode counted no tokens of the reference language"


def parity_rows(encode: Mapping[str, Any], reference: str = "en") -> list[Row]:
    """The rows of the suite `parity`.

    Args:
        encode: the stats of the stage `encode`; its `by_language` has language -> tokens, bytes, documents.
        reference: the language against which the premium is taken.
    """
    counts = {language: entry for language, entry in encode.get("by_language", {}).items() if entry.get("bytes")}
    rates = {language: entry["tokens"] / entry["bytes"] for language, entry in counts.items()}
    rows = []
    for language, rate in sorted(rates.items()):
        n = {"n": int(counts[language]["tokens"])}
        rows.append(interval_row({"metric": "tokens_per_byte", "language": language}, {"value": rate, **n}))
        against = rates.get(reference)
        premium = {"value": rate / against if against else None, **n}
        names = {"metric": "premium", "language": language, "against": reference}
        rows.append(interval_row(names, premium, None if against else NO_COUNTS))
    return rows
