"""The presets' settings at once: torch.compile in bf16 at each ZeRO stage, with activation checkpointing.

`test_gathering.py` has the others of stage 3: nothing recomputed (the 7b preset) and selectively (13b). On two ranks,
in one start: the pieces that one case or test compiles are there for the next, and Dynamo's state is cleared between
cases, else the ninth shape of a function would run uncompiled without a warning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.pretrain.rank_runs import SHORT, found_by_ranks, load_conftest

CASES = {"1b": (1, "none"), "second": (2, "selective"), "70b": (3, "full")}
"""Stage and checkpointing, of presets and of the stage that none has."""
ROUNDED = 1e-3
"""Nats in four steps: compiled code rounds to bf16 elsewhere. With AMX 6e-5, and 2e-4 with two blocks on one rank."""


def cases_in(folder: str) -> dict[str, Any]:
    """The work of each rank: every case compiled, and once the uncompiled reference."""
    import torch
    from torch._dynamo.utils import counters

    conftest, found = load_conftest(), {}
    for name, (stage, kept) in {"plain": (2, "none"), **CASES}.items():
        torch._dynamo.reset()
        counters.clear()
        settings = {"zero_stage": stage, "activation_checkpointing": kept, "compile": name in CASES}
        run = conftest._run_training(Path(folder, name), precision="bf16", num_hidden_layers=1, **SHORT, **settings)
        losses, graphs = conftest._losses(run, Path(folder, name)), counters["stats"]["unique_graphs"]
        found[name] = {"losses": losses, "graphs": graphs}
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled")
    return found_by_ranks(folder, "model.test_compiled", f"cases_in({str(folder)!r})", 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_compiled_preset_learns_what_it_learns_uncompiled(found, name):
    assert found["plain"]["graphs"] == 0
    # One graph for training and one for validation: of the whole model, or from stage 2 on of its one block.
    assert found[name]["graphs"] == 2
    assert found[name]["losses"] == pytest.approx(found["plain"]["losses"], abs=ROUNDED)
