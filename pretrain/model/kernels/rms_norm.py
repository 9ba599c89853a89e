"""RMSNorm: forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np

from governance.kernels.compiled import kernel, loose
from pretrain.model.kernels.bf16 import number, stored

_ONE, _NOTHING = np.float32(1.0), np.float32(0.0)


@loose
def _squares(row: Any) -> Any:
    total = _NOTHING
    for at in range(len(row)):
        value = number(row[at])
        total += value * value
    return total


@loose
def _weighted(row: Any, into: Any, weight: Any) -> Any:
    """Sum of row x into x weight."""
    total = _NOTHING
    for at in range(len(row)):
        total += number(row[at]) * number(into[at]) * weight[at]
    return total


@kernel
def rms_norm(_part: int, start: int, end: int, x: Any, out: Any, inverse: Any, weight: Any, eps: Any) -> None:
    """RMS-rms_norm rows [N, D] to `out`, with 1 / rms [N]."""
    size = np.float32(x.shape[1])
    for number_of_row in range(start, end):
        row, result = x[number_of_row], out[number_of_row]
        scale = _ONE / np.sqrt(_squares(row) / size + eps)
        inverse[number_of_row] = scale
        for at in range(len(row)):
            result[at] = stored(number(row[at]) * scale * weight[at], result[at])


@kernel
def rms_norm_gradient(
    part: int, start: int, end: int, x: Any, into: Any, inverse: Any, out: Any, sums: Any, weight: Any
) -> None:
    """Gradient of x, and partial weight gradients [parts, D].

    With y = x / rms they are dx = (g w - y mean(g w y)) / rms and dw = sum of g y over the rows.
    """
    size = np.float32(x.shape[1])
    total = sums[part]
    total[:] = 0
    for number_of_row in range(start, end):
        row, given, result = x[number_of_row], into[number_of_row], out[number_of_row]
        scale = inverse[number_of_row]
        mean = _weighted(row, given, weight) * scale * scale / size
        for at in range(len(row)):
            value, slope = number(row[at]), number(given[at])
            total[at] += slope * value * scale
            result[at] = stored(scale * (slope * weight[at] - value * mean), result[at])
