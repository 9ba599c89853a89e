"""Vocabulary of a byte-level BPE, from `tokenizer.json`.

It must be what this program trains, and what `tokenizers` writes for GPT-2: a BPE model over the printable characters
for the 256 bytes, the pre-tokeniser `ByteLevel` with its regular expression and without a prefix space, no normaliser,
and no added token but special ones. The post-processor, decoder and padding decide no id of a text.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class TokenVocabulary:
    """Token ids and their merges."""

    pieces: tuple[bytes, ...]
    """The bytes of each id; empty for a special token."""
    special: dict[str, int]
    """Special token -> id."""
    letters: tuple[int, ...]
    """[256], the id of each byte."""
    merges: dict[tuple[int, int], tuple[int, int]]
    """(left id, right id) -> (rank, merged id); ranks are 0, 1, 2 ..., lower merges first."""


@functools.cache
def alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte -> the byte.

    Itself where printable, else 256, 257, ... in order.
    """
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


def read_vocabulary(text: str) -> TokenVocabulary:
    """The vocabulary of a `tokenizer.json`'s text.

    Raises:
        ValueError: it is not such a file, or is of another kind; names the fault.
    """
    values = json.loads(text)
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        raise ValueError("it has no model")
    _check_kind(values)
    special = {token["content"]: token["id"] for token in values.get("added_tokens") or []}
    ids: dict[str, int] = {**values["model"].get("vocab", {}), **special}
    if sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(f"its {len(ids)} ids are not 0 to {len(ids) - 1}, each once")
    pieces = [b""] * len(ids)
    bytes_of = alphabet()
    for name, index in ids.items():
        if name not in special:
            try:
                pieces[index] = bytes(bytes_of[letter] for letter in name)
            except KeyError as error:
                raise ValueError(f"its token {name!r} has {error}, which represents no byte") from None
    places = {piece: index for index, piece in enumerate(pieces) if piece}
    missing = [byte for byte in range(256) if bytes([byte]) not in places]
    if missing:
        raise ValueError(f"it has no token for the byte {missing[0]:#04x}")
    letters = tuple(places[bytes([byte])] for byte in range(256))
    return TokenVocabulary(tuple(pieces), special, letters, _merges(values["model"].get("merges", []), ids))


def _check_kind(values: Mapping[str, Any]) -> None:
    model, cutter = values["model"], values.get("pre_tokenizer") or {}
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"its model is {model['type']}, not BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(name):
            raise ValueError(f"its model has {name} = {model[name]!r}")
    if values.get("normalizer"):
        raise ValueError(f"it has the normaliser {values['normalizer'].get('type')}")
    if cutter.get("type") != "ByteLevel" or cutter.get("add_prefix_space", True) or not cutter.get("use_regex", True):
        raise ValueError(f"its pre-tokeniser is {json.dumps(cutter)}, not ByteLevel with the expression of GPT-2")
    for token in values.get("added_tokens") or []:
        if not token.get("special"):
            raise ValueError(f"its added token {token['content']!r} is not special, so that text could hold it")


def _merges(merges: list[Any], ids: Mapping[str, int]) -> dict[tuple[int, int], tuple[int, int]]:
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        try:
            pair = ids[left], ids[right]
            merged = ids[left + right]
        except KeyError as error:
            raise ValueError(f"its merge {left!r} {right!r} needs the token {error}, which is missing") from None
        if pair in found:
            raise ValueError(f"its merge {left!r} {right!r} occurs twice")
        found[pair] = rank, merged
    return found


def ranks_text(vocabulary: TokenVocabulary) -> bytes | None:
    """The vocabulary in tiktoken's form.

    A line for each token, base64 of its bytes and its id.

    There the id is the rank, so a vocabulary whose ids do not rise with its merges has no such form: None.
    """
    by_rank = [merged for _, (_, merged) in sorted((value[0], value) for value in vocabulary.merges.values())]
    if any(after <= before for before, after in pairwise(by_rank)):
        return None
    lines = (b"%s %d\n" % (base64.b64encode(piece), index) for index, piece in enumerate(vocabulary.pieces) if piece)
    return b"".join(lines)
