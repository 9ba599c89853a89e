"""HTML: only the page's own text, in the right characters, in bounded time for any page."""

import gzip
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_pipeline.readers import html, line_model, page_process
from data_pipeline.readers import main_text as main_text_module
from data_pipeline.readers.html import decode_html, extract
from data_pipeline.readers.main_text import choose, main_text, mark_containers
from data_pipeline.readers.page_process import read_html, read_page, read_pages
from data_pipeline.readers.pages.extraction import MARK
from data_pipeline.readers.pages.kernels import page_lines as of
from data_pipeline.readers.record import Record, RecordFault
from governance.config import canonical_json
from governance.errors import PipelineError
from governance.files import sha256_bytes

NEEDS_DATA = pytest.mark.skipif("ASSAY_TEST_DATA" not in os.environ, reason="ASSAY_TEST_DATA is not set")
LONG = "This sentence of the article number {} is long enough to be prose, and it says what its author meant to say."
PROSE = [LONG.format(number) for number in range(8)]
MENU = "".join(f'<li><a href="/{name}">{name}</a></li>' for name in ("Start", "World", "Sport", "Contact", "Imprint"))
TEASERS = "".join(
    f'<div><a href="/t{i}">Another story that you may like to read, number {i}</a></div>' for i in range(4)
)
FOOTER = "<p>Powered by SomePress</p><p>© 2026 Some House. All rights reserved.</p>"
COOKIES = "This site uses cookies and other means of storage to make your visit a better one. Accept or reject."
GOLDEN = "cd38929ef8c26aa15de56384cc25e58163e1ded6979c8c709ca7d47728ea4fe0"
PARAGRAPHS = "".join(f"<p>{text}</p>" for text in PROSE)


def resiliparse_layout(page):
    from resiliparse.extract.html2text import extract_plain_text

    return extract_plain_text(page, alt_texts=False)


def own_lines(page):
    return [line for line in main_text(page).splitlines() if line]


# --- main text


TEMPLATES = {
    "semantic": f"<nav><ul>{MENU}</ul></nav><main>{PARAGRAPHS}</main><aside>{TEASERS}</aside><footer>{FOOTER}</footer>",
    "unnamed divs": f"<div><div><ul>{MENU}</ul></div><div>{PARAGRAPHS}</div><div>{TEASERS}</div>"
    f"<div>{FOOTER}</div></div><div>{COOKIES}</div>",
    "layout table": f"<table><tr><td colspan=2>{MENU}</td></tr><tr><td>{'<br><br>'.join(PROSE)}</td>"
    f"<td>{TEASERS}</td></tr><tr><td colspan=2>{FOOTER}</td></tr></table>",
    "roles": f'<div role="banner">{MENU}</div><div role="main">{PARAGRAPHS}</div><div role="contentinfo">{FOOTER}</div>'
    f'<div role="dialog">{COOKIES}</div><div aria-hidden="true">hidden</div><p hidden>hidden</p>',
    "names": f'<div class="site-menu">{MENU}</div><div id="x">{PARAGRAPHS}</div>'
    f'<div class="left sidebar">{TEASERS}</div>'
    f'<div id="comments"><p>{LONG.format("of a reader")}</p></div><div class="cookie-banner">{COOKIES}</div>',
    "links around": f"<ul>{MENU}</ul>{PARAGRAPHS}<ul>{MENU}</ul>",
    "unclosed": f"<div><ul>{MENU}</ul></div><div>{'<p>'.join(['', *PROSE])}<div>{TEASERS}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_article_and_nothing_else(name):
    assert own_lines(f"<html><body>{TEMPLATES[name]}</body></html>") == PROSE


@settings(max_examples=100)
@given(
    st.lists(st.sampled_from([MENU, f"<ul>{MENU}</ul>", TEASERS, FOOTER, f"<p>{COOKIES}</p>"]), max_size=4), st.data()
)
def test_boxes_around_an_article_are_left_out(around, data):
    before = data.draw(st.integers(0, len(around)))
    boxes = [f"<div>{box}</div>" for box in around]
    page = "".join([*boxes[:before], f"<div>{PARAGRAPHS}</div>", *boxes[before:]])
    for _ in range(data.draw(st.integers(0, 3))):
        page = f"<div>{page}</div>"
    assert own_lines(page) == PROSE


def test_lists_tables_code_and_short_lines_of_an_article_stay():
    inner = (
        f"<h1>Title</h1><p>{PROSE[0]}</p><ul><li>one</li><li><p>two</p></li></ul><table><tr><td>a</td><td>b</td></tr></table>"
        f"<pre>x = 1\n  y = 2</pre><blockquote>Short.</blockquote><div class='sidebar'><p>{PROSE[1]}</p></div>"
        f"<aside><p>{PROSE[2]}</p></aside><p>The end.</p>"
    )
    lines = own_lines(f"<ul>{MENU}</ul><div>{inner}</div><div>{FOOTER}</div>")
    kept = ["Title", PROSE[0], "• one", "• two", "a b", "x = 1", "y = 2", "Short.", PROSE[1], PROSE[2], "The end."]
    assert [" ".join(line.split()) for line in lines] == kept
    assert "\n  y = 2" in main_text(f"<div>{inner}</div>")


def test_a_paragraph_about_cookies_is_a_paragraph():
    history = "A cookie was first used in 1994, so that a shop could remember what its visitor had put into the basket."
    page = f"<main><p>{PROSE[0]}</p><p>{history}</p><p>{PROSE[1]}</p></main>"
    assert own_lines(page) == [PROSE[0], history, PROSE[1]]


def test_a_discussion_is_the_main_text_of_a_page_without_an_article():
    assert own_lines(f'<ul>{MENU}</ul><div id="comments">{PARAGRAPHS}</div>') == PROSE


@pytest.mark.parametrize(
    "text", ["這是一篇文章的正文，說明了作者想說的事情，足夠長。", "นี่คือข้อความของบทความที่ยาวพอสมควรสำหรับการทดสอบ"]
)
def test_dense_scripts_count_for_more(text):
    page = f"<div><ul>{MENU}</ul></div><div><p>{text}</p><p>{text}</p></div><div>{FOOTER}</div>"
    assert own_lines(page) == [text, text]


def test_a_page_without_prose_keeps_its_lines():
    assert own_lines("<body><h1>Price</h1><p>5 euros</p><nav>menu</nav></body>") == ["Price", "5 euros"]


TAGS = "<div> </div> <td> </td> <table> </table> <a/href=x> </a> <article> </article> <aside> </aside> <p> <li> <!--"
PIECES = st.sampled_from([*TAGS.split(), '<a href="x">', '<div class="menu">', "-->", "<", "text ", PROSE[0]])


@settings(max_examples=150)
@given(st.lists(PIECES, max_size=40))
def test_whatever_the_nesting_all_lines_are_of_the_page_and_no_mark_is_left(pieces):
    page = "".join(pieces)
    text = main_text(page)
    assert MARK not in text
    words = set(re.findall(r"\w+", page))
    assert set(re.findall(r"\w+", text)) <= words


def test_marks_are_placed_next_to_tags_only():
    page = '<DIV Class="a"><a href=x>y</a><a name=z></a><td\n>c</td><divider></div><article>'
    [marked], _ = mark_containers([page.encode()])
    marked = marked.replace(MARK, "!")
    assert re.sub("(![^Llce])[A-}]", r"\1", marked) == (
        '<DIV Class="a">!o<a href=x>!Ly!l</a><a name=z>!l</a><td\n>!Cc!c</td><divider>!e</div><article>!M'
    )
    assert choose(f"{MARK}e{MARK}c{MARK}l nothing was open {MARK}") == "nothing was open"


MARKED_TAG = re.compile(
    r"<(?:/?(?P<name>a|div|section|article|main|aside|td|th|form|header|pre)"
    r"|(?P<line>p|h[1-6]|figcaption|time))(?:\s[^<>]*)?>",
    re.IGNORECASE | re.ASCII,
)
ODD_TAGS = st.sampled_from(
    ("<", ">", "</", "<a", "<A Href='y'>", "<a\x0bname=x>", "<a >", "<pre>\n", "<PRE id=x>", "<p/>", "<h7>", "<h1 \n>",
     "<figcaption class='ads'>", "<figcaptions>", "<\u017fection>", "<div\x1c>", "<div id=\u03a3>", "<form<form>")
)  # fmt: skip
SKIPPED_TAGS = st.sampled_from(
    ("<nav>", "</NAV>", "<Footer a>", "<dialog/>", "<template>", "<button", "<select>", "<option>", "<b hidden>",
     "<p HIDDEN=x>", '<p aria-hidden="true">', "<i ARIA-Modal=true>", "<i role=banner>", "<td role = 'search'>",
     "<nav\0>", '<b role="&#109;enu">', "<b role=tool&#x62;ar>", "<b ROLE='men&#117;bar'>", "<b role=x>", "role=menu")
)  # fmt: skip


def marked_plainly(page):
    def mark(tag):
        name = (tag["name"] or tag["line"]).lower()
        if tag[0][1] == "/":
            return MARK + {"a": "l", "td": "c", "th": "c"}.get(name, "e") + tag[0]
        if name == "a":
            return tag[0] + (MARK + "L") * ("href" in tag[0].lower())
        if name == "pre":
            return f"{MARK}R_{tag[0]}"
        number = main_text_module._container_mark(tag[0])
        return tag[0] + MARK + chr(number & 255) + chr(number >> 8)

    return MARKED_TAG.sub(mark, page)


@settings(max_examples=300)
@given(st.lists(st.lists(PIECES | ODD_TAGS | SKIPPED_TAGS | st.text(max_size=9), max_size=30), max_size=4))
def test_marks_are_those_of_a_plain_search_and_nothing_skipped_is_laid_out(lists):
    pages = [decode_html("".join(pieces).encode()) for pieces in lists]
    marked, bits = mark_containers([page.encode() for page in pages])
    assert marked == [marked_plainly(page) for page in pages]
    for page, found in zip(marked, bits, strict=True):
        assert main_text_module._laid_out(page, found) == main_text_module._laid_out(page, -1), "with all selectors"


@settings(max_examples=100)
@given(st.text(max_size=30), st.lists(st.sampled_from(sorted(line_model.weights().names)), max_size=9))
def test_the_weight_of_a_tag_is_a_letter_that_html_does_not_read(tag, names):
    letter = chr(of.NO_WEIGHT + line_model.tag_weight(tag, " ".join(names)))
    assert "A" <= letter <= "}"


RELATED = "".join(f'<p><a href="/{i}">Another story</a> was read most this week</p>' for i in range(3))
AFTER = (
    f'<div class="related-posts"><h3>Related articles</h3>{RELATED}</div>'
    '<div class="newsletter-box"><p>Subscribe to our newsletter and get all news by e-mail.</p></div>'
    '<div class="author-bio"><p>Jane Roe is an author of this site. Follow her.</p></div>'
)


def test_boxes_at_the_end_of_an_article_go_and_its_own_parts_stay():
    inner = (
        f"<h1>Title</h1>{PARAGRAPHS}<h2>Part</h2><ul><li>first item of a list</li><li>second</li></ul><p>{PROSE[0]}</p>"
    )
    lines = own_lines(f"<body><div class='post'>{inner}{AFTER}</div></body>")
    assert [" ".join(line.split()) for line in lines] == [
        "Title", *PROSE, "Part", "• first item of a list", "• second", PROSE[0],
    ]  # fmt: skip


@settings(max_examples=100)
@given(st.lists(PIECES, max_size=40))
def test_the_model_never_leaves_out_all_prose(pieces):
    [marked], _ = mark_containers(["".join([*pieces, PARAGRAPHS]).encode()])
    page = line_model.read_layout_lines(resiliparse_layout(marked))
    assume(page.lines[:, of.PROSE].any())
    kept = line_model.main_lines(page)
    assert kept == sorted(set(kept))
    assert page.lines[kept, of.PROSE].any()


def test_a_layout_is_read_into_lines_and_containers():
    m = MARK
    first = f"{m}o_\n{m}P`First {m}Llink{m}l of it\n\n{m}Nz\n• {m}Lall link{m}l{m}e\n"
    layout = f"{first}  {m}C_a{m}c {m}C_漢字{m}c\n\n{m}e\n{m}e\nend{m}"
    page = line_model.read_layout_lines(layout)
    assert [page.line(place) for place in range(4)] == ["First link of it", "• all link", "  a 漢字", "end"]
    columns = page.lines[:, [of.BOX, of.SIZE, of.LINKS, of.KIND, of.BLANK, of.PLACE]].tolist()
    assert columns == [[1, 14, 4, 2, 0, 1], [2, 11, 8, 0, 1, 4], [3, 7, 0, 0, 0, 5], [0, 3, 0, 0, 1, 9]]
    assert page.boxes[:, of.PARENT].tolist() == [0, 0, 1, 1, 1]
    assert [chr(letter) for letter in page.boxes[:, 1]] == ["M", "o", "N", "C", "C"]
    assert page.boxes[2, 2] == ord("z") - of.NO_WEIGHT


def test_lines_of_code_stay_together():
    code = "<pre>first = 1\nx\n\ty = 2\n</pre>"
    lines = own_lines(f"<body><div><h1>Title</h1>{PARAGRAPHS}{code}<p>{PROSE[0]}</p></div></body>")
    assert "first = 1" in lines
    assert [line.strip() for line in lines[lines.index("first = 1") + 1 :][:2]] == ["x", "y = 2"]


FIGURES = {
    '<figure class="wp-block-table"><table><tr><td>Bonn</td><td>330</td></tr></table></figure>': ["Bonn 330"],
    '<figure class="highlight"><pre><code>def show\n  1\nend</code></pre></figure>': ["def show", "1", "end"],
    f"<figure><figure><blockquote>{PROSE[1]}</blockquote></figure><figcaption>{PROSE[2]}</figcaption></figure>": [
        *PROSE[1:3]
    ],
    f"<figure><figcaption id=x>{PROSE[2]}</figcaption><pre>x = 1</pre></figure>": [PROSE[2], "x = 1"],
    '<figure><img src=a alt="A boat"><figcaption>Photo: a friend</figcaption></figure>': [],
    "<figure><table><tr><td>Bonn<td>330</table><figure><img src=a><figcaption>A friend's boat</figcaption></figure>"
    "<figcaption>People in 2020</figcaption></figure>": ["Bonn 330", "People in 2020"],
    "<figure>a</figure><figure><pre>x = 1</pre>": [],
    "</figure><figures><table></figures></figure>": [],
}  # fmt: skip


@pytest.mark.parametrize("figure", FIGURES)
def test_tables_code_and_quotations_in_figures_stay_with_their_captions_and_pictures_go(figure):
    lines = own_lines(f"<main>{PARAGRAPHS}{figure}{PARAGRAPHS}</main>")
    assert [" ".join(line.split()) for line in lines[len(PROSE) :]][: len(FIGURES[figure])] == FIGURES[figure]
    assert "boat" not in " ".join(lines)
    assert "friend" not in " ".join(lines)


STYLES = ("display:none", "color: red; display: none;", "visibility: hidden", "color:red;visibility:hidden")
CLASSES = ("sr-only", "note visually-hidden", "visuallyhidden", "screen-reader-text", "element-invisible a")


@pytest.mark.parametrize(
    "hidden", [*(f'style="{style}"' for style in STYLES), *(f'class="{name}"' for name in CLASSES)]
)
def test_what_is_hidden_goes_but_for_formulas(hidden):
    formula = f'<span {hidden}><math><mi>x</mi><annotation encoding="application/x-tex">x</annotation></math></span>'
    page = f"<body {hidden}><main>{PARAGRAPHS}<div {hidden}><p>{PROSE[1]}</p></div><p>{PROSE[0]} {formula}</p></main>"
    assert own_lines(page) == [*PROSE, f"{PROSE[0]} x"]
    assert own_lines(page.replace(formula, "x")) == [*PROSE, f"{PROSE[0]} x"]
    nested = f"{PARAGRAPHS}{f'<div {hidden}>' * 60_000}<math><mi>x</mi></math>"
    assert read_page(nested.encode()).text.split("\n\n") == PROSE


@pytest.mark.parametrize("shown", ['style="backface-visibility: hidden"', 'class="sr-only md:not-sr-only"'])
def test_what_only_looks_hidden_stays(shown):
    assert own_lines(f"<main>{PARAGRAPHS}<p {shown}>{PROSE[0]}</p></main>") == [*PROSE, PROSE[0]]
    inner = f'<div style="visibility: hidden"><p style="visibility: visible">{PROSE[0]}</p></div>'
    assert own_lines(f"<main>{PARAGRAPHS}{inner}</main>") == [*PROSE, PROSE[0]]
    for name in ("main", "div"):  # a script shows the page once it is whole
        assert own_lines(f'<body><{name} style="visibility: hidden">{PARAGRAPHS}</{name}></body>') == PROSE


def test_golden_text():
    """Other text or other weights need another VERSION of `ingest`."""
    pages = [f"<body>{page}</body>" for page in TEMPLATES.values()] + [f"<body><div>{PARAGRAPHS}{AFTER}</div></body>"]
    texts = [main_text(page) for page in pages]
    weights = Path(line_model.__file__).with_name("line_weights.json").read_text(encoding="utf-8")
    assert sha256_bytes(canonical_json([texts, weights])) == GOLDEN


# --- characters


PAGE = "<html><head>{}<title>t</title></head><body><main><p>Żółć, naïve façade, Straße – “quoted” text. " + LONG


_SAID = [(charset, way) for charset in ("utf-8", "iso-8859-2", "windows-1250") for way in ("header", "meta")]


@pytest.mark.parametrize(("charset", "way"), [*_SAID, ("utf-8", "neither")])  # uchardet only guesses
def test_the_charset_is_found(charset, way):
    page = PAGE.format(f'<meta charset="{charset}">' if way == "meta" else "", 1)
    if charset == "iso-8859-2":
        page = page.replace("–", "-").replace("“", '"').replace("”", '"')
    page = page.replace("ï", "i").replace("ç", "c")
    assert decode_html(page.encode(charset), charset if way == "header" else "") == page


@pytest.mark.parametrize("charset", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_marks_and_zeros_reveal_unicode(charset):
    page = PAGE.format("", 1)
    assert decode_html(page.encode(charset), "iso-8859-1" if charset in ("utf-16", "utf-8-sig") else "") == page


def test_utf_8_is_believed_against_what_is_declared_and_the_transport_before_the_page():
    page = PAGE.format('<meta charset="iso-8859-1">', 1)
    assert decode_html(page.encode(), "iso-8859-1") == page
    russian = '<meta charset="windows-1251"><p>Привет, мир'
    assert decode_html(russian.encode("koi8-r"), "koi8-r") == russian
    assert decode_html(russian.encode("windows-1251"), "no-such-charset") == russian
    form = f'<form accept-charset="x-mac-cyrillic">{russian}'
    assert decode_html(form.encode("windows-1251")) == form
    assert decode_html(b"<p>caf\xe9 \x02", "utf-8") == "<p>café "


@pytest.mark.parametrize(
    ("named", "codec", "text"),
    [
        ("shift_jis", "cp932", "①髙橋㈱ ～ 日本"),
        ("euc-kr", "cp949", "똠방각하 펲시"),
        ("gb2312", "gb18030", "鎔 朱镕基"),
        ("big5", "big5hkscs", "嘅碁裏"),
        ("tis-620", "cp874", "ภาษา “ไทย” …"),
        ("x-mac-cyrillic", "mac_cyrillic", "Привет, мир"),
        ("X-Mac-Ukrainian", "mac_cyrillic", "ґанок і €"),
    ],
)
def test_a_name_of_the_web_means_its_superset(named, codec, text):
    page = PAGE.format(f'<meta charset="{named}">', text).replace("Żółć, naïve façade, Straße – “quoted” text. ", "")
    assert decode_html(page.encode(codec)) == page
    assert decode_html(f"<p>{text}".encode(codec), named) == f"<p>{text}"


def test_euc_jp_has_the_signs_that_python_lacks():
    signs = b"\xad\xa1\xad\xea\xfc\xe2"
    assert decode_html(b"<p>" + signs + "日本".encode("euc_jp"), "euc-jp") == "<p>①㈱髙日本"
    assert decode_html(b"<p>" + signs + b"\xff" + "日本".encode("euc_jp"), "euc-jp") == "<p>①㈱髙\ufffd日本"


@pytest.mark.parametrize("reference", ["&#2;", "&#x02;", "&#X2", "&#0002", "&#\x022;", "&#&#2;2;"])
def test_a_reference_to_the_mark_forges_none(reference):
    prose = "A paragraph of the article that is long enough to be prose, and without a link. "
    page = f"<article><p>{prose * 3}</p><p>word {reference}T</p><p>{prose * 3}</p></article>"
    text = read_html(page.encode(), "").text
    assert text.count(prose.strip()) >= 2
    assert MARK not in text
    assert decode_html(b"<p>a &#2 b &#20; &#x2a; &#22") == "<p>a   b &#20; &#x2a; &#22"


@settings(max_examples=150)
@given(
    st.binary(max_size=300), st.sampled_from(["", "utf-8", "utf-16", "x-user-defined", "iso-2022-jp", "gbk", "\ud800"])
)
def test_any_bytes_have_characters(data, charset):
    decode_html(data, charset).encode("utf-8")


# --- fallback


def test_where_no_text_is_the_pages_own_all_of_it_is_taken_and_counted():
    page = extract(b"<nav><ul><li>first entry</li></ul></nav>")
    assert page.fallback
    assert "first entry" in page.text
    assert extract(b"") == extract(b"<p>")
    assert not extract(PARAGRAPHS.encode()).fallback


def test_a_note_is_taken_without_trafilatura_and_a_huge_page_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "trafilatura", None)  # importing it fails
    note = extract(b"<div id=root></div><noscript>Enable JavaScript to run this.</noscript>")
    assert (note.text, note.fallback) == ("Enable JavaScript to run this.", True)
    menu = f"<nav>{'<p>' + PROSE[0]}".encode()
    with pytest.raises(ImportError):
        extract(menu * 5)
    monkeypatch.setattr(html, "_CHOSEN_CHARACTERS", 100)
    assert PROSE[0] in extract(menu * 5).text


def test_signals_come_with_the_page():
    assert read_page(b"<meta name=robots content=noai><p>x").signals == ("robots:noai",)


# --- hostile pages


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(page_process, "SECONDS", 0.5)
    monkeypatch.setattr(page_process, "SECONDS_PER_MIB", 0.0)
    monkeypatch.setattr(page_process, "PAGE_MEMORY_BYTES", 4 << 30)


SLOW = {
    "unclosed formatting": "<p>".join(f"<b id={i}>" for i in range(3000)),
    "attributes": "<p " + " ".join(f"a{i}" for i in range(60_000)) + ">x",
}


@pytest.mark.parametrize("name", SLOW)
def test_a_page_made_to_be_slow_is_given_up_and_the_next_is_read(impatient, name):
    fault = read_html(SLOW[name].encode(), "f.html", 7)
    assert isinstance(fault, RecordFault)
    assert (fault.position, fault.reason) == (7, "html_too_slow")
    assert read_html(PARAGRAPHS.encode(), "f.html").text.split("\n\n") == PROSE


@pytest.mark.parametrize("name", SLOW)  # read among the small pages, and by itself
def test_a_slow_page_costs_none_of_its_neighbours(impatient, name):
    slow = SLOW[name].encode()
    assert (len(slow) <= page_process._SMALL_BYTES) == (name == "unclosed formatting")
    pages = [(PARAGRAPHS.encode(), ""), (slow, ""), (b"<p>caf\xe9", "latin-1"), (slow, "")]
    first, second, third, fourth = read_pages(pages)
    assert first.text.split("\n\n") == PROSE
    assert (second, third.text, fourth) == ("html_too_slow", "café", "html_too_slow")
    assert read_pages([]) == []


@pytest.mark.parametrize(
    "page",
    [
        "<div>" * 100_000 + PROSE[0],
        "<div><table><td></div>" * 20_000 + PROSE[0],
        "<div class=menu>" * 50_000 + PROSE[0] + "</td>" * 50_000,
        "<a href=" * 50_000,
        '<div class="' * 50_000 + PROSE[0],
        "<div " * 100_000,
        "\x02" * 1000 + PROSE[0],
        "role" * 250_000 + PROSE[0],
    ],
)
def test_deep_and_torn_pages_take_bounded_time(page):
    assert isinstance(read_html(page.encode(), "f.html"), Record | RecordFault)


@pytest.mark.slow
def test_a_million_nested_elements_kill_nobody():
    page = "<div>" * 1_000_000 + PROSE[0] + "</div>" * 1_000_000
    assert isinstance(read_html(page.encode(), "f.html"), Record | RecordFault)
    assert read_page(PARAGRAPHS.encode()).text


@pytest.mark.parametrize("tags", [4000, 6000])  # read among the small pages, and by itself
def test_memory_has_a_bound_of_each_page(monkeypatch, tags):
    monkeypatch.setattr(page_process, "SECONDS", 60.0)
    untired = "import data_pipeline.readers.page_process as p; p._TIRED_BYTES = 1 << 40; p.serve()"
    monkeypatch.setattr(page_process, "_CHILD", f"import sys; sys.path[:] = sys.argv[1:]; {untired}")
    main_text(PARAGRAPHS)  # compiled here, so that a new process need not: the peak is that of pages
    page_process.close()
    page = "<p>".join(f"<b id={i}>" for i in range(tags)).encode()
    assert (len(page) <= page_process._SMALL_BYTES) == (tags == 4000)
    found = read_pages([(PARAGRAPHS.encode(), ""), (page, ""), (PARAGRAPHS.encode(), "")])
    assert found[1] in ("html_broke_parser", "not_html")  # as the allocation fails in Rust or in C
    assert [page.text.split("\n\n") for page in found[::2]] == [PROSE, PROSE]
    path = f"/proc/{page_process._CHILDREN[os.getpid()].pid}/status"
    if os.path.exists(path):
        text = Path(path).read_text()
        peak, of_files = (int(re.findall(rf"{name}:\s*([0-9]+) kB", text)[0]) << 10 for name in ("VmHWM", "RssFile"))
        assert peak - of_files <= page_process.PAGE_MEMORY_BYTES + (
            100 << 20
        )  # how much of libraries is resident varies


@pytest.mark.parametrize("padding", [0, 64 << 10])  # read among the small pages, and by itself
def test_no_page_gains_by_its_neighbours(monkeypatch, padding):
    """A page just above its bound of memory, whose failed parse leaves that much mapped."""
    monkeypatch.setattr(page_process, "SECONDS", 60.0)
    page = (PARAGRAPHS + "<p>".join(f"<b id={i}>" for i in range(1200)) + PARAGRAPHS + " " * padding).encode()
    small = PARAGRAPHS.encode()
    page_process.close()
    alone = read_page(page)
    assert alone in ("html_broke_parser", "not_html")
    first, second = read_pages([(small, ""), (page, "")])
    assert (first.text.split("\n\n"), second) == (PROSE, alone)
    assert read_pages([(page, ""), (page, "")]) == [alone, alone]


def test_a_child_that_keeps_memory_gives_way_to_another(monkeypatch):
    page_process.close()
    tired = "import data_pipeline.readers.page_process as p; p._TIRED_BYTES = -1; p.serve()"
    monkeypatch.setattr(page_process, "_CHILD", f"import sys; sys.path[:] = sys.argv[1:]; {tired}")
    for _ in range(2):
        assert read_page(PARAGRAPHS.encode()).text.split("\n\n") == PROSE
        assert os.getpid() not in page_process._CHILDREN


def test_a_page_above_the_bound_is_not_read(monkeypatch):
    monkeypatch.setattr(page_process, "MAX_PAGE_BYTES", 10)
    assert read_page(b"x" * 11) == "html_too_large"


def test_a_child_that_dies_between_pages_is_replaced():
    read_page(b"<p>x")
    child = page_process._CHILDREN[os.getpid()]
    child.kill()
    child.wait()
    assert read_page(PARAGRAPHS.encode()).text


def test_a_child_that_cannot_start_is_reported(monkeypatch):
    page_process.close()
    monkeypatch.setattr(page_process, "_CHILD", "raise SystemExit(1)")
    with pytest.raises(PipelineError, match="resiliparse"):
        read_page(b"<p>x")


PAGES = (
    PARAGRAPHS.encode(),
    PARAGRAPHS.replace("<p>", "<p>🦉 ").encode(),
    PARAGRAPHS.encode("utf-16"),
    f"<meta name=robots content=noai><p>{PROSE[0]}".encode(),
    f"<p>{PROSE[0]} Caf\xe9 &#xD800;".encode("latin-1"),
    b"<nav><a href=x>Home</a></nav>",
    b"<noscript>Enable JavaScript</noscript>",
    b"",
    b"x" * (page_process._SMALL_BYTES + 1),
)


@settings(max_examples=50)
@given(st.lists(st.sampled_from(PAGES) | st.binary(max_size=50).map(b"<p>".__add__), max_size=12))
def test_pages_read_together_are_as_each_is_alone(pages):
    assert read_pages([(page, "latin-1") for page in pages]) == [read_pages([(page, "latin-1")])[0] for page in pages]


@settings(max_examples=100)
@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(data):
    piece = read_html(b"<p>" + data, "f.html")
    assert isinstance(piece, Record)
    piece.text.encode("utf-8")


# --- planted truth


def word_f1(found, truth):
    mine, theirs = (Counter(re.findall(r"\w+", text.casefold())) for text in (found, truth))
    shared = (mine & theirs).total()
    return 2 * shared / (mine.total() + theirs.total())


@NEEDS_DATA
def test_word_f1_on_the_archive_with_truth():
    from data_pipeline.readers.sources import WarcSource
    from data_pipeline.readers.warc import read_warc

    folder = Path(os.environ["ASSAY_TEST_DATA"]) / "web"
    with gzip.open(folder / "web.truth.jsonl.gz", "rt", encoding="utf-8") as lines:
        truth = {row["url"]: row["main_text"] for row in map(json.loads, lines) if row["expect"] == "keep"}
    source = WarcSource(type="warc", name="web", licence="CC0-1.0", paths=("x",))
    found = {}
    for piece in read_warc(folder / "web.warc.gz", "web.warc.gz", source):
        if isinstance(piece, Record):
            found.setdefault(piece.url, piece.text)
    scores = [word_f1(found[url], text) for url, text in truth.items()]
    assert len(scores) == 900
    assert sum(scores) / len(scores) >= 0.98


@NEEDS_DATA
@pytest.mark.slow
def test_of_real_manuals_nearly_every_word_stays():
    path = Path(os.environ["ASSAY_TEST_DATA"]) / "web" / "html_docs.jsonl.gz"
    from resiliparse.extract.html2text import extract_plain_text

    kept = whole = 0
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for page in (json.loads(line)["html"] for line in lines):
            kept += len(main_text(page).split())
            whole += len(extract_plain_text(page).split())
    assert kept >= 0.9 * whole
