"""Running text of a PDF file from the lines of its pages.

1. *Running lines* go: headers, footers and page numbers. A line among the outermost three of a page, within a sixth of
   its height from the edge, is one if half of the pages around it (ten before, ten after; all of them, or those of its
   side of the sheet) have the same text at the same height; three at least. So a chapter's title goes where it runs,
   and stays where it occurs once. A line with a number that rises by one per page is one too, if all else is equal: on
   three neighbouring pages if it has no other letters or digits, or has the number of pages ("- 12 -", "page 12 of
   40"); else on eight, so that "Question 1" at the head of a page and rows of a table stay. A line that begins or ends
   with such a number goes whatever else it says ("Chapter 4: Objects 19"), if eight neighbouring pages have one, at
   the same height, and most of these lines differ from another in the number alone; where pages are counted so, a
   number alone goes at any height. Neighbours are at most two pages apart, as even and odd pages may differ. A file of
   fewer than three pages keeps all lines.
2. *Hyphens* at line ends: a word is joined without its hyphen if the file has the joined word elsewhere, with it if the
   file has the hyphenated one. If it has neither, the hyphen goes, unless a letter in upper case follows, the word has
   another hyphen, or the file has both halves as words.
3. *Paragraphs*: a line begins one if there is more space above it than between most lines of its page, if it is
   indented (and the line before is not, or ends a sentence), if its letters are larger or smaller than those of the
   line before, if its first word would have fitted into the line before, or if it begins with the sign of a list. A
   paragraph continues over the end of a column or page if the line before does not end a sentence, or the next begins
   with a lower-case letter.
4. *Leaders* (rows of five dots, or of three before a number that ends the line) become a blank, and a line with one
   ends its paragraph. Left in, they are most of such a page's words, and rules on words remove the whole book.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median
from typing import NamedTuple

_SIDES = (slice(3), slice(-3, None))  # the outermost lines, from the lowest up
_AROUND = 10
_MIN_PAGES = 3
_MIN_COUNTED_PAGES = 8  # pages in a row, for lines that count pages but may be content
_MAX_NUMBERS = 4  # most numbers in a line that counts pages
_MAX_DIGITS = 6
_ANY_TEXT = "\0\0"  # begins keys that lines with a number at the edge share, whatever else they say
_SAME_HEIGHT = 0.01  # share of the page's height
_MARGIN = 1 / 6
_WIDER_GAP = 1.35
_WITHIN = 0.9  # share of a column's lines
_INDENT = 0.8  # share of the line's height
_OTHER_SIZE = 0.12
_ROOM = 1.25  # widths of the next line's first word: that word would have fitted into this much space
_NUMBER = re.compile(r"\d+")
_ROMAN = re.compile(r"(?=.)(m{0,3})(cm|cd|d?c{0,3})(xc|xl|l?x{0,3})(ix|iv|v?i{0,3})", re.IGNORECASE)
_ROMAN_VALUES = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100, "d": 500, "m": 1000}
_WORD = re.compile(r"[^\W\d_]+(?:[-\u2010][^\W\d_]+)*")
_LAST_WORD = re.compile(r"[^\W\d_]+$")
_FIRST_WORD = re.compile(r"^[^\W\d_]+")
_HYPHENS = ("-", "\u2010", "\u00ad")
_UNSPACED = re.compile("[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]{2}$")  # Chinese and Japanese
_LIST_SIGN = re.compile(r"(?:[\u2022\u25cf\u25aa\u25e6\u2023*\u2013-]|\(?(?:\d{1,3}|[a-z])[.)])\s+\S")
# The blanks before it begin where none stands before them: else a line of tabs takes quadratic time.
_LEADER = re.compile(r"(?:(?<!\s)\s+)?(?:(?:[.\u00b7\u2024\u2026]\s?){5,}|(?:\.\s){3,}(?=\d+$))")
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
    text = "\n".join(_LEADER.sub(" ", "".join(pieces)).strip() for pieces in paragraphs)
    return text, ["\n".join(line.text for line in lines) for lines in kept]


def _vocabulary(pages: Sequence[Sequence[PageLine]]) -> Counter[str]:
    """Words of the pages, those that a line's end divides excluded."""
    words: Counter[str] = Counter()
    divided = False
    for line in itertools.chain.from_iterable(pages):
        found = _WORD.findall(line.text.lower())
        here = _divides_word(line.text, line.hyphen)
        words.update(found[divided : len(found) - here])
        divided = here
    return words


def _divides_word(text: str, hyphen: bool) -> bool:
    """Return whether a line ends with one hyphen; two are a dash."""
    return (hyphen or text.endswith(_HYPHENS)) and not (text if hyphen else text[:-1]).endswith(_HYPHENS)


def without_running_lines(pages: Sequence[PdfPage]) -> list[list[PageLine]]:
    """Lines of each page without headers, footers and page numbers."""
    keys = [_outer_keys(page, number, len(pages)) for number, page in enumerate(pages)]
    seen: dict[str, list[_Seen]] = {}
    for number, outer in enumerate(keys):
        for of_line, height in outer.values():
            for key, (_, rest) in of_line.items():
                seen.setdefault(key, []).append(_Seen(number, height, rest))
    kept = []
    for number, page in enumerate(pages):
        around = [
            other
            for other in range(max(0, number - _AROUND), min(len(pages), number + _AROUND + 1))
            if pages[other].lines
        ]
        sides = [around, [other for other in around if other % 2 == number % 2]]
        running = set()
        for place, (of_line, height) in keys[number].items():
            for key, (fewest, rest) in of_line.items():
                anywhere = key.startswith(_ANY_TEXT) and not rest
                near = _near(seen[key], number, 2 * fewest or _AROUND, None if anywhere else height)
                same = {one.page for one in near}
                if fewest:
                    runs = _neighbours(same, number) >= fewest and _mostly_alike([one.rest for one in near])
                else:
                    runs = len(same) >= _MIN_PAGES and any(2 * len(same & {*side}) >= len(side) for side in sides)
                if runs:
                    running.add(place)
        kept.append([line for place, line in enumerate(page.lines) if place not in running])
    return kept


class _Seen(NamedTuple):
    """An outer line with some key."""

    page: int
    height: float
    rest: str
    """Its text without the number that the key is of."""


def _near(seen: Sequence[_Seen], page: int, reach: int, height: float | None) -> list[_Seen]:
    """Lines of the pages around, at this height; None: at any."""
    start, end = (bisect_left(seen, (edge,)) for edge in (page - reach, page + reach + 1))
    return [one for one in seen[start:end] if height is None or abs(one.height - height) <= _SAME_HEIGHT]


def _mostly_alike(texts: Sequence[str]) -> bool:
    """Return whether half of the texts occur twice."""
    counts = Counter(texts)
    return 2 * sum(counts[text] > 1 for text in texts) >= len(texts)


def _neighbours(pages: set[int], page: int) -> int:
    """Count the pages around a page, itself included, until two are missing."""
    count = 1
    for step in (-1, 1):
        last = page
        while found := {last + step, last + 2 * step} & pages:
            last = min(found, key=lambda other: abs(other - last))
            count += 1
    return count


def _outer_keys(page: PdfPage, number: int, pages: int) -> dict[int, tuple[dict[str, tuple[int, str]], float]]:
    """Keys and height (0 to 1) of the outermost lines, by place.

    Lines with a key in common have the same text, differ by a number that counts the pages, or begin or end with one.
    With each of the latter two is the number of neighbouring pages that must have it, with the text 0; and the text
    without the number.
    """
    order = sorted(range(len(page.lines)), key=lambda place: page.lines[place].baseline)
    found = {}
    height = page.height or 1.0
    low, high = ([page.lines[place].baseline / height for place in order[side]] for side in _SIDES)
    outer = [place for place, at in zip(order[_SIDES[0]], low, strict=True) if at <= _MARGIN]
    outer += [place for place, at in zip(order[_SIDES[1]], high, strict=True) if at >= 1 - _MARGIN]
    for place in dict.fromkeys(outer):
        text = " ".join(page.lines[place].text.split())
        keys = {text: (0, text)}
        numbers = [match for match in _NUMBER.finditer(text) if len(match.group()) <= _MAX_DIGITS]
        for match in numbers if len(numbers) <= _MAX_NUMBERS else []:
            before, after = text[: match.start()], text[match.end() :]
            others = re.findall(r"\w+", before + " " + after)
            certain = not others or str(pages) in others
            fewest = _MIN_PAGES if certain else _MIN_COUNTED_PAGES
            keys[f"{before}\0{int(match.group()) - number}\0{after}"] = (fewest, before + after)
        if _ROMAN.fullmatch(text):
            keys[f"\0{_roman(text) - number}\0"] = (_MIN_PAGES, "")
        for counted, rest in _edge_numbers(text):
            keys[f"{_ANY_TEXT}{counted - number}"] = (_MIN_COUNTED_PAGES, rest)
        found[place] = (keys, page.lines[place].baseline / height)
    return found


def _edge_numbers(text: str) -> Iterator[tuple[int, str]]:
    """Numbers at the edges of a line, each with the other words."""
    first, _, after = text.partition(" ")
    before, _, last = text.rpartition(" ")
    for word, rest in ((first, after), (last, before)):
        if _NUMBER.fullmatch(word) and len(word) <= _MAX_DIGITS:
            yield int(word), rest
        elif _ROMAN.fullmatch(word):
            yield _roman(word), rest


def _roman(numeral: str) -> int:
    values = [_ROMAN_VALUES[letter] for letter in numeral.lower()]
    return sum(-one if one < after else one for one, after in itertools.zip_longest(values, values[1:], fillvalue=0))


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
    if _divides_word(before.text, before.hyphen) and (before.hyphen or line.text[:1].islower()):
        return False
    if _LIST_SIGN.match(line.text) or abs(line.height - before.height) > _OTHER_SIZE * max(line.height, before.height):
        return True
    below = before.baseline - line.baseline
    if pitch and abs(below) < line.height / 3:  # a part of the same line
        return False
    if _LEADER.search(before.text):
        return True
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
    start = before if hyphen else before[:-1]
    if not _divides_word(before, hyphen) or start[-1:].isspace():
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
