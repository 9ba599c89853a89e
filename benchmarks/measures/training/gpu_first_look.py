"""First ten minutes on a card: the most informative figures first, each printed as soon as it is known.

In this order, at 124M and then at 1.3B parameters, each in a process of its own: the speed of the model's own products;
a run's step (MFU, its memory against the estimate, graphs and breaks of the compiler); the bare loop's step
(`bare_loop.py`); kernels by time, and how long the device stood idle; lines of the run that made the host wait.

It stops by itself: an arm is left out when less time is left than it may need, and killed when it takes what is left.
Nothing here is a goal but that no arm fails: the goals are `training_gpu.py`'s.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import multiprocessing
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from benchmarks.measures.goals import Goal, figure
from benchmarks.measures.training.training_gpu import Setting, Timed, bare, goals_on, measured, settings, write_tokens
from pretrain.distributed.process_group import Ranks
from pretrain.preflight.memory import estimate

SECONDS = 600.0
STEPS = 20
PROFILED = 3  # steps
KERNELS = 12  # printed
Answer = list[tuple[str, float, str]]
"""Names, values and notes of what an arm found."""


def gpu(quick: bool) -> Iterator[Goal]:
    """The first look, then the goals, on this machine's first card."""
    yield from look(quick)
    yield from goals_on(quick)


def look(quick: bool) -> Iterator[Goal]:
    """The first look alone."""
    import torch

    if not torch.cuda.is_available():
        yield figure("training_gpu_look_not_run", 0.0, note="no CUDA device here")
        return
    yield from first_look(settings(quick), "cuda")


def first_look(sizes: dict[str, Setting], device: str, seconds: float = SECONDS) -> Iterator[Goal]:
    """Figures, one line each, as they are known; ends within `seconds`."""
    began, steps = time.monotonic(), {name: dataclasses.replace(size, steps=STEPS) for name, size in sizes.items()}
    for size, (arm, (work, least)) in itertools.product(steps, ARMS.items()):
        left = seconds - (time.monotonic() - began)
        name = f"training_gpu_look_{size}_{arm}"
        if left < least:
            yield figure(f"{name}_left_out", left, "seconds left; it may need more")
            continue
        yield from _goals(name, _within(left, work, steps[size], device))


def _goals(name: str, found: Answer | str) -> Iterator[Goal]:
    if isinstance(found, str):
        yield Goal(f"{name}_failed", 1.0, 0.0, "<=", note=found)
        return
    for what, value, note in found:
        yield figure(f"{name}_{what}", value, note)


def _within(seconds: float, work: Callable[..., Answer], *given: Any) -> Answer | str:
    """Result of `work` in a process of its own, or its failure."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, work, given))
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(seconds) else f"was not done after {seconds:.0f} s"
    except EOFError:
        process.join()
        return f"ended with {process.exitcode} and said nothing"
    finally:
        process.kill()
        process.join()


def _send(there: Any, work: Callable[..., Answer], given: tuple[Any, ...]) -> None:
    try:
        there.send(work(*given))
    except Exception as error:
        there.send(f"{type(error).__name__}: {error} ({traceback.format_exc(limit=-2).splitlines()[1].strip()})")


def shapes(setting: Setting, device: str) -> Answer:
    """TFLOP/s of the products of a pass, in bf16: what a step could reach if it were nothing else."""
    import torch

    model, tokens = setting.model, setting.micro_rows * setting.length
    width, inner, rows = model.hidden_size, model.intermediate_size, min(8192, tokens)
    sides = {
        "query": (tokens, width, width),
        "query_key_value": (tokens, 3 * width, width),
        "up": (tokens, inner, width),
        "gate_and_up": (tokens, 2 * inner, width),
        "down": (tokens, width, inner),
        "gradient_of_up": (inner, width, tokens),
        "head": (rows, -(-setting.vocabulary // 64) * 64, width),
    }
    found = []
    for name, (height, breadth, depth) in sides.items():
        left = torch.randn(height, depth, device=device, dtype=torch.bfloat16)
        right = torch.randn(breadth, depth, device=device, dtype=torch.bfloat16).t()
        seconds = _seconds(lambda a=left, b=right: a @ b, device)
        found.append((name, 2e-12 * height * breadth * depth / seconds, f"TFLOP/s, {height} x {breadth} x {depth}"))
    return found


def _seconds(work: Callable[[], object], device: str, times: int = 10) -> float:
    """Seconds of a call, after two warm-up calls."""
    for _ in range(2):
        work()
    _wait(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    _wait(device)
    return (time.perf_counter() - began) / times


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def run_step(setting: Setting, device: str) -> Answer:
    """Step time of a whole run, its memory against the estimate, and the compiler's graphs."""
    from torch._dynamo.utils import counters

    counters.clear()  # they count for the whole process
    found = measured(setting, 1, device)
    kind: Literal["cpu", "cuda"] = "cuda" if device == "cuda" else "cpu"
    planned = estimate(setting.recipe, setting.engine(1, device), setting.vocabulary, 1, kind)
    breaks = ", ".join(str(reason).splitlines()[0][:80] for reason in list(counters["graph_break"])[:3])
    return [
        *_speed(found),
        ("memory_over_estimate", found.memory_peak / planned.device_bytes, f"{found.memory_peak / 2**30:.1f} GiB"),
        ("graphs", counters["stats"]["unique_graphs"], "one for each shape: more than two were compiled again"),
        ("graph_breaks", sum(counters["graph_break"].values()), breaks),
    ]


def bare_step(setting: Setting, device: str) -> Answer:
    """The bare loop's step."""
    import torch

    from pretrain.metrics.peak_flops import data_sheet, device_name
    from pretrain.model.flops import flops_per_token

    found = bare(setting, device)
    sheet = data_sheet(device_name(torch.device(device)), "bf16").flops_per_second
    flops = flops_per_token(setting.model, setting.vocabulary, setting.length)
    share = None if sheet is None else found.tokens_per_second * flops / sheet
    return _speed(dataclasses.replace(found, mfu=share))


def _speed(found: Timed) -> Answer:
    speed = [("ms", 1e3 * found.seconds, "a step"), ("tokens_per_second", found.tokens_per_second, "")]
    return speed + ([] if found.mfu is None else [("mfu", found.mfu, "of the data sheet")])


def kernels(setting: Setting, device: str) -> Answer:
    """Milliseconds of a step by kernel, in the bare loop; and the share of the time in which no kernel ran."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from benchmarks.measures.training.bare_loop import bare_steps
    from pretrain.data.dataset import open_rows
    from pretrain.train import _arithmetic

    activities = [ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU]
    own = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    with tempfile.TemporaryDirectory() as scratch, _arithmetic(Ranks(), setting.engine(1, device)):
        root = Path(scratch)
        rows = open_rows(write_tokens(root, setting), "train", root, setting.length)
        steps = bare_steps(setting.recipe, rows, setting.micro_rows, torch.device(device))
        for _ in itertools.islice(steps, 3):
            pass
        _wait(device)
        began = time.perf_counter()
        with profile(activities=activities) as seen:
            for _ in itertools.islice(steps, PROFILED):
                pass
            _wait(device)
            wall = time.perf_counter() - began
        steps.close()
    events = sorted(seen.key_averages(), key=lambda event: -getattr(event, own))
    busy = sum(getattr(event, own) for event in events) / 1e6
    found: Answer = [("idle", max(0.0, 1.0 - busy / wall), "share of the time in which no kernel ran")]
    for number, event in enumerate(events[:KERNELS], 1):
        milliseconds = getattr(event, own) / 1e3 / PROFILED
        found.append((f"{number:02d}", milliseconds, f"ms per step, {event.count / PROFILED:g} x {event.key[:100]}"))
    return found


def waits(setting: Setting, device: str) -> Answer:
    """Waits of the host for the device in a step, by line (CUDA's own warnings)."""
    import torch

    from pretrain import loop

    real, mode = loop.rate_factor, torch.cuda.set_sync_debug_mode if device == "cuda" else (lambda word: None)
    watched = range(setting.steps - PROFILED, setting.steps)

    def rate(step: int, *given: Any) -> float:
        mode("warn" if step in watched else "default")
        return real(step, *given)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        loop.rate_factor = rate
        try:
            measured(setting, 1, device)
        finally:
            loop.rate_factor = real
            mode("default")
    lines = collections.Counter(
        f"{Path(warning.filename).name}:{warning.lineno}" for warning in seen if "synchroniz" in str(warning.message)
    )
    note = ", ".join(f"{line} {times / PROFILED:g}" for line, times in lines.most_common(8))
    return [("a_step", sum(lines.values()) / PROFILED, note)]


ARMS: dict[str, tuple[Callable[[Setting, str], Answer], float]] = {
    "shapes": (shapes, 20.0),
    "run": (run_step, 90.0),
    "bare": (bare_step, 60.0),
    "kernels": (kernels, 60.0),
    "waits": (waits, 60.0),
}
"""Measurements of each size, in this order, and the seconds that each may need."""
