"""On a CUDA card: MFU of two sizes, and what DeepSpeed costs against a bare loop. Elsewhere it says: not run.

Token shards are random, of GPT-2's vocabulary: only time is measured. MFU counts 6 N + 12 layers x width x length
operations a token against the card's data sheet.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measures.goals import Goal, told
from governance.files import read_lines
from governance.manifest import Manifest, describe, write_manifest
from governance.stage import Runtime

VOCABULARY = 50_257
SMALL = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16}


def gpu(quick: bool) -> list[Goal]:
    """All of it on this machine's first card."""
    import torch

    if not torch.cuda.is_available():
        return [told("training_gpu_not_run", 0.0, note="no CUDA device here; the goals on one H100 were not measured")]
    steps = 30 if quick else 100
    card = torch.cuda.get_device_name()
    goals = []
    for name, sizes, length, rows, goal in (("124m", SMALL, 1024, 64, 0.48), ("1_3b", LARGE, 2048, 16, 0.50)):
        figures = measured(sizes, length, rows, steps)
        goals.append(Goal(f"training_gpu_mfu_{name}", figures["mfu"], goal, note=card))
        goals.append(told(f"training_gpu_tokens_per_second_{name}", figures["tokens_per_second"], note=card))
    bare = bare_seconds(SMALL, 1024, 64, steps, torch.device("cuda"))
    for stage, goal in ((1, 0.02), (3, 0.05)):
        tax = measured(SMALL, 1024, 64, steps, zero_stage=stage)["seconds"] / bare - 1
        goals.append(Goal(f"training_gpu_engine_tax_zero_{stage}", tax, goal, "<=", note=card))
    return goals


def _tokens(root: Path, length: int, rows: int) -> Manifest:
    """A shard of random tokens: documents of one to four rows."""
    from data_pipeline.token_shards import EncodedDocument, write_token_shard

    generator = np.random.default_rng(0)
    path = root / "encode" / ("e" * 16) / "train" / "00000.tokens"
    documents = []
    for number in range(rows):
        tokens = generator.integers(1, VOCABULARY, int(generator.integers(length, 4 * length)))
        tokens[-1] = 0
        documents.append(EncodedDocument(str(number), tokens, 4 * len(tokens)))
    write_token_shard(path, documents, VOCABULARY, 0)
    manifest = Manifest(
        stage="encode", version=1, key="e" * 64, config={}, inputs=(), outputs=(describe(path, root),), stats={}, run={}
    )
    write_manifest(manifest, root)
    return manifest


def measured(sizes: dict[str, int], length: int, rows: int, steps: int, zero_stage: int = 1) -> dict[str, float]:
    """Medians of a training run's own record, after its first ten steps."""
    from pretrain.config import CheckpointConfig, EngineConfig, Settings, TrackingConfig, TrainConfig, TrainRecipe
    from pretrain.optim_config import OptimConfig
    from pretrain.train import train

    recipe = TrainRecipe(
        model=_model(sizes, length),
        optim=OptimConfig(learning_rate=3e-4, warmup_steps=10),
        train=TrainConfig(sequence_length=length, global_batch_size=rows, steps=steps, validate_every_steps=0),
    )
    engine = EngineConfig(zero_stage=zero_stage, micro_batch_size=rows, compile=True)
    settings = Settings(CheckpointConfig(every_steps=steps), engine, TrackingConfig(mode="disabled"))
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        made = train(_tokens(root, length, 4 * rows), recipe, settings, Runtime(root))
        lines = [line for line in read_lines(root / made.folder / "metrics.jsonl") if line["event"] == "step"][10:]
    return {name: statistics.median(line[name] for line in lines) for name in ("mfu", "tokens_per_second", "seconds")}


def _model(sizes: dict[str, int], length: int) -> Any:
    from pretrain.model_config import ModelConfig

    heads = {"num_key_value_heads": sizes["num_attention_heads"]}
    return ModelConfig(**sizes, **heads, max_position_embeddings=length, tie_word_embeddings=True)


def bare_seconds(sizes: dict[str, int], length: int, rows: int, steps: int, device: Any) -> float:
    """The median step of the same model under torch alone: bf16 autocast, fused AdamW, clipping; compiled on a card."""
    import torch

    from pretrain.model.decoder import Batch, Decoder
    from pretrain.model.initial import initial_weight

    config = _model(sizes, length)
    model = Decoder(config, VOCABULARY)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_weight(name, parameter.shape, config, 0))
    model.to(device)
    run = torch.compile(model) if device.type == "cuda" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = torch.randint(1, VOCABULARY, (rows, length + 1))
    shape = torch.zeros(rows, length, dtype=torch.int32)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], shape, torch.arange(length, dtype=torch.int32).expand(rows, -1))
    batch = batch.to(device)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            objective, _ = run(batch.tokens, batch.targets, batch.segments, batch.positions)
        (objective / (rows * length)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[min(10, steps // 2) :])
