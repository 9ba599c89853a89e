"""Adapters trained by ranks, once at a stretch and once killed and resumed from the ranks' own parts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pretrain.checkpoint.save import Saver
from tests.pretrain.initial_weights.test_initial_weights import saved
from tests.pretrain.rank_runs import load_conftest

CASES = (("fp32", 3), ("bf16", 2))


def killed_after_its_save(self: Saver, state: object, save=Saver.save) -> None:
    save(self, state)
    self.wait()
    raise KeyboardInterrupt


def digests(folder: str) -> dict[str, tuple[str, str]]:
    """Digests of both runs of every case."""
    conftest, found, place = load_conftest(), {}, Path(folder)
    base = place / f"base{os.environ['RANK']}"
    saved("llama", base, vocab_size=200, num_hidden_layers=2, intermediate_size=64)
    adapter = {"rank": 4, "dropout": 0.2}
    given = {"initial_weights": str(base), "rms_norm_eps": 1e-6, "adapter": adapter, "micro_batch_size": 2}
    for precision, stage in CASES:
        name = f"{precision} {stage}"
        case = {**given, "precision": precision, "zero_stage": stage}
        whole = conftest._run_training(place / f"{name} whole", **case)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Saver, "save", killed_after_its_save)
            with pytest.raises(KeyboardInterrupt):
                conftest._run_training(place / f"{name} killed", **case)
        found[name] = (whole.digest, conftest._run_training(place / f"{name} killed", **case).digest)
    return found
