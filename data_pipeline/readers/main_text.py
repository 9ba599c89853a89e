"""Main-text extraction from HTML pages.

resiliparse parses the page and lays its text out in lines; which lines are the page's own is decided here, because
its own choice (`main_content=True`) drops lists, and boxes whose class says "sidebar", from real manuals.

Method. Control characters placed next to the tags of links, containers and headings travel through the parser as text,
so that each line of the layout comes back with its container and with the share of it that is link text. Then:

1. what HTML and ARIA exclude from the main content is skipped: nav, footer, dialog, hidden elements, roles (HTML 4.3,
   WAI-ARIA landmarks);
2. a container whose class or id says what it is (words in use on the whole web, as in Readability's list and in
   EasyList's general rules) is marked so;
3. compiled code (`pages/kernels/page_lines.py`, `page_features.py`) reads the lines and describes each: its size,
   links, tag, position, neighbours and containers, and whether it is *prose* (text density and link density, the
   two strongest of the shallow features: Kohlschütter, Fankhauser and Nejdl, "Boilerplate detection using shallow
   text features", WSDM 2010), is in the deepest container that holds `SCOPE_SHARE` of the prose, or in one that its
   names exclude;
4. a model (`line_model.py`) decides which lines stay.

All that is left stays in its order, short lines, lists, tables and code included. Where the model would keep no prose
of a page that has some, the rules of step 3 decide. Price: linear in the page; depth costs no recursion.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from resiliparse.extract.html2text import extract_plain_text

from data_pipeline.readers.line_model import LINE_KINDS, main_layout_texts, main_lines, read_layout_lines, tag_weight
from data_pipeline.readers.pages.extraction import MARK
from data_pipeline.readers.pages.kernels.page_lines import NO_WEIGHT, PLACE
from data_pipeline.readers.pages.kernels.page_marks import (
    BARE,
    BEFORE,
    BY_LINK,
    CLOSING,
    HIDDEN,
    MARKED,
    MODAL,
    NAMES,
    NO_MARK,
    ROLE,
    SOUGHT,
    SPELLED,
    UNKNOWN,
    WITH_ATTRIBUTES,
    find_tags,
    write_marks,
)

_UNLINK, _OPEN, _CLOSE, _CELL, _UNCELL, _NEVER, _MAYBE, _MAIN, _CODE = "loeCcNYMR"  # the letter after a mark
_TAG_NAME = re.compile(r"</?([a-z]+[1-6]?)", re.IGNORECASE)
_NAMES = re.compile(r"""\b(?:class|id|role)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE)
_SKIPPED = [tuple(name for place, name in enumerate(SOUGHT) if bits >> place & 1) for bits in range(1 << len(SOUGHT))]
_WORD_SKIPPED = {HIDDEN: ("[hidden]", '[aria-hidden="true"]'), MODAL: ('[aria-modal="true"]',)}
_WORD_HIDDEN = ("display:none", "display: none")
_WORD_INVISIBLE, _WORD_VISIBLE = ("visibility:hidden", "visibility: hidden"), re.compile("visibility: ?visible")
"""Styles of hidden elements, the second unless descendants may be visible.

The parent of a formula stays: Wikipedia hides it behind its picture. So does a whole page, which a script shows."""
_READ_ALOUD = ("sr-only", "visually-hidden", "visuallyhidden", "screen-reader-text", "element-invisible", "show-for-sr")
"""Classes of text for screen readers only.

They are those of Bootstrap, HTML5 Boilerplate, WordPress, Drupal and Foundation."""
_FIGURE = re.compile(rb"<(/?)figure(?=[\s>])")
_CAPTION = re.compile(rb"<(/?)figcaption(?=[\s>])", re.IGNORECASE)
_BLOCK_OF_FIGURE = re.compile(rb"<(?:table|pre|blockquote)(?=[\s>])", re.IGNORECASE)
_LINK_SIGN = re.compile(f"{MARK}L[ \xa0]*[#¶§🔗◆\uf0c1][ \xa0]*{MARK}{_UNLINK}")
"""A link with nothing but a sign, as Sphinx, rustdoc, Doxygen and PostgreSQL set one beside each heading."""
_LIST_TAG = re.compile(r"<(/?)(ul|ol|menu|dir|li)(?=[\s/>])", re.IGNORECASE)
_ROLES = ("navigation", "banner", "contentinfo", "search", "menu", "menubar", "toolbar", "alertdialog")
_NEVER_NAMES = re.compile(
    r"(?<![^\s_-])(?:comments?|disqus|respond|replies|cookies?|consent|gdpr|ccpa|ads?|advert\w*|adsense|adsbygoogle|"
    r"sponsor\w*|promo\w*|share|sharing|social|breadcrumbs?|pager|pagination|popup|modal|overlay|newsletter|subscribe|"
    r"signup|related|recommend\w*|outbrain|taboola|nav|navbar|navbox|navigation|navheader|navfooter|menu|footer|"
    r"masthead)(?![^\s_-])",
    re.IGNORECASE,
)
_MAYBE_NAMES = re.compile(
    r"(?<![^\s_-])(?:\w*sidebar|complementary|widget|banner|toolbar|topbar|toc|rail|skyscraper|legal|copyright|tags?|"
    r"meta)(?![^\s_-])",
    re.IGNORECASE,
)
_KNOWN_TAGS, _KNOWN_TAG_SIZE = 4096, 400  # more, and longer, are not remembered: memory must not grow with the content


def main_text(page: str) -> str:
    """Main text of a page, one line per paragraph; "" if empty.

    `page` does not hold `MARK`.
    """
    return choose(lay_out(page))


def main_texts(pages: Sequence[bytes]) -> list[bytes]:
    """Main text of each page, as `main_text` returns it; both in UTF-8.

    Each step goes over all pages: code and tables of one step stay in the cache.
    """
    return main_layout_texts([_laid_out(page, bits) for page, bits in zip(*mark_containers(pages), strict=True)])


def lay_out(page: str) -> str:
    """The visible text of a page in lines, with its marks."""
    [marked], [bits] = mark_containers([page.encode("utf-8")])
    return _laid_out(marked, bits)


def _laid_out(marked: str, bits: int) -> str:
    selectors = _selectors(marked, bits)
    layout = str(extract_plain_text(marked, alt_texts=False, skip_elements=selectors))
    if layout.rstrip().rpartition("\n")[2].startswith("    "):  # the last line is in a list, perhaps in one without end
        closed = _closed_items(marked)
        if closed != marked:
            layout = str(extract_plain_text(closed, alt_texts=False, skip_elements=selectors))
    return _LINK_SIGN.sub("", layout)


def _closed_items(page: str) -> str:
    """A page whose items outside of any list are `dd` elements.

    resiliparse takes all that follows such an item for a part of it. Parsers end a `dd` where they end an `li`, so
    neither an item without an end tag nor a stray end tag moves another element's end. A `menu` or `dir` becomes a
    list, as in browsers.
    """
    pieces: list[str] = []
    last = depth = 0
    for tag in _LIST_TAG.finditer(page):
        name = tag[2].lower()
        if name != "li":
            depth = max(0, depth + (-1 if tag[1] else 1))
        if name in ("menu", "dir") or (name == "li" and not depth):
            pieces += (page[last : tag.start(2)], "dd" if name == "li" else "ul")
            last = tag.end()
    return "".join((*pieces, page[last:]))


def _selectors(page: str, bits: int) -> list[str] | None:
    """Selectors of skipped elements, without those that cannot match the page.

    Each costs a test of every element. What they name is written in the page as it is, but for the value of a role,
    which references may spell.
    """
    found = list(_SKIPPED[bits & (ROLE - 1)])
    for bit, selectors in _WORD_SKIPPED.items():
        found += selectors if bits & bit else ()
    shown = ":not(body)" + (":not(:has(> math))" if "<math" in page else "")  # any depth would cost quadratic time
    found += [f'[style*="{word}"]{shown}' for word in _WORD_HIDDEN if word in page]
    if any(word in page for word in _WORD_INVISIBLE) and not _WORD_VISIBLE.search(page):
        shown_later = f"{shown}:not(main):not(body > *)"  # a script shows what holds the whole page
        found += [f'[style*="{word}"]:not([style*="backface-{word}"]){shown_later}' for word in _WORD_INVISIBLE]
    found += [f'.{name}:not([class*="not-{name}"]){shown}' for name in _READ_ALOUD if name in page]
    found += ["annotation", "annotation-xml"] if "<annotation" in page else ()  # formulas again, which no browser shows
    if bits & ROLE:
        found += [f'[role="{role}"]' for role in _ROLES if bits & SPELLED or role in page]
    return [",".join(found)] if found else None


def mark_containers(pages: Sequence[bytes]) -> tuple[list[str], list[int]]:
    """Set a mark inside each link and container of pages in UTF-8.

    It is put after the opening tag, and before the closing one. With the pages come the bits of `find_tags`.
    """
    pages = [opened_figures(page) if b"</figure" in page else page for page in pages]
    joined = b"".join((*pages, bytes(16)))
    data, ends = np.frombuffer(joined, np.uint8), np.cumsum([*map(len, pages)], dtype=np.int64)
    eights = np.ndarray((len(joined) - 7,), "<u8", joined, strides=(1,))
    tags, bits = find_tags(data, eights, ends, _mark_table())
    unknown = np.flatnonzero(tags[:, MARKED] == UNKNOWN)
    tags[unknown, MARKED] = [_KNOWN[joined[start:end]] for start, end, _ in tags[unknown].tolist()]
    marked, marked_ends = write_marks(data, ends, tags)
    text, bounds = marked.tobytes(), [0, *marked_ends.tolist()]
    return [text[start:end].decode("utf-8") for start, end in pairwise(bounds)], bits.tolist()


def opened_figures(page: bytes) -> bytes:
    """A page whose figures of tables, code and quotations are `div` elements.

    resiliparse leaves figures out, which pictures are; many sites put such blocks into them. Their captions become
    such elements too; that of a picture goes with it. No byte moves.
    """
    figures: list[tuple[int, bool]] = []  # where the open ones begin, and whether they hold a block
    opened: list[tuple[int, int]] = []
    written = bytearray(page)
    last = 0
    for tag in _FIGURE.finditer(page):
        if figures and not figures[-1][1] and _BLOCK_OF_FIGURE.search(page, last, tag.start()):
            figures[-1] = (figures[-1][0], True)
        last = tag.end()
        if not tag[1]:
            figures.append((tag.start(), False))
        elif figures:
            start, holds = figures.pop()
            if holds:
                written[start : start + 7], written[tag.start() : tag.end()] = b"<div   ", b"</div   "
                figures[-1:] = [(begin, True) for begin, _ in figures[-1:]]
                while opened and opened[-1][0] > start:
                    opened.pop()
                opened.append((start, tag.start()))
    for start, end in opened:
        for tag in _CAPTION.finditer(page, start, end):
            written[tag.start() : tag.end()] = b"<%bdiv       " % tag[1]
    return bytes(written)


class _KnownTags(dict[bytes, int]):
    """Marks of opening tags with attributes.

    That of a missing tag is found, and remembered if others may be like it.
    """

    def __missing__(self, tag: bytes) -> int:
        mark = _container_mark(tag.decode("utf-8"))
        if len(tag) <= _KNOWN_TAG_SIZE:
            if len(self) >= _KNOWN_TAGS:
                self.clear()
            self[tag] = mark
        return mark


_KNOWN = _KnownTags()


def _container_mark(tag: str) -> int:
    """Mark of an opening tag, as a number (`page_marks.py`)."""
    found = _TAG_NAME.match(tag)
    assert found is not None, "the kernel found a name in it"
    name = found[1].lower()
    names = " ".join(value for values in _NAMES.findall(tag) for value in values if value)
    return ord(_kind(name, names)) | NO_WEIGHT + tag_weight(name, names) << 8


def _kind(name: str, names: str) -> str:
    if name in LINE_KINDS:
        return LINE_KINDS[name]
    if name in ("td", "th"):
        return _CELL
    if name in ("main", "article"):
        return _MAIN
    if _NEVER_NAMES.search(names):
        return _NEVER
    return _MAYBE if name == "aside" or _MAYBE_NAMES.search(names) else _OPEN


@cache
def _mark_table() -> npt.NDArray[np.int64]:
    """Marks by name: closing tags, bare ones, those with attributes."""
    table = np.full((3, len(NAMES)), UNKNOWN, np.int64)
    for place, name in enumerate(NAMES):
        letter = {"a": _UNLINK, "td": _UNCELL, "th": _UNCELL}.get(name, _CLOSE)
        table[CLOSING, place] = BEFORE | ord(letter)
        table[BARE, place] = _container_mark(f"<{name}>")
    table[BARE, NAMES.index("a")] = NO_MARK
    table[WITH_ATTRIBUTES, NAMES.index("a")] = BY_LINK
    # the parser takes out a line end that comes first inside it
    table[BARE:, NAMES.index("pre")] = BEFORE | ord(_CODE) | NO_WEIGHT << 8
    return table


def choose(layout: str) -> str:
    """The lines of a marked layout that are the page's own."""
    return main_layout_texts([layout])[0].decode("utf-8")


def own_places(layout: str) -> list[int]:
    """The numbers, from 0, of the lines that `choose` keeps."""
    page = read_layout_lines(layout)
    return [int(page.lines[line, PLACE]) for line in main_lines(page)]
