"""Opt-out signals of rights holders, with the date of reading.

Signals, sorted and joined by a blank in the column `opt_out`:

    robots:noai  robots:noimageai  X-Robots-Tag header, or <meta name="robots">
    tdm:reserved                   TDMRep (W3C Community Group report): tdm-reservation: 1 in a header, a <meta>, or the
                                   rule of /.well-known/tdmrep.json that matches first
    tdm-policy:<url>               the policy that goes with it
    robots.txt:<agent>             the host's robots.txt (RFC 9309) names this AI crawler and keeps it from the page
    robots.txt:*                   it keeps every crawler that it does not name from the page
    ai.txt:disallowed              the host's ai.txt (Spawning) keeps the page, or its file type, from training
    none                           the page's headers and elements were read, without a signal

Where one place reserves and another does not, the reservation is kept: it costs a document, the other error a right.
A signal is a fact for the gate and for filters; no document is dropped for it here. `opt_out_fetched` is the date of
the page, or of the host's files where those are older: nothing is claimed to be known later than it was read.

What hosts say is collected from web archives that hold their robots.txt, ai.txt and tdmrep.json, or from JSON Lines of
`{"url", "fetched", "body"}`; of several versions the latest holds.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from data_pipeline.readers.robots import EVERYONE, Robots, matches, normal_path, parse_robots

NONE = "none"
AI_CRAWLERS = (
    "AI2Bot",
    "Amazonbot",
    "anthropic-ai",
    "Applebot-Extended",
    "Bytespider",
    "CCBot",
    "ClaudeBot",
    "cohere-ai",
    "Diffbot",
    "FacebookBot",
    "Google-Extended",
    "GPTBot",
    "ImagesiftBot",
    "meta-externalagent",
    "omgili",
    "PerplexityBot",
    "Timpibot",
)
"""Product tokens under which crawlers for training, or for data sets used in it, announce themselves."""
_HEAD_CHARACTERS = 1 << 16
_META = re.compile(r"<meta\s([^<>]*)>", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"""(?<![a-z-])([a-z-]{1,40})\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE)
_NO_AI = ("noai", "noimageai")
ROBOTS_PATH, AI_PATH, TDM_PATH = "/robots.txt", "/ai.txt", "/.well-known/tdmrep.json"


@dataclass(frozen=True)
class TdmRule:
    """One object of a tdmrep.json."""

    pattern: str
    reserved: bool
    policy: str


@dataclass(frozen=True)
class Host:
    """Statements of one host, with the time of each file."""

    robots: Robots | None = None
    ai: Robots | None = None
    tdm: tuple[TdmRule, ...] | None = None
    fetched: Mapping[str, str] = field(default_factory=dict)
    """Path of the file -> when it was read."""


HostRules = Mapping[str, Host]
"""Host, with its port where the URL has one, in lower case -> what it says."""


def page_opt_out(
    url: str, signals: Iterable[str], fetched: str, rules: HostRules | None, agents: Sequence[str] = AI_CRAWLERS
) -> tuple[str, str]:
    """Opt-out columns of a page, from headers and elements."""
    all_signals = set(signals)
    dates = [fetched]
    if rules:
        name, path = _split(url)
        host = rules.get(name)
        if host is not None:
            all_signals |= host_signals(host, path, agents)
            dates += host.fetched.values()
    return " ".join(sorted(all_signals)) or NONE, min(dates)


def header_signals(headers: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """The signals in HTTP headers."""
    signals: set[str] = set()
    for name, value in headers:
        signals |= _named_signals(name.lower(), value)
    return _reserved(signals)


def meta_signals(page: str) -> tuple[str, ...]:
    """The signals in the `meta` elements of a page's head.

    Only its first 64 Ki characters are searched.
    """
    signals: set[str] = set()
    for attributes in _META.findall(page, 0, _HEAD_CHARACTERS):
        values = {name.lower(): html.unescape(a or b or c) for name, a, b, c in _ATTRIBUTE.findall(attributes)}
        name = values.get("name", "").lower()
        signals |= _named_signals("x-robots-tag" if name == "robots" else name, values.get("content", ""))
    return _reserved(signals)


def _named_signals(name: str, value: str) -> set[str]:
    if name == "x-robots-tag":  # "noai, noimageai", also for one crawler: "gptbot: noai"
        words = re.split(r"[\s,:;]+", value.lower())
        return {f"robots:{word}" for word in _NO_AI if word in words}
    if name == "tdm-reservation" and value.strip() == "1":
        return {"tdm:reserved"}
    if name == "tdm-policy" and value.strip():
        return {_policy(value)}
    return set()


def _policy(url: str) -> str:
    return "tdm-policy:" + "%20".join(url.split())  # a blank parts signals


def _reserved(found: set[str]) -> tuple[str, ...]:
    """A policy without a reservation reserves nothing."""
    kept = found if "tdm:reserved" in found else {signal for signal in found if not signal.startswith("tdm-policy:")}
    return tuple(sorted(kept))


def host_signals(host: Host, path: str, agents: Sequence[str]) -> set[str]:
    """Signals of a host's files for a path."""
    signals: set[str] = set()
    if host.robots is not None:
        signals |= {f"robots.txt:{a}" for a in host.robots.refused(filter(host.robots.names, agents), path)}
        if not host.robots.allows(EVERYONE, path):
            signals.add(f"robots.txt:{EVERYONE}")
    if host.ai is not None:
        # The file's rules are about file types; a page without one is an HTML page.
        plain = path.partition("?")[0]
        has_type = "." in plain.rpartition("/")[2]
        if not host.ai.allows(EVERYONE, path if has_type else plain.rstrip("/") + "/index.html"):
            signals.add("ai.txt:disallowed")
    wanted = normal_path(path)
    rule = next((rule for rule in host.tdm or () if matches(rule.pattern, wanted)), None)
    if rule is not None and rule.reserved:
        signals |= {"tdm:reserved", _policy(rule.policy)} if rule.policy else {"tdm:reserved"}
    return signals


def parse_tdmrep(data: bytes) -> tuple[TdmRule, ...]:
    """The rules of a tdmrep.json; other values are ignored."""
    try:
        listed = json.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError):
        return ()
    rules = []
    for item in listed if isinstance(listed, list) else []:
        if isinstance(item, dict) and isinstance(item.get("location"), str):
            policy = item.get("tdm-policy", "")
            reserved = str(item.get("tdm-reservation")).strip() == "1"
            rules.append(TdmRule(normal_path(item["location"]), reserved, policy if isinstance(policy, str) else ""))
    return tuple(rules)


def is_host_file(url: str) -> bool:
    """Return whether a URL is a host-wide file (robots.txt, ai.txt)."""
    return url.endswith((ROBOTS_PATH, AI_PATH, TDM_PATH)) and _split(url)[1] in (ROBOTS_PATH, AI_PATH, TDM_PATH)


def host_rules(files: Iterable[tuple[str, str, bytes]]) -> dict[str, Host]:
    """Rules of hosts from their files, the latest version of each."""
    latest: dict[tuple[str, str], tuple[str, bytes]] = {}
    for url, fetched, body in files:
        where = _split(url)
        if where[1] in (ROBOTS_PATH, AI_PATH, TDM_PATH) and (fetched, body) >= latest.get(where, ("", b"")):
            latest[where] = (fetched, body)
    hosts: dict[str, dict[str, tuple[str, bytes]]] = {}
    for (host, path), found in sorted(latest.items()):
        hosts.setdefault(host, {})[path] = found
    return {host: _host(found) for host, found in hosts.items()}


def _host(files: Mapping[str, tuple[str, bytes]]) -> Host:
    bodies = {path: body for path, (_, body) in files.items()}
    return Host(
        parse_robots(bodies[ROBOTS_PATH]) if ROBOTS_PATH in bodies else None,
        parse_robots(bodies[AI_PATH]) if AI_PATH in bodies else None,
        parse_tdmrep(bodies[TDM_PATH]) if TDM_PATH in bodies else None,
        {path: fetched for path, (fetched, _) in files.items()},
    )


def _split(url: str) -> tuple[str, str]:
    """The host of a URL and its path with the query.

    The result is ("", "/") for text that is not a URL.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return "", "/"
    return parts.netloc.rpartition("@")[2].lower(), (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
