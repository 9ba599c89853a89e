"""No step makes the host wait for the device: on a GPU each wait would empty the queue of its kernels.

On the CPU a tensor's number is available at once, but the same lines request it: they are counted, by line.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from pretrain import loop
from pretrain.config.optim import OptimConfig
from pretrain.engine.engine import Engine
from pretrain.optim.optimizers import rate_factor
from tests.pretrain.engine.test_engine_state import LENGTH, ROWS, batches, open_one

ASKING = ("__bool__", "__float__", "__int__", "__index__", "item", "tolist", "cpu", "nonzero")
"""What gives the host a number, or makes a shape of one."""
CPU_ALONE = ("cpu_ops.py", "bf16.py")
"""Kernels that never run on a GPU."""


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Lines that request a number from a tensor, nearest caller first, with counts."""
    found = Counter[str]()

    def watch(name: str) -> None:
        real = getattr(torch.Tensor, name)

        def call(self: torch.Tensor, *given: object, **named: object) -> object:
            lines = [(os.path.basename(at.filename), at.lineno, at.name) for at in traceback.extract_stack()[:-1]]
            if threading.current_thread() is threading.main_thread() and lines[-1][0] not in CPU_ALONE:
                found[" < ".join(f"{file}:{number} {function}" for file, number, function in lines[:-4:-1])] += 1
            return real(self, *given, **named)

        monkeypatch.setattr(torch.Tensor, name, call)

    for name in ASKING:
        watch(name)
    return found


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), *((s, p) for s in (1, 2, 3) for p in ("fp32", "bf16"))])
def test_no_step_waits_for_a_number_of_the_device(requests, stage, precision):
    """Forward, backward, norms, clipping and update, after the first step, which builds what the others use."""
    engine = open_one("adamw", stage, precision)
    for step in (1, 2):
        requests.clear()
        learn_one(engine, step)
    assert not requests, requests.most_common()


def learn_one(engine: Engine, step: int) -> None:
    """A step as the loop takes it, without reading its loss."""
    mine = batches(step)
    for batch in mine:
        objective, _ = engine.forward(batch)
        engine.backward(objective, ROWS * LENGTH, last=batch is mine[-1])
    engine.update(1.0, torch.zeros(()))


def test_what_deepspeed_would_read_is_seen(requests, monkeypatch):
    from deepspeed.runtime import utils
    from deepspeed.runtime.zero import stage3

    engine = open_one("adamw", 3, "bf16")
    learn_one(engine, 1)
    monkeypatch.setattr(stage3, "is_invalid_grad_norm", utils.is_invalid_grad_norm)
    requests.clear()
    learn_one(engine, 2)
    [(line, times)] = requests.items()
    assert "is_invalid_grad_norm" in line
    assert times == 1


def test_a_whole_run_reads_its_record_and_nothing_else(requests, tmp_path, run_training, monkeypatch):
    """Guard, meter and record, too: a step's numbers are read in `Ledger`, which on CUDA does so a step later."""
    seen: dict[int, Counter[str]] = {}

    def rate(step: int, steps: int, config: OptimConfig) -> float:
        seen[step] = Counter(requests)
        requests.clear()
        return rate_factor(step, steps, config)

    monkeypatch.setattr(loop, "rate_factor", rate)
    run_training(tmp_path, precision="bf16", steps=5, every_steps=5, validate_every_steps=0, decay_steps=2)
    host = ("process_group.py", "step_log.py")  # words in host memory, summed by gloo; and the record
    assert seen[5]
    assert all(line.startswith(host) for line in seen[5]), seen[5].most_common()
    assert sum(times for line, times in seen[5].items() if line.startswith("step_log.py")) == 1
