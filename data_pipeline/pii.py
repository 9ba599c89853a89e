"""Stage "redact": replace e-mail addresses, telephone, card and bank account numbers by typed placeholders.

Promises: each type has an exact grammar, cards and accounts also a checksum; findings do not overlap and depend on
nothing but the text. All documents are kept, `sha256` still names the raw text, and what was
found is counted by type and source (never written down: a list of what was removed would be what was removed).

Price: one RE2 automaton (linear in the text, whatever the text) reads all documents of a shard; only those with a
candidate are read again with the exact rules. What it cannot see: names, postal addresses, numbers spelt in words.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data_pipeline.checksums import IBAN_LENGTHS, is_card, is_iban, is_luhn
from data_pipeline.documents import DOCUMENT_SCHEMA, funnel, read_table, write_table
from data_pipeline.parallel import Shard, ShardMade, map_shards, sum_stats
from data_pipeline.phones import GROUP, HYPHENS, RUN, SPACES, WORD, phone_at
from governance.config import Section
from governance.manifest import Manifest
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 1
Kind = Literal["email", "phone", "card", "iban"]
_BAD_ACCOUNT = (
    "account"  # has the shape of an IBAN and a wrong checksum: nothing is reported, nothing else is seen in it
)
PLACEHOLDERS = {"email": "[EMAIL]", "iban": "[IBAN]", "card": "[CARD]", "phone": "[PHONE]"}
_ORDER = {kind: rank for rank, kind in enumerate(("email", "iban", _BAD_ACCOUNT, "card", "phone"))}


class PiiConfig(Section):
    """What is looked for, and what is done with it."""

    types: tuple[Kind, ...] = Field(default=("email", "phone", "card", "iban"))
    """Types to find; an empty list finds nothing."""
    action: Literal["replace", "count"] = "replace"
    """"replace": each finding becomes its placeholder; "count": texts stay as they are, findings are counted."""


@dataclass(frozen=True, order=True)
class Finding:
    """A stretch of text, in characters, `end` exclusive."""

    start: int
    end: int
    type: str


# RFC 5321 and 6531 in practice: unquoted local parts; labels of letters, digits and hyphens; an alphabetic top level.
_LETTERS = WORD.replace("_", "")
_TOP_LEVEL = r"[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0370-\u052f]"
_LOCAL_BACKWARDS = re.compile(rf"[{_LETTERS}_%+\-'&.]{{1,65}}")  # read from the @ to the left
_DOMAIN = re.compile(
    rf"(?:[{_LETTERS}](?:[{_LETTERS}\-]{{0,61}}[{_LETTERS}])?\.){{1,8}}"
    rf"(?:xn--[a-z0-9\-]{{2,59}}|{_TOP_LEVEL}{{2,24}})(?![{_LETTERS}_]|-[{_LETTERS}])",
    re.I,
)
_NO_TOP_LEVEL = frozenset(
    [
        "png",
        "jpg",
        "jpeg",
        "gif",
        "svg",
        "webp",
        "bmp",
        "ico",
        "css",
        "js",
        "jsx",
        "ts",
        "tsx",
        "json",
        "html",
        "htm",
        "xml",
        "pdf",
        "txt",
        "csv",
        "gz",
        "zip",
    ]
)
_SPELT_AT = re.compile(r"[\[(<{][ ]?(?:at|AT|@)[ ]?[\])>}][ ]?")
_SPELT_DOT = r"(?:\.|[ ]?[\[(<{][ ]?(?:dot|DOT|\.)[ ]?[\])>}][ ]?|[ ](?:dot|DOT)[ ])"
_SPELT_LOCAL = re.compile(rf"(?<![{WORD}.])[a-z0-9](?:[a-z0-9_+\-]{{1,40}}|{_SPELT_DOT}){{0,6}}\Z", re.I)
_SPELT_DOMAIN = re.compile(
    rf"[a-z0-9\-]{{1,63}}(?:{_SPELT_DOT}[a-z0-9\-]{{1,63}}){{0,4}}{_SPELT_DOT}[a-z]{{2,24}}(?![{WORD}])", re.I
)

_IBAN_HEAD = re.compile("[0-9][0-9](?<=[A-Z]{2}..|[a-z]{2}..)")  # digits first: they are rarer than letters
_IBAN_NEXT = re.compile(rf"[{SPACES}{HYPHENS}]?([A-Za-z0-9])")
_CARD_SHAPES = ((4, 4, 4, 4, 3), (4, 4, 4, 4), (4, 6, 5), (4, 6, 4))
_CARD_BETWEEN = frozenset(" -\u00a0\u2011")
_TOUCHES = re.compile(rf"[{WORD}]")
_GLUED_LEFT = re.compile(rf"(?:[{WORD}]|[0-9][.,:/]|[{WORD}][{HYPHENS}])\Z")
_GLUED_RIGHT = re.compile(rf"[{WORD}]|[.:/{HYPHENS}][0-9]")
_SAYS_CARD = re.compile(
    r"(?:card|carte|karte|tarjeta|cartão|carta|kaart|visa|maestro|amex|卡|credit|debit|\bpan\b|\bcc\b)", re.I
)


def find(text: str, types: Sequence[str] = tuple(PLACEHOLDERS)) -> list[Finding]:
    """What the exact rules find, by position, never overlapping; of two that overlap the earlier type here wins:
    e-mail, IBAN, card, telephone.
    """
    ranked = [*_emails(text), *_accounts(text), *_numbers(text)]
    found: list[Finding] = []
    # By place; where two begin together or overlap, the type that comes first in PLACEHOLDERS keeps the place.
    for finding in sorted(ranked):
        while found and finding.start < found[-1].end:
            if _ORDER[finding.type] >= _ORDER[found[-1].type]:
                break
            found.pop()
        else:
            found.append(finding)
    return [finding for finding in found if finding.type in types]


def replace(text: str, findings: Sequence[Finding]) -> str:
    """The text with each finding replaced by its placeholder; `findings` as `find` gives them."""
    parts, at = [], 0
    for finding in findings:
        parts += [text[at : finding.start], PLACEHOLDERS[finding.type]]
        at = finding.end
    return "".join([*parts, text[at:]])


def _emails(text: str) -> Iterator[Finding]:
    at = text.find("@")
    while at >= 0:
        domain = _DOMAIN.match(text, at + 1)
        start = _local_start(text, at) if domain else None
        if domain and start is not None and _is_address(text, start, domain):
            yield Finding(start, domain.end(), "email")
        at = text.find("@", at + 1)
    for spelt in _SPELT_AT.finditer(text):
        stop = spelt.start() - text.endswith(" ", 0, spelt.start())
        local = _SPELT_LOCAL.search(text, max(0, stop - 65), stop)
        domain = _SPELT_DOMAIN.match(text, spelt.end())
        if local and domain:
            yield Finding(local.start(), domain.end(), "email")


def _local_start(text: str, at: int) -> int | None:
    """Where the local part before the `@` at `at` begins; None when there is none, or one over 64 characters."""
    backwards = _LOCAL_BACKWARDS.match(text[max(0, at - 65) : at][::-1])
    if backwards is None or len(backwards.group()) > 64:
        return None
    local = backwards.group()[::-1].rpartition("..")[2].lstrip(".%+-'&")
    return at - len(local) if local and local[-1] not in ".'" else None


def _is_address(text: str, start: int, domain: re.Match[str]) -> bool:
    """Not the password of a URL, a remote path (`git@host.org:path`), or a file name (`icon@2x.png`)."""
    if domain.group().rpartition(".")[2].lower() in _NO_TOP_LEVEL:
        return False
    authority = re.search(r"://[^\s/]*\Z", text[max(0, start - 64) : start])
    remote = re.match(r":[\w~./]", text[domain.end() : domain.end() + 2])
    return not authority and not remote


def _accounts(text: str) -> Iterator[Finding]:
    """IBANs, and stretches that have the shape of one."""
    for head in _IBAN_HEAD.finditer(text):
        start, end = head.start() - 2, head.end()
        compact = text[start:end]
        length = IBAN_LENGTHS.get(compact[:2].upper())
        if length is None or (start and _TOUCHES.match(text, start - 1)):
            continue
        while len(compact) < length and (step := _IBAN_NEXT.match(text, end)):
            compact, end = compact + step.group(1), step.end()
        if len(compact) == length and not _TOUCHES.match(text, end):
            if is_iban(compact):
                yield Finding(start, end, "iban")
            elif compact.isupper() and sum(letter.isdigit() for letter in compact) >= 10:
                yield Finding(start, end, _BAD_ACCOUNT)


def _numbers(text: str) -> Iterator[Finding]:
    """Cards and telephones: slices of whole groups of a run of digits."""
    for run in RUN.finditer(text):
        if run.end() - run.start() < 7:
            continue
        groups = list(GROUP.finditer(text, run.start(), run.end()))
        index = 0
        while index < len(groups):
            if (card := _card_at(text, groups, index)) is not None:
                yield Finding(groups[index].start(), groups[card - 1].end(), "card")
                index = card
            elif (phone := phone_at(text, groups, index)) is not None:
                yield Finding(phone[0], phone[1], "phone")
                index = phone[2]
            else:
                index += 1


def _card_at(text: str, groups: Sequence[re.Match[str]], first: int) -> int | None:
    """The index after the last group of a card number that starts at group `first`, or None."""
    start = groups[first].start()
    if _GLUED_LEFT.search(text[max(0, start - 2) : start]):
        return None
    sizes = tuple(len(group.group()) for group in groups[first : first + 5])
    if first and len(groups[first - 1].group()) == 4 == sizes[0]:
        return None  # the tail of a longer series of fours
    count = 1 if 12 <= sizes[0] <= 19 else next((len(s) for s in _CARD_SHAPES if sizes[: len(s)] == s), 0)
    last = first + count
    if not count or _GLUED_RIGHT.match(text, groups[last - 1].end()):
        return None
    between = {text[a.end() : b.start()] for a, b in itertools.pairwise(groups[first:last])}
    digits = "".join(group.group() for group in groups[first:last])
    if count > 1:
        series = last < len(groups) and len(groups[last].group()) == 4
        return last if len(between) == 1 and between <= _CARD_BETWEEN and not series and is_card(digits) else None
    if _SAYS_CARD.search(text[max(0, start - 40) : start]):
        return last if is_luhn(digits) else None
    return last if sizes[0] in (15, 16) and is_card(digits) else None


def _prefilter() -> Any:
    """RE2 over UTF-8 bytes: every finding contains a match. (Latin-1 mode: bytes in, bytes out, no decoding.)"""
    import re2

    between = r"(?:[ ().,/\-]|\xc2\xa0|\xe2\x80[\x80-\xbf])"
    number = rf"[0-9](?:{between}{{0,3}}[0-9]){{6}}"
    head = rf"(?:[A-Z][A-Z]|[a-z][a-z])[0-9][0-9]{between}?[A-Za-z0-9]{between}?[A-Za-z0-9]"
    spelt = r"[\[(<{] ?(?:at|AT) ?[\])>}]"
    return re2.compile(f"[^ \n]@[^ \n]|{number}|{head}|{spelt}".encode("latin-1"))


def candidates(texts: pa.LargeStringArray) -> list[int]:
    """The indices of the texts that the prefilter does not rule out, rising.

    The texts lie end to end in one buffer, so one search covers many. A match that reaches into the next text only
    makes its own text a candidate; the search goes on at the next text's first byte, so none is missed.
    """
    if not len(texts):
        return []
    _, starts, values = texts.buffers()
    offsets = np.frombuffer(starts, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    first, data = int(offsets[0]), values[int(offsets[0]) : int(offsets[-1])].to_pybytes() if values else b""
    search, hot, at = _prefilter().search, [], 0
    while (match := search(data, at)) is not None:
        index = int(np.searchsorted(offsets, match.start() + first, side="right")) - 1
        hot.append(index)
        at = int(offsets[index + 1]) - first
    return hot


def redact_table(table: pa.Table, config: PiiConfig) -> tuple[pa.Table, dict[str, Any]]:
    """The documents of a shard with their findings replaced, and the counts of the funnel."""
    texts = table["text"].combine_chunks()
    sources = table["source"].to_pylist()
    changed: dict[int, str] = {}
    by_type: Counter[str] = Counter()
    by_source: dict[str, Counter[str]] = {}
    for index in candidates(texts):
        text = texts[index].as_py()
        findings = find(text, config.types)
        if findings:
            by_type.update(finding.type for finding in findings)
            by_source.setdefault(sources[index], Counter()).update(finding.type for finding in findings)
            changed[index] = replace(text, findings)
    result = table
    if changed and config.action == "replace":
        column = table.schema.get_field_index("text")
        new = [changed.get(index) for index in range(len(texts))]
        merged = pc.coalesce(pa.array(new, type=pa.large_string()), texts)
        result = table.set_column(column, table.schema.field("text"), merged)
    before, after = (pc.binary_length(column).to_pylist() for column in (texts, result["text"]))
    return result, {
        **funnel(sources, before, after, [""] * len(sources)),
        "documents_with_findings": len(changed),
        "findings": {kind: by_type[kind] for kind in PLACEHOLDERS},
        "findings_by_source": {source: dict(count) for source, count in by_source.items()},
    }


def _redact_shard(config: PiiConfig, payload: Path, path_of: Callable[[str], Path]) -> ShardMade:
    table, stats = redact_table(read_table(payload), config)
    write_table(path_of("documents"), table)
    return ShardMade({"documents": path_of("documents")}, stats)


def redact(documents: Manifest, config: PiiConfig, runtime: Runtime) -> Manifest:
    """Replace what `find` finds in every document, by its type's placeholder; keep every document."""
    recipe = Recipe("redact", VERSION, config)

    def make(folder: Path) -> Made:
        digests = {output.path: output.sha256 for output in documents.outputs}
        shards = [
            Shard(path.stem, (path.stem, digests[path.relative_to(runtime.root).as_posix()]), path)
            for path in documents.files("documents", runtime.root)
        ]
        done = map_shards(recipe, _redact_shard, shards, folder, runtime)
        empty = redact_table(DOCUMENT_SCHEMA.empty_table(), config)[1]
        return Made(
            [output for shard in done for output in shard.outputs.values()],
            sum_stats([empty, *(s.stats for s in done)]),
        )

    return run_stage(recipe, [documents.as_input()], runtime, make)
