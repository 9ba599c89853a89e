"""Cross-entropy of rows of logits, and its gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from governance.kernels.compiled import kernel, loose
from pretrain.model.kernels.bf16 import stored
from pretrain.model.kernels.softmax import exponentials, largest

_NOTHING, _ONE, _TWO = np.float32(0.0), np.float32(1.0), np.float32(2.0)


@loose
def _scale(row: Any, factor: Any, out: Any) -> None:
    for column in range(len(row)):
        out[column] = stored(row[column] * factor, out[column])


@kernel
def softmax_loss(
    _part: int, start: int, end: int, products: Any, targets: Any, nats: Any, levels: Any, scale: Any, z_loss: Any,
    learns: bool,
) -> None:  # fmt: skip
    """Cross entropies and log-sum-exps of the rows of scale x products.

    Products [N, V] become the gradient of cross entropies + z_loss x level^2 if the model learns. Targets are int32
    [N], negative where nothing is predicted: all results of such a row are 0.
    """
    logits = np.empty(products.shape[1], np.float32)
    for at in range(start, end):
        row, target = products[at], targets[at]
        if target < 0:
            nats[at] = levels[at] = _NOTHING
            if learns:
                row[:] = 0
            continue
        top = largest(row, logits) * scale
        _scale(logits, scale, logits)
        of_target = logits[target]
        total = exponentials(logits, top)
        level = np.float32(math.log(total)) + top
        nats[at], levels[at] = level - of_target, level
        if learns:
            factor = scale * (_ONE + _TWO * z_loss * level) / total
            slope = logits[target] * factor - scale
            _scale(logits, factor, row)
            row[target] = stored(slope, row[target])
