"""Code and tables of real pages in the Markdown of `structure = "markdown"`, against the pages' own elements.

The truth is read from the source with lxml, which the extractor does not use: the text of each `pre`, and the cells of
each table of two rows of two cells that holds no table, `pre` or heading, outside of navigation. What is found is read
back from the Markdown: fences and lines of pipes. A page's score is the edit similarity of all its code (all its
tables) in one text, 1 less the Levenshtein distance over the longer one's length, as WebMainBench scores them; a page
without any is left out.
"""

from __future__ import annotations

import re
import statistics

import numpy as np
from lxml import html as lxml_html

from benchmarks.measures.corpora import rows
from benchmarks.measures.goals import Goal, figure

_EVERY = 6  # pages of html_docs, so that all of them are a minute
_LONGEST = 20_000
_FENCE = re.compile(r"^(`{3,})[^`\n]*\n(.*?)\n\1$", re.MULTILINE | re.DOTALL)
_CELL = re.compile(r"(?<!\\)\|")


def similarity(one: str, other: str) -> float:
    """1 - distance / longer length, over characters."""
    a, b = (np.frombuffer(text.encode("utf-32-le"), np.uint32) for text in (one, other))
    if not len(a) or not len(b):
        return float(len(a) == len(b))
    steps = np.arange(len(b) + 1)
    row = steps.copy()
    for place, letter in enumerate(a, 1):
        best = np.minimum(row[1:] + 1, row[:-1] + (b != letter))
        row = np.minimum.accumulate(np.concatenate(([place], best)) - steps) + steps
    return 1 - int(row[-1]) / max(len(a), len(b))


def of_source(page: str) -> tuple[str, str]:
    """Code and tables of a page's source."""
    tree = lxml_html.document_fromstring(page.encode("utf-8"), parser=lxml_html.HTMLParser(encoding="utf-8"))
    for hidden in tree.xpath("//script|//style|//nav|//footer|//*[starts-with(@class, 'nav')]"):
        hidden.drop_tree()
    code = [element.text_content().strip("\n") for element in tree.iter("pre")]
    tables = []
    for table in tree.iter("table"):
        cells = [[" ".join(cell.text_content().split()) for cell in row.xpath("./td|./th")] for row in table.iter("tr")]
        if sum(len(row) > 1 for row in cells) > 1 and not table.xpath(".//table|.//pre|.//h1|.//h2|.//h3|.//h4"):
            tables.append("\n".join("|".join(row) for row in cells if any(row)))
    return "\n".join(filter(None, code)), "\n".join(tables)


def of_markdown(text: str) -> tuple[str, str]:
    """Code and tables of a Markdown text."""
    code = [found[2] for found in _FENCE.finditer(text)]
    table = [line for line in _FENCE.sub("", text).split("\n") if line.startswith("| ")]
    cells = [[cell.strip().replace("\\|", "|") for cell in _CELL.split(line)[1:-1]] for line in table]
    return "\n".join(code), "\n".join("|".join(row).replace("`", "") for row in cells if set(row) != {"---"})


def kept_structure() -> list[Goal]:
    """Code and tables of documentation pages, Assay's and, as figures, trafilatura's."""
    import trafilatura

    from data_pipeline.readers.html import extract
    from data_pipeline.readers.pages.extraction import Extraction

    way = Extraction(structure="markdown")
    found: list[Goal] = []
    scores: dict[tuple[str, str], list[float]] = {}
    for place, row in enumerate(rows("web/html_docs.jsonl.gz")):
        if place % _EVERY:
            continue
        page = row["html"]
        truth = of_source(page)
        texts = {
            "assay": extract(page.encode("utf-8"), way=way).text,
            "trafilatura": trafilatura.extract(page, output_format="markdown") or "",
        }
        for name, text in texts.items():
            for kind, want, got in zip(("code", "table"), truth, of_markdown(text), strict=True):
                if 0 < len(want) <= _LONGEST:
                    scores.setdefault((name, kind), []).append(similarity(want, got[: 2 * _LONGEST]))
    for (name, kind), values in sorted(scores.items()):
        label, note = f"html.structure.{name}.{kind}", f"{len(values)} pages"
        mean = statistics.mean(values)
        goal = {"code": 0.5, "table": 0.4}[kind]
        found.append(Goal(label, mean, goal, note=note) if name == "assay" else figure(label, mean, note))
    return found
