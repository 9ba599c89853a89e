"""Peak FLOPS of a device: data sheet and measured GEMM.

MFU needs both. A data sheet compares runs with other people's; a product measured on this very machine, with its power
limit, its cooling and its neighbours, says how much a better program could still win. An H100's data sheet says 989
TFLOP/s in bf16; its products reach about 800.

The table (`peak_flops.toml`) holds dense figures only (half of what NVIDIA prints "with sparsity"), with sums kept in
fp32, as PyTorch keeps them. A figure that is not in the maker's own paper is left out: unknown is None, never a guess.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from governance.files import shipped_table

if TYPE_CHECKING:
    import torch

_SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}  # each is one point; a device is best at some, not at all
_SECONDS_PER_SIZE = 0.15  # each start pays it for each size; long enough for three products of the largest
_SAMPLED = (512, 1024)  # short enough to be undisturbed for once on a busy processor
_SECONDS_PER_SAMPLE = 0.01
_MIN_PRODUCTS = 3
_WARM_UPS = 2


@dataclass(frozen=True)
class Peak:
    """Arithmetic that one device could do."""

    flops_per_second: float | None
    """None: unknown, which is not zero."""
    source: str
    """Source of the figure, in words."""


_OTHER_CARDS = frozenset({"mig", "laptop", "d", "64gb"})  # parts of a card, and cards that share another one's name


def arithmetic_of(precision: str, device: torch.device) -> str:
    """The arithmetic of the matrix products of a run in `precision`.

    One of "fp32", "tf32", "bf16", "fp16" and "fp8".
    """
    import torch

    if precision == "fp32":
        return "tf32" if device.type == "cuda" and torch.get_float32_matmul_precision() != "highest" else "fp32"
    return precision if precision in ("fp16", "fp8") else "bf16"  # bf16, bf16_masters, autocast


def device_name(device: torch.device) -> str:
    """Name of the device; of a processor by the kernel."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
            return next(names, "CPU")
    except OSError:
        return "CPU"


def data_sheet(name: str, arithmetic: str) -> Peak:
    """The dense figure of the card that torch calls `name`."""
    words = set(re.split(r"[\s-]+", name.casefold()))
    cards = shipped_table(__package__, "peak_flops.toml")["cards"]
    fits = [card for card in cards if set(card["name"].casefold().split()) <= words and not words & _OTHER_CARDS]
    card = max(fits, key=lambda card: len(card["name"].split()), default=None)
    if card is None or arithmetic not in card["teraflops"]:
        return Peak(None, f"unknown: no data sheet's figure for {arithmetic} on {name}")
    return Peak(card["teraflops"][arithmetic] * 1e12, f"{card['source']}: {arithmetic}, dense")


def measured_product(device: torch.device, arithmetic: str) -> Peak:
    """The best of some square matrix products in this arithmetic.

    It takes half a second, and memory for three matrices.

    Operands are random: on GPUs a product of equal numbers draws less power and runs faster than any training would.
    fp8 products need scales that only a layer has, so a run in fp8 is measured in bf16, which its source states.
    """
    import torch

    kind = _type_of(arithmetic)
    shown = str(kind).removeprefix("torch.") if arithmetic == "fp8" else arithmetic
    best, best_size = math.inf, 0
    for size in _SIZES[device.type]:
        try:
            seconds = _best_seconds(_product(size, kind, device), device, _SECONDS_PER_SIZE)
        except torch.OutOfMemoryError:
            break
        if seconds / size**3 < best:
            best, best_size = seconds / size**3, size
        if seconds * 8 * _MIN_PRODUCTS > 4 * _SECONDS_PER_SIZE:  # the next size takes eight times as long
            break
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if not best_size:
        return Peak(None, "unknown: the device's memory is too full to measure a matrix product")
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return Peak(2 / best, f"measured at start: best {best_size}^3 product, {shown}{threads}")


def sampled_product(arithmetic: str) -> float:
    """Operations per second of the best small product on this CPU.

    It takes some 50 ms; `measured_product` at the start may have met a busy machine.
    """
    import torch

    device = torch.device("cpu")
    return max(
        2 * size**3 / _best_seconds(_product(size, _type_of(arithmetic), device), device, _SECONDS_PER_SAMPLE)
        for size in _SAMPLED
    )


def _type_of(arithmetic: str) -> torch.dtype:
    import torch

    return {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16}.get(arithmetic, torch.bfloat16)


def _product(size: int, kind: torch.dtype, device: torch.device) -> Callable[[], object]:
    import torch

    generator = torch.Generator(device).manual_seed(0)  # the run's own generators are left as they are
    left, right = (torch.randn(size, size, device=device, generator=generator).to(kind) for _ in range(2))
    result = torch.empty(size, size, dtype=kind, device=device)
    return lambda: torch.mm(left, right, out=result)


def _best_seconds(work: Callable[[], object], device: torch.device, at_least: float) -> float:
    """Seconds of the fastest of the calls within `at_least` seconds.

    On CUDA they are timed by events on the device.
    """
    import torch

    def on_cuda() -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def on_cpu() -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    once = on_cuda if device.type == "cuda" else on_cpu
    for _ in range(_WARM_UPS):
        work()
    best, count, started = math.inf, 0, time.perf_counter()
    while count < _MIN_PRODUCTS or time.perf_counter() - started < at_least:
        best, count = min(best, once()), count + 1
    return best
