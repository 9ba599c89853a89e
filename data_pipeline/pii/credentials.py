"""Keys and tokens: providers' grammars, and values under secret names.

A secret is found by a provider's own grammar, or as a value that a name calls secret.

The sources are the providers' documentation of their token formats, RFC 7519 (JWT) and RFC 7468 (PEM). A value without
a provider's mark counts only where the name before its `=` or `:` states that it is secret and its letters are as mixed
as those of a random string.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections import Counter
from collections.abc import Iterator

from data_pipeline.pii.detections import Detection

_LONGEST = 16_384  # characters of a private key's block (RSA of 16384 bits has 12 700), or of a token

_GRAMMARS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("aws_key", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9_])"),
        ("github_token", r"gh[opsur]_[A-Za-z0-9]{36,255}(?![A-Za-z0-9_])"),
        ("github_token", r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}(?![A-Za-z0-9_])"),
        ("slack_token", r"xox[abeoprs]-(?:[0-9A-Za-z.]{1,80}-){1,6}[0-9A-Za-z]{10,180}(?![A-Za-z0-9_])"),
        ("slack_token", r"xapp-[0-9]-[A-Z0-9]{8,16}-[0-9]{8,16}-[0-9a-f]{32,128}(?![A-Za-z0-9_])"),
        ("google_key", r"AIza[0-9A-Za-z_\-]{35}(?![0-9A-Za-z_\-])"),
        ("stripe_key", r"[sr]k_(?:live|test)_[0-9A-Za-z]{16,247}(?![0-9A-Za-z_])"),
        ("stripe_key", r"whsec_[0-9A-Za-z+/]{24,128}={0,2}(?![0-9A-Za-z_])"),
        ("jwt", rf"eyJ[A-Za-z0-9_\-]{{8,2000}}+\.[A-Za-z0-9_\-]{{8,{_LONGEST}}}+\.[A-Za-z0-9_\-]{{0,2000}}+"),
        ("service_token", r"glpat-[0-9A-Za-z_\-]{20,64}(?![0-9A-Za-z_])"),
        ("service_token", r"npm_[0-9A-Za-z]{36}(?![0-9A-Za-z_])"),
        ("service_token", r"pypi-AgE[0-9A-Za-z_\-]{50,1000}"),
        ("service_token", r"hf_[A-Za-z0-9]{30,64}(?![0-9A-Za-z_])"),
        ("service_token", r"SG\.[0-9A-Za-z_\-]{16,32}\.[0-9A-Za-z_\-]{16,64}(?![0-9A-Za-z_])"),
        ("service_token", r"sk-(?:(?:proj|svcacct|admin|ant)-)[0-9A-Za-z_\-]{32,250}(?![0-9A-Za-z_])"),
        ("service_token", r"sk-[0-9A-Za-z]{48}(?![0-9A-Za-z_\-])"),
    )
)
_BEFORE_KEY = re.compile(r"[A-Za-z0-9_]\Z")


def key_at(text: str, start: int) -> Iterator[Detection]:
    """The key or token whose mark begins at `start`."""
    if start and _BEFORE_KEY.match(text, start - 1, start):
        return
    for kind, grammar in _GRAMMARS:
        found = grammar.match(text, start)
        if found and (kind != "jwt" or _is_jwt(found.group())):
            yield Detection(start, found.end(), kind)
            return


def _is_jwt(token: str) -> bool:
    """Return whether the first part is a JWT header (RFC 7515)."""
    head = token.partition(".")[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (ValueError, RecursionError):
        return False
    return isinstance(header, dict) and "alg" in header


_PEM = re.compile(r"-----BEGIN ((?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?)-----")


def private_key_at(text: str, start: int) -> Iterator[Detection]:
    """The private key block (RFC 7468) from first to last line."""
    head = _PEM.match(text, start)
    if head is None:
        return
    tail = f"-----END {head.group(1)}-----"
    stop = text.find(tail, head.end(), head.end() + _LONGEST)
    if stop > head.end():
        yield Detection(start, stop + len(tail), "private_key")


_NAME = re.compile(
    r"(?:api[_\- ]?(?:secret[_\- ]?)?key|secret(?:[_\-](?:access[_\-])?(?:key|token))?|access[_\-](?:key|token)"
    r"|auth(?:[_\- ](?:key|token|secret)|orization)?|private[_\-]key|client[_\-]secret|refresh[_\-]token"
    r"|(?:encryption|signing|master|session|deploy|account|shared|storage|webhook|bot|app|service)[_\-](?:key|secret|token)"
    r"|bearer[_\-]?token|apikey|secretkey|authtoken|accesstoken|clientsecret|token|credential"
    r"|passw(?:or)?d|passwd|pwd|pass)[\"'`\]]{0,2}\s?(?::=|=>|==?|:)[ =>]?(?:Bearer |Basic )?([\"'`]{0,2})\Z",
    re.I,
)
_VALUE = re.compile(r"[A-Za-z0-9_\-+/]{16,512}={0,2}")
_GOES_ON = re.compile(r"[A-Za-z0-9_.(\[{$%<]")
_MIXED = re.compile("(?=.*[0-9]).*[A-Za-z]")
_SCHEME = re.compile("(?:Bearer|Basic) ")
_HEX = re.compile(r"[0-9a-f]+\Z", re.I)
_WORDS = re.compile(
    r"(?<![a-z0-9])(?:example|sample|dummy|your|my|test|changeme|placeholder)(?![a-z0-9])|xxxx|1234567|abcdef", re.I
)


def assigned_at(text: str, start: int) -> Iterator[Detection]:
    """The random-looking value at `start` after a secret's name.

    It has a letter and a digit among at least 16 characters, and an entropy of at least 3.5 bits per character (3 for
    hexadecimal digits, which have 4 at most). A path, a name or a placeholder has less, or goes on with a dot or
    bracket.
    """
    scheme = _SCHEME.match(text, start)
    start += len(scheme.group()) if scheme else 0
    value = _VALUE.match(text, start)
    if value is None or _GOES_ON.match(text, value.end()) or not _is_random(value.group()):
        return
    name = _NAME.search(text[max(0, start - 60) : start])
    if name and (not name.group(1) or text.startswith(name.group(1)[0], value.end())):
        yield Detection(start, value.end(), "assigned_secret")


def _is_random(value: str) -> bool:
    if not _MIXED.match(value) or _WORDS.search(value):
        return False
    if value.count("/") > len(value) // 12 or value.count("-") + value.count("_") > len(value) // 8:
        return False
    size = len(value)
    entropy = -sum(n / size * math.log2(n / size) for n in Counter(value).values())
    return entropy >= (3.0 if _HEX.match(value) else 3.5)
