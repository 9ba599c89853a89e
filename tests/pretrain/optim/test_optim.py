from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from governance.errors import ConfigError
from pretrain.config.optim import GroupConfig, OptimConfig
from pretrain.optim.optimizers import make_optimizer, moment_count, parameter_groups, rate_factor

CONFIG = OptimConfig(learning_rate=2.0, warmup_steps=4, decay_steps=5, min_lr_ratio=0.1)
SCHEDULES = ["wsd", "cosine", "linear", "inverse_sqrt"]


def factors(steps: int, **settings) -> list[float]:
    config = OptimConfig(learning_rate=1.0, **settings)
    return [rate_factor(step, steps, config) for step in range(1, steps + 1)]


def test_the_schedule_warms_up_stays_and_decays():
    rates = [rate_factor(step, 20, CONFIG) for step in range(1, 21)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[3:15] == pytest.approx([1.0] * 12)
    assert rates[14:] == pytest.approx([1.0, 0.82, 0.64, 0.46, 0.28, 0.1])


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 50), st.floats(0, 1), st.integers(0, 200))
def test_the_schedule_stays_in_its_bounds(warmup, decay, stable, ratio, offset):
    steps = warmup + decay + stable
    config = OptimConfig(learning_rate=1.0, warmup_steps=warmup, decay_steps=decay, min_lr_ratio=ratio)
    step = 1 + offset % steps
    value = rate_factor(step, steps, config)
    assert 0 <= value <= 1 + 1e-9
    if warmup <= step <= steps - decay:
        assert value == pytest.approx(1.0)
    if decay:
        assert rate_factor(steps, steps, config) == pytest.approx(ratio)


@given(st.sampled_from(SCHEDULES), st.integers(0, 40), st.integers(1, 80), st.floats(0, 1))
def test_every_schedule_rises_to_one_and_falls_no_lower_than_configured(schedule, warmup, rest, ratio):
    values = factors(warmup + rest, schedule=schedule, warmup_steps=warmup, min_lr_ratio=ratio)
    falling = values[max(warmup, 1) - 1 :]
    assert values[:warmup] == pytest.approx([step / warmup for step in range(1, warmup + 1)])
    assert all(0 <= value <= 1 + 1e-12 for value in values)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(falling))
    assert all(value >= ratio - 1e-12 for value in falling)
    if schedule in {"cosine", "linear"}:
        assert values[-1] == pytest.approx(ratio)


@given(st.integers(1, 30), st.integers(1, 100), st.integers(1, 4096))
def test_inverse_square_root_is_the_papers_up_to_its_constant(warmup, rest, width):
    values = factors(warmup + rest, schedule="inverse_sqrt", warmup_steps=warmup)
    paper = [width**-0.5 * min(step**-0.5, step * warmup**-1.5) for step in range(1, warmup + rest + 1)]
    highest = width**-0.5 * warmup**-0.5
    assert values == pytest.approx([value / highest for value in paper])


def rates_of(make_scheduler, count: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("warmup", [0, 7])
def test_schedules_are_those_of_transformers(warmup):
    # Theirs call the first step 0, and give it no rate during a warm-up; ours calls it 1.
    transformers = pytest.importorskip("transformers")
    cosine = rates_of(
        lambda o: transformers.get_cosine_with_min_lr_schedule_with_warmup(o, warmup, 60, min_lr_rate=0.1), 61
    )
    assert factors(60, schedule="cosine", warmup_steps=warmup, min_lr_ratio=0.1) == pytest.approx(cosine[1:])
    linear = rates_of(lambda o: transformers.get_linear_schedule_with_warmup(o, warmup, 60), 61)
    assert factors(60, schedule="linear", warmup_steps=warmup) == pytest.approx(linear[1:])
    wsd = rates_of(
        lambda o: transformers.get_wsd_schedule(
            o, num_warmup_steps=warmup, num_decay_steps=20, num_training_steps=60, decay_type="linear"
        ),
        61,
    )
    assert factors(60, warmup_steps=warmup, decay_steps=20) == pytest.approx(wsd[1:])


def test_cosine_and_linear_are_those_of_torch():
    scheduler = torch.optim.lr_scheduler
    cosine = rates_of(lambda o: scheduler.CosineAnnealingLR(o, 60, eta_min=0.1), 61)
    assert factors(60, schedule="cosine", min_lr_ratio=0.1) == pytest.approx(cosine[1:])
    linear = rates_of(lambda o: scheduler.LinearLR(o, 1.0, 0.25, 60), 61)
    assert factors(60, schedule="linear", min_lr_ratio=0.25) == pytest.approx(linear[1:])


def test_decay_steps_belong_to_wsd():
    with pytest.raises(ValidationError, match="decay_steps"):
        OptimConfig(learning_rate=1.0, schedule="cosine", decay_steps=3)


class Tiny(nn.Module):
    """Names as in our decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(8, 4)
        self.model.layers = nn.ModuleList([nn.Linear(4, 6, bias=False), nn.LayerNorm(4)])
        self.lm_head = nn.Linear(4, 8, bias=False)


def grouped(**settings):
    model = Tiny()
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model.named_parameters(), OptimConfig(learning_rate=0.5, **settings), lambda p: p.shape)
    assert sorted(names[p] for group in groups for p in group["params"]) == sorted(names.values())
    assert all(group["lr"] == group["base_lr"] for group in groups)
    return {group["name"]: (group, [names[p] for p in group["params"]]) for group in groups}


def test_a_decay_that_turns_the_weights_of_a_group_is_refused():
    with pytest.raises(
        ConfigError, match=r"'lm_head matrices' is 0.25 x 4 = 1: each step multiplies these weights by 0"
    ):
        grouped(groups=(GroupConfig(pattern="lm_head", learning_rate_scale=0.5, weight_decay=4.0),))
    with pytest.raises(ConfigError, match=r"by -1\.5"):
        grouped(weight_decay=5.0)


def test_only_matrices_decay_and_every_parameter_has_a_group():
    groups = grouped(weight_decay=0.3)
    assert {name: group["weight_decay"] for name, (group, _) in groups.items()} == {"matrices": 0.3, "vectors": 0.0}
    assert all("layers.1" in name for name in groups["vectors"][1])
    optimizer = make_optimizer([group for group, _ in groups.values()], CONFIG)
    assert optimizer.defaults["betas"] == (0.9, 0.95)
    assert optimizer.defaults["eps"] == 1e-8


def test_muon_takes_the_matrices_of_the_blocks_alone():
    groups = grouped(optimizer="muon", muon_learning_rate=0.02, muon_weight_decay=0.01)
    assert groups["muon"][1] == ["model.layers.0.weight"]
    assert (groups["muon"][0]["base_lr"], groups["muon"][0]["weight_decay"]) == (0.02, 0.01)
    assert groups["matrices"][1] == ["model.embed_tokens.weight", "lm_head.weight"]
    assert groups["matrices"][0]["base_lr"] == 0.5


def test_the_first_rule_that_matches_counts():
    head = GroupConfig(pattern=r"lm_head", learning_rate_scale=0.5, weight_decay=0.7)
    ends = GroupConfig(pattern=r"(head|tokens)\.weight$", learning_rate_scale=3.0)
    groups = grouped(groups=(head, ends), weight_decay=0.1)
    group, names = groups["lm_head matrices"]
    assert (group["base_lr"], group["weight_decay"], names) == (0.25, 0.7, ["lm_head.weight"])
    group, names = groups[r"(head|tokens)\.weight$ matrices"]
    assert (group["base_lr"], group["weight_decay"], names) == (1.5, 0.1, ["model.embed_tokens.weight"])
    assert groups["matrices"][1] == ["model.layers.0.weight"]


def test_a_models_own_factor_parts_groups_and_names_stay_apart():
    model = Tiny()
    config = OptimConfig(learning_rate=1.0)
    scale = {"lm_head.weight": 0.25, "model.layers.0.weight": 0.5}
    groups = parameter_groups(
        model.named_parameters(), config, lambda p: p.shape, lambda name, shape: scale.get(name, 1.0)
    )
    assert len({group["name"] for group in groups}) == len(groups) == 4
    assert sorted(group["base_lr"] for group in groups) == [0.25, 0.5, 1.0, 1.0]


def test_a_models_own_factor_is_not_for_muon():
    config = OptimConfig(learning_rate=1.0, optimizer="muon", muon_learning_rate=0.02)
    groups = parameter_groups(Tiny().named_parameters(), config, lambda p: p.shape, lambda name, shape: 0.25)
    assert {group["name"]: group["base_lr"] for group in groups} == {"muon": 0.02, "matrices": 0.25, "vectors": 0.25}


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_names():
    with pytest.raises(ConfigError, match=r"lm_haed.*lm_head\.weight"):
        grouped(groups=(GroupConfig(pattern="lm_haed"),))
    with pytest.raises(ConfigError, match="earlier group took"):
        grouped(groups=(GroupConfig(pattern="weight"), GroupConfig(pattern=r"lm_head")))
    with pytest.raises(ValidationError, match="regular expression"):
        GroupConfig(pattern="(")


def one_step(config: OptimConfig, found: float | None, gradient: float = 1.0):
    torch.manual_seed(0)
    model = Tiny()
    optimizer = make_optimizer(parameter_groups(model.named_parameters(), config, lambda p: p.shape), config)
    for value in (1.0, gradient):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape) * value
        yield model, optimizer
        if found is not None:
            optimizer.found_inf = torch.tensor(found)
        optimizer.step()
    yield model, optimizer


def bits(model, optimizer) -> list[torch.Tensor]:
    kept = [p.detach() for p in model.parameters()]
    for parameter in model.parameters():
        kept += [optimizer.state[parameter][key] for key in sorted(optimizer.state[parameter])]
    return [value.clone().view(torch.int32) for value in kept]


@pytest.mark.parametrize("name", ["adamw", "muon", "lion"])
@pytest.mark.parametrize("gradient", [1.0, math.nan, math.inf])
def test_a_skipped_step_changes_no_bit(name, gradient):
    config = OptimConfig(learning_rate=0.1, optimizer=name)
    steps = one_step(config, None, gradient)
    next(steps)
    model, optimizer = next(steps)
    before = bits(model, optimizer)
    optimizer.found_inf = torch.ones(())
    for _ in steps:
        pass
    assert all(torch.equal(a, b) for a, b in zip(before, bits(model, optimizer), strict=True))
    optimizer.found_inf = torch.zeros(())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert not all(torch.equal(a, b) for a, b in zip(before, bits(model, optimizer), strict=True))


@pytest.mark.parametrize("name", ["adamw", "muon", "lion"])
def test_a_step_that_is_not_skipped_is_the_plain_one(name):
    config = OptimConfig(learning_rate=0.1, optimizer=name)
    *_, plain = one_step(config, None)
    *_, requests = one_step(config, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(bits(*plain), bits(*requests), strict=True))


def test_an_unknown_optimizer_is_an_error_wherever_its_rule_is_needed():
    """A section is checked when it is read; a copy of it is not."""
    config = CONFIG.model_copy(update={"optimizer": "sgd"})
    for needs in (
        lambda: parameter_groups([("w", nn.Parameter(torch.ones(2, 2)))], config, lambda p: p.shape),
        lambda: make_optimizer([], config),
        lambda: moment_count(config, 8, 2),
    ):
        with pytest.raises(ConfigError, match=r"optim\.optimizer = 'sgd' .* choose one of adamw, lion, muon"):
            needs()
    configs = [CONFIG.model_copy(update={"optimizer": name}) for name in ("adamw", "lion", "muon", "own")]
    assert [moment_count(config, 8, 2) for config in configs] == [16, 8, 10, 8 * CONFIG.state_tensors]


def test_lion_is_the_papers():
    config = OptimConfig(learning_rate=0.1, optimizer="lion", betas=(0.9, 0.99), weight_decay=0.5)
    weight = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
    optimizer = make_optimizer(parameter_groups([("w", weight)], config, lambda p: p.shape), config)
    plain, moment = weight.detach().clone(), torch.zeros(2, 2)
    for seed in range(5):
        gradient = torch.randn(2, 2, generator=torch.Generator().manual_seed(seed))
        weight.grad = gradient.clone()
        optimizer.step()
        plain = plain - 0.1 * (torch.sign(0.9 * moment + 0.1 * gradient) + 0.5 * plain)
        moment = 0.99 * moment + 0.01 * gradient
        assert torch.allclose(weight.detach(), plain)
        assert torch.allclose(optimizer.state[weight]["exp_avg"], moment)
