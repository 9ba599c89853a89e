"""PII canaries: planted values that measure the recall of each run.

Which passages, where in them, which values and which sentences around them follow from the seed and the documents'
digests alone. The copies live in memory; none of them is written but the counts `{type: {planted, found}}`. A
canary is found when a detection of its type covers exactly its characters (`is_found` has one exception). Each value
is planted in a sentence that people write around such a value; values without one are harder, and their recall is not
measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline.pii.canary_values import MAKERS
from data_pipeline.pii.detections import TYPES, Detection
from data_pipeline.pii.draws import Draw
from governance.files import sha256_bytes, shipped_table
from governance.splitmix64 import INCREMENT, finalise

_WINDOW = 600  # characters of the passage on either side: what rules read around a number is much less
_SENTENCE_ENDS = ".!?…。！？"
HOSTS = 64  # documents of a shard's row group that lend passages

_FOUND = shipped_table(__package__, "canary_sentences.toml")
SENTENCES = {kind: tuple(_FOUND.get(kind, _FOUND["secret"])) for kind in TYPES}


class Canary(NamedTuple):
    """A passage copy with a planted value and its expected detection."""

    text: str
    expected: Detection


def hosts(digests: Sequence[str], seed: int) -> list[int]:
    """The documents (by place) that lend passages.

    They are those whose digest, mixed with the seed, is smallest.
    """
    words = np.array([(int(digest[:16], 16) ^ seed) & (1 << 64) - 1 for digest in digests], np.uint64)
    mixed = finalise(words + INCREMENT) % np.uint64(1 << 63)
    return [int(place) for place in np.argsort(mixed, kind="stable")[:HOSTS]]


def planted(
    types: Sequence[str],
    rounds: range,
    passages: Sequence[tuple[str, str]],
    seed: int,
    makers: Mapping[str, Callable[[Draw], str]] = MAKERS,
    sentences: Mapping[str, Sequence[str]] = SENTENCES,
) -> Iterator[Canary]:
    """One canary of each type for each round.

    Args:
        types: the types to plant.
        rounds: numbers that make the canaries of a shard differ from each other.
        passages: (digest, text) of the documents that lend passages; none gives no canary.
        seed: of the run.
        makers: the maker of each type's values.
        sentences: around them, with their place as `{}`.
    """
    place = 0
    for turn in rounds if passages else ():
        for kind in types:
            digest, text = passages[place % len(passages)]
            place += 1
            draw = Draw(int(sha256_bytes(f"{seed}/{kind}/{turn}/{digest}".encode())[:16], 16))
            yield _plant(kind, text, draw, makers[kind], sentences[kind])


def _plant(kind: str, text: str, draw: Draw, make: Callable[[Draw], str], sentences: Sequence[str]) -> Canary:
    """Insert a sentence with a made-up value into the passage."""
    at = draw.below(len(text) + 1)
    blank = text.find(" ", at, at + 200)
    value = make(draw)
    before, _, after = draw.one(*sentences).partition("{}")
    gap = draw.one(" ", "\n") if blank >= 0 else "\n"
    at = blank if blank >= 0 else at
    if text[at - 1 : at] not in _SENTENCE_ENDS:  # "my order" would begin this sentence, and name its number
        gap = "\n"
    head = text[max(0, at - _WINDOW) : at] + gap + before
    return Canary(
        head + value + after + gap + text[at : at + _WINDOW], Detection(len(head), len(head) + len(value), kind)
    )


def is_found(
    canary: Canary, found: Sequence[Detection], alike: Collection[str], find: Callable[[str], Sequence[Detection]]
) -> bool:
    """Return whether the finder detects a canary as its type.

    The exception: some values pass the proof of two types by chance, and words of the passage may name another type
    ("telephone" above an identity number without its name). Then a detection of another type covers the value, which
    counts if that type is treated alike and the finder detects the value as its own type in at least half of this
    type's sentences without the passage. So a rule that is broken stays a miss wherever its values are planted.
    """
    if canary.expected in found:
        return True
    start, end, kind = canary.expected
    if not any(mark.start <= start and end <= mark.end and mark.type in alike for mark in found):
        return False
    alone = [sentence.partition("{}") for sentence in SENTENCES[kind]]
    known = [
        Detection(len(before), len(before) + end - start, kind) in find(before + canary.text[start:end] + after)
        for before, _, after in alone
    ]
    return 2 * sum(known) >= len(known)


def measure(
    canaries: Iterable[Canary],
    types: Sequence[str],
    find: Callable[[Sequence[str]], Sequence[Sequence[Detection]]],
    known: Callable[[Canary, Sequence[Detection]], bool] = lambda canary, found: canary.expected in found,
) -> dict[str, dict[str, int]]:
    """Planted and found values by type.

    `find` takes the texts of all canaries at once; `known` states whether its detections in a text are the canary's.
    """
    planted_ones = list(canaries)
    counts = {kind: {"planted": 0, "found": 0} for kind in types}
    for canary, found in zip(planted_ones, find([canary.text for canary in planted_ones]), strict=True):
        counts[canary.expected.type]["planted"] += 1
        counts[canary.expected.type]["found"] += known(canary, found)
    return counts
