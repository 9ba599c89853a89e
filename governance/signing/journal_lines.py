"""Lines of a journal: parsing, verification, times.

A line is read before it is trusted: `parse_line` makes a `JournalEntry` of anything that has the form of one,
`read_journal` verifies the chain and each signature, and returns the faults with their lines.

Times. A check on a machine whose clock is wrong leaves a line that is dated ahead, and a journal's times never fall, so
the root would be closed until that day. Therefore an account that may sign for the root can append a statement of the
kind `clock` (`urn:assay:clock:1`), dated by the clock that is right. It names each line with its number, digest and
wrong time, and gives a reason:

    {"void": [{"line": 23, "sha256": "...64 hex", "time": "2027-01-06T09:00:00Z"}],
     "verdicts": ["verdicts/....json"], "reason": "node7 booted in 2027", "account": "ann"}

Later checks ignore the named times. Promise: no verdict from before such a statement opens anything; each must be given
again. So it brings back neither an older nor an expired verdict; and it is an ordinary line of the journal, which
cannot be written without a trusted key.
"""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governance.config import is_canonical
from governance.errors import ManifestError
from governance.files import sha256_bytes
from governance.manifest import Input
from governance.regular_files import read_whole
from governance.signing.dsse import PublicKey, verify_envelope
from governance.signing.running_digests import GROWN, Prefix, read_prefix

MAX_JOURNAL_BYTES = 4 << 30
FILE_NAME = "journal.jsonl"
PREDICATE_TYPE = "urn:assay:provenance:1"
CLOCK = "clock"
CLOCK_TYPE = "urn:assay:clock:1"
SKEW = datetime.timedelta(minutes=5)
"""Greatest difference between the clocks of two nodes."""
_MAX_PLACES = 5
_FIELDS = {"envelope", "index", "kind", "previous", "time"}


@dataclass(frozen=True)
class JournalEntry:
    """One line whose statement can be read."""

    index: int
    """Its number in the file, from 0; a torn line has one too."""
    digest: str
    """SHA-256 of the line without its end."""
    kind: str
    time: str
    statement: Mapping[str, Any]

    @property
    def place(self) -> str:
        """Reference to this line in other statements."""
        return f"{FILE_NAME}#{self.index}"

    @property
    def subjects(self) -> dict[str, str]:
        """Subjects: name -> SHA-256."""
        return {item["name"]: item["digest"]["sha256"] for item in self.statement["subject"]}

    @property
    def seal(self) -> str:
        """The seal of the stated manifest; "" without one."""
        predicate = self.statement["predicate"]
        return str(predicate.get("seal", "")) if self.states_files else ""

    @property
    def states_files(self) -> bool:
        """Return whether the subjects are files with stated inputs."""
        return bool(self.statement["predicateType"] == PREDICATE_TYPE)

    @property
    def materials(self) -> tuple[Input, ...]:
        """Inputs of the subjects; empty for other statements."""
        if not self.states_files:
            return ()
        return tuple(Input(**item) for item in self.statement["predicate"].get("materials", ()))

    @property
    def grown(self) -> tuple[Prefix, ...]:
        """Lengths of growing files since the previous line."""
        return tuple(map(read_prefix, self.statement["predicate"]["journal"].get(GROWN, ())))


def named(entry: JournalEntry) -> set[str]:
    """The digests of its subjects and of their inputs."""
    return {*entry.subjects.values(), *(item.digest for item in entry.materials)}


def lines_of(data: bytes) -> list[bytes]:
    """The lines of a journal's bytes, without their ends."""
    lines = data.split(b"\n")
    return lines[:-1] if not lines[-1] else lines


def parse_line(line: bytes, index: int) -> JournalEntry | None:
    """The entry of a line, or None; its signature is not verified."""
    try:
        values = json.loads(line)
        found = json.loads(base64.b64decode(values["envelope"]["payload"]))
        entry = JournalEntry(index, sha256_bytes(line), str(values["kind"]), str(values["time"]), found)
        named(entry)
        dict(found["predicate"]["journal"])
        tuple(entry.grown)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return entry


def read_journal(path: Path, trusted: Sequence[PublicKey]) -> tuple[list[JournalEntry], list[str]]:
    """Entries of a journal, and its faults by file and line.

    Each line costs a verification of Ed25519 (about 0.2 ms).

    Raises:
        ManifestError: the journal is missing or cannot be read.
    """
    try:
        data = read_whole(path, MAX_JOURNAL_BYTES)
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: cannot be read ({error}); each root has its journal") from error
    found, problems = verify_lines(
        [(line, parse_line(line, index)) for index, line in enumerate(lines_of(data))], trusted
    )
    if data and not data.endswith(b"\n"):
        problems.append(f"{FILE_NAME}: line {found.lines - 1}: has no end: its writer was killed, or it was cut")
    return list(found.entries), problems


@dataclass(frozen=True)
class VerifiedLines:
    """The verified beginning of a journal."""

    lines: int = 0
    """Their number, torn ones included."""
    last: str = ""
    """SHA-256 of the last line, which covers all lines before it."""
    entries: tuple[JournalEntry, ...] = ()


def verify_lines(
    parsed: Sequence[tuple[bytes, JournalEntry | None]],
    trusted: Sequence[PublicKey],
    after: VerifiedLines = VerifiedLines(),
) -> tuple[VerifiedLines, list[str]]:
    """Verify the lines that follow `after`; return all, and their faults.

    Lines with the same fault are named together.
    """
    entries, previous, torn = list(after.entries), after.last, False
    places: dict[str, list[int]] = {}
    for place, (line, entry) in enumerate(parsed):
        index = after.lines + place
        following = parsed[place + 1][1] if place + 1 < len(parsed) else None
        closed = entry is None and following is not None and _closes(following, line)
        for fault in [] if closed else _faults(line, entry, (index, previous, torn), trusted):
            places.setdefault(fault, []).append(index)
        if entry is not None:
            entries.append(entry)
        previous, torn = sha256_bytes(line), entry is None
    problems = [f"{FILE_NAME}: {_places(indexes)}: {fault}" for fault, indexes in places.items()]
    problems += [f"{FILE_NAME}: {fault}" for fault in read_times(entries)[1]]
    return VerifiedLines(after.lines + len(parsed), previous, tuple(entries)), problems


def _places(indexes: Sequence[int]) -> str:
    if len(indexes) == 1:
        return f"line {indexes[0]}"
    more = f" and {len(indexes) - _MAX_PLACES} more" if len(indexes) > _MAX_PLACES else ""
    return f"lines {', '.join(map(str, indexes[:_MAX_PLACES]))}{more}"


def _closes(following: JournalEntry, line: bytes) -> bool:
    """Return whether an entry states that the line before is torn.

    Its signature is verified when its turn comes.
    """
    block = following.statement["predicate"].get("journal", {})
    return block.get("torn") is True and block.get("previous") == sha256_bytes(line)


def _faults(
    line: bytes, entry: JournalEntry | None, expected: tuple[int, str, bool], trusted: Sequence[PublicKey]
) -> Iterator[str]:
    """Faults of a line against its expected number and predecessor."""
    if entry is None:
        yield "is torn or altered: no statement can be read"
        return
    index, previous, torn = expected
    values = json.loads(line)
    if not is_canonical(values, line) or set(values) != _FIELDS:
        yield "its bytes are not canonical: it was altered"
    try:
        verify_envelope(values["envelope"], trusted, "its envelope")
    except ManifestError as error:
        yield str(error)
    block = {**entry.statement["predicate"].get("journal", {})}
    said_torn, _ = block.pop("torn", False), block.pop(GROWN, None)
    if block != {name: value for name, value in values.items() if name != "envelope"}:
        yield "its fields differ from the signed ones"
    if block.get("index") != index:
        yield f"was signed as line {block.get('index')}: lines were dropped, repeated or moved"
    if block.get("previous") != previous:
        yield "does not follow the line before it"
    if said_torn != torn:
        yield "states that the line before it was torn" if said_torn else "follows a torn line without stating it"


def stamp(moment: datetime.datetime) -> str:
    """A time in UTC, ISO 8601, to the second."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def void(lines: Iterable[JournalEntry]) -> list[dict[str, Any]]:
    """Reference to lines with void times."""
    return [{"line": line.index, "sha256": line.digest, "time": line.time} for line in lines]


def read_times(lines: Sequence[JournalEntry]) -> tuple[list[JournalEntry], list[str]]:
    """Lines with valid times, and faults of times, in words."""
    counting: list[JournalEntry] = []
    faults = []
    for line in lines:
        if line.kind == CLOCK:
            named = line.statement["predicate"].get("void")
            known = void(counting)
            if not isinstance(named, list) or any(item not in known for item in named):
                faults.append(f"line {line.index}: makes times void that no line before it has")
                named = []
            counting = [kept for kept, item in zip(counting, known, strict=True) if item not in named]
        if counting and line.time < counting[-1].time:
            faults.append(f"line {line.index}: its time falls: {line.time} after {counting[-1].time}")
        counting.append(line)
    return counting, faults


def ahead(lines: Sequence[JournalEntry], moment: datetime.datetime) -> list[JournalEntry]:
    """The lines whose times count and are ahead of a clock."""
    latest = stamp(moment + SKEW)
    return [line for line in read_times(lines)[0] if line.time > latest]


def ahead_words(lines: Sequence[JournalEntry], moment: datetime.datetime) -> list[str]:
    """Each line that is dated ahead, in words."""
    return [
        f"line {line.index} ({line.kind}): is dated {line.time}, ahead of this machine's clock ({stamp(moment)})"
        for line in ahead(lines, moment)
    ]


def since_clock(lines: Sequence[JournalEntry]) -> tuple[JournalEntry | None, Sequence[JournalEntry]]:
    """The last statement that voids times, and the lines after it.

    Where there is none, the result is None and all lines.
    """
    for place in range(len(lines) - 1, -1, -1):
        if lines[place].kind == CLOCK:
            return lines[place], lines[place + 1 :]
    return None, lines
