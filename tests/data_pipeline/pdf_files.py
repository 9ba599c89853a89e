"""PDF files of planted text, written by hand: one font of fixed width, lines at given places."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence

WIDTH, HEIGHT = 612, 792
SIZE, PITCH, LEFT, TOP = 10, 12, 72, 700
LETTER = 0.6 * SIZE  # of Courier
COLUMNS = 78

Line = tuple[float, float, float, str]
"""x, y, size, text."""


def write_pdf(
    pages: Iterable[tuple[Sequence[Line], bool]],
    *,
    password: bool = False,
    content: bytes = b"",
    spelled: Mapping[int, str] | None = None,
    turn: int = 0,
    corner: tuple[int, int] = (0, 0),
) -> bytes:
    """A file of pages: their lines, and whether a picture fills them.

    Args:
        pages: what they show.
        password: of a file that asks for one; it is not encrypted.
        content: a compressed stream that the first page has in place of its lines.
        spelled: characters that the font names for some of its codes.
        turn: degrees by which a reader turns the pages; what they show is the same.
        corner: of the sheet's part that is shown.
    """
    wide, high = (WIDTH, HEIGHT) if turn % 180 == 0 else (HEIGHT, WIDTH)
    moved = {
        0: b"1 0 0 1 0 0",
        90: b"0 1 -1 0 %d 0" % wide,
        180: b"-1 0 0 -1 %d %d" % (wide, high),
        270: b"0 -1 1 0 0 %d" % high,
    }[turn]
    moves = b"1 0 0 1 %d %d cm %s cm\n" % (*corner, moved) if turn or any(corner) else b""
    drawn = [(moves + _content(lines, picture), picture) for lines, picture in pages]
    tree = 3 + 2 * len(drawn)
    objects = [
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Courier /Encoding /WinAnsiEncoding >>",
        b"<< /Type /XObject /Subtype /Image /Width 1 /Height 1 /BitsPerComponent 8 /ColorSpace /DeviceGray"
        b" /Length 1 >>\nstream\n\x80\nendstream",
    ]
    for number, (shown, _) in enumerate(drawn):
        packed = content if content and not number else zlib.compress(shown)
        objects.append(b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(packed), packed))
        objects.append(
            b"<< /Type /Page /Parent %d 0 R /MediaBox [%d %d %d %d] /Contents %d 0 R /Resources << /Font << /F 1 0 R >>"
            b" /XObject << /I 2 0 R >> >> /Rotate %d >>"
            % (tree, *corner, corner[0] + wide, corner[1] + high, len(objects), turn)
        )
    kids = b" ".join(b"%d 0 R" % (4 + 2 * number) for number in range(len(drawn)))
    objects.append(b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(drawn), kids))
    objects.append(b"<< /Type /Catalog /Pages %d 0 R >>" % tree)
    if spelled:
        rows = b"\n".join(
            b"<%02x> <%s>" % (code, text.encode("utf-16-be").hex().encode()) for code, text in spelled.items()
        )
        names = (
            b"begincmap\n1 begincodespacerange\n<00> <ff>\nendcodespacerange\n%d beginbfchar\n%s\nendbfchar\nendcmap"
        )
        stream = names % (len(spelled), rows)
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
        objects[0] = objects[0][:-2] + b"/ToUnicode %d 0 R >>" % len(objects)
    locked = b""
    if password:
        objects.append(b"<< /Filter /Standard /V 1 /R 2 /O <%s> /U <%s> /P -4 >>" % (b"11" * 32, b"22" * 32))
        locked = b" /Encrypt %d 0 R /ID [<%s> <%s>]" % (len(objects), b"33" * 16, b"33" * 16)
    out, places = bytearray(b"%PDF-1.4\n"), []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    end = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    return bytes(
        out + b"trailer\n<< /Size %d /Root %d 0 R%s >>\nstartxref\n%d\n%%%%EOF\n"
        % (len(objects) + 1, tree + 1, locked, end)
    )  # fmt: skip


def _content(lines: Sequence[Line], picture: bool) -> bytes:
    shown = [b"q %d 0 0 %d 0 0 cm /I Do Q" % (WIDTH, HEIGHT)] if picture else []
    for x, y, size, text in lines:
        spelled = text.encode("cp1252", "replace").replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)")
        shown.append(b"BT /F %g Tf %g %g Td (%s) Tj ET" % (size, x, y, spelled))
    return b"\n".join(shown)


def set_type(paragraphs: Sequence[str], header: str = "", lines_a_page: int = 46) -> list[tuple[list[Line], bool]]:
    """Pages of paragraphs with indented first lines, hyphens, a header and page numbers."""
    rows: list[tuple[float, str]] = []
    for paragraph in paragraphs:
        for number, line in enumerate(_wrapped(paragraph)):
            rows.append((LEFT + (0 if number else 3 * LETTER), line))
    pages = []
    for start in range(0, len(rows), lines_a_page):
        body = [
            (x, TOP - PITCH * place, SIZE, line) for place, (x, line) in enumerate(rows[start : start + lines_a_page])
        ]
        number = start // lines_a_page + 1
        head: list[Line] = [(LEFT, 760, 9, header)] if header else []
        pages.append(([*head, *body, (300, 40, 9, f"- {number} -")], False))
    return pages


def _wrapped(paragraph: str) -> list[str]:
    """Lines of a paragraph, of which about every third divides a word after its fourth letter."""
    lines = ["   "]
    for word in paragraph.split():
        room = COLUMNS - len(lines[-1]) - 1
        if len(word) <= room:
            lines[-1] += f" {word}"
        elif len(lines) % 3 == 0 and word.isalpha() and len(word) > 6 and room >= 5:
            lines[-1] += f" {word[:4]}-"
            lines.append(word[4:])
        else:
            lines.append(word)
    return [line.strip() for line in lines]
