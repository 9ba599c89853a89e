"""What the training loop works on: the values that its parts share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pretrain.config import Settings, TrainRecipe
from pretrain.distributed import Ranks

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
    leave: Callable[[], bool]
    suite: Suite | None = None
    """The questions of `[evaluation]`; None: there are none."""
