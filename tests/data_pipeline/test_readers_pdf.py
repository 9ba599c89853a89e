"""PDF files: planted paragraphs come back, scanned pages are named, hostile files are quarantined, nothing is lost."""

import zlib

import pypdfium2
import pytest

from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.readers import page_process
from data_pipeline.readers.page_process import read_pdf
from data_pipeline.readers.pdf.page_flow import PageLine, PdfPage, flow, without_running_lines
from data_pipeline.readers.pdf.text_layer import _read_page
from data_pipeline.readers.record import Record, RecordFault
from data_pipeline.readers.sources import TextSource
from data_pipeline.readers.text import read_member
from governance.checks.suites import source_rows
from governance.stage import Runtime
from tests.data_pipeline.pdf_files import HEIGHT, LEFT, WIDTH, set_type, write_pdf

TEXT = """the harbour committee considered every remaining argument about wooden bridges because several merchants
complained loudly whenever northern carriages crossed slowly during winter evenings while gentle soldiers carried their
broken instruments towards quieter villages beyond ancient forests"""
WORDS = TEXT.split()


def paragraphs(count):
    """Paragraphs of known words; each ends a sentence."""
    made = []
    for number in range(count):
        words = [WORDS[(number * 7 + place * (3 + number % 5)) % len(WORDS)] for place in range(9 + 37 * number % 140)]
        made.append(f"{' '.join(words).capitalize()}.")
    return made


@pytest.fixture(autouse=True)
def own_process():
    """A process of the test's own, which ends with it."""
    yield
    page_process.close()


def read(data, name="a.pdf"):
    return list(read_member([data], name, ".pdf", None))


def test_planted_paragraphs_come_back_without_headers_hyphens_and_page_numbers():
    planted = paragraphs(60)
    [record] = read(write_pdf(set_type(planted, header="The Harbour Papers")))
    assert isinstance(record, Record)
    assert record.text.split("\n") == planted
    assert (record.file, record.position) == ("a.pdf", 0)


@pytest.mark.parametrize(("turn", "corner"), [(0, (900, 700)), (90, (0, 0)), (180, (0, 0)), (270, (50, 300))])
def test_turned_and_shifted_pages_read_as_they_are_shown(turn, corner):
    planted = paragraphs(60)
    [record] = read(write_pdf(set_type(planted, header="The Harbour Papers"), turn=turn, corner=corner))
    assert record.text.split("\n") == planted


def test_letters_with_marks_of_their_own_do_not_end_a_word():
    """A font that spells one letter as two characters; the file draws gaps and no blanks."""
    row = b"(Die Anleitung f~) -120 (r das t~) -120 (gliche Men~) -600 (und Men~) -120 (s.)"
    drawn = zlib.compress(b"BT /F 10 Tf 72 700 Td [%s] TJ ET" % row)
    [record] = read(write_pdf([([], False)], content=drawn, spelled={ord("~"): "u\u0308"}))
    assert record.text == "Die Anleitung fu\u0308r das tu\u0308gliche Menu\u0308 und Menu\u0308s."


def test_characters_that_are_two_of_pdfium_move_no_place_behind_them():
    first, row = (
        b"@@@ Erste @ Zeile @",
        b"(Die @ Anleitung f~) -120 (r das t~) -120 (gliche Men~) -600 (und Men~) -120 (s.)",
    )
    drawn = zlib.compress(b"BT /F 10 Tf 72 700 Td (%s) Tj 0 -14 Td [%s] TJ ET" % (first, row))
    data = write_pdf([([], False)], content=drawn, spelled={ord("~"): "u\u0308", ord("@"): "\U0001f600"})
    [record] = read(data)
    assert "Die \U0001f600 Anleitung fu\u0308r das tu\u0308gliche Menu\u0308 und Menu\u0308s." in record.text
    with pypdfium2.PdfDocument(data) as document:
        shown = _read_page(document, 0).lines
    assert [(line.left, round(line.baseline)) for line in shown] == [(72, 700), (72, 686)]
    assert shown[0].right == pytest.approx(72 + 6 * len(first), abs=1)


def lines(*texts, top=700.0, left=72.0, height=12.0, width=6.0):
    return [
        PageLine(text, left, left + width * len(text), top - 12 * place, height, False)
        for place, text in enumerate(texts)
    ]


def page(*found, drawn=False):
    return PdfPage(tuple(found), WIDTH, HEIGHT, drawn, False)


def test_hyphens_follow_the_words_of_the_file():
    text, _ = flow(
        [
            page(*lines("A committee met. It is a well-known body.")),
            page(
                *lines(
                    "All of the com-", "mittee and the well-", "known guest, both Anglo-", "Saxon, the re-", "maining"
                )
            ),
            page(*lines("ones, and the never-", "to-be-forgotten wine, dark or wine-", "dark, from 1990-", "1995")),
        ]
    )
    assert "the committee and the well-known guest, both Anglo-Saxon, the remaining ones" in text
    assert "never-to-be-forgotten wine, dark or wine-dark, from 1990-1995" in text


def test_a_dash_of_two_hyphens_at_a_line_end_stays_between_its_words():
    assert flow([page(*lines("The matter was closed--", "and then he left the com-", "mittee."))])[0] == (
        "The matter was closed-- and then he left the committee."
    )


def test_running_titles_go_where_they_run_and_stay_where_they_occur_once():
    pages, front = [], ("", "i", "ii", "iii", "iv")
    for number in range(1, 41):
        title = f"Chapter {'One' if number <= 20 else 'Two'}" if number % 2 else "The Whole Book"
        body = lines(f"Body line {'abcdefghij'[number % 10]} of this page.", "It goes on.", "And ends.", top=600)
        head = [PageLine(title if number > 20 else f"{title} {number}", 72, 200, 760, 9, False)]
        if number == 20:
            head = [PageLine("A Title That Occurs Once", 72, 200, 760, 9, False)]
        foot = PageLine(front[number] if number < 5 else str(number - 4), 300, 310, 40, 9, False)
        pages.append(page(*head, *body, foot))
    text, left = flow(pages)
    assert "Chapter One" not in text
    assert "Chapter Two" not in text
    assert "The Whole Book" not in text
    assert "A Title That Occurs Once" in text
    assert not {*front[2:]} & {*text.split()}
    assert not any(name.isdigit() for name in text.split())
    assert all(page_text.endswith("Body line a of this page.\nIt goes on.\nAnd ends.") or "Body line" in page_text
               for page_text in left)  # fmt: skip
    assert "Whole Book" in flow(pages[1:3])[0]  # two pages show no pattern


def test_heads_that_end_in_the_page_number_go_however_short_their_chapters():
    """A chapter of three pages has its head on two; its first page has the number alone, at the foot."""

    def book(head, first=None, pages=40):
        shown = []
        for number in range(1, pages + 1):
            body = lines(f"Body line {'abcdefghij'[number % 10]} of this page.", "It goes on.", "And ends.", top=600)
            text = first if first and number % 3 == 1 else head
            place = 40 if text == first else 760
            shown.append(page(PageLine(text(number), 72, 300, place, 9, False), *body))
        return flow(shown)[0]

    def chapter(number):
        return f"Chapter {(number + 2) // 3}: On harbours {number}"

    assert "Chapter" not in book(chapter)
    short = book(chapter, str)
    assert "Chapter" not in short
    assert not any(word.isdigit() for word in short.split())
    numerals = ["i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x"]
    assert "Guide" not in book(lambda number: f"The Guide {numerals[number - 1]}", pages=10)
    assert "Guide" not in book(lambda number: f"{number} The Guide {'AB'[number > 20]}")
    assert book(lambda number: f"Hymn {'abcdefghij'[number % 10]}{number * 7919 % 101}x {number}").count("Hymn") == 40
    assert book(lambda number: f"The year {1900 + number * number}").count("year") == 40


def test_leaders_of_a_table_of_contents_go_and_each_entry_is_a_line():
    contents = lines(
        "1 The harbour . . . . . . . . . . . . . . . . . . . . . 3",
        "1.1 Bridges that were built before the war..............12",
        "1.2 An entry that is so long that it goes on in the next",
        "line of the page. . . . . . . . . . . . . . . . . . . . 19",
        "2 A title that leaves room for few of them . . . 20",
        "Index · · · · · · · · · · · · · · · · · · · · · · · 20, 57",
    )
    assert flow([page(*contents)])[0].split("\n") == [
        "1 The harbour 3",
        "1.1 Bridges that were built before the war 12",
        "1.2 An entry that is so long that it goes on in the next line of the page 19",
        "2 A title that leaves room for few of them 20",
        "Index 20, 57",
    ]
    assert flow([page(*lines("He paused . . . . then he went on.... And ended."))])[0] == (
        "He paused . . . . then he went on.... And ended."
    )
    tabs = "a" + "\t" * 200_000 + "b"  # hours, if each tab began a search
    assert flow([page(*lines(tabs, tabs))])[0].split() == ["a", "b", "a", "b"]


def test_lines_of_numbers_go_only_where_they_count_the_pages():
    def shown(*of_pages):
        return ["".join(f"{line.text}|" for line in kept) for kept in without_running_lines(of_pages)]

    def sheet(number, *texts):
        return page(*lines(*texts, *(f"p{number} {line}" for line in "abcdef"), top=780))

    table = [page(*lines(*(f"{977 * (60 * number + row) % 9973} {row}.5 {number}" for row in range(60)), top=780))
             for number in range(6)]  # fmt: skip
    assert without_running_lines(table) == [list(of.lines) for of in table]
    for title, runs in (
        ("Question {}", [False] * 7),
        ("Page {} of 7", [True] * 7),
        ("- {} -", [True] * 7),
        ("Vol. 12 No. 3 2019", [True] * 7),
    ):
        found = shown(*(sheet(number, title.format(number)) for number in range(1, 8)))
        assert [not text.startswith(title[:1]) for text in found] == runs, title
    apart = shown(*(sheet(number, str(number * number)) for number in range(2, 9)))
    assert [text.split("|")[0] for text in apart] == [str(number * number) for number in range(2, 9)]
    assert "civil|" in shown(*(sheet(n, "civil" if n % 4 else "mild") for n in range(1, 3)), sheet(3, "mild"))[0]


def test_pages_that_need_ocr_are_named_and_blank_pages_are_not():
    typed = set_type(paragraphs(40), header="Papers")
    scanned = ([(LEFT, 760, 9, "Papers"), (300, 40, 9, "- 99 -")], True)
    figure = ([(LEFT, 400, 10, "Figure 3. The harbour at night, seen from the northern bridge.")], True)
    outlined = write_pdf([*typed[:3], scanned, ([], False), figure, *typed[3:]])
    pieces = read(outlined)
    assert isinstance(pieces[0], Record)
    assert "The harbour at night" in pieces[0].text
    count = len(typed) + 3
    assert pieces[1:] == [RecordFault("a.pdf", 3, "page_needs_ocr", f"page 4 of {count}: no readable text")]
    all_scanned = read(write_pdf([([], True), ([], True)]))
    assert [(piece.reason, piece.position) for piece in all_scanned] == [("page_needs_ocr", 0), ("page_needs_ocr", 1)]
    [blank] = read(write_pdf([([], False)] * 3))
    assert (blank.reason, blank.sample) == ("no_text", "3 empty pages")


def test_files_that_cannot_be_read_are_faults_and_the_next_is_read(monkeypatch):
    good = write_pdf(set_type(paragraphs(3)))
    bomb = write_pdf(set_type(paragraphs(3)), content=zlib.compress(b"0 0 m 9 9 l S " * (24 << 20), 9))
    monkeypatch.setattr(page_process, "_PDF_SECONDS", 3.0)
    for data, reasons in (
        (write_pdf(set_type(paragraphs(3)), password=True), {"pdf_password"}),
        (b"%PDF-1.4 and nothing else %%EOF", {"not_pdf"}),
        (b"no PDF at all", {"not_pdf"}),
        (good[: len(good) // 3], {"truncated_pdf"}),
        (good[:-9], {"truncated_pdf"}),
        (write_pdf([([], False)] * 5001), {"pdf_too_many_pages"}),
        (bomb, {"pdf_too_slow", "pdf_broke_parser"}),
    ):
        [fault] = read(data)
        assert isinstance(fault, RecordFault)
        assert fault.reason in reasons
        [record] = read(good)
        assert record.text.split("\n")[:3] == paragraphs(3)
    torn = bytearray(good)
    torn[-16:-6] = b" " * 10  # no place of the table of objects: PDFium finds them itself
    assert read_pdf(bytes(torn)).text.split("\n")[:3] == paragraphs(3)


def test_a_corpus_of_pdf_files_counts_every_file_and_page(tmp_path):
    papers = tmp_path / "papers"
    papers.mkdir()
    (papers / "good.pdf").write_bytes(write_pdf(set_type(paragraphs(8))))
    (papers / "mixed.PDF").write_bytes(write_pdf([*set_type(paragraphs(5)), ([], True), ([], True)]))
    (papers / "locked.pdf").write_bytes(write_pdf(set_type(paragraphs(2)), password=True))
    source = TextSource(type="text", name="papers", licence="CC0-1.0", paths=("papers/*",))
    made = ingest((source,), IngestConfig(), tmp_path, Runtime(tmp_path / "root"))
    assert made.stats["documents_kept"] == 2
    assert made.stats["removed"] == {"quarantine:page_needs_ocr": 2, "quarantine:pdf_password": 1}
    assert made.stats["documents_in"] == 5
    [row] = [row for row in source_rows({"ingest": made}) if row["source"] == "papers"]
    assert row["no_text_share"] == pytest.approx(2 / 5)
    assert row["quarantined_share"] == pytest.approx(1 / 5)
