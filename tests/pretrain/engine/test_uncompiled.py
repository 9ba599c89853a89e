"""Training without torch's compiler: it is never imported, and torch's marks work once it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.pretrain.rank_runs import SHORT, found_by_ranks, load_conftest

RUNS = {"muon": {"optimizer": "muon", "precision": "bf16"}, "adamw": {"zero_stage": 3}}


def trained_twice(folder: str) -> dict[str, Any]:
    """Train without the compiler, import it and train again: the imports, both losses, what collections skip."""
    import gc
    import sys

    skipped: list[int] = []
    gc.callbacks.append(lambda *_: skipped.append(gc.get_freeze_count()))
    conftest = load_conftest()

    def losses(round_: str) -> dict[str, list[float]]:
        return {
            name: conftest._losses(
                conftest._run_training(Path(folder, round_, name), **SHORT, **settings), Path(folder, round_, name)
            )
            for name, settings in RUNS.items()
        }

    found = {"without": losses("without"), "imported": [name for name in sys.modules if name == "torch._dynamo"]}
    found["skipped"], found["skipped after"] = max(skipped), gc.get_freeze_count()
    import torch

    assert torch._dynamo is sys.modules["torch._dynamo"]
    found["with"] = losses("with")
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    found["marked"] = torch._dynamo.is_dynamo_supported() and hasattr(
        type(optimizer).add_param_group.__wrapped__.__dict__["__dynamo_disable"], "_torchdynamo_disable"
    )
    return found


def test_training_imports_no_compiler_and_learns_the_same_next_to_one(tmp_path):
    found = found_by_ranks(tmp_path, "engine.test_uncompiled", f"trained_twice({str(tmp_path)!r})", 1)
    assert found["imported"] == []
    assert found["marked"]
    assert found["skipped"] > 100_000  # what torch and DeepSpeed made when they were imported
    assert found["skipped after"] == 0
    assert found["with"] == found["without"]
    assert len(found["with"]["muon"]) == SHORT["steps"]
