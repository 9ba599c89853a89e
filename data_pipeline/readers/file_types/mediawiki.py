"""MediaWiki's XML dumps (pages-articles), streamed: one document per page.

The text is that of the page's last revision in the dump, reduced to plain text (`wikitext.py`). A record's position is
its page's number from 0. Its url is the wiki's, from the dump's `siteinfo`. `columns` keeps title, page_id,
revision_id and timestamp.

Passed over, by reason: `redirect`, `other_namespace`. Faults: `no_text` (also a text that was deleted), `file_too_long`
(more than 64 MiB of wikitext), `wikitext_too_large`, `wikitext_too_slow`, `wikitext_broke_parser`. A file that is not
XML is torn there: `corrupt_xml` (also an encoding that the parser does not read), `truncated_xml` where it ends early.
A document type, and with it every entity of its own, is refused as `hostile_xml`, and so are elements nested deeper
than 100 and a tag of more than 64 MiB. Memory: one page, and a batch of 256 KiB.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote
from xml.parsers import expat

from data_pipeline.readers.page_process import read_pages
from data_pipeline.readers.pages.extraction import WIKITEXT
from data_pipeline.readers.record import Record, RecordFault, sample, to_record
from data_pipeline.readers.sources import MediawikiSource
from data_pipeline.readers.streams import MAX_RECORD_BYTES, TornStream, blocks, parse_xml

_MAX_DEPTH = 100
_BATCH_BYTES = 1 << 18
_BATCH_PAGES = 64
_FILE, _CATEGORY = "6", "14"  # namespaces whose links are not text
_MAX_PREFIXES, _PREFIX_CHARACTERS = 100, 200  # a dump names one of each kind; all go with each page to its reader
_ENGLISH = ("file", "image", "media", "category")
_FIELDS = {
    ("page", "title"): "title", ("page", "ns"): "namespace", ("page", "id"): "page_id",
    ("revision", "id"): "revision_id", ("revision", "timestamp"): "timestamp", ("revision", "text"): "text",
}  # fmt: skip


@dataclass
class _Page:
    """A page of the dump, as read so far."""

    position: int
    values: dict[str, str] = field(default_factory=dict)
    redirect: bool = False
    too_long: bool = False


class _Dump:
    """Pages from the bytes of a dump."""

    def __init__(self) -> None:
        self.pages: deque[_Page] = deque()
        self.base = ""
        self.prefixes = set(_ENGLISH)
        self.count = 0
        self._page: _Page | None = None
        self._way: list[str] = []
        self._text: list[str] = []
        self._size = 0
        self._silent = 0
        self._space = ""
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.StartDoctypeDeclHandler = self._refuse

    def feed(self, data: bytes, final: bool = False) -> None:
        """Take in bytes.

        Raises:
            TornStream: they are not well-formed, or hostile.
        """
        self._silent += len(data)
        parse_xml(self._parser, data, final, self._silent)

    def _refuse(self, *declared: object) -> None:
        raise TornStream("hostile_xml", b"a document type declaration")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._silent = 0
        self._way.append(name.rpartition(":")[2])
        if len(self._way) > _MAX_DEPTH:
            raise TornStream("hostile_xml", b"elements nested deeper than 100")
        self._text, self._size = [], 0
        if self._way[-1] == "page":
            self._page = _Page(self.count)
        elif self._way[-1] == "redirect" and self._page is not None:
            self._page.redirect = True
        elif self._way[-1] == "namespace":
            self._space = attributes.get("key", "")

    def _characters(self, text: str) -> None:
        self._silent = 0
        self._size += len(text)
        if self._size <= MAX_RECORD_BYTES:
            self._text.append(text)

    def _end(self, name: str) -> None:
        self._silent = 0
        kind = self._way.pop()
        text = "".join(self._text)
        if kind == "base":
            self.base = text.rpartition("/")[0]
        elif kind == "namespace" and self._space in (_FILE, _CATEGORY):
            if len(self.prefixes) < _MAX_PREFIXES and len(text) <= _PREFIX_CHARACTERS:
                self.prefixes.add(text.strip().lower())
        elif self._page is not None and (value := _FIELDS.get((self._way[-1] if self._way else "", kind))):
            self._page.values[value] = text
            self._page.too_long |= value == "text" and self._size > MAX_RECORD_BYTES
        elif kind == "page" and self._page is not None:
            self.pages.append(self._page)
            self.count += 1
            self._page = None
        self._text, self._size = [], 0


def read_mediawiki(
    path: Path, file: str, source: MediawikiSource, passed: Counter[str]
) -> Iterator[Record | RecordFault]:
    """Records and faults of one dump, in order.

    Raises:
        MissingInput: the file cannot be opened.
    """
    dump = _Dump()
    waiting: list[_Page] = []
    held = 0
    torn: TornStream | None = None
    block: bytes | None = b""
    data = blocks(path)
    while torn is None:
        try:
            block = next(data, None)
            dump.feed(block or b"", final=block is None)
        except TornStream as error:
            torn = error
        while dump.pages:
            page = dump.pages.popleft()
            if page.redirect:
                passed["redirect"] += 1
            elif page.values.get("namespace", "0") not in map(str, source.namespaces):
                passed["other_namespace"] += 1
            else:
                waiting.append(page)
                held += len(page.values.get("text", ""))
        if held > _BATCH_BYTES or len(waiting) >= _BATCH_PAGES or block is None or torn:
            yield from _read_batch(waiting, dump, file, source)
            waiting, held = [], 0
        if torn is None and block is None:
            return
    yield RecordFault(file, dump.count, torn.reason, sample(torn.tail))


def _read_batch(pages: list[_Page], dump: _Dump, file: str, source: MediawikiSource) -> Iterator[Record | RecordFault]:
    head = "|".join(sorted(dump.prefixes)) + "\n"
    read = [page for page in pages if not page.too_long and page.values.get("text")]
    texts = iter(read_pages([((head + page.values["text"]).encode(), "utf-8") for page in read], WIKITEXT))
    for page in pages:
        title = page.values.get("title", "")
        if page.too_long or not page.values.get("text"):
            yield RecordFault(file, page.position, "file_too_long" if page.too_long else "no_text", sample(title))
            continue
        found = next(texts)
        if isinstance(found, str) or not found.text:
            reason = found.replace("html", "wikitext") if isinstance(found, str) else "no_text"
            yield RecordFault(file, page.position, reason, sample(title))
            continue
        url = f"{dump.base}/{quote(title.replace(' ', '_'))}" if dump.base else ""
        yield to_record({**page.values, "text": found.text, "url": url}, source.fields, file, page.position, title)
