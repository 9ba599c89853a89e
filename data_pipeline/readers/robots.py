"""robots.txt (RFC 9309) and ai.txt: paths that a crawler may fetch.

Groups of one product token are joined; a crawler without a group of its own has that of `*`; of the rules that match,
the one with the longest path holds, and of two equal ones `allow`. `*` matches any characters, and a final `$` the
end of the path; both sides are compared in one form of percent-encoding. Lines of other kinds are ignored. Frequent
misspellings of `user-agent` and `disallow`, and a blank in place of the colon, are read as Google's parser reads them
(github.com/google/robotstxt): in doubt the right is kept.
Matching is linear in path times pattern, however many `*` there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

MAX_ROBOTS_BYTES = 500 << 10
"""Bytes that a crawler must read at least (RFC 9309, 2.5); the rest of a longer file is not read."""
EVERYONE = "*"
_AGENT = ("user-agent", "useragent", "user agent")
_DISALLOW = ("disallow", "dissallow", "dissalow", "disalow", "diasllow", "disallaw")
_LINE = re.compile(rf"\s*({'|'.join((*_AGENT, *_DISALLOW, 'allow'))})(?:\s*:|\s(?=\s*\S+\s*(?:#|\Z)))([^#]*)", re.I)
_TOKEN = re.compile(r"[A-Za-z_-]+|\*")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class RobotsRule(NamedTuple):
    """One line of a group."""

    pattern: str
    allow: bool


@dataclass(frozen=True)
class Robots:
    """The groups of a file.

    A rule is stored once, however many crawlers its group names.
    """

    groups: tuple[tuple[RobotsRule, ...], ...]
    """Rules of each group, those that hold before others first."""
    members: Mapping[str, tuple[int, ...]]
    """Product token in lower case -> numbers of its groups."""

    def names(self, agent: str) -> bool:
        """Return whether the file has a group for this crawler itself."""
        return agent.lower() in self.members

    def allows(self, agent: str, path: str) -> bool:
        """Return whether this crawler may fetch the path.

        The path includes its query, percent-encoded or not.
        """
        return not self.refused([agent], path)

    def refused(self, agents: Iterable[str], path: str) -> list[str]:
        """Those of the crawlers that may not fetch the path.

        Each group is compared with the path once.
        """
        wanted, holding = normal_path(path), dict[int, RobotsRule]()

        def rule_of(number: int) -> RobotsRule:
            if number not in holding:
                matching = (rule for rule in self.groups[number] if matches(rule.pattern, wanted))
                holding[number] = next(matching, _NO_RULE)
            return holding[number]

        everyone = self.members.get(EVERYONE, ())
        return [
            agent
            for agent in agents
            if not max(map(rule_of, self.members.get(agent.lower(), everyone)), key=_rank, default=_NO_RULE).allow
        ]


_NO_RULE = RobotsRule("", True)


def _rank(rule: RobotsRule) -> tuple[int, bool]:
    return len(rule.pattern), rule.allow


def parse_robots(data: bytes) -> Robots:
    """The groups of a file; whatever it holds, there is an answer."""
    groups: list[dict[RobotsRule, None]] = [{}]
    members: dict[str, dict[int, None]] = {}
    in_rules = False
    for line in data[:MAX_ROBOTS_BYTES].removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").splitlines():
        found = _LINE.match(line)
        if not found:
            continue
        key, value = found[1].lower(), found[2].strip()
        if key in _AGENT:
            if in_rules:
                groups.append({})
            in_rules = False
            if token := _TOKEN.match(value):
                members.setdefault(token[0].lower(), {})[len(groups) - 1] = None
        else:
            in_rules = True
            if value:
                groups[-1][RobotsRule(normal_path(value), key == "allow")] = None
    return Robots(
        tuple(tuple(sorted(rules, key=_rank, reverse=True)) for rules in groups),
        {agent: tuple(numbers) for agent, numbers in members.items()},
    )


def normal_path(path: str) -> str:
    """A path or pattern with its percent-encoding made alike.

    Unreserved characters are written without it, others with it in upper case.
    """

    def made_alike(found: re.Match[str]) -> str:
        character = chr(int(found[1], 16))
        return character if character in _UNRESERVED else found[0].upper()

    encoded = "".join(c if c.isascii() else "".join(f"%{byte:02X}" for byte in c.encode("utf-8")) for c in path)
    return _ESCAPE.sub(made_alike, encoded)


def matches(pattern: str, path: str) -> bool:
    """Return whether a pattern matches the path from its start.

    Both must be as `normal_path` writes them.
    """
    ends = pattern.endswith("$")
    first, *rest = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    at = len(first)
    if not rest:
        return not ends or at == len(path)
    *between, last = rest
    for piece in between:  # the earliest place leaves most for what follows
        at = path.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    if ends:
        return path.endswith(last) and len(path) - len(last) >= at
    return path.find(last, at) >= 0
