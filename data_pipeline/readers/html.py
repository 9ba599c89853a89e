"""HTML pages: bytes to characters, and characters to the main text.

Encoding, in the HTML standard's order (13.2.3.2): a byte-order mark; the transport's charset; the page's own `meta`;
what uchardet finds. Two exceptions, both for wrong declarations: bytes that are valid UTF-8 and not mere ASCII are
UTF-8 whatever is declared (by chance that happens to no text of a few lines), and a declared encoding in which the
bytes have no meaning is ignored. A byte without meaning in the encoding that is left becomes U+FFFD.

The main text is `main_text`'s. Where that is empty (a page of menus only, a torn page), trafilatura's is taken, else
all visible text, with the text for browsers without scripts; either is counted as a fallback. Of a page that
shows a note only ("enable JavaScript") there is nothing to choose, so trafilatura, 5 ms per page, is not run; nor on
one of more than 512 Ki characters, on which it takes seconds and a hundredfold of memory.

Another extractor, where a source names one, gives its text or none.

Nothing here bounds the time that a page takes: `page_process` does, and readers go through it.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence

from data_pipeline.readers.file_types.wikitext import plain_text
from data_pipeline.readers.opt_out import meta_signals
from data_pipeline.readers.pages.extraction import ASSAY, MARK, WIKITEXT, Extraction, HtmlPage
from data_pipeline.readers.pages.web_encodings import decode_as, named_mac

_MARK_REFERENCE = re.compile("&#(?:0*2(?![0-9])|[xX]0*2(?![0-9A-Fa-f]));?")
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_SNIFFED_BYTES = 1024
_CHOSEN_CHARACTERS = 512 << 10
_NOTE_CHARACTERS = 250  # length of a longer notice in `main_text`


def extract(data: bytes, charset: str = "", way: Extraction = ASSAY) -> HtmlPage:
    """Main text of a page: one line per paragraph, or Markdown."""
    page = decode_html(data, charset)
    if way.extractor != ASSAY.extractor:
        return HtmlPage(_EXTRACTORS[way.extractor](page), False, meta_signals(page))
    text = _STRUCTURES[way.structure](page)
    if text:
        return HtmlPage(text, False, meta_signals(page))
    return HtmlPage(_fallback(page), True, meta_signals(page))


def extract_several(pages: Sequence[tuple[bytes, str]]) -> list[tuple[bytes, tuple[str, ...]] | None]:
    """Main text in UTF-8 and signals of several pages (bytes, charset).

    None stands for a page whose main text is empty; `extract` looks for other text.
    """
    from data_pipeline.readers.main_text import main_texts

    decoded = [_decoded(data, charset) for data, charset in pages]
    texts = main_texts([page.encode("utf-8") if data is None else data for page, data in decoded])
    return [(text, meta_signals(page)) if text else None for (page, _), text in zip(decoded, texts, strict=True)]


def _fallback(page: str) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    seen = str(extract_plain_text(page, alt_texts=False, noscript=True))
    if 0 < len(seen) <= _NOTE_CHARACTERS or len(page) > _CHOSEN_CHARACTERS or not page.strip():
        return seen
    import trafilatura

    return trafilatura.extract(page, include_comments=False) or seen


def _trafilatura(page: str) -> str:
    """Main text by trafilatura, with FineWeb's settings.

    Its removal of repeated paragraphs is left off: it depends on the pages before.
    """
    import trafilatura

    return trafilatura.extract(page, favor_precision=True, include_comments=False) or ""


def _resiliparse(page: str) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    return str(extract_plain_text(page, main_content=True, alt_texts=False))


def _main_text(page: str) -> str:
    from data_pipeline.readers.main_text import main_text  # loads compiled code, which only the process of pages needs

    return main_text(page)


def _markdown(page: str) -> str:
    from data_pipeline.readers.pages.page_markdown import markdown

    return markdown(page)


_STRUCTURES = {"plain": _main_text, "markdown": _markdown}
_EXTRACTORS = {"trafilatura": _trafilatura, "resiliparse": _resiliparse, WIKITEXT.extractor: plain_text}


def decode_html(data: bytes, charset: str = "") -> str:
    """The characters of a page, without its byte-order mark and without `MARK`.

    A reference to that character, which the parser would resolve, becomes a space.
    """
    return _decoded(data, charset)[0]


def _decoded(data: bytes, charset: str) -> tuple[str, bytes | None]:
    """The characters of a page.

    With them comes `data` where it is these in UTF-8, else None.
    """
    mark, encoding = next((pair for pair in _MARKS if data.startswith(pair[0])), (b"", ""))
    page, same = (data[len(mark) :].decode(encoding, "replace"), None) if mark else _decode(data, charset)
    if MARK in page:
        page, same = page.replace(MARK, ""), None
    if _MARK_REFERENCE.search(page):
        page, same = _MARK_REFERENCE.sub(" ", page), None
    return page, same


def _decode(data: bytes, charset: str) -> tuple[str, bytes | None]:
    if b"\0" not in data and b"\x1b" not in data:  # UTF-16 and ISO-2022 can be valid UTF-8 by chance
        try:
            return data.decode("utf-8"), data
        except UnicodeDecodeError:
            pass
    tried = []
    for encoding in filter(None, _candidates(data, charset)):
        try:
            return decode_as(data, encoding), None
        except (UnicodeDecodeError, LookupError):
            tried.append(encoding)
    for encoding in tried:
        try:
            return decode_as(data, encoding, "replace"), None
        except LookupError:  # a name of the standard that Python has no codec for
            continue
    return data.decode("utf-8", "replace"), None


def _candidates(data: bytes, charset: str) -> Iterator[str]:
    """The encodings that may hold, the likeliest first.

    Uchardet reads the page only when its answer is needed.
    """
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    if charset.isascii() and charset:
        yield named_mac(charset.encode()) or map_encoding_to_html5(charset, fallback_utf8=False) or ""
    start = data[:_SNIFFED_BYTES]
    if start[1::2].count(0) * 2 > len(start) // 2:
        yield "utf-16-le"
    elif start[::2].count(0) * 2 > len(start) // 2:
        yield "utf-16-be"
    yield named_mac(start)
    yield detect_encoding(data, from_html_meta=True) or ""  # its answer where there is no `meta` is uchardet's
    yield detect_encoding(data, from_html_meta=False) or ""
