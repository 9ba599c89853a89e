"""Train and load a byte-level BPE: the door to `tokenizers` (which trains) and `tiktoken` (which encodes).

Promises: the same documents give the same tokeniser, whatever the number of threads; every text can be encoded and
comes back unchanged; text that spells a special token is ordinary text. What `tokenizers` gives is the definition;
tiktoken's ranks are a faster road to the same ids (about five times), taken only where both agree on a sample of
documents and on strings that have broken encoders (the *parity gate*).

Byte-level BPE: Sennrich, Haddow and Birch 2016 (arXiv:1508.07909) over bytes, with the pre-tokeniser of GPT-2
(Radford et al. 2019). Price of training: one pass over the ids and sizes of all documents, one over the sample.
"""

from __future__ import annotations

import base64
import functools
import itertools
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from pydantic import Field, model_validator

from data_pipeline.documents import read_table
from data_pipeline.token_shards import token_bytes
from governance.config import Section
from governance.errors import ManifestError, MissingInput, PipelineError
from governance.files import sha256_bytes, write_bytes, write_text
from governance.log import get_logger
from governance.manifest import Manifest, describe
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 1
TOKENIZER_FILE = "tokenizer.json"
RANKS_FILE = "tokenizer.tiktoken"

# GPT-2's pre-tokeniser with possessive repeats, so that a long run of letters cannot exhaust the regex engine's stack.
_PRETOKENS = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s+"
# Both engines see at most this many characters at a time: tiktoken's regex overflows its stack on a run of a
# million spaces before a word.
_SEGMENT_CHARACTERS = 1 << 16
_CUT = re.compile(r"\S[ \n]")
_PARITY_DOCUMENTS = 512
_PARITY_BYTES = 4 << 20


class TokenizerConfig(Section):
    """How the tokeniser is trained."""

    vocabulary_size: int = Field(default=32_000, ge=257, le=1 << 24)
    """Number of ids, special tokens and the 256 bytes included; fewer result where the sample has too few pairs."""
    sample_bytes: int = Field(default=100_000_000, ge=1)
    """UTF-8 bytes of text to train on, shared among (source, language) in proportion to their bytes."""
    special_tokens: tuple[str, ...] = ("<|endoftext|>",)
    """Ids 0, 1, ...; the first ends every document. Never produced from text."""

    @model_validator(mode="after")
    def _check(self) -> TokenizerConfig:
        if not self.special_tokens or "" in self.special_tokens:
            raise ValueError("special_tokens wants at least the end-of-document token, and no empty text")
        if len(set(self.special_tokens)) != len(self.special_tokens):
            raise ValueError("special_tokens names a token twice; name each once")
        if self.vocabulary_size < 256 + len(self.special_tokens):
            raise ValueError(f"vocabulary_size {self.vocabulary_size} has no room for 256 bytes and special_tokens")
        return self


@dataclass(frozen=True)
class Encoder:
    """A loaded tokeniser: text to ids and back."""

    vocabulary_size: int
    end_of_document: int
    engine: str
    """"tiktoken", or "tokenizers" where the parity gate failed."""
    _engine: Any
    _pieces: tuple[bytes, ...]

    @property
    def dtype(self) -> npt.DTypeLike:
        """uint16 while every id fits, else uint32."""
        return np.uint16 if token_bytes(self.vocabulary_size) == 2 else np.uint32

    def encode(self, text: str) -> npt.NDArray[Any]:
        """The ids of one text, without the end-of-document token."""
        parts = [_encode_with(self._engine, segment) for segment in segments(text)]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole.astype(self.dtype)

    def encode_documents(self, texts: Iterable[str]) -> list[npt.NDArray[Any]]:
        """The ids of each text, closed with the end-of-document token."""
        end = np.array([self.end_of_document], dtype=self.dtype)
        return [np.concatenate((self.encode(text), end)) for text in texts]

    def is_text(self, index: int) -> bool:
        """Whether the id stands for bytes of text: it is in the vocabulary and no special token."""
        return 0 <= index < self.vocabulary_size and bool(self._pieces[index])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens are left out, a torn character becomes U+FFFD."""
        return b"".join(self._pieces[index] for index in ids).decode("utf-8", errors="replace")


def segments(text: str) -> Iterator[str]:
    """Cut a text into stretches of at most 65,536 characters; joined they are the text again.

    A cut before the space or line end that follows a word never changes an id, for such a place is always a border of
    the pre-tokeniser and nothing to its left looks past it. Only a stretch without such a place is cut hard; that is
    part of this tokeniser's definition, and touches only the word or run that the cut falls in.
    """
    start = 0
    while len(text) - start > _SEGMENT_CHARACTERS:
        stop = _cut(text, start, start + _SEGMENT_CHARACTERS)
        yield text[start:stop]
        start = stop
    yield text[start:]


def _cut(text: str, start: int, limit: int) -> int:
    for window in (1024, limit - start):
        places = [match.start() + 1 for match in _CUT.finditer(text, max(start, limit - window), limit)]
        if places:
            return places[-1]
    return limit


def _encode_with(engine: Any, text: str) -> npt.NDArray[Any]:
    if hasattr(engine, "encode_to_numpy"):
        return np.asarray(engine.encode_to_numpy(text, disallowed_special=()))
    return np.array(engine.encode(text).ids, dtype=np.uint32)


def load_encoder(tokenizer: Manifest | Path, root: Path | None = None) -> Encoder:
    """Load a tokeniser from its manifest below `root`, or from a folder that holds its two files.

    Where the stage recorded unequal ids, or the two libraries here disagree on the awkward strings, it encodes with
    `tokenizers` and says so.

    Raises:
        MissingInput: a file is not there.
        ManifestError: a file cannot be read as a tokeniser.
    """
    if isinstance(tokenizer, Manifest):
        if root is None:
            raise TypeError("a manifest wants the root that it lies below")
        return _load(root / tokenizer.folder, bool(tokenizer.stats["parity"]))
    return _load(tokenizer if tokenizer.is_dir() else tokenizer.parent, True)


@functools.lru_cache(maxsize=4)
def _load(folder: Path, parity: bool) -> Encoder:
    reference = _reference(folder / TOKENIZER_FILE)
    pieces = _pieces(reference, folder / TOKENIZER_FILE)
    fast = _fast(_read_ranks(folder / RANKS_FILE), pieces)
    if parity and (unequal := _unequal(reference, fast, awkward_strings())):
        get_logger(__name__).warning("%s: tiktoken and tokenizers differ on %r", folder, unequal[0][:40])
        parity = False
    if not parity:
        get_logger(__name__).warning("%s: encoding with `tokenizers`, about five times slower", folder)
    engine = ("tiktoken", fast) if parity else ("tokenizers", reference)
    return Encoder(len(pieces), 0, engine[0], engine[1], pieces)


def _reference(path: Path) -> Any:
    """The tokeniser as `tokenizers` reads it, told to take special tokens in text for ordinary text."""
    from tokenizers import Tokenizer

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MissingInput(f"cannot read {path}: {error.strerror}") from error
    try:
        reference = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise ManifestError(f"{path}: is no tokeniser ({error}). Remove its folder and make it again.") from error
    reference.encode_special_tokens = True
    return reference


def _alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte -> the byte: itself where printable, else 256, 257, ... in order."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


def _pieces(reference: Any, path: Path) -> tuple[bytes, ...]:
    """The bytes of each id, empty for special tokens."""
    special = {index for index, token in reference.get_added_tokens_decoder().items() if token.special}
    alphabet = _alphabet()
    names = {index: name for name, index in reference.get_vocab().items()}
    if sorted(names) != list(range(len(names))) or 0 not in special:
        raise ManifestError(f"{path}: its ids have gaps, or id 0 is no special token: not a tokeniser of this program.")
    try:
        return tuple(
            b"" if index in special else bytes(alphabet[letter] for letter in names[index])
            for index in range(len(names))
        )
    except KeyError as error:
        raise ManifestError(f"{path}: is no byte-level tokeniser (has {error}).") from error


def _fast(ranks: dict[bytes, int], pieces: tuple[bytes, ...]) -> Any:
    import tiktoken

    special = {f"<|special {index}|>": index for index, piece in enumerate(pieces) if not piece}
    return tiktoken.Encoding("assay", pat_str=_PRETOKENS, mergeable_ranks=ranks, special_tokens=special)


def _ranks_text(pieces: tuple[bytes, ...]) -> bytes:
    """Tiktoken's file: a line for each token, base64 of its bytes and its id."""
    lines = (b"%s %d\n" % (base64.b64encode(piece), index) for index, piece in enumerate(pieces) if piece)
    return b"".join(lines)


def _read_ranks(path: Path) -> dict[bytes, int]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise MissingInput(f"cannot read {path}: {error.strerror}") from error
    try:
        return {base64.b64decode(token, validate=True): int(rank) for token, rank in (line.split() for line in lines)}
    except ValueError as error:
        raise ManifestError(f"{path}: is no tiktoken file ({error}). Remove its folder and make it again.") from error


def awkward_strings() -> list[str]:
    """Strings on which encoders have differed or failed: every class of space, runs, contractions, marks, scripts."""
    spaces = "\t\n\x0b\x0c\r\x1c\x1f \x85\xa0\u1680\u180e\u2003\u2028\u202f\u205f\u3000\u200b\ufeff"
    strings = [f"{left}{space * count}{right}" for space in spaces for count in (1, 2, 3) for left, right in _SIDES]
    runs = [
        unit * 3000 for unit in ("a", "ab", " ", "\n", "\r\n", "1", "!", "中", "é", "e\u0301", "👩‍👩‍👧", "'s", " a")
    ]
    texts = [
        "", "I'll they're we've I'm you'd it's don't I'LL ’s 's'S", "<|endoftext|> <|endoftext|>x", "a\x00b\x01\x7f",
        "½²٣१Ⅷ〇 1234567890 3.14",
        "שלום עולם مرحبا สวัสดีชาวโลก 你好，世界。 こんにちは 안녕하세요", "x = {'a':\t[1,\n\n  2]}\r\n",
    ]  # fmt: skip
    return [*strings, *runs, *(run + "x" for run in runs), *texts]


_SIDES = (("", ""), ("a", "b"), (" a", ""), ("", "1"), ("!", "é"))


def _every_character() -> list[str]:
    """Every code point of the first three planes once, in stretches that mix neighbours."""
    points = [chr(point) for point in range(0x30000) if not 0xD800 <= point < 0xE000]
    return ["".join(points[start : start + 4096]) for start in range(0, len(points), 4096)]


def _unequal(reference: Any, fast: Any, texts: Iterable[str]) -> list[str]:
    """The stretches of the texts on which the two engines give other ids."""
    return [
        segment
        for text in texts
        for segment in segments(text)
        if not np.array_equal(_encode_with(reference, segment), _encode_with(fast, segment))
    ]


@dataclass(frozen=True)
class Sample:
    """The documents to train on, and those to compare the engines on."""

    limits: dict[tuple[int, int], int]
    """(shard, row) -> how many of its bytes to take."""
    parity: frozenset[tuple[int, int]]
    bytes_by_source: dict[str, int]
    documents: int
    """In the whole corpus."""


def choose_sample(paths: Sequence[Path], sample_bytes: int) -> Sample:
    """The state rule: a stratum (source, language) gets `sample_bytes` in proportion to its share of all bytes.

    Within a stratum documents are taken by rising SHA-256 of their id until its share is full; the last one is cut.
    """
    strata: dict[tuple[str, str], list[tuple[str, int, int, int]]] = {}
    for shard, path in enumerate(paths):
        table = read_table(path, columns=["id", "text", "source", "language"])
        sizes = pc.binary_length(table["text"]).to_pylist()
        columns = [table[name].to_pylist() for name in ("id", "source", "language")]
        for row, (identity, source, language, size) in enumerate(zip(*columns, sizes, strict=True)):
            place = (sha256_bytes(identity.encode("utf-8"))[:16], shard, row, size)
            strata.setdefault((source, language), []).append(place)
    totals = {name: sum(size for *_, size in places) for name, places in strata.items()}
    corpus = sum(totals.values())
    limits: dict[tuple[int, int], int] = {}
    taken: list[tuple[str, int, int, int]] = []
    by_source: dict[str, int] = {}
    for name in sorted(strata):
        room = min(totals[name], -(-sample_bytes * totals[name] // max(corpus, 1)))
        for place in sorted(strata[name]):
            _, shard, row, size = place
            if room <= 0:
                break
            if not size:
                continue
            limits[shard, row] = min(size, room)
            by_source[name[0]] = by_source.get(name[0], 0) + limits[shard, row]
            room -= size
            taken.append(place)
    parity = frozenset((shard, row) for _, shard, row, _ in sorted(taken)[:_PARITY_DOCUMENTS])
    return Sample(limits, parity, by_source, sum(len(places) for places in strata.values()))


def _sample_texts(paths: Sequence[Path], limits: dict[tuple[int, int], int]) -> Iterator[tuple[int, int, str]]:
    """(shard, row, text) of the sample, each text cut at its limit, at a whole character."""
    places = itertools.groupby(sorted(limits), key=operator.itemgetter(0))
    for shard, group in places:
        rows = [row for _, row in group]
        texts = read_table(paths[shard], columns=["text"])["text"].take(rows)
        for row, text in zip(rows, texts, strict=True):
            data = text.as_buffer().to_pybytes()[: limits[shard, row]]
            yield shard, row, data.decode("utf-8", errors="ignore")


def _train(texts: Iterable[str], config: TokenizerConfig) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary_size,
        special_tokens=list(config.special_tokens),
        initial_alphabet=sorted(_alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_tokenizer(documents: Manifest, config: TokenizerConfig, runtime: Runtime) -> Manifest:
    """Train a byte-level BPE on a stratified sample of the documents; writes tokenizer.json and tokenizer.tiktoken.

    Raises:
        PipelineError: there are no documents, or none with text.
    """
    recipe = Recipe("tokenizer", VERSION, config)

    def make(folder: Path) -> Made:
        paths = documents.files("documents", runtime.root)
        sample = choose_sample(paths, config.sample_bytes)
        if not sample.limits:
            raise PipelineError(
                f"tokenizer: no documents with text in {documents.path} ({sample.documents} documents). "
                f"Look at what the earlier stages removed: assay data show CONFIG."
            )
        texts = (part for *_, text in _sample_texts(paths, sample.limits) for part in segments(text))
        trained = _train(texts, config)
        path, ranks = folder / TOKENIZER_FILE, folder / RANKS_FILE
        write_text(path, trained.to_str())
        reference = _reference(path)
        pieces = _pieces(reference, path)
        write_bytes(ranks, _ranks_text(pieces))
        if len(pieces) < config.vocabulary_size:
            get_logger(__name__).warning(
                "tokenizer: the sample gave %d tokens, fewer than vocabulary_size %d",
                len(pieces),
                config.vocabulary_size,
            )
        parity = _parity(reference, _fast(_read_ranks(ranks), pieces), paths, sample)
        return Made([describe(path, runtime.root), describe(ranks, runtime.root)], {
            "documents": sample.documents,
            "sample_documents": len(sample.limits),
            "sample_bytes": sum(sample.limits.values()),
            "sample_bytes_by_source": sample.bytes_by_source,
            "vocabulary_size": len(pieces),
            "end_of_document": 0,
            **parity,
        })  # fmt: skip

    return run_stage(recipe, [documents.as_input()], runtime, make)


def _parity(reference: Any, fast: Any, paths: Sequence[Path], sample: Sample) -> dict[str, Any]:
    """Compare the engines on documents of the sample, the awkward strings and every character; counts for the stats."""
    limits = {place: min(sample.limits[place], _PARITY_BYTES // _PARITY_DOCUMENTS) for place in sample.parity}
    texts = [text for *_, text in _sample_texts(paths, limits)]
    unequal = _unequal(reference, fast, [*texts, *awkward_strings(), *_every_character()])
    if unequal:
        get_logger(__name__).warning(
            "tokenizer: tiktoken and tokenizers give other ids for %d texts, first %r; encoding will use tokenizers",
            len(unequal), unequal[0][:60],
        )  # fmt: skip
    return {
        "parity": not unequal,
        "parity_documents": len(texts),
        "parity_unequal": len(unequal),
        "parity_bytes": sum(len(text.encode("utf-8")) for text in texts),
        "parity_tokens": sum(len(_encode_with(reference, text)) for text in texts),
    }
