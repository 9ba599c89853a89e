"""Token formats of providers: marks and grammars.

Grammars that begin with a mark are in `token_formats.toml`; their sources are the providers' documentation of their
token formats and RFC 7519 (JWT). A mark is what
`kernels.pii_candidates` looks for; tokens that begin otherwise are found from the mark inside them (`TOKENS_BEHIND`)
or from the name before them (`ASSIGNED_FORMATS`).
"""

from __future__ import annotations

import re

from governance.files import shipped_table

LONGEST = 16_384  # characters of a private key's block (RSA of 16384 bits has 12 700), or of a token
_END, _END_DASHED = r"(?![A-Za-z0-9_])", r"(?![0-9A-Za-z_\-])"

_ENDS = {"": "", "word": _END, "dash": _END_DASHED}


def _by_letter() -> dict[str, tuple[tuple[str, re.Pattern[str]], ...]]:
    """The formats by the letters that their marks may begin with."""
    listed: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for kind, characters, end in shipped_table(__package__, "token_formats.toml")["formats"]:
        pattern = characters + _ENDS[end]
        first = re.match(r"\((?:\?:)([A-Za-z])|\[([A-Za-z]+)\]|([A-Za-z])", pattern)
        if first:
            for letter in set(first.group(1) or first.group(2) or first.group(3)):
                listed.setdefault(letter, []).append((kind, re.compile(pattern)))
    return {letter: tuple(formats) for letter, formats in listed.items()}


FORMATS = _by_letter()
"""First letter -> (type, grammar) of the tokens that may begin with it."""

TOKENS_BEHIND: tuple[tuple[str, str, re.Pattern[str], re.Pattern[str]], ...] = tuple(
    (kind, mark, re.compile(before), re.compile(after))
    for kind, mark, before, after in (
        ("telegram_token", "AA", r"(?<![0-9A-Za-z])[0-9]{8,10}:\Z", rf"[0-9A-Za-z_\-]{{35}}{_END_DASHED}"),
        ("terraform_token", "atlasv1", r"(?<![0-9A-Za-z])[0-9A-Za-z]{14}\.\Z",
         rf"atlasv1\.[0-9A-Za-z_\-]{{60,70}}{_END_DASHED}"),
    )
)  # fmt: skip
"""Type, mark inside the token, grammar before it and from it on."""

_AZURE_NAME = r"(?:account|access|primary|secondary|storage)[_\- ]?key"
ASSIGNED_FORMATS: tuple[tuple[str, re.Pattern[str], re.Pattern[str]], ...] = tuple(
    (kind, re.compile(rf"{name}[\"'`\]]{{0,2}}\s?[:=]\s?[\"'`]?\Z", re.I), re.compile(value))
    for kind, name, value in (
        ("azure_key", _AZURE_NAME, r"[0-9A-Za-z+/]{86}==(?![0-9A-Za-z+/=])"),
        ("azure_key", _AZURE_NAME, r"[0-9A-Za-z+/]{43}=(?![0-9A-Za-z+/=])"),
        (
            "azure_key",
            "(?:secret|password|key)",
            rf"[0-9A-Za-z_~.\-]{{3}}[0-9]Q~[0-9A-Za-z_~.\-]{{31,34}}{_END_DASHED}",
        ),
    )
)
"""Type, name before the value, and grammar; no mark is in front."""

MAILCHIMP = re.compile(rf"[0-9a-f]{{32}}-us[0-9]{{1,2}}{_END_DASHED}")
