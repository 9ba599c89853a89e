"""Canonical URLs: equal for addresses of the same page.

First RFC 3986, section 6: scheme and host in lower case, a host beyond ASCII in its IDNA form, no default port, no user
information, `%41` as `A` where the character is unreserved and capitals in the escapes that stay, `.` and `..`
resolved, an empty path as `/`. Then, beyond that standard, what servers answer alike: `http` as `https`, a leading
`www.` gone, the fragment gone (but for `#!...` and `#/...`, which name pages of their own), and parameters gone that
only say how the reader came (`TRACKING`, `utm_*`) or which session it is. Other parameters stay as they are and in
their order, and so does a slash at the end: no standard says that they do not matter.

Normalising a URL again changes nothing, with three exceptions: `http` on port 443, a host that begins with `www.`
twice, and one that ends in a full stop other than ASCII's. Token shards name documents by the hash of the canonical
URL, so a change of it would make the receipts of older corpora say "not used" of these; no crawl that we have seen
holds one.
"""

from __future__ import annotations

import re
import string
from urllib.parse import SplitResult, quote, urlsplit

TRACKING = frozenset(
    (
        *(
            "fbclid",
            "gclid",
            "gclsrc",
            "dclid",
            "gbraid",
            "wbraid",
            "msclkid",
            "yclid",
            "twclid",
            "ttclid",
            "li_fat_id",
        ),
        *("igsh", "igshid", "mc_cid", "mc_eid", "_ga", "_gl", "_hsenc", "_hsmi", "__hstc", "__hssc", "__hsfp"),
        *("hsctatracking", "mkt_tok", "oly_anon_id", "oly_enc_id", "vero_id", "vero_conv", "srsltid", "epik", "s_cid"),
        *("phpsessid", "jsessionid", "aspsessionid"),
    )
)
_UNRESERVED = frozenset(string.ascii_letters + string.digits + "-._~")
_KEEP = "!#$%&'()*+,/:;=?@[]~"  # reserved characters and the escape's own sign: quoting must not touch them
_PORTS = {"http": 80, "https": 443, "ftp": 21}
_ESCAPE = re.compile("%([0-9A-Fa-f]{2})")
_STRAY = re.compile("%(?![0-9A-Fa-f]{2})")  # a percent sign that begins no escape is literal
_SESSION = re.compile(";jsessionid=[^/?#]*", re.IGNORECASE)
_PLAIN = re.compile(
    r"https?://(?:www\.)?([a-z0-9][a-z0-9-]*(?:\.[a-z0-9-]+)*)((?:/[A-Za-z0-9_~-]+(?:\.[A-Za-z0-9_~-]+)*)*/?)"
)


def normalise_url(url: str) -> str:
    """The form in which URLs of one page are equal.

    The result is "" where there is no host.
    """
    plain = _PLAIN.fullmatch(url)
    if plain:  # most: nothing to resolve
        return f"https://{plain[1]}{plain[2] or '/'}"
    try:
        parts = urlsplit(url.strip())
        host, port = _host(parts), parts.port
    except ValueError:  # a port that is not a number, a bracket that does not close
        return ""
    if not host or not parts.scheme:
        return ""
    web = parts.scheme in {"http", "https"}
    shown = host if port is None or port == _PORTS.get(parts.scheme) else f"{host}:{port}"
    path = _resolve(_SESSION.sub("", _escapes(parts.path)))
    query = "&".join(item for item in _escapes(parts.query).split("&") if item and not _tracks(item))
    fragment = _escapes(parts.fragment) if parts.fragment[:1] in {"!", "/"} else ""
    scheme = "https" if web else parts.scheme
    return f"{scheme}://{shown}{path}" + f"?{query}" * bool(query) + f"#{fragment}" * bool(fragment)


def _host(parts: SplitResult) -> str:
    host = (parts.hostname or "").rstrip(".")
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            host = quote(host)
    if ":" in host:
        return f"[{host}]"
    return host.removeprefix("www.") if parts.scheme in {"http", "https"} else host


def _escapes(value: str) -> str:
    def one(match: re.Match[str]) -> str:
        character = chr(int(match[1], 16))
        return character if character in _UNRESERVED else f"%{match[1].upper()}"

    return quote(_ESCAPE.sub(one, _STRAY.sub("%25", value)), safe=_KEEP)


def _resolve(path: str) -> str:
    """RFC 3986, 5.2.4: `.` and `..` removed."""
    kept: list[str] = []
    segments = path.split("/")[1:] if path else [""]
    for segment in segments:
        if segment == "..":
            kept = kept[:-1]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in {".", ".."}:
        kept.append("")
    return "/" + "/".join(kept)


def _tracks(item: str) -> bool:
    name = item.partition("=")[0].lower()
    return name in TRACKING or name.startswith("utm_")
