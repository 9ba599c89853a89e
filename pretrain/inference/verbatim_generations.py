"""Verbatim share of generations: passages that the training corpus holds, by length.

The prompts are the first tokens of documents of either split, those of the lowest identities; the model continues each
greedily. A passage of a continuation counts if the index of the corpus's texts holds it letter for letter, as
`assay trace-text` finds it; the prompt itself does not count. `generations.json` of the artifact has every
continuation with its passages; `stats.rows` has a row for each split and least length:

    with_passage   generations that have a passage of the length, with Wilson's 95 % interval of their share
    characters     share of all characters that are in such passages, with a bootstrap over generations
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data_pipeline.tokens.token_shards import TokenShard
from governance.config import Section
from governance.files import write_json
from governance.manifest import Manifest, describe
from governance.stage import Made, Recipe, Runtime, run_stage
from pretrain.checkpoint.format import identity_of
from pretrain.evaluation.model_bias import wilson

VERSION = 1
LENGTHS = (25, 50, 100, 200, 400)
"""Least characters of a passage, one row each."""
_RESAMPLES = 2000

Continued = Callable[[Sequence[npt.NDArray[np.int64]]], list[str]]
"""Texts that follow prompts."""
Passages = Callable[[str, int], list[tuple[int, int]]]
"""Longest passages of a text, of at least this many characters, that the corpus holds: [start, end)."""


class VerbatimConfig(Section):
    """Generations that are searched for passages of the corpus."""

    prefix_tokens: int = Field(gt=0)
    """Tokens of a prompt."""
    max_tokens: int = Field(gt=0)
    """Most tokens of a continuation."""
    generations: int = Field(gt=0)
    """Most generations of each split."""


@dataclass(frozen=True)
class Generation:
    """A continuation, and its passages that the corpus holds."""

    split: str
    shard: str
    offset: int
    """First token of the prompt in its shard."""
    text: str
    passages: list[tuple[int, int]]


def measure_verbatim(
    subject: tuple[Manifest, Manifest, Manifest],
    config: VerbatimConfig,
    continued: Continued,
    passages: Passages,
    runtime: Runtime,
) -> Manifest:
    """Make or find the verbatim share of a checkpoint's generations.

    `subject` are the checkpoint, its token shards and their index.
    """
    checkpoint, tokens, _ = subject
    root = runtime.root

    def make(target: Path) -> Made:
        found = []
        for split in ("train", "validation"):
            drawn = draw_prompts(tokens.files(split, root), config)
            texts = continued([prompt for _, _, prompt in drawn])
            found += [
                Generation(split, path.relative_to(root).as_posix(), offset, text, passages(text, LENGTHS[0]))
                for (path, offset, _), text in zip(drawn, texts, strict=True)
            ]
        write_json(target / "generations.json", [vars(one) for one in found])
        stats = {"step": identity_of(checkpoint).step, **config.model_dump(), "rows": rows_of(found)}
        return Made([describe(target / "generations.json", root)], stats)

    inputs = [one.as_input() for one in subject]
    return run_stage(Recipe("verbatim", VERSION, config), inputs, runtime, make)


def draw_prompts(paths: Sequence[Path], config: VerbatimConfig) -> list[tuple[Path, int, npt.NDArray[np.int64]]]:
    """Shard, offset and tokens of prompts: beginnings of longer documents."""
    places: dict[int, tuple[Path, int]] = {}
    for path in paths:
        shard = TokenShard.open(path)
        ends = shard.document_ends.astype(np.int64)
        starts = ends - np.diff(ends, prepend=0)
        long = np.flatnonzero(ends - starts > config.prefix_tokens + 1)  # a token to continue with, and the end
        keys = np.ascontiguousarray(shard.identities[long]).view(">u8")[:, 0]
        for place in np.argsort(keys, kind="stable").tolist():
            places.setdefault(int(keys[place]), (path, int(starts[long[place]])))
            if len(places) >= 2 * config.generations:
                break
        places = dict(sorted(places.items())[: config.generations])
    return [
        (path, offset, TokenShard.open(path).tokens[offset : offset + config.prefix_tokens].astype(np.int64))
        for path, offset in places.values()
    ]


def rows_of(found: Sequence[Generation]) -> list[dict[str, Any]]:
    """A row for each split with generations, and least length."""
    rows = []
    for split in dict.fromkeys(one.split for one in found):
        mine = [one for one in found if one.split == split]
        sizes = np.array([len(one.text) for one in mine], np.int64)
        for least in LENGTHS:
            covered = np.array([_covered(one.passages, least) for one in mine], np.int64)
            hits = int((covered > 0).sum())
            rate, lower, upper = wilson(hits, len(mine))
            share, low, high = _share(covered, sizes)
            rows.append({
                "prompts_of": split, "characters_from": least, "generations": len(mine), "with_passage": hits,
                "rate": rate, "lower": lower, "upper": upper,
                "characters": share, "characters_lower": low, "characters_upper": high,
            })  # fmt: skip
    return rows


def _covered(passages: Sequence[tuple[int, int]], least: int) -> int:
    """Characters in passages of a least length, which ascend and may overlap."""
    covered = last = 0
    for start, end in passages:
        if end - start >= least:
            covered += end - max(start, last)
            last = end
    return covered


def _share(covered: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> tuple[float, float, float]:
    """Share of the characters, and its 95 % interval over generations."""
    drawn = np.random.default_rng(0).integers(0, len(sizes), (_RESAMPLES, len(sizes)))
    shares = covered[drawn].sum(1) / np.maximum(sizes[drawn].sum(1), 1)
    low, high = np.percentile(shares, (2.5, 97.5))
    return tuple(round(float(one), 6) for one in (covered.sum() / max(sizes.sum(), 1), low, high))  # type: ignore[return-value]
