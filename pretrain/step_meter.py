"""Step meter: time, memory, energy and data position.

    meter = StepMeter(context, step, rows_read)    event "start": ranks, device, both peaks, each with its source
    with meter.waiting(): ...                      the wait for data, a part of the step
    with meter.aside(EVALUATION) as seconds: ...   validation or a save, part of no step
    values = meter.step(rows, tokens, targets)     closes the step; the next one begins here

A step lasts from the end of the previous one to its own end, without the time set aside. So steps add up to the wall
clock; on CUDA, where a call only queues work, single steps follow the queue and their mean is right.

On CPU the measured product is the best of samples over the whole run, because the machine may be busy at the start.
All ranks take a sample after the same step (`wants_sample`), and samples take at most `_SAMPLED_SHARE` of the time.

Every field is described in docs/monitoring.md: name, unit, formula, source. An unknown value is None, never 0.

`graphs`, which counts those of torch.compile in this process, rises with each compilation, and stays constant over
steps of equal shapes. `uncompiled` counts functions that torch left uncompiled because they were compiled too often for
other shapes, which it reports only in a warning of its logger.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from governance.log import get_logger
from governance.phases import IDLE, during
from pretrain.context import TrainContext
from pretrain.distributed.process_group import HOST, add_up
from pretrain.finetuning.trained_parameters import parameters_of, training_flops
from pretrain.metrics.peak_flops import Peak, arithmetic_of, data_sheet, device_name, measured_product, sampled_product

if TYPE_CHECKING:
    import torch

_STATUS = "/proc/self/status"
_SAMPLED_SHARE = 0.005


class StepMeter:
    """Measures the steps of one attempt.

    Opening it is collective and takes half a second of matrix products.
    """

    def __init__(
        self, context: TrainContext, step: int, rows_read: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._context, self._clock, self._rows_read = context, clock, rows_read
        self._flops = training_flops(context.recipe, context.train_rows.vocabulary_size)
        self._sheet, self._product = _peaks(context)
        self._energy = EnergyPerToken(context.energy, context.ranks.local_world_size / context.ranks.world_size)
        self._given_up = watch_compiler()
        self._reported_uncompiled = 0
        context.record("start", step, **self._about())
        self._waited = self._set_aside = 0.0
        self._sampled, self._seconds_a_sample = 0.0, 0.05
        self._opened = self._last = clock()

    def _about(self) -> dict[str, Any]:
        import torch

        context = self._context
        return {
            "world_size": context.ranks.world_size,
            "layout": context.settings.engine.layout,
            "device": device_name(context.device),
            "threads": torch.get_num_threads(),
            **parameters_of(context.recipe, context.train_rows.vocabulary_size),
            "flops_per_token": self._flops,
            "peak_flops_per_second": self._sheet.flops_per_second,
            "peak_source": self._sheet.source,
            "gemm_flops_per_second": self._product.flops_per_second,
            "gemm_source": self._product.source,
            "energy_method": context.energy.get("running", context.energy).get("method", "unknown"),
            "epoch_rows": context.train_rows.count,
            "steps": context.recipe.train.steps,
        }

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in this context as the step's wait for data."""
        began = self._clock()
        with during(self._context.energy, IDLE):
            yield
        self._waited += self._clock() - began

    @contextlib.contextmanager
    def aside(self, phase: str) -> Iterator[Callable[[], float]]:
        """Count the time in this context for `phase` and for no step.

        Yields a clock of its seconds.
        """
        began = self._clock()
        with during(self._context.energy, phase):
            yield lambda: self._clock() - began
        self._set_aside += self._clock() - began

    def wants_sample(self) -> bool:
        """Return whether this rank has time for another sample of the product."""
        if self._context.device.type != "cpu":
            return False
        return self._sampled + self._seconds_a_sample <= _SAMPLED_SHARE * (self._clock() - self._opened)

    def step(self, rows: int, tokens: int, targets: int, *, sample: bool = False) -> dict[str, Any]:
        """Figures of the step that ends now.

        Args:
            rows: of the global batch; may change from step to step.
            tokens: positions of those rows, all of which are computed.
            targets: tokens predicted in them, over all ranks.
            sample: measure the product again afterwards, which is collective.
        """
        now = self._clock()
        seconds = max(now - self._last - self._set_aside, 1e-9)
        self._rows_read += rows
        flops_per_second = tokens / seconds * self._flops
        of_product = _share(flops_per_second, self._product)
        values = {
            "seconds": seconds,
            "seconds_data": self._waited,
            "rows": rows,
            **data_position(self._rows_read, self._context.train_rows.count),
            "tokens_per_second": tokens / seconds,
            "targets_per_second": targets / seconds,
            "mfu": _share(flops_per_second, self._sheet),
            "mfu_gemm": None if of_product is None or of_product > 1.0 else of_product,
            "gemm_flops_per_second": self._product.flops_per_second,
            "graphs": compiled_graphs(),
            "uncompiled": self._uncompiled(),
            **memory(self._context.device),
            **self._energy.after(targets),
        }
        self._waited = self._set_aside = 0.0
        self._last = now
        if sample:
            self._sample()
        return values

    def _sample(self) -> None:
        began, context = self._clock(), self._context
        arithmetic = arithmetic_of(context.recipe.train.precision, context.device)
        [found] = add_up([sampled_product(arithmetic)], HOST)
        self._product = Peak(max(found, self._product.flops_per_second or 0.0), self._product.source)
        self._last = self._clock()
        self._seconds_a_sample = self._last - began
        self._sampled += self._seconds_a_sample

    def _uncompiled(self) -> int:
        count = self._given_up.count
        if count > self._reported_uncompiled:
            self._reported_uncompiled = count
            get_logger(__name__).warning(
                "train: torch.compile left %d function(s) uncompiled because they met too many classes of shapes; they "
                "run slowly from now on (TORCH_LOGS=recompiles names them)", count,
            )  # fmt: skip
        return count


class EnergyPerToken:
    """Joules per predicted token, from the node's meter.

    A reading is paired with the tokens of the step in which it is first seen, so it is late by at most one step. The
    first pair only begins the count: the start is in `joules` and not in `joules_per_token`. The meter is that of
    rank 0's node, which computes `share` of every batch, because ranks get equal numbers of rows.
    """

    def __init__(self, energy: Mapping[str, Any], share: float) -> None:
        self._energy, self._share = energy, share
        self._tokens = 0
        self._seen = self._joules()
        self._first: tuple[float, int] | None = None
        self._joules_per_token: float | None = None

    def after(self, targets: int) -> dict[str, float | None]:
        """Joules of the node and per token after `targets` more."""
        self._tokens += targets
        joules = self._joules()
        if joules is not None and joules != self._seen:
            self._seen = joules
            if self._first is None:
                self._first = (joules, self._tokens)
            elif tokens := self._tokens - self._first[1]:
                self._joules_per_token = (joules - self._first[0]) / (tokens * self._share)
        return {"joules": joules, "joules_per_token": self._joules_per_token}

    def _joules(self) -> float | None:
        return self._energy.get("running", {}).get("joules")


def data_position(rows_read: int, epoch_rows: int) -> dict[str, float]:
    """Data position: rows, whole epochs, and the share of the current one."""
    epoch, rows = divmod(rows_read, epoch_rows)
    return {"rows_read": rows_read, "epoch": epoch, "epoch_share": rows / epoch_rows}


def memory(device: torch.device) -> dict[str, int | None]:
    """Memory of this rank in bytes.

    On CUDA it is tensors, their peak, and the allocator's reserve; on CPU resident memory and its peak.
    """
    if device.type == "cuda":
        import torch

        found = torch.cuda.memory_stats_as_nested_dict(device)
        tensors, reserved = found["allocated_bytes"]["all"], found["reserved_bytes"]["all"]
        return {"memory": tensors["current"], "memory_peak": tensors["peak"], "memory_reserved": reserved["current"]}
    resident, peak = _resident()
    return {"memory": resident, "memory_peak": peak, "memory_reserved": None}


def _resident() -> tuple[int | None, int | None]:
    """Resident bytes of this process and their peak.

    VmRSS and VmHWM of proc(5); None where the kernel lacks them.
    """
    peak = None
    with contextlib.suppress(OSError), open(_STATUS, "rb") as lines:
        for line in lines:
            if line.startswith(b"VmHWM"):
                peak = 1024 * int(line.split()[1])
            elif line.startswith(b"VmRSS"):
                return 1024 * int(line.split()[1]), peak
    return None, peak


def losses_by_origin(names: Sequence[str], nats: Sequence[float], targets: Sequence[float]) -> dict[str, float]:
    """Nats per predicted token of each origin in the step.

    Args:
        names: of all origins.
        nats: sums over the global batch, one for each name.
        targets: tokens predicted, one for each name.
    """
    return {name: total / count for name, total, count in zip(names, nats, targets, strict=True) if count}


def step_note(values: Mapping[str, Any]) -> str:
    """Progress note: loss, speed, MFU or measured share."""
    parts = [f"loss {values['loss']:.3f}"]
    if "tokens_per_second" in values:  # on CUDA a loss is known a step later than it is computed
        parts.append(f"{values['tokens_per_second']:,.0f} tokens/s")
    if (share := values.get("mfu")) is not None:
        parts.append(f"{share:.1%} MFU")
    elif (share := values.get("mfu_gemm")) is not None:
        parts.append(f"{share:.1%} of GEMM")
    elif values.get("gemm_flops_per_second") is not None:
        parts.append("faster than the GEMM, which was measured on a busy machine")
    return ", ".join(parts)


def _peaks(context: TrainContext) -> tuple[Peak, Peak]:
    """Peaks of all ranks' devices together, by data sheet and measured.

    The call is collective; all measure at once.
    """
    arithmetic = arithmetic_of(context.recipe.train.precision, context.device)
    found = (data_sheet(device_name(context.device), arithmetic), measured_product(context.device, arithmetic))
    known = add_up([int(peak.flops_per_second is not None) for peak in found], context.device)
    sums = add_up([peak.flops_per_second or 0.0 for peak in found], context.device)
    sheet, product = (
        Peak(total if ranks == context.ranks.world_size else None, peak.source)
        for peak, total, ranks in zip(found, sums, known, strict=True)
    )
    return sheet, product


def _share(flops_per_second: float, peak: Peak) -> float | None:
    return flops_per_second / peak.flops_per_second if peak.flops_per_second else None


_LOGGER = "torch._dynamo.convert_frame"
_GIVEN_UP = "torch._dynamo hit config."


class GivenUp(logging.Filter):
    """Count torch's warnings about functions left uncompiled."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True, so that the logger keeps every record."""
        self.count += str(record.msg).startswith(_GIVEN_UP)
        return True


def watch_compiler() -> GivenUp:
    """Begin to count what is left uncompiled, once per process."""
    logger = logging.getLogger(_LOGGER)
    for known in logger.filters:
        if isinstance(known, GivenUp):
            return known
    given_up = GivenUp()
    logger.addFilter(given_up)
    return given_up


def compiled_graphs() -> int:
    """Graphs that torch.compile made in this process."""
    utils = sys.modules.get("torch._dynamo.utils")
    return 0 if utils is None else int(utils.counters["stats"]["unique_graphs"])
