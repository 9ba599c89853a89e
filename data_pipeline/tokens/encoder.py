"""A loaded tokenizer: text to ids and back, with two engines.

`tokenizers` defines the ids. `gigatoken` encodes several times faster, straight from the Arrow buffers; it is used
where both gave the same ids (the parity gate of `tokenizer.py`), else `tokenizers` is.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.tokens.token_shards import token_bytes

Ids = npt.NDArray[Any]
Ends = npt.NDArray[np.int64]
Engine = Callable[["pa.Array | pa.ChunkedArray"], tuple[npt.NDArray[np.uint32], Ends]]
"""The ids of n texts end to end, each closed with the end-of-document token, and their n + 1 offsets."""

_SEGMENT_CHARACTERS = 1 << 16
_CUT = re.compile(r"\S[ \n]")
FINAL_SPACE = r"[\t\x0b\x0c\x{85}\p{Z}]\z"
_CACHED_BYTES = 128 << 20  # bytes of text after which the fast engine starts with an empty cache of words


@dataclass(frozen=True)
class Encoder:
    """A loaded tokenizer; safe to share among threads."""

    vocabulary_size: int
    end_of_document: int
    engine: str
    """"gigatoken", or "tokenizers" where the parity gate failed."""
    pieces: tuple[bytes, ...] = field(repr=False)
    """The bytes of each id; empty for a special token."""
    run: Engine = field(repr=False)
    begin_of_document: int | None = None
    """The id before each document's text; None: none."""
    decode_text: Callable[[Sequence[int]], str] | None = field(default=None, repr=False)
    """Decoder of a tokenizer whose ids are not the text's bytes; None: `pieces`, joined, are the text."""
    unknown: int | None = None
    """The id of unknown words and characters; None: its vocabulary covers all."""

    @property
    def dtype(self) -> npt.DTypeLike:
        """uint16 while every id fits, else uint32."""
        return np.uint16 if token_bytes(self.vocabulary_size) == 2 else np.uint32

    def encode_column(self, texts: pa.Array | pa.ChunkedArray) -> tuple[Ids, Ends]:
        """Token ids of n texts with begin and end tokens, and offsets.

        Text i is `ids[ends[i]:ends[i + 1]]`. The quickest way: no Python object is made for a text.
        """
        ids, ends = self.run(texts)
        return ids.astype(self.dtype), ends

    def encode(self, text: str) -> Ids:
        """The ids of a document that begins with the text.

        They are all but the end-of-document token.
        """
        return self.encode_column(pa.array([text], pa.large_string()))[0][:-1]

    def encode_documents(self, texts: Iterable[str]) -> list[Ids]:
        """The ids of each text as a whole document."""
        ids, ends = self.encode_column(pa.array(list(texts), pa.large_string()))
        return np.split(ids, ends[1:-1]) if len(ends) > 1 else []

    def is_text(self, index: int) -> bool:
        """Return whether the id is a token other than a special one."""
        return 0 <= index < self.vocabulary_size and bool(self.pieces[index])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids.

        Special tokens are left out, a torn character becomes U+FFFD.
        """
        if self.decode_text is not None:
            return self.decode_text([int(index) for index in ids])
        return b"".join(map(self.pieces.__getitem__, ids)).decode("utf-8", errors="replace")

    def decode_after(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """The text that `ids` append to the text of `before`.

        Alone they may have another text: SentencePiece leaves out the space that a text begins with.
        """
        if self.decode_text is None:
            return self.decode(ids)
        return self.decode([*before, *ids])[len(self.decode(before)) :]

    def recovers(self, ids: Sequence[int], text: bytes) -> bool:
        """Return whether the ids give the text again.

        They may give the text itself or, with `decode_text`, one of the same ids, of which none is `unknown`; it then
        differs only in what the tokenizer does not see, such as a space that its normaliser removes.
        """
        if self.decode_text is None:
            return b"".join(map(self.pieces.__getitem__, ids)) == text
        found, given = self.decode_text(ids), text.decode("utf-8")
        if found == given:
            return True
        return self.unknown not in ids and all(np.array_equal(self.encode(each), ids) for each in (found, given))


def begun(engine: Engine, begin: int) -> Engine:
    """The engine, with the token `begin` before each text."""

    def run(texts: pa.Array | pa.ChunkedArray) -> tuple[npt.NDArray[np.uint32], Ends]:
        ids, ends = engine(texts)
        return np.insert(ids, ends[:-1], np.uint32(begin)), ends + np.arange(len(ends))

    return run


def except_matches(engine: Engine, reference: Engine, marked: npt.NDArray[np.bool_], pattern: str) -> Engine:
    """The engine, with `reference` for some texts.

    They hold a character beyond ASCII that is `marked`, by its code point, or RE2's `pattern` finds them.
    """
    from data_pipeline.kernels.marked_characters import holding

    def run(texts: pa.Array | pa.ChunkedArray) -> tuple[npt.NDArray[np.uint32], Ends]:
        ids, ends = engine(texts)
        theirs_are = holding(texts, marked)
        if pattern:
            theirs_are |= pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False)
        places = np.flatnonzero(theirs_are)
        if not len(places):
            return ids, ends
        parts = np.split(ids, ends[1:-1])
        theirs, their_ends = reference(texts.take(pa.array(places)))
        for place, part in zip(places, np.split(theirs, their_ends[1:-1]), strict=True):
            parts[place] = part
        sizes = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return np.concatenate(parts), np.concatenate((np.zeros(1, np.int64), sizes))

    return run


def fast_engine(definition: str, end: int, reference: Engine, normalise: Callable[[str], str] | None = None) -> Engine:
    """The `tokenizer.json` in gigatoken, on the calling thread.

    `reference` encodes what gigatoken fails on. `normalise` is applied first, to texts that are not ASCII.

    Raises:
        ValueError: gigatoken cannot read it.
    """
    import awkward
    from gigatoken.gigatoken_rs import load_hf_json

    def load() -> Any:
        try:
            return load_hf_json(definition)
        except BaseException as error:  # a panic of its Rust code is not an Exception
            raise _as_value_error(error) from error

    lock = threading.Lock()
    backend, room = load(), _CACHED_BYTES

    def run(texts: pa.Array | pa.ChunkedArray) -> tuple[npt.NDArray[np.uint32], Ends]:
        nonlocal backend, room
        column = texts.cast(pa.large_string())
        if not len(column):
            return np.zeros(0, np.uint32), np.zeros(1, np.int64)
        if normalise is not None:
            normal = [text if text.isascii() else normalise(text) for text in column.to_pylist()]
            column = pa.array(normal, pa.large_string())
        try:
            with lock:
                # The backend keeps each word that it has met, some 7 bytes for a byte, and never drops one. The old one
                # goes before the new one comes, so that both are never in memory.
                if room < 0:
                    backend = None
                    backend, room = load(), _CACHED_BYTES
                found = awkward.to_arrow(
                    backend.encode_batch(awkward.from_arrow(column), parallel=False), extensionarray=False
                )
                room -= column.nbytes
        except BaseException as error:
            _as_value_error(error)
            return reference(texts)
        ids, ends = found.values.to_numpy(), found.offsets.to_numpy()
        return np.insert(ids, ends[1:], np.uint32(end)), ends + np.arange(len(ends))

    return run


def _as_value_error(error: BaseException) -> ValueError:
    if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
        raise error
    return ValueError(f"gigatoken: {error}")


def library_engine(reference: Any, end: int, cut_at_spaces: bool = True) -> Engine:
    """The engine that defines the ids: `reference` is a `tokenizers.Tokenizer`.

    With `cut_at_spaces` long texts are encoded in `segments`, which bounds memory, where the pre-tokenizer allows it.
    """

    def run(texts: pa.Array | pa.ChunkedArray) -> tuple[npt.NDArray[np.uint32], Ends]:
        parts: list[list[int]] = []
        sizes = []
        for text in texts:
            before = len(parts)
            pieces = segments(text.as_py()) if cut_at_spaces else [text.as_py()]
            parts += [reference.encode(part, add_special_tokens=False).ids for part in pieces]
            parts.append([end])
            sizes.append(sum(map(len, parts[before:])))
        ids = np.fromiter(chain.from_iterable(parts), np.uint32, sum(sizes))
        return ids, np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)))

    return run


def segments(text: str) -> Iterator[str]:
    """Split a text into segments of some 65,536 characters, for GPT-2's pre-tokenizer.

    A cut before the space or line end that follows a word never changes an id: such a place is always a border of
    that pre-tokenizer, and nothing to its left looks past it. Without such a place a segment is longer.
    """
    start = 0
    while len(text) - start > _SEGMENT_CHARACTERS:
        found = _CUT.search(text, start + _SEGMENT_CHARACTERS - 1 - _SEGMENT_CHARACTERS // 64)
        if found is None:
            break
        yield text[start : found.start() + 1]
        start = found.start() + 1
    yield text[start:]
