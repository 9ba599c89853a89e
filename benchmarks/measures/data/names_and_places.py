"""Names and places by a trained model, on planted truth: recall, precision and speed."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from benchmarks.measures import rivals
from benchmarks.measures.corpora import rows, text_bytes
from benchmarks.measures.goals import Goal, cpu_seconds, figure
from data_pipeline.pii.detections import Detection

_MEANT = {"PERSON": "name", "GPE": "place"}
_RIGHT = {"name": {"PERSON"}, "place": {"GPE", "STREET_ADDRESS"}}
"""Types of the truth that a finding may overlap."""


def names_and_places(quick: bool) -> list[Goal]:
    """The finder with spaCy's small English pipeline, by language of the text.

    Precision is measured on the set whose truth has every name and place.
    """
    from data_pipeline.pii.entities.entity_finder import open_finder
    from data_pipeline.pii.entities.finder_settings import FinderConfig

    if find_spec("presidio_analyzer") is None:
        print("# names_and_places skipped: presidio-analyzer is not installed (the extra `presidio`)")
        return []
    try:
        path = rivals.spacy_english()
    except subprocess.CalledProcessError:
        print("# names_and_places skipped: the package index has no pipeline of spaCy, or cannot be reached")
        return []
    find = open_finder(FinderConfig(kind="presidio", path=str(path)), path)
    find(["Loaded."])
    made = []
    for name in ("presidio_synth_v2", "planted_mini"):
        documents = list(rows(f"pii/{name}.jsonl.gz"))[: 300 if quick else None]
        started = cpu_seconds()
        found = find([row["text"] for row in documents])
        spent = cpu_seconds() - started
        label, counts = f"names.{name}", _counted(documents, found)
        for kind, language in sorted({key[:2] for key in counts if key[2] == "planted"}):
            planted = counts[kind, language, "planted"]
            recall = counts[kind, language, "found"] / planted
            made.append(figure(f"{label}.recall.{kind}.{language}", recall, f"{planted} planted"))
        if name == "presidio_synth_v2":
            for kind in _RIGHT:
                every = sum(mark.type == kind for marks in found for mark in marks)
                made.append(figure(f"{label}.precision.{kind}", counts[kind, "", "right"] / every, f"{every} found"))
        made.append(figure(f"{label}.documents_a_core_second", len(documents) / spent))
        made.append(figure(f"{label}.mb_a_core_second", text_bytes(documents) / 1e6 / spent))
    return made


def _counted(
    documents: Sequence[dict[str, Any]], found: Sequence[Sequence[Detection]]
) -> Counter[tuple[str, str, str]]:
    """Counts by type, language and fact.

    A planted value is found when its type covers all its letters and digits.
    """
    counts: Counter[tuple[str, str, str]] = Counter()
    for row, marks in zip(documents, found, strict=True):
        text = row["text"]
        for span in row["spans"]:
            if kind := _MEANT.get(span["type"]):
                held = {place for mark in marks if mark.type == kind for place in range(mark.start, mark.end)}
                whole = all(place in held for place in range(span["start"], span["end"]) if text[place].isalnum())
                counts[kind, row["lang"], "planted"] += 1
                counts[kind, row["lang"], "found"] += whole
        for mark in marks:
            over = {span["type"] for span in row["spans"] if span["start"] < mark.end and mark.start < span["end"]}
            counts[mark.type, "", "right"] += bool(over & _RIGHT[mark.type])
    return counts
