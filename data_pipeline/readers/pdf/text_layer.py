"""Text layer of PDF files, by PDFium.

A page gives its lines with their place, in the order in which the file draws them: that is the reading order in most
files, and PDFium does not find another. What a page shows without text is found too: a scanned page has a picture and
no letters; a page whose fonts do not name their characters has letters without meaning. Both *need OCR*, which Assay
does not do: their numbers are returned, and the reader quarantines them.

A letter that the font spells as two characters, the letter and its mark, misleads PDFium: it takes what follows for a
new word ("fü r"). The blank that it puts there is taken out where the two letters are next to each other.

Places are those of the page as it is shown: PDFium gives them before a page is turned (/Rotate), from the corner of a
larger sheet.

Nothing here bounds time and memory: `page_process` does, and readers go through it.
"""

from __future__ import annotations

import ctypes
import math
import re
from bisect import bisect_left
from typing import NamedTuple

import pypdfium2
from pypdfium2 import raw

from data_pipeline.readers.pdf.page_flow import PageLine, PdfPage, PdfText, flow

MAX_PAGES = 5000
_FEW_LETTERS = 20  # less than a caption: a page number, a stamp
_PICTURE_SHARE = 0.25  # share of the page from which a picture is the page's content
_UNREADABLE_SHARE = 0.3
_WORD_SPACE = 0.12  # share of a line's height: no space between words is narrower
_MANY_OUTLINES = 500  # drawn shapes, as letters without a font are
_LINE_ENDS = re.compile("\r?\n|\ufffe|\x02")
_HYPHENS = ("\ufffe", "\x02")  # PDFium's signs for a hyphen at a line's end
_UNREADABLE = re.compile("[\x00-\x08\ufffd\ue000-\uf8ff]")
_AFTER_MARK = re.compile("(?<=[^\\W\\d_][\u0300-\u036f]) (?=[^\\W\\d_])")
_ASTRAL = re.compile("[\U00010000-\U0010ffff]")
_LETTER = re.compile(r"[^\W_]")
_LYING = (90, 270)  # degrees
_BEGIN, _END, _FOUND_WITHIN = b"%PDF-", b"%%EOF", 2048  # bytes from either end
_PASSWORD = 4  # FPDF_ERR_PASSWORD


class _View(NamedTuple):
    """A page as it is shown: turn in degrees, clockwise; points."""

    turn: int
    width: float
    height: float
    left: float
    bottom: float

    def shown(self, x: float, y: float) -> tuple[float, float]:
        """A point of the sheet on the page as it is shown."""
        x, y = x - self.left, y - self.bottom
        turned = {90: (y, self.height - x), 180: (self.width - x, self.height - y), 270: (self.width - y, x)}
        return turned.get(self.turn, (x, y))


def extract_pdf(data: bytes) -> PdfText | str:
    """Text of a file, or the fault's reason.

    A reason is `truncated_pdf`, `pdf_password`, `pdf_too_many_pages` or `not_pdf`.
    """
    if _BEGIN not in data[:_FOUND_WITHIN]:
        return "not_pdf"
    if _END not in data[-_FOUND_WITHIN:]:  # PDFium opens some such files, without what is lost
        return "truncated_pdf"
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        return "pdf_password" if error.err_code == _PASSWORD else "not_pdf"
    with document:
        count = len(document)
        if count > MAX_PAGES:
            return "pdf_too_many_pages"
        pages: list[PdfPage] = []
        for number in range(count):
            pages.append(_read_page(document, number))
    text, left = flow(pages)
    unread = [
        number
        for number, (page, kept) in enumerate(zip(pages, left, strict=True))
        if page.unreadable or (page.drawn and len(_LETTER.findall(kept)) < _FEW_LETTERS)
    ]
    return PdfText(text, count, tuple(unread))


def _read_page(document: pypdfium2.PdfDocument, number: int) -> PdfPage:
    try:
        page = document[number]
    except pypdfium2.PdfiumError:  # a torn page: none of it can be read
        return PdfPage((), 0.0, 0.0, False, True)
    try:
        width, height = page.get_size()
        view = _View(page.get_rotation(), width, height, *page.get_bbox()[:2])
        layer = page.get_textpage()
        text = layer.get_text_range() if layer.count_chars() > 0 else ""
        narrow = _narrow_blanks(layer, text, view)
        letters = len(_LETTER.findall(text))
        if len(_UNREADABLE.findall(text)) > _UNREADABLE_SHARE * max(1, len(text.strip())):
            return PdfPage((), width, height, False, True)
        drawn = letters < 20 * _FEW_LETTERS and _is_drawn(page, width * height)  # running lines are not taken off yet
        return PdfPage(tuple(_lines(layer, text, narrow, view)), width, height, drawn, False)
    finally:
        page.close()


def _narrow_blanks(layer: pypdfium2.PdfTextPage, text: str, view: _View) -> frozenset[int]:
    """Places of blanks within words, after letters with their marks."""
    found = []
    astral = _astral(text)
    for blank in _AFTER_MARK.finditer(text):
        place = _place(layer, astral, blank.start())
        _, right, height = _box(layer, place - 2, view)
        left, _, _ = _box(layer, place + 1, view)
        near = left - right < _WORD_SPACE * height
        if near and raw.FPDFText_IsGenerated(layer, place) == 1:
            found.append(blank.start())
    return frozenset(found)


def _astral(text: str) -> list[int]:
    """Places of the characters that are two of PDFium's."""
    return [match.start() for match in _ASTRAL.finditer(text)]


def _place(layer: pypdfium2.PdfTextPage, astral: list[int], index: int) -> int:
    """Number in the file of a character of the text."""
    return int(raw.FPDFText_GetCharIndexFromTextIndex(layer, index + bisect_left(astral, index)))


def _lines(layer: pypdfium2.PdfTextPage, text: str, narrow: frozenset[int], view: _View) -> list[PageLine]:
    """Lines of a page's text with their places, without narrow blanks."""
    found = []
    start = 0
    ends = [*((match.start(), match.end(), match.group()) for match in _LINE_ENDS.finditer(text)), (len(text),) * 3]
    differ, astral = layer.count_chars() != len(text), _astral(text)
    for end, after, mark in ends:
        line = text[start:end]
        if stripped := line.strip():
            first = start + len(line) - len(line.lstrip())
            places: tuple[int, ...] = (first, first + len(stripped) - 1)
            if differ:  # characters of the file are not characters of the text
                places = tuple(max(0, _place(layer, astral, place)) for place in places)
            if narrow:
                within = range(first, first + len(stripped))
                stripped = "".join(text[place] for place in within if place not in narrow)
            found.append(_placed(layer, stripped, places, mark in _HYPHENS, view))
        start = int(after)
    return found


def _placed(layer: pypdfium2.PdfTextPage, text: str, places: tuple[int, ...], hyphen: bool, view: _View) -> PageLine:
    x, y = ctypes.c_double(), ctypes.c_double()
    raw.FPDFText_GetCharOrigin(layer, places[0], x, y)
    left, baseline = view.shown(x.value, y.value)
    _, _, height = _box(layer, places[0], view)
    _, right, _ = _box(layer, places[1], view)
    return PageLine(text, left, right, baseline, height, hyphen)


def _box(layer: pypdfium2.PdfTextPage, place: int, view: _View) -> tuple[float, float, float]:
    """Left and right edge of a character, and its line's height.

    PDFium's loose boxes have no size where letters lie on their side: the tight box and the size of the font are taken.
    """
    box = raw.FS_RECTF()
    if view.turn not in _LYING:
        raw.FPDFText_GetLooseCharBox(layer, place, box)
        edges, height = (box.left, box.bottom, box.right, box.top), abs(box.top - box.bottom)
    else:
        left, right, bottom, top = (ctypes.c_double() for _ in range(4))
        raw.FPDFText_GetCharBox(layer, place, left, right, bottom, top)
        edges = (left.value, bottom.value, right.value, top.value)
        matrix = raw.FS_MATRIX()
        raw.FPDFText_GetMatrix(layer, place, matrix)
        height = raw.FPDFText_GetFontSize(layer, place) * math.hypot(matrix.a, matrix.b)
    ends = [view.shown(*edges[:2])[0], view.shown(*edges[2:])[0]]
    if view.turn == 0:
        return float(ends[0]), float(ends[1]), float(height)
    return float(min(ends)), float(max(ends)), float(height)


def _is_drawn(page: pypdfium2.PdfPage, area: float) -> bool:
    """Return whether a page's content is a picture, or outlines."""
    pictures, outlines = 0.0, 0
    for thing in page.get_objects(max_depth=2):
        if thing.type == raw.FPDF_PAGEOBJ_IMAGE:
            left, bottom, right, top = thing.get_bounds()
            pictures += max(0.0, right - left) * max(0.0, top - bottom)
        elif thing.type == raw.FPDF_PAGEOBJ_PATH:
            outlines += 1
    return pictures >= _PICTURE_SHARE * area > 0 or outlines >= _MANY_OUTLINES
