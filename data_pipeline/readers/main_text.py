"""Main-text extraction from HTML pages.

resiliparse parses the page and lays its text out in lines; which lines are the page's own is decided here, because
its own choice (`main_content=True`) drops lists, and boxes whose class says "sidebar", from real manuals.

Method. Control characters placed next to the tags of links, containers and headings travel through the parser as text,
so that each line of the layout comes back with its container and with the share of it that is link text. Then:

1. what HTML and ARIA exclude from the main content is skipped: nav, footer, dialog, hidden elements, roles (HTML 4.3,
   WAI-ARIA landmarks);
2. a container whose class or id says what it is (words in use on the whole web, as in Readability's list and in
   EasyList's general rules) goes, unless its text contradicts that;
3. a line is *prose* when it has at least `PROSE_SIZE` characters outside links and few inside: text density and link
   density, the two strongest of the shallow features (Kohlschütter, Fankhauser and Nejdl, "Boilerplate detection using
   shallow text features", WSDM 2010);
4. the page's own container is the deepest that holds `SCOPE_SHARE` of the prose, where no step down to it leaves out
   more text outside links than menus and footers have; `main` and `article` are not split;
5. at both ends of it, lines of links and of notices (cookies, copyright) are taken off;
6. of the lines that are left, a small linear model (`line_model.py`) takes out related articles, calls to subscribe,
   author boxes, dates and captions: what no rule on one line finds.

All that is left stays in its order, short lines, lists, tables and code included. A page without prose keeps every
line that steps 1 and 2 leave. Price: linear in the page; depth costs no recursion.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from data_pipeline.readers.line_model import LINE_KINDS, NO_WEIGHT, Line, Tree, keep_lines, tag_weight

PROSE_SIZE = 60
"""Characters of a line of prose: ten words or so; one of a dense script (Chinese, Thai, Hindi) counts as three."""
SCOPE_SHARE = 0.85
LEFT_OUT_SIZE = 400
LEFT_OUT_SHARE = 0.1
_NOTICE_SIZE = 250  # a longer line is a paragraph about the subject, not a notice

MARK = "\x02"
"""Begins each mark. HTML allows no such character in a text, so that taking it out of a page loses nothing."""
_NOTHING, _LINK, _UNLINK, _OPEN, _CLOSE, _CELL, _UNCELL, _NEVER, _MAYBE, _MAIN = "-LloeCcNYM"  # the letter after a mark
_OWN_KINDS = frozenset(LINE_KINDS.values())

_CLOSING = (_CLOSE, _UNCELL)
_BLANK_ENDS = ("", " ")
_WEIGHTLESS = (_NOTHING, _LINK, _UNLINK, *_CLOSING)  # after any other letter comes the weight of the tag's names
_CONTAINERS = "a|div|section|article|main|aside|td|th|form|header"
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
_NOTICES = ("cookie", "©", "(c) 19", "(c) 20", "all rights reserved", "privacy policy", "terms of use")
_BULLET = re.compile(r"\s*(?:•|[0-9]{1,9}\.)\s*")
_BULLET_SIZE = 10
_KNOWN_TAG_SIZE = 200  # a longer tag is not remembered: memory must not grow with the pages' content


@dataclass(slots=True)
class _TreeCursor:
    """Position in the layout."""

    tree: Tree
    open_now: list[int]
    cells: int = 0
    """How many of the open containers are table cells."""
    link_depth: int = 0
    """How many containers were open when the link began; 0: no link is open."""
    kinds: str = ""
    """Marks of the tags that opened in the line."""


def main_text(page: str) -> str:
    """Main text of a page, one line per paragraph; "" if empty.

    `page` does not hold `MARK`.
    """
    return choose(lay_out(page))


def lay_out(page: str) -> str:
    """The visible text of a page in lines, with its marks."""
    from resiliparse.extract.html2text import extract_plain_text

    return str(extract_plain_text(mark_containers(page), alt_texts=False, skip_elements=list(_SKIPPED)))


def mark_containers(page: str) -> str:
    """Set a mark inside each link and container.

    It is put behind the opening tag, and in front of the closing one.
    """
    pieces = _TAG.split(page)
    known: dict[str, str] = {}
    for index in range(1, len(pieces), 2):
        tag = pieces[index]
        marked = known.get(tag)
        if marked is None:
            marked = known[tag] = _marked(tag)
        pieces[index] = marked
    return "".join(pieces)


def _marked(tag: str) -> str:
    if tag[1] in "aA" and tag[2].isspace():  # no two links are alike: nothing to be remembered
        return tag + MARK + _LINK if "href" in tag or "href" in tag.lower() else tag
    return _marked_container(tag) if len(tag) <= _KNOWN_TAG_SIZE else _marked_container.__wrapped__(tag)


@lru_cache(maxsize=4096)
def _marked_container(tag: str) -> str:
    found = _TAG_NAME.match(tag)
    assert found is not None, "the tag's pattern holds this one"
    name = found[1].lower()
    if tag[1] == "/":
        return MARK + {"a": _UNLINK, "td": _UNCELL, "th": _UNCELL}.get(name, _CLOSE) + tag
    if name == "a":
        return tag
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
    return _laid_out(_own_lines(*_read(layout)))


def own_places(layout: str) -> list[int]:
    """The numbers, from 0, of the lines that `choose` keeps."""
    places: list[int] = []
    lines, tree = _read(layout, places)
    place_of = dict(zip(map(id, lines), places, strict=True))
    return [place_of[id(line)] for line in _own_lines(lines, tree)]


def _own_lines(lines: list[Line], tree: Tree) -> list[Line]:
    size, unlinked, prose = ([0] * len(tree.parent) for _ in range(3))
    for _, container, is_prose, line_size, link_size, _ in lines:
        size[container] += line_size
        unlinked[container] += line_size - link_size
        if is_prose:
            prose[container] += line_size
    dead = _dead(tree, _sums(prose, tree), _sums(size, tree))
    for index, gone in enumerate(dead):
        if gone:
            unlinked[index] = prose[index] = 0
    inside = _inside(_scope(tree, _sums(prose, tree), _sums(unlinked, tree)), tree, dead)
    kept = [line for line in lines if inside[line[1]]]
    if any(line[2] for line in kept):
        first, last = 0, len(kept)
        while _is_margin(kept[first]):  # ends at prose, which is not a margin
            first += 1
        while _is_margin(kept[last - 1]):
            last -= 1
        kept = keep_lines(kept[first:last], tree)
    return kept


def _read(layout: str, places: list[int] | None = None) -> tuple[list[Line], Tree]:
    """Take the marks out of a layout.

    The result is its lines, whose numbers `places` receives, and the tree of its containers.
    """
    place = _TreeCursor(Tree([0], [_MAIN], [0]), [0])
    lines: list[Line] = []
    blank = ""
    for number, line in enumerate(layout.split("\n")):
        if not line:
            blank = "\n"
            continue
        kinds = ""
        if MARK in line:
            if len(line) <= 3 and line[0] == MARK and len(line) == (2 if line[1:2] in _WEIGHTLESS else 3):
                _turn(place, line[1], line[2:])
                continue
            if line[0] == MARK and line[1] in _OWN_KINDS and line.rfind(MARK) == 0:  # half of all marked lines
                kinds, words, container = line[1:3], line[3:].removeprefix(" "), place.open_now[-1]
                size = _size(words)
                link_size = size if place.link_depth else 0
            else:
                words, container, size, link_size = _read_marked(line, place)
                if place.kinds:
                    kinds, place.kinds = place.kinds, ""
        else:
            words, container, size = line, place.open_now[-1], _size(line)
            link_size = size if place.link_depth else 0
        if size:
            is_prose = size >= PROSE_SIZE and _is_prose(words, size, link_size)
            lines.append((blank + words, container, is_prose, size, link_size, kinds))
            if places is not None:
                places.append(number)
            blank = ""
    return lines, place.tree


def _read_marked(line: str, place: _TreeCursor) -> tuple[str, int, int, int]:
    """A line without its marks.

    It comes with its text, its container, its characters, and those of links.
    """
    pieces = (_NOTHING + line).split(MARK)
    if len(pieces) == 3 and pieces[2] == _UNLINK and pieces[1][:1] == _LINK:
        return _read_link(pieces[0][1:], pieces[1][1:], place)
    words, container, size, link_size = "", -1, 0, 0
    for piece in pieces:
        mark, text = piece[:1], piece[1:]
        if mark != _NOTHING:
            if mark not in _WEIGHTLESS:
                weight, text = text[:1], text[1:]
                _turn(place, mark, weight)
                if mark in _OWN_KINDS and words[-1:] in _BLANK_ENDS:
                    text = text.removeprefix(" ")
            else:
                _turn(place, mark)
            if container < 0 and mark in _CLOSING:
                words, size = "", 0  # a bullet alone is resiliparse's answer to an item outside of any list
        if text:
            words += text
            width = _size(text)
            size += width
            link_size += width if place.link_depth else 0
            if container < 0 and width and (width > _BULLET_SIZE or not _BULLET.fullmatch(text)):
                container = place.open_now[-1]
    return words, place.open_now[-1] if container < 0 else container, size, link_size


def _read_link(before: str, text: str, place: _TreeCursor) -> tuple[str, int, int, int]:
    """Parse a line that is one link after a bullet or words.

    The general case costs twice the time, and half of all marked lines are such.
    """
    width = _size(text)
    size = _size(before) + width if before else width
    link_size = size if place.link_depth else width
    place.link_depth = 0
    return before + text, place.open_now[-1], size, link_size


def _turn(place: _TreeCursor, mark: str, weight: str = "") -> None:
    """Go on behind a mark."""
    if mark == _LINK:
        place.link_depth = len(place.open_now)
    elif mark == _UNLINK:
        place.link_depth = 0
    elif mark in _CLOSING:
        _close(place, mark == _UNCELL)
    elif mark in _OWN_KINDS:
        place.kinds += mark + weight
    else:
        tree, open_now = place.tree, place.open_now
        tree.parent.append(open_now[-1])
        open_now.append(len(tree.mark))
        tree.mark.append(mark)
        tree.weight.append(ord(weight) - NO_WEIGHT if weight else 0)
        if mark == _CELL:
            place.cells += 1


def _close(place: _TreeCursor, cell: bool) -> None:
    """Close the innermost table cell or container with its children."""
    open_now, marks = place.open_now, place.tree.mark
    if not (place.cells if cell else len(open_now) - 1 > place.cells):
        return  # it closes what never opened
    while True:
        was_cell = marks[open_now.pop()] == _CELL
        place.cells -= was_cell
        if was_cell == cell:
            break
    if len(open_now) < place.link_depth:
        place.link_depth = 0


def _is_prose(text: str, size: int, link_size: int) -> bool:
    return size - link_size >= PROSE_SIZE and link_size * 3 <= size and (size >= _NOTICE_SIZE or not _is_notice(text))


def _is_margin(line: Line) -> bool:
    text, _, _, size, link_size, _ = line
    return link_size * 3 > size or (size < _NOTICE_SIZE and _is_notice(text))


def _is_notice(text: str) -> bool:
    lower = text.lower()
    for words in _NOTICES:  # noqa: SIM110, a third faster than any()
        if words in lower:
            return True
    return False


def _size(text: str) -> int:
    text = text.strip()
    if text.isascii():
        return len(text)
    width = len(text.encode("utf-8", "replace"))
    return width if width > 2 * len(text) else len(text)


def _sums(own: Sequence[int], tree: Tree) -> list[int]:
    """Weight of each container, with and without its children."""
    total = list(own)
    for index in range(len(total) - 1, 0, -1):  # what is inside was numbered later
        total[tree.parent[index]] += total[index]
    return total


def _dead(tree: Tree, prose: Sequence[int], size: Sequence[int]) -> list[bool]:
    """The containers that are excluded for their names.

    They hold less than half of the page's prose.
    """
    dead = [False] * len(prose)
    for index in range(1, len(dead)):
        mark = tree.mark[index]
        minor = prose[index] * 2 < prose[0] or not prose[0]
        dead[index] = dead[tree.parent[index]] or (
            minor and (mark == _NEVER or (mark == _MAYBE and prose[index] * 2 < size[index]))
        )
    return dead


def _scope(tree: Tree, prose: Sequence[int], unlinked: Sequence[int]) -> int:
    """Deepest container with nearly all prose and few links outside."""
    scope = 0
    for index in range(1, len(prose)):  # numbered as they open, so each step goes deeper into the last one
        if tree.parent[index] != scope or not prose[index] or prose[index] < SCOPE_SHARE * prose[0]:
            continue
        if unlinked[scope] - unlinked[index] > max(LEFT_OUT_SIZE, LEFT_OUT_SHARE * unlinked[scope]):
            break
        scope = index
        if tree.mark[index] == _MAIN:
            break
    return scope


def _inside(scope: int, tree: Tree, dead: Sequence[bool]) -> list[bool]:
    """Return for each container whether it is in scope."""
    inside = [False] * len(dead)
    inside[scope] = not dead[scope]
    for index in range(scope + 1, len(dead)):
        inside[index] = inside[tree.parent[index]] and not dead[index]
    return inside


def _laid_out(lines: Iterable[Line]) -> str:
    """Join lines and bullets, and remove the common indentation."""
    out: list[str] = []
    bullet: Line | None = None
    for line in lines:
        text = line[0].rstrip()
        if line[3] <= _BULLET_SIZE and _BULLET.fullmatch(text):
            bullet = line
            continue
        if bullet is not None:
            if bullet[1] <= line[1]:  # else its text was left out
                text = f"{bullet[0].rstrip()} {text.lstrip()}"
            bullet = None
        out.append(text)
    laid_out = "\n".join(out).strip("\n")
    return _dedented(laid_out) if laid_out.startswith(" ") else laid_out


def _dedented(text: str) -> str:
    """`textwrap.dedent` for stripped lines, ten times faster."""
    lines = text.split("\n")
    full = [line for line in lines if line]
    first, last = min(full), max(full)  # what the two share, all share
    margin = 0
    while first[margin] == last[margin] and first[margin] in " \t":  # ends: no line is white space only
        margin += 1
    return "\n".join([line[margin:] for line in lines]) if margin else text
