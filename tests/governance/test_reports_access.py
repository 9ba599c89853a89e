"""The page without eyes, mouse or network: evidence, headings, keyboard; in a browser its widths and contrast."""

import itertools
import json
import re
import shutil
import subprocess

import pytest

from governance.files import append_line
from governance.reports.report import report
from governance.stage import Runtime
from tests.governance.test_reports_page import VOID, Page, corpus, ledger, trained, verdict_of

ROWS = {"tr", "dd", "figure", "h3", "h4", "p", "li"}
UNCITED = {"style", "title", "thead", "nav", "footer", "caption"}
DIGIT = re.compile(r"\d")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    made = corpus(root)
    made["train"] = trained(root, made)
    ledger(root)
    line = {"event": "skipped", "attempt": 1, "step": 40, "reason": "spike", "z": 9.5, "loss": 20.25}
    append_line(root / made["train"].folder / "metrics.jsonl", json.dumps(line))
    return root / report(made, verdict_of(made, "WAIVED"), root, Runtime(root)).folder


@pytest.fixture(scope="module")
def text(root):
    return (root / "report.html").read_text(encoding="utf-8")


class Outline(Page):
    """Every text with what it stands in: (element, attributes, serial number) from the outside in."""

    def __init__(self, text):
        self.way, self.texts, self.cited, self.count = [], [], set(), 0
        super().__init__(text)

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        if tag not in VOID:
            self.count += 1
            self.way.append((tag, dict(attrs), self.count))
        if tag == "a" and dict(attrs).get("class") == "ev":
            self.cited |= {serial for _, _, serial in self.way}

    def handle_endtag(self, tag):
        super().handle_endtag(tag)
        self.way.pop()

    def handle_data(self, data):
        super().handle_data(data)
        self.texts.append((data.strip(), list(self.way)))


def test_every_number_leads_to_its_evidence(text):
    outline = Outline(text)
    by_row = by_section = 0
    for words, way in outline.texts:
        names = [name for name, _, _ in way]
        if not DIGIT.search(words) or UNCITED & set(names) or "body" not in names:
            continue
        if any(attributes.get("id") == "evidence" or attributes.get("class") == "ev" for _, attributes, _ in way):
            continue
        rows = [serial for name, _, serial in way if name in ROWS]
        sections = [serial for name, _, serial in way if name in ("section", "header")]
        if set(rows) & outline.cited:
            by_row += 1
        else:
            assert "tr" not in names, words
            assert set(sections) & outline.cited, (words, names)
            by_section += 1
    assert by_row > 2 * by_section


def test_each_piece_of_evidence_is_listed_with_its_digest(text, root):
    entries = json.loads((root / "report.json").read_bytes())["evidence"]["entries"]
    page = Page(text)
    ids = {attributes.get("id") for _, attributes in page.tags}
    for entry in entries:
        assert entry["id"] in ids
        assert entry["sha256"] is None or entry["sha256"] in text
    linked = {attributes["href"] for attributes in page.named("a") if attributes.get("class") == "ev"}
    assert linked <= {f"#{name}" for name in ids}
    assert len(linked) > 10


def test_headings_go_down_by_one_and_all_that_scrolls_takes_the_focus(text):
    page = Page(text)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))
    [skip] = [attributes for attributes in page.named("a") if attributes.get("class") == "skip"]
    [main] = page.named("main")
    assert skip["href"] == f"#{main['id']}"
    assert main["tabindex"] == "-1"
    first = next(attributes for tag, attributes in page.tags if tag in ("a", "button", "input"))
    assert first == skip
    assert not [attributes for _, attributes in page.tags if int(attributes.get("tabindex", 0)) > 0]
    graph = next(attributes for attributes in page.named("svg") if attributes.get("class") == "graph")
    assert graph["aria-label"].startswith("Lineage: ")
    assert "The same in words" in page.words


def test_the_first_page_has_verdict_waivers_energy_and_the_largest_problem(text):
    head = re.search(r"<header>.*?</header>", text, re.DOTALL)[0]
    words = " ".join(Page(head).words)
    order = [words.index(word) for word in ("WAIVED", "Waivers: 1", "1 failure", "3.06 kJ", "1 attempt failed")]
    assert order == sorted(order)
    assert "1.02 kJ to 6.12 kJ; method: estimated: TDP x utilisation" in words


# In a browser. The page itself runs no script; another page beside it looks into it.
LOOK = """<body style="margin:0"><iframe src="report.html" style="border:0;width:WIDTHpx;height:900px"></iframe><script>
const frame = document.querySelector("iframe")
function parts(colour) { return colour.match(/[\\d.]+/g).map(Number) }
function light(colour) {
  const [r, g, b] = parts(colour).map(v => v / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  return 0.2126 * r + 0.7152 * g + 0.0722 * b
}
function ground(element, view) {
  for (let at = element; at; at = at.parentElement) {
    const colour = parts(view.getComputedStyle(at).backgroundColor)
    if (colour.length === 3 || colour[3] === 1) return view.getComputedStyle(at).backgroundColor
  }
  return "rgb(255, 255, 255)"
}
frame.onload = () => {
  const page = frame.contentDocument, view = frame.contentWindow, wide = [], faint = []
  for (const element of page.body.querySelectorAll("*")) {
    if (element.closest(".scroll") && !element.matches(".scroll")) continue
    if (element.closest("svg") || element.matches(".skip")) continue
    if (element.getBoundingClientRect().right > WIDTH + 1) wide.push(element.tagName + element.textContent.slice(0, 40))
  }
  const walk = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT)
  let seen = 0
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement
    if (!walk.currentNode.data.trim() || ["TITLE", "STYLE"].includes(element.tagName.toUpperCase())) continue
    const own = element.closest("svg") ? view.getComputedStyle(element).fill : view.getComputedStyle(element).color
    const behind = element.closest("svg") ? view.getComputedStyle(element.parentElement.querySelector("rect")).fill
                                          : ground(element, view)
    const [low, high] = [light(own), light(behind)].sort((a, b) => a - b)
    const ratio = (high + 0.05) / (low + 0.05)
    seen += 1
    if (ratio < 4.5) faint.push(ratio.toFixed(2) + " " + walk.currentNode.data.trim().slice(0, 40))
  }
  const told = {scrolls: page.documentElement.scrollWidth, wide: wide.slice(0, 9), faint: faint.slice(0, 9), seen,
                ground: view.getComputedStyle(page.body).backgroundColor}
  document.body.innerHTML = "<pre>" + JSON.stringify(told).replace(/</g, " ") + "</pre>"
}
</script>"""


@pytest.fixture(scope="module")
def browser(root, tmp_path_factory):
    name = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)
    if name is None:
        pytest.skip("Chromium is not installed; .ci/run installs it")
    profile = tmp_path_factory.mktemp("profile")

    def run(*words):
        quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                 "--disable-component-update", "--disable-sync", "--disable-default-apps", f"--user-data-dir={profile}",
                 "--allow-file-access-from-files", "--virtual-time-budget=5000")  # fmt: skip
        return subprocess.run([name, *quiet, *words], capture_output=True, text=True, check=True, timeout=60).stdout

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (320, False), (1280, True)])
def test_nothing_is_cut_off_and_every_word_stands_out_in_a_browser(root, browser, width, dark):
    page = root / f"look-{width}-{dark}.html"
    page.write_text(LOOK.replace("WIDTH", str(width)), encoding="utf-8")
    scheme = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    dom = browser("--window-size=1300,1000", *scheme, "--dump-dom", page.as_uri())
    told = json.loads(re.search(r"<pre>(.*?)</pre>", dom, re.DOTALL)[1].replace("&gt;", ">").replace("&amp;", "&"))
    assert told["seen"] > 500
    assert told["ground"] == ("rgb(20, 23, 26)" if dark else "rgb(251, 250, 247)")
    assert told["scrolls"] <= width
    assert told["wide"] == []
    assert told["faint"] == []


@pytest.mark.slow
def test_a_browser_asks_nobody_for_anything(root, browser, tmp_path):
    def asked(page):
        """Hosts that were asked, but for those that the browser asks for itself (updates, the time)."""
        log = tmp_path / f"{page.stem}.net"
        browser(f"--log-net-log={log}", "--dump-dom", page.as_uri())
        hosts = set(re.findall(r'"url":"(?:https?|wss?|ftp)://([^/":]*)', log.read_text(errors="replace")))
        return {host for host in hosts if not host.endswith((".google.com", ".googleapis.com", ".gvt1.com"))}

    loud = tmp_path / "loud.html"
    loud.write_text('<img src="http://192.0.2.1/x.png">', encoding="utf-8")
    assert asked(loud) == {"192.0.2.1"}
    assert asked(root / "report.html") == set()


@pytest.mark.slow
def test_on_paper_all_of_it_is_there(root, browser, tmp_path):
    if shutil.which("pdftotext") is None:
        pytest.skip("poppler-utils is not installed")
    sheet = tmp_path / "report.pdf"
    browser(f"--print-to-pdf={sheet}", "--no-pdf-header-footer", (root / "report.html").as_uri())
    told = subprocess.run(["pdftotext", "-layout", str(sheet), "-"], capture_output=True, text=True, check=True).stdout
    first = told.split("\f")[0]
    for word in ("WAIVED", "1 failure waived", "3.06 kJ"):
        assert word in first
    for word in (
        "refused: licence",
        "energy wasted by the cause",
        "last checkpoint",
        "SHA-256 of them",
    ):
        assert word in told
    assert "Skip to the report" not in told
