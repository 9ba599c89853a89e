"""Vocabulary of a `tokenizer.json`, of any kind that `tokenizers` loads.

A *lossless* tokenizer is a byte-level one without normaliser, prefix or stripping: the bytes of its ids, joined, are
the text. Of other kinds (SentencePiece, Unigram, WordPiece, a normaliser) `tokenizers` decodes.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

MAX_IDS = 1 << 24
SENTINEL = "<extra_id_{}>"
"""Special tokens that stand for spans (`train.span_corruption`), by number, with T5's names."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class TokenVocabulary:
    """Tokens by id, and how their bytes make up a text."""

    pieces: tuple[bytes, ...]
    """The bytes of each id; empty for a special token and for an id without a token."""
    special: dict[str, int]
    """Special token -> id."""
    kind: str
    """Model and pre-tokenizer, such as "BPE, ByteLevel"."""
    lossless: bool
    normaliser: str
    """Type of the normaliser, such as "NFC"; empty: none."""
    cut_at_spaces: bool
    """A text may be encoded in segments (`encoder.segments`): true of GPT-2's pre-tokenizer alone."""
    unknown: int | None
    """The id of characters and words that the vocabulary lacks; None: there is none."""


@functools.cache
def alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte -> the byte.

    The character is the byte itself where that is printable, else 256, 257, ... in order.
    """
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


@functools.lru_cache(maxsize=4)
def read_vocabulary(text: str) -> TokenVocabulary:
    """The vocabulary of a `tokenizer.json`'s text.

    Raises:
        ValueError: it is not such a file, has random merges, or ids that cannot be used; names the fault.
    """
    try:
        return _vocabulary_of(json.loads(text))
    except (TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"a part of it is missing, has another type than in a tokenizer.json, or is nested too deep "
            f"({type(error).__name__}: {error})"
        ) from error


def _vocabulary_of(values: Any) -> TokenVocabulary:
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        raise ValueError("it has no model")
    model = values["model"]
    if model.get("dropout"):
        raise ValueError(f"its model has dropout = {model['dropout']}, which makes ids random")
    added = values.get("added_tokens") or []
    special = {token["content"]: token["id"] for token in added if token.get("special")}
    plain = {token["content"]: token["id"] for token in added if not token.get("special")}
    ids = {**_model_ids(model), **plain, **special}
    _refuse_unusable(ids)
    cutters, decoders = [*_parts(values.get("pre_tokenizer"))], [*_parts(values.get("decoder"))]
    byte_level = "ByteLevel" in {part["type"] for part in (*cutters, *decoders)}
    # A special token has no bytes; a plain added one has those of its name, which is never encoded.
    pieces = [b""] * (max(ids.values()) + 1)
    names = [name for name in ids if name not in special and name not in plain]
    for name, piece in zip(names, _bytes_of_names(names, byte_level, bool(model.get("byte_fallback"))), strict=True):
        pieces[ids[name]] = piece
    for name in plain.keys() - special.keys():
        pieces[ids[name]] = name.encode()
    normaliser = str((values.get("normalizer") or {}).get("type", ""))
    lossless = byte_level and not normaliser and not _changes_texts(model, added, cutters)
    return TokenVocabulary(
        tuple(pieces),
        special,
        ", ".join([model.get("type", "BPE"), *(part["type"] for part in cutters if part["type"] != "Sequence")]),
        lossless,
        normaliser,
        lossless and _cuts_like_gpt2(cutters) and not plain,
        model.get("unk_id", ids.get(model.get("unk_token"))),
    )


def _refuse_unusable(ids: Mapping[str, int]) -> None:
    """Refuse ids that no token shard could hold.

    Raises:
        ValueError: there are none, two tokens share one, or one is out of range.
    """
    if not ids:
        raise ValueError("it has no token")
    if len(set(ids.values())) < len(ids):
        raise ValueError("two of its tokens have one id")
    if not 0 <= min(ids.values()) <= max(ids.values()) < MAX_IDS:
        raise ValueError(
            f"its ids go from {min(ids.values())} to {max(ids.values())}; 0 to {MAX_IDS - 1:,} can be used"
        )


def _cuts_like_gpt2(cutters: Sequence[Mapping[str, Any]]) -> bool:
    return len(cutters) == 1 and cutters[0]["type"] == "ByteLevel" and bool(cutters[0].get("use_regex", True))


def _changes_texts(
    model: Mapping[str, Any], added: Sequence[Mapping[str, Any]], cutters: Sequence[Mapping[str, Any]]
) -> bool:
    """Return whether a byte-level model may decode to another text.

    It may strip spaces, put one before the text, or lose what it does not know.
    """
    strips = any(token.get("lstrip") or token.get("rstrip") for token in added if not token.get("special"))
    prefixed = any(part.get("add_prefix_space") for part in cutters)
    unknown = model.get("unk_token") is not None or model.get("type", "BPE") != "BPE"
    return strips or prefixed or unknown


def _model_ids(model: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = model.get("vocab") or {}
    if isinstance(vocabulary, list):  # Unigram: pieces with their scores
        return {piece: index for index, (piece, _) in enumerate(vocabulary)}
    return dict(vocabulary)


def _parts(component: Any) -> Iterator[Mapping[str, Any]]:
    """The component, and those within a Sequence."""
    if component:
        yield component
        for inner in (*component.get("pretokenizers", ()), *component.get("decoders", ())):
            yield from _parts(inner)


def _bytes_of_names(names: Sequence[str], byte_level: bool, byte_fallback: bool) -> list[bytes]:
    joined, byte_of = "".join(names), alphabet()
    if not byte_level or not byte_of.keys() >= set(joined):
        return [_bytes_of(name, byte_level, byte_fallback) for name in names]
    data = joined.translate({ord(letter): byte for letter, byte in byte_of.items()}).encode("latin-1")
    return [data[end - len(name) : end] for name, end in zip(names, accumulate(map(len, names)), strict=True)]


def _bytes_of(name: str, byte_level: bool, byte_fallback: bool) -> bytes:
    if byte_level:
        with contextlib.suppress(KeyError):  # a letter may stand for no byte
            return bytes(map(alphabet().__getitem__, name))
    if byte_fallback and (byte := _BYTE.fullmatch(name)):
        return bytes([int(byte[1], 16)])
    return name.replace("▁", " ").encode()


def definition_of_text(text: str) -> str:
    """A `tokenizer.json` in which no text gives a special token.

    It is for encoding alone. Special added tokens are left out. A model that looks whole words up in its vocabulary
    would still find one there, so it has another name there, which begins with a noncharacter.
    """
    values = json.loads(text)
    model = values["model"]
    added = values.get("added_tokens") or []
    special = {token["content"] for token in added if token.get("special")}
    values["added_tokens"] = [token for token in added if not token.get("special")]
    values |= {"truncation": None, "padding": None, "post_processor": None}
    if model.get("type", "BPE") != "BPE" or model.get("ignore_merges"):
        special.discard(model.get("unk_token"))
        hidden = {name: f"\ufdd0{number}" for number, name in enumerate(sorted(special))}
        if isinstance(model.get("vocab"), list):
            kept = model.get("unk_id")
            model["vocab"] = [
                [name if index == kept else hidden.get(name, name), score]
                for index, (name, score) in enumerate(model["vocab"])
            ]
        else:
            model["vocab"] = {hidden.get(name, name): index for name, index in model["vocab"].items()}
    return json.dumps(values, ensure_ascii=False)


def with_special_tokens(text: str, names: list[str]) -> str:
    """The `tokenizer.json` with further special tokens, whose ids follow the largest."""
    values = json.loads(text)
    first = len(read_vocabulary(text).pieces)
    values["added_tokens"] = [*(values.get("added_tokens") or []), *(
        {"id": index, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for index, name in enumerate(names, first)
    )]  # fmt: skip
    return json.dumps(values, ensure_ascii=False)


def ranks_text(text: str) -> bytes | None:
    """A byte-level BPE's vocabulary in tiktoken's form.

    A line for each token has the base64 of its bytes and its id. In that form the id is the rank, so the result is None
    for a vocabulary whose ids do not increase with its merges, and for one of another kind.
    """
    vocabulary, model = read_vocabulary(text), json.loads(text)["model"]
    if not vocabulary.lossless:
        return None
    joined = ("".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in model.get("merges", []))
    if any(after <= before for before, after in pairwise(model["vocab"][name] for name in joined)):
        return None
    lines = (b"%s %d\n" % (base64.b64encode(piece), index) for index, piece in enumerate(vocabulary.pieces) if piece)
    return b"".join(lines)
