"""The page without sight or mouse: links to the evidence, headings, keyboard."""

import itertools
import json
import re

import pytest

from governance.files import append_line
from governance.reports.report import report
from governance.stage import Runtime
from tests.governance.test_reports_page import VOID, Page, corpus, ledger, trained, verdict_of

BLOCKS = {"table", "figure", "dl", "p", "article", "div", "section", "header", "details"}
UNCITED = {"style", "title", "thead", "nav", "footer", "caption", "summary"}
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
    """Every text with its enclosing elements: (element, attributes, serial number) from the outside in."""

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
    checked = 0
    for words, way in outline.texts:
        names = [name for name, _, _ in way]
        if not DIGIT.search(words) or UNCITED & set(names) or "body" not in names:
            continue
        if any(attributes.get("id") == "evidence" or attributes.get("class") == "ev" for _, attributes, _ in way):
            continue
        blocks = {serial for name, _, serial in way if name in BLOCKS}
        tables = {serial for name, _, serial in way if name == "table"}
        assert (tables or blocks) & outline.cited, (words, names)
        checked += 1
    assert checked > 200


def test_a_table_has_one_mark_and_it_names_pieces_that_are_listed(text, root):
    entries = json.loads((root / "report.json").read_bytes())["evidence"]["entries"]
    page = Page(text)
    ids = {attributes.get("id") for _, attributes in page.tags}
    for entry in entries:
        assert entry["id"] in ids
        assert entry["sha256"] is None or entry["sha256"] in text
    marks = [attributes for attributes in page.named("a") if attributes.get("class") == "ev"]
    assert {mark["href"][1:] for mark in marks} <= ids
    named = {name for mark in marks for name in re.findall(r"\bE\d+", mark["title"].partition(" (")[0])}
    assert named <= {entry["id"] for entry in entries}
    assert len(named) > len(entries) / 2
    for table in re.findall(r"<table.*?</table>", text, re.DOTALL):
        assert table.count('class="ev"') == (0 if "bytes read" in table else 1)
    assert len(marks) < 90


def test_headings_go_down_by_one_and_the_keyboard_starts_at_the_skip_link(text):
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
    assert "Artifacts and their inputs" in page.words
