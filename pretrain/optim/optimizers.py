"""Learning-rate schedule, parameter groups and optimizer.

Promise: at every ZeRO stage each optimizer honours `optimizer.found_inf`, an fp32 scalar on the device of the weights:
where it is 1, `step` changes no bit of weights, moments and step counts, and never waits for the device.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.errors import ConfigError
from governance.own_code import find_code
from pretrain.config.optim import OptimConfig

if TYPE_CHECKING:
    import torch

    Scale = Callable[[str, torch.Size], float]

_ADAPTER = re.compile(r"\.lora_[AB]\.weight$")
_OF_A_BLOCK = re.compile(r"(^|\.)layers\.\d+\.")
_MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "lion": ("exp_avg",), "muon": ("momentum_buffer",), "own": ()}
_RULES = {"adamw": ("adamw", "adamw"), "lion": ("lion", "lion"), "muon": ("muon", "adamw"), "own": ("own", "own")}
"""Update rules of each optimizer: of the blocks' matrices, and of all other parameters."""


def rate_factor(step: int, steps: int, config: OptimConfig) -> float:
    """Learning rate of step `step` as a share of the peak.

    Each schedule rises linearly to 1 at step `warmup_steps`. Then:

    - wsd (arXiv:2404.06395): 1, and a linear fall over the last `decay_steps`. A run of other `steps` can go on from
      any checkpoint of the stable phase (`train.continue_from`): up to there both have the same rates.
    - cosine (arXiv:1608.03983) and linear: a fall over all remaining steps, to `min_lr_ratio` at the last one.
    - inverse_sqrt (arXiv:1706.03762, section 5.3): sqrt(warmup_steps / step), not below `min_lr_ratio`.
    """
    if config.schedule == "wsd":
        left = steps - step
        share = left / config.decay_steps if left < config.decay_steps else 1.0
        rising = step / config.warmup_steps if step < config.warmup_steps else 1.0
        return rising * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * share)
    if step < config.warmup_steps:
        return step / config.warmup_steps
    if config.schedule == "inverse_sqrt":
        return max(config.min_lr_ratio, math.sqrt(max(config.warmup_steps, 1) / step))
    passed = (step - config.warmup_steps) / max(steps - config.warmup_steps, 1)
    share = 1.0 - passed if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * passed))
    return config.min_lr_ratio + (1.0 - config.min_lr_ratio) * share


def parameter_groups(
    named: Iterable[tuple[str, torch.nn.Parameter]],
    config: OptimConfig,
    shape_of: Callable[[torch.nn.Parameter], torch.Size],
    rate_scale: Scale = lambda name, shape: 1.0,
) -> list[dict[str, Any]]:
    """Parameter groups of the optimizer.

    Parameters of one kind, rule of `config.groups`, rate and decay form a group.

    A group holds `params`, `name` ("matrices", "vectors", "adapters", "muon", or a rule's pattern before one of them),
    `label` (its name in the record, which stays where DeepSpeed needs another name), `base_lr` (the peak rate, which
    the schedule multiplies), `lr`, `weight_decay`, `kind` (adamw, lion, muon or own) and `moments` (the names of the
    optimizer's tensors for each parameter; `make_optimizer` knows those of a custom one).

    `shape_of(parameter)` gives the full shape: ZeRO-3 shows every parameter as a vector. `rate_scale(name, shape)` is
    the model's own factor (muP); it multiplies the rule's rate and divides the decay, so that rate x decay, the share
    of a weight that a step removes, is the same at every width (arXiv:2203.03466, appendix B.3). Muon's matrices are
    not scaled: their update fits their width.

    Raises:
        ConfigError: a rule's pattern matches no parameter that earlier rules left (the nearest are named), or rate x
            decay is 1 or above, so that a step would remove a whole weight or more.
    """
    groups: dict[tuple[str, float], dict[str, Any]] = {}
    unmatched, names = {rule.pattern: rule for rule in config.groups}, []
    for name, parameter in named:
        shape = shape_of(parameter)
        rule = next((rule for rule in config.groups if re.search(rule.pattern, name)), None)
        group = _kind(name, len(shape), config)
        names.append(name)
        scale = 1.0 if group["kind"] == "muon" else rate_scale(name, shape)
        if rule is not None:
            unmatched.pop(rule.pattern, None)
            group["base_lr"] *= rule.learning_rate_scale
            group["name"] = f"{rule.pattern} {group['name']}"
            group["weight_decay"] = group["weight_decay"] if rule.weight_decay is None else rule.weight_decay
        group["base_lr"] *= scale
        group["weight_decay"] /= scale
        groups.setdefault((group["name"], group["base_lr"]), group)["params"].append(parameter)
    if unmatched:
        raise ConfigError("\n".join(_no_match(pattern, names) for pattern in unmatched))
    for group in groups.values():
        if fault := decay_fault(group["name"], group["base_lr"], group["weight_decay"]):
            raise ConfigError(fault)
    return _named_apart(list(groups.values()))


def update_rules(optimizer: str) -> tuple[str, str]:
    """Update rules of the blocks' matrices and of all other parameters.

    Raises:
        ConfigError: no such optimizer.
    """
    if optimizer not in _RULES:
        raise ConfigError(f"optim.optimizer = {optimizer!r} is not an optimizer; choose one of {', '.join(_RULES)}")
    return _RULES[optimizer]


def moment_count(config: OptimConfig, parameters: int, outside_blocks: int) -> int:
    """Elements of the moments of `parameters`, `outside_blocks` of them outside the blocks."""
    counts = {rule: len(moments) for rule, moments in _MOMENTS.items()} | {"own": config.state_tensors}
    of_a_block, other = (counts[rule] for rule in update_rules(config.optimizer))
    return of_a_block * parameters + (other - of_a_block) * outside_blocks


def decay_fault(name: str, rate: float, decay: float) -> str | None:
    """Error text for a decoupled decay of 1 or more per step.

    Such a decay erases or flips weights (arXiv:1711.05101).
    """
    if rate * decay < 1.0:
        return None
    return (
        f"optim: learning rate x weight decay of {name!r} is {rate:g} x {decay:g} = {rate * decay:g}: each step "
        f"multiplies these weights by {1.0 - rate * decay:g}; lower the decay (0.1 is usual) to below {1.0 / rate:g}"
    )


def _kind(name: str, axes: int, config: OptimConfig) -> dict[str, Any]:
    """Empty group of a parameter, before any rule applies."""
    of_a_block, other = update_rules(config.optimizer)
    adapts = bool(
        _ADAPTER.search(name)
    )  # the factors of a low-rank product, whose steps are not those of a block's matrix
    kind = of_a_block if axes > 1 and _OF_A_BLOCK.search(name) and not adapts else other
    if kind == "muon":
        label, rate, decay = "muon", config.muon_learning_rate, config.muon_weight_decay
    else:
        label, decay = ("matrices", config.weight_decay) if axes > 1 else ("vectors", 0.0)
        label = "adapters" if adapts else label
        rate = config.learning_rate
    group = {"params": [], "name": label, "base_lr": rate, "weight_decay": decay}
    return {**group, "kind": kind, "moments": _MOMENTS[kind]}


def _named_apart(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Number groups of equal name and set their rates."""
    names = [group["name"] for group in groups]
    for index, group in enumerate(groups):
        if names.count(names[index]) > 1:
            group["name"] = f"{names[index]} {names[: index + 1].count(names[index])}"
        group["lr"], group["label"] = group["base_lr"], group["name"]
    return groups


def _no_match(pattern: str, names: list[str]) -> str:
    earlier = [name for name in names if re.search(pattern, name)]
    if earlier:
        return (
            f"optim.groups: pattern {pattern!r} matches only what an earlier group took, such as {earlier[0]}; "
            f"put it before that one"
        )
    plain = pattern.replace("\\", "").strip("^$")
    near = difflib.get_close_matches(plain, names, n=3, cutoff=0.0)
    return f"optim.groups: pattern {pattern!r} matches no parameter; the nearest names are {', '.join(near)}"


def pin_optimizer(config: OptimConfig, folder: Path) -> OptimConfig:
    """Copy of the section with the digest of a custom function's source.

    Raises:
        MissingInput: there is no such module.
        ConfigError: the source has another digest than the section states.
    """
    if not config.function:
        return config
    found = find_code(config.function, folder, "optim.function").digest
    if config.code_sha256 not in ("", found):
        raise ConfigError(
            f"optim.function = {config.function!r}: its source has code_sha256 {found}, the configuration states "
            f"{config.code_sha256}. Give the intended source, or the new digest."
        )
    return config.model_copy(update={"code_sha256": found})


def make_optimizer(groups: list[dict[str, Any]], config: OptimConfig, folder: Path = Path()) -> torch.optim.Optimizer:
    """Optimizer of the section `[optim]` over the groups of `parameter_groups`.

    AdamW is torch's fused one: as fast as DeepSpeed's own, which would have to be compiled. `folder` is where a custom
    one is searched for first.
    """
    import torch

    if config.optimizer == "own":
        from pretrain.optim.own_optimizer import make_own

        return make_own(groups, config, folder)

    rules = update_rules(config.optimizer)
    if "lion" in rules:
        from pretrain.optim.lion import Lion

        return Lion(groups, config.learning_rate, config.betas)
    if "muon" in rules:
        from pretrain.optim.muon import Muon

        return Muon(groups, config)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)
