"""Main text of a page as Markdown.

It has headings, lists, tables, code with its lines, and formulas as LaTeX.

The lines that are kept are those of `main_text`: its layout is made once, with further characters next to the tags of
headings, cells, code and formulas. Without these the layout is the one that `main_text` chooses from; with them, the
chosen lines are written here. So the two forms of a page differ in how lines are written, not in which ones are.

A table of pipes needs two rows of two cells; a cell of several columns or rows is followed by empty ones. One that
holds a table, a heading, code or a cell of more than `CELL_SIZE` characters lays out a page: its lines are written as
such. Text is not escaped, but for `|` in a cell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from data_pipeline.readers.main_text import lay_out, own_places
from data_pipeline.readers.pages.formulas import in_dollars, latex_of_image, latex_of_math

CELL_SIZE = 500
NOTE = "\x03"
"""Begins each note of structure; HTML allows it in no text, as `main_text.MARK`."""
_REFERENCE = re.compile("&#(?:0*3(?![0-9])|[xX]0*3(?![0-9A-Fa-f]));?")
_TAG = re.compile(
    r"<(/?)(math|script|img|pre|code|table|tr|td|th|[ou]l|li|h[1-6])(?=[\s/>])([^<>]*)>(\r?\n)?", re.IGNORECASE
)
_LANGUAGE = re.compile(
    r"""\bclass\s*=\s*["'][^"']*?(?:\b(?:language|lang|highlight-source|sourceCode)[-\s]|\bbrush:\s*)([\w+#-]+)""",
    re.IGNORECASE,
)
_DISPLAY = re.compile(r"\bdisplay\s*=\s*[\"']?block|mode\s*=\s*display", re.IGNORECASE)
_TEX_SCRIPT = re.compile(r"\btype\s*=\s*[\"']?math/tex", re.IGNORECASE)
_TEX_CLASS = r"\bclass\s*=\s*(?:\"[^\"<>]*|'[^'<>]*|)\b(?:la)?tex\b"
_TEX_IMAGE = re.compile(_TEX_CLASS, re.IGNORECASE)
_MARK = re.compile("\x02(?:[Llec]|[^Llec].)")
_NOTES = re.compile("\x03(?:([pmsn])([0-9]+);|([A-Za-z1-6]))")  # only these are numbered: text follows others
_NOTES_BETWEEN_BLANKS = re.compile("(?<= )(?:\x03(?:[pmsn][0-9]+;|[A-Za-z1-6]))+ ")
_SPAN = re.compile(r"""\b(col|row)span\s*=\s*["']?\s*([0-9]{1,4})""", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"""([^\s"'>/=]+)(?:\s*=\s*("[^"]*"|'[^']*'|[^\s"'>]+))?""")
_ORDINAL = re.compile(r"\+?-?[0-9]{1,9}")
_BEFORE_WORDS = re.compile(
    rf"(?:\s*+<(?!/|!|(?:[ou]l|li|table|pre|math|script|style|svg|img\b[^<>]*{_TEX_CLASS})\b)[^<>]*>)*+\s*+"
    rf"(?=[^<]|<(?:math|script|img\b[^<>]*{_TEX_CLASS})\b)",
    re.IGNORECASE,
)
_BEFORE_CODE = re.compile(
    r"(?:\s*+<(?!/?code\b|!|(?:[ou]l|li|table|pre|math|script|style|svg)\b)[^<>]*>)*+\s*+(?=[^<]|<(?:math|script)\b)",
    re.IGNORECASE,
)
_WIDEST, _SPARSEST = 50, 20  # columns of one cell; places of a table for each of its cells
_BLANKS = re.compile("[ \t\n\r\f\v]+")  # others, such as the one before a French colon, are the text's
_TICKS = re.compile("`+")
_BULLET = re.compile(r"( *)(•|[0-9]{1,9}\.)(?: +|$)")
_IN_LIST = 3  # blanks before a bullet; the text of its item has more
_PLAIN, _ITEM, _BLOCK = range(3)


def markdown(page: str) -> str:
    """Main text of a page as Markdown; "" if empty.

    `page` does not hold `main_text.MARK`.
    """
    noted, values = _note(_REFERENCE.sub(" ", page.replace(NOTE, "")))
    lines = lay_out(noted).split("\n")
    kept = set(own_places("\n".join([_without_notes(line) if NOTE in line else line for line in lines])))
    writer = _Writer(values)
    last_kept = False
    for place, line in enumerate(lines):
        bare = _MARK.sub("", line)
        seen = _NOTES.sub("", bare).strip()
        if seen:
            alone = NOTE + "m" in bare and _BULLET.fullmatch(seen)  # the formula is a note, so `kept` has no text of it
            last_kept = place in kept or bool(alone and last_kept)
        writer.line(bare, bool(seen), last_kept)
    return writer.text()


def _without_notes(line: str) -> str:
    """A line without its notes; blanks around one are one."""
    return _NOTES.sub("", _NOTES_BETWEEN_BLANKS.sub("", line))


def _note(page: str) -> tuple[str, list[str]]:
    """A page with notes next to its tags.

    With it come the values that the notes number: languages of code, and formulas.
    """
    noter = _Noter(page)
    for tag in _TAG.finditer(page):
        _NOTERS.get(tag[2].lower(), _Noter.heading)(noter, tag, tag[1] == "/")
    noter.end()
    pieces: list[str] = []
    last = 0
    for place, note in sorted(noter.notes, key=lambda found: found[0]):
        pieces += (page[last:place], NOTE, note)
        last = place
    return "".join((*pieces, page[last:])), noter.values


class _ListTags(NamedTuple):
    """The tags of a list and of its items."""

    tag: re.Match[str]
    items: list[re.Match[str]]


class _Noter:
    """Notes next to the tags of a page, by kind of tag."""

    def __init__(self, page: str) -> None:
        self.page = page
        self.notes: list[tuple[int, str]] = []
        """Position of each note in the page, and its letter."""
        self.values: list[str] = []
        self.formula: re.Match[str] | None = None
        """The tag of the formula that is open."""
        self.code = -1
        """The value of the `pre` that is open, its language; -1: none is."""
        self.is_inline = False
        """Inline code with words is open."""
        self.cell = ""
        """The note of the next cell where it begins a table or a row."""
        self.lists: list[_ListTags] = []
        """The lists that are open."""
        self.tables = 0
        """Number of tables that are open: a note at any other closing tag would be text where there is none."""

    def heading(self, tag: re.Match[str], closes: bool) -> None:
        if not closes:
            self._set(tag.end(3) + 1, tag[2][1])

    def math(self, tag: re.Match[str], closes: bool) -> None:
        is_math = tag[2].lower() == "math"
        if not closes:
            self.formula = tag if is_math or _TEX_SCRIPT.search(tag[3]) else None
        elif self.formula is not None and self.formula[2].lower() == tag[2].lower():
            opened, self.formula = self.formula, None
            inner = opened.end(3) + 1
            latex = latex_of_math(self.page[opened.start() : tag.end()]) if is_math else self.page[inner : tag.start()]
            begin, end = (inner, tag.start()) if is_math else (opened.start(), opened.start())
            self._set_formula(in_dollars(latex, bool(_DISPLAY.search(opened[3]))), begin, end)

    def image(self, tag: re.Match[str], closes: bool) -> None:
        if _TEX_IMAGE.search(tag[3]) and not closes:
            self._set_formula(in_dollars(latex_of_image(tag[3]), block=False), tag.end(3) + 1, tag.end(3) + 1)

    def preformatted(self, tag: re.Match[str], closes: bool) -> None:
        if not closes:
            self.code = len(self.values)
            self.values.append(_language(tag[3]))
            self._set(tag.end(), f"p{self.code};")  # the parser leaves out a line end that comes first
        elif self.code >= 0:
            self.code = -1
            self._set(tag.start(), "P")

    def inline(self, tag: re.Match[str], closes: bool) -> None:
        if self.code >= 0:
            if not closes and not self.values[self.code]:
                self.values[self.code] = _language(tag[3])
        elif closes and self.is_inline:
            self._set(tag.start(), "K")
            self.is_inline = False
        elif not closes and (words := _BEFORE_CODE.match(self.page, tag.end(3) + 1)):
            self._set(words.end(), "k")  # next to words: alone, the note would be text where there is none
            self.is_inline = True

    def table(self, tag: re.Match[str], closes: bool) -> None:
        self.cell = "" if closes else "T"
        if closes and self.tables:
            self._set(tag.end(3) + 1, "t")
        self.tables = max(0, self.tables + (-1 if closes else 1))

    def row(self, tag: re.Match[str], closes: bool) -> None:
        self.cell = self.cell or "R"

    def table_cell(self, tag: re.Match[str], closes: bool) -> None:
        if closes:
            self._set(tag.start(), "c")
        else:
            self._set(tag.end(3) + 1, self.cell or "C")
            self.cell = ""
            if spans := dict(_SPAN.findall(tag[3].lower())):
                self._set(tag.end(3) + 1, f"s{len(self.values)};")
                self.values.append(f"{spans.get('col', 1)} {spans.get('row', 1)}")

    def list(self, tag: re.Match[str], closes: bool) -> None:
        if not closes:
            self.lists.append(_ListTags(tag, []))
        elif self.lists:
            self._number_items(self.lists.pop())

    def item(self, tag: re.Match[str], closes: bool) -> None:
        if self.lists and not closes:
            self.lists[-1].items.append(tag)

    def end(self) -> None:
        """Close the lists that the page leaves open."""
        while self.lists:
            self._number_items(self.lists.pop())

    def _number_items(self, found: _ListTags) -> None:
        """Note the numbers of items that are not their places."""
        if found.tag[2].lower() == "ul":
            return
        step = -1 if "reversed" in _attributes(found.tag) else 1
        number = _ordinal(found.tag, len(found.items) if step < 0 else 1)
        for place, item in enumerate(found.items, 1):
            number = _ordinal(item, number)
            words = _BEFORE_WORDS.match(self.page, item.end(3) + 1)
            if number != place and words:
                self._set(words.end(), f"n{len(self.values)};")
                self.values.append(f"{number}.")
            number += step

    def _set(self, place: int, note: str) -> None:
        self.notes.append((place, note))

    def _set_formula(self, latex: str, begin: int, end: int) -> None:
        self._set(begin, f"m{len(self.values)};")
        self._set(end, "M")
        self.values.append(latex)


_NOTERS = {
    "math": _Noter.math,
    "script": _Noter.math,
    "img": _Noter.image,
    "pre": _Noter.preformatted,
    "code": _Noter.inline,
    "table": _Noter.table,
    "tr": _Noter.row,
    "td": _Noter.table_cell,
    "th": _Noter.table_cell,
    "ol": _Noter.list,
    "ul": _Noter.list,
    "li": _Noter.item,
}


def _ordinal(tag: re.Match[str], otherwise: int) -> int:
    """The number that a list's or an item's tag states."""
    stated = _attributes(tag).get("value" if tag[2].lower() == "li" else "start", "")
    return int(stated) if _ORDINAL.fullmatch(stated) else otherwise


def _attributes(tag: re.Match[str]) -> dict[str, str]:
    """Values of a tag's attributes; the first of a name counts."""
    found: dict[str, str] = {}
    for one in _ATTRIBUTE.finditer(tag[3]):
        found.setdefault(one[1].lower(), (one[2] or "").strip("\"' "))
    return found


def _language(attributes: str) -> str:
    found = _LANGUAGE.search(attributes)
    return found[1].lower() if found else ""


@dataclass(slots=True)
class _Table:
    """A table that is open, or the page."""

    blocks: list[tuple[int, bool, str]] = field(default_factory=list)
    """Kind, whether a blank line precedes it, and text, of all that was written in it."""
    rows: list[list[str]] = field(default_factory=list)
    spans: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    """Columns and rows of the cells that span more than one, by row and place in it."""
    in_cell: bool = False
    lays_out: bool = False


class _Writer:
    """Writes the lines of a layout as Markdown, kept ones only."""

    def __init__(self, values: list[str]) -> None:
        self.values = values
        self.open = [_Table()]
        self.code: list[str] | None = None
        self.language = ""
        self.words = ""
        self.span = -1
        """Place in the words where inline code begins; -1: none is open."""
        self.level = 0
        """The heading's, 0 outside of one."""
        self.bullet = ""
        self.number = ""
        """The item's, where it is not its place in the list."""
        self.blank = False

    def line(self, line: str, seen: bool, kept: bool) -> None:
        """Write one line.

        `seen` states that it holds text, `kept` that its text is the page's own.
        """
        if not seen and NOTE not in line:
            if self.code:
                self.code.append("")
            self.blank = True
            return
        pieces = _NOTES.split(line)
        skipped = False
        for place in range(0, len(pieces), 4):
            if place:
                note, number = pieces[place - 3] or pieces[place - 1], pieces[place - 2]
                skipped = note == "m"
                self._turn(note, self.values[int(number)] if number else "", kept)
            if kept and not skipped:
                self.words += pieces[place]
        if seen and not kept:
            self.bullet = ""
        self._flush()
        self.number = ""

    def text(self) -> str:
        """All that was written."""
        self._end_code()
        while len(self.open) > 1:
            self._end_table()
        return _joined(self.open[0].blocks)

    def _turn(self, note: str, value: str, kept: bool) -> None:
        if note == "m":
            self.words += value if kept else ""
        elif note == "k":
            self.span = len(self.words) if self.span < 0 else self.span
        elif note == "K":
            self._end_span()
        elif note == "n":
            self.number = value
        elif note == "s":
            self._span_cells(*map(int, value.split()))
        elif note.isdigit():
            self.level = int(note)
        elif note in "pP":
            self._flush(inside=note == "P")
            self._end_code()
            if note == "p":
                self.code, self.language = [], value
        elif note in "TRCct":
            self._flush()
            self._turn_table(note)

    def _turn_table(self, note: str) -> None:
        if note == "T":
            self.open[-1].lays_out = True
            self.open.append(_Table())
        table = self.open[-1]
        table.in_cell = note in "TRC" and len(self.open) > 1
        if table.in_cell:
            if note != "C" or not table.rows:
                table.rows.append([])
            table.rows[-1].append("")
        elif note == "t" and len(self.open) > 1:
            self._end_table()

    def _span_cells(self, columns: int, rows: int) -> None:
        table = self.open[-1]
        if table.rows and table.rows[-1]:
            table.spans[len(table.rows) - 1, len(table.rows[-1]) - 1] = (columns, rows)

    def _end_span(self) -> None:
        """End inline code; its marks are longer than any in it."""
        if self.span < 0:
            return
        before, code = self.words[: self.span], self.words[self.span :]
        if code.strip():
            marks = "`" * (1 + max(map(len, _TICKS.findall(code)), default=0))
            blank = " " if len(marks) > 1 else ""
            self.words = f"{before}{marks}{blank}{code}{blank}{marks}"
        self.span = -1

    def _flush(self, inside: bool = False) -> None:
        """End a line; inside code, only where it holds words."""
        is_open = self.span >= 0
        if self.code is None:
            self._end_span()
        self.span = 0 if is_open else -1  # inline code of several lines is that of each
        words, self.words = self.words, ""
        if self.code is not None:
            if words.strip() or (self.code and not inside):
                self.code.append(words.rstrip())
            return
        level, self.level = self.level, 0
        found = _BULLET.match(words)
        if found:
            marker = "-" if found[2] == "•" else self.number or found[2]
            self.bullet = " " * (2 * max(0, len(found[1]) - 2)) + marker + " "
            words = words[found.end() :]
        indent = (len(words) - len(words.lstrip(" "))) & ~1  # an odd blank is the text's: with it, it would be code
        words = _BLANKS.sub(" ", words).strip()
        if not words:
            return
        if level:
            self._write(_BLOCK, f"{'#' * level} {words}", words)
            self.open[-1].lays_out = True
        else:
            within = " " * (2 * indent - 4) if indent > _IN_LIST and self._in_item() else ""
            self._write(_ITEM if self.bullet else _PLAIN, (self.bullet or within) + words, words)
        self.bullet = ""

    def _in_item(self) -> bool:
        """Return whether an item, or a further paragraph of one, was last."""
        blocks = self.open[-1].blocks
        return bool(blocks) and (blocks[-1][0] == _ITEM or blocks[-1][2].startswith(" "))

    def _write(self, kind: int, text: str, cell: str) -> None:
        table = self.open[-1]
        table.blocks.append((kind, self.blank, text))
        self.blank = False
        if table.in_cell:
            table.rows[-1][-1] = f"{table.rows[-1][-1]} {cell}".strip()
        elif len(self.open) > 1:
            table.lays_out = table.lays_out or bool(table.rows and table.blocks[:-1])

    def _end_code(self) -> None:
        if self.code is None:
            return
        lines, self.code = self.code, None
        while lines and not lines[-1]:
            lines.pop()
        if lines:
            fence = "```"
            while any(line.lstrip().startswith(fence) for line in lines):
                fence += "`"
            self._write(_BLOCK, "\n".join((fence + self.language, *lines, fence)), "")
            self.open[-1].lays_out = True

    def _end_table(self) -> None:
        self._flush()
        table = self.open.pop()
        rows = [row for row in _grid(table) if any(row)]
        width = max(map(len, rows), default=0)
        wide = sum(len(row) > 1 for row in rows) > 1
        sparse = width * len(rows) > _SPARSEST * sum(map(len, table.rows))
        if table.lays_out or not wide or sparse or max(len(cell) for row in rows for cell in row) > CELL_SIZE:
            self.open[-1].blocks += table.blocks
            return
        lines = [_row(row + [""] * (width - len(row))) for row in rows]
        lines.insert(1, _row(["---"] * width))
        self.open[-1].blocks.append((_BLOCK, True, "\n".join(lines)))


def _grid(table: _Table) -> list[list[str]]:
    """The rows of a table, with empty cells where others span."""
    if not table.spans:
        return table.rows
    grid, below = [], dict[int, int]()  # how many rows a cell above still covers, by column
    for number, row in enumerate(table.rows):
        cells, covered = list[str](), dict[int, int]()
        for place, cell in enumerate(row):
            while below.get(len(cells)):
                cells.append("")
            columns, rows = table.spans.get((number, place), (1, 1))
            columns = max(1, min(columns, _WIDEST)) if place < len(row) - 1 or rows > 1 else 1
            covered |= dict.fromkeys(range(len(cells), len(cells) + columns), rows)
            cells += [cell, *[""] * (columns - 1)]
        while below.get(len(cells)):
            cells.append("")
        below = {column: rows - 1 for column, rows in (below | covered).items() if rows > 1}
        grid.append(cells)
    return grid


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _joined(blocks: Iterable[tuple[int, bool, str]]) -> str:
    pieces: list[str] = []
    before = _BLOCK
    for kind, blank, text in blocks:
        if pieces:
            apart = _BLOCK in (kind, before) or (blank and not kind == before == _ITEM) or kind != before
            pieces.append("\n\n" if apart else "\n")
        pieces.append(text)
        before = kind
    return "".join(pieces)
