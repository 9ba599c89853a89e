"""Decisions of the preset `fineweb` against those of datatrove's own chain, document by document."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.measures import rivals
from benchmarks.measures.corpora import mixed, write_jsonl
from benchmarks.measures.goals import Goal, figure

MAX_CHARACTERS = 60_000
MIN_CONFIDENCE = 0.65
"""Bounds of English, as in FineWeb."""


def rules(quick: bool) -> list[Goal]:
    """English documents and code, of the half of the corpora that the word splitter was not compared on.

    A second comparison gives our rules datatrove's own words. What differs then must be the one convention that is
    left: lines of blanks, which datatrove counts (`docs/data/clean.md`, "Presets").
    Price: at least 15 CPU-minutes, all datatrove's.
    """
    from data_pipeline.normalised_text import normalise

    documents = [{**row, "text": normalise(row["text"])} for row in mixed(1 << 40) if _held_back(row["id"])]
    documents = _english([row for row in documents if len(row["text"]) <= MAX_CHARACTERS])
    documents = documents[: 300 if quick else None]
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "decisions.jsonl"
        rivals.decisions(write_jsonl(Path(scratch) / "documents.jsonl", documents), made)
        theirs = [json.loads(line) for line in made.read_text(encoding="utf-8").splitlines()]
    removed = np.array([bool(row["reason"]) for row in theirs])
    ours = removed_by_rules(documents, [])
    on_their_words = removed_by_rules(documents, theirs)
    different = np.flatnonzero(on_their_words != removed)
    with_lines = removed_by_rules(documents, theirs, blanks=True)
    alone = f"datatrove alone {int(np.sum(ours & ~removed))}, Assay alone {int(np.sum(~ours & removed))}"
    return [
        Goal("rules.fineweb_agreement", float(np.mean(ours == removed)), 0.99, note=f"{len(documents)} documents"),
        figure("rules.fineweb_kept_by_both", int(np.sum(~ours & ~removed)), alone),
        Goal("rules.agreement_on_its_words", float(np.mean(on_their_words == removed)), 0.99),
        figure("rules.differences_by_lines_of_blanks", int(np.sum(with_lines[different] == removed[different]))),
        Goal("rules.unexplained_differences", int(np.sum(with_lines != removed)), 0, "<="),
    ]


def _held_back(name: str) -> bool:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 2 == 1


def _english(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from data_pipeline.filters.language import identify

    found = identify(pa.array([row["text"] for row in documents], pa.large_string()))
    sure = [
        code == "en" and confidence >= MIN_CONFIDENCE
        for code, confidence in zip(found.codes, found.confidences, strict=True)
    ]
    return [row for row, one in zip(documents, sure, strict=True) if one or row["id"].startswith("code.")]


def removed_by_rules(
    documents: list[dict[str, Any]], theirs: list[dict[str, Any]], blanks: bool = False
) -> npt.NDArray[np.bool_]:
    """Our removals, one boolean for each document; with `theirs`, by those words; with `blanks`, by those lines."""
    from data_pipeline.filters.clean import CleanConfig, measure, without_lines
    from data_pipeline.filters.quality_rules import judge, limits

    config = CleanConfig(presets=("fineweb",))
    whole = pa.array([row["text"] for row in documents], pa.large_string())
    left, _ = without_lines(config, whole)
    features = measure(config, left, ["en"] * len(documents), whole)
    for row, (document, text, counted) in enumerate(zip(documents, left.to_pylist(), theirs, strict=False)):
        for name, value in _features(document["text"], text, counted).items():
            features[name][row] = value
        if blanks:
            lines = re.split("\n+", document["text"])
            features["duplicate_line_share"][row] = 1 - len(set(lines)) / len(lines)
    reasons, _ = judge(features, [0] * len(documents), [limits(config.presets, False, "en")])
    return np.array([bool(reason) for reason in reasons]) | np.array([not text for text in left.to_pylist()])


def _features(text: str, left: str, counted: dict[str, Any]) -> dict[str, float]:
    """Our features from given words; `left` is the text after C4's step."""
    words = counted["words"]
    pieces = max(1, len(words))
    spoken = [word for word in words if not all(unicodedata.category(c)[0] in "PS" for c in word)]
    found = {
        "words": float(len(spoken)),
        "mean_word_length": sum(map(len, spoken)) / max(1, len(spoken)),
        "hash_ratio": text.count("#") / pieces,
        "ellipsis_ratio": (text.count("...") + text.count("…")) / pieces,
        "alphabetic_word_share": sum(any(map(str.isalpha, word)) for word in words) / pieces,
    }
    if "sentences" in counted:  # a text that reached C4's step
        found["sentences"] = float(counted["sentences"])
        found["newline_ratio"] = left.count("\n") / max(1, counted["words_left"])
    for n in range(2, 5):
        grams = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
        gram, count = grams.most_common(1)[0] if grams else ("", 0)
        found[f"top_{n}_gram_share"] = len(gram) * count / max(1, len(text)) if count > 1 else 0.0
    for n in range(5, 11):
        seen: set[str] = set()
        i = repeated = 0
        while i + n <= len(words):
            gram = "".join(words[i : i + n])
            repeated += len(gram) if gram in seen else 0
            i += n if gram in seen else 1
            seen.add(gram)
        found[f"duplicate_{n}_gram_share"] = repeated / max(1, len(text))
    return found
