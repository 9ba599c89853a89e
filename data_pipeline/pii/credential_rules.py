r"""Credential rules read as data, in the format of gitleaks.

    [[rules]]
    id = "example-token"
    regex = '''\b(ex_[a-z0-9]{32})\b'''
    keywords = ["ex_"]          # the text must have one of them
    entropy = 3.0               # bits per character that the secret must exceed
    secretGroup = 1             # else the first group that matched, else the whole
    [[rules.allowlists]]
    stopwords = ["example"]     # also: regexes, regexTarget ("match", "line"), condition ("AND")

Promises: each search runs in RE2, in time linear in what it searches whatever the expression, and a list is compared
with a line once, however many matches are on it; a rule that cannot be read stops the run and is named. Lists of
allowed values for all rules (`[allowlist]`, `[[allowlists]]`) count too.
Rules and lists about paths and commits say nothing about a text and are left out.

Price: one automaton of all keywords passes over each text; only the rules of the keywords found run.
"""

from __future__ import annotations

import functools
import re
import tomllib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import re2

from data_pipeline.pii.detections import RULE, Detection, entropy
from governance.errors import ConfigError
from governance.files import sha256_bytes

_MAX_BYTES = 16 << 20
_MAX_KEYWORDS = 200_000  # characters together; the automaton of the published file's has 2 000
_NOT_FOR_TEXTS = ("path", "required")


class Allowed(NamedTuple):
    """Values that are not secrets."""

    regexes: tuple[Any, ...]
    target: str
    """"secret", "match" or "line": the text that the expressions are compared with."""
    stop_words: tuple[str, ...]
    all_must_hold: bool
    rules: tuple[str, ...]
    """The rules that it is for; none: all."""


class Rule(NamedTuple):
    """A rule of the file, compiled."""

    name: str
    regex: Any
    group: int
    entropy: float
    keywords: tuple[str, ...]
    allowed: tuple[Allowed, ...]


class RuleBook(NamedTuple):
    """The rules of a file."""

    rules: tuple[Rule, ...]
    automaton: Any
    """A set of RE2 that names the keywords of a text; None without keywords."""
    rules_of: tuple[tuple[int, ...], ...]
    """The rules of each keyword."""
    always: tuple[int, ...]
    """The rules without keywords."""
    left_out: tuple[str, ...]
    """Rules about paths and commits."""

    @property
    def types(self) -> tuple[str, ...]:
        """The type of each rule's findings."""
        return tuple(RULE + rule.name for rule in self.rules)


def read_rules(path: Path) -> tuple[RuleBook, str]:
    """The rules of the file, and its digest.

    Raises:
        ConfigError: the file or some of its rules cannot be read; all such rules are named.
    """
    where = f"data.pii.credential_rules = {str(path)!r}"
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror}. Give the path of a file of rules.") from error
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{where}: has more than {_MAX_BYTES >> 20} MiB, which no file of rules has.")
    digest = sha256_bytes(content)
    return _parsed(content, where), digest


@functools.lru_cache(maxsize=2)
def rules_of_digest(path: Path, digest: str) -> RuleBook:
    """The rules of the file that has this digest.

    Raises:
        ConfigError: the file has another digest by now.
    """
    book, found = read_rules(path)
    if found != digest:
        raise ConfigError(f"data.pii.credential_rules = {str(path)!r}: the file changed during the run. Run again.")
    return book


def _parsed(content: bytes, where: str) -> RuleBook:
    try:
        table = tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{where}: is not valid TOML: {error}. The file may be cut short; fetch it again.") from error
    listed = table.get("rules")
    if not isinstance(listed, list) or not listed or not all(isinstance(rule, dict) for rule in listed):
        raise ConfigError(f"{where}: has no [[rules]]. Give a file in the format of gitleaks.")
    if "extend" in table:
        raise ConfigError(f"{where}: [extend] names other rules, which are not read. Give one whole file.")
    faults: list[str] = []
    shared = _allowed_of(table, "the file", faults)
    rules: list[Rule] = []
    left_out: list[str] = []
    for place, entry in enumerate(listed):
        name = entry.get("id")
        if not isinstance(name, str) or not name:
            faults.append(f"rule {place + 1}: has no id")
        elif any(field in entry for field in _NOT_FOR_TEXTS):
            left_out.append(name)
        elif name in {rule.name for rule in rules}:
            faults.append(f"rule {name}: occurs twice")
        elif (rule := _rule(name, entry, shared, faults)) is not None:
            rules.append(rule)
    if faults:
        more = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ConfigError(f"{where}: {'; '.join(faults[:10])}{more}. Correct or remove these rules.")
    return _indexed(rules, left_out, where)


def _rule(name: str, entry: Mapping[str, Any], shared: Sequence[Allowed], faults: list[str]) -> Rule | None:
    before = len(faults)
    regex = _compiled(entry.get("regex"), f"rule {name}", faults)
    group, entropy, keywords = entry.get("secretGroup", 0), entry.get("entropy", 0), entry.get("keywords", [])
    if isinstance(group, bool) or not isinstance(group, int) or (regex and not 0 <= group <= regex.groups):
        faults.append(f"rule {name}: secretGroup = {group!r} is not a group of its regex")
    if isinstance(entropy, bool) or not isinstance(entropy, int | float) or not 0 <= entropy <= 32:
        faults.append(f"rule {name}: entropy = {entropy!r} is not a number from 0 to 32")
    if not _are_texts(keywords):
        faults.append(f"rule {name}: keywords = {keywords!r} is not a list of texts")
    own = _allowed_of(entry, f"rule {name}", faults)
    if len(faults) > before:
        return None
    for_it = tuple(allowed for allowed in shared if not allowed.rules or name in allowed.rules)
    return Rule(name, regex, group, float(entropy), tuple(word.lower() for word in keywords), (*for_it, *own))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def _compiled(pattern: Any, place: str, faults: list[str]) -> Any:
    """The expression in RE2, or None and a fault."""
    options = re2.Options()
    options.log_errors = False
    if not isinstance(pattern, str) or not pattern:
        faults.append(f"{place}: has no regex")
        return None
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        reason = reason.decode(errors="replace") if isinstance(reason, bytes) else reason
        faults.append(f"{place}: RE2 cannot read its regex: {reason}")
        return None


def _allowed_of(table: Mapping[str, Any], place: str, faults: list[str]) -> tuple[Allowed, ...]:
    """The lists of a rule or of the file.

    Those about paths and commits alone are left out.
    """
    entries = [*table.get("allowlists", [])] if isinstance(table.get("allowlists", []), list) else [None]
    entries += [table["allowlist"]] if "allowlist" in table else []
    lists: list[Allowed] = []
    for entry in entries:
        if not isinstance(entry, dict):
            faults.append(f"{place}: its allowlist is not a table")
            continue
        patterns, words, rules = (entry.get(field, []) for field in ("regexes", "stopwords", "targetRules"))
        target, condition = entry.get("regexTarget", "secret") or "secret", entry.get("condition", "OR")
        both = str(condition).upper() in ("AND", "&&")
        if not (_are_texts(patterns) and _are_texts(words) and _are_texts(rules)):
            faults.append(f"{place}: a field of its allowlist is not a list of texts")
            continue
        if target not in ("secret", "match", "line"):
            faults.append(f"{place}: regexTarget = {target!r} is not secret, match or line")
            continue
        if (both and (entry.get("paths") or entry.get("commits"))) or not (patterns or words):
            continue
        regexes = tuple(_compiled(pattern, f"{place}, allowlist", faults) for pattern in patterns)
        lists.append(Allowed(regexes, target, tuple(word.lower() for word in words), both, tuple(rules)))
    return tuple(lists)


def _indexed(rules: Sequence[Rule], left_out: Sequence[str], where: str) -> RuleBook:
    users: dict[str, list[int]] = {}
    for place, rule in enumerate(rules):
        for word in rule.keywords:
            users.setdefault(word, []).append(place)
    words = sorted(users)
    always = tuple(place for place, rule in enumerate(rules) if not rule.keywords)
    book = RuleBook(tuple(rules), None, tuple(tuple(users[word]) for word in words), always, tuple(left_out))
    if not words:
        return book
    options = re2.Options()
    options.case_sensitive, options.log_errors, options.max_mem = False, False, 64 << 20
    automaton = re2.Set.SearchSet(options)
    for word in words:
        automaton.Add(re2.escape(word))
    automaton.Compile()
    # The set answers "nothing" where its memory does not suffice, so it must find every keyword once.
    together = "\n".join(words)
    if len(together) > _MAX_KEYWORDS or len(automaton.Match(together.encode()) or ()) != len(words):
        raise ConfigError(f"{where}: its {len(words)} keywords are too many for one automaton. Use fewer rules.")
    return book._replace(automaton=automaton)


def find_listed(text: str, book: RuleBook) -> list[Detection]:
    """Secrets by the rules of the file, disjoint and in order."""
    data = text.encode("utf-8", "surrogatepass")
    named = book.automaton.Match(data) if book.automaton is not None else None
    places = {*book.always, *(place for word in named or () for place in book.rules_of[word])}
    spans = sorted(
        ((start, -end, place) for place in sorted(places) for start, end in _secrets(data, book.rules[place]))
    )
    found: list[Detection] = []
    stop = read = at = 0
    for start, minus_end, place in spans:
        if start < stop:
            continue
        at, read, stop = at + _characters(data, read, start), start, -minus_end
        found.append(Detection(at, at + _characters(data, start, stop), RULE + book.rules[place].name))
    return found


def _characters(data: bytes, start: int, end: int) -> int:
    return len(data[start:end].decode("utf-8", "surrogatepass"))


def _secrets(data: bytes, rule: Rule) -> Iterator[tuple[int, int]]:
    """First and last byte of each secret that the rule names."""
    breaks: list[int] = []
    if any(allowed.target == "line" for allowed in rule.allowed):  # the places of the line ends, one more on each side
        breaks = [-1, *(found.start() for found in re.finditer(b"\n", data)), len(data)]

    @functools.cache
    def finds(regexes: tuple[Any, ...], first: int, last: int) -> bool:
        return any(regex.search(data[first:last]) for regex in regexes)

    def is_allowed(match: tuple[int, int], secret: tuple[int, int], allowed: Allowed) -> bool:
        target = secret if allowed.target == "secret" else match
        if allowed.target == "line":
            target = breaks[bisect_left(breaks, match[0]) - 1] + 1, breaks[bisect_left(breaks, match[1])]
        holds = []
        if allowed.regexes:
            holds.append(finds(allowed.regexes, *target))
        if allowed.stop_words:
            lowered = data[slice(*secret)].decode("utf-8", "replace").lower()
            holds.append(any(word in lowered for word in allowed.stop_words))
        return all(holds) if allowed.all_must_hold else any(holds)

    for match in rule.regex.finditer(data):
        group = rule.group or next((n for n in range(1, rule.regex.groups + 1) if match.group(n)), 0)
        start, end = match.span(group)
        if start == end or (rule.entropy and entropy(data[start:end].decode("utf-8", "replace")) <= rule.entropy):
            continue
        if not any(is_allowed(match.span(), (start, end), allowed) for allowed in rule.allowed):
            yield start, end
