"""Running text of a PDF file from the lines of its pages.

1. *Running lines* go: headers, footers and page numbers. A line among the outermost three of a page, within a sixth of
   its height from the edge, is one if half of the pages around it (ten before, ten after; all of them, or those of its
   side of the sheet) have the same text at the same height, digits not compared; three at least. So a chapter's title
   goes where it runs, and stays where it occurs once. A file of fewer than three pages keeps all lines.
2. *Hyphens* at line ends: a word is joined without its hyphen if the file has the joined word elsewhere, with it if the
   file has the hyphenated one. If it has neither, the hyphen goes, unless a letter in upper case follows, the word has
   another hyphen, or the file has both halves as words.
3. *Paragraphs*: a line begins one if there is more space above it than between most lines of its page, if it is
   indented (and the line before is not, or ends a sentence), if its letters are larger or smaller than those of the
   line before, if its first word would have fitted into the line before, or if it begins with the sign of a list. A
   paragraph goes on over the end of a column or page if the line before does not end a sentence, or the next begins
   with a lower-case letter.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

_SIDES = (slice(3), slice(-3, None))  # the outermost lines, from the lowest up
_AROUND = 10
_FEWEST = 3
_SAME_HEIGHT = 0.01  # of the page's height
_MARGIN = 1 / 6
_WIDER_GAP = 1.35
_WITHIN = 0.9  # of a column's lines
_INDENT = 0.8  # of the line's height
_OTHER_SIZE = 0.12
_ROOM = 1.25  # of the next line's first word: so much would have been space for it
_DIGITS = re.compile(r"\d+")
_ROMAN = re.compile(r"[ivxlcdm]+", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+(?:[-\u2010][^\W\d_]+)*")
_LAST_WORD = re.compile(r"[^\W\d_]+$")
_FIRST_WORD = re.compile(r"^[^\W\d_]+")
_HYPHENS = ("-", "\u2010", "\u00ad")
_UNSPACED = re.compile("[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]{2}$")  # Chinese and Japanese
_LIST_SIGN = re.compile(r"(?:[\u2022\u25cf\u25aa\u25e6\u2023*\u2013-]|\(?(?:\d{1,3}|[a-z])[.)])\s+\S")
_SENTENCE_END = re.compile(r"[.!?:;\u2026\u3002\uff01\uff1f][\"'\u201d\u2019)\]]*$")


class PageLine(NamedTuple):
    """A line of a page; coordinates in points from the lower left."""

    text: str
    left: float
    right: float
    baseline: float
    height: float
    hyphen: bool
    """Ended by a hyphen that the text does not have."""


class PdfPage(NamedTuple):
    """Lines of a page, in the file's order, and its state."""

    lines: tuple[PageLine, ...]
    width: float
    height: float
    drawn: bool
    """It shows a large picture or many outlines, and few letters."""
    unreadable: bool
    """It cannot be read, or its letters have no meaning."""


class PdfText(NamedTuple):
    """Text of a PDF file."""

    text: str
    pages: int
    needs_ocr: tuple[int, ...]
    """Numbers, from 0, of pages that show something and have no readable text."""


def flow(pages: Sequence[PdfPage]) -> tuple[str, list[str]]:
    """Text, a line per paragraph, and each page's own lines."""
    kept = without_running_lines(pages)
    words = _vocabulary(kept)
    paragraphs: list[list[str]] = []
    before: PageLine | None = None
    edges = (0.0, 0.0)
    for lines in kept:
        pitch, columns = _pitch(lines), _columns(lines)
        for place, line in enumerate(lines):
            if before is None or _begins(before, line, pitch if place else 0.0, edges, columns[place]):
                paragraphs.append([line.text])
            else:
                paragraphs[-1][-1:] = _joined(paragraphs[-1][-1], line.text, before.hyphen, words)
            before, edges = line, columns[place]
    return "\n".join(map("".join, paragraphs)), ["\n".join(line.text for line in lines) for lines in kept]


def _vocabulary(pages: Sequence[Sequence[PageLine]]) -> Counter[str]:
    """Words of the pages, those that a line's end divides excluded."""
    words: Counter[str] = Counter()
    divided = False
    for line in itertools.chain.from_iterable(pages):
        found = _WORD.findall(line.text.lower())
        here = line.hyphen or line.text.endswith(_HYPHENS)
        words.update(found[divided : len(found) - here])
        divided = here
    return words


def without_running_lines(pages: Sequence[PdfPage]) -> list[list[PageLine]]:
    """Lines of each page without headers, footers and page numbers."""
    keys = [_outer_keys(page) for page in pages]
    seen: dict[str, list[tuple[int, float]]] = {}
    for number, outer in enumerate(keys):
        for key, height in outer.values():
            seen.setdefault(key, []).append((number, height))
    kept = []
    for number, page in enumerate(pages):
        low, high = max(0, number - _AROUND), min(len(pages), number + _AROUND + 1)
        around = [other for other in range(low, high) if pages[other].lines]
        running = set()
        for place, (key, height) in keys[number].items():
            same = {other for other, at in seen[key] if low <= other < high and abs(at - height) <= _SAME_HEIGHT}
            sides = [around, [other for other in around if other % 2 == number % 2]]
            if len(same) >= _FEWEST and any(2 * len(same & {*side}) >= len(side) for side in sides):
                running.add(place)
        kept.append([line for place, line in enumerate(page.lines) if place not in running])
    return kept


def _outer_keys(page: PdfPage) -> dict[int, tuple[str, float]]:
    """Text and height (0 to 1) of the outermost lines, by place."""
    order = sorted(range(len(page.lines)), key=lambda place: page.lines[place].baseline)
    found = {}
    height = page.height or 1.0
    low, high = ([page.lines[place].baseline / height for place in order[side]] for side in _SIDES)
    outer = [place for place, at in zip(order[_SIDES[0]], low, strict=True) if at <= _MARGIN]
    outer += [place for place, at in zip(order[_SIDES[1]], high, strict=True) if at >= 1 - _MARGIN]
    for place in dict.fromkeys(outer):
        text = " ".join(page.lines[place].text.split())
        key = "#" if _ROMAN.fullmatch(text) else _DIGITS.sub("#", text)
        found[place] = (key, page.lines[place].baseline / height)
    return found


def _pitch(lines: Sequence[PageLine]) -> float:
    """Usual distance of a page's baselines; 0 where it has none."""
    steps = [above.baseline - below.baseline for above, below in itertools.pairwise(lines)]
    down = [step for step in steps if step > 0]
    return median(down) if down else 0.0


def _columns(lines: Sequence[PageLine]) -> list[tuple[float, float]]:
    """Left and right edge of each line's column."""
    edges: list[tuple[float, float]] = []
    start = 0
    for place in range(1, len(lines) + 1):
        if place < len(lines) and lines[place].baseline <= lines[place - 1].baseline + lines[place].height:
            continue
        block = lines[start:place]  # lines that go down the page are one column
        lefts = Counter(round(line.left) for line in block)
        left = min(lefts, key=lambda edge: (-lefts[edge], edge))
        rights = sorted(line.right for line in block)
        edges += [(float(left), rights[int(_WITHIN * (len(rights) - 1))])] * len(block)  # single lines may stick out
        start = place
    return edges


def _begins(
    before: PageLine, line: PageLine, pitch: float, edges: tuple[float, float], own: tuple[float, float]
) -> bool:
    """Return whether a line begins a paragraph.

    `pitch` is 0 for the first line of a page; `edges` are those of the column of `before`, `own` of the line.
    """
    if before.hyphen or (before.text.endswith(_HYPHENS) and line.text[:1].islower()):
        return False
    if _LIST_SIGN.match(line.text) or abs(line.height - before.height) > _OTHER_SIZE * max(line.height, before.height):
        return True
    below = before.baseline - line.baseline
    if pitch and abs(below) < line.height / 3:  # a part of the same line
        return False
    letter = (before.right - before.left) / len(before.text)
    next_word = len(line.text.split(maxsplit=1)[0]) + 1
    early = edges[1] - before.right > _ROOM * next_word * letter
    if not pitch or below < 0:  # the next page or column
        return (early or _SENTENCE_END.search(before.text) is not None) and not line.text[:1].islower()
    indented = line.left - own[0] > _INDENT * line.height
    if indented and before.left - own[0] > _INDENT * line.height:  # a quotation, or a paragraph of one line before
        indented = _SENTENCE_END.search(before.text) is not None
    return early or indented or below > _WIDER_GAP * pitch


def _joined(before: str, line: str, hyphen: bool, words: Counter[str]) -> tuple[str, str]:
    """Two lines of a paragraph, with the space or hyphen between them."""
    start = before.rstrip("".join(_HYPHENS))
    if not (hyphen or start != before) or start[-1:].isspace():
        return before, line if _UNSPACED.search(before[-1:] + line[:1]) else f" {line}"
    first, second = _LAST_WORD.search(start), _FIRST_WORD.search(line)
    if first is None or second is None:  # "1990-" and a number
        return start, f"-{line}"
    whole, apart = (sign.join((first.group(), second.group())).lower() for sign in ("", "-"))
    known = words[whole], words[apart]
    within = start[: first.start()].endswith(_HYPHENS) or line[second.end() :].startswith(_HYPHENS)
    both = words[first.group().lower()] and words[second.group().lower()]
    joins = known[0] >= known[1] if any(known) else line[0].islower() and not within and not both
    return start, line if joins else f"-{line}"
