"""Peak memory of real trainings on the CPU against what `pretrain/preflight/memory.py` estimates before they start.

Pages of files are left out: how much of torch's libraries is resident depends on the page cache (230 to 375 MB for the
same run on the same machine), and the system drops them before it kills a process.

Each case is a process of its own that trains three steps on made-up documents. Goal: the estimate is at most a tenth
off, either way. python training_memory.py CASE prints the peak and the parts of the estimate.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks.measures.goals import Goal, anonymous_peak_mb

_VOCABULARY = 8000
_MAX_ERROR = 0.10
_EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2}
_PAIRS = {
    "encoder_layers": 3,
    "num_hidden_layers": 3,
    "position_embedding": "sinusoidal",
    "norm": "layernorm",
    "norm_position": "post",
    "feed_forward": "relu",
    "bias": True,
    "tie_word_embeddings": True,
    "initialisation": "xavier",
    "dropout": 0.1,
    "label_smoothing": 0.1,
}
CASES: dict[str, dict[str, Any]] = {
    "bf16": {},
    "fp32_stage_0": {"precision": "fp32", "zero_stage": 0},
    "fp32_stage_3": {"precision": "fp32", "zero_stage": 3},
    "autocast_stage_2": {"precision": "autocast", "zero_stage": 2},
    "bf16_masters_stage_2": {"precision": "bf16_masters", "zero_stage": 2},
    "soft_cap": {"sequence_length": 512, "micro_batch_size": 2, "attn_logit_softcapping": 50.0},
    "documents": {"sequence_length": 2048, "micro_batch_size": 2},
    "experts": {"intermediate_size": 384, "moe": _EXPERTS},
    "full_stage_3": {"zero_stage": 3, "activation_checkpointing": "full"},
    "selective": {"activation_checkpointing": "selective"},
    "muon": {"optimizer": "muon"},
    "pairs": _PAIRS,
    "texts": {**_PAIRS, "span_corruption": {}},
}
"""By name, what differs from bf16 at stage 1: 16.8 M parameters, 8 rows of 256 tokens."""
QUICK = ("bf16", "soft_cap", "documents")


def memory(quick: bool) -> list[Goal]:
    """A goal for each case: how far the peak is from the estimate."""
    found = []
    for name in QUICK if quick else CASES:
        peak, estimate = measured(name)
        note = f"peak {peak:,.0f} MB, estimate {estimate:,.0f} MB"
        found.append(Goal(f"memory.{name}.estimate_off", abs(estimate / peak - 1), _MAX_ERROR, "<=", note))
    return found


def measured(name: str) -> tuple[float, float]:
    """Peak and estimate of a case, in MB.

    Raises:
        RuntimeError: the training failed; with its messages.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found["peak"], sum(found["estimate"].values())


def _train(name: str, root: Path) -> dict[str, Any]:
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
    from pretrain.preflight.memory import estimate
    from pretrain.train import train

    values = {
        "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6,
        "num_key_value_heads": 6, "max_position_embeddings": 2048, "sequence_length": 256, "micro_batch_size": 8,
        "precision": "bf16", "zero_stage": 1, "threads": 1, "learning_rate": 1e-3, "steps": 3, "validation_rows": 4,
        **CASES[name],
    }  # fmt: skip
    values["global_batch_size"] = values["micro_batch_size"]

    def section(kind: Any) -> Any:
        return kind(**{field: values[field] for field in kind.model_fields if field in values})

    recipe = TrainRecipe(model=section(ModelConfig), optim=section(OptimConfig), train=section(TrainConfig))
    engine = section(EngineConfig)
    settings = Settings(CheckpointConfig(every_steps=2), engine, TrackingConfig(mode="disabled"))
    tokens = _pairs if recipe.model.encoder_layers else _tokens
    with anonymous_peak_mb() as peak:
        made = train((_texts if recipe.train.span_corruption else tokens)(root), recipe, settings, Runtime(root=root))
    parts = estimate(recipe, engine, made.stats["vocabulary_size"], 1, "cpu").device
    return {"peak": peak(), "estimate": {part: count / 1e6 for part, count in parts.items()}}


def _pairs(root: Path) -> Any:
    """Packed rows of pairs of sources and targets, equally long: two fill a row of 256."""
    from data_pipeline.tokens.pack import PackConfig, pack
    from governance.stage import Runtime

    return pack(_tokens(root, (129, 130), pairs=True), PackConfig(sequence_length=256, min_used_share=0), Runtime(root))


def _texts(root: Path) -> Any:
    """Token shards of texts of one row each.

    Their tokenizer has the sentinels that spans of them need.
    """
    from governance.manifest import Manifest, write_manifest

    special = {f"<extra_id_{number}>": _VOCABULARY - 1 - number for number in range(32)}
    tokenizer = Manifest(
        stage="tokenizer", version=1, key="f" * 64, config={}, inputs=(), outputs=(), run={},
        stats={"vocabulary_size": _VOCABULARY, "end_of_document": 0, "special_tokens": special},
    )  # fmt: skip
    write_manifest(tokenizer, root)
    return _tokens(root, (256, 257), inputs=(tokenizer.as_input(),))


def _tokens(root: Path, lengths: tuple[int, int] = (51, 601), pairs: bool = False, inputs: Any = ()) -> Any:
    """Token shards of documents of up to 600 random tokens: several in a row of 2,048."""
    import numpy as np

    from data_pipeline.tokens.token_shards import EncodedDocument, write_token_shard
    from governance.manifest import Manifest, describe, write_manifest

    folder, generator, outputs = root / "encode" / ("e" * 16), np.random.default_rng(0), []
    for role, count in (("train", 200), ("validation", 40)):
        documents = [
            EncodedDocument(f"{role}{number}", tokens, 3 * len(tokens), "made/en", answers)
            for number in range(count)
            for tokens in [np.append(generator.integers(1, _VOCABULARY, int(generator.integers(*lengths)) - 1), 0)]
            for answers in [np.arange(len(tokens)) > len(tokens) // 2 if pairs else None]
        ]
        write_token_shard(folder / role / "00000.tokens", documents, _VOCABULARY, 0)
        outputs.append(describe(folder / role / "00000.tokens", root))
    manifest = Manifest(
        stage="encode",
        version=1,
        key="e" * 64,
        config={"loss_on": "targets"} if pairs else {},
        inputs=inputs,
        outputs=tuple(outputs),
        stats={},
        run={},
    )
    write_manifest(manifest, root)
    return manifest


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(_train(sys.argv[1], Path(scratch))), flush=True)
