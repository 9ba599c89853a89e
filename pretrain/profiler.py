"""Profiler: trace, memory snapshot and operator times of chosen steps.

    <root>/train/<key>/profile/step-000012-000014.attempt-000001.rank-00000.trace.json.gz   for https://ui.perfetto.dev
                               ...                                          .memory.pickle  CUDA, with `memory`
                               ...                                          .operators.json all of them

Rank 0's longest operators are in the record as an event "profile", the source of the report's table.

Promises: what is learned does not change; outside the profiled steps a step costs two comparisons; a profiler that
fails is a warning, and training continues. Price within them: a step is slower, the more so the smaller its operators,
and writing a trace takes a second or more, which counts for no step.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType

from governance.files import atomic_file, atomic_path, write_json
from governance.log import get_logger
from governance.phases import IDLE
from governance.stage import artifact_folder
from pretrain.context import TrainContext

FOLDER = "profile"
TOP = 20
"""Operators of the event."""
_MAX_ALLOCATIONS = 1 << 17  # bounds a memory snapshot, so that a long window does not fill the disk

Aside = Callable[[str], contextlib.AbstractContextManager[Any]]
Rows = list[dict[str, Any]]


class Profile:
    """The profiled window of one attempt; `begin` and `end` enclose each step."""

    def __init__(self, context: TrainContext, step: int, aside: Aside, beat: Callable[[str], None]) -> None:
        config = context.settings.profile
        self._context, self._aside, self._beat = context, aside, beat
        self._last = min(config.from_step + config.steps - 1, context.recipe.train.steps) if config.from_step else 0
        self._first = max(config.from_step, step + 1)
        self._comes = self._first <= self._last
        requested = self._comes and context.ranks.rank in config.ranks
        self._start = max(config.from_step - config.warmup, step + 1) if requested else 0
        self._torch: Any = None

    def begin(self, step: int) -> None:
        """Start the profiler at the window's first step, warm-up included."""
        if step == self._start:
            with self._guarded():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # about a window without warm-up, which was requested
                    self._torch = self._open()
                self._torch.start()

    def end(self, step: int) -> None:
        """Close the step; after the last of the window, write the results."""
        ends = self._comes and step == self._last
        if ends:  # on every rank: a hang is blamed on the rank with fewer heartbeats
            self._beat(f"profile of step {step}")
        if self._torch is not None:
            with self._guarded():
                if ends:
                    with self._aside(IDLE):
                        self._write()
                        self._torch = None
                else:
                    self._torch.step()
        if ends:
            self._beat(f"after the profile of step {step}")

    def close(self) -> None:
        """Stop a profiler whose window is unfinished, and discard its results."""
        _forget_allocations(self._context)
        if self._torch is not None:
            unfinished, self._torch = self._torch, None
            with contextlib.suppress(Exception):
                unfinished.stop()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            get_logger(__name__).warning("the profiler failed (%s: %s); training continues without it",
                                         type(error).__name__, error)  # fmt: skip
            self.close()

    def _open(self) -> Any:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes lines of its own to standard error
        from torch.profiler import ProfilerActivity, profile, schedule

        config, on_cuda = self._context.settings.profile, self._context.device.type == "cuda"
        if config.memory and on_cuda:
            torch.cuda.memory._record_memory_history(max_entries=_MAX_ALLOCATIONS)
        return profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])],
            schedule=schedule(wait=0, warmup=self._first - self._start, active=self._last - self._first + 1, repeat=1),
            record_shapes=config.record_shapes,
            profile_memory=config.memory,
            with_stack=config.stacks,
            acc_events=True,
        )

    def _write(self) -> None:
        """Stop, and write trace, snapshot and table of this rank."""
        context, config = self._context, self._context.settings.profile
        self._torch.stop()
        name = f"step-{self._first:06d}-{self._last:06d}.attempt-{context.attempt:06d}.rank-{context.ranks.rank:05d}"
        folder = artifact_folder("train", context.checkpoints.train_key, context.checkpoints.root) / FOLDER
        if config.memory and context.device.type == "cuda":
            with atomic_path(folder / f"{name}.memory.pickle") as temporary:
                torch.cuda.memory._dump_snapshot(str(temporary))
            _forget_allocations(context)
        _write_trace(self._torch, folder / f"{name}.trace.json.gz")
        kind, rows = operators(self._torch.key_averages(group_by_input_shape=config.record_shapes), context.device.type)
        write_json(folder / f"{name}.operators.json", {"time": kind, "operators": rows})
        folder_name = folder.relative_to(context.checkpoints.root).as_posix()
        steps = self._last - self._first + 1
        total = sum(row["seconds"] for row in rows) / steps
        context.record("profile", self._last, first=self._first, time=kind, seconds=total, top=rows[:TOP],
                   path=f"{folder_name}/{name}.trace.json.gz")  # fmt: skip
        get_logger(__name__).info("train: profile of steps %d to %d: %s", self._first, self._last, folder / name)


@contextlib.contextmanager
def open_profile(context: TrainContext, step: int, aside: Aside, beat: Callable[[str], None]) -> Iterator[Profile]:
    """Profile an attempt that resumes from `step`.

    `aside` takes time out of a step, `beat` reports progress to the watchdog.
    """
    profile = Profile(context, step, aside, beat)
    try:
        yield profile
    finally:
        profile.close()


def operators(averages: Any, device: str) -> tuple[str, Rows]:
    """The kind of the rows, and operators or kernels, longest first.

    Each has calls, seconds and share of the total.

    On CUDA they are kernels, by their time on the device. On CPU they are operators, without the time of operators that
    they call.
    """
    on_cuda = device == "cuda"
    kind = DeviceType.CUDA if on_cuda else DeviceType.CPU
    rows: Rows = []
    for event in averages:
        if event.device_type != kind or event.key.startswith("ProfilerStep") or event.is_user_annotation:
            continue
        microseconds = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        memory = event.self_device_memory_usage if on_cuda else event.self_cpu_memory_usage
        row = {"name": event.key, "calls": event.count, "seconds": microseconds / 1e6, "bytes": memory}
        shapes = str(event.input_shapes) if getattr(event, "input_shapes", None) else ""
        rows.append({**row, "shapes": shapes})
    total = sum(row["seconds"] for row in rows)
    for row in rows:
        row["share"] = row["seconds"] / total if total else 0.0
    return ("kernels of the device" if on_cuda else "operators on the CPU"), sorted(
        rows, key=lambda row: (-row["seconds"], row["name"])
    )


def _write_trace(profiler: Any, path: Path) -> None:
    """Write Chrome's trace, compressed.

    Torch writes plain text only, so it goes to a temporary folder first.
    """
    with tempfile.TemporaryDirectory(prefix="assay-profile-") as folder:
        plain = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(plain))
        with atomic_file(path) as file, gzip.GzipFile("", "wb", 6, file, 0) as packed, plain.open("rb") as source:
            shutil.copyfileobj(source, packed, 1 << 20)


def _forget_allocations(context: TrainContext) -> None:
    if context.settings.profile.memory and context.device.type == "cuda":
        with contextlib.suppress(Exception):
            torch.cuda.memory._record_memory_history(enabled=None)
