"""The report as its readers see it: a screen, two screens a reader, words, paper, tables that are cut off.

Headless Chromium renders it. The page itself runs no script; another page inspects it through a frame.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measures.goals import Goal
from governance.checks.bias.interval_rows import COLUMNS
from governance.files import write_json
from governance.manifest import Manifest, describe, write_manifest

WIDTHS = (320, 768, 1280, 1920)
SCREEN = 800
"""Height of a screen that is 1,280 wide."""
NATIONS = [f"nation_{n}" for n in range(28)]
METRICS = {
    "impact": ("keep_ratio", "keep_ratio_adjusted"), "tone": ("sentiment_gap", "toxicity_ratio"),
    "association": ("npmi", "npmi_gap"), "instruments": ("instrument_bias",), "shares": ("share",),
}  # fmt: skip

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
    if (element.parentElement.matches("td") && getComputedStyle(element.parentElement).display === "grid"
        && element.textContent.length > 40 && box.width < 140 && box.height > 0)
      found.push("squeezed: " + element.textContent.slice(0, 40))
    if (element.tagName === "TABLE" && element.scrollWidth > element.parentElement.clientWidth + 1)
      found.push("table wider than its box: " + element.textContent.slice(0, 40))
  }
  return found.slice(0, 9)
}
frame.onload = () => {
  const page = frame.contentDocument, view = frame.contentWindow, faint = []
  const layout = {
    scrolls: page.documentElement.scrollWidth, height: page.documentElement.scrollHeight, cut: cut(page),
    words: page.body.innerText.split(/\\s+/).filter(Boolean).length,
    front: page.querySelector("nav").getBoundingClientRect().top,
    readers: Object.fromEntries([...page.querySelectorAll("main > section")].map(s => [s.id, s.offsetHeight])),
    ground: view.getComputedStyle(page.body).backgroundColor,
  }
  const walk = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT)
  layout.seen = 0
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement
    if (!walk.currentNode.data.trim() || ["TITLE", "STYLE"].includes(element.tagName.toUpperCase())) continue
    const own = element.closest("svg") ? view.getComputedStyle(element).fill : view.getComputedStyle(element).color
    const behind = element.closest("svg") ? view.getComputedStyle(element.parentElement.querySelector("rect")).fill
                                          : ground(element, view)
    const [low, high] = [light(own), light(behind)].sort((a, b) => a - b)
    const ratio = (high + 0.05) / (low + 0.05)
    layout.seen += 1
    if (ratio < 4.5) faint.push(ratio.toFixed(2) + " " + walk.currentNode.data.trim().slice(0, 40))
  }
  layout.faint = faint.slice(0, 9)
  for (const fold of page.querySelectorAll("details")) fold.open = true
  layout.unfolded = cut(page)
  layout.both = [...page.querySelectorAll(".rows > table")].filter(table => table.offsetHeight > 0).length
  document.body.innerHTML = "<pre>" + JSON.stringify(layout).replace(/</g, " ") + "</pre>"
}
</script>"""


class Browser:
    """Headless Chromium with a profile of its own, asking nobody for anything."""

    def __init__(self, profile: Path) -> None:
        names = ("chromium", "chromium-browser", "google-chrome")
        self.name = next(filter(shutil.which, names), None)
        self.profile = profile

    def run(self, *words: str) -> str:
        """Output of the browser."""
        if self.name is None:
            raise FileNotFoundError("Chromium is not installed (on Debian: apt-get install chromium)")
        quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                 "--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-quic",
                 f"--user-data-dir={self.profile}", "--allow-file-access-from-files",
                 "--virtual-time-budget=20000")  # fmt: skip
        done = subprocess.run([self.name, *quiet, *words], capture_output=True, text=True, check=True, timeout=120)
        return done.stdout

    def look(self, folder: Path, width: int, *, dark: bool = False) -> dict[str, Any]:
        """Layout of `folder`/report.html at a width: words, heights, what is cut off, what is faint."""
        page = folder / f"look-{width}-{dark}.html"
        page.write_text(LOOK.replace("WIDTH", str(width)), encoding="utf-8")
        scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        dom = self.run(f"--window-size={width + 20},1000", scheme, "--dump-dom", page.as_uri())
        layout = re.findall(r"<pre>(.*?)</pre>", dom, re.DOTALL)[0].replace("&gt;", ">").replace("&amp;", "&")
        return dict(json.loads(layout))

    def printed(self, page: Path, sheet: Path) -> str:
        """The text of a page on A4, a form feed after each sheet."""
        self.run(f"--print-to-pdf={sheet}", "--no-pdf-header-footer", page.as_uri())
        words = ["pdftotext", "-layout", str(sheet), "-"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def bias_rows() -> dict[str, list[dict[str, Any]]]:
    """As many rows as a corpus of four languages and ten axes has."""
    draw = random.Random(3)
    axes = {"nationality": NATIONS, **{f"axis_{n}": [f"group_{n}_{k}" for k in range(5)] for n in range(9)}}
    tables: dict[str, list[dict[str, Any]]] = {}
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


def page(quick: bool) -> list[Goal]:
    """Page one, the readers' sections, words, sheets and cut-off tables of a large run with a full bias audit."""
    from benchmarks.measures.governance.report_speed import root_of_a_large_run
    from data_pipeline.pii.detect import replace_all
    from governance.reports.report import report
    from governance.stage import Runtime

    with tempfile.TemporaryDirectory() as folder:
        root, browser = Path(folder) / "large", Browser(Path(folder) / "profile")
        root.mkdir()
        artifacts, verdict = root_of_a_large_run(root, 20 if quick else 100)
        artifacts["bias"] = _bias(root, artifacts["redact"])
        made = root / report(artifacts, verdict, root, Runtime(root), replace_all).folder
        seen = {width: browser.look(made, width) for width in WIDTHS}
        sheets = browser.printed(made / "report.html", Path(folder) / "report.pdf").count("\f")
    readers = seen[1280]["readers"]
    cut = sum(len(layout["cut"]) + len(layout["unfolded"]) for layout in seen.values())
    return [
        Goal("page.screens_of_page_one", seen[1280]["front"] / SCREEN, 1, "<=", "1,280 x 800"),
        Goal(
            "page.screens_of_a_reader",
            max(readers.values()) / SCREEN,
            2,
            "<=",
            ", ".join(f"{name} {height}" for name, height in readers.items()),
        ),
        Goal("page.words", seen[1280]["words"], 4000, "<=", "before anything is unfolded"),
        Goal("page.sheets", sheets, 12, "<=", "A4"),
        Goal("page.cut_off", cut, 0, "<=", "tables and boxes at 320, 768, 1280, 1920, folded and unfolded"),
    ]


def _bias(root: Path, documents: Manifest) -> Manifest:
    folder = root / "bias" / ("b" * 16)
    folder.mkdir(parents=True)
    write_json(folder / "tables.json", bias_rows())
    made = Manifest(stage="bias", version=1, key="b" * 64, config={}, inputs=(documents.as_input(),), stats={},
                    outputs=(describe(folder / "tables.json", root),), run={})  # fmt: skip
    write_manifest(made, root)
    return made
