"""Counts in closed form, against models that are built; and the presets, against both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from assay.config import LoadedRun, load_run
from pretrain.encoder_decoder.model_of_pairs import make_model
from pretrain.model.decoder import Decoder
from pretrain.model.flops import active_parameter_count, flops_per_token, parameter_count
from pretrain.preflight.hardware import Hardware
from pretrain.preflight.memory import estimate
from pretrain.preflight.memory_room import fits
from tests.pretrain.small_models import VARIANTS, config

CONFIGS = Path(__file__).parents[3] / "configs"
PRESETS = {
    "10m": 10_420_224,
    "125m": 123_587_328,
    "350m": 359_842_816,
    "1b": 1_317_373_952,
    # Llama 2 (arXiv:2307.09288): the numbers of its published weights.
    "7b": 6_738_415_616,
    "transformer-base": 63_107_072,
    "transformer-big": 214_294_528,
    "13b": 13_015_864_320,
    "70b": 68_976_648_192,
}


def run_of(name: str) -> LoadedRun:
    return load_run(CONFIGS / f"{name}.toml", [], needs="model")


@pytest.mark.parametrize("vocabulary", [100, 128, 300])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_parameter_count_has_a_closed_form(variant, vocabulary):
    settings = config(**VARIANTS[variant])
    counted = sum(parameter.numel() for parameter in Decoder(settings, vocabulary).parameters())
    assert parameter_count(settings, vocabulary) == counted


@pytest.mark.parametrize("variant", ["mixtral", "switch"])
def test_active_parameters_are_those_of_the_experts_that_a_token_uses(variant):
    settings = config(**VARIANTS[variant])
    used = {f"experts.{number}." for number in range(settings.moe.num_experts_per_tok, settings.moe.num_local_experts)}
    active = sum(
        p.numel() for n, p in Decoder(settings, 100).named_parameters() if not any(expert in n for expert in used)
    )
    assert active_parameter_count(settings, 100) == active < parameter_count(settings, 100)


@pytest.mark.parametrize("variant", VARIANTS)
def test_arithmetic_per_token_counts_what_multiplies(variant):
    settings = config(**VARIANTS[variant])
    embedded = 128 * 32 + (64 * 32 if settings.position_embedding == "learned" else 0)
    multiplied = active_parameter_count(settings, 128) - (0 if settings.tie_word_embeddings else embedded)
    seen = {"mistral": 2 * 5, "gemma": 4 + 64, "gemma3": 4 + 64}.get(variant, 2 * 64)
    assert (
        flops_per_token(settings, 128, 64)
        == 6 * multiplied + 12 * {"wide_heads": 48, "gemma3": 64}.get(variant, 32) * seen
    )


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_size_that_they_are_named_for(name):
    run = run_of(name)
    vocabulary = run.config.data.tokenizer.vocabulary_size
    with torch.device("meta"):
        model = make_model(run.config.model, vocabulary)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert parameter_count(run.config.model, vocabulary) == counted == PRESETS[name]


@pytest.mark.parametrize("name", [name for name in PRESETS if name[0] in "1357" and name != "10m"])
def test_presets_fit_the_gpus_that_they_name(name):
    """GPUs of 80 GB, nodes of 1 TB."""
    run = run_of(name)
    ranks = run.config.slurm.nodes * run.config.slurm.gpus_per_node
    assert run.config.train.global_batch_size % (run.config.engine.micro_batch_size * ranks) == 0
    vocabulary = run.config.data.tokenizer.vocabulary_size
    needed = estimate(run.config.recipe, run.config.engine, vocabulary, ranks, "cuda")
    host = (1 << 40) // run.config.slurm.gpus_per_node
    assert fits(needed, Hardware(device_bytes=79 << 30, host_bytes=host)), needed
