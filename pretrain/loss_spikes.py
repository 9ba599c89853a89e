"""Loss-spike guard: skip batches with spikes or non-finite values.

A spike is judged by the robust z-score of a step's loss among the last accepted losses:

    z = (loss - median) / max(1.4826 x median(|loss_i - median|), 0.005 x |median|)

1.4826 makes the median absolute deviation that of a normal distribution (Iglewicz and Hoaglin, 1993); the second term
keeps a flat curve from calling a rise of less than 0.5 % x `z_score` a spike. Where both are 0 (losses of exactly 0)
there is no measure of a rise, and z is 0. Only a rise counts. Medians stay put until half of the window is bad. Where
the configuration itself changes the level or the noise of the loss (a phase of the mixture, a stage of the batch ramp),
the window is emptied: losses of before are no measure of those that follow. PaLM (arXiv:2204.02311, section 5.1)
restarted before a spike and left out its batches by hand; leaving out the update at once needs no restart.

Promise: the decision is a function of the losses so far and of those left out, so a resumed run decides as one that was
never interrupted. It is computed on the loss's device, and CUDA is never waited for. What is left out changes no bit of
weights and moments (`step.py`). Too many end the run with a verdict: skipping hides no broken run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from governance.errors import PipelineError
from pretrain.config.skip_config import SkipConfig
from pretrain.config.training import TrainConfig
from pretrain.data.batch_size import batch_sizes

if TYPE_CHECKING:
    import torch

_NORMAL = 1.4826  # 1 / the third quartile of the standard normal
_FLOOR = 0.005
OVERFLOW = "overflow"
_IN_A_ROW = 3  # other batches, the same weights: it is not the batches
_TOLD = 12  # skipped steps that a verdict lists, and documents of each


@dataclass(frozen=True)
class Verdict:
    """Judgement of a loss; scalars on its device."""

    skip: torch.Tensor
    """fp32: 1 leaves the update out."""
    z: torch.Tensor
    """fp64: the robust z-score; 0 while spikes are not looked for."""


def window_starts(train: TrainConfig) -> frozenset[int]:
    """The steps at which the window is emptied.

    The first of each phase of the mixture and stage of the batch ramp.
    """
    phases = (phase.from_step for phase in train.mixture)
    return frozenset((*phases, *(before + 1 for before in batch_sizes(train).steps[1:])))


class Guard:
    """The window of accepted losses.

    A ring on the device, which `judge` reads and `accept` writes.

    Args:
        config: the thresholds.
        losses: of every step so far; none where it was not finite.
        skipped: the records of those that were left out.
        device: of the losses to come.
        starts: steps at which the window is emptied, see `window_starts`.
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

        left_out = {record["step"] for record in skipped}
        first = max((start for start in starts if start <= len(losses)), default=1)
        later = enumerate(losses[first - 1 :], first)
        accepted = [loss for step, loss in later if step not in left_out and loss is not None]
        kept = accepted[-config.window :]
        ring = kept + [math.inf] * (config.window - len(kept))
        self._config, self._starts = config, starts
        self._ring = torch.tensor(ring, dtype=torch.float64, device=device)
        self._next = torch.tensor([len(kept) % config.window], device=device)
        self._count = torch.tensor([len(accepted)], device=device)

    def judge(self, loss: torch.Tensor, step: int) -> Verdict:
        """Judge the loss (a scalar on the device) of `step`.

        Costs no wait.

        Spikes are looked for after `warmup_steps`, once the window is full.
        """
        import torch

        if step in self._starts:
            self._ring.fill_(math.inf)
            self._next.zero_()
            self._count.zero_()
        finite = torch.isfinite(loss)
        if not self._config.z_score or step <= self._config.warmup_steps:
            return Verdict((~finite).float(), torch.zeros_like(loss))
        half = self._config.window // 2
        median = self._ring.sort().values[half]
        deviation = (self._ring - median).abs().sort().values[half]
        spread = torch.maximum(_NORMAL * deviation, _FLOOR * median.abs())
        full = self._count[0] >= self._config.window
        z = torch.where(full & finite & (spread > 0), (loss - median) / spread, torch.zeros_like(spread))
        return Verdict((~finite | (z > self._config.z_score)).float(), z)

    def accept(self, loss: torch.Tensor, skipped: torch.Tensor) -> None:
        """Put the loss into the window, unless its update was left out.

        `skipped` 1, on the device.
        """
        import torch

        taken = (1 - skipped).long()
        kept = torch.where(taken.bool(), loss.double(), self._ring[self._next])
        self._ring.index_copy_(0, self._next, kept.reshape(1))
        self._next = (self._next + taken) % self._config.window
        self._count += taken


def reason_of(loss: float, norm: float, precision: str) -> str:
    """Reason of a skipped update: "loss", "gradient", "overflow" or "spike".

    An overflow is a gradient that is not finite in fp16: how the loss scale is found (arXiv:1710.03740), and no fault.
    """
    if not math.isfinite(loss):
        return "loss"
    if math.isfinite(norm):
        return "spike"
    return OVERFLOW if precision == "fp16" else "gradient"


def refuse_too_many(skipped: Sequence[dict[str, Any]], step: int, config: SkipConfig) -> None:
    """End the run where skipping helps no more.

    At `step`, which was skipped last.

    That is when more than `most_skips` of the last `window` steps were left out, when three in a row are not finite
    (batches differ, the weights do not, so it is not the batches), and when the very first is not finite. Overflows of
    fp16 count for nothing.

    Raises:
        Diverged: names the steps, their reasons and documents, and what to do; its `facts` are the same as values.
    """
    lately = [r for r in skipped if r["step"] > step - config.window and r["reason"] != OVERFLOW]
    row = [record for record in lately if record["step"] > step - _IN_A_ROW and record["reason"] != "spike"]
    hopeless = len(row) == _IN_A_ROW or (step == 1 and row)
    if len(lately) <= config.most_skips and not hopeless:
        return
    told = "\n".join(f"  {_line(record)}" for record in lately[-_TOLD:])
    if hopeless:
        verdict = (
            f"step {step}: the loss or the gradient is not finite, {len(row)} step(s) in a row with the same weights, "
            f"so it is not the batches; training stops before it is saved. The checkpoint before it is kept; lower "
            f"optim.learning_rate, lengthen optim.warmup_steps, or set optim.gradient_clipping."
        )
    else:
        verdict = (
            f"step {step}: {len(lately)} of the last {config.window} steps were left out, more than "
            f"train.skip.most_skips = {config.most_skips}; training stops. The last checkpoint is kept. Look at the "
            f"documents below: remove them from the corpus if they are broken. If all is well with them, the run is "
            f"unstable (lower optim.learning_rate, lengthen optim.warmup_steps, set optim.gradient_clipping), or its "
            f"loss rose for another reason (raise train.skip.z_score; 0 looks for no spikes)."
        )
    raise Diverged(f"{verdict}\n{told}", _facts("not finite" if hopeless else "too many", lately, config))


def _facts(reason: str, lately: Sequence[dict[str, Any]], config: SkipConfig) -> dict[str, Any]:
    """The verdict for the record.

    Documents are bounded as in its words: each step's "skipped" has all of them.
    """
    named = [name for record in lately[-_TOLD:] for name in (record.get("documents") or ())[:_TOLD]]
    return {
        "reason": reason,
        "skipped": len(lately),
        "window": config.window,
        "most_skips": config.most_skips,
        "by_reason": dict(sorted(Counter(record["reason"] for record in lately).items())),
        "steps": [record["step"] for record in lately],
        "documents": list(dict.fromkeys(named)),
    }


def _line(record: dict[str, Any]) -> str:
    names = record.get("documents") or [f"row {row}" for row in record.get("rows", ())]
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    z = f", z = {record['z']:.1f}" if record["reason"] == "spike" else ""
    return f"step {record['step']}: {record['reason']}{z}: {', '.join(map(str, names[:_TOLD]))}{more}"


class Diverged(PipelineError):
    """The run cannot go on as it is configured.

    A restart would end the same.
    """

    def __init__(self, message: str, facts: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.facts = facts or {}
        """Fields of the event "diverged"."""
