"""Training of the weights of `data_pipeline/readers/line_model.py` from labelled pages.

    python -m benchmarks.measures.data.line_weights pages.jsonl --to data_pipeline/readers/line_weights.json

A line of `pages.jsonl` is a page: `html`; `site` (pages of one site are in one fold); `texts`, the main text by hand or
by extractors; `weight`; and `with` and `without`, sentences that must be kept and that must go, which count for more. A
line is positive where all texts of its page hold it, negative where none does, and counts for less where they disagree.
Both steps are logistic regressions with a quadratic penalty; the second is fitted to scores of pages that the first was
not fitted to. Names and words are kept that occur on several sites and weigh something.

The product's weights were made from 233 test pages of newspaper4k, goose3 and the Postlight parser, with trafilatura's
texts; the 130 test pages of readability.js with their texts and titles; every sixth article of `web.warc.gz` (145); and
every fifteenth manual of `html_docs` (116). No page of `html_public` is among them: its licence allows measuring only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

from data_pipeline.readers import line_model, main_text

Floats = npt.NDArray[np.float64]

FOLDS = 4
SITES = 12  # on which a name or a word occurs: fewer would be rules for sites and subjects
PENALTIES = {"feature": 1.0, "name": 8.0, "word": 16.0, "context": 5.0}
SMALLEST = 0.05
THRESHOLD = 0.3
_GOLD_WEIGHT, _DOUBT_WEIGHT = 4.0, 0.3


@dataclass(frozen=True)
class LabelledPage:
    """The lines of a page that the rules keep, with what the model knows of them and their labels."""

    site: str
    lines: list[main_text.Line]
    tree: main_text.Tree
    features: list[list[str]]
    labels: Floats
    weights: Floats


def develops(file: str) -> bool:
    """Return whether a page of `html_public` is of the half that rules may look at."""
    found = re.match(r"([a-z0-9.-]+?\.[a-z]{2,6})\b", file)
    site = (found[1] if found else file).removeprefix("www.")
    return int(hashlib.sha256(site.encode()).hexdigest(), 16) % 2 == 0


def label_page(page: dict[str, Any]) -> LabelledPage | None:
    """Lines, features and labels of a page; None where the rules find no prose in it."""
    tags: list[set[str]] = []
    captured: list[tuple[list[main_text.Line], main_text.Tree]] = []

    def number(tag: str, names: str) -> int:
        tags.append(line_model.name_tokens(tag, names))
        return 0xE000 + len(tags) - 1 - line_model.NO_WEIGHT

    def capture(lines: list[main_text.Line], tree: main_text.Tree) -> list[main_text.Line]:
        captured.append((lines, tree))
        return lines

    main_text._marked_container.cache_clear()
    with mock.patch.object(main_text, "tag_weight", number), mock.patch.object(main_text, "keep_lines", capture):
        main_text.main_text(page["html"].replace(main_text.MARK, ""))
    main_text._marked_container.cache_clear()
    if not captured:
        return None
    lines, tree = captured[0]
    first = 0xE000 - line_model.NO_WEIGHT
    boxes = line_model.Boxes(lines, tree)
    features = []
    for line, described in zip(lines, line_model.describe(lines, boxes), strict=True):
        named = [ord(letter) - 0xE000 for letter in line[5][1::2]]
        box = line[1]
        while not boxes.is_major(box):
            named.append(tree.weight[box] - first)
            box = tree.parent[box]
        names = [f"name:{token}" for place in named for token in tags[place]]
        features.append([f"feature:{place}" for place in (*described.features, *boxes.features(line[1]))] + names
                        + [f"word:{word}" for word in described.words])  # fmt: skip
    labels, weights = zip(*(_label(_words(line[0]), page) for line in lines), strict=True)
    return LabelledPage(page["site"], lines, tree, features, np.array(labels, float), np.array(weights, float))


def _words(text: str) -> str:
    return " ".join(text.split()).removeprefix("• ")


def _label(text: str, page: dict[str, Any]) -> tuple[bool, float]:
    if len(text) > 2:
        for kept, share in ((False, 0.6), (True, 0.3)):
            for sentence in page["with" if kept else "without"]:
                if sentence in text or (text in sentence and len(text) > share * len(sentence)):
                    return kept, _GOLD_WEIGHT
    held = [text in whole for whole in page["texts"]]
    weight = page["weight"] if text else 0.0
    return all(held[:1]), weight * (1.0 if all(held) or not any(held) else _DOUBT_WEIGHT)


def fit(rows: csr_matrix, labels: Floats, weights: Floats, penalties: Floats) -> Floats:
    """Coefficients and, last, the constant."""

    def loss(values: Floats) -> tuple[float, Floats]:
        signs = 2 * labels - 1
        margins = signs * (rows @ values[:-1] + values[-1])
        pulls = -weights * signs / (1 + np.exp(np.minimum(margins, 500)))
        total = float(weights @ np.logaddexp(0, -margins) + (penalties * values[:-1] ** 2).sum() / 2)
        return total, np.append(rows.T @ pulls + penalties * values[:-1], pulls.sum())

    found: Floats = minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return found


def learn(pages: list[LabelledPage]) -> dict[str, Any]:
    """Fit both steps.

    The content of `line_weights.json`.
    """
    names = _vocabulary(pages)
    penalties = np.array([PENALTIES[name.partition(":")[0]] for name in names])
    places = {name: place for place, name in enumerate(names)}
    entries = [[places[name] for name in line if name in places] for page in pages for line in page.features]
    ends = np.cumsum([0, *map(len, entries)])
    flat = np.fromiter((place for line in entries for place in line), np.int64)
    rows = csr_matrix((np.ones(len(flat)), flat, ends), shape=(len(entries), len(names)))
    labels, weights = (np.concatenate([getattr(page, name) for page in pages]) for name in ("labels", "weights"))
    folds = np.concatenate([np.full(len(page.lines), _fold(page.site)) for page in pages])
    scores = np.zeros(len(labels))
    for fold in range(FOLDS):
        fitted = fit(rows[folds != fold], labels[folds != fold], weights[folds != fold], penalties)
        scores[folds == fold] = rows[folds == fold] @ fitted[:-1] + fitted[-1]
    context = _learn_context(pages, scores, labels, weights)
    found = fit(rows, labels, weights, penalties)
    features = [0.0] * line_model.FEATURES
    kept: dict[str, dict[str, float]] = {"name": {}, "word": {}}
    for name, value in zip(names, found[:-1].tolist(), strict=True):
        kind, _, what = name.partition(":")
        if kind == "feature":
            features[int(what)] = round(value, 3)
        elif abs(value) >= SMALLEST:
            kept[kind][what] = round(value, 2)
    return {
        "bias": round(float(found[-1]), 3), "threshold": THRESHOLD, "features": features, "context": context,
        "names": kept["name"], "words": kept["word"],
    }  # fmt: skip


def _vocabulary(pages: list[LabelledPage]) -> list[str]:
    sites: dict[str, set[str]] = defaultdict(set)
    for page in pages:
        for line in page.features:
            for name in line:
                sites[name].add(page.site)
    return sorted(name for name, found in sites.items() if len(found) >= SITES or name.startswith("feature:"))


def _fold(site: str) -> int:
    return int(hashlib.sha256(site.encode()).hexdigest()[:8], 16) % FOLDS


def _learn_context(pages: list[LabelledPage], scores: Floats, labels: Floats, weights: Floats) -> list[list[float]]:
    rows, start = [], 0
    for page in pages:
        rows += line_model.context_of(page.lines, page.tree, scores[start : start + len(page.lines)].tolist())
        start += len(page.lines)
    table = np.array(rows)
    sizes = np.searchsorted(line_model.CONTEXT_SIZES, [line[3] for page in pages for line in page.lines])
    sets = []
    for size in range(len(line_model.CONTEXT_SIZES) + 1):
        chosen = sizes == size
        penalties = np.full(line_model.CONTEXT, PENALTIES["context"])
        sets.append([round(value, 3) for value in
                     fit(csr_matrix(table[chosen]), labels[chosen], weights[chosen], penalties).tolist()])  # fmt: skip
    return sets


def read_pages(path: Path) -> Iterator[LabelledPage]:
    """The pages of a JSON Lines file that have lines to learn from."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            page = label_page(json.loads(line))
            if page is not None:
                yield page


def main() -> None:
    """Learn and write the weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pages", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    learnt = learn(list(read_pages(options.pages)))
    options.to.write_text(json.dumps(learnt, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
