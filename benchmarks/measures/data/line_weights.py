"""Training of the weights of `data_pipeline/readers/line_model.py` from labelled pages.

    pip install lightgbm
    python -m benchmarks.measures.data.line_weights pages.jsonl --to data_pipeline/readers/line_weights.json

A line of `pages.jsonl` is a page: `html`; `site` (pages of one site are in one fold); `title`; `texts`, the main text
by hand or by extractors; `weight`; and `with` and `without`, sentences that must be kept and that must go, which count
for more. A line is positive where the first text of its page holds it, or three fifths of its rows of three words, and
counts for less where the texts disagree.

Names and words are weighed first, by a logistic regression next to coarse features; those are kept that occur on
several sites. Two ensembles of trees follow. Each step is fitted to what the step before gives on pages that it was not
fitted to.

The product's weights are what this script gives, to the byte, from `pages.jsonl` with the SHA-256 below (two runs on
2026-11-28; lightgbm 4.7.0, numpy and scipy of `constraints.txt`, one thread). Pages, in this order, are 1,462 of the
development set of WCXB (Foley 2026, CC BY 4.0), with its texts and sentences; 223 test pages of newspaper4k, goose3 and
the Postlight parser, with trafilatura's texts; the 116 test pages of readability.js with their texts and titles; every
sixth article of `web.warc.gz` (150); and every fifteenth manual of `html_docs` (116). No page of `html_public`, and
none of its 459 sites, is among them: its licence allows measuring only.

    42b0991087ad7d4aee4f3756bf5b8259301783705c2372185908adc21d1b3dcb
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

from data_pipeline.readers import line_model, main_text
from data_pipeline.readers.html import decode_html
from data_pipeline.readers.pages.kernels.page_features import SHORT
from data_pipeline.readers.pages.kernels.page_lines import (
    BOX,
    KIND,
    LINKS,
    NAMES,
    NO_WEIGHT,
    PARENT,
    PROSE,
    SIZE,
    WEIGHT,
)
from data_pipeline.readers.pages.kernels.page_model import context_of_lines, describe_lines
from governance.kernels.buffers import code_point_classes, lower_case

Floats = npt.NDArray[np.float64]
Names = tuple[dict[str, float], dict[str, float]]

FOLDS = 2
SITES = 12  # on which a name or a word occurs: fewer would be rules for sites and subjects
NAME_PENALTY, WORD_PENALTY = 8.0, 16.0
SMALLEST = 0.05
ROUNDS = (80, 40)
TREES = {
    "objective": "binary", "num_leaves": 16, "learning_rate": 0.1, "min_data_in_leaf": 100, "feature_fraction": 0.4,
    "bagging_fraction": 0.6, "bagging_freq": 1, "lambda_l2": 5.0, "max_bin": 63, "seed": 1, "deterministic": True,
    "num_threads": 1, "verbose": -1,
}  # fmt: skip
_GOLD_WEIGHT, _DOUBT_WEIGHT, _TITLE_WEIGHT = 2.0, 0.3, 0.15
_FIRST_TAG = 0xE000  # letters of private use number the tags of a page while it is learnt from
_COARSE = 98
_SIZES, _LINK_SHARES = (8, 20, 40, 60, 100, 180, 320), (0.01, 0.33, 0.9)
_WORD, _LETTERS = re.compile(r"\w+"), re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class LabelledPage:
    """The lines of a page with their labels, and the words of its tags."""

    site: str
    page: line_model.PageLines
    tags: list[set[str]]
    labels: Floats
    weights: Floats


def develops(file: str) -> bool:
    """Return whether a page of `html_public` is of the half that rules may look at."""
    found = re.match(r"([a-z0-9.-]+?\.[a-z]{2,6})\b", file)
    site = (found[1] if found else file).removeprefix("www.")
    return int(hashlib.sha256(site.encode()).hexdigest(), 16) % 2 == 0


def label_page(page: dict[str, Any]) -> LabelledPage:
    """Lines and labels of a page; its tags' weights are their numbers."""
    tags: list[set[str]] = []

    def number(tag: str, names: str) -> int:
        tags.append(line_model.name_tokens(tag, names))
        return _FIRST_TAG + len(tags) - 1 - NO_WEIGHT

    main_text._KNOWN.clear()
    with mock.patch.object(main_text, "tag_weight", number):
        layout = main_text.lay_out(decode_html(page["html"].encode("utf-8", "replace")))
    main_text._KNOWN.clear()
    found = line_model.read_layout_lines(layout)
    texts = [found.line(place) for place in range(len(found.lines))]
    labels, weights = _label(page, texts)
    sizes = (np.minimum(found.lines[:, SIZE], 300) + 30) / 100
    return LabelledPage(page["site"], found, tags, labels, weights * sizes * min(1.0, (80 / max(len(texts), 1)) ** 0.5))


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text.lower()))


def _label(page: dict[str, Any], texts: Sequence[str]) -> tuple[Floats, Floats]:
    whole = [f" {_words(text)} " for text in page["texts"]]
    triples = [set(_triples(text.split())) for text in whole]
    lines = [{_words(line) for line in re.split("[\n•]", text)} for text in page["texts"]]
    labels, weights = np.zeros(len(texts)), np.zeros(len(texts))
    title = _words(page.get("title", ""))
    for place, text in enumerate(texts):
        words = _words(text).split()
        if not words:
            continue
        line, held = " ".join(words), []
        for of_text, of_triples, of_lines in zip(whole, triples, lines, strict=True):
            exact = line in of_lines if len(words) < 4 and len(of_lines) > 1 else f" {line} " in of_text
            own = _triples(words) if len(words) >= 6 else []
            held.append(exact or (bool(own) and sum(three in of_triples for three in own) >= 0.6 * len(own)))
        labels[place] = held[0]
        weights[place] = 1.0 if len(set(held)) == 1 else _DOUBT_WEIGHT
        if line == title:
            weights[place] = _TITLE_WEIGHT
        text = " ".join(text.split())
        for kept in (False, True):
            if any(one in text and (kept or len(one) > 0.3 * len(text)) for one in page["with" if kept else "without"]):
                labels[place], weights[place] = kept, _GOLD_WEIGHT
    return labels, weights * page["weight"]


def _triples(words: Sequence[str]) -> list[tuple[str, str, str]]:
    return [(*pair, third) for pair, third in zip(pairwise(words), words[2:], strict=False)]


def learn(pages: Sequence[LabelledPage]) -> dict[str, Any]:
    """Fit all steps.

    The content of `line_weights.json`.
    """
    labels, weights = (np.concatenate([getattr(page, name) for page in pages]) for name in ("labels", "weights"))
    folds = np.array([_fold(page.site) for page in pages])
    of_line = np.repeat(folds, [len(page.labels) for page in pages])
    names, table = _token_table(pages)
    features = np.zeros((len(labels), 0), np.float32)
    for fold in range(FOLDS):
        other = of_line != fold
        known = _weigh(names, table[other], labels[other], weights[other])
        chosen = [page for page, of_page in zip(pages, folds, strict=True) if of_page == fold]
        found = np.concatenate([_describe(page, known) for page in chosen])
        if not features.shape[1]:
            features = np.zeros((len(labels), found.shape[1]), np.float32)
        features[~other] = found
    scores = np.zeros(len(labels))
    for fold in range(FOLDS):
        other = of_line != fold
        trees = _grow(features[other], labels[other], weights[other], ROUNDS[0])
        scores[~other] = trees.predict(features[~other], raw_score=True)
    ends = np.cumsum([0, *(len(page.labels) for page in pages)]).tolist()
    around = [context_of_lines(page.page.lines, page.page.boxes, scores[first:last])
              for page, (first, last) in zip(pages, pairwise(ends), strict=True)]  # fmt: skip
    second = _grow(np.hstack([features, np.concatenate(around)]), labels, weights, ROUNDS[1])
    tags, words = _weigh(names, table, labels, weights)
    first_trees = _written(_grow(features, labels, weights, ROUNDS[0]))
    return {"names": tags, "words": words, "first": first_trees, "second": _written(second)}


def _fold(site: str) -> int:
    return int(hashlib.sha256(site.encode()).hexdigest()[:8], 16) % FOLDS


def _token_table(pages: Sequence[LabelledPage]) -> tuple[list[str], csr_matrix]:
    """Names and words that several sites use, and those of each line, next to its coarse features."""
    sites: dict[str, set[str]] = defaultdict(set)
    rows: list[list[str]] = []
    for page in pages:
        for line, named in zip(page.page.lines, _tags_of_lines(page.page), strict=True):
            text = page.page.text[line[0] : line[1]].lower() if line[SIZE] <= SHORT else ""
            rows.append([f"name:{token}" for token in sorted(set().union(*(page.tags[tag] for tag in named)))])
            rows[-1] += [f"word:{word}" for word in _LETTERS.findall(text)]
            for token in rows[-1]:
                sites[token].add(page.site)
    names = sorted(token for token, found in sites.items() if len(found) >= SITES)
    places = {name: _COARSE + place for place, name in enumerate(names)}
    coarse = np.concatenate([_coarse(page.page.lines) for page in pages]).tolist()
    entries = [own + [places[name] for name in row if name in places] for own, row in zip(coarse, rows, strict=True)]
    flat = np.array([place for entry in entries for place in entry])
    ends = np.cumsum([0, *map(len, entries)])
    return names, csr_matrix((np.ones(len(flat)), flat, ends), shape=(len(entries), _COARSE + len(names)))


def _tags_of_lines(page: line_model.PageLines) -> Iterator[list[int]]:
    """Numbers of the tags whose names count for each line."""
    prose = np.zeros(len(page.boxes), np.int64)
    np.add.at(prose, page.lines[:, BOX], page.lines[:, SIZE] * page.lines[:, PROSE])
    for box in range(len(prose) - 1, 0, -1):
        prose[page.boxes[box, PARENT]] += prose[box]
    for line in page.lines:
        weights, box = [line[NAMES]], line[BOX]
        while box and prose[box] * 2 < max(prose[0], 1):
            weights.append(page.boxes[box, WEIGHT])
            box = page.boxes[box, PARENT]
        yield [int(weight) + NO_WEIGHT - _FIRST_TAG for weight in weights if weight]


def _coarse(lines: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    sizes, shares = np.searchsorted(_SIZES, lines[:, SIZE]), lines[:, LINKS] / lines[:, SIZE]
    links, tenths = np.searchsorted(_LINK_SHARES, shares), np.arange(len(lines)) * 10 // max(len(lines), 1)
    return np.stack([sizes * 7 + np.minimum(lines[:, KIND], 6), 56 + links * 8 + sizes, 88 + tenths], 1)


def _weigh(names: Sequence[str], table: csr_matrix, labels: Floats, weights: Floats) -> Names:
    """Weights of names and of words."""
    of_token = [NAME_PENALTY if name.startswith("name:") else WORD_PENALTY for name in names]
    penalties, signs = np.array([1.0] * _COARSE + of_token), 2 * labels - 1

    def loss(values: Floats) -> tuple[float, Floats]:
        margins = signs * (table @ values[:-1] + values[-1])
        pulls = -weights * signs / (1 + np.exp(np.minimum(margins, 500)))
        total = float(weights @ np.logaddexp(0, -margins) + (penalties * values[:-1] ** 2).sum() / 2)
        return total, np.append(table.T @ pulls + penalties * values[:-1], pulls.sum())

    start = np.zeros(len(penalties) + 1)
    fitted = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 35}).x[_COARSE:-1]
    kept: Names = ({}, {})
    for name, value in zip(names, fitted.tolist(), strict=True):
        if abs(value) >= SMALLEST:
            kept[name.startswith("word:")][name.partition(":")[2]] = round(value, 2)
    return kept


def _describe(page: LabelledPage, known: Names) -> npt.NDArray[np.float32]:
    """Features of the lines of a page with these weights of names and words."""
    weights = np.array([line_model.bounded_weight(tokens, known[0]) for tokens in page.tags] + [0], np.int64)
    lines, boxes = page.page.lines.copy(), page.page.boxes.copy()
    for table, column in ((lines, NAMES), (boxes, WEIGHT)):
        named = table[:, column] != 0
        table[named, column] = weights[table[named, column] + NO_WEIGHT - _FIRST_TAG]
    words = (code_point_classes(), lower_case(), *line_model.word_table(known[1]))
    found: npt.NDArray[np.float32] = describe_lines(page.page.points, lines, boxes, words)
    return found


def _grow(features: npt.NDArray[np.float32], labels: Floats, weights: Floats, rounds: int) -> Any:
    import lightgbm

    return lightgbm.train(TREES, lightgbm.Dataset(features, labels, weight=weights), rounds)


def _written(trees: Any) -> dict[str, list[Any]]:
    """Trees as `pages/kernels/page_model.py` reads them."""
    roots, features, values, children = [], [], [], []
    for tree in trees.dump_model()["tree_info"]:
        roots.append(len(features))
        nodes = [tree["tree_structure"]]
        for node in nodes:  # which grows: its children come as neighbours
            leaf = "leaf_value" in node
            features.append(-1 if leaf else node["split_feature"])
            values.append(round(node["leaf_value"], 4) if leaf else float(f"{node['threshold']:.6g}"))
            children.append(0 if leaf else roots[-1] + len(nodes))
            nodes += [] if leaf else [node["left_child"], node["right_child"]]
    return {"roots": roots, "features": features, "values": values, "children": children}


def read_pages(path: Path) -> Iterator[LabelledPage]:
    """The pages of a JSON Lines file that have lines to learn from."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            page = label_page(json.loads(line))
            if len(page.labels) >= 3:
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
