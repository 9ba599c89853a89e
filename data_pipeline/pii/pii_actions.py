"""Redaction actions: replace by type, mask, pseudonymise, count.

    replace       jane@example.org  ->  [EMAIL]
    mask          jane@example.org  ->  j***@*******.org
    pseudonymise  jane@example.org  ->  [EMAIL:0c5e3a9b27d41f86]
    count         jane@example.org  ->  jane@example.org

A pseudonym is the first 64 bits of HMAC-SHA256 (RFC 2104) of the type and the value in its plain form, under a key
that never leaves its file: the same address, however it is written, has the same pseudonym in every document and
every corpus made with that key, and without the key addresses cannot be tried out. Only the key's fingerprint is
written down; it decides what the artifact is called, as it decides its bytes.
"""

from __future__ import annotations

import hmac
import os
import re
from pathlib import Path
from typing import Literal

from data_pipeline.pii.detections import FAMILIES, PLAIN, RULE, placeholder
from governance.errors import ConfigError

Action = Literal["replace", "mask", "pseudonymise", "count"]
KEY_VARIABLE = "ASSAY_PII_KEY_FILE"
_KEY_BYTES = 32
_ALNUM = re.compile(r"[^\W_]")
_SEPARATORS = re.compile(r"[\W_]+")
_EXTENSION = re.compile(r"[^0-9+()\s.\-/]")


def new_text(kind: str, value: str, action: Action, key: bytes) -> str:
    """Replacement text of a detection of this type."""
    if action == "replace":
        return placeholder(kind)
    if action == "mask":
        return masked(kind, value)
    if action == "pseudonymise":
        return f"{placeholder(kind)[:-1]}:{pseudonym(kind, value, key)}]"
    return value


def masked(kind: str, value: str) -> str:
    """The value with "*" for each letter and digit.

    Length and separators stay.

    The first character and the top-level domain of an e-mail address stay too, and the country of a bank account.
    """
    if kind == "email":
        dot = value.rfind(".")
        return value[0] + _ALNUM.sub("*", value[1:dot]) + value[dot:]
    kept = 2 if kind == "iban" else 0
    return value[:kept] + _ALNUM.sub("*", value[kept:])


def pseudonym(kind: str, value: str, key: bytes) -> str:
    """Sixteen hexadecimal digits that only this key gives this value."""
    return hmac.digest(key, f"{kind}\0{plain_form(kind, value)}".encode("utf-8", "surrogatepass"), "sha256").hex()[:16]


def plain_form(kind: str, value: str) -> str:
    """One form for all spellings of a value.

    It has no separators and one case; secrets keep theirs.
    """
    if kind == "email":
        spelt = re.sub(r"\s*[\[(<{]\s*(?:at|@)\s*[\])>}]\s*|\s+at\s+", "@", value.lower())
        return re.sub(r"\s*[\[(<{]\s*(?:dot|\.)\s*[\])>}]\s*|\s+dot\s+", ".", spelt)
    if kind == "phone":
        number = _EXTENSION.split(value.translate(PLAIN).replace("(0)", ""))[0].strip()
        number = re.sub(r"^\(?(?:00|011)(?=[1-9 ])", "+", number)
        return ("+" if "+" in number[:2] else "") + re.sub("[^0-9]", "", number)
    if kind == "ipv6":
        return _full_ipv6(value.lower())
    if kind == "bitcoin" or kind in FAMILIES["secret"] or kind.startswith(RULE):
        return value
    return _SEPARATORS.sub("", value).lower() if kind != "ipv4" else value


def _full_ipv6(address: str) -> str:
    head, double, tail = address.partition("::")
    left, right = [part for part in head.split(":") if part], [part for part in tail.split(":") if part]
    middle = ["0"] * (8 - len(left) - len(right)) if double else []
    return ":".join(part.lstrip("0") or "0" for part in (*left, *middle, *right))


def read_key(key_file: str, folder: Path) -> bytes:
    """The bytes of the key's file, as they are.

    `key_file` is relative to `folder`; "" takes the path from the environment.

    Raises:
        ConfigError: no file is named, it cannot be read, or it has fewer than 32 bytes.
    """
    named = key_file or os.environ.get(KEY_VARIABLE, "")
    fix = "make one with: head -c 32 /dev/urandom > key; keep it apart from the corpus"
    if not named:
        raise ConfigError(
            f"data.pii: pseudonymise needs a key. Set key_file, or the environment variable {KEY_VARIABLE}, to the "
            f"path of a file of at least {_KEY_BYTES} random bytes; {fix}."
        )
    origin = "data.pii.key_file" if key_file else KEY_VARIABLE
    try:
        key = (folder / named).read_bytes()
    except OSError as error:
        raise ConfigError(f"{origin} = {named!r}: cannot be read: {error.strerror}; {fix}.") from error
    if len(key) < _KEY_BYTES:
        raise ConfigError(f"{origin} = {named!r}: has {len(key)} bytes, needs at least {_KEY_BYTES}; {fix}.")
    return key


def fingerprint(key: bytes) -> str:
    """Fingerprint of a key: sixteen hexadecimal digits."""
    return hmac.digest(key, b"assay: the fingerprint of a key for pseudonyms", "sha256").hex()[:16]
