"""Decisions from HTML page to kept document: the preset `fineweb` against datatrove's example `fineweb.py`.

The pages are those of `debian_pages`. Ours are read by `ingest` (`extractor = "trafilatura"`) and judged by `clean`.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.measures import rivals
from benchmarks.measures.corpora import documents_of
from benchmarks.measures.data.data_rules import MIN_CONFIDENCE, removed_by_rules
from benchmarks.measures.data.debian_pages import PAGES, pages
from benchmarks.measures.goals import Goal, figure

SLICE = 2_500
"""Pages of a task of datatrove: its trafilatura forgets the paragraphs of earlier pages between tasks."""


class OwnPage(NamedTuple):
    """Our decision on a page."""

    reason: str
    """Empty if it stays, "no_text" where trafilatura finds none."""
    text: str
    english: bool


def example(quick: bool) -> list[Goal]:
    """Agreement on 20,000 pages, by decision, and the reasons of the differences.

    A difference has the first reason that, taken away, makes both sides agree. datatrove takes "The" for no stop word,
    and the first n-gram for the most frequent where none occurs twice.
    Price: eight minutes of a core, most of them datatrove's, and 1 GB of downloads.
    """
    if not (place := os.environ.get("ASSAY_PAGES")):
        print("# truth_fineweb: skipped; name a folder for Debian's pages: ASSAY_PAGES=... (1 GB of downloads by apt)")
        return []
    files = pages(Path(place), 300 if quick else PAGES)
    with tempfile.TemporaryDirectory() as scratch:
        ours = own_decisions(files, Path(scratch))
        theirs = rivals.fineweb_example(write_pages(files, Path(scratch)), SLICE)
    return goals([ours[row["id"]] for row in theirs], theirs)


def write_pages(files: list[Path], folder: Path) -> Path:
    """Pages in characters, an object per line: both sides read what `decode_html` gives."""
    from data_pipeline.readers.html import decode_html

    written = folder / "pages.jsonl"
    with written.open("w", encoding="utf-8") as made:
        for file in files:
            made.write(json.dumps({"id": _name(file), "html": decode_html(file.read_bytes())}) + "\n")
    return written


def own_decisions(files: list[Path], folder: Path) -> dict[str, OwnPage]:
    """Our decision on each page, by its name."""
    import pyarrow.parquet as pq

    from data_pipeline.filters.clean import CleanConfig, clean
    from data_pipeline.ingest import IngestConfig, ingest
    from data_pipeline.normalised_text import normalise
    from data_pipeline.readers.sources import TextSource
    from governance.stage import Runtime

    patterns = sorted({f"{file.parent}/*.html" for file in files})
    source = TextSource(
        type="text", name="debian", paths=tuple(patterns), licence="LicenseRef-several", extractor="trafilatura"
    )
    runtime = Runtime(folder / "root")
    read = ingest((source,), IngestConfig(), folder, runtime)
    config = CleanConfig(presets=("fineweb",), languages=("en",), min_language_confidence=MIN_CONFIDENCE)
    judged = clean(read, config, runtime)
    texts = {_name(Path(row["id"].partition("#")[0])): row["text"] for row in documents_of(read, runtime.root)}
    found = {_name(file): OwnPage("no_text", "", False) for file in files}
    for path in judged.files("features", runtime.root):
        for row in pq.read_table(path, columns=["id", "language", "reason"]).to_pylist():
            name = _name(Path(row["id"].partition("#")[0]))
            found[name] = OwnPage(row["reason"], normalise(texts[name]), row["language"] == "en")
    return found


def goals(ours: list[OwnPage], theirs: list[dict[str, Any]]) -> list[Goal]:
    """Agreement over all pages, by decision, and what explains each difference."""
    from data_pipeline.normalised_text import normalise

    plain = [normalise(row["text_alone"]) for row in theirs]
    own = np.array([bool(page.reason) for page in ours])
    example_ = np.array([bool(row["reason"]) for row in theirs])
    spoken = np.array([row["english_alone"] and bool(text) for row, text in zip(theirs, plain, strict=True)])
    english = np.array([page.english for page in ours])
    alone = ~spoken | np.array([bool(row.get("reason_alone")) for row in theirs])
    same_text = np.array([page.text == text for page, text in zip(ours, plain, strict=True)])
    rules = np.flatnonzero(spoken & english)
    documents = [{"id": theirs[row]["id"], "text": plain[row]} for row in rules]
    counted = [theirs[row] for row in rules]
    on_words, with_blanks = own.copy(), own.copy()
    on_words[rules] = removed_by_rules(documents, counted)
    with_blanks[rules] = removed_by_rules(documents, counted, blanks=True)

    reasons = (
        ("repeated_paragraphs", own == alone),
        ("text", ~same_text),
        ("language", spoken != english),
        ("words", on_words == alone),
        ("lines_of_blanks", with_blanks == alone),
        ("capitals_of_stop_words", np.array([row.get("reason_alone") == "gopher_enough_stop_words" for row in theirs])),
        ("n_grams_that_occur_once", np.array([_once(row) for row in theirs])),
    )
    different = np.flatnonzero(own != example_)
    explained = Counter(next((name for name, holds in reasons if holds[row]), "none") for row in different)
    texts = np.array([bool(text) for text in plain])
    alone_note = f"datatrove alone keeps {int(np.sum(own & ~example_))}, Assay alone {int(np.sum(~own & example_))}"
    return [
        Goal("example.agreement", float(np.mean(own == example_)), 0.99, note=f"{len(ours)} pages"),
        figure("example.kept_by_both", int(np.sum(~own & ~example_)), alone_note),
        figure("example.agreement_without_removed_paragraphs", float(np.mean(own == alone))),
        figure("example.same_text", float(np.mean(same_text)), "without removed paragraphs"),
        figure("example.language_agreement", float(np.mean((spoken == english)[texts])), f"{int(texts.sum())} texts"),
        figure("example.rules_agreement", float(np.mean(own[rules] == alone[rules])), f"{len(rules)} English texts"),
        Goal("example.rules_agreement_on_its_words", float(np.mean(on_words[rules] == alone[rules])), 0.99),
        *(figure(f"example.differences_by_{name}", explained[name]) for name, _ in reasons),
        Goal("example.unexplained_differences", explained["none"], 0, "<="),
    ]


def _once(row: dict[str, Any]) -> bool:
    """Return whether datatrove removed a page for its most frequent n-gram, and none of that length repeats.

    Gopher's rule is about repetition (arXiv:2112.11446, table A1).
    """
    found = re.fullmatch(r"top_(\d)_gram", str(row.get("reason_alone")))
    if found is None:
        return False
    words, length = row["words"], int(found[1])
    grams = [tuple(words[first : first + length]) for first in range(len(words) - length + 1)]
    return len(set(grams)) == len(grams)


def _name(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"
