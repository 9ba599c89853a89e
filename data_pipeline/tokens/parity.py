"""Parity test of two encoding engines on documents and awkward strings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_pipeline.tokens.encoder import Ends, Engine, segments
from data_pipeline.tokens.unknown_characters import known_characters

_BATCH_CHARACTERS = 1 << 20
_SIDES = (("", ""), ("a", "b"), (" a", ""), ("", "1"), ("!", "é"))
_SPACES = "\t\n\x0b\x0c\r\x1c\x1f \x85\xa0\u1680\u180e\u2003\u2028\u202f\u205f\u3000\u200b\ufeff"
_RUNS = ("a", "ab", " ", "\n", "\r\n", "1", "!", "中", "é", "e\u0301", "👩‍👩‍👧", "'s", " a")
_BORDER = re.compile(r"(?<=\S)(?=[ \n])")
_STRETCH = 4096  # characters of a string of `every_character`


@dataclass(frozen=True)
class Compared:
    """Result of comparing two engines."""

    bytes: int
    """UTF-8 bytes of the texts."""
    tokens: int
    """Tokens of the first engine, without those that end documents."""
    unequal: tuple[str, ...]
    """Stretches of the texts on which the engines differ."""


def awkward_strings() -> list[str]:
    """Strings on which encoders have differed or failed.

    They hold every class of space, runs, contractions, marks and scripts.
    """
    strings = [f"{left}{space * count}{right}" for space in _SPACES for count in (1, 2, 3) for left, right in _SIDES]
    runs = [unit * 400 for unit in _RUNS]
    texts = [
        "", "I'll they're we've I'm you'd it's don't I'LL ’s 's'S !'s 'l 're", "<|endoftext|> <|endoftext|>x",
        "a\x00b\x01\x7f", "½²٣१Ⅷ〇 1234567890 3.14", "x = {'a':\t[1,\n\n  2]}\r\n",
        "a\n  ", "a \n\n\t ", "\n \u3000", "a\r\n ",
        "שלום עולם مرحبا สวัสดีชาวโลก 你好，世界。 こんにちは 안녕하세요",
    ]  # fmt: skip
    return [*strings, *runs, *(run + "x" for run in runs), *texts]


def every_character() -> list[str]:
    """Every character that the library knows, in their order.

    Texts with another are the library's, whichever engine encodes.
    """
    known = known_characters()
    return [known[start : start + _STRETCH] for start in range(0, len(known), _STRETCH)]


def compare(reference: Engine, other: Engine, texts: Iterable[str]) -> Compared:
    """Encode the texts with both engines, a million characters at a time."""
    size = tokens = 0
    unequal: list[str] = []
    for batch in _batches(texts):
        column = pa.array(batch, pa.large_string())
        (left, left_ends), (right, right_ends) = reference(column), other(column)
        size += sum(len(text.encode("utf-8")) for text in batch)
        tokens += len(left) - len(batch)
        for place, text in enumerate(batch):
            ours = left[left_ends[place] : left_ends[place + 1]]
            if not np.array_equal(ours, right[right_ends[place] : right_ends[place + 1]]):
                unequal.append(text)
    return Compared(size, tokens, tuple(unequal))


def once_each(engine: Engine, pieces: Sequence[bytes]) -> Engine:
    """The engine, which encodes equal stretches between words once.

    It is for a vocabulary that may be cut at spaces: a space or line end after another character is a border, and no
    id depends on what is across it (`encoder.segments`). So the distinct stretches are encoded in a row, which is
    parted again by the bytes of its ids, `pieces`.
    """
    sizes = np.array([len(piece) for piece in pieces], np.int64)

    def run(texts: pa.Array | pa.ChunkedArray) -> tuple[npt.NDArray[np.uint32], Ends]:
        cut = [_BORDER.split(text) for text in texts.to_pylist()]
        inner = dict.fromkeys(chain(*(parts[1:-1] for parts in cut)))
        outer = dict.fromkeys(part for parts in cut for part in (parts[0], parts[-1]) if part not in inner)
        ids, ends = engine(pa.array(["".join(inner), *outer], pa.large_string()))
        end = ends[1] - 1  # the row's last place holds the id that ends documents
        after = np.fromiter(accumulate(len(part.encode("utf-8")) for part in inner), np.int64, len(inner))
        borders = np.searchsorted(np.cumsum(sizes[ids[:end]]), after) + 1
        stops = np.concatenate((borders, ends[2:] - 1, [end + 1]))
        starts = np.concatenate((np.zeros(min(len(inner), 1), np.int64), borders[:-1], ends[1:-1], [end]))
        place = {part: number for number, part in enumerate((*inner, *outer))}
        codes = np.array([number for parts in cut for number in (*map(place.__getitem__, parts), len(place))], np.int64)
        lengths = (stops - starts)[codes]
        last = np.cumsum(lengths)
        found = ids[np.arange(last[-1]) + np.repeat(starts[codes] - last + lengths, lengths)]
        return found, np.concatenate((np.zeros(1, np.int64), last[np.cumsum([len(parts) + 1 for parts in cut]) - 1]))

    return run


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    held: list[str] = []
    room = _BATCH_CHARACTERS
    for part in (part for text in texts for part in segments(text)):
        held.append(part)
        room -= len(part)
        if room <= 0:
            yield held
            held, room = [], _BATCH_CHARACTERS
    if held:
        yield held
