"""E-mail, IPv4, IPv6 and MAC addresses.

An IP address counts when it can be somebody's on the public internet: addresses that the registries of IANA keep for
loopback, private networks, documentation, multicast and net masks identify nobody and are not detected.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_pipeline.pii.detections import WORD, Detection, DigitRun

# RFC 5321 and 6531 in practice: unquoted local parts; labels of letters, digits and hyphens; an alphabetic top level.
_LETTERS = WORD.replace("_", "")
_TOP_LEVEL = r"[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0370-\u052f]"
_LOCAL_BACKWARDS = re.compile(rf"[{_LETTERS}_%+\-'&.]{{1,65}}")  # read from the @ to the left
_DOMAIN = re.compile(
    rf"(?:[{_LETTERS}](?:[{_LETTERS}\-]{{0,61}}[{_LETTERS}])?\.){{1,8}}"
    rf"(?:xn--[a-z0-9\-]{{2,59}}|{_TOP_LEVEL}{{2,24}})(?![{_LETTERS}]|[_\-][{_LETTERS}])",
    re.I,
)
_FILE_ENDINGS = frozenset(
    ("png", "jpg", "jpeg", "gif", "svg", "webp", "bmp", "ico", "css", "js", "jsx", "ts", "tsx", "json", "html", "htm",
     "xml", "pdf", "txt", "csv", "gz", "zip", "tgz", "yml", "yaml", "toml", "conf", "ini", "log", "jar", "exe", "dll",
     # units of systemd, of which a template's instance has an "@" (`getty@tty1.service`)
     "service", "socket", "target", "timer", "mount", "automount", "device", "swap", "slice", "scope")
)  # fmt: skip
_NO_TOP_LEVELS = frozenset(("localhost", "localdomain", "arpa"))
"""Names of this machine and of reverse lookups. Other levels that are not delegated (.local, .corp) name persons within
an organisation."""
_GENERIC = frozenset(("com", "org", "net", "edu", "gov", "info"))
_SPELT_AT = re.compile(r"[\[(<{][ ]?(?:at|AT|@)[ ]?[\])>}][ ]?")
_SPELT_DOT = r"(?:\.|[ ]?[\[(<{][ ]?(?:dot|DOT|\.)[ ]?[\])>}][ ]?|[ ](?:dot|DOT)[ ])"
_SPELT_LOCAL = re.compile(rf"(?<![{WORD}.])[a-z0-9](?:[a-z0-9_+\-]{{1,40}}+|{_SPELT_DOT}){{0,6}}\Z", re.I)
_SPELT_DOMAIN = re.compile(
    rf"[a-z0-9\-]{{1,63}}(?:{_SPELT_DOT}[a-z0-9\-]{{1,63}}){{0,4}}{_SPELT_DOT}[a-z]{{2,24}}(?![{WORD}])", re.I
)
_BARE_AT = re.compile(r"[ ](?:at|AT)[ ]\Z")
_SAYS_MAIL = re.compile(r"mail|contact|write|reach|schreib|correo|escrib|courriel|écri|kontakt|contatt|scriv", re.I)
_AUTHORITY = re.compile(r"://[^\s/?#,;|<>\"']*\Z")
_REMOTE = re.compile(r":(?:[~./]|[\w.\-]+[/~])")
_MARKED = re.compile(r"[0-9_.+\-]|\bdot\b", re.I)


def email_at(text: str, at: int) -> Iterator[Detection]:
    """The address around the `@` at `at`."""
    domain = _DOMAIN.match(text, at + 1, at + 256)
    if domain is None or (start := _local_start(text, at)) is None:
        return
    if text.startswith("_", domain.end()):  # the marks of emphasis around it
        start += len(text[start:at]) - len(text[start:at].lstrip("_"))
    if start < at and _is_address(text, start, domain):
        yield Detection(start, domain.end(), "email")


def spelt_email_at(text: str, place: int) -> Iterator[Detection]:
    """The address around a spelt "at".

    The forms are "name [at] host [dot] org" and "name AT host dot org".

    `place` is where its bracket opens, its bare word begins, or the word "dot" after the first label of its domain.
    Words without brackets are common in any text ("look at the dot com boom"): then the name must have a digit or a
    sign, or a word must state that it is about mail.
    """
    if text[place] in "dD":
        label = text.rfind(" ", max(0, place - 65), place - 1) + 1
        at, after = label - 3, label
    else:
        at, after = place, place + 3
    spelt = _SPELT_AT.match(text, place)
    bare = spelt is None and bool(_BARE_AT.search(text[max(0, at - 1) : after]))
    if spelt is None and not bare:
        return
    stop = place - text.endswith(" ", 0, place) if spelt else at - 1
    after = spelt.end() if spelt else after
    window = max(0, stop - 65)
    local = _SPELT_LOCAL.search(text[window:stop])
    domain = _SPELT_DOMAIN.match(text, after, after + 300)
    if local is None or domain is None:
        return
    start = window + local.start()
    if spelt or _MARKED.search(local.group()) or _SAYS_MAIL.search(text[max(0, start - 24) : start]):
        yield Detection(start, domain.end(), "email")


def _local_start(text: str, at: int) -> int | None:
    """Start of an e-mail's local part; None if absent or too long."""
    backwards = _LOCAL_BACKWARDS.match(text[max(0, at - 65) : at][::-1])
    if backwards is None or len(backwards.group()) > 64:
        return None
    local = backwards.group()[::-1].rpartition("..")[2].lstrip(".%+-'&")
    return at - len(local) if local and local[-1] not in ".'" else None


def _is_address(text: str, start: int, domain: re.Match[str]) -> bool:
    """Reject URL passwords, remote paths, file names, and names of no server.

    Called names of other than common top levels are products of matrices: `x@w.reshape(-1)`.
    """
    last = domain.group().rpartition(".")[2].lower()
    called = text.startswith("(", domain.end()) and len(last) > 2 and last not in _GENERIC
    if last in _FILE_ENDINGS or last in _NO_TOP_LEVELS or called:
        return False
    return not _AUTHORITY.search(text[max(0, start - 64) : start]) and not _REMOTE.match(text, domain.end())


# IANA IPv4 Special-Purpose Address Registry (RFC 6890 and its updates): first octets, then what of them is kept back.
def _is_public(a: int, b: int, c: int) -> bool:
    if a in (0, 10, 127) or a >= 224:  # this network, private, loopback; multicast, reserved, masks
        return False
    kept_back = (
        (a == 100 and 64 <= b <= 127)
        or (a == 169 and b == 254)
        or (a == 172 and 16 <= b <= 31)
        or (a == 192 and (b, c) in ((0, 0), (0, 2), (88, 99)))
        or (a == 192 and b == 168)
        or (a == 198 and b in (18, 19))
        or (a, b, c) in ((198, 51, 100), (203, 0, 113))
    )
    return not kept_back


_SAYS_NUMBERED = re.compile(
    r"(?:\b(?:version|release|ver|v|build|section|chapter|clause|article|figure|table|kapitel|abschnitt|sección|rev|oid)|§)"
    r"[\s.:=\"'(]{0,3}\Z",
    re.I,
)
_SAYS_ADDRESS = re.compile(
    r"(?:\bip(?:v4)?\b|addr|host|server|\bdns\b|ping|client|peer|router|gateway|login|remote|visitor)[^\n<>.]{0,16}\Z",
    re.I,
)
_SMALL = 20  # one address in 2 000 has its last three parts below; a section's or a version's number nearly always


def ipv4_at(text: str, run: DigitRun, first: int) -> Detection | None:
    """IPv4 address that begins with this group, in dotted decimal."""
    last = first + 3
    if (
        last >= len(run.ends)
        or run.between[first] != "."
        or run.between[first:last] != [".", ".", "."]
        or not _apart(text, run, first, last)
    ):
        return None
    parts = [text[a:b] for a, b in zip(run.starts[first : last + 1], run.ends[first : last + 1], strict=True)]
    if any(len(part) > 3 or (part[0] == "0" and len(part) > 1) for part in parts):
        return None
    octets = [int(part) for part in parts]
    if max(octets) > 255 or not _is_public(*octets[:3]):
        return None
    before = text[max(0, run.starts[first] - 40) : run.starts[first]]
    if _SAYS_NUMBERED.search(before) or (max(octets[1:]) < _SMALL and not _SAYS_ADDRESS.search(before)):
        return None
    return Detection(run.starts[first], run.ends[last], "ipv4")


_LETTER = re.compile(rf"[{WORD}]")
_GOES_ON = re.compile(rf"[{WORD}]|[.-][{WORD}]")


def _apart(text: str, run: DigitRun, first: int, last: int) -> bool:
    """Return whether only a port, prefix or punctuation follows."""
    start = run.starts[first]
    left = text[max(0, start - 2) : start]
    if left and (left[-1] == "." or _LETTER.match(left[-1]) or (left[-1] == "-" and _LETTER.match(left[0]))):
        return False
    return not _GOES_ON.match(text, run.ends[last])


def ipv6_at(text: str, start: int, end: int) -> Iterator[Detection]:
    """IPv6 address (RFC 4291), global unicast 2000::/3.

    A hardware address is written in the same letters, as six pairs with colons.
    """
    run = text[start:end]
    if run.endswith(":") and not run.endswith("::"):
        run, end = run[:-1], end - 1
    if _touched(text, start, end):
        return
    if _MAC.fullmatch(run):
        yield from _mac(run, start)
    elif _is_global(run):
        yield Detection(start, end, "ipv6")


_TOUCHES_LEFT = re.compile(rf"[{WORD}:.]")
_TOUCHES_RIGHT = re.compile(rf"[{WORD}]|[.:-][{WORD}]")


def _touched(text: str, start: int, end: int) -> bool:
    return bool((start and _TOUCHES_LEFT.match(text, start - 1)) or _TOUCHES_RIGHT.match(text, end))


def _is_global(address: str) -> bool:
    """Return whether the address is well formed and publicly routable.

    With "::" the first group must be of 2000::/3, or five groups must be written: `c::d` is code in many languages.
    """
    if address.count("::") > 1 or ":::" in address or len(address) > 39 or address.startswith(":"):
        return False
    parts = [part for part in address.lower().split(":") if part]
    short = "::" in address
    if any(len(part) > 4 for part in parts) or not (2 <= len(parts) <= 7 if short else len(parts) == 8):
        return False
    first = parts[0].rjust(4, "0")
    if short and len(parts) < 5 and not (len(parts[0]) == 4 and first[0] in "23"):
        return False
    kept_back = first[:2] in ("00", "fc", "fd", "fe", "ff")  # loopback, unique local, link-local, multicast
    return not kept_back and first != "3fff" and (first, parts[1].lstrip("0")) != ("2001", "db8")  # RFC 3849, RFC 9637


_GROUPED_MAC = re.compile(r"[0-9A-Fa-f]{4}(?:\.[0-9A-Fa-f]{4}){2}")
_SAYS_HARDWARE = re.compile(r"\bmac\b|hardware|ethernet|hwaddr|\barp\b|\bbia\b|interface", re.I)
_MAC = re.compile(r"[0-9A-Fa-f]{2}(?:([:-])[0-9A-Fa-f]{2})(?:\1[0-9A-Fa-f]{2}){4}")


def mac_at(text: str, start: int, end: int) -> Iterator[Detection]:
    """The hardware address (IEEE 802, EUI-48) of pairs or fours.

    Six pairs have hyphens between, three fours dots. Fours of decimal digits count if they begin with 0, as the older
    makers' numbers do, or next to a word for them.
    """
    if _touched(text, start, end):
        return
    value = text[start:end]
    if _MAC.fullmatch(value):
        yield from _mac(value, start)
    elif _GROUPED_MAC.fullmatch(value):
        decimal = value.replace(".", "").isdigit() and value[0] != "0"
        if not decimal or _SAYS_HARDWARE.search(text[max(0, start - 40) : start]):
            yield from _mac(value, start)


def _mac(value: str, start: int) -> Iterator[Detection]:
    if len(set(re.split("[:.-]", value.lower()))) > 1:  # all zeros, broadcast
        yield Detection(start, start + len(value), "mac")
