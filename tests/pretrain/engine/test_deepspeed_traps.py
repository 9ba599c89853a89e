"""Each trap of DeepSpeed that `docs/engine.md` lists has a test; here are those that no other file has."""

from __future__ import annotations

import ast
import importlib.metadata
import itertools
import re
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.specifiers import SpecifierSet

from pretrain.config.training import EngineConfig
from pretrain.engine.deepspeed_config import deepspeed_config
from pretrain.model.decoder import Batch
from tests.pretrain.engine import test_engine_state as small
from tests.pretrain.engine.test_deepspeed_config import ENGINES, PRECISIONS, keys_of, recipe
from tests.pretrain.rank_runs import SHORT, losses_of_runs

ROOT = Path(__file__).parents[3]


def table() -> list[tuple[str, list[str]]]:
    """The traps, and the tests that each names as `file.py::test` or `::test` of this file."""
    text = (ROOT / "docs" / "engine.md").read_text()
    part = text.split("## Traps of DeepSpeed", 1)[1].split("\n## ", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]
    return [(cells[0], re.findall(r"`([\w/]*\.py)?::(\w+)`", cells[-1])) for cells in rows[2:]]


def test_every_trap_names_a_test_that_exists():
    rows = table()
    assert len(rows) >= 15
    for trap, tests in rows:
        assert tests, trap
        for file, name in tests:
            [path] = (ROOT / "tests" / "pretrain").rglob(file or Path(__file__).name)
            tree = ast.parse(path.read_text())
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (trap, file, name)


def test_the_pin_admits_what_was_read_and_no_other_minor_version():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [line] = [line for line in wanted if line.startswith("deepspeed")]
    pin = SpecifierSet(line.removeprefix("deepspeed"))
    assert importlib.metadata.version("deepspeed") in pin
    assert not {"0.19.7", "0.20.0"} & set(pin.filter(["0.19.7", "0.19.8", "0.20.0"]))


NEVER = {
    "elasticity", "nebula", "compression_training", "amp", "mics_shard_size", "curriculum_learning",  # removed
    "optimizer",  # 1-bit optimizers were removed, its Muon and Lion have traps: ours is given to it
    "scheduler",  # has no WSD: rates are `optim.rate_factor`
    "checkpoint",  # its writer needs CROSS_SIZE, which only one launcher sets
    "reduce_scatter",  # its Muon needs it off at stage 3; ours does not
}  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lion"])
def test_what_deepspeed_removed_or_does_worse_is_never_requested(optimizer):
    for engine, precision in itertools.product(ENGINES, PRECISIONS):
        ranks = engine.get("tensor_parallel_size", 1)
        emitted = deepspeed_config(
            recipe(optimizer, precision=precision), EngineConfig(micro_batch_size=8, **engine), ranks
        )
        assert {part for path in keys_of(emitted) for part in path} & NEVER == set()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_token_weighs_the_same_in_every_micro_batch(stage):
    """A mean over micro batches of their means would give more weight to the tokens of the emptier one."""

    def batch(rows: slice) -> Batch:
        whole = small.batches(1, share=False)[0]
        targets = whole.targets.clone()
        targets[1, 2:] = -100  # the second row predicts 2 tokens, the first all
        return Batch(whole.tokens[rows], targets[rows], whole.segments[rows], whole.positions[rows])

    def norm(parts: list[slice], engine) -> float:
        micro = [batch(rows) for rows in parts]
        targets = sum(int((part.targets >= 0).sum()) for part in micro)
        engine.set_accumulation(len(micro))
        for part in micro:
            engine.backward(engine.forward(part)[0], targets, last=part is micro[-1])
        return float(engine.update(0.0, torch.ones(()))[1][0])

    engine = small.open_one("adamw", stage)
    whole = norm([slice(0, 2)], engine)
    assert norm([slice(0, 1), slice(1, 2)], engine) == pytest.approx(whole, rel=1e-5)
    only = [norm([slice(row, row + 1)], engine) for row in (0, 1)]
    assert abs(sum(only) / 2 - whole) > 0.05 * whole  # the rows differ enough for the mistake to show


@pytest.mark.parametrize("stage", [1, 2])
def test_norms_are_read_after_the_copies_of_gradients_to_host_memory(stage):
    """Without `overlap_comm`, a GPU still copies after the backward pass; here a late event represents the copies."""

    class Copy:
        def synchronize(self) -> None:
            held.copy_(arrived)

    more = {"offload_optimizer": "cpu", "deepspeed": {"zero_optimization": {"overlap_comm": False}}}
    engine = small.open_one("adamw", stage, more=more)
    small.gradient(engine, 1)
    zero = engine.deepspeed.optimizer
    held = zero.single_partition_of_fp32_groups[0].grad
    arrived = held.clone()
    expected = torch.linalg.vector_norm(arrived)
    held.zero_()
    zero._pending_offload_events["stream"] = Copy()
    norms = engine.update(1.0, torch.zeros(()))[1]
    assert norms[1] == pytest.approx(float(expected), rel=1e-6)
    assert expected > 0


def bare(stage: int) -> list[float]:
    """Losses of a linear map trained towards zero, in bf16, with DeepSpeed alone."""
    small.open_one("adamw", 1)  # imports DeepSpeed with the extensions that it may build
    import deepspeed

    torch.manual_seed(0)
    model, rows = torch.nn.Linear(8, 8, bias=False), torch.randn(16, 8, dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={"train_micro_batch_size_per_gpu": 16, "bf16": {"enabled": True}, "zero_optimization": {"stage": stage}},
    )
    losses = []
    for _ in range(8):
        loss = engine(rows).float().square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(float(loss))
    return losses


def test_bf16_at_stage_0_is_a_step_ahead_and_so_learns_otherwise(monkeypatch):
    """Stage 0 keeps fp32 masters, but steps once with gradients of zero: AdamW corrects by a step too many."""
    expected, ahead = bare(1), bare(0)
    assert bare(2) == expected
    assert ahead[0] == expected[0]
    assert min(one - other for one, other in zip(ahead[1:], expected[1:], strict=True)) > 0.01 * expected[0]
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

    monkeypatch.setattr(FP16_UnfusedOptimizer, "initialize_optimizer_states", lambda self: None)
    assert bare(0) == expected


@pytest.mark.slow
def test_a_start_on_cpu_compiles_nothing(tmp_path, monkeypatch):
    """gloo must not build `deepspeed_shm_comm`, which takes minutes at a first start and leaves a lock after a kill."""
    extensions = tmp_path / "extensions"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(extensions))
    losses = losses_of_runs(tmp_path, {"plain": {**SHORT, "zero_stage": 2, "precision": "bf16"}}, 1)
    assert len(losses["plain"]) == SHORT["steps"]
    assert not list(extensions.rglob("*"))
