"""What a run says about itself while it runs: metrics.jsonl is the record, Weights & Biases mirrors it (its one door).

A line of metrics.jsonl, one a step (all of rank 0; a restart appends, so `attempt` tells which try computed a step):

    {"attempt": 1, "event": "step", "grad_norm": 1.02, "loss": 4.71, "lr": 0.001, "mfu": 0.41, "seconds": 0.8,
     "step": 100, "tokens": 819200, "tokens_per_second": 10240.0}

`loss` is in nats per token before the update, `tokens` those predicted so far, `mfu` the share of the device's peak
arithmetic (null where that is unknown). Other events: "validation" (loss, bits_per_byte), "mixture"
(the weights that begin with the step), "start" (ranks, threads, the peak and its source). A number that is not finite
is written as text. The mirror may fail; the run goes on.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.files import append_line, read_lines
from governance.log import get_logger
from pretrain.config import TrackingConfig, TrainRecipe

if TYPE_CHECKING:
    import torch

METRICS_FILE = "metrics.jsonl"

Record = Callable[..., None]
"""`record(event, step, **values)`."""

# Dense TFLOP/s: (part of the name torch reports, bf16, fp32). NVIDIA's data sheets of each card; bf16 without sparsity.
_PEAKS = (
    ("H200", 989.0, 67.0),
    ("H100 PCIe", 756.0, 51.0),
    ("H100", 989.0, 67.0),
    ("A100", 312.0, 19.5),
    ("L40S", 362.0, 91.6),
    ("L4", 121.0, 30.3),
)


@dataclass(frozen=True)
class Peak:
    """The arithmetic that a rank's device could do."""

    flops_per_second: float | None
    """None: unknown, which is not zero."""
    source: str


def peak(device: torch.device, precision: str) -> Peak:
    """A data-sheet figure on a known card; on CPU the best of many matrix products, measured now (1 s)."""
    import torch

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, bf16, fp32 in _PEAKS:
            if part in name:
                return Peak((bf16 if precision == "bf16" else fp32) * 1e12, f"data sheet of {part}, {precision} dense")
        return Peak(None, f"unknown for {name}")
    size, dtype = 1024, torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    seconds = math.inf
    begin = time.perf_counter()
    while (started := time.perf_counter()) - begin < 1.0:  # long enough to meet a moment without neighbours
        left @ right
        seconds = min(seconds, time.perf_counter() - started)
    threads = torch.get_num_threads()
    return Peak(2 * size**3 / seconds, f"measured: best {size}^3 product, {precision}, {threads} threads")


@contextlib.contextmanager
def open_record(
    folder: Path,
    config: TrackingConfig,
    recipe: TrainRecipe,
    key: str,
    *,
    writes: bool,
    head: Callable[[], str] = lambda: "",
) -> Iterator[tuple[Record, int]]:
    """Yield `record` and the number of this attempt; ranks that do not write get a `record` that does nothing.

    `head` is the journal's; the mirror's summary keeps it as "journal_head", where whoever could rewrite the journal
    may have no hand.
    """
    path = folder / METRICS_FILE
    attempt = 1 + max((line.get("attempt", 0) for line in read_lines(path)), default=0)
    if not writes:
        yield lambda event, step, **values: None, attempt
        return
    with _mirror(folder, config, recipe, key, head) as mirror:

        def record(event: str, step: int, **values: Any) -> None:
            line = {"event": event, "step": step, "attempt": attempt, **values}
            append_line(path, json.dumps({name: _finite(value) for name, value in line.items()}, sort_keys=True))
            mirror(event, step, values)

        yield record, attempt


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


Mirror = Callable[[str, int, dict[str, Any]], None]


@contextlib.contextmanager
def _mirror(
    folder: Path, config: TrackingConfig, recipe: TrainRecipe, key: str, head: Callable[[], str]
) -> Iterator[Mirror]:
    """The W&B run, or nothing where it is disabled or fails to start."""
    log = get_logger(__name__)
    run: Any = None
    if config.mode != "disabled":
        try:
            run = _start_wandb(folder, config, recipe, key)
        except Exception as error:  # a foreign service must never stop a training run
            log.warning("Weights & Biases does not start (%s); %s is the record in any case", error, METRICS_FILE)
    broken = run is None

    def mirror(event: str, step: int, values: dict[str, Any]) -> None:
        nonlocal broken
        if broken:
            return
        numbers = {f"{event}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
        try:
            run.log(numbers, step=step)
        except Exception as error:  # as above
            broken = True
            log.warning("Weights & Biases fails (%s); the run goes on without it", error)

    try:
        yield mirror
    finally:
        if run is not None:
            with contextlib.suppress(Exception):
                run.summary["journal_head"] = head()
            with contextlib.suppress(Exception):
                run.finish(quiet=True)


def _start_wandb(folder: Path, config: TrackingConfig, recipe: TrainRecipe, key: str) -> Any:
    place = folder / "wandb"
    place.mkdir(parents=True, exist_ok=True)
    # Read at import, and the only way to keep its staged files inside the artifact's folder.
    for variable in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        os.environ[variable] = str(place)
    mode = config.mode
    if mode == "auto":
        mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
    if mode != "online":  # read at import, too: it looks up the address of its error reports even when it is offline
        os.environ["WANDB_ERROR_REPORTING"] = "false"
    import wandb

    return wandb.init(
        project=config.project,
        name=config.name or f"train-{key[:8]}",
        id=key[:16],
        resume="allow" if mode == "online" else None,
        mode=mode,
        dir=place,
        config=recipe.model_dump(mode="json"),
        settings=wandb.Settings(silent=True, console="off", init_timeout=60.0),
    )
