"""Forms and extractors of pages: Markdown holds the words of the plain text, and other extractors are guarded alike."""

import gzip
import json
import os
import re
from collections import Counter
from html import unescape

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.readers import line_model, page_process
from data_pipeline.readers.html import decode_html, extract
from data_pipeline.readers.items import find_source
from data_pipeline.readers.main_text import main_text
from data_pipeline.readers.page_process import read_page, read_pages
from data_pipeline.readers.pages import extraction
from data_pipeline.readers.pages.extraction import MARK, Extraction
from data_pipeline.readers.pages.formulas import latex_of_math
from data_pipeline.readers.pages.kernels import page_model
from data_pipeline.readers.pages.kernels.page_features import VECTOR
from data_pipeline.readers.pages.page_markdown import NOTE, markdown
from data_pipeline.readers.sources import TextSource
from governance.errors import ConfigError
from governance.stage import Runtime

LONG = "This sentence of the article is long enough to be prose, and it says what its author meant to say about it."
PROSE = f"<p>{LONG}</p>"
TABLE = "<table><tr><th>A<th>B|C</tr><tr><td>1</td><td>2<br>3</td></tr><tr><td>4</td></tr></table>"


def article(inner):
    return f"<body><main><h1>Title</h1>{PROSE}{inner}{PROSE}</main></body>"


def written(inner):
    """The Markdown of an article, without the parts around `inner`."""
    text = markdown(article(inner))
    assert text.startswith(f"# Title\n\n{LONG}\n\n")
    return text.removeprefix(f"# Title\n\n{LONG}").removesuffix(LONG).strip("\n")


# --- Markdown


STORY = "Sentence {} of a story that goes on for long enough to be taken for prose, with a comma and a full stop."
STORIES = [STORY.format(number) for number in range(6)]
BOTH = pytest.mark.parametrize("structure", ["plain", "markdown"])


def lines_of(body, structure):
    text = extract(f"<html><body>{body}</body></html>".encode(), way=Extraction(structure=structure)).text
    return [line.strip() for line in text.split("\n") if line.strip() and "```" not in line]


@BOTH
def test_code_with_links_stays_whole_and_a_listing_of_links_goes(structure):
    """Names in generated references are links, on some lines nearly all characters."""
    names = "".join(f"    fn <a href=a>{name}</a>(&self) -> <a href=b>Option&lt;{name}&gt;</a>;\n" for name in "abc")
    where = "where\n    <a href=x>Allocator</a>,\n{\n    // Required methods of the type"
    code = f"<pre>pub trait Sum\n{where}\n{names}}}\n</pre>"
    listing = f"<pre>{''.join(f'<a href={n}>backup-{n}.tar.gz</a>  {n} k' + chr(10) for n in range(9))}</pre>"
    stories = "".join(f"<p>{story}</p>" for story in STORIES)
    found = lines_of(f"<div>{stories}{code}<p>{STORIES[0]}</p>{listing}<p>{STORIES[1]}</p></div>", structure)
    kept = ["pub trait Sum", "where", "Allocator,", "{", "// Required methods of the type"]
    assert found == [*STORIES, *kept, *(f"fn {n}(&self) -> Option<{n}>;" for n in "abc"), "}", *STORIES[:2]]


@BOTH
@pytest.mark.parametrize("sign", ["#", "¶", "§", "&para;", "&#182;", "🔗", "&#9670;&#160;"])
def test_signs_of_links_to_headings_go(structure, sign):
    link = f'<a class="headerlink" href="#one">{sign}</a>'
    body = f"<h2>{link}One</h2><p>{STORIES[0]}</p><h2>Two{link}</h2><p>{STORIES[1]} See C# and § 5 {sign}</p>"
    found = [line.lstrip("# ") for line in lines_of(f"<div>{body}</div>", structure)]
    assert found == ["One", STORIES[0], "Two", f"{STORIES[1]} See C# and § 5 {unescape(sign)}".strip()]


@BOTH
def test_a_title_that_links_to_itself_stays_and_titles_of_other_stories_go(structure):
    others = "".join(f"<h2><a href=/{number}>Another story {number}</a></h2>" for number in range(3))
    stories = "".join(f"<p>{story}</p>" for story in STORIES)
    for level in (1, 2):
        title = f'<h{level} id="own"><a class="header" href="#own">A title of its own</a></h{level}>'
        found = lines_of(f"<main>{title}{stories}</main><div>{others}</div>", structure)
        assert [line.lstrip("# ") for line in found] == ["A title of its own", *STORIES]


@pytest.mark.parametrize(
    ("inner", "text"),
    [
        ("<h2 id=a>Sub</h2>", "## Sub"),
        ("<ul><li>x<ul><li>nest</li></ul></li><li><p>y</p></li></ul>", "- x\n    - nest\n- y"),
        ("<ol><li>a<li>b</ol>", "1. a\n2. b"),
        ("<ol data-start=9 START='5'><li>a<li><p><b>b</b> c</p><li value=9>d<li>e</ol>", "5. a\n6. b c\n9. d\n10. e"),
        ('<ol class="reversed" title="start=7"><li>a<li>b</ol>', "1. a\n2. b"),
        ("<ol start=5><li><math><mi>x</mi></math> foo<li>b</ol>", "5. $x$ foo\n6. b"),
        ("<ol reversed><li>a<ol start=0><li>b</ol><li><ul><li value=7>c</ul><li>d</ol>",
         "3. a\n    0. b\n    - c\n1. d"),
        (TABLE, "| A | B\\|C |\n| --- | --- |\n| 1 | 2 3 |\n| 4 |  |"),
        ('<pre class="language-python">\nx = 1\n  y = 2\n\nz\n</pre>', "```python\nx = 1\n  y = 2\n\nz\n```"),
        ('<pre><code class="lang-c">int a;\n</code></pre>', "```c\nint a;\n```"),
        ("<p>call <code>0; x</code> and <code>7;</code></p>", "call `0; x` and `7;`"),
        ("<h2>1; Intro</h2>", "## 1; Intro"),
        ('<p><code>0;</code> <img class="latex" alt="x_1"></p>', "`0;` $x_1$"),
        ("<pre>```\na</pre>", "````\n```\na\n````"),
        ("<p>a <code>x`y</code> <code>``</code> <code> </code>b</p>", "a `` x`y `` ``` `` ``` b"),
        ("<ul><li>a<li> <code></code></ul><p>b</p>", "- a\n\nb"),
        (f"<ul><li> <code>{PROSE}</code></ul>", f"- `{LONG}`"),
        ("<p>&nbsp; prix&nbsp;:\t 5&nbsp;€ &nbsp;</p><p>全角\u3000空白</p>", "prix\xa0: 5\xa0€\n\n全角\u3000空白"),
        ("<p>a <code>b<br>c</code> d</p>", "a `b`\n`c` d"),
        ("<ul><li><p>\na</p><p>\nb</p><ol><li><p> c</p><p> d</p></ol></ul>", "- a\n\n    b\n\n    1. c\n\n        d"),
        ("<ul><li><p>a</p><p>b</p><ol><li><p>c</p><p>d</p></ol></li></ul><p>e</p>",
         "- a\n\n    b\n\n    1. c\n\n        d\n\ne"),
        ("<table><tr><th rowspan=2>A<th colspan='2'>B<tr><td>c<td>d<tr><td>1<td>2<td>3</table>",
         "| A | B |  |\n| --- | --- | --- |\n|  | c | d |\n| 1 | 2 | 3 |"),
        ("<table><tr><td colspan=99>all<tr><td>a<td rowspan=3>b<tr><td>c</table>",
         "| all |  |\n| --- | --- |\n| a | b |\n| c |  |"),
        ("<p>call <code>f(x)</code> once</p>", "call `f(x)` once"),
        ("<table><tr><td><pre>1</pre><td><pre>x = 1</pre></table>", "```\n1\n```\n\n```\nx = 1\n```"),
        (f"<table><tr><td>{PROSE}<td>b<tr><td>{TABLE}<td>d</table>", None),
        ('<p>a <script type="math/tex">E=mc^2</script> b</p>', "a $E=mc^2$ b"),
        ('<p><script type="math/tex; mode=display">a < b</script></p>', "$$a < b$$"),
        ('<p>so <img class="latex" alt="x_1"> is</p>', "so $x_1$ is"),
        ('<ul><li>a</li><li><div><img class="latex" alt="x_1"></div></li><li>b</li></ul>', "- a\n- $x_1$\n- b"),
        ('<ol start="5"><li><img class="latex" alt="x_1"></li><li>b</li></ol>', "5. $x_1$\n6. b"),
        ("<p>if <math><msup><mi>&alpha;</mi><mn>2</mn></msup><mo>&#8804;</mo><mi>b</mi></math> holds</p>",
         "if $\\alpha ^{2}\\le b$ holds"),
        ('<math display="block"><semantics><mi>x</mi><annotation encoding="application/x-tex">\\frac ab</annotation>'
         "</semantics></math>", "$$\\frac ab$$"),
    ],
)  # fmt: skip
def test_elements_become_markdown(inner, text):
    found = written(inner)
    if text is None:  # a table that lays out a page gives its lines, and the table in it
        assert found.split("\n\n")[-1] == "d"
        assert "| 1 | 2 3 |" in found.split("\n")
    else:
        assert found == text


@pytest.mark.parametrize(
    ("inner", "text"),
    [
        (f"<div><li>{LONG}</div><p>x y z</p>", f"{LONG}\n\nx y z"),
        (f"<ul><li>a</ul><div><LI class=a>{LONG} b</LI></div><p>x y z</p>", f"  • a\n{LONG} b\n\nx y z"),
        ("<menu><li>m</li><li>n</li></menu><p>x y z</p>", "  • m\n  • n\n\nx y z"),
        (f"<ul><li>m<p>{LONG}</p></li></ul>", f"  • m\n\n    {LONG}"),
        (f"<div hidden><li>a<li>b</div><p>x y z</p><div><li>{LONG}</div>", f"x y z\n\n{LONG}"),
        (f"<div hidden><p>a</li></p><p>{LONG} b</p></div><p>x y z</p><div><li>{LONG}</div>", f"x y z\n\n{LONG}"),
    ],
)
def test_an_item_outside_of_a_list_does_not_indent_what_follows(inner, text):
    assert main_text(article(inner)) == f"Title\n\n{LONG}\n\n{text}\n\n{LONG}"


@pytest.mark.parametrize(
    ("source", "latex"),
    [
        ("<mfrac><mi>a</mi><mrow><mi>b</mi><mo>+</mo><mn>1</mn></mrow></mfrac>", r"\frac{a}{b+1}"),
        ("<mroot><mi>x</mi><mn>3</mn></mroot><msqrt><mi>y</mi></msqrt>", r"\sqrt[3]{x}\sqrt{y}"),
        ("<munderover><mo>&sum;</mo><mi>i</mi><mi>n</mi></munderover>", r"\sum _{i}^{n}"),
        ("<mover><mi>v</mi><mo>&rarr;</mo></mover><mtext>if &lt; 1</mtext>", r"\vec{v}\text{if < 1}"),
        ("<mtable><mtr><mtd><mi>a</mi></mtd><mtd><mi>b</mi></mtd></mtr></mtable>", r"\begin{matrix}a & b\end{matrix}"),
        ("<mi>sin</mi><mi>rate</mi>", r"\sin \mathrm{rate}"),
        ("<mi>torn", "torn"),
    ],
)
def test_mathml_becomes_latex(source, latex):
    assert latex_of_math(f"<math xmlns='http://www.w3.org/1998/Math/MathML'>{source}</math>").strip() == latex


def words(text):
    return Counter(re.findall(r"\w+", re.sub(r"(?m)^`{3,}\S*$", "", text)))


TAGS = (
    "<div> </div> <table> </table> <tr> <td> </td> <pre> </pre> <code> </code> <h2> </h2> <ul> <li> </ul> <aside>"
    " </aside> <a/href=x> </a> ``` &#3; \x03p0; <code>0;</code> | word <br>"
)
PIECES = st.sampled_from([*TAGS.split(), "\n", PROSE, TABLE, '<pre class="lang-c">int a;</pre>'])


@settings(max_examples=200)
@given(st.lists(PIECES, max_size=30))
def test_markdown_has_the_words_of_the_plain_text_whatever_the_nesting(pieces):
    page = decode_html(" ".join(pieces).encode())
    text = markdown(page)
    assert NOTE not in text
    assert MARK not in text
    assert words(text) == words(main_text(page.replace("&#3;", " ").replace(NOTE, "")))


@pytest.mark.skipif("ASSAY_TEST_DATA" not in os.environ, reason="ASSAY_TEST_DATA is not set")
def test_markdown_of_real_manuals_has_the_words_of_the_plain_text():
    path = os.path.join(os.environ["ASSAY_TEST_DATA"], "web", "html_docs.jsonl.gz")
    fewer = total = 0
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for page in (json.loads(line)["html"] for place, line in enumerate(lines) if place % 20 == 0):
            plain, marked = (Counter(re.findall(r"\w", text)) for text in (main_text(page), markdown(page)))
            fewer += (plain - marked).total()  # a number whose item was left out
            total += plain.total()
    assert fewer <= total / 10_000


@pytest.mark.parametrize(
    "inner",
    [
        "<table><tr><td>" * 5000,
        "<math>" + "<mrow>" * 20_000 + "x</math>",
        "<math><annotation " + "encoding=application/x-tex " * 20_000 + "</math>",
        "<pre><code>" * 10_000 + "</table>" * 10_000,
        "<ol reversed><li>" * 20_000 + "<b>" * 20_000,
    ],
    ids=["tables", "math", "annotation", "code", "lists"],
)
def test_deep_and_torn_elements_are_written_within_the_limits(inner):
    page = read_page(f"{PROSE}{inner}{PROSE}".encode(), way=Extraction(structure="markdown"))
    assert LONG in page.text


# --- extractors


def test_other_extractors_read_pages_in_the_same_process():
    page = article("<ul><li><a href=/x>menu</a></ul>").encode()
    pages = {name: read_page(page, way=Extraction(name)) for name in ("trafilatura", "resiliparse")}
    assert all(LONG in found.text and not found.fallback for found in pages.values())
    assert read_page(b"<nav>x</nav>", way=Extraction("trafilatura")).text == ""
    assert read_pages([(page, "")], Extraction(structure="markdown"))[0].text.startswith("# Title")


def test_a_user_with_many_pipes_reads_pages_too(monkeypatch):
    """Linux refuses to enlarge pipes beyond a user's bound for all of them (pipe(7))."""

    def refuse(pipe, command, size):
        raise PermissionError(1, "Operation not permitted")

    page_process.close()
    monkeypatch.setattr(page_process.fcntl, "fcntl", refuse)
    assert LONG in read_page(article("").encode()).text


def test_an_extractor_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(extraction, "find_spec", lambda name: None)
    (tmp_path / "a.html").write_text(PROSE)
    source = TextSource(type="text", name="a", licence="MIT", paths=("*.html",), extractor="trafilatura")
    first, *_ = find_source(source, tmp_path)
    with pytest.raises(ConfigError, match="pip install trafilatura"):
        first()
    with pytest.raises(ConfigError, match='set extractor = "assay"'):
        read_pages([(b"x", "")], source.extraction)
    assert page_process.read_page(PROSE.encode()).text == LONG


def test_settings_change_the_key_only_where_they_change_the_text(tmp_path):
    (tmp_path / "a.html").write_text(article(TABLE))
    plain = {"type": "text", "name": "a", "licence": "MIT", "paths": ("*.html",)}
    sources = [TextSource(**plain | more) for more in ({}, {"extractor": "assay"}, {"structure": "markdown"})]
    assert sources[0].model_dump() == sources[1].model_dump()
    assert not {"extractor", "structure"} & sources[0].model_dump().keys()
    made = [ingest((source,), IngestConfig(), tmp_path, Runtime(tmp_path / "root")) for source in sources]
    assert made[0].key == made[1].key != made[2].key
    assert made[0].digest != made[2].digest
    with pytest.raises(ValueError, match='needs extractor = "assay"'):
        TextSource(**plain, structure="markdown", extractor="resiliparse")


def grown_tree(draw, leaves):
    """A random tree in the form of `line_weights.json`, its nodes from the first root on."""
    bounds = st.sampled_from([-1.5, 0.0, 0.1, 2.0])
    nodes = [None]
    open_nodes = [0]
    for _ in range(leaves - 1):
        node = open_nodes.pop(draw(st.integers(0, len(open_nodes) - 1)))
        nodes[node] = (draw(st.integers(0, 4)), draw(bounds), len(nodes))
        open_nodes += [len(nodes), len(nodes) + 1]
        nodes += [None, None]
    return [node or (-1, draw(st.floats(-1, 1, width=32)), 0) for node in nodes]


def walk(nodes, row):
    node = 0
    while nodes[node][0] >= 0:
        node = nodes[node][2] + bool(row[nodes[node][0]] > np.float32(nodes[node][1]))
    return np.float64(np.float32(nodes[node][1]))


score_all = njit(lambda columns, count, trees: page_model.score_lines(columns, count, trees), error_model="numpy")


@settings(max_examples=30)
@given(st.data())
def test_all_tests_at_once_reach_the_leaf_that_a_walk_reaches(data):
    grown = [grown_tree(data.draw, data.draw(st.integers(1, 32))) for _ in range(data.draw(st.integers(1, 4)))]
    trees = {"roots": [], "features": [], "values": [], "children": []}
    for nodes in grown:
        trees["roots"].append(begin := len(trees["features"]))
        trees["features"] += [feature for feature, _, _ in nodes]
        trees["values"] += [value for _, value, _ in nodes]
        trees["children"] += [begin + child for _, _, child in nodes]
    chosen = np.random.default_rng(data.draw(st.integers(0, 9))).choice([-2, 0, 0.1, 1, 3, np.nan], size=(150, 5))
    found = chosen[: data.draw(st.integers(0, 150))].astype(np.float32)
    read = line_model.read_weights({"names": {}, "words": {}, "first": trees, "second": trees})
    expected = [sum((walk(nodes, row) for nodes in grown), np.float64(0)) for row in found]
    columns = np.zeros((5, -(-len(found) // VECTOR) * VECTOR), np.float32)
    columns[:, : len(found)] = found.T
    assert score_all(columns, len(found), read.first).tolist() == expected


def test_a_tree_with_more_leaves_than_bits_is_refused():
    deep = {"roots": [0], "features": [0, *[-1, 0] * 31, -1, -1], "values": [0.0] * 65, "children": [*range(1, 66)]}
    with pytest.raises(ValueError, match="33 leaves"):
        line_model.read_weights({"names": {}, "words": {}, "first": deep, "second": deep})
