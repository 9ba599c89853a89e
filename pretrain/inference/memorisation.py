"""Memorisation probe: extraction of training sequences by number of copies.

A sequence is extracted if the model, given its first tokens, continues it greedily with exactly the tokens that follow
(arXiv:2202.07646). That holds if each of them is the likeliest after the true ones before it, so one pass over the
sequence decides; nothing is generated. `sequences.json` of the artifact lists every sequence with its shard and
offset, which `assay data trace` follows to the document; `stats.rows` has a row for each number of copies, with
Wilson's 95 % interval.

Sequences are windows of the training shards whose continuation the checkpoint's training has predicted
(`read_targets.py`): a run that ends within its first epoch has not learned the others, and one that learns answers has
not learned prompts. They are drawn among the distinct ones by hash. The copies of a window are the documents in which
its continuation was predicted (`window_counts.py`). Windows of one document have much in common, so at most one
sequence of a document is drawn. The row of no copies has windows of the validation shards that occur in no training
shard: the rate that is prediction, not memory.

`stats.read_share` is the share of the shards' targets that was read, `stats.epochs` the predictions over the targets.

`stats.trend` is the Cochran-Armitage test for a rate that changes with the logarithm of the copies, over the rows with
copies.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data_pipeline.tokens.token_shards import TokenShard
from governance.config import Section
from governance.errors import ConfigError, PipelineError
from governance.files import write_text
from governance.manifest import Manifest, describe
from governance.stage import Made, Recipe, Runtime, run_stage
from pretrain.checkpoint.format import identity_of
from pretrain.data.dataset import open_rows, without_removed
from pretrain.evaluation.model_bias import NORMAL_QUANTILE, wilson
from pretrain.inference.loaded_model import LoadedModel
from pretrain.inference.read_targets import Marks, read_targets, rows_read, tokens_read
from pretrain.inference.window_counts import Window, Windows, bound_of, copies_of, distinct, read_window, sample_windows

VERSION = 2
COPIES = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 64), (65, 128), (129, None))
"""Least and most copies of a row; None: any more."""
_BATCH_TOKENS = 2048


class MemorisationConfig(Section):
    """Sequences of the memorisation probe."""

    prefix_tokens: int = Field(default=32, gt=0)
    """Tokens that the model is given."""
    continuation_tokens: int = Field(default=32, gt=0)
    """Tokens that it must continue with."""
    sequences: int = Field(default=200, gt=0)
    """Most sequences of each number of copies."""

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.prefix_tokens + self.continuation_tokens


class Probed(NamedTuple):
    """Result for one sequence."""

    window: Window
    split: str
    """Role of its shard: "train" or "validation"."""
    right: int
    """Tokens of the continuation that are the likeliest after the true ones before them."""
    nats: float
    """Cross entropy of the continuation, nats per token."""


def probe_memorisation(
    checkpoint: Manifest,
    tokens: Manifest,
    config: MemorisationConfig,
    model: Callable[[], LoadedModel],
    runtime: Runtime,
) -> Manifest:
    """Measure one checkpoint; `model` opens it unless the artifact exists.

    Raises:
        CheckpointError: it was not trained on `tokens`, which are token shards.
        ConfigError: a sequence is longer than the model's context.
        PipelineError: it has read no sequence of this length.
    """
    identity, length = identity_of(checkpoint), config.length
    root, train = runtime.root, identity.recipe.train
    trained = tokens_read(checkpoint, tokens, root)
    if length > train.sequence_length:
        raise ConfigError(
            f"memorisation: prefix_tokens + continuation_tokens = {length} is above train.sequence_length = "
            f"{train.sequence_length}, the model's context; lower one of them"
        )

    def make(target: Path) -> Made:
        paths = {split: tokens.files(split, root) for split in ("train", "validation")}
        shards = {split: [TokenShard.open(path) for path in found] for split, found in paths.items()}
        rows = without_removed(open_rows(trained, "train", root, train.sequence_length), train)
        read = rows_read(rows, train, identity.step)
        bound = bound_of(sum(len(shard.tokens) for shard in shards["train"]))
        drawn, populations = draw(shards, config, bound, read_targets(rows, read))
        probed = probe(model(), drawn, config)
        names = {split: [path.relative_to(root).as_posix() for path in found] for split, found in paths.items()}
        lines = [
            json.dumps({
                "shard": names[split][window.shard], "offset": window.offset, "copies": window.copies,
                "extracted": right == config.continuation_tokens, "right": right, "nats": nats,
            })
            for window, split, right, nats in probed
        ]  # fmt: skip
        write_text(target / "sequences.json", "[\n" + ",\n".join(lines) + "\n]\n")
        found = rows_of(probed, populations, config)
        predicted = sum(int(marks.sum(dtype=np.int64)) for marks in read_targets(rows, read))
        stats = {
            "step": identity.step,
            "prefix_tokens": config.prefix_tokens,
            "continuation_tokens": config.continuation_tokens,
            "sampled_share": round((bound + 1) / (1 << 64), 9),
            "epochs": round(checkpoint.stats["tokens"] / max(rows.targets, 1), 4),
            "read_share": round(predicted / max(rows.targets, 1), 6),
            "rows": found,
            "trend": trend(found),
        }
        return Made([describe(target / "sequences.json", root)], stats)

    inputs = [checkpoint.as_input(), tokens.as_input()]
    return run_stage(Recipe("memorisation", VERSION, config), inputs, runtime, make)


Drawn = list[tuple[str, Window]]
"""Role of the shard, and the window."""


def draw(
    shards: Mapping[str, Sequence[TokenShard]],
    config: MemorisationConfig,
    bound: int,
    read: Iterable[Marks] | None = None,
) -> tuple[Drawn, dict[int, int]]:
    """Sequences of each row, and the windows to draw from.

    The latter are numbers of distinct windows, by the least copies of a row. `read` has what was predicted of each
    training shard; None: all of it.

    Raises:
        PipelineError: no sequence of this length was read.
    """
    sampled, end = (config.length, bound), config.continuation_tokens
    everywhere = sample_windows(shards["train"], *sampled, _targets(shards["train"]) if read is None else read, end)
    trained = copies_of(everywhere)
    firsts, copies = distinct(trained)
    if not len(firsts):
        raise PipelineError(
            f"memorisation: the checkpoint has read no document with {config.length} tokens of which it predicted the "
            f"last {end}; lower memorisation.prefix_tokens or continuation_tokens, or take a later checkpoint"
        )
    drawn, populations = [], {}
    if shards["validation"]:
        unseen = copies_of(sample_windows(shards["validation"], *sampled, _targets(shards["validation"]), end))
        others, counts = distinct(unseen)
        fresh = ~np.isin(unseen.hashes[others], everywhere.hashes)
        populations[0] = int(fresh.sum())
        found = _chosen(shards["validation"], unseen, others[fresh], counts[fresh], config.sequences)
        drawn += [("validation", Window(one.tokens, 0, one.shard, one.offset)) for one in found]
    for least, most in COPIES:
        mine = (copies >= least) & (copies <= (most or copies.max()))
        populations[least] = int(mine.sum())
        drawn += [
            ("train", one) for one in _chosen(shards["train"], trained, firsts[mine], copies[mine], config.sequences)
        ]
    return drawn, populations


def _targets(shards: Sequence[TokenShard]) -> Iterable[Marks]:
    """Everything that training could predict, by shard."""
    for shard in shards:
        answers = shard.answers
        yield np.ones(len(shard.tokens), np.int8) if answers is None else (answers != 0).astype(np.int8)


def _chosen(
    shards: Sequence[TokenShard],
    windows: Windows,
    firsts: npt.NDArray[np.int64],
    copies: npt.NDArray[np.int64],
    most: int,
) -> list[Window]:
    """Windows of the lowest hashes, at most one of a document."""
    _, kept = np.unique(windows.documents[firsts], return_index=True)
    found: list[Window] = []
    for index in np.sort(kept).tolist():
        window = read_window(shards, windows, int(firsts[index]), int(copies[index]))
        if window is not None:
            found.append(window)
        if len(found) == most:
            break
    return found


def probe(model: LoadedModel, drawn: Drawn, config: MemorisationConfig) -> list[Probed]:
    """Result of each sequence, by one pass over it."""
    import torch
    import torch.nn.functional as F

    from pretrain.model.decoder import single_documents

    probed: list[Probed] = []
    rows = max(1, _BATCH_TOKENS // config.length)
    with torch.no_grad():
        for start in range(0, len(drawn), rows):
            part = drawn[start : start + rows]
            tokens = torch.from_numpy(np.stack([window.tokens for _, window in part])).to(model.decoder.device)
            hidden, _ = model.decoder.model(tokens, *single_documents(tokens))
            logits = model.decoder.lm_head(hidden[:, config.prefix_tokens - 1 : -1]).float()
            targets = tokens[:, config.prefix_tokens :]
            right = (logits[..., : model.vocabulary_size].argmax(-1) == targets).sum(-1).tolist()
            nats = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(-1).tolist()
            results = zip(part, right, nats, strict=True)
            probed += [Probed(window, split, hits, round(loss, 6)) for (split, window), hits, loss in results]
    return probed


def rows_of(
    probed: Sequence[Probed], populations: Mapping[int, int], config: MemorisationConfig
) -> list[dict[str, Any]]:
    """Table rows, one for each number of copies with a sequence."""
    rows = []
    for least, most in ((0, 0), *COPIES):
        mine = [probe for probe in probed if least <= probe.window.copies <= (most if most is not None else math.inf)]
        if not mine:
            continue
        hits = sum(probe.right == config.continuation_tokens for probe in mine)
        rate, lower, upper = wilson(hits, len(mine))
        rows.append({
            "copies_from": least, "copies_to": most, "windows": populations[least], "sequences": len(mine),
            "extracted": hits, "rate": rate, "lower": lower, "upper": upper,
            "tokens_right": round(sum(probe.right for probe in mine) / len(mine) / config.continuation_tokens, 6),
            "nats": round(math.fsum(probe.nats for probe in mine) / len(mine), 6),
        })  # fmt: skip
    return rows


def trend(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Cochran-Armitage test of the rate over the logarithm of the copies.

    `z` is None where there are fewer than two rows with copies, or all or none of their sequences are extracted.
    """
    mine = [row for row in rows if row["copies_from"]]
    scores = [math.log2(row["copies_from"]) for row in mine]
    counts, hits = [row["sequences"] for row in mine], [row["extracted"] for row in mine]
    total, extracted = sum(counts), sum(hits)
    if len(mine) < 2 or extracted in (0, total):
        return {"z": None, "direction": "none"}
    share = extracted / total
    mean = sum(score * count for score, count in zip(scores, counts, strict=True)) / total
    slope = sum((score - mean) * hit for score, hit in zip(scores, hits, strict=True))
    spread = sum(count * (score - mean) ** 2 for score, count in zip(scores, counts, strict=True))
    z = slope / math.sqrt(share * (1 - share) * spread)
    direction = "none" if abs(z) < NORMAL_QUANTILE else "rises" if z > 0 else "falls"
    return {"z": round(z, 6), "direction": direction}
