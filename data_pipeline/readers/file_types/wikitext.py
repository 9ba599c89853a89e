"""Wikitext as plain text, in time linear in the page.

Kept are paragraphs, headings, lists, and the words of links. Templates, tables, comments, references, formulas,
galleries, and links to files, categories and the page in other languages are left out. Nothing is expanded, so one pass
per construct is enough, in the order of MediaWiki's preprocessor: what it takes out first hides what it holds.

    1. comments, and elements whose content is not wikitext      <!-- -->  <ref>  <nowiki>
    2. templates and arguments                                   {{ }}  {{{ }}}
    3. tables                                                    {| |}
    4. variants of script and region, links                      -{ }-  [[ ]]  [http://a b]
    5. quotes, tags, headings, list markers, switches, references

Markup that is not closed stays as text, except a comment (it ends with the page) and a table, of which the lines of its
rows go: a template that is left out may have closed it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from html.entities import html5

_VERBATIM = frozenset(("nowiki", "pre", "source", "syntaxhighlight"))
_LEFT_OUT = frozenset(
    ("ref", "references", "gallery", "math", "chem", "ce", "score", "timeline", "imagemap", "hiero", "graph",
     "templatestyles", "templatedata", "categorytree", "inputbox", "mapframe", "maplink", "style", "script",
     "includeonly")
)  # fmt: skip
_HTML = (
    "abbr|b|bdi|bdo|big|blockquote|br|caption|center|cite|code|data|dd|del|dfn|div|dl|dt|em|font|h[1-6]|hr|i|indicator"
    "|ins|kbd|langconvert|languages|li|mark|noinclude|ol|onlyinclude|p|poem|q|rb|rp|rt|rtc|ruby|s|samp|section|small|span|strike"
    "|strong|sub|sup|table|tbody|td|tfoot|th|thead|time|tr|translate|tt|tvar|u|ul|var|wbr"
)
_CLOSING = {name: re.compile(rf"</{name}\s*>", re.IGNORECASE) for name in _VERBATIM | _LEFT_OUT}
_OPENING = re.compile(rf"<(?:!--|({'|'.join(sorted(_VERBATIM | _LEFT_OUT))})(?=[\s/>])([^<>]*)>)", re.IGNORECASE)
_BRACES = re.compile(r"\{\{+|\}\}+")
_TABLE = re.compile(r"\n[ \t:]*(?:\{\||\|\})")
_ROW = re.compile(r"\n[ \t:]*(?:\{\||[|!])[^\n]*")
_BRACKETS = re.compile(r"\[\[|\]\]")
_PROTOCOL = r"(?:(?:https?|ftps?|ircs?|git|svn)://|//|(?:news|mailto|tel|sms|magnet|urn):)"
_ADDRESS = re.compile(rf"\[{_PROTOCOL}[^\s\[\]<>\"]++[ \t]*+([^\[\]\n]*+)\]", re.IGNORECASE)
_NO_TITLE = re.compile(rf"[ \t]*{_PROTOCOL}|[^\[\]{{}}<>\n]*+[\[\]{{}}<>\n]", re.IGNORECASE)
_VARIANTS = re.compile(r"-\{(?:([A-Za-z;\s-]*)\|)?([^{}]*+)\}-")
_VARIANT = re.compile(r"\s*(?:[a-z]{2,3}(?:-[a-z]+)*)\s*:")
_OTHER_LANGUAGES = re.compile(
    r"\n[ \t]*\[\[[ ]*(?!(?:wp|mw|doi|rfc|bug)[ ]*:)(?:[a-z]{2,3}|simple)(?:-[a-z]+)*[ ]*:"
    r"[^\[\]\n|:][^\[\]\n|]*\]\][ \t]*(?=\n)"
)
"""A link that the wiki shows apart from the text."""
_QUOTES = re.compile("''+")
_TAG = re.compile(rf"</?({_HTML})(?=[\s/>])[^<>]*>", re.IGNORECASE)
_HEADING = re.compile(r"\n(={1,6})([^\n]*?)\1[ \t]*(?=\n)")
_TERM = re.compile(r"\n;([^:\n]*)[ \t]:[ \t]")
_MARKERS = re.compile(r"\n(?:[*#:;]+|----+)")
_SWITCH = re.compile(r"__[A-Z]+__")
_REFERENCE = re.compile(r"&(?:#\d{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_BLANK_LINES = re.compile(r"\n\n\n+")
_HELD = "\x02"  # around the number of a verbatim text; XML has no such character
_HELD_TEXT = re.compile(rf"{_HELD}(\d+){_HELD}")
_MAX_DEPTH = 16  # nested links: captions of files hold a few


def plain_text(page: str) -> str:
    """Text of a page.

    Its first line names the prefixes of links to files and categories, separated by `|`.
    """
    line, _, text = page.partition("\n")
    verbatim = [""]
    text = "\n" + _without_elements(text.replace(_HELD, ""), verbatim) + "\n"
    text = _without_tables(_without_templates(text))
    if "-{" in text:
        text = _VARIANTS.sub(_words_of_variants, text)
    if ":" in text:
        text = _OTHER_LANGUAGES.sub("", text)
    text = _with_words_of_links(text, frozenset(line.lower().split("|")))
    if "[" in text:
        text = _ADDRESS.sub(r"\1", text)
    if "''" in text:
        text = "\n".join(_without_quotes(line) if "''" in line else line for line in text.split("\n"))
    if "<" in text:
        text = _TAG.sub(lambda found: "\n" if found[1].lower() == "br" else "", text)
    text = _MARKERS.sub("\n", _TERM.sub(r"\n\1\n", _HEADING.sub(r"\n\2", text)))
    text = _SWITCH.sub("", text)
    if _HELD in text:
        text = _HELD_TEXT.sub(lambda found: verbatim[int(found[1])], text)
    if "&" in text:
        text = _REFERENCE.sub(_character, text)
    return _BLANK_LINES.sub("\n\n", "\n".join(line.strip() for line in text.split("\n"))).strip()


def _without_elements(text: str, verbatim: list[str]) -> str:
    """The text without comments and elements.

    A verbatim element joins the list and becomes its number there.
    """
    if "<" not in text:
        return text
    parts, place = [], 0
    unclosed: set[str] = set()
    while found := _OPENING.search(text, place):
        start, end, name = found.start(), found.end(), (found[1] or "").lower()
        parts.append(text[place:start])
        if not name:
            close = text.find("-->", end)
            if close < 0:
                return "".join(parts)
            place = close + 3
            if text[start - 1 : start] in ("", "\n") and text[place : place + 1] == "\n":
                place += 1  # a line of its own
            parts.append(_gap(text, start, place))
            continue
        inside = ""
        if not found[2].endswith("/"):
            closing = None if name in unclosed else _CLOSING[name].search(text, end)
            if closing is None:
                unclosed.add(name)
                parts.append(found[0])
                place = end
                continue
            inside = text[end : closing.start()]
            end = closing.end()
        if name in _VERBATIM and inside:
            parts.append(f"{_HELD}{len(verbatim)}{_HELD}")
            verbatim.append(inside)
        else:
            parts.append(_gap(text, start, end))
        place = end
    parts.append(text[place:])
    return "".join(parts)


def _without_templates(text: str) -> str:
    """The text without balanced pairs and triples of braces."""
    spans: list[tuple[int, int]] = []
    opened: list[list[int]] = []  # start and number of braces
    for found in _BRACES.finditer(text):
        start, count = found.start(), found.end() - found.start()
        if text[start] == "{":
            opened.append([start, count])
            continue
        while count >= 2 and opened:
            begin, free = opened[-1]
            size = 3 if free >= 3 and count >= 3 else 2
            count -= size
            start += size
            begin += free - size
            opened[-1][1] = free - size
            if opened[-1][1] < 2:
                opened.pop()
            while spans and spans[-1][0] >= begin:
                spans.pop()
            spans.append((begin, start))
    return _cut(text, iter(spans))


def _without_tables(text: str) -> str:
    """The text without tables.

    A table that is not closed loses its rows alone.
    """
    if "{|" not in text:
        return text
    opened: list[int] = []
    spans: list[tuple[int, int]] = []
    for found in _TABLE.finditer(text):
        if text[found.end() - 2] == "{":
            opened.append(found.start() + 1)
        elif opened:
            begin = opened.pop()
            while spans and spans[-1][0] >= begin:
                spans.pop()
            spans.append((begin, found.end()))
    text = _cut(text, iter(spans))
    return _ROW.sub("", text) if opened else text


def _cut(text: str, spans: Iterator[tuple[int, int]]) -> str:
    parts: list[str] = []
    place = 0
    for start, end in spans:
        parts += (text[place:start], _gap(text, start, end))
        place = end
    parts.append(text[place:])
    return "".join(parts)


def _gap(text: str, start: int, end: int) -> str:
    """Replacement of a span: nothing, or an empty verbatim text.

    The empty one keeps apostrophes on both sides apart.
    """
    return f"{_HELD}0{_HELD}" if text[start - 1 : start] == text[end : end + 1] == "'" else ""


def _with_words_of_links(text: str, prefixes: frozenset[str]) -> str:
    """The text with the words of each link in its place.

    A link to a file or category leaves none.
    """
    parts: list[str] = []
    opened: list[int] = []  # numbers of parts that are opening brackets
    place = 0
    while found := _BRACKETS.search(text, place):
        parts.append(text[place : found.start()])
        place = found.end()
        if found[0] == "[[":
            opened = opened[1 - _MAX_DEPTH :]
            opened.append(len(parts))
            parts.append("[[")
        elif opened:
            begin = opened.pop()
            link = "".join(parts[begin + 1 :])
            if text.startswith("]", place) and link.count("[") > link.count("]"):  # [[a|[http://b c]]]
                link, place = link + "]", place + 1
            words = _words_of_link(link, prefixes)
            del parts[begin:]
            parts.append(words)
        else:
            parts.append("]]")
    parts.append(text[place:])
    return "".join(parts)


def _words_of_variants(found: re.Match[str]) -> str:
    """The words for one of the scripts or regions of a wiki.

    They are the first; a rule for the whole page (H), a title (T) and the removal of a rule (-) show none. Signs around
    ASCII alone are text: names of chemicals have them.
    """
    flags, words = found[1], found[2]
    if set(flags or "") & {"H", "T", "-"}:
        return ""
    if _VARIANT.match(words):
        return words.partition(";")[0].partition(":")[2].partition("=>")[0].strip()
    return found[0] if flags is None and words and words.isascii() else words


def _words_of_link(link: str, prefixes: frozenset[str]) -> str:
    title, bar, words = link.partition("|")
    prefix, colon, _ = title.partition(":")
    if colon and prefix.strip().lower() in prefixes:
        return ""
    if _NO_TITLE.match(title):
        return f"[[{link}]]"
    return words if bar else title.strip().removeprefix(":")


def _without_quotes(line: str) -> str:
    """The line without the marks of italics and bold type.

    Two apostrophes mark italics, three bold type, five both; the rest of a longer run, and one of a run of four, are
    text. Where both kinds of mark are odd, MediaWiki takes one of bold type for an apostrophe and one of italics
    (`''Star'''s`): after a word of one letter, else of more, else after a blank.
    """
    runs = [(found.start(), found.end()) for found in _QUOTES.finditer(line)]
    sizes = [end - start for start, end in runs]
    bold = sum(size >= 3 for size in sizes)
    italics = sum(size == 2 or size >= 5 for size in sizes)
    kept = [size - 5 if size > 5 else int(size == 4) for size in sizes]
    if bold % 2 and italics % 2:
        odd = [
            (2 if line[start - 1 : start] == " " else line[max(0, start - 2) : start - 1] != " ", place)
            for place, (start, _) in enumerate(runs)
            if sizes[place] in (3, 4)
        ]
        if odd:
            kept[min(odd)[1]] += 1
    parts: list[str] = []
    place = 0
    for (start, end), count in zip(runs, kept, strict=True):
        parts += (line[place:start], "'" * count)
        place = end
    return "".join(parts) + line[place:]


def _character(found: re.Match[str]) -> str:
    """The character of a reference; one of no known name stays."""
    written = found[0]
    return html.unescape(written) if written[1] == "#" or written[1:] in html5 else written
