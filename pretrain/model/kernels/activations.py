"""Activation functions (SwiGLU, squared ReLU): forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np

from governance.kernels.compiled import kernel, loose
from pretrain.model.kernels.bf16 import exponential, number, stored

_ONE, _NOTHING = np.float32(1.0), np.float32(0.0)


@loose
def _sigmoid(x: Any) -> Any:
    return _ONE / (_ONE + exponential(-x))


@kernel
def swiglu(_part: int, start: int, end: int, gate: Any, up: Any, out: Any) -> None:
    """SwiGLU: gate sigmoid(gate) up (arXiv:2002.05202)."""
    gate, up, out = gate[start:end], up[start:end], out[start:end]
    for at in range(len(gate)):
        value = number(gate[at])
        out[at] = stored(value * _sigmoid(value) * number(up[at]), out[at])


@kernel
def swiglu_gradient(
    _part: int, start: int, end: int, gate: Any, up: Any, into: Any, for_gate: Any, for_up: Any
) -> None:
    """Gradients of gate and up.

    With s = sigmoid(gate) they are `into` up s (1 + gate (1 - s)) and `into` gate s.
    """
    gate, up, into = gate[start:end], up[start:end], into[start:end]
    for_gate, for_up = for_gate[start:end], for_up[start:end]
    for at in range(len(gate)):
        value, down = number(gate[at]), number(into[at])
        share = _sigmoid(value)
        slope = share * (_ONE + value * (_ONE - share))
        for_gate[at] = stored(down * number(up[at]) * slope, for_gate[at])
        for_up[at] = stored(down * value * share, for_up[at])


@kernel
def squared_relu(_part: int, start: int, end: int, x: Any, out: Any) -> None:
    """Squared ReLU: max(x, 0)^2 (arXiv:2109.08668); NaN stays."""
    x, out = x[start:end], out[start:end]
    for at in range(len(x)):
        value = number(x[at])
        kept = _NOTHING if value <= 0 else value
        out[at] = stored(kept * kept, out[at])


@kernel
def squared_relu_gradient(_part: int, start: int, end: int, x: Any, into: Any, out: Any) -> None:
    """Gradient of x: 2 into max(x, 0)."""
    x, into, out = x[start:end], into[start:end], out[start:end]
    for at in range(len(x)):
        value = number(x[at])
        kept = _NOTHING if value <= 0 else value
        out[at] = stored(number(into[at]) * (kept + kept), out[at])
