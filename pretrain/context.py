"""Context of the training loop: values that its parts share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pretrain.config.training import Settings, TrainRecipe
from pretrain.distributed.layout import Layout, layout_of
from pretrain.distributed.preemption import Leave
from pretrain.distributed.process_group import Ranks
from pretrain.energy_budget import Allowance

if TYPE_CHECKING:
    import torch

    from pretrain.checkpoint.format import Peers, Store
    from pretrain.data.dataset import Rows
    from pretrain.evaluation.scores import Suite
    from pretrain.metrics.metrics_log import Record


@dataclass(frozen=True)
class Job:
    """Context of the training loop."""

    recipe: TrainRecipe
    settings: Settings
    ranks: Ranks
    device: torch.device
    train_rows: Rows
    validation_rows: Rows | None
    store: Store
    peers: Peers
    record: Record
    attempt: int
    energy: dict[str, Any]
    """The meter's: told where the run stands, so that the ledger knows what a kill wasted."""
    leave: Leave
    """True once a signal told the run to leave."""
    suite: Suite | None = None
    """The questions of `[evaluation]`; None: there are none."""
    allowance: Allowance = field(default_factory=Allowance)
    """What the policy's energy budget leaves."""

    @property
    def layout(self) -> Layout:
        """The place of this rank.

        Which rows it reads, and whether it counts them.
        """
        return layout_of(self.ranks, self.settings.engine)

    @property
    def share(self) -> tuple[int, int, int]:
        """The rows of a step that this rank reads.

        (micro batch size, data rank, data ranks).
        """
        return self.settings.engine.micro_batch_size, self.layout.data_rank, self.layout.data_ranks

    def counted(self, values: Sequence[float]) -> list[float]:
        """This rank's summands of `values` in a sum over ranks."""
        return [value * self.layout.counts for value in values]
