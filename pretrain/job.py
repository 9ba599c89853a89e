"""What the training loop works on: the values that its parts share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pretrain.allowance import Allowance
from pretrain.config import Settings, TrainRecipe
from pretrain.distributed import Ranks
from pretrain.layout import Layout, layout_of
from pretrain.preemption import Leave

if TYPE_CHECKING:
    import torch

    from pretrain.checkpoint import Peers, Store
    from pretrain.dataset import Rows
    from pretrain.task_scores import Suite
    from pretrain.tracking import Record


@dataclass(frozen=True)
class Job:
    """What the loop works on."""

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
        """The place of this rank: which rows it reads, and whether it counts them."""
        return layout_of(self.ranks, self.settings.engine)

    def counted(self, values: Sequence[float]) -> list[float]:
        """What this rank adds of `values`, counted from the rows that it reads, to a sum over all ranks."""
        return [value * self.layout.counts for value in values]
