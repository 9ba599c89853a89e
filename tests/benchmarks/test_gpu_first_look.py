"""First look at a card, on a CPU with a toy model: every arm runs, and the whole ends by itself."""

from __future__ import annotations

import multiprocessing
import re
import time
from types import SimpleNamespace

from benchmarks.measures.training import gpu_first_look
from benchmarks.measures.training.gpu_first_look import ARMS, first_look
from tests.benchmarks.test_training_gpu import TOY


def answers(arm: str) -> dict[str, float]:
    return {name: value for name, value, _ in ARMS[arm][0](TOY, "cpu")}


def test_the_products_are_those_of_the_model():
    found = answers("shapes")
    assert found.keys() == {
        "query", "query_key_value", "up", "gate_and_up", "down", "gradient_of_up", "head",
    }  # fmt: skip
    assert all(value > 0 for value in found.values())


def test_a_run_and_the_bare_loop_are_measured_alike():
    import torch
    from torch._dynamo.utils import counters

    torch.compile(lambda given: given + 1, backend="eager")(torch.ones(2))
    assert counters["stats"]["unique_graphs"]  # of others in this process, which do not belong to the run
    run, bare = answers("run"), answers("bare")
    assert {"ms", "tokens_per_second"} <= run.keys() & bare.keys()
    assert run["memory_over_estimate"] > 0
    assert run["graph_breaks"] == run["graphs"] == 0  # nothing is compiled on a CPU


def test_kernels_are_ordered_by_their_time():
    found = answers("kernels")
    table = [found[f"{number:02d}"] for number in range(1, 13)]
    assert table == sorted(table, reverse=True)
    assert table[0] > 0
    assert 0 <= found["idle"] < 1


def test_waits_are_counted_by_the_lines_that_make_them(monkeypatch):
    import warnings

    from pretrain import loop

    taken = loop.rate_factor

    def waiting(step: int, *given):
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)  # as CUDA says it
        return taken(step, *given)

    monkeypatch.setattr(loop, "rate_factor", waiting)
    [(_, value, note)] = ARMS["waits"][0](TOY, "cpu")
    assert value == TOY.steps / gpu_first_look.PROFILED  # and no other line waits
    assert re.fullmatch(r"test_gpu_first_look\.py:\d+ 2", note)


def _quick(setting, device):
    return [("answer", 1.0, "")]


def _slow(setting, device):
    time.sleep(60)
    return []


def _broken(setting, device):
    raise ValueError("no such kernel")


def test_it_stops_by_itself_and_a_fault_costs_one_arm(monkeypatch):
    """Arms in order: a failing one is reported and missed, a slow one is killed, the rest are left out."""
    arms = {"quick": (_quick, 0.0), "broken": (_broken, 0.0), "slow": (_slow, 0.0), "late": (_slow, 1000.0)}
    monkeypatch.setattr(gpu_first_look, "ARMS", arms)
    forked = SimpleNamespace(get_context=lambda how: multiprocessing.get_context("fork"))
    monkeypatch.setattr(gpu_first_look, "multiprocessing", forked)  # a start of torch takes longer than all arms
    lines = list(first_look({"toy": TOY}, "cpu", seconds=8.0))
    failed = [goal for goal in lines if not goal.holds]
    assert [goal.name for goal in failed] == [
        "training_gpu_look_toy_broken_failed",
        "training_gpu_look_toy_slow_failed",
    ]
    assert "no such kernel" in failed[0].note
    assert "was not done" in failed[1].note
    assert lines[0].name == "training_gpu_look_toy_quick_answer"
    assert lines[-1].name == "training_gpu_look_toy_late_left_out"
