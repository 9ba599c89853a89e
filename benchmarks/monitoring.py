"""Cost of monitoring a training run: processor time per step of the meter, the record, W&B offline, TensorBoard.

    python benchmarks/monitoring.py [--quick] [GROUP ...]

Groups: step. All threads and child processes are counted, wandb's own among them; what opening and closing costs is
taken off as the cost of a run without steps. The share is of the shortest step that is possible here: GPT 6 x 384 on
characters, 16 rows of 256, as if all of it ran on all cores at the rate of fp32 matrix products on one, by processor
time, so that neighbours do not count. Prints a line per goal; exits 1 when one falls short.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measures.goals import Goal, command_line, cpu_seconds, figure

_ROWS, _LENGTH, _VOCABULARY = 16, 256, 65
_WAYS: dict[str, dict[str, Any]] = {
    "record": {"mode": "disabled"},
    "wandb": {"mode": "offline"},
    "tensorboard": {"mode": "disabled", "tensorboard": True},
    "all": {"mode": "offline", "tensorboard": True},
}


def _job(record: Callable[..., None]) -> Any:
    """Job attributes that the meter reads: the model and the batch of the claim."""
    import torch

    from pretrain.distributed.process_group import Ranks, join

    return SimpleNamespace(
        recipe=_recipe(),
        train_rows=SimpleNamespace(vocabulary_size=_VOCABULARY, count=100_000),
        ranks=Ranks(),
        device=join(Ranks(), 60.0) if not torch.cuda.is_available() else torch.device("cpu"),
        energy={"running": {"joules": 1.0, "method": "RAPL"}},
        record=record,
    )


def _recipe() -> Any:
    from pretrain.config.model import ModelConfig
    from pretrain.config.optim import OptimConfig
    from pretrain.config.training import TrainConfig, TrainRecipe

    model = ModelConfig(
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=_LENGTH,
        tie_word_embeddings=True,
    )
    train = TrainConfig(sequence_length=_LENGTH, global_batch_size=_ROWS, steps=1000, precision="fp32")
    return TrainRecipe(model=model, optim=OptimConfig(learning_rate=1e-3), train=train)


def _run(steps: int, settings: dict[str, Any], seen: dict[str, Any]) -> float:
    """CPU-seconds of a run of `steps` steps that compute nothing; the event "start" goes into `seen`."""
    from pretrain.config.training import TrackingConfig
    from pretrain.metrics.metrics_log import open_record
    from pretrain.metrics.run_identity import RunIdentity
    from pretrain.step_meter import StepMeter, step_note

    started = cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        about = RunIdentity(_recipe(), "f" * 64)
        with open_record(Path(folder), TrackingConfig(**settings), about, writes=True) as (record, _):

            def keep(event: str, step: int, **values: Any) -> None:
                seen.setdefault(event, values)
                record(event, step, **values)

            meter = StepMeter(_job(keep), 0, 0)
            for step in range(1, steps + 1):
                with meter.waiting():
                    pass
                values: dict[str, Any] = {"loss": 1.0 / step, "lr": 1e-3, "grad_norm": 0.5, "tokens": 4000 * step}
                values |= {"gradient_norms": {f"group{number}": 0.1 * number for number in range(6)}}
                values |= {"by_origin": {f"source{number}/en": 3.0 + number for number in range(6)}}
                values |= meter.step(_ROWS, _ROWS * _LENGTH, 4000)
                keep("step", step, **values)
                step_note(values)
    return cpu_seconds() - started


def _product_rate() -> float:
    """Floating-point operations per CPU-second of fp32 matrix products on one thread: the best of several turns."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    seconds = []
    for _ in range(20):
        began = time.thread_time()
        left @ right
        seconds.append(time.thread_time() - began)
    torch.set_num_threads(threads)
    return 2 * 1024**3 / min(seconds)


def step_cost(quick: bool) -> list[Goal]:
    """Microseconds per step of each way, and all of it as a share of the shortest step."""
    steps, goals, seen = (1000 if quick else 4000), [], {}
    from pretrain import step_meter as meter
    from pretrain.metrics.peak_flops import Peak

    rate = _product_rate()
    vars(meter)["measured_product"] = lambda device, arithmetic: Peak(rate, "benchmark")  # not part of a step
    costs = {}
    for name, settings in _WAYS.items():
        _run(10, settings, seen)  # imports, the service's first start
        without = _run(0, settings, seen)
        costs[name] = max(_run(steps, settings, seen) - without, 0.0) / steps
        goals.append(figure(f"step.{name}_us", 1e6 * costs[name], f"CPU per step, {steps} steps"))
    shortest = _ROWS * _LENGTH * seen["start"]["flops_per_token"] / (rate * len(os.sched_getaffinity(0)))
    goals.append(figure("step.shortest_ms", 1e3 * shortest, f"products at {rate / 1e9:.0f} GFLOP/s per core"))
    return [*goals, Goal("step.all_share", costs["all"] / shortest, 0.01, "<=")]


def groups(quick: bool) -> dict[str, Callable[[], list[Goal]]]:
    """Measurements by name."""
    return {"step": lambda: step_cost(quick)}


if __name__ == "__main__":
    raise SystemExit(command_line(__doc__, groups))
