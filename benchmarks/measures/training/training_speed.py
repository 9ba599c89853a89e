"""Tokens per second against other trainers, and the share of what this processor can multiply.

A GPT of 6 layers x 384, rows of 256 tokens, 16 to a step. Ours is `assay train` with everything on: gate, loader, token
digest, guard, record, the mirror offline, energy, lineage. Rivals are in bf16 and compiled where they can be; the small
GPT also as it is shipped for a CPU, fp32 and eager. Each is a process of its own, and steps are taken in turn.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.measures import rivals
from benchmarks.measures.goals import Goal, figure
from benchmarks.measures.training.in_turn import Runner, ours, ratio, runners, take_turns
from benchmarks.measures.training.training_setting import HERE, THREADS, batches_of, prepare

RIVALS = ("torch>=2.7", "transformers>=5,<6", "accelerate", "litgpt==0.5.13", "safetensors", "numpy")
HEADS = 6

GPT = """
[model]
hidden_size = 384
intermediate_size = 1536
num_hidden_layers = 6
num_attention_heads = 6
num_key_value_heads = 6
max_position_embeddings = 256
position_embedding = "learned"
norm = "layernorm"
feed_forward = "gelu"
tie_word_embeddings = true

[optim]
learning_rate = 1e-3

[train]
sequence_length = 256
global_batch_size = 16
steps = 1000000
precision = "bf16"
validate_every_steps = 0

[checkpoint]
every_steps = 1000000

[engine]
micro_batch_size = 16

[tracking]
mode = "offline"
"""


def speed(quick: bool) -> list[Goal]:
    """Assay's time against each rival's, and against matrix products measured in the same run."""
    rounds = 8 if quick else 25
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = prepare(folder, GPT, 3_000_000)
        weights, tokens = dump(path, folder)
        python = str(rivals.environment("training", RIVALS))
        given = [str(weights), str(tokens), str(HEADS), str(THREADS)]
        commands = {
            "ours": ours("train", str(path), "--root", str(folder / "root")),
            "ours_fp32": ours("train", str(path), "--root", str(folder / "root"), "--set", 'train.precision="fp32"'),
            "gpt_fp32": [python, rival("gpt.py"), *given],
            "gpt_bf16_compiled": [python, rival("gpt.py"), *given, "bf16", "compiled"],
            "hf": [python, rival("hf_trainer.py"), *given],
            "litgpt_compiled": [python, rival("litgpt_steps.py"), *given],
            "products": [sys.executable, rival("products.py"), "bfloat16", "0.45", str(THREADS)],
        }
        with runners(commands, folder) as started:
            take_turns(started, rounds)
            return _goals(started, path)


def rival(name: str) -> str:
    """The path of a rival's script."""
    return str(HERE / "benchmarks" / "rivals" / name)


def dump(path: Path, folder: Path) -> tuple[Path, Path]:
    """The run's initial weights as safetensors, and the tokens of its first steps as an array."""
    import numpy as np
    from safetensors.torch import save_file

    from assay.config import load_run
    from pretrain.model.decoder import Decoder
    from pretrain.model.init import initial_weight

    config = load_run(path, []).config
    model = Decoder(config.model, 257)
    seed = config.train.seed
    tensors = {name: initial_weight(name, p.shape, config.model, seed) for name, p in model.named_parameters()}
    save_file(tensors, folder / "weights.safetensors")
    np.save(folder / "tokens.npy", batches_of(path, 16))
    return folder / "weights.safetensors", folder / "tokens.npy"


def _goals(started: dict[str, Runner], path: Path) -> list[Goal]:
    from assay.config import load_run
    from pretrain.model.flops import flops_per_token

    model = load_run(path, []).config.model
    tokens = 16 * 256
    work = flops_per_token(model, 257, 256) * tokens
    seconds = {name: runner.seconds for name, runner in started.items()}
    products = [answer["loss"] for answer in started["products"].answers]
    share = statistics.median(work / taken / peak for taken, peak in zip(seconds["ours"], products, strict=True))
    goals = [
        Goal("training_times_gpt_fp32", ratio(seconds["gpt_fp32"], seconds["ours"]), 1.9),
        Goal("training_times_gpt_bf16_compiled", ratio(seconds["gpt_bf16_compiled"], seconds["ours"]), 1.15),
        Goal("training_times_hf_trainer_bf16", ratio(seconds["hf"], seconds["ours"]), 1.2),
        Goal("training_times_litgpt_bf16_compiled", ratio(seconds["litgpt_compiled"], seconds["ours"]), 1.15),
        Goal("training_share_of_bf16_products", share, 0.75, note=f"{statistics.median(products) / 1e9:.0f} GFLOP/s"),
        figure("training_fp32_times_gpt_fp32", ratio(seconds["gpt_fp32"], seconds["ours_fp32"])),
    ]
    for name in ("ours", "ours_fp32", "gpt_fp32", "gpt_bf16_compiled", "hf", "litgpt_compiled"):
        goals.append(figure(f"training_tokens_per_second_{name}", tokens / statistics.median(seconds[name])))
    return goals
