"""Model of the lines that are main text.

Rules on one line do not find related articles, calls to subscribe, author boxes, dates and captions. Two ensembles of
trees do (`pages/kernels/page_model.py`), over features of the line, its neighbours and its containers. Names (class,
id) of tags and words of short lines count by weights of their own. All are in `line_weights.json`, made by
`benchmarks/measures/data/line_weights.py`.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.readers.pages.kernels.page_features import NAME_STEP
from data_pipeline.readers.pages.kernels.page_lines import END, START
from data_pipeline.readers.pages.kernels.page_model import MAX_LEAVES, keep_lines, main_utf8, read_lines
from governance.kernels.buffers import code_point_classes, lower_case

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Trees = tuple[npt.NDArray[Any], ...]

LINE_KINDS = {"p": "P", "h1": "1", "figcaption": "F", "time": "T"} | {f"h{level}": "H" for level in range(2, 7)}
"""The letter of each tag whose kind a line keeps."""
MAX_NAME_WEIGHT = 30  # so that no letter written is one that HTML reads
_TOKEN = re.compile(r"[a-z]{2,}")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_NAMED_TAGS = frozenset(("aside", "header", "form", "section", "article", "main", "td", "th", "time"))


class PageLines(NamedTuple):
    """The lines of a layout that hold text, without marks."""

    text: str
    lines: Integers
    """Columns as in `pages/kernels/page_lines.py`."""
    boxes: Integers
    points: npt.NDArray[np.uint32]

    def line(self, place: int) -> str:
        """Text of a line, with its indentation."""
        return self.text[self.lines[place, START] : self.lines[place, END]]


@dataclass(frozen=True, slots=True)
class LineWeights:
    """The learnt weights."""

    names: Mapping[str, float]
    words: tuple[Integers, Floats]
    """A table of hashes (`word_table`), and their weights."""
    first: Trees
    second: Trees


@functools.cache
def weights() -> LineWeights:
    """The weights that are part of the product."""
    return read_weights(json.loads(files("data_pipeline.readers").joinpath("line_weights.json").read_text("utf-8")))


def read_weights(found: Mapping[str, Any]) -> LineWeights:
    """Weights from the content of `line_weights.json`."""
    first, second = (_trees(found[name]) for name in ("first", "second"))
    return LineWeights(found["names"], word_table(found["words"]), first, second)


def word_table(words: Mapping[str, float]) -> tuple[Integers, Floats]:
    """A hash table of words, and their weights.

    An empty place holds 0. A word is at the place of its hash's last bits, or after it (`page_features.word_sum`).
    """
    size = 1 << (4 * len(words) + 1).bit_length()
    hashes, weights = np.zeros(size, np.int64), np.zeros(size, np.float64)
    for hashed, weight in sorted((word_hash(word), weight) for word, weight in words.items()):
        place = hashed & (size - 1)
        while hashes[place]:
            place = (place + 1) & (size - 1)
        hashes[place], weights[place] = hashed, weight
    return hashes, weights


def word_hash(word: str) -> int:
    """Hash of a word in lower case, equal to `page_features.word_sum`."""
    hashed = 0
    for letter in word:
        hashed = (hashed * 1_000_003 + ord(letter) + 1) % (1 << 64)
    return hashed - (1 << 64) if hashed >> 63 else hashed


def _trees(trees: Mapping[str, list[Any]]) -> Trees:
    """The tests and leaves of trees in `add_trees`' form.

    A node without a feature is a leaf, with its value; else its children are neighbours, and the second one is for
    features above the node's value.

    Raises:
        ValueError: a tree has more leaves than a set has bits.
    """
    roots, features, values, children = (trees[name] for name in ("roots", "features", "values", "children"))
    starts, tests = [0], []
    leaves = np.zeros((len(roots), MAX_LEAVES), np.float32)

    for tree, root in enumerate(roots):
        found: list[float] = []

        def walk(node: int, found: list[float] = found) -> int:
            """The set of the leaves below, numbered from left to right."""
            if features[node] < 0:
                found.append(values[node])
                return 1 << (len(found) - 1)
            below = walk(children[node])
            tests.append((features[node], values[node], ~below & ((1 << MAX_LEAVES) - 1)))
            return below | walk(children[node] + 1)

        walk(root)
        if len(found) > MAX_LEAVES:
            raise ValueError(f"tree {tree} has {len(found)} leaves; {MAX_LEAVES} at most")
        starts.append(len(tests))
        leaves[tree, : len(found)] = found
    columns = list(zip(*tests, strict=True)) or [(), (), ()]
    kinds = (np.int16, np.float32, np.uint32)
    return (np.array(starts), *(np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)), leaves)


def name_tokens(tag: str, names: str) -> set[str]:
    """Words of a tag's class and id, and some tags."""
    tokens = set(_TOKEN.findall(_CAMEL.sub("-", names).lower()))
    if tag in _NAMED_TAGS:
        tokens.add(f"<{tag}>")
    return tokens


def tag_weight(tag: str, names: str) -> int:
    """Weight of a tag's names, within +-`MAX_NAME_WEIGHT` steps of 1 / `NAME_STEP`."""
    return bounded_weight(name_tokens(tag, names), weights().names)


def bounded_weight(tokens: Iterable[str], known: Mapping[str, float]) -> int:
    """Sum of the weights of tokens, in steps, bounded."""
    total = round(NAME_STEP * math.fsum(known.get(token, 0.0) for token in tokens))
    return max(-MAX_NAME_WEIGHT, min(MAX_NAME_WEIGHT, total))


def read_layout_lines(layout: str) -> PageLines:
    """Take the marks out of a layout."""
    points = np.frombuffer(layout.encode("utf-32-le", "surrogatepass"), np.uint32)
    text, lines, boxes = read_lines(points, code_point_classes(), lower_case())
    return PageLines(text.tobytes().decode("utf-32-le", "surrogatepass"), lines, boxes, text)


def main_lines(page: PageLines) -> list[int]:
    """Numbers of the lines that are main text."""
    return np.flatnonzero(keep_lines(page.points, page.lines, page.boxes, *_model())).tolist()


def main_layout_texts(layouts: Sequence[str]) -> list[bytes]:
    """The main text of each layout in UTF-8, one line per paragraph."""
    points = np.frombuffer("".join(layouts).encode("utf-32-le", "surrogatepass"), np.uint32)
    found, ends = main_utf8(points, np.cumsum([*map(len, layouts)], dtype=np.int64), *_model())
    text, bounds = found.tobytes(), [0, *ends.tolist()]
    return [text[begin:end] for begin, end in pairwise(bounds)]


@functools.cache
def _model() -> tuple[Any, Any, Any]:
    """Tables of characters and words, and both ensembles, for kernels."""
    model = weights()
    return (code_point_classes(), lower_case(), model.words), model.first, model.second
