"""Layout: data, sequence and tensor ranks.

It imports no torch.

    rank = (data rank x sequence parallel size + sequence rank) x tensor parallel size + tensor rank

The ranks of one data rank read the same rows and learn from each target once, so a sum over all ranks of what a rank
read counts each row `sequence x tensor` times: only the rank with `counts` adds its share (see `Layout.counts`).
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.config.model import ModelConfig
from pretrain.config.training import EngineConfig
from pretrain.distributed.process_group import Ranks
from pretrain.model.flops import expert_parameter_count, parameter_count


@dataclass(frozen=True)
class Layout:
    """Position of a rank among data, sequence and tensor ranks."""

    data_rank: int = 0
    """Share of a global batch that it reads."""
    data_ranks: int = 1
    """Number of shares that a global batch is divided into."""
    sequence_rank: int = 0
    """Stretch of each row that it computes."""
    tensor_rank: int = 0
    """Part of each matrix that it holds."""

    @property
    def counts(self) -> bool:
        """Return whether this rank counts its rows in global sums."""
        return self.sequence_rank == 0 and self.tensor_rank == 0


def layout_of(ranks: Ranks, engine: EngineConfig) -> Layout:
    """Layout of this rank.

    `compatibility.check_start` has made sure that the sizes divide the ranks.
    """
    rest, tensor = divmod(ranks.rank, engine.tensor_parallel_size)
    data, sequence = divmod(rest, engine.sequence_parallel_size)
    return Layout(data, data_ranks(ranks.world_size, engine), sequence, tensor)


def data_ranks(world_size: int, engine: EngineConfig) -> int:
    """Number of shares that a global batch is divided into."""
    return world_size // (engine.sequence_parallel_size * engine.tensor_parallel_size)


def parameter_shares(
    model: ModelConfig, engine: EngineConfig, vocabulary_size: int, world_size: int
) -> list[tuple[int, int]]:
    """Numbers of a rank's parameters and of their holders.

    Where ranks divide the experts these are the second entry, with their replicas.
    """
    every = parameter_count(model, vocabulary_size) // engine.tensor_parallel_size
    ranks, spread = world_size // engine.tensor_parallel_size, engine.expert_parallel_size
    if spread == 1:
        return [(every, ranks)]
    experts = expert_parameter_count(model)
    return [(every - experts, ranks), (experts // spread, max(1, ranks // spread))]
