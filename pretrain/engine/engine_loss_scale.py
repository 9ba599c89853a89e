"""Loss scale of fp16 in checkpoints.

Gradients are multiplied by a scale so that small ones do not vanish in fp16 (arXiv:1710.03740). It is found while
training: halved after gradients that overflow (the first of them is forgiven), doubled after a row of steps without.

    {"scale": 32768.0, "step": 140, "last_overflow": 121, "hysteresis": 1}

`step` counts the updates that were tried, `last_overflow` is the number of the last that overflowed (-1: none did),
`hysteresis` how many overflows are borne before the scale is halved, plus one. Promise: a run that goes on, at any ZeRO
stage and number of ranks, tries the scales and leaves out the steps of one that was never stopped. DeepSpeed's own
attributes that this needs: those of its `DynamicLossScaler`, which every rank holds alike.
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
    """Go on with the search where `loss_scale_of` found it.

    With none it begins anew.
    """
    scaler = _scaler(engine)
    if scaler is None or values is None:
        return
    for name, own in _ATTRIBUTES.items():
        setattr(scaler, own, values[name])


def _scaler(engine: Engine) -> Any:
    """DeepSpeed's, where it searches.

    Other precisions have one that stays at 1, or none.
    """
    scaler = getattr(engine.deepspeed.optimizer, "loss_scaler", None)
    return scaler if getattr(scaler, "dynamic", False) else None
