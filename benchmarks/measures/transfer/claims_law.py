"""Law of planted recall, in a form small enough for two cores.

Each architecture is trained on planted facts with each seed, at 32 channels, distances of 8 to 128 tokens and 32 slots.
The sign is right where recall falls with the distance for a model without attention, and where recall at the longest
distance is above that of the same network without attention, for one with (`law_holds`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measures.goals import Goal, figure

_TEXT = 256  # ids of the text around the facts
SHARE = 0.9


def claims(quick: bool) -> list[Goal]:
    """Share of seeds in which each architecture follows the law."""
    return goals_of([recalled(seed) for seed in range(1, 1 + (1 if quick else 10))])


def recalled(seed: int) -> dict[str, Any]:
    """Recall by distance of each architecture, trained with one seed."""
    from data_pipeline.tokens.token_shards import EncodedDocument, TokenShard, write_token_shard
    from pretrain.experiments.claim_training import arithmetic, train_recall
    from pretrain.experiments.claims_config import ARCHITECTURES, RecallConfig, RecallTraining, Shape

    distances = (8, 16, 32, 64, 128)
    recall = RecallConfig(distances=distances, slots=32, values=4, steps=120, batch_tokens=2048, rows=32)
    found = {}
    with tempfile.TemporaryDirectory() as scratch, arithmetic(1):
        text = np.random.default_rng(0).integers(1, _TEXT, size=20_000)
        text[-1] = 0
        path = Path(scratch) / "00000.tokens"
        write_token_shard(path, [EncodedDocument("text", text, len(text), "text/en")], _TEXT, 0)
        for name in ARCHITECTURES:
            recipe = RecallTraining(
                architecture=name, shape=Shape(width=32, layers=2, heads=2), recall=recall, optimizer="adamw",
                learning_rate=0.01, seed=seed,
            )  # fmt: skip
            found[name] = train_recall(recipe, [TokenShard.open(path)], lambda *_: None)[0]["recall"]
    return found


def goals_of(found: Sequence[dict[str, Any]]) -> list[Goal]:
    """A goal for each architecture, from the recall of every seed."""
    from pretrain.experiments.claim_findings import attends, farthest, law_holds, slope

    laws, goals = [law_holds(one) for one in found], []
    for name in found[0]:
        follows = sum(law[name] for law in laws)
        far, fall = ([of(one[name]) for one in found] for of in (farthest, slope))
        note = f"{follows} of {len(laws)} seeds; at the longest distance {_mean(far)}, a doubling {_mean(fall)}"
        goals.append(Goal(f"recall_law_of_{name}", follows / len(laws), SHARE, ">=", note))
    lowest = min(farthest(one[name]) for one in found for name in one if attends(name))
    return [*goals, figure("lowest_far_recall_with_attention", lowest)]


def _mean(values: Sequence[float]) -> str:
    """Mean with its interval; one seed has none."""
    from pretrain.experiments.claim_findings import interval

    found = interval(values)
    if found is None:
        return f"{float(np.mean(values)):.4f}"
    return f"{found['mean']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"
