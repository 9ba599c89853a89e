"""Parallel text: aligned files, PO and TMX; each pair is a document.

    corpus.en, corpus.de   aligned: line n of one is the translation of line n of the other; also packed (corpus.en.gz)
    de.po                  GNU gettext: msgid is the source, msgstr the target; of a message with plural forms the
                           source of msgstr[0] is msgid, that of each further form msgid_plural
    memory.tmx             TMX 1.4: the first segments in the two languages of each unit; markup inside is left out

Passed over, by reason: `untranslated` and `fuzzy` (PO), `other_language` (a TMX unit without both), `long_pair`.
Faults: `empty_source`, `empty_target`, `holds_the_mark`, `not_utf8`, `wrong_encoding` (bytes outside a PO file's
charset), `line_too_long` (also a message of PO of more than 64 MiB), `not_po` (a message with a line that is not of the
format), and of TMX `corrupt_xml`, `truncated_xml`, `hostile_xml` (an entity of its own, or a unit or a tag of more than
64 MiB). A record's position is its line, its place among the translated messages and plural forms, or its unit, from 0.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Protocol, TypeVar
from xml.parsers import expat

from data_pipeline.readers.file_types.pair_settings import PairSettings
from data_pipeline.readers.file_types.pair_text import MARK, pair_text
from data_pipeline.readers.record import Record, RecordFault, sample
from data_pipeline.readers.streams import MAX_RECORD_BYTES, TornStream, blocks, lines, parse_xml, plain_name
from governance.errors import ConfigError, MissingInput, PipelineError

_PO_LINE = re.compile(r'(msgctxt|msgid_plural|msgid|msgstr(?:\[\d+\])?)?\s*"(.*)"\s*')
_ALIEN = "not_po"
_CHARSET = re.compile(rb"\bcharset=([\w.:-]+)", re.IGNORECASE)
_ASCII = bytes(range(32, 127))
_ESCAPING = ("unicode-escape", "unicode_escape", "raw-unicode-escape", "raw_unicode_escape")  # Python's, not charsets
_ESCAPE = re.compile(r"\\(.)")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
Pair = tuple[int, str, str]
"""Position, source, target."""


class NamedFile(Protocol):
    """A file of a source (`SourceItem`)."""

    @property
    def file(self) -> str:
        """Its name within the source."""

    @property
    def local(self) -> Path:
        """Its path."""


Named = TypeVar("Named", bound=NamedFile)


def split_sides(name: str, settings: PairSettings, items: Sequence[Named]) -> tuple[list[Named], list[Named]]:
    """Files that are read, each with its file of targets.

    Raises:
        MissingInput: an aligned file has no counterpart.
        ConfigError: a file is of no known kind.
    """
    read, beside, names = [], [], {item.file for item in items}
    for item in items:
        kind = Path(plain_name(item.file)).suffix[1:]
        if kind not in ("po", "tmx", settings.source_language, settings.target_language):
            raise ConfigError(
                f"source {name}: {item.file!r} is neither .po nor .tmx, nor ends in .{settings.source_language} or "
                f".{settings.target_language}. Narrow the `paths`, or correct the languages."
            )
        if kind == settings.target_language:
            beside.append(item)
            other = counterpart(item.file, settings.target_language, settings.source_language)
        else:
            read.append(item)
            other = counterpart(item.file, settings.source_language, settings.target_language)
        if kind not in ("po", "tmx") and other not in names:
            raise MissingInput(
                f"source {name}: {item.file!r} has no counterpart {other!r}. Add it to the `paths`, or leave both out."
            )
    return read, beside


def counterpart(file: str, of: str, to: str) -> str:
    """Name of the aligned file in another language."""
    plain = plain_name(file)
    return plain.removesuffix(f".{of}") + f".{to}" + file[len(plain) :]


def read_pairs(
    item: NamedFile, settings: PairSettings, beside: Sequence[NamedFile], passed: Counter[str]
) -> Iterator[Record | RecordFault]:
    """Records and faults of one file, in order.

    Raises:
        PipelineError: aligned files have unequal numbers of lines; names the first line without a counterpart.
    """
    pairs = _Pairs(item.file, settings, passed)
    kind = plain_name(item.file)
    try:
        if kind.endswith(".po"):
            yield from pairs.of(_read_po(item.local, pairs))
        elif kind.endswith(".tmx"):
            yield from pairs.of(_read_tmx(item.local, pairs))
        else:
            name = counterpart(item.file, settings.source_language, settings.target_language)
            other = next(one for one in beside if one.file == name)
            yield from pairs.of(_read_aligned((item.local, item.file), (other.local, other.file), pairs))
    except TornStream as error:
        yield from pairs.waiting()
        yield RecordFault(item.file, pairs.position + 1, error.reason, sample(error.tail))


@dataclass
class _Pairs:
    """From pairs to records and faults."""

    file: str
    settings: PairSettings
    passed: Counter[str]
    position: int = -1
    """Number of the last pair that was read."""

    def __post_init__(self) -> None:
        self._faults: list[RecordFault] = []

    def fault(self, position: int, reason: str, shown: bytes | str) -> None:
        """Note a fault; it is yielded before the next pair."""
        self.position = position
        self._faults.append(RecordFault(self.file, position, reason, sample(shown)))

    def waiting(self) -> Iterator[RecordFault]:
        """The faults noted since."""
        yield from self._faults
        self._faults.clear()

    def of(self, pairs: Iterator[Pair]) -> Iterator[Record | RecordFault]:
        for position, source, target in pairs:
            yield from self.waiting()
            self.position = position
            most = self.settings.most_characters
            empty = [side for side, text in (("source", source), ("target", target)) if not text.strip()]
            if empty:
                yield RecordFault(self.file, position, f"empty_{empty[0]}", sample(source or target))
            elif most and max(len(source), len(target)) > most:
                self.passed["long_pair"] += 1
            elif (text := pair_text(source, target)) is None:
                yield RecordFault(self.file, position, "holds_the_mark", sample(source if MARK in source else target))
            else:
                yield Record(text, self.file, position, language=self.settings.source_language)
        yield from self.waiting()


def _read_aligned(one: tuple[Path, str], two: tuple[Path, str], pairs: _Pairs) -> Iterator[Pair]:
    both = zip_longest(*(lines(blocks(path)) for path, _ in (one, two)))
    for number, (source, target) in enumerate(both):
        if source is None or target is None:
            longer, shorter = (one, two) if target is None else (two, one)
            raise PipelineError(
                f"parallel files of unequal length: line {number + 1} of {longer[1]} has no counterpart, since "
                f"{shorter[1]} ends after {number} lines. Correct the files: from the first line that was lost on, "
                f"every pair would be wrong."
            )
        if max(len(source), len(target)) > MAX_RECORD_BYTES:
            pairs.fault(number, "line_too_long", source)
            continue
        try:
            yield number, source.decode("utf-8"), target.decode("utf-8")
        except UnicodeDecodeError:
            pairs.fault(number, "not_utf8", source)


def _read_po(path: Path, pairs: _Pairs) -> Iterator[Pair]:
    """Translated messages; untranslated, fuzzy and obsolete ones are skipped."""
    number = -1
    for values, fuzzy in _messages(path, pairs):
        if not values.get("msgid"):
            continue  # the header
        if fuzzy:
            pairs.passed["fuzzy"] += 1
            continue
        plural = values.get("msgid_plural", values["msgid"])
        targets = {name: text for name, text in values.items() if name.startswith("msgstr")} or {"msgstr": ""}
        for name, target in targets.items():
            source = values["msgid"] if name in ("msgstr", "msgstr[0]") else plural
            if target:
                number += 1
                yield number, source, target
            else:
                pairs.passed["untranslated"] += 1


def _messages(path: Path, pairs: _Pairs) -> Iterator[tuple[dict[str, str], bool]]:
    """Values of each message by keyword, and whether it is fuzzy.

    A message with a line that is not in the file's charset or not a line of PO, or of more than 64 MiB, is a fault as a
    whole.
    """
    encoding = _charset_of(path)
    values: dict[str, list[str]] = {}
    name, fuzzy, next_fuzzy, size = "", False, False, 0
    whole = True
    for count, line in enumerate(lines(blocks(path))):
        text = line.decode(encoding, "replace").strip()
        if text.startswith("#"):
            next_fuzzy = _is_fuzzy(text, next_fuzzy)
        if (found := _parts_of(line, text)) is None:
            continue  # a comment, an obsolete message, an empty line
        keyword, string = found
        if keyword in ("msgctxt", "msgid") and not (keyword == "msgid" and name == "msgctxt"):
            if values and whole:
                yield _joined(values), fuzzy
            values, fuzzy, next_fuzzy, whole, size = {}, next_fuzzy, False, True, 0
        size += len(line)
        if reason := _fault_of(line, size, keyword, encoding, whole=whole):
            pairs.fault(count, reason, line)
            values, whole = {}, False
        name = keyword or name
        if whole:
            values.setdefault(name, []).append(_ESCAPE.sub(lambda sign: _ESCAPES.get(sign[1], sign[1]), string))
    if values and whole:
        yield _joined(values), fuzzy


def _charset_of(path: Path) -> str:
    """The encoding that the header of a PO file names, else UTF-8.

    gettext requires one that holds ASCII; its templates name none ("CHARSET").
    """
    is_header = False
    for line in lines(blocks(path)):
        if line.startswith(b"msgid"):
            if is_header or line.strip() != b'msgid ""':
                break
            is_header = True
        if is_header and (found := _CHARSET.search(line)):
            name = found[1].decode("ascii")
            return codecs.lookup(name).name if _holds_ascii(name) else "utf-8"
    return "utf-8"


def _holds_ascii(encoding: str) -> bool:
    try:
        known = codecs.lookup(encoding).name
        return known not in _ESCAPING and _ASCII.decode(known, "replace") == _ASCII.decode("ascii")
    except (LookupError, UnicodeError):
        return False


def _is_fuzzy(comment: str, before: bool) -> bool:
    """Return whether the next message is fuzzy, after this comment."""
    if comment.startswith("#,") and "fuzzy" in comment:
        return True
    return before and not comment.startswith("#~")  # it was that of an obsolete message


def _parts_of(line: bytes, text: str) -> tuple[str, str] | None:
    """Keyword, "" without one, and string of a line; None of comments.

    The result is None of an empty line or a `domain`, too. The keyword of a line of another format is `not_po`.
    """
    if found := _PO_LINE.fullmatch(text):
        return found[1] or "", found[2]
    if len(line) > MAX_RECORD_BYTES:  # it was cut
        return text[:20].partition('"')[0].strip(), ""
    return (_ALIEN, "") if text and not text.startswith(("#", "domain ")) else None


def _fault_of(line: bytes, size: int, keyword: str, encoding: str, *, whole: bool) -> str:
    """Fault of a message's line; "" without a new one."""
    if keyword == _ALIEN:
        return _ALIEN if whole else ""
    if size > MAX_RECORD_BYTES:
        return "line_too_long" if whole else ""
    if _is_in(line, encoding):
        return ""
    return "not_utf8" if encoding == "utf-8" else "wrong_encoding"


def _joined(values: dict[str, list[str]]) -> dict[str, str]:
    return {name: "".join(strings) for name, strings in values.items()}


def _is_in(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


class _Tmx:
    """Units of a TMX file, each by language its first segment."""

    def __init__(self) -> None:
        self.units: list[dict[str, str]] = []
        self._language, self._markup = "", 0
        self._size = self._silent = 0
        self._text: list[str] | None = None
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.EntityDeclHandler = self._refuse
        self._unit: dict[str, str] = {}

    def feed(self, data: bytes, final: bool) -> None:
        self._silent += len(data)
        parse_xml(self._parser, data, final, self._silent)

    def _refuse(self, *declared: object) -> None:
        raise TornStream("hostile_xml", b"an entity declaration")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._silent = 0
        if name == "tu":
            self._unit, self._size = {}, 0
        elif name == "tuv":
            self._language = (attributes.get("xml:lang") or attributes.get("lang") or "").lower().replace("_", "-")
        elif name == "seg":
            self._text = []
        elif name in _CODES:
            self._markup += 1

    def _characters(self, text: str) -> None:
        self._silent = 0
        if self._text is not None and not self._markup:
            self._size += len(text)
            if self._size > MAX_RECORD_BYTES:
                raise TornStream("hostile_xml", b"a unit of more than 64 MiB")
            self._text.append(text)

    def _end(self, name: str) -> None:
        self._silent = 0
        if name == "seg" and self._text is not None:
            self._unit.setdefault(self._language, "".join(self._text))
            self._text = None
        elif name in _CODES:
            self._markup -= 1
        elif name == "tu":
            self.units.append(self._unit)


_CODES = ("bpt", "ept", "it", "ph", "ut")
"""Elements of a segment that hold the markup of another format."""


def _read_tmx(path: Path, pairs: _Pairs) -> Iterator[Pair]:
    reading, number = _Tmx(), -1
    data: Iterator[bytes] = blocks(path)
    block: bytes | None = b""
    torn: TornStream | None = None
    while block is not None and torn is None:
        try:
            block = next(data, None)
            reading.feed(block or b"", final=block is None)
        except TornStream as error:
            torn = error
        for unit in reading.units:
            number += 1
            sides = [_in_language(unit, language) for language in _languages(pairs.settings)]
            if None in sides:
                pairs.passed["other_language"] += 1
            else:
                yield number, str(sides[0]), str(sides[1])
        reading.units.clear()
    if torn is not None:
        pairs.position = number
        raise torn


def _languages(settings: PairSettings) -> tuple[str, str]:
    """Languages as TMX writes them: pt_BR is pt-br."""
    one, two = (code.lower().replace("_", "-") for code in (settings.source_language, settings.target_language))
    return one, two


def _in_language(unit: dict[str, str], language: str) -> str | None:
    """The segment of a language, or of a variety (de: de-at)."""
    found = [text for name, text in unit.items() if name.split("-")[0] == language]
    return unit.get(language, found[0] if found else None)
