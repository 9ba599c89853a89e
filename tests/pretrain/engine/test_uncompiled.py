"""Training without torch's compiler: it is never imported, and torch's marks work once it is."""

from __future__ import annotations

import json
from pathlib import Path

from tests.pretrain.rank_runs import SHORT, load_conftest, run_ranks

RUNS = {"muon": {"optimizer": "muon", "precision": "bf16"}, "adamw": {"zero_stage": 3}}


def on_one_rank(folder: Path) -> None:
    """Train without the compiler, import it and train again; write the imports, both losses, what collections skip."""
    import gc
    import sys

    skipped: list[int] = []
    gc.callbacks.append(lambda *_: skipped.append(gc.get_freeze_count()))
    conftest = load_conftest()

    def losses(round_: str) -> dict[str, list[float]]:
        return {
            name: conftest._losses(
                conftest._run_training(folder / round_ / name, **SHORT, **settings), folder / round_ / name
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
    (folder / "found.json").write_text(json.dumps(found))


SCRIPT = """import pathlib
from tests.pretrain.engine import test_uncompiled
test_uncompiled.on_one_rank(pathlib.Path({!r}))
"""


def test_training_imports_no_compiler_and_learns_the_same_next_to_one(tmp_path):
    well, written = run_ranks(tmp_path, ["-c", SCRIPT.format(str(tmp_path))], 1)
    assert well, written[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["imported"] == []
    assert found["marked"]
    assert found["skipped"] > 100_000  # what torch and DeepSpeed made when they were imported
    assert found["skipped after"] == 0
    assert found["with"] == found["without"]
    assert len(found["with"]["muon"]) == SHORT["steps"]
