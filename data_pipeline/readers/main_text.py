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

from data_pipeline.readers.line_model import LINE_KINDS, main_layout_texts, main_lines, read_layout_lines, tag_weight
from data_pipeline.readers.pages.extraction import MARK
from data_pipeline.readers.pages.kernels.page_lines import NO_WEIGHT, PLACE

_LINK, _UNLINK, _OPEN, _CLOSE, _CELL, _UNCELL, _NEVER, _MAYBE, _MAIN, _CODE = "LloeCcNYMR"  # the letter after a mark
_CONTAINERS = "a|div|section|article|main|aside|td|th|form|header|pre"
_LINE_TAGS = "p|h[1-6]|figcaption|time"
_TAG = re.compile(rf"(<(?=[admstfhp/])(?:/?(?:{_CONTAINERS})|{_LINE_TAGS})(?:\s[^<>]*)?>)", re.IGNORECASE | re.ASCII)
_TAG_NAME = re.compile(r"</?([a-z]+[1-6]?)", re.IGNORECASE)
_NAMES = re.compile(r"""\b(?:class|id|role)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE)
_SKIPPED = (
    'nav,footer,dialog,template,button,select,[hidden],[aria-hidden="true"],[aria-modal="true"],'
    + ",".join(
        f'[role="{role}"]'
        for role in ("navigation", "banner", "contentinfo", "search", "menu", "menubar", "toolbar", "alertdialog")
    ),
)
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


def main_texts(pages: Sequence[str]) -> list[str]:
    """Main text of each page, as `main_text` has it.

    Each step goes over all pages: code and tables of one step stay in the cache.
    """
    marked = [mark_containers(page) for page in pages]
    return main_layout_texts([_laid_out(page) for page in marked])


def lay_out(page: str) -> str:
    """The visible text of a page in lines, with its marks."""
    return _laid_out(mark_containers(page))


def _laid_out(marked: str) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    return str(extract_plain_text(marked, alt_texts=False, skip_elements=list(_SKIPPED)))


def mark_containers(page: str) -> str:
    """Set a mark inside each link and container.

    It is put behind the opening tag, and before the closing one.
    """
    pieces = _TAG.split(page)
    pieces[1::2] = map(_KNOWN.__getitem__, pieces[1::2])
    return "".join(pieces)


class _KnownTags(dict[str, str]):
    """Tags with their marks.

    A missing tag is marked, and remembered if others may be like it.
    """

    def __missing__(self, tag: str) -> str:
        if tag[1] in "aA" and tag[2].isspace():  # no two links are alike
            return tag + MARK + _LINK if "href" in tag or "href" in tag.lower() else tag
        marked = _marked_container(tag)
        if len(tag) <= _KNOWN_TAG_SIZE:
            if len(self) >= _KNOWN_TAGS:
                self.clear()
            self[tag] = marked
        return marked


_KNOWN = _KnownTags()


def _marked_container(tag: str) -> str:
    found = _TAG_NAME.match(tag)
    assert found is not None, "the tag's pattern holds this one"
    name = found[1].lower()
    if tag[1] == "/":
        return MARK + {"a": _UNLINK, "td": _UNCELL, "th": _UNCELL}.get(name, _CLOSE) + tag
    if name == "a":
        return tag
    if name == "pre":  # the parser takes out a line end that comes first inside it
        return MARK + _CODE + chr(NO_WEIGHT) + tag
    names = " ".join(value for values in _NAMES.findall(tag) for value in values if value)
    return tag + MARK + _kind(name, names) + chr(NO_WEIGHT + tag_weight(name, names))


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


def choose(layout: str) -> str:
    """The lines of a marked layout that are the page's own."""
    return main_layout_texts([layout])[0]


def own_places(layout: str) -> list[int]:
    """The numbers, from 0, of the lines that `choose` keeps."""
    page = read_layout_lines(layout)
    return [int(page.lines[line, PLACE]) for line in main_lines(page)]
