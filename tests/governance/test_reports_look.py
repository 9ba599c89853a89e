"""The page in a browser: one screen, two screens a reader, no cut-off table, contrast, requests, paper."""

import functools
import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from benchmarks.measures.governance.report_look import Browser, bias_rows
from governance.files import append_line, write_json
from governance.reports.html.markup import ROWS_SHOWN
from governance.reports.report import report
from governance.stage import Runtime
from tests.governance.test_reports_page import Page, corpus, folder_of, ledger, manifest_of, shard, trained, verdict_of


def crowded(root):
    """A run with all that a page can show: bias tables, languages, validation by source and language, a fault."""
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
    top = {"name": "aten::mm<int>", "calls": 4, "seconds": 0.25, "share": 0.5, "bytes": 0, "shapes": "[[8, 8]]"}
    window = {"attempt": 1, "first": 3, "step": 4, "time": "operators on the CPU", "seconds": 0.25, "top": [top]}
    append_line(record, json.dumps({"event": "profile", **window, "path": "train/x/profile/a.json.gz"}))
    ledger(root)
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("crowded")
    made = crowded(root)
    return root / report(made, verdict_of(made, "WAIVED"), root, Runtime(root)).folder


STILTED = re.compile(
    r"farthest|came to nothing|like with like|reckon|\bbeside|what is in it|middle (one|document)|found and cut|\bheed|"
    r"\bmend|unknown – unknown|\(all\)|not told",
    re.IGNORECASE,
)


def test_the_page_has_the_words_of_the_field(root):
    words = Page((root / "report.html").read_text(encoding="utf-8")).words
    assert [word for word in words if STILTED.search(word) and "beside this file" not in word] == []


class Tables(HTMLParser):
    """Rows of the body of each table that is open, and names of figures."""

    def __init__(self, text):
        super().__init__()
        self.folds, self.within, self.open, self.folded = 0, "", [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.folds += tag == "details"
        self.within = tag if tag in ("thead", "tbody") else self.within
        if tag == "table":
            self.folded += self.folds > 0
            self.open += [] if self.folds else [0]
        elif tag == "tr" and self.within == "tbody" and not self.folds:
            self.open[-1] += 1

    def handle_endtag(self, tag):
        self.folds -= tag == "details"


def test_every_open_table_has_at_most_ten_rows_and_two_to_spare(root):
    tables = Tables((root / "report.html").read_text(encoding="utf-8"))
    assert len(tables.open) >= 6
    assert tables.folded >= 10
    assert max(tables.open) <= ROWS_SHOWN + 2


def test_the_pictures_of_the_issue_are_there_by_name(root):
    text = (root / "report.html").read_text(encoding="utf-8")
    titles = {re.sub("<[^>]+>.*", "", title) for title in re.findall(r"<figcaption><b>(.*?)</b>", text)}
    assert titles >= {
        "Loss", "Validation loss by source", "Validation by language", "Throughput", "Utilisation", "Learning rate",
        "Gradient norm", "Energy by stage, all attempts", "Energy by phase",
        "Documents kept after each stage, by source", "Documents kept after each stage, by language",
        "Share kept by source", "Share kept by language",
    }, titles  # fmt: skip


def test_a_profile_is_a_folded_table_with_its_evidence(root):
    text = (root / "report.html").read_text(encoding="utf-8")
    fold = text[text.index("Profile of a step") :]
    part = fold[: fold.index("</details>")]
    assert "steps 3 to 4, attempt 1" in part
    assert "aten::mm&lt;int&gt;" in part
    assert re.search(r'aria-label="Evidence: E\d+', part)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    if browser.name is None:
        pytest.skip("Chromium is not installed; .ci/run installs it")
    return browser


@pytest.fixture(scope="module")
def look(root, browser):
    """The page as a browser lays it out at a width, measured once."""
    return functools.cache(lambda width, dark=False: browser.look(root, width, dark=dark))


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(320, False), (768, False), (1280, False), (1920, False), (1280, True)])
def test_nothing_is_cut_off_folded_or_unfolded_and_every_word_has_contrast(look, width, dark):
    output = look(width, dark)
    assert output["seen"] > 5000
    assert output["ground"] == ("rgb(20, 23, 26)" if dark else "rgb(251, 250, 247)")
    assert output["scrolls"] <= width
    assert output["cut"] == []
    assert output["unfolded"] == []
    assert output["both"] == 0  # an unfolded table replaces its first rows
    assert output["faint"] == []


@pytest.mark.slow
def test_page_one_is_one_screen_and_a_reader_has_at_most_two(look):
    output = look(1280)
    assert output["front"] <= 800
    assert output["readers"].keys() == {"officer", "data", "engineer", "evidence"}
    assert all(height <= 1600 for height in output["readers"].values()), output["readers"]


@pytest.mark.slow
def test_at_most_four_thousand_words_are_open(look):
    assert 400 < look(1280)["words"] <= 4000


@pytest.mark.slow
def test_a_browser_requests_nothing(root, browser, tmp_path):
    def asked(page):
        """Hosts that were requested, except those that the browser itself requests (updates, the time)."""
        log = tmp_path / f"{page.stem}.net"
        browser.run(f"--log-net-log={log}", "--dump-dom", page.as_uri())
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
        return browser.printed(page, tmp_path / f"{page.stem}.pdf")

    output = printed(root / "report.html")
    assert output.count("\f") <= 12
    first = output.split("\f")[0]
    for word in ("WAIVED", "licences.allowed", "kWh", "1 attempt failed"):
        assert word in first
    for word in ("not allowed, but in the corpus", "Failed attempts, by cause", "last checkpoint"):
        assert word in output
    assert "Skip to the report" not in output
    assert "nation_27" not in output
    unfolded = root / "unfolded.html"
    text = (root / "report.html").read_text(encoding="utf-8")
    unfolded.write_text(text.replace("<details>", "<details open>"), encoding="utf-8")
    annex = printed(unfolded)
    assert annex.count("\f") > output.count("\f")
    assert "artifact digest" in annex
