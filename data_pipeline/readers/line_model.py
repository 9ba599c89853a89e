"""Linear model of the lines that are main text.

`main_text` chooses the container by rules; related articles, calls to subscribe, author boxes, dates and captions
inside it are what rules on a line alone do not find. Two logistic regressions do, with their weights in
`line_weights.json`, made by `benchmarks/measures/data/line_weights.py`:

1. each line is scored by its size, share of link text, tag, last character, position, neighbours, the link density and
   share of prose of the three innermost containers, the names (class, id) of its tags and of the containers that hold
   less than half of the prose, and, where it is short, its words;
2. each score is set against those of its neighbours and of its container, so that blocks stay or go together.

The features are the shallow ones of Kohlschütter et al. (WSDM 2010) and of Vogels et al. ("Web2Text", ECIR 2018), whose
second step also joins neighbours. Price: 5 microseconds per line.
"""

from __future__ import annotations

import functools
import json
import re
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import accumulate, compress
from operator import mul
from typing import NamedTuple

LINE_KINDS = {"p": "P", "h1": "1", "figcaption": "F", "time": "T"} | {f"h{level}": "H" for level in range(2, 7)}
"""The letter of each tag whose kind a line keeps."""
NO_WEIGHT = ord("_")
"""Code of the letter that is written for a weight of 0."""
NAME_STEP = 10
"""Units of a tag's weight in one unit of a line's score."""
MAX_NAME_WEIGHT = 30  # so that no letter written is one that HTML reads
_KINDS = {"": 0, "•": 1} | {letter: 2 + place for place, letter in enumerate("P1HFT")}
_SIZES = (8, 20, 40, 60, 100, 180, 320)
SHORT = 180
"""Characters up to which a line's words count."""
_DISTANCES = (1, 2, 4, 8, 20)
_FAR = 99
_SHARES = (0.0, 0.05, 0.2, 0.5)
_LINK_SHARES = (0.0, 0.1, 0.3, 0.6)
_MEAN_SIZES = (20, 40, 80, 160)
_NEIGHBOUR_SIZES = (20, 60, 180)
_ENDS = dict.fromkeys(".!?…。！？", 0) | dict.fromkeys("\"'”»“’)", 1) | {":": 2, ",": 3, ";": 3}
_OTHER_END = 4
_DIGITS = re.compile("[0-9]+")
_NO_NEIGHBOUR = 12
_HEAD, _EARLY, _MIDDLE, _LATE, _TAIL = range(5)

# Where each family of features begins in the vector of weights; that of kinds by sizes is the first.
_LINK_SIZE = 7 * 8
_END_SIZE = _LINK_SIZE + 4 * 8
_PLACE_SIZE = _END_SIZE + 5 * 8
_PLACE_KIND = _PLACE_SIZE + 5 * 8
_DISTANCE = _PLACE_KIND + 5 * 7
_BEFORE = _DISTANCE + 6 * 6
_AFTER = _BEFORE + 13
_SHAPE = _AFTER + 13
_BOX = _SHAPE + 6
_BOX_SIZE = 15  # features of a container: share of prose, share of links, mean size of a line
FEATURES = _BOX + 3 * _BOX_SIZE

CONTEXT = 12
"""Scores that the second step weighs for each line."""
CONTEXT_SIZES = (40, 100)
"""Bounds of size between its three sets of weights."""
_CLIP = 5.0
_EDGE = -2.0  # the score of what would be beyond the first and the last line
_LINE_WEIGHT, _LONGEST = 10, 400  # a line weighs its characters in a mean, up to so many, and these on top


def _classes(bounds: Sequence[int]) -> bytes:
    """The class of each number up to one above the last bound.

    Looking it up takes a third of the time of `bisect_left`.
    """
    return bytes(bisect_left(bounds, number) for number in range(bounds[-1] + 2))


_SIZE_CLASS, _DISTANCE_CLASS, _NEIGHBOUR_CLASS, _CONTEXT_CLASS = map(
    _classes, (_SIZES, _DISTANCES, _NEIGHBOUR_SIZES, CONTEXT_SIZES)
)
_LAST_SIZE, _LAST_DISTANCE, _LAST_NEIGHBOUR, _LAST_CONTEXT = (
    len(classes) - 1 for classes in (_SIZE_CLASS, _DISTANCE_CLASS, _NEIGHBOUR_CLASS, _CONTEXT_CLASS)
)
_TOKEN = re.compile(r"[a-z]{2,}")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"[^\W\d_]+")
_NAMED_TAGS = frozenset(("aside", "header", "form", "section", "article", "main", "td", "th", "time"))


Line = tuple[str, int, bool, int, int, str]
"""A line of the layout that holds text; a plain tuple, which is made in a tenth of a named one's time.

Its text (after a line end where a blank line preceded it), its container, whether it is prose, its characters
(those of dense scripts counted three times), those of them that are link text, and the marks of its own tags.
"""


class Tree(NamedTuple):
    """The containers of a page, numbered as they open.

    Container 0 is the page.
    """

    parent: list[int]
    mark: list[str]
    weight: list[int]
    """The weight of the names of its tag (`tag_weight`)."""


@dataclass(frozen=True, slots=True)
class LineWeights:
    """The learnt weights."""

    bias: float
    features: list[float]
    """[FEATURES]"""
    names: dict[str, float]
    words: dict[str, float]
    context: list[list[float]]
    """[3, CONTEXT + 1]: by size, of each score and the constant."""
    threshold: float


@functools.cache
def weights() -> LineWeights:
    """The weights that are part of the product."""
    found = json.loads(files("data_pipeline.readers").joinpath("line_weights.json").read_text(encoding="utf-8"))
    return LineWeights(**found)


def name_tokens(tag: str, names: str) -> set[str]:
    """Words of a tag's class and id, and some tags."""
    tokens = set(_TOKEN.findall(_CAMEL.sub("-", names).lower()))
    if tag in _NAMED_TAGS:
        tokens.add(f"<{tag}>")
    return tokens


def tag_weight(tag: str, names: str) -> int:
    """Weight of a tag's names, within +-`MAX_NAME_WEIGHT` steps of 1 / `NAME_STEP`."""
    known = weights().names
    total = round(NAME_STEP * sum(known.get(token, 0.0) for token in name_tokens(tag, names)))
    return max(-MAX_NAME_WEIGHT, min(MAX_NAME_WEIGHT, total))


def keep_lines(lines: list[Line], tree: Tree) -> list[Line]:
    """Lines that the model keeps; all if it would keep no prose."""
    model = weights()
    boxes = Boxes(lines, tree)
    learnt, known = model.features.__getitem__, model.words
    of_box = {box: model.bias + sum(map(learnt, boxes.features(box))) for box in {line[1] for line in lines}}
    scores = [
        of_box[line[1]]
        + sum(map(learnt, features))
        + weight / NAME_STEP
        + sum([known[word] for word in words if word in known])
        for line, (features, weight, words) in zip(lines, describe(lines, boxes), strict=True)
    ]
    keeps = []
    for line, context in zip(lines, context_of(lines, tree, scores), strict=True):
        size = line[3]
        weights_of = model.context[_CONTEXT_CLASS[size if size < _LAST_CONTEXT else _LAST_CONTEXT]]
        keeps.append(weights_of[CONTEXT] + sum(map(mul, context, weights_of)) > model.threshold)
    for index in range(len(lines) - 2, -1, -1):
        if lines[index][0].strip() == "•":  # goes or stays with its text
            keeps[index] = keeps[index + 1]
    kept = list(compress(lines, keeps))
    return kept if any(line[2] for line in kept) else lines


class DescribedLine(NamedTuple):
    """A line as the first step sees it."""

    features: list[int]
    """Places in `LineWeights.features`, without those of its container."""
    name_weight: int
    words: Collection[str]


def describe(lines: Sequence[Line], boxes: Boxes) -> list[DescribedLine]:
    """The features of each line."""
    after, neighbours, first, last = _surroundings(lines)
    described: list[DescribedLine] = []
    seen: set[str] = set()
    names, name_weight = boxes.name_weights, boxes.name_weight
    prose, whole, before = 0, boxes.prose[0], _LAST_DISTANCE
    for index, (text, box, is_prose, size, link_size, kinds) in enumerate(lines):
        text = text.strip()
        size_class = _SIZE_CLASS[size if size < _LAST_SIZE else _LAST_SIZE]
        kind = _KINDS.get(kinds[-2:-1], 0) if kinds else text[0] == "•"
        links = 0 if not link_size else 1 if link_size * 3 < size else 2 if link_size * 10 < size * 9 else 3
        if index < first or index > last:
            place = _HEAD if index < first else _TAIL
        elif prose * 20 < whole:
            place = _EARLY
        else:
            place = _LATE if (prose + size) * 10 > whole * 9 else _MIDDLE
        features = [
            kind * 8 + size_class,
            _LINK_SIZE + links * 8 + size_class,
            _END_SIZE + _ENDS.get(text[-1], _OTHER_END) * 8 + size_class,
            _PLACE_SIZE + place * 8 + size_class,
            _PLACE_KIND + place * 7 + kind,
            _DISTANCE + _DISTANCE_CLASS[before] * 6 + _DISTANCE_CLASS[after[index]],
            _BEFORE + neighbours[index - 1],
            _AFTER + neighbours[index + 1],
        ]
        words: Collection[str] = ()
        if size <= SHORT:
            folded = text.casefold()
            words = dict.fromkeys(_WORD.findall(folded))  # in their order: sums must not depend on hashes
            _add_shape(features, text, folded in seen)
            seen.add(folded)
        weight = names[box] if box in names else name_weight(box)
        if kinds:
            for letter in kinds[1::2]:
                weight += ord(letter) - NO_WEIGHT
        described.append(DescribedLine(features, weight, words))
        if is_prose:
            prose += size
            before = 1
        elif before < _LAST_DISTANCE:
            before += 1
    return described


def _surroundings(lines: Sequence[Line]) -> tuple[list[int], list[int], int, int]:
    """Distances to prose, classes as neighbours, first and last prose."""
    count = len(lines)
    after = [0] * count
    neighbours = [_NO_NEIGHBOUR] * (count + 1)  # the last one is behind the last line and, as [-1], before the first
    distance, last = _LAST_DISTANCE, 0
    for index in range(count - 1, -1, -1):
        _, _, is_prose, size, link_size, _ = lines[index]
        neighbours[index] = 3 * _NEIGHBOUR_CLASS[size if size < _LAST_NEIGHBOUR else _LAST_NEIGHBOUR] + (
            2 if is_prose else link_size * 3 > size
        )
        after[index] = distance
        if is_prose:
            distance = 1
            last = last or index
        elif distance < _LAST_DISTANCE:
            distance += 1
    first = 0
    while first < min(last, _FAR) and not lines[first][2]:
        first += 1
    return after, neighbours, first, last


class Boxes:
    """The containers of lines, with what each holds."""

    def __init__(self, lines: Sequence[Line], tree: Tree) -> None:
        count = len(tree.parent)
        self.tree = tree
        self.size, self.links, self.prose, self.lines = ([0] * count for _ in range(4))
        for _, box, is_prose, size, link_size, _ in lines:
            self.size[box] += size
            self.links[box] += link_size
            self.lines[box] += 1
            if is_prose:
                self.prose[box] += size
        for index in range(count - 1, 0, -1):  # what is inside was numbered later
            if self.size[index]:
                up = tree.parent[index]
                self.size[up] += self.size[index]
                self.links[up] += self.links[index]
                self.lines[up] += self.lines[index]
                self.prose[up] += self.prose[index]
        self.name_weights: dict[int, int] = {0: 0}

    def is_major(self, box: int) -> bool:
        """Return whether it holds half of the prose."""
        return box == 0 or self.prose[box] * 2 >= (self.prose[0] or 1)

    def features(self, box: int) -> list[int]:
        """Features of the container and of the two around it."""
        found: list[int] = []
        for start in range(_BOX, FEATURES, _BOX_SIZE):
            found += (
                start + bisect_left(_SHARES, self.prose[box] / (self.prose[0] or 1)),
                start + 5 + bisect_left(_LINK_SHARES, self.links[box] / self.size[box]),
                start + 10 + bisect_left(_MEAN_SIZES, self.size[box] / self.lines[box]),
            )
            box = self.tree.parent[box]
        return found

    def name_weight(self, box: int) -> int:
        """Weights of the names up to a major container."""
        passed = []
        while box not in self.name_weights and not self.is_major(box):
            passed.append(box)
            box = self.tree.parent[box]
        total = self.name_weights.setdefault(box, 0)
        for inner in reversed(passed):
            total += self.tree.weight[inner]
            self.name_weights[inner] = total
        return total


def _add_shape(features: list[int], text: str, repeated: bool) -> None:
    start = text[:60]
    if (len(start) - len(_DIGITS.sub("", start))) * 4 > len(start):
        features.append(_SHAPE)
    if text[0].islower():
        features.append(_SHAPE + 1)
    if "|" in text:
        features.append(_SHAPE + 2)
    if "©" in text or "@" in text:
        features.append(_SHAPE + 3)
    if text.isupper():
        features.append(_SHAPE + 4)
    if repeated:
        features.append(_SHAPE + 5)


def context_of(lines: Sequence[Line], tree: Tree, scores: Sequence[float]) -> list[tuple[float, ...]]:
    """Scores that the second step weighs, [lines, CONTEXT].

    They are the line's own score, those of the two lines on each side, and means, by size, of its container, of the one
    around it, of the lines before and after it, of five and of eleven lines around it, and of the page.
    """
    count = len(lines)
    clipped = [_CLIP if score > _CLIP else -_CLIP if score < -_CLIP else score for score in scores]
    sizes = [(line[3] if line[3] < _LONGEST else _LONGEST) + _LINE_WEIGHT for line in lines]
    weighted = list(map(mul, clipped, sizes))
    sums, size_sums = list(accumulate(weighted, initial=0.0)), list(accumulate(sizes, initial=0))
    means: list[dict[int, float]] = []
    boxes = [line[1] for line in lines]
    for level in (boxes, [tree.parent[box] for box in boxes]):
        totals: dict[int, list[float]] = {}
        for box, value, size in zip(level, weighted, sizes, strict=True):
            total = totals.get(box)
            if total is None:
                totals[box] = [value, size]
            else:
                total[0] += value
                total[1] += size
        means.append({box: value / size for box, (value, size) in totals.items()})
    padded = [_EDGE, _EDGE, *clipped, _EDGE, _EDGE]
    page = sums[-1] / size_sums[-1]
    found: list[tuple[float, ...]] = []
    whole, size_whole = sums[count], size_sums[count]
    of_box, around, parents = means[0], means[1], tree.parent
    for index, box in enumerate(boxes):
        here, there = index - 2 if index > 2 else 0, index + 3 if index + 3 < count else count
        near = (sums[there] - sums[here]) / (size_sums[there] - size_sums[here])
        here, there = index - 5 if index > 5 else 0, index + 6 if index + 6 < count else count
        wide = (sums[there] - sums[here]) / (size_sums[there] - size_sums[here])
        behind = size_whole - size_sums[index + 1]
        found.append((
            clipped[index], padded[index + 1], padded[index + 3], padded[index], padded[index + 4],
            of_box[box], around[parents[box]],
            sums[index] / size_sums[index] if index else 0.0, (whole - sums[index + 1]) / behind if behind else 0.0,
            near, wide, page,
        ))  # fmt: skip
    return found
