"""Runs of Assay on this machine against the plan's time of a step.

Each case is a process of its own that trains on made-up documents with one thread, in CPU seconds. The rates are what
a cluster file asks for: products and attention's products of the case's own shapes, each measured alone, and the best
copy in memory of any process. Three factors of a CPU's forecast are fitted, and each case is predicted by a fit that
has not seen it. Memory: `training.py memory`.
"""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from assay.planning.time_calibration import CPU
from benchmarks.measures.goals import Goal, figure

WITHIN = 0.2
_STEPS = 10
_DOCUMENTS = (51, 601)
"""Least tokens of a document, and one above the most."""
_BASE = {
    "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6,
    "num_key_value_heads": 6, "max_position_embeddings": 2048, "sequence_length": 256, "micro_batch_size": 8,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "base": {},
    "wide": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 3, "num_attention_heads": 12,
             "num_key_value_heads": 12},
    "narrow": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "num_attention_heads": 4,
               "num_key_value_heads": 4},
    "deep": {"num_hidden_layers": 12},
    "long": {"sequence_length": 1024, "micro_batch_size": 2},
    "rows": {"micro_batch_size": 16},
    "full": {"activation_checkpointing": "full"},
    "stage_2": {"zero_stage": 2},
}  # fmt: skip
QUICK = ("base", "wide", "narrow", "long", "full")


@dataclass(frozen=True)
class RunCase:
    """A measured step and the forecast's parts."""

    name: str
    seconds: float
    parts: dict[str, float]
    copies: float
    """Bytes per second of the best copy."""

    def predicted(self, factors: Sequence[float]) -> float:
        """Seconds of a step."""
        products, attention, rest = factors
        memory = sum(part for name, part in self.parts.items() if name not in ("products", "attention"))
        return products * self.parts["products"] + attention * self.parts["attention"] + rest * memory


def on_one_machine(cases: Sequence[RunCase]) -> list[RunCase]:
    """Cases with the best copy that any of them measured: the machine is one, and neighbours only slow it."""
    copies = max(case.copies for case in cases)

    def scaled(case: RunCase) -> dict[str, float]:
        alone = ("products", "attention")
        return {name: part * (1 if name in alone else case.copies / copies) for name, part in case.parts.items()}

    return [replace(case, parts=scaled(case)) for case in cases]


def fit(cases: Sequence[RunCase]) -> list[float]:
    """Factors of products, attention, and of what moves bytes."""
    from scipy.optimize import least_squares

    def errors(values: Sequence[float]) -> list[float]:
        return [float(np.log(case.predicted(values) / case.seconds)) for case in cases]

    found = least_squares(
        errors, [1.2, 1.5, 1.5], bounds=([0.8, 0.5, 1.0], [3.0, 6.0, 8.0]), loss="soft_l1", f_scale=0.1
    )
    return [float(value) for value in found.x]


def goals(quick: bool) -> list[Goal]:
    """Goals on the measured runs."""
    cases = on_one_machine([_measured(name) for name in (QUICK if quick else CASES)])
    found, errors = [], []
    for case in cases:
        seconds = case.predicted(fit([other for other in cases if other is not case]))
        errors.append(abs(seconds / case.seconds - 1))
        note = f"{seconds:.3g} s, measured {case.seconds:.3g}; left out of the fit"
        found.append(Goal(f"plan.run.{case.name}.time_off", errors[-1], WITHIN, "<=", note))
    products, attention, rest = fit(cases)
    words = f"products {products:.2f}, attention {attention:.2f}, rest {rest:.2f}; shipped {CPU.products:.2f}, "
    found.append(
        figure("plan.run.median_time_off", float(np.median(errors)), f"{words}{CPU.attention:.2f}, {CPU.rest:.2f}")
    )
    return found


def answer() -> list[Goal]:
    """Time of an answer, with all its layouts, without and with the start of Python."""
    root = Path(__file__).resolve().parents[3]
    code = (
        "import sys,time;from pathlib import Path;from assay.config import load_run;"
        "from assay.planning.cluster import read_cluster;from assay.planning.layouts import layouts;"
        "from assay.planning.plan import PlanInputs,make_plan;from assay.planning.plan_page import layout_rows,lines;"
        "t=time.process_time();run=load_run(Path('configs/7b.toml'),[],needs='model');c=read_cluster('h100');"
        "i=PlanInputs(32000,c,8);p=make_plan(run,i);list(lines(p));layout_rows(p,layouts(run,i));"
        "print(time.process_time()-t)"
    )
    inside = []
    for _ in range(3):
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=root)
        inside.append(float(done.stdout))
    whole, wall = [], []
    with tempfile.TemporaryDirectory() as scratch:
        words = [sys.executable, "-m", "assay", "plan", "configs/7b.toml", "--cluster", "h100", "--root", scratch]
        compiled = {**os.environ, "PYTHONPYCACHEPREFIX": scratch}  # as an installed program has it
        compiled.pop("PYTHONDONTWRITEBYTECODE", None)
        for _ in range(6):
            before = os.times()
            subprocess.run(words, check=True, capture_output=True, cwd=root, env=compiled)
            after = os.times()
            whole.append(after.children_user + after.children_system - before.children_user - before.children_system)
            wall.append(after.elapsed - before.elapsed)
    return [
        Goal("plan.answer_cpu_seconds", min(inside), 1.0, "<=", "reading, plan and 100 layouts, of a started process"),
        Goal(
            "plan.command_cpu_seconds", min(whole[1:]), 1.0, "<=", "the same with the start of Python and its imports"
        ),
        figure("plan.command_wall_seconds", float(np.median(wall[1:])), "median of five, load included"),
    ]


def _measured(name: str) -> RunCase:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, name], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return RunCase(name, **found)


def _copies() -> float:
    """Bytes per second that copies in memory reach, read and written."""
    source, target, best = np.ones(1 << 24, np.float32), np.empty(1 << 24, np.float32), 0.0
    for _ in range(8):
        started = time.perf_counter()
        np.copyto(target, source)
        best = max(best, 2 * source.nbytes / (time.perf_counter() - started))
    return best


def _rate(products: Sequence[tuple[int, ...]]) -> float:
    """Operations per CPU-second of bf16 products [batch, m, k] x [batch, k, n], each as fast as it ever was."""
    import torch

    work = seconds = 0.0
    for batch, m, k, n in products:
        left, right = (torch.randn(batch, *shape).bfloat16() for shape in ((m, k), (k, n)))
        best = math.inf
        for _ in range(12):
            started = time.process_time()
            torch.bmm(left, right)
            best = min(best, time.process_time() - started)
        work, seconds = work + 2 * batch * m * k * n, seconds + best
    return work / seconds


def _rates(values: dict[str, Any]) -> tuple[float, tuple[float, float]]:
    """Rates of a block's products, and of attention's, forward and backward, at the shapes of a case.

    The forecast counts attention's backward as 2.5 forwards, for a kernel that computes probabilities again. Assay's
    on a CPU keeps them, so it makes two forwards' products.
    """
    tokens, width = values["micro_batch_size"] * values["sequence_length"], values["hidden_size"]
    products = []
    for inner, count in ((width, 4), (values["intermediate_size"], 3)):
        products += count * [(1, tokens, width, inner), (1, tokens, inner, width), (1, width, tokens, inner)]
    many, head, keys = (
        values["micro_batch_size"] * values["num_attention_heads"],
        width // values["num_attention_heads"],
        256,
    )
    scores, outputs = (many, 128, head, keys), (many, 128, keys, head)
    backward = _rate([scores, outputs, (many, keys, 128, head), (many, keys, 128, head)])
    return _rate(products), (_rate([scores, outputs]), 1.25 * backward)


def _train(name: str, root: Path) -> dict[str, Any]:
    import pretrain.loop
    from benchmarks.measures.training.training_memory import _tokens
    from governance.stage import Runtime
    from pretrain.config.model import ModelConfig
    from pretrain.config.optim import OptimConfig
    from pretrain.config.training import (
        CheckpointConfig,
        EngineConfig,
        Settings,
        TrackingConfig,
        TrainConfig,
        TrainRecipe,
    )
    from pretrain.distributed.process_group import Ranks
    from pretrain.preflight.forecast import Machine, forecast
    from pretrain.train import train

    values = {
        **_BASE, "precision": "bf16", "zero_stage": 1, "threads": 1, "learning_rate": 1e-3, "steps": _STEPS,
        "validation_rows": 4, **CASES[name],
    }  # fmt: skip
    values["global_batch_size"] = values["micro_batch_size"]

    def section(kind: Any) -> Any:
        return kind(**{field: values[field] for field in kind.model_fields if field in values})

    recipe = TrainRecipe(model=section(ModelConfig), optim=section(OptimConfig), train=section(TrainConfig))
    settings = Settings(CheckpointConfig(every_steps=1000), section(EngineConfig), TrackingConfig(mode="disabled"))
    clock: Any = functools.partial(pretrain.loop.StepMeter, clock=time.process_time)
    pretrain.loop.StepMeter = clock  # CPU seconds of the one thread, so that neighbours do not count
    made = train(_tokens(root, _DOCUMENTS), recipe, settings, Runtime(root=root))
    lines = [json.loads(line) for line in (root / made.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"][2:]
    copies, (product, attention) = _copies(), _rates(values)
    machine = Machine(product, copies, product, product, attention, attention, rows_apart=False)
    mean = (sum(_DOCUMENTS) - 1) / 2
    found = forecast(recipe, settings.engine, made.stats["vocabulary_size"], Ranks(), machine, document_tokens=mean)
    seconds = float(np.median([step["seconds"] for step in steps]))
    return {"seconds": seconds, "parts": found.seconds, "copies": copies}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch_folder:
        print(json.dumps(_train(sys.argv[1], Path(scratch_folder))), flush=True)
