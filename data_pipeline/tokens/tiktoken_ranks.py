"""tiktoken's encodings: a file of ranks and a pattern as a `tokenizer.json`.

A line of the file has the base64 of a token's bytes and its rank, which is its id. The pattern that parts a text and
the special tokens are not in the file; they are known for tiktoken's own encodings (`PATTERNS`), else given.

tiktoken merges the adjacent pair whose bytes have the lowest rank, whatever the two parts are. So each way of parting a
token into two tokens is a merge here, in the order of the ranks; and a pre-token that is a token is taken whole.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from itertools import count

from data_pipeline.tokens.vocabulary import alphabet

SUFFIX = ".tiktoken"
_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_WORD_START, _CASELESS = r"[^\r\n\p{L}\p{N}]?", f"(?i:{_CONTRACTIONS})"
_SPACES = r"\s+(?!\S)|\s+"
_END_RULE = r"|\s+\z"
PATTERNS: dict[str, tuple[str, dict[str, int]]] = {
    "r50k_base": (rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACES}", {"<|endoftext|>": 50256}),
    "cl100k_base": (
        rf"{_CASELESS}|{_WORD_START}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
        rf"{_END_RULE}|\s*[\r\n]+|{_SPACES}",
        {
            "<|endoftext|>": 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": (
        rf"{_WORD_START}[{_UPPER}]*[{_LOWER}]+{_CASELESS}?|{_WORD_START}[{_UPPER}]+[{_LOWER}]*{_CASELESS}?"
        rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|{_SPACES}",
        {"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
    ),
}
"""tiktoken's encoding -> its pattern and special tokens."""
PATTERNS["p50k_base"] = PATTERNS["r50k_base"]  # its ranks leave out the id 50256
_POSSESSIVE_BOUND = re.compile(r"(\\p\{\w+\}|\[[^\]]*\]|\\?[^\\])(\{\d+(?:,\d*)?\})\+")


def from_ranks(data: bytes, pattern: str, special_tokens: Sequence[str]) -> str:
    """The `tokenizer.json` of a file of ranks.

    Args:
        data: the file.
        pattern: a name of PATTERNS, or a regular expression as tiktoken takes it.
        special_tokens: those that the encoding does not have get the ids after its largest.

    Raises:
        ValueError: a line is not such a pair, a token or a byte is missing or named twice; or no pattern is given.
    """
    if not pattern:
        raise ValueError(
            f"a file of ranks does not hold its pattern; set data.tokenizer.pattern to {', '.join(PATTERNS)}, or to "
            f"the encoding's regular expression"
        )
    ranks = _read_ranks(data)
    expression, special = PATTERNS.get(pattern, (_for_oniguruma(pattern), {}))
    # The named encodings begin their special tokens at the first id without a rank, or one after it. Another
    # vocabulary with that pattern has none of them.
    taken = {*ranks.values()}
    free = next(index for index in count() if index not in taken)
    special = dict(special) if min(special.values(), default=-1) - free in (0, 1) else {}
    for name in special_tokens:
        special.setdefault(name, max([*ranks.values(), *special.values()]) + 1)
    printable = {byte: letter for letter, byte in alphabet().items()}
    names = {token: "".join(printable[byte] for byte in token) for token in ranks}
    merges = [
        (names[token[:cut]], names[token[cut:]])
        for token in sorted(ranks, key=ranks.__getitem__)
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    vocabulary = {names[token]: index for token, index in ranks.items()} | special
    added = [
        {"id": index, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for name, index in special.items()
    ]  # fmt: skip
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    bytes_of = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    values = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_of]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
            "vocab": vocabulary, "merges": merges,
        },
    }  # fmt: skip
    return json.dumps(values, ensure_ascii=False)


def for_gigatoken(definition: str) -> tuple[str, bool]:
    """A `tokenizer.json` with tiktoken's patterns as gigatoken knows them.

    The second value is true where cl100k_base's rule for spaces that end a text was left out. Without it, such spaces
    are parted after their last line end: ids differ where a text ends with another space than a line end.
    """
    if '"pretokenizers"' not in definition:
        return definition, False  # most have none, and reading them costs some 50 ms
    values = json.loads(definition)
    cutters = (values.get("pre_tokenizer") or {}).get("pretokenizers", [])
    expression = cutters[0].get("pattern", {}).get("Regex", "") if cutters else ""
    if expression == PATTERNS["r50k_base"][0]:  # GPT-2's, which ByteLevel has of its own
        values["pre_tokenizer"] = cutters[-1] | {"use_regex": True}
    elif _END_RULE in expression:
        cutters[0]["pattern"]["Regex"] = expression.replace(_END_RULE, "")
    else:
        return definition, False
    return json.dumps(values, ensure_ascii=False), _END_RULE in expression


def _read_ranks(data: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if line:
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except ValueError as error:
                raise ValueError(f"its line {number} is not a token in base64 and its rank ({error})") from error
    if len(set(ranks.values())) < len(ranks) or min(ranks.values(), default=0) < 0:
        raise ValueError("a rank occurs twice, or is negative")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(f"it has no token for the byte {missing[0]:#04x}")
    return ranks


def _for_oniguruma(pattern: str) -> str:
    """The pattern in the syntax of `tokenizers`.

    There a bounded repeat is not possessive, and $ ends any line.
    """
    pattern = _POSSESSIVE_BOUND.sub(r"(?>\1\2)", pattern)
    return re.sub(r"(?<!\\)\$(?=[|)]|\Z)", r"\\z", pattern)
