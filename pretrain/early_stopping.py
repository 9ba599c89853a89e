"""Early stopping of a training whose validation loss no longer falls.

The decision is a function of the validations so far, which a checkpoint holds. So every rank decides alike, and a run
that was interrupted stops where an uninterrupted one does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pretrain.config.training import TrainConfig


def best_validation(validations: Sequence[Mapping[str, Any]]) -> int:
    """Place of the least loss, the first of equal ones.

    A loss that is not finite is the greatest.
    """
    losses = [math.inf if row["loss"] is None else row["loss"] for row in validations]
    return losses.index(min(losses))


def has_stalled(validations: Sequence[Mapping[str, Any]], patience: int) -> bool:
    """Return whether the last `patience` validations brought no improvement.

    With 0 it never stalls.
    """
    return 0 < patience < len(validations) and len(validations) - 1 - best_validation(validations) >= patience


def own_validations(validations: Sequence[Mapping[str, Any]], begun: int) -> list[Mapping[str, Any]]:
    """Validations of a run that began after step `begun` of its parent."""
    return [row for row in validations if row["step"] > begun]


def is_last_step(step: int, own: Sequence[Mapping[str, Any]], train: TrainConfig) -> bool:
    """Return whether a run with these validations ends at `step`."""
    return step == train.steps or has_stalled(own, train.patience)
