"""Validation loss and bits per byte, overall and by group.

- *loss*: mean cross entropy of the predicted tokens, in nats per token. It depends on the tokenizer.
- *loss_stderr*: its standard error over rows, as a ratio of sums (Cochran 1977, Sampling Techniques, section 6.4):
  sqrt(R / (R - 1) sum (n_r - loss t_r)^2) / sum t_r, for nats n_r and tokens t_r of R rows. Tokens of a row depend on
  each other, so rows are the sampling unit; the parts of a document in several rows are treated as independent.
- *bits per byte*: loss x (predicted tokens / UTF-8 bytes) / ln 2, over all validation documents. It does not depend on
  the tokenizer, so models with other vocabularies compare (The Pile, arXiv:2101.00027, section 3.1). Both counts are
  exact, from the shards. Predicted tokens are all but the first of each document, the end-of-document token included.
  Where documents begin with a token of their own (`data.tokenizer.bos`), that is the first one, and the whole text is
  counted; without it the first token of each text is free, which favours vocabularies of long tokens. When every row is
  measured, it is exactly the sum of the nats over the bytes.

The same figures exist for each source, each language, and each source in each language (`Rows.origins`). A row without
tokens of a group adds nothing to that group's error.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from governance.errors import CheckpointError, ConfigError
from governance.log import progress
from governance.manifest import Manifest
from pretrain.checkpoint.averaged_weights import averaged_expert_bias, averaged_weights
from pretrain.checkpoint.format import identity_of, read_checkpoint
from pretrain.config.training import EngineConfig
from pretrain.data.corrupted_rows import corrupted_rows
from pretrain.data.dataset import Rows, micro_batches, open_rows, spread, without_removed
from pretrain.distributed.process_group import lone_device
from pretrain.evaluation.loglikelihood import NatsOf, Passes

if TYPE_CHECKING:
    import torch

    from pretrain.evaluation.scores import Suite
    from pretrain.model.decoder import Batch

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measurement:
    """Loss of a model on the validation shards."""

    loss: float
    """Nats per predicted token."""
    loss_stderr: float | None
    """Standard error over rows; None for a single row."""
    bits_per_byte: float
    rows: int
    tokens: int
    """Predicted tokens."""
    by_source: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Source -> loss, loss_stderr, bits_per_byte, tokens; empty: the rows record no sources."""
    by_language: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Language -> the same."""
    by_origin: dict[str, dict[str, Any]] = field(default_factory=dict)
    """ "source/language" -> the same."""


def loss_words(loss: str, bits_per_byte: float, labels: int) -> str:
    """A loss with its unit; of tokens also bits per byte."""
    return f"{loss} nats/label" if labels else f"{loss} nats/token, {bits_per_byte:.4f} bits/byte"


@dataclass(frozen=True)
class TokenGroups:
    """Groups of tokens with figures of their own: all, sources, languages, origins."""

    names: tuple[tuple[str, str], ...]
    """(the field of `Measurement`, the name)."""
    members: Floats
    """[origins, groups], 1 where the origin belongs to the group."""
    targets: npt.NDArray[np.int64]
    """[groups], predicted tokens of all rows."""
    sizes: npt.NDArray[np.int64]
    """[groups], UTF-8 bytes of all documents."""


def groups_of(rows: Rows) -> TokenGroups:
    """Token groups of these rows."""
    origins: Sequence[str] = rows.origins
    kinds = {
        "all": [""] * len(origins),
        "by_source": [origin.rpartition("/")[0] for origin in origins],
        "by_language": [origin.rpartition("/")[2] for origin in origins],
        "by_origin": list(origins),
    }
    names = [(kind, name) for kind, values in kinds.items() for name in sorted(set(values))]
    members = np.array([[kinds[kind][place] == name for kind, name in names] for place in range(len(origins))], float)
    whole = members.astype(np.int64).T
    targets, sizes = np.asarray(rows.origin_targets, np.int64), np.asarray(rows.origin_bytes, np.int64)
    return TokenGroups(tuple(names), members, whole @ targets, whole @ sizes)


def measure(
    nats_of: NatsOf,
    rows: Rows,
    most_rows: int,
    micro_batch_size: int,
    ranks: tuple[int, int],
    add_up: Callable[[list[Any]], list[Any]],
    alike: bool = False,
) -> Measurement:
    """Mean loss over at most `most_rows` rows, evenly spread.

    Collective over `ranks` (rank, world size).

    `nats_of(batch)` returns each token's cross entropy [B, L]. Every rank makes the same number of forward passes, if
    need be a last one that is discarded, because a partitioned model computes only on all ranks together. `alike` fills
    the last pass with rows that do not count, so that a compiler sees one shape.
    """
    import torch

    from pretrain.data.loader import seeds_of

    def read_rows(numbers: list[int]) -> Batch:
        return rows.corrupted(rows.batch(numbers), seeds_of(0, numbers))

    numbers, groups = spread(rows.count, most_rows), groups_of(rows)
    rank, world_size = ranks
    counts, sums = np.zeros((2, len(groups.names)), np.int64), np.zeros((4, len(groups.names)))
    mine = list(micro_batches(numbers, micro_batch_size, rank, world_size))
    passes = -(-len(numbers) // (micro_batch_size * world_size))
    with torch.no_grad():
        for number in range(passes):
            read = mine[number] if number < len(mine) else numbers[:1]
            batch = read_rows(read)
            padding = [read[0]] * (micro_batch_size - len(read)) if alike else []
            nats_here = nats_of(read_rows([*read, *padding]) if padding else batch)[: len(read)]
            if number < len(mine):
                tokens, nats = _by_row(batch, nats_here.double().cpu().numpy(), groups)
                counts += [tokens.sum(0), (tokens > 0).sum(0)]
                sums += [nats.sum(0), (nats * nats).sum(0), (nats * tokens).sum(0), (tokens * tokens).sum(0)]
    counts = np.reshape(add_up(counts.ravel().tolist()), counts.shape)
    sums = np.reshape(add_up(sums.ravel().tolist()), sums.shape)
    return _measurement(groups, counts, sums, len(numbers))


def _by_row(batch: Batch, nats: Floats, groups: TokenGroups) -> tuple[npt.NDArray[np.int64], Floats]:
    """Predicted tokens of each row and their nats [B, groups]."""
    predicted = batch.targets.numpy() >= 0
    count = len(groups.members)
    place = (np.arange(len(nats))[:, None] * count + batch.origins.numpy())[predicted]
    shape = (len(nats), count)
    tokens = np.bincount(place, minlength=len(nats) * count).reshape(shape)
    held = np.bincount(place, nats[predicted], minlength=len(nats) * count).reshape(shape)
    return (tokens @ groups.members).astype(np.int64), held @ groups.members


def _measurement(groups: TokenGroups, counts: npt.NDArray[np.int64], sums: Floats, rows: int) -> Measurement:
    kinds: dict[str, dict[str, dict[str, Any]]] = {}
    for place, (kind, name) in enumerate(groups.names):
        tokens, row_count = (int(value) for value in counts[:, place])
        nats, squares, products, token_squares = (float(value) for value in sums[:, place])
        loss, error = nats / max(tokens, 1), None
        if row_count > 1:
            residue = max(0.0, squares - 2 * loss * products + loss * loss * token_squares)
            error = math.sqrt(row_count / (row_count - 1) * residue) / tokens
        bits = bits_per_byte(loss, int(groups.targets[place]), int(groups.sizes[place]))
        kinds.setdefault(kind, {})[name] = {
            "loss": loss, "loss_stderr": error, "bits_per_byte": bits, "tokens": tokens,
        }  # fmt: skip
    whole = kinds.pop("all")[""]
    # Groups without predicted tokens have no loss.
    seen = {kind: {name: row for name, row in found.items() if row["tokens"]} for kind, found in kinds.items()}
    return Measurement(**whole, rows=rows, **seen)


def bits_per_byte(nats_per_token: float, tokens: int, document_bytes: int) -> float:
    """Bits per byte of documents with `document_bytes` bytes (see the module).

    `tokens` are predicted in them.
    """
    return nats_per_token * tokens / max(document_bytes, 1) / math.log(2)


def evaluate(
    checkpoint: Path,
    tokens: Manifest,
    engine: EngineConfig,
    root: Path,
    suite: Callable[[int], Suite] | None = None,
    others: Sequence[Manifest] = (),
) -> tuple[Measurement, list[dict[str, Any]]]:
    """Measure a checkpoint on all validation rows, on one device.

    Args:
        checkpoint: its folder.
        tokens: the token shards, or packed rows of them.
        engine: the device, threads, and rows per forward pass.
        root: the artifacts' root.
        suite: makes the tasks (`scores.py`) for a window in tokens; None: no tasks.
        others: checkpoints of its training whose weights are averaged with its own.

    Returns:
        The measurement, and the figures of each task.

    Raises:
        CheckpointError: it is damaged, or was trained with another tokenizer than that of the shards.
        ConfigError: the device that `engine` requests does not exist.
        PipelineError: there are no validation shards.
    """
    from pretrain.data.tokenizer_check import refuse_foreign_tokenizer
    from pretrain.evaluation.scores import evaluate_tasks

    manifest = read_checkpoint(checkpoint, root)
    identity = identity_of(manifest)
    train = identity.recipe.train
    rows = corrupted_rows(open_rows(tokens, "validation", root, train.sequence_length), tokens, train, root)
    rows = without_removed(rows, train)
    if rows.vocabulary_size != identity.vocabulary_size:
        raise CheckpointError(
            f"{checkpoint}: has a vocabulary of {identity.vocabulary_size} tokens, the shards of {tokens.folder} have "
            f"{rows.vocabulary_size}; give the configuration that it was trained with"
        )
    refuse_foreign_tokenizer(manifest, tokens, root)
    if suite is not None:
        require_language_model(manifest)
    tasks = suite(train.sequence_length) if suite is not None else None
    device = lone_device(engine)
    model = placed(load_decoder(manifest, root, others).eval(), train.precision, device)
    nats_of, alike = nats_with(model, train.precision), device.type == "cuda"
    with progress("evaluate", -(-rows.count // engine.micro_batch_size), "passes") as advance:

        def shown(batch: Batch) -> torch.Tensor:
            nats = nats_of(batch)
            advance(1)
            return nats

        found = measure(shown, rows, rows.count, engine.micro_batch_size, (0, 1), lambda values: values, alike)
    return found, evaluate_tasks(tasks, nats_of, Passes(alike=alike)) if tasks is not None else []


def nats_with(model: Any, precision: str = "fp32") -> NatsOf:
    """Nats of each token by a `Decoder`, in its training precision."""
    device = next(model.parameters()).device
    model, computing = in_precision(model, precision)

    def nats_of(batch: Batch) -> torch.Tensor:
        rows = batch.to(device)
        with computing():
            return model(rows.tokens, rows.targets, rows.segments, rows.positions)[1]

    return nats_of


def placed(model: Any, precision: str, device: torch.device) -> Any:
    """Model on a device, rounded on the host.

    In fp32 it may not fit there.
    """
    from pretrain.model.expert_bias import on_device

    return on_device(in_precision(model, precision)[0], device)


def in_precision(model: Any, precision: str) -> tuple[Any, Callable[[], AbstractContextManager[Any]]]:
    """Model and context of its passes, in its training precision.

    For bf16, bf16_masters and fp8, weights and arithmetic are in bf16 (also fp8's products, which need a GPU with 8-bit
    units). For autocast, weights are fp32 and products bf16. For fp16 both are fp32, because CPUs do not compute it.
    """
    import torch

    if precision == "autocast":
        return model, partial(torch.autocast, next(model.parameters()).device.type, torch.bfloat16)
    return model.bfloat16() if precision in ("bf16", "bf16_masters", "fp8") else model, contextlib.nullcontext


def require_language_model(checkpoint: Manifest) -> None:
    """Raise unless a checkpoint continues texts.

    Raises:
        CheckpointError: it is a classifier.
        ConfigError: it has an encoder.
    """
    model = identity_of(checkpoint).recipe.model
    if model.encoder_layers:
        raise ConfigError(
            f"{checkpoint.folder}: is an encoder-decoder, which continues no text, so it has no tasks, generation or "
            f"audit; see docs/translation.md"
        )
    if labels := model.num_labels:
        raise CheckpointError(
            f"{checkpoint.folder}: is a classifier of {labels} labels, which has no tokens to predict; use it with: "
            f"assay classify evaluate CONFIG CHECKPOINT"
        )


def load_decoder(manifest: Manifest, root: Path, others: Sequence[Manifest] = ()) -> Any:
    """Model of a verified checkpoint, in fp32 on the CPU.

    With `others` of its training its weights are the mean of all.

    Raises:
        CheckpointError: the files belong to another model.
    """
    import torch

    from pretrain.encoder_decoder.model_of_pairs import make_model
    from pretrain.model.expert_bias import attach_expert_bias, restore_expert_bias

    identity = identity_of(manifest)
    model = make_model(identity.recipe.model, identity.vocabulary_size)
    with averaged_weights((manifest, *others), root) as read, torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(read(name, parameter.shape))
    attach_expert_bias(model, identity.recipe.model)
    restore_expert_bias(model, averaged_expert_bias((manifest, *others), root))
    return model
