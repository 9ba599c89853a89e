"""The page in a browser: one screen, two screens a reader, no cut-off table, contrast, requests, paper."""

import json
import random
import re
import shutil
import subprocess

import pytest

from governance.checks.bias.interval_rows import COLUMNS
from governance.files import append_line, write_json
from governance.reports.report import report
from governance.stage import Runtime
from tests.governance.test_reports_page import corpus, folder_of, ledger, manifest_of, shard, trained, verdict_of

NATIONS = [f"nation_{n}" for n in range(28)]
METRICS = {
    "impact": ("keep_ratio", "keep_ratio_adjusted"), "tone": ("sentiment_gap", "toxicity_ratio"),
    "association": ("npmi", "npmi_gap"), "instruments": ("instrument_bias",), "shares": ("share",),
}  # fmt: skip


def bias_rows():
    """As many rows as a corpus of four languages and ten axes has."""
    draw = random.Random(3)
    axes = {"nationality": NATIONS, **{f"axis_{n}": [f"group_{n}_{k}" for k in range(5)] for n in range(9)}}
    tables = {}
    for suite, metrics in METRICS.items():
        tables[suite] = []
        for metric in metrics:
            for language in ("(all)", "de", "en", "es"):
                for axis, names in axes.items():
                    for group in names:
                        ratio = "ratio" in metric
                        value = draw.gauss(1 if ratio else 0, 0.1)
                        q = draw.choice([None, 0.9, 0.001])
                        ends = (None, None) if q is None else (value - 0.1, value + 0.1)
                        tables[suite].append(dict.fromkeys(COLUMNS) | {
                            "metric": metric, "language": language, "axis": axis, "group": group, "p": q, "q": q,
                            "against": "career/career" if suite == "association" else "no group of the axis",
                            "stage": "(all)" if suite == "impact" else None, "value": value, "lower": ends[0],
                            "upper": ends[1], "n": draw.randrange(2, 4000)})  # fmt: skip
    return tables


def crowded(root):
    """A run with all that a page can hold: bias tables, languages, validation by source and language, a fault."""
    made = corpus(root)
    folder = folder_of(root, "bias")
    folder.mkdir(parents=True)
    write_json(folder / "tables.json", bias_rows())
    made["bias"] = manifest_of(root, "bias", [made["redact"].as_input()], {}, {}, [folder / "tables.json"])
    features = [{"language": f"l{n % 30}", "kept": n % 3 > 0, "bytes": n, "words": n} for n in range(3000)]
    files = [*made["clean"].files("removed", root), shard(root, "clean", "features", features)]
    clean = made["clean"]
    made["clean"] = manifest_of(root, "clean", clean.inputs, clean.stats, {}, files, clean.run["energy"])
    made["train"] = trained(root, made)
    record = root / made["train"].folder / "metrics.jsonl"
    for step in (200, 400, 600):
        groups = {name: {"loss": 5.0, "loss_stderr": 0.1, "bits_per_byte": 1.5 + step / 1000, "tokens": 999}
                  for name in ("one", "two", "three")}  # fmt: skip
        append_line(record, json.dumps({"event": "validation", "attempt": 2, "step": step, "loss": 5.0,
                                        "bits_per_byte": 1.6, "by_source": groups, "by_language": groups}))  # fmt: skip
    append_line(record, json.dumps({"event": "skipped", "attempt": 1, "step": 40, "reason": "spike", "z": 9.5}))
    ledger(root)
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("crowded")
    made = crowded(root)
    return root / report(made, verdict_of(made, "WAIVED"), root, Runtime(root)).folder


# The page itself runs no script; another page beside it looks into it.
LOOK = """<body style="margin:0"><iframe src="report.html" style="border:0;width:WIDTHpx;height:800px"></iframe><script>
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
function cut(page) {
  const found = []
  for (const element of page.body.querySelectorAll("*")) {
    if (element.closest("svg") || element.closest("thead") || element.matches(".skip")) continue
    if (element.closest("details:not([open]) > :not(summary)")) continue
    const box = element.getBoundingClientRect()
    if (box.right > WIDTH + 1) found.push(element.tagName + " " + element.textContent.slice(0, 40))
    if (element.tagName === "TABLE" && element.scrollWidth > element.parentElement.clientWidth + 1)
      found.push("table wider than its box: " + element.textContent.slice(0, 40))
  }
  return found.slice(0, 9)
}
frame.onload = () => {
  const page = frame.contentDocument, view = frame.contentWindow, faint = []
  const told = {
    scrolls: page.documentElement.scrollWidth, cut: cut(page),
    words: page.body.innerText.split(/\\s+/).filter(Boolean).length,
    front: page.querySelector("nav").getBoundingClientRect().top,
    readers: Object.fromEntries([...page.querySelectorAll("main > section")].map(s => [s.id, s.offsetHeight])),
    ground: view.getComputedStyle(page.body).backgroundColor,
  }
  const walk = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT)
  told.seen = 0
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement
    if (!walk.currentNode.data.trim() || ["TITLE", "STYLE"].includes(element.tagName.toUpperCase())) continue
    const own = element.closest("svg") ? view.getComputedStyle(element).fill : view.getComputedStyle(element).color
    const behind = element.closest("svg") ? view.getComputedStyle(element.parentElement.querySelector("rect")).fill
                                          : ground(element, view)
    const [low, high] = [light(own), light(behind)].sort((a, b) => a - b)
    const ratio = (high + 0.05) / (low + 0.05)
    told.seen += 1
    if (ratio < 4.5) faint.push(ratio.toFixed(2) + " " + walk.currentNode.data.trim().slice(0, 40))
  }
  told.faint = faint.slice(0, 9)
  for (const fold of page.querySelectorAll("details")) fold.open = true
  told.unfolded = cut(page)
  told.both = [...page.querySelectorAll(".rows > table")].filter(table => table.offsetHeight > 0).length
  document.body.innerHTML = "<pre>" + JSON.stringify(told).replace(/</g, " ") + "</pre>"
}
</script>"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    name = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)
    if name is None:
        pytest.skip("Chromium is not installed; .ci/run installs it")
    profile = tmp_path_factory.mktemp("profile")

    def run(*words):
        quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                 "--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-quic",
                 f"--user-data-dir={profile}", "--allow-file-access-from-files",
                 "--virtual-time-budget=20000")  # fmt: skip
        return subprocess.run([name, *quiet, *words], capture_output=True, text=True, check=True, timeout=120).stdout

    return run


@pytest.fixture(scope="module")
def look(root, browser):
    """What a browser sees of the page at a width: measured once."""
    seen = {}

    def at(width, dark=False):
        if (width, dark) not in seen:
            page = root / f"look-{width}-{dark}.html"
            page.write_text(LOOK.replace("WIDTH", str(width)), encoding="utf-8")
            scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
            dom = browser(f"--window-size={width + 20},1000", scheme, "--dump-dom", page.as_uri())
            told = re.search(r"<pre>(.*?)</pre>", dom, re.DOTALL)[1].replace("&gt;", ">").replace("&amp;", "&")
            seen[width, dark] = json.loads(told)
        return seen[width, dark]

    return at


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(320, False), (768, False), (1280, False), (1920, False), (1280, True)])
def test_nothing_is_cut_off_folded_or_unfolded_and_every_word_stands_out(look, width, dark):
    told = look(width, dark)
    assert told["seen"] > 5000
    assert told["ground"] == ("rgb(20, 23, 26)" if dark else "rgb(251, 250, 247)")
    assert told["scrolls"] <= width
    assert told["cut"] == []
    assert told["unfolded"] == []
    assert told["both"] == 0  # an unfolded table takes the place of its first rows
    assert told["faint"] == []


@pytest.mark.slow
def test_page_one_is_one_screen_and_a_reader_has_at_most_two(look):
    told = look(1280)
    assert told["front"] <= 800
    assert told["readers"].keys() == {"officer", "data", "engineer", "evidence"}
    assert all(height <= 1600 for height in told["readers"].values()), told["readers"]


@pytest.mark.slow
def test_at_most_four_thousand_words_are_open(look):
    assert 400 < look(1280)["words"] <= 4000


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
def test_on_paper_it_has_at_most_twelve_pages_and_an_annex_of_what_was_unfolded(root, browser, tmp_path):
    if shutil.which("pdftotext") is None:
        pytest.skip("poppler-utils is not installed")

    def printed(page):
        sheet = tmp_path / f"{page.stem}.pdf"
        browser(f"--print-to-pdf={sheet}", "--no-pdf-header-footer", page.as_uri())
        return subprocess.run(
            ["pdftotext", "-layout", str(sheet), "-"], capture_output=True, text=True, check=True
        ).stdout

    told = printed(root / "report.html")
    assert told.count("\f") <= 12
    first = told.split("\f")[0]
    for word in ("WAIVED", "licences.allowed", "kWh", "1 attempt failed"):
        assert word in first
    for word in ("not allowed, in the corpus", "Failed attempts, by cause", "last checkpoint"):
        assert word in told
    assert "Skip to the report" not in told
    assert "nation_27" not in told
    unfolded = root / "unfolded.html"
    text = (root / "report.html").read_text(encoding="utf-8")
    unfolded.write_text(text.replace("<details>", "<details open>"), encoding="utf-8")
    annex = printed(unfolded)
    assert annex.count("\f") > told.count("\f")
    assert "their SHA-256" in annex
