"""Memory of the cache against its formula, and tokens per CPU-second against `transformers` on our own export.

A Llama of 11 million parameters with the weights of a start, a vocabulary of 4,096, fp32, one thread. Both continue the
same prompts greedily with a cache, in turn; each figure is the median of its turns.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measures.exported_weights import write_weights
from benchmarks.measures.goals import Goal, figure

VOCABULARY, CONTEXT = 4096, 1024
_LLAMA = {
    "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "initializer_range": 0.1,
}  # fmt: skip


def _model(**changes: Any) -> Any:
    """Decoder with the weights of a start."""
    import torch

    from pretrain.config.model import ModelConfig
    from pretrain.model.decoder import Decoder
    from pretrain.model.init import initial_weight

    config = ModelConfig.model_validate({**_LLAMA, **changes})
    model = Decoder(config, VOCABULARY).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_weight(name, parameter.shape, config, seed=0))
    return model


def cache(quick: bool) -> list[Goal]:
    """Bytes that a cache of 8 rows holds, over those of the formula and of whole heads without a window."""
    import torch

    from pretrain.inference.kv_cache import cache_bytes, first_masks, open_caches

    heads, goals, sizes = _model().config.num_attention_heads, [], {}
    for name, changes in (
        ("whole", {"num_key_value_heads": heads}),
        ("grouped", {"num_key_value_heads": 1}),
        ("window", {"num_key_value_heads": heads, "sliding_window": CONTEXT // 8}),
    ):
        model, rows, length = _model(**changes), 2 if quick else 8, 256
        caches, tokens = open_caches(model.config, CONTEXT), torch.zeros((rows, length), dtype=torch.int64)
        places, zeros = torch.arange(length).expand(rows, length).int(), torch.zeros_like(tokens).int()
        with torch.no_grad():
            model.model.through(tokens, places, first_masks(caches, zeros, model.config))
        sizes[name] = sum(one.nbytes for one in caches)
        formula = cache_bytes(model.config, rows, CONTEXT, 4)
        goals.append(Goal(f"cache_{name}_over_formula", sizes[name] / formula, 1.0, "<=", f"{sizes[name]:,} bytes"))
    goals.append(Goal("cache_one_key_head_over_whole", sizes["grouped"] / sizes["whole"], 1 / heads, "<="))
    goals.append(Goal("cache_window_of_an_eighth_over_whole", sizes["window"] / sizes["whole"], 1 / 8, "<="))
    return goals


def speed(quick: bool) -> list[Goal]:
    """Tokens per CPU-second, ours over those of `transformers`, of 1 row and of 8."""
    import torch

    torch.set_num_threads(1)
    made, prompt, turns = (32, 64, 3) if quick else (128, 256, 5)
    goals = []
    with tempfile.TemporaryDirectory() as scratch:
        model = _model()
        theirs = _exported(model, Path(scratch) / "model")
        for rows in (1, 8):
            draw = torch.Generator().manual_seed(0)
            tokens = torch.randint(1, VOCABULARY, (rows, prompt), generator=draw)
            rates: dict[str, list[float]] = {"ours": [], "theirs": [], "without": []}
            for _ in range(turns):
                ours, seconds = _ours(model, tokens, made)
                rates["ours"].append(rows * made / seconds)
                other, seconds = _theirs(theirs, tokens, made, True)
                rates["theirs"].append(rows * made / seconds)
                if ours != other:
                    raise RuntimeError("the two continue with other tokens")
            _, seconds = _theirs(theirs, tokens, made, False)
            rates["without"].append(rows * made / seconds)
            rate = {name: statistics.median(values) for name, values in rates.items()}
            word = f"{rows}_row{'s' if rows > 1 else ''}"
            note = f"{rate['ours']:.0f} against {rate['theirs']:.0f} tokens per CPU-second"
            goals.append(
                Goal(f"generation_of_{word}_over_transformers", rate["ours"] / rate["theirs"], 0.8, ">=", note)
            )
            goals.append(figure(f"generation_of_{word}_over_no_cache", rate["ours"] / rate["without"]))
    return goals


def _ours(model: Any, tokens: Any, made: int) -> tuple[list[list[int]], float]:
    from pretrain.inference.generation import generate
    from pretrain.inference.loaded_model import LoadedModel

    loaded, prompts = LoadedModel(model, CONTEXT, VOCABULARY), tokens.tolist()
    begun = time.process_time()
    found = generate(loaded, prompts, VOCABULARY, made, batch_rows=len(prompts))  # no token ends a text
    return [list(one.ids) for one in found], time.process_time() - begun


def _theirs(model: Any, tokens: Any, made: int, cached: bool) -> tuple[list[list[int]], float]:
    import torch

    begun = time.process_time()
    with torch.no_grad():
        found = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=made, do_sample=False, use_cache=cached,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    return found[:, tokens.shape[1] :].tolist(), time.process_time() - begun


def _exported(model: Any, target: Path) -> Any:
    """The model as `transformers` loads it."""
    import transformers

    with contextlib.redirect_stdout(None):
        return transformers.AutoModelForCausalLM.from_pretrained(write_weights(model, target)).eval()
