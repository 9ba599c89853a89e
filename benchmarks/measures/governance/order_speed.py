"""Time of a step whose sums have one order (`engine.rank_invariant`), against the ordinary one's, in turn.

As a script it is one rank: two engines over the same model take their steps by turns, so both meet the same neighbours.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from benchmarks.measures.children import ending_with_this, environment  # noqa: E402
from benchmarks.measures.goals import Goal  # noqa: E402

CASES = (("fp32", 1, 1), ("bf16", 1, 2), ("fp32", 2, 1), ("bf16", 2, 2), ("bf16", 4, 1))
"""Precision, ranks, ZeRO stage."""
_VOCABULARY, _LENGTH, _MICRO, _BATCH = 4096, 128, 2, 16


def order(quick: bool) -> list[Goal]:
    """A ratio of step times for each case."""
    return [_case(*case, rounds=5 if quick else 20) for case in (CASES[:3] if quick else CASES)]


def _case(precision: str, ranks: int, stage: int, rounds: int) -> Goal:
    from pretrain.distributed.launcher import _free_port

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "ratio.json"
        words = [sys.executable, __file__, precision, str(stage), str(rounds), str(file)]
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(ranks)}
        meeting |= {"LOCAL_WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
        children = [
            subprocess.Popen(
                words, env={**environment(), **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                preexec_fn=ending_with_this(), stdout=subprocess.DEVNULL,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        if any([child.wait() for child in children]):
            raise RuntimeError(f"{precision}, {ranks} rank(s), stage {stage}: a rank failed")
        found = json.loads(file.read_bytes())
    note = f"{found['ordinary'] * 1e3:.0f} ms per step ordinarily, {rounds} rounds"
    return Goal(f"order_time_ratio_{precision}_{ranks}_ranks_stage_{stage}", found["ratio"], 1.25, "<=", note)


def main(precision: str, stage: str, rounds: str, file: str) -> None:
    """One rank: both engines, step by step."""
    import torch

    from pretrain.config.model import ModelConfig
    from pretrain.config.optim import OptimConfig
    from pretrain.config.training import EngineConfig, TrainConfig, TrainRecipe
    from pretrain.distributed.process_group import end_rank, join, read_ranks
    from pretrain.engine.engine import open_engine
    from pretrain.engine.fixed_order import tree_order
    from pretrain.model.decoder import Batch
    from pretrain.model.init import initial_weight

    torch.set_num_threads(1)
    ranks = read_ranks()
    device = join(ranks, 300.0, "cpu")
    model = ModelConfig(
        hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
        max_position_embeddings=_LENGTH,
    )  # fmt: skip
    train = TrainConfig(sequence_length=_LENGTH, global_batch_size=_BATCH, steps=100, precision=precision)
    recipe = TrainRecipe(model=model, optim=OptimConfig(learning_rate=1e-3), train=train)
    engines = {}
    for name, fixed in (("ordinary", False), ("ordered", True)):
        settings = EngineConfig(micro_batch_size=_MICRO, zero_stage=int(stage), threads=1, rank_invariant=fixed)
        weight = lambda name, shape: initial_weight(name, shape, config=model, seed=0)  # noqa: E731
        engines[name] = open_engine(recipe, settings, _VOCABULARY, ranks, device, weight)
    passes = _BATCH // _MICRO // ranks.world_size
    text = torch.Generator().manual_seed(ranks.rank)
    zeros = torch.zeros(_MICRO, _LENGTH, dtype=torch.int32)
    places = torch.arange(_LENGTH, dtype=torch.int32).expand(_MICRO, -1).contiguous()
    batches = []
    for _ in range(passes):
        tokens = torch.randint(_VOCABULARY, (_MICRO, _LENGTH), generator=text)
        batches.append(Batch(tokens, tokens.roll(-1, 1), zeros, places))
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(int(rounds) + 2):
        for name, engine in engines.items():
            torch.distributed.barrier()
            started = time.perf_counter()
            engine.set_accumulation(passes)
            for number, batch in enumerate(tree_order(batches), 1):
                objective, _ = engine.forward(batch)
                engine.backward(objective, _BATCH * _LENGTH, last=number == passes)
            engine.update(1.0, torch.zeros(()))
            torch.distributed.barrier()
            seconds[name].append(time.perf_counter() - started)
    ratios = [ours / plain for ours, plain in zip(seconds["ordered"][2:], seconds["ordinary"][2:], strict=True)]
    if ranks.first:
        found = {"ratio": statistics.median(ratios), "ordinary": statistics.median(seconds["ordinary"][2:])}
        Path(file).write_text(json.dumps(found))
    end_rank(0)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
