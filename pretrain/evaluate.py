"""How well a model predicts the validation shards.

- *loss*: the mean cross entropy of the predicted tokens, in nats per token. It depends on the tokeniser.
- *bits per byte*: loss x (predicted tokens / UTF-8 bytes) / ln 2, over all validation documents, which does not: models
  with other vocabularies compare (The Pile, arXiv:2101.00027, section 3.1). The two counts are exact, from the shards.
  Predicted tokens are all but the first of each document, the end-of-document token among them. When every row is
  measured, it is exactly the sum of the nats over the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.manifest import Manifest
from pretrain.checkpoint import identity_of, read_checkpoint, weights
from pretrain.config import EngineConfig
from pretrain.dataset import Rows, micro_batches, open_rows, spread

if TYPE_CHECKING:
    import torch

    from pretrain.model.decoder import Batch


@dataclass(frozen=True)
class Measurement:
    """Where a model stands on the validation shards."""

    loss: float
    """Nats per predicted token."""
    bits_per_byte: float
    rows: int
    tokens: int
    """Tokens that were predicted."""


def measure(
    nats_of: Callable[[Batch], torch.Tensor],
    rows: Rows,
    most_rows: int,
    micro_batch_size: int,
    ranks: tuple[int, int],
    add_up: Callable[[list[Any]], list[Any]],
) -> Measurement:
    """Mean loss over at most `most_rows` rows, evenly spread; collective over `ranks` (rank, world size).

    `nats_of(batch)` gives each token's cross entropy [B, L]. Every rank makes the same number of forward passes,
    a last one perhaps for nothing, because a model that is spread over ranks computes only together.
    """
    import torch

    numbers = spread(rows.count, most_rows)
    rank, world_size = ranks
    nats, tokens = 0.0, 0
    groups = list(micro_batches(numbers, micro_batch_size, rank, world_size))
    passes = -(-len(numbers) // (micro_batch_size * world_size))
    with torch.no_grad():
        for number in range(passes):
            batch = rows.batch(groups[number] if number < len(groups) else numbers[:1])
            nats_here = nats_of(batch)
            if number < len(groups):
                nats += float(nats_here.sum())
                tokens += int((batch.targets >= 0).sum())
    nats, count = add_up([nats])[0], add_up([tokens])[0]
    mean = nats / max(count, 1)
    return Measurement(mean, bits_per_byte(mean, rows.targets, rows.document_bytes), len(numbers), count)


def bits_per_byte(nats_per_token: float, tokens: int, document_bytes: int) -> float:
    """See the module; `tokens` are those that are predicted in documents of `document_bytes` bytes."""
    return nats_per_token * tokens / max(document_bytes, 1) / math.log(2)


def evaluate(checkpoint: Path, tokens: Manifest, engine: EngineConfig, root: Path) -> Measurement:
    """Measure a checkpoint on every row of the validation shards, on this machine's first device.

    Raises:
        CheckpointError: it is damaged, or is of another vocabulary.
        PipelineError: there are no validation shards.
    """
    import torch

    from governance.errors import CheckpointError
    from pretrain.distributed import Ranks, device_of, threads_of

    manifest = read_checkpoint(checkpoint, root)
    identity = identity_of(manifest)
    train = identity.recipe.train
    rows = open_rows(tokens, "validation", root, train.sequence_length)
    if rows.vocabulary_size != identity.vocabulary_size:
        raise CheckpointError(
            f"{checkpoint}: knows {identity.vocabulary_size} tokens, the shards of {tokens.folder} have "
            f"{rows.vocabulary_size}; give the configuration that it was trained with"
        )
    torch.set_num_threads(threads_of(Ranks(), engine.threads))
    device = device_of(Ranks())
    model = load_decoder(manifest, root).to(device)
    if train.precision == "bf16":
        model = model.bfloat16()

    def nats_of(batch: Batch) -> torch.Tensor:
        moved = batch.to(device)
        return model(moved.tokens, moved.targets, moved.segments, moved.positions)[1]

    return measure(nats_of, rows, rows.count, engine.micro_batch_size, (0, 1), lambda values: values)


def load_decoder(manifest: Manifest, root: Path) -> Any:
    """The model of a verified checkpoint, in fp32 on the CPU.

    Raises:
        CheckpointError: the files are of another model.
    """
    import torch

    from pretrain.model.decoder import Decoder

    identity = identity_of(manifest)
    model = Decoder(identity.recipe.model, identity.vocabulary_size)
    with weights(manifest, root) as files, torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(files.read(name, parameter.shape))
    return model
