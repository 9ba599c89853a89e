"""Loss scale of fp16 in checkpoints.

Gradients are multiplied by a scale so that small ones do not vanish in fp16 (arXiv:1710.03740). Training adjusts it:
halved after an overflow of the gradients (the first one is ignored), doubled after a series of steps without one.

    {"scale": 32768.0, "step": 140, "last_overflow": 121, "hysteresis": 1}

`step` counts attempted updates, `last_overflow` is the number of the last one that overflowed (-1: none), `hysteresis`
the overflows tolerated before the scale is halved, plus one. Promise: a resumed run, at any ZeRO stage and number of
ranks, uses the same scales and skips the same steps as an uninterrupted one. DeepSpeed's own attributes used here are
those of its `DynamicLossScaler`, equal on every rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.engine.engine import Engine

_ATTRIBUTES = {
    "scale": "cur_scale",
    "step": "cur_iter",
    "last_overflow": "last_overflow_iter",
    "hysteresis": "cur_hysteresis",
}


def loss_scale_of(engine: Engine) -> dict[str, float] | None:
    """Loss scale and its counters; None in other precisions."""
    scaler = _scaler(engine)
    return None if scaler is None else {name: getattr(scaler, own) for name, own in _ATTRIBUTES.items()}


def restore_loss_scale(engine: Engine, values: dict[str, float] | None) -> None:
    """Restore the scale that `loss_scale_of` returned.

    None leaves it at its initial value.
    """
    scaler = _scaler(engine)
    if scaler is None or values is None:
        return
    for name, own in _ATTRIBUTES.items():
        setattr(scaler, own, values[name])


def _scaler(engine: Engine) -> Any:
    """DeepSpeed's dynamic loss scaler, or None.

    Other precisions have a constant one or none.
    """
    scaler = getattr(engine.deepspeed.optimizer, "loss_scaler", None)
    return scaler if getattr(scaler, "dynamic", False) else None
