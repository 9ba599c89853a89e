"""Loss-spike guard: skip batches with spikes or non-finite values.

A spike is judged by the robust z-score of a step's loss among the last accepted losses:

    z = (loss - median) / max(1.4826 x median(|loss_i - median|), 0.005 x |median|)

1.4826 makes the median absolute deviation that of a normal distribution (Iglewicz and Hoaglin, 1993). The second term
is a floor: on a flat curve only a rise above 0.5 % x `z_score` is a spike. Where both are 0 (losses of exactly 0) a
rise cannot be measured, and z is 0. Only a rise counts. Both medians hold while fewer than half of the losses are bad.
Where the configuration itself changes the level or the noise of the loss (a phase of the mixture, a stage of the batch
ramp), the window is emptied, because earlier losses say nothing about later ones. PaLM (arXiv:2204.02311, section 5.1)
restarted before a spike and removed its batches by hand; skipping the update at once needs no restart.

Promise: the decision is a function of the losses so far and of the skipped steps, so a resumed run decides as an
uninterrupted one does. It is computed on the loss's device, without waiting for CUDA. A skipped update changes no bit
of weights and moments (`step.py`). Too many skips end the run with an error, so that skipping never hides a broken run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from governance.errors import PipelineError
from pretrain.config.training import SkipConfig, TrainConfig
from pretrain.data.batch_size import batch_sizes

if TYPE_CHECKING:
    import torch

_MAD_TO_DEVIATION = 1.4826  # 1 / the third quartile of the standard normal
_MIN_SPREAD_SHARE = 0.005
OVERFLOW = "overflow"
_IN_A_ROW = 3  # batches differ and weights do not, so the batches are not the cause
_LISTED = 12  # skipped steps that the error lists, and documents of each


@dataclass(frozen=True)
class SpikeDecision:
    """Decision about one loss; scalars on its device."""

    skip: torch.Tensor
    """fp32: 1 skips the update."""
    z: torch.Tensor
    """fp64: the robust z-score; 0 while spikes are not searched for."""


def window_starts(train: TrainConfig) -> frozenset[int]:
    """Steps that empty the window.

    The first step of each phase of the mixture and of each stage of the batch ramp.
    """
    phases = (phase.from_step for phase in train.mixture)
    return frozenset((*phases, *(before + 1 for before in batch_sizes(train).steps[1:])))


class SpikeGuard:
    """Window of accepted losses.

    A ring on the device, which `judge` reads and `accept` writes.

    Args:
        config: the thresholds.
        losses: of every step so far; None where it was not finite.
        skipped: records of the skipped steps.
        device: of the losses to come.
        starts: steps that empty the window, see `window_starts`.
    """

    def __init__(
        self,
        config: SkipConfig,
        losses: Sequence[float | None],
        skipped: Sequence[dict[str, Any]],
        device: Any,
        starts: frozenset[int] = frozenset(),
    ) -> None:
        import torch

        skipped_steps = {record["step"] for record in skipped}
        first = max((start for start in starts if start <= len(losses)), default=1)
        later = enumerate(losses[first - 1 :], first)
        accepted = [loss for step, loss in later if step not in skipped_steps and loss is not None]
        kept = accepted[-config.window :]
        ring = kept + [math.inf] * (config.window - len(kept))
        self._config, self._starts = config, starts
        self._ring = torch.tensor(ring, dtype=torch.float64, device=device)
        self._next = torch.tensor([len(kept) % config.window], device=device)
        self._accepted = torch.tensor([len(accepted)], device=device)

    def judge(self, loss: torch.Tensor, step: int) -> SpikeDecision:
        """Decide about a step's loss, a scalar on the device, without waiting.

        Spikes are searched for after `warmup_steps`, once the window is full.
        """
        import torch

        if step in self._starts:
            self._ring.fill_(math.inf)
            self._next.zero_()
            self._accepted.zero_()
        finite = torch.isfinite(loss)
        if not self._config.z_score or step <= self._config.warmup_steps:
            return SpikeDecision((~finite).float(), torch.zeros_like(loss))
        half = self._config.window // 2
        median = self._ring.sort().values[half]
        # inf - inf is NaN while the window is not full; `full` hides it.
        deviation = (self._ring - median).abs().sort().values[half]
        spread = torch.maximum(_MAD_TO_DEVIATION * deviation, _MIN_SPREAD_SHARE * median.abs())
        full = self._accepted[0] >= self._config.window
        z = torch.where(full & finite & (spread > 0), (loss - median) / spread, torch.zeros_like(spread))
        return SpikeDecision((~finite | (z > self._config.z_score)).float(), z)

    def accept(self, loss: torch.Tensor, skipped: torch.Tensor) -> None:
        """Add the loss to the window unless its update was skipped."""
        import torch

        taken = (1 - skipped).long()
        entry = torch.where(taken.bool(), loss.double(), self._ring[self._next])
        self._ring.index_copy_(0, self._next, entry.reshape(1))
        self._next = (self._next + taken) % self._config.window
        self._accepted += taken


def reason_of(loss: float, norm: float, precision: str) -> str:
    """Reason of a skipped update: "loss", "gradient", "overflow" or "spike".

    An overflow is a gradient that is not finite in fp16: the search for the loss scale (arXiv:1710.03740), not a fault.
    """
    if not math.isfinite(loss):
        return "loss"
    if math.isfinite(norm):
        return "spike"
    return OVERFLOW if precision == "fp16" else "gradient"


def refuse_too_many(skipped: Sequence[dict[str, Any]], step: int, config: SkipConfig) -> None:
    """End the run at skipped step `step`, where skipping no longer helps.

    That is when more than `most_skips` of the last `window` steps were skipped, when three in a row are not finite
    (their batches differ and the weights do not, so the batches are not the cause), or when the very first step is not
    finite. Overflows of fp16 do not count.

    Raises:
        Diverged: names the steps, their reasons and documents, and what to do; its `facts` are the same as values.
    """
    recent = [record for record in skipped if record["step"] > step - config.window and record["reason"] != OVERFLOW]
    not_finite = [record for record in recent if record["step"] > step - _IN_A_ROW and record["reason"] != "spike"]
    hopeless = len(not_finite) == _IN_A_ROW or (step == 1 and not_finite)
    if len(recent) <= config.most_skips and not hopeless:
        return
    lines = "\n".join(f"  {_line(record)}" for record in recent[-_LISTED:])
    if hopeless:
        reason = (
            f"step {step}: the loss or the gradient is not finite in {len(not_finite)} step(s) in a row with the same "
            f"weights, so the batches are not the cause; training stops without saving. The previous checkpoint is "
            f"kept; lower optim.learning_rate, lengthen optim.warmup_steps, or set optim.gradient_clipping."
        )
    else:
        reason = (
            f"step {step}: {len(recent)} of the last {config.window} steps were skipped, more than "
            f"train.skip.most_skips = {config.most_skips}; training stops. The last checkpoint is kept. Look at the "
            f"documents below: remove them from the corpus if they are broken. If they are sound, the run is unstable "
            f"(lower optim.learning_rate, lengthen optim.warmup_steps, set optim.gradient_clipping), or its loss rose "
            f"for another reason (raise train.skip.z_score; 0 turns the search for spikes off)."
        )
    raise Diverged(f"{reason}\n{lines}", _facts("not finite" if hopeless else "too many", recent, config))


def _facts(reason: str, recent: Sequence[dict[str, Any]], config: SkipConfig) -> dict[str, Any]:
    """Fields of the event "diverged".

    Documents are bounded as in the message; each "skipped" event has all.
    """
    named = [name for record in recent[-_LISTED:] for name in (record.get("documents") or ())[:_LISTED]]
    return {
        "reason": reason,
        "skipped": len(recent),
        "window": config.window,
        "most_skips": config.most_skips,
        "by_reason": dict(sorted(Counter(record["reason"] for record in recent).items())),
        "steps": [record["step"] for record in recent],
        "documents": list(dict.fromkeys(named)),
    }


def _line(record: dict[str, Any]) -> str:
    names = record.get("documents") or [f"row {row}" for row in record.get("rows", ())]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    z = f", z = {record['z']:.1f}" if record["reason"] == "spike" else ""
    return f"step {record['step']}: {record['reason']}{z}: {', '.join(map(str, names[:_LISTED]))}{more}"


class Diverged(PipelineError):
    """The run cannot continue with its settings.

    A restart would end the same way.
    """

    exit_code = 76

    def __init__(self, message: str, facts: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.facts = facts or {}
        """Fields of the event "diverged"."""
