"""Own optimizers: a function builds one from parameter groups and values.

    [optim]
    optimizer = "own"
    function = "mylab.optim:make"

`probe` runs the function on small parameters before training, for 24 steps with a restart after 12. It refuses state
that a checkpoint cannot restore, and updates that differ on a piece of a parameter although `elementwise` is declared.
A checkpoint holds `optimizer.state`: tensors of the parameter's shape, as other moments, and scalars, in `state.json`.
A step to be skipped is not computed, for which the host waits for the device once per step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from governance.errors import ConfigError
from governance.own_code import find_code, first_line, load
from governance.processes import time_limit
from pretrain.config.optim import OptimConfig

Groups = list[dict[str, Any]]
Make = Callable[[Groups], torch.optim.Optimizer]
_SHAPES = {1: (6,), 2: (4, 6)}
_STEPS, _RESTART, _RATE, _SECONDS = 24, 12, 0.1, 120.0


class OwnOptimizer(torch.optim.Optimizer):
    """A custom optimizer whose step can be skipped (`found_inf`, see `optimizers.py`).

    It shares groups and state with the optimizer within.
    """

    found_inf: torch.Tensor | None = None

    def __init__(self, within: torch.optim.Optimizer) -> None:
        super().__init__(within.param_groups, {})
        self.param_groups, self.state, self.defaults = within.param_groups, within.state, within.defaults
        self._within = within
        self._step_supports_amp_scaling = True

    def step(self, closure: Any = None) -> None:
        """Update, unless `found_inf` is 1; takes no closure."""
        if self.found_inf is not None and bool(self.found_inf):
            return
        self._within.param_groups = self.param_groups  # DeepSpeed lists a single group during its step
        self._within.step()


@dataclass(frozen=True)
class StateForm:
    """State that the optimizer keeps for each parameter of a group."""

    moments: tuple[str, ...] = ()
    """Names of tensors of the parameter's shape."""
    scalars: dict[str, torch.dtype | type] = field(default_factory=dict)
    """Name -> dtype of a tensor of one element, or int, float or bool."""


def make_own(groups: Groups, config: OptimConfig, folder: Path) -> OwnOptimizer:
    """Build the optimizer of `optim.function`; add `moments` and `scalars` to groups.

    Raises:
        MissingInput: there is no such module.
        ConfigError: the source changed since the start, or `probe` refuses the optimizer.
    """
    code = find_code(config.function, folder, "optim.function")
    function, values = load(code, config.code_sha256), values_of(config)

    def make(some: Groups) -> torch.optim.Optimizer:
        optimizer = function(some, dict(values))
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"it returned {type(optimizer).__name__}, not a torch.optim.Optimizer")
        if [_group_values(group) for group in optimizer.param_groups] != [_group_values(group) for group in some]:
            raise ValueError("it has other parameter groups than those given; pass them on to torch.optim.Optimizer")
        return optimizer

    try:
        with time_limit(_SECONDS):
            for group, form in zip(groups, probe(make, groups, config), strict=True):
                group |= {"moments": form.moments, "scalars": form.scalars}
            return OwnOptimizer(make(groups))
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # own code may raise anything
        raise ConfigError(
            f"optim.function = {config.function!r}: {first_line(error)}. Correct the function."
        ) from error


def _group_values(group: Mapping[str, Any]) -> list[Any]:
    """Values of a group that a custom function must keep."""
    return [*(group.get(name) for name in ("base_lr", "label", "kind")), *map(id, group["params"])]


def values_of(config: OptimConfig) -> dict[str, Any]:
    """The values that a custom function gets."""
    names = ("learning_rate", "betas", "eps", "weight_decay")
    return {name: getattr(config, name) for name in names} | config.arguments


def probe(make: Make, groups: Groups, config: OptimConfig) -> list[StateForm]:
    """The form of each group's state, from steps on small parameters.

    Raises:
        ConfigError: the state could not be saved, a restart would differ, or the optimizer is not elementwise as
            declared.
    """

    def refuse(fault: str) -> ConfigError:
        return ConfigError(f"optim.function = {config.function!r}: {fault}")

    whole = _Trial(make, groups)
    whole.steps(range(_RESTART))
    forms = [_form(group, whole.optimizer.state, refuse) for group in whole.optimizer.param_groups]
    copied = [dict(whole.optimizer.state[weight]) for weight in whole.weights]
    again = _Trial(make, groups, [weight.detach().clone() for weight in whole.weights])
    for form, weight, state in zip(forms, again.weights, copied, strict=True):
        moments = {name: state[name].clone() for name in form.moments}
        again.optimizer.state[weight] = moments | {
            name: restored(float(state[name]), kind, {}, weight) for name, kind in form.scalars.items()
        }
    for trial in (whole, again):
        trial.steps(range(_RESTART, _STEPS))
    for group, before in zip(whole.optimizer.param_groups, whole.settings, strict=True):
        if changed := [name for name in group if name != "params" and group[name] != before.get(name)]:
            raise refuse(f"it changes {changed[0]!r} of its parameter groups, which no checkpoint holds")
    if any(not torch.equal(one, other) for one, other in zip(whole.weights, again.weights, strict=True)):
        raise refuse(
            f"a restart after {_RESTART} steps would differ (the trial has {_STEPS}): it keeps values outside of "
            "optimizer.state, or draws random numbers; keep all of its values there"
        )
    if [_form(group, whole.optimizer.state, refuse) for group in whole.optimizer.param_groups] != forms:
        raise refuse("its state gets other names after some steps; create all of it in the first step")
    most = max((len(form.moments) for form in forms), default=0)
    if most != config.state_tensors:
        names = ", ".join(dict.fromkeys(name for form in forms for name in form.moments)) or "none"
        raise refuse(f"optim.state_tensors = {config.state_tensors}, but it keeps {most} ({names}); set it to {most}")
    if config.elementwise and not _pieces_agree(make, groups, whole.weights):
        raise refuse(
            "optim.elementwise = true, but it updates the halves of a parameter differently from the whole (the trial "
            f"has {_STEPS} steps); remove the declaration, and set engine.zero_stage = 0"
        )
    return forms


class _Trial:
    """The optimizer on small parameters, one per group, whole or in pieces."""

    def __init__(self, make: Make, groups: Groups, weights: Sequence[torch.Tensor] = (), pieces: int = 1) -> None:
        draw = torch.Generator().manual_seed(0)
        shapes = [_SHAPES.get(_axes(group), (2, 4, 6)) for group in groups]
        self.gradients = [[torch.randn(shape, generator=draw) for shape in shapes] for _ in range(_STEPS)]
        starts = list(weights) or [torch.randn(shape, generator=draw) for shape in shapes]
        self.weights = [weight.clone() for weight in starts]
        self.pieces = pieces
        cut = [_cut(weight, pieces) for weight in self.weights]
        self.parts = [[torch.nn.Parameter(part) for part in parts] for parts in cut]
        if pieces == 1:
            self.weights = [parts[0] for parts in self.parts]  # type: ignore[misc]
        self.optimizer = make([
            {**group, "params": parts, "lr": _RATE} for group, parts in zip(groups, self.parts, strict=True)
        ])  # fmt: skip
        self.settings = [dict(group) for group in self.optimizer.param_groups]

    def steps(self, numbers: Sequence[int]) -> None:
        """Update with the gradients of these steps."""
        for number in numbers:
            for parts, gradient in zip(self.parts, self.gradients[number], strict=True):
                for part, piece in zip(parts, _cut(gradient, self.pieces), strict=True):
                    part.grad = piece.clone()
            self.optimizer.step()


def _axes(group: Mapping[str, Any]) -> int:
    weight = group["params"][0]
    return len(getattr(weight, "ds_shape", weight.shape))


def _cut(values: torch.Tensor, pieces: int) -> list[torch.Tensor]:
    return [values] if pieces == 1 else [part.clone() for part in values.flatten().chunk(pieces)]


def _pieces_agree(make: Make, groups: Groups, weights: Sequence[torch.Tensor]) -> bool:
    """Return whether updates of flat halves equal those of whole parameters."""
    halves = _Trial(make, groups, pieces=2)
    halves.steps(range(_STEPS))
    joined = [torch.cat([part.detach() for part in parts]) for parts in halves.parts]
    return all(
        torch.allclose(one, weight.detach().flatten(), rtol=1e-4, atol=1e-5)
        for one, weight in zip(joined, weights, strict=True)
    )


def _form(group: Mapping[str, Any], states: Mapping[Any, Mapping[str, Any]], refuse: Callable[[str], Exception]) -> Any:
    [weight] = group["params"]
    moments, scalars = [], {}
    for name, value in states.get(weight, {}).items():
        if not isinstance(name, str) or not name.isidentifier() or name == "master":
            raise refuse(f"its state has the name {name!r}; use an identifier other than 'master'")
        if isinstance(value, torch.Tensor) and value.shape == weight.shape and value.dtype == weight.dtype:
            moments.append(name)
        elif isinstance(value, torch.Tensor) and value.numel() == 1:
            scalars[name] = value.dtype
        elif isinstance(value, bool | int | float):
            scalars[name] = type(value)
        else:
            shape = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise refuse(
                f"its state {name!r} is {shape} for a {weight.dtype} parameter of shape {tuple(weight.shape)}; a "
                "checkpoint holds tensors of the parameter's shape and type, and scalars"
            )
    return StateForm(tuple(moments), scalars)


def restored(value: float, kind: torch.dtype | type, group: Mapping[str, Any], weight: torch.Tensor) -> Any:
    """A scalar of the state, from a checkpoint's number.

    Torch's optimizers keep the count of steps on the host, unless they are fused or capturable.
    """
    if isinstance(kind, torch.dtype):
        there = group.get("fused") or group.get("capturable")
        return torch.tensor(value, dtype=kind, device=weight.device if there else "cpu")
    return kind(value)
