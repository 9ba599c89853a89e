"""Privacy and tokenizer parity: rates of counts that other stages recorded.

Privacy, the rate of personal data before and after redaction:

    pii_per_million_tokens = findings x 10^6 / tokens           findings per million tokens

`stage` is "before" (all findings) or "after" (the findings whose action left them in the text: "count"). `group` is the
type, "(all)" their sum. The measure, identifiers over the size of the corpus, is that of Subramani et al. 2023,
"Detecting Personal Information in Training Corpora" (TrustNLP). Both rates are of the tokens that encode wrote.

There is no interval: every document was searched. The rate excludes what the rules missed: if canaries were planted the
note has their recall, and with a recall below 1 "after" may exceed the stated rate. `n` is the tokens.

Tokenizer parity, the tokens that each language needs for equal text:

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

from governance.checks.bias.interval_rows import ALL, Row, interval_row

METRIC = "pii_per_million_tokens"
LEFT_IN = "count"
"""The action that leaves a finding in the text."""


def privacy_rows(redact: Mapping[str, Any], actions: Mapping[str, str], encode: Mapping[str, Any]) -> list[Row]:
    """The rows of the suite `privacy`.

    Args:
        redact: the stats of the stage `redact` (`findings`, `canaries`).
        actions: type -> action, from the manifest's config.
        encode: the stats of the stage `encode` (its tokens).
    """
    tokens = sum(int(encode.get(f"{split}_tokens", 0)) for split in ("train", "validation"))
    findings = {kind: int(number) for kind, number in redact.get("findings", {}).items()}
    left = {kind: number if actions.get(kind, LEFT_IN) == LEFT_IN else 0 for kind, number in findings.items()}
    rows = []
    for stage, counts in (("before", findings), ("after", left)):
        for kind, number in {**counts, ALL: sum(counts.values())}.items():
            value = number * 1e6 / tokens if tokens else None
            names = {"metric": METRIC, "group": kind, "stage": stage}
            rows.append(interval_row(names, {"value": value, "n": tokens}, _recall(redact, kind)))
    return rows


def _recall(redact: Mapping[str, Any], kind: str) -> str | None:
    canaries = redact.get("canaries", {})
    counts = canaries.values() if kind == ALL else [canaries.get(kind, {})]
    planted, found = (sum(int(entry.get(name, 0)) for entry in counts) for name in ("planted", "found"))
    return f"recall of canaries {found}/{planted}" if planted else None


NO_COUNTS = "encode counted no tokens of the reference language"


def parity_rows(encode: Mapping[str, Any], reference: str) -> list[Row]:
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
