"""Generation with a cache gives the tokens of the whole model, of `transformers`, and the same in any batch."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.errors import ConfigError, PipelineError
from governance.manifest import read_manifest
from pretrain.config.training import EngineConfig
from pretrain.inference.generation import Continuation, generate
from pretrain.inference.kv_cache import cache_bytes, first_masks, next_masks, open_caches
from pretrain.inference.loaded_model import LoadedModel, load_model
from pretrain.inference.next_token import Sampling, choose, uniform
from pretrain.model.decoder import Batch
from tests.pretrain.small_models import VARIANTS, config, model_of

VOCABULARY, END, CONTEXT = 100, 7, 40
CLOSE = 1e-4
"""Logits nearer than this may change places by rounding."""
PROMPTS = [[5, 9, 11], [3], [50, 2, 8, 13, 21, 34, 55, 89, 1, 4, 6], [99] * 20]


def logits_of(model, ids) -> torch.Tensor:
    """Logits after the last token, by the whole model without a cache."""
    tokens = torch.tensor([ids])
    zeros, places = torch.zeros_like(tokens, dtype=torch.int32), torch.arange(len(ids), dtype=torch.int32)[None]
    with torch.no_grad():
        return model.logits(Batch(tokens, zeros.long() - 100, zeros, places))[0, -1, :VOCABULARY].float()


def loaded(model, context=CONTEXT) -> LoadedModel:
    return LoadedModel(model.eval(), context, VOCABULARY)


def assert_greedy(model, prompt, found: Continuation, max_tokens: int) -> None:
    """Each token is the likeliest after those before it, and the text ends where and why it should."""
    text = list(prompt)
    for token in [*found.ids, *([END] if found.finish == "end" else [])]:
        logits = logits_of(model, text)
        assert float(logits.max() - logits[token]) <= CLOSE
        text.append(token)
    if found.finish == "length":
        assert len(found.ids) == max_tokens
    if found.finish == "context":
        assert len(prompt) + len(found.ids) == CONTEXT
    assert END not in found.ids


CONFIGS = st.fixed_dictionaries(
    {
        "num_hidden_layers": st.integers(1, 3),
        "num_key_value_heads": st.sampled_from((1, 2, 4)),
        "position_embedding": st.sampled_from(("rope", "rope", "learned", "sinusoidal", "none")),
        "norm": st.sampled_from(("rmsnorm", "layernorm")),
        "norm_position": st.sampled_from(("pre", "post", "sandwich", "reordered")),
        "feed_forward": st.sampled_from(("swiglu", "geglu", "gelu", "relu", "relu2")),
        "sliding_window": st.sampled_from((None, 1, 3, 8, 64)),
        "attn_logit_softcapping": st.sampled_from((None, 5.0)),
        "final_logit_softcapping": st.sampled_from((None, 8.0)),
        "qk_norm": st.booleans(),
        "bias": st.booleans(),
        "tie_word_embeddings": st.booleans(),
        "moe": st.sampled_from((None, None, VARIANTS["mixtral"]["moe"])),
    }
).map(
    lambda values: (
        values
        | ({"full_attention_every": 2} if values["sliding_window"] and values["num_hidden_layers"] > 1 else {})
        | (
            {"rope_local_base_freq": 100.0}
            if values["sliding_window"] and values["position_embedding"] == "rope"
            else {}
        )
    )
)


@settings(max_examples=15)
@given(CONFIGS, st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30), min_size=1, max_size=4))
def test_a_cache_changes_no_token_of_any_model(values, prompts):
    model = model_of(config(**values))
    for prompt, found in zip(prompts, generate(loaded(model), prompts, END, 12), strict=True):
        assert_greedy(model, prompt, found, 12)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_a_cache_changes_no_token_of_a_named_variant(name):
    model = model_of(config(**VARIANTS[name]))
    found = generate(loaded(model), PROMPTS, END, 12, batch_rows=3)
    for prompt, one in zip(PROMPTS, found, strict=True):
        assert_greedy(model, prompt, one, 12)


def test_the_cache_takes_the_bytes_of_the_formula():
    """A window of w and a quarter of the key heads keep w / n and a quarter of the bytes."""
    sizes = {}
    for name, changes in {"whole": {"num_key_value_heads": 4}, "grouped": {"num_key_value_heads": 1},
                          "window": {"num_key_value_heads": 4, "sliding_window": 8}}.items():  # fmt: skip
        model = model_of(config(**changes))
        caches, tokens = open_caches(model.config, 32), torch.zeros((2, 20), dtype=torch.int64)
        zeros, places = torch.zeros((2, 20), dtype=torch.int32), torch.arange(20, dtype=torch.int32).expand(2, 20)
        with torch.no_grad():
            model.model.through(tokens, places, first_masks(caches, zeros, model.config))
            model.model.through(tokens[:, :1], places[:, :1] + 20, next_masks(caches, 20, torch.zeros(2).long(), 0))
        sizes[name] = sum(cache.nbytes for cache in caches)
        assert sizes[name] == cache_bytes(model.config, 2, 32, 4)
    assert sizes["whole"] == 2 * 2 * 4 * 8 * 4 * 2 * 32
    assert sizes["grouped"] * 4 == sizes["window"] * 4 == sizes["whole"]


def test_a_drawn_text_does_not_depend_on_its_batch():
    model, drawn = loaded(model_of(config())), Sampling(temperature=0.8, top_p=0.9, seed=3)
    alone = [generate(model, PROMPTS, END, 20, drawn, batch_rows=rows) for rows in (1, 3, 4)]
    assert alone[0] == alone[1] == alone[2]
    other = generate(model, PROMPTS, END, 20, Sampling(temperature=0.8, top_p=0.9, seed=4))
    assert other != alone[0]
    same = generate(model, [PROMPTS[0]] * 2, END, 20, drawn)
    assert same[0] != same[1]  # a prompt that is given twice has two texts


def test_a_text_ends_where_its_caller_stops_it():
    model = loaded(model_of(config()))
    whole = generate(model, PROMPTS, 100, 12)  # no token ends a text
    found = generate(model, PROMPTS, 100, 12, stops=lambda number, ids: len(ids) == 2 * number + 1)
    assert [one.finish for one in found] == ["stop"] * len(PROMPTS)
    assert [one.ids for one in found] == [one.ids[: 2 * number + 1] for number, one in enumerate(whole)]


def test_a_text_of_a_model_trained_in_bf16_does_not_depend_on_its_batch(tmp_path, run_training):
    run = run_training(tmp_path, precision="bf16", steps=4, validate_every_steps=0, decay_steps=2)
    checkpoint = read_manifest(tmp_path / run.stats["checkpoint"]["path"])
    model, draws = load_model(checkpoint, EngineConfig(threads=1), tmp_path), torch.Generator().manual_seed(0)
    prompts = [torch.randint(8, 100, (1 + number % 15,), generator=draws).tolist() for number in range(30)]
    texts = [generate(model, prompts, END, 16, Sampling(0.8, 0.9, 3), batch_rows=rows) for rows in (1, 8)]
    assert texts[0] == texts[1]


def test_tokens_are_drawn_by_temperature_and_nucleus():
    """Frequencies of many draws are the probabilities; the nucleus is that of transformers."""
    transformers = pytest.importorskip("transformers", reason="needs transformers, from the extra `dev`")
    logits = torch.tensor([0.5, 2.0, -1.0, 1.2, 0.1, -3.0])
    for temperature, top_p in ((1.0, 1.0), (0.7, 0.8), (1.5, 0.5), (1.0, 1e-9)):
        sampling, count = Sampling(temperature, top_p, seed=5), 20_000
        drawn = choose(logits.expand(count, -1), sampling, range(count), 3)
        warped = (
            transformers.TopPLogitsWarper(top_p)(None, logits[None] / temperature)
            if top_p < 1
            else logits[None] / temperature
        )
        wanted = warped.softmax(-1)[0]
        found = torch.bincount(drawn, minlength=6) / count
        assert not found[wanted == 0].any()
        assert (found - wanted).abs().max() < 4.5 * (0.25 / count) ** 0.5
    for coldest in (0.0, 1e-310, 5e-324):
        assert choose(logits[None], Sampling(coldest), [0], 0).tolist() == [1]


def test_numbers_are_uniform_and_differ_by_prompt_and_step():
    numbers = np.concatenate([uniform(0, range(500), step) for step in range(20)])
    assert len(set(numbers.tolist())) == len(numbers)
    counts = collections.Counter((numbers * 10).astype(int).tolist())
    assert all(abs(counts[digit] - 1000) < 5 * 30 for digit in range(10))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0), Sampling(temperature=1.0, top_p=0.5)])
def test_a_model_that_computes_no_numbers_is_refused(sampling):
    """Logits that are not numbers must neither give the first id nor end in a traceback."""
    model = model_of(config())
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(PipelineError, match=r"values that are not numbers, so nothing can be continued.*earlier"):
        generate(loaded(model), PROMPTS, END, 3, sampling)


def test_bad_prompts_and_settings_are_refused_with_the_fix():
    model = loaded(model_of(config()))
    with pytest.raises(PipelineError, match=r"prompt 2: is empty.*give a text"):
        generate(model, [[1], []], END, 5)
    with pytest.raises(PipelineError, match=r"prompt 1: has 43 tokens; the model's context is 40 .*Shorten it by 4"):
        generate(model, [[1] * 43], END, 5)
    with pytest.raises(ConfigError, match=r"temperature = -1.*give 0"):
        Sampling(temperature=-1)
    with pytest.raises(ConfigError, match=r"temperature = nan"):
        Sampling(temperature=float("nan"))
    with pytest.raises(ConfigError, match=r"top_p = 0"):
        Sampling(top_p=0)
    with pytest.raises(ConfigError, match=r"seed = -1"):
        Sampling(seed=-1)
