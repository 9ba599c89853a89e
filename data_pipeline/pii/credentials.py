"""Keys and tokens: providers' grammars, passwords of URLs, values under secret names.

A secret is found by a provider's own grammar (`token_formats`), as a private key (RFC 7468), as the password of a URL
(RFC 3986), or as a value that a name calls secret. A value without a provider's mark counts only where the name before
its `=` or `:` states that it is secret and its letters are as mixed as those of a random string.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator

from data_pipeline.pii.detections import Detection, entropy
from data_pipeline.pii.token_formats import ASSIGNED_FORMATS, FORMATS, LONGEST, MAILCHIMP, TOKENS_BEHIND

_BEFORE_KEY = re.compile(r"[A-Za-z0-9_]\Z")


def key_at(text: str, start: int) -> Iterator[Detection]:
    """The key or token whose mark begins at `start`."""
    if start and _BEFORE_KEY.match(text, start - 1, start):
        return
    for kind, mark, before, after in TOKENS_BEHIND:
        if text.startswith(mark, start) and (found := after.match(text, start)):
            window = max(0, start - 16)
            if head := before.search(text[window:start]):
                yield Detection(window + head.start(), found.end(), kind)
                return
    for kind, grammar in FORMATS.get(text[start : start + 1], ()):
        found = grammar.match(text, start)
        if found and (kind not in _PROOFS or _PROOFS[kind](found.group())):
            yield Detection(start, found.end(), kind)
            return


def word_token_at(text: str, start: int, end: int) -> Iterator[Detection]:
    """The token that begins with this word of letters and digits."""
    if end - start == 32 and text.startswith("-us", end) and (found := MAILCHIMP.match(text, start)):
        yield Detection(start, found.end(), "mailchimp_key")


_USER = re.compile(r"[a-z][a-z0-9+.\-]{1,20}://(?P<user>[^\s/:@\"'<>]{0,64}):(?P<password>[^\s/@\"'<>]{3,128})\Z", re.I)
_HOST = re.compile(r"@(?:[A-Za-z0-9\-]{1,63}\.){0,8}[A-Za-z0-9\-]{1,63}|@\[")
_NO_PASSWORD = re.compile(
    r"[$%{}<>*\[\]]|\A(?:[0-9]{2,5}|pass|passw(?:or)?d|passwd|pwd|pw|psw|secret|token|x+|user(?:name)?|changeme|example|test|foo"
    r"|bar|baz|guest|root|admin|postgres|mysql|key|\.+|(?:my|your|db|the)[_\-]?(?:pass|password|secret|pw))\Z",
    re.I,
)


def url_password_at(text: str, at: int) -> Iterator[Detection]:
    """The password of the URL whose `@` is at `at`: `scheme://user:password@host`.

    A word that only holds the password's place ("password", "${PASS}") does not count.
    """
    if not _HOST.match(text, at):
        return
    window = max(0, at - 220)
    found = _USER.search(text[window:at]) if text.find("://", window, at) >= 0 else None
    if found and found["password"] != found["user"] and not _NO_PASSWORD.search(found["password"]):
        yield Detection(window + found.start("password"), at, "url_password")


def _is_jwt(token: str) -> bool:
    """Return whether the first part is a JWT header (RFC 7515)."""
    head = token.partition(".")[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (ValueError, RecursionError):
        return False
    return isinstance(header, dict) and "alg" in header


def _is_discord(token: str) -> bool:
    """Return whether the first part is an account's number in Base64."""
    head = token.partition(".")[0]
    try:
        return base64.b64decode(head + "=" * (-len(head) % 4)).isdigit()
    except ValueError:
        return False


_PROOFS = {"jwt": _is_jwt, "discord_token": _is_discord}

_PEM = re.compile(r"-----BEGIN ((?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?)-----")


def private_key_at(text: str, start: int) -> Iterator[Detection]:
    """The private key block (RFC 7468) from first to last line."""
    head = _PEM.match(text, start)
    if head is None:
        return
    tail = f"-----END {head.group(1)}-----"
    stop = text.find(tail, head.end(), head.end() + LONGEST)
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
    hexadecimal digits, which have 4 at most). A path, a name or a placeholder has less, or continues with a dot or
    bracket.
    """
    scheme = _SCHEME.match(text, start)
    start += len(scheme.group()) if scheme else 0
    for kind, named, grammar in ASSIGNED_FORMATS:
        if (token := grammar.match(text, start)) and named.search(text[max(0, start - 40) : start]):
            yield Detection(start, token.end(), kind)
            return
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
    return entropy(value) >= (3.0 if _HEX.match(value) else 3.5)
