"""Master weights, moments and gradients, at any ZeRO stage.

Promise: `place_fragments` restores what `full_state` returned bit for bit, at any stage and number of ranks, for every
optimizer of `optimizers.py`. Both rely on `fragments`; state in files is read within `in_memory`. DeepSpeed's own
attributes are used in `_group`, `_group_of`, `flats`, `_fragments_of`, `gradient_norms`, `_gradients` and
`prepare_moments`; because of them it is pinned below 0.20.

With fp16 the loss scale is a part of the state. Gradients are multiplied by a scale so that small ones do not vanish in
fp16 (arXiv:1710.03740). Training adjusts it: halved after an overflow of the gradients (the first one is ignored),
doubled after a series of steps without one.

    {"scale": 32768.0, "step": 140, "last_overflow": 121, "hysteresis": 1}

`step` counts attempted updates, `last_overflow` is the number of the last one that overflowed (-1: none), `hysteresis`
the overflows tolerated before the scale is halved, plus one. Promise: a resumed run, at any ZeRO stage and number of
ranks, uses the same scales and skips the same steps as an uninterrupted one. DeepSpeed's own attributes used here are
those of its `DynamicLossScaler`, equal on every rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pretrain.engine.expert_groups import marked
from pretrain.engine.nvme import gradient_norms_of, in_files, in_memory
from pretrain.optim.muon import Muon
from pretrain.optim.muon_sharding import Sharing, plan
from pretrain.optim.own_optimizer import OwnOptimizer, restored
from pretrain.optim.zero_fragments import Fragment, assemble

if TYPE_CHECKING:
    from pretrain.engine.wrapped import Wrapped


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """Full shape, which ZeRO-3 keeps separately because each rank holds a piece."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def optimizer_of(engine: Wrapped) -> torch.optim.Optimizer:
    """Torch optimizer inside DeepSpeed's wrapper."""
    optimizer = engine.deepspeed.optimizer
    return getattr(optimizer, "optimizer", optimizer)


def reduces_once(deepspeed: Any) -> bool:
    """Return whether whole gradients are summed once, after the backward pass.

    True at stage 0, and for DeepSpeed's other class of stage 1, whose gradient sums are fp32.
    """
    return deepspeed.zero_optimization_stage() == 0 or hasattr(deepspeed.optimizer, "bf16_groups")


def _group(engine: Wrapped) -> Any:
    """Process group over which ZeRO partitions.

    The result is None at stage 0, which partitions nothing.
    """
    return engine.deepspeed.optimizer.dp_process_group if engine.zero_stage > 0 else None


def _group_of(engine: Wrapped, parameter: nn.Parameter) -> Any:
    """Process group over which ZeRO partitions this parameter.

    With tensor parallelism, stage 3 partitions what all ranks hold alike over all of them. Experts that ranks divide
    are partitioned over those that hold the same ones.
    """
    if engine.zero_stage in (1, 2) and marked(parameter):
        return engine.expert_parts.replicas
    return parameter.ds_process_group if engine.zero_stage == 3 else _group(engine)


def fragments(engine: Wrapped) -> list[tuple[torch.Tensor, dict[str, Any], list[Fragment]]]:
    """Flat tensors of the optimizer with groups and parameter fragments.

    Every rank has the same tensors in the same order; one may hold nothing, or zeros after its last fragment.
    """
    names = engine.parameter_names()
    return [(flat, group, list(_fragments_of(engine, flat, members, names))) for flat, group, members in flats(engine)]


def flats(engine: Wrapped) -> Iterator[tuple[torch.Tensor, dict[str, Any], list[nn.Parameter]]]:
    """Flat tensors of the optimizer with their groups and parameters."""
    groups, zero = optimizer_of(engine).param_groups, engine.deepspeed.optimizer
    if engine.zero_stage == 0:
        yield from ((parameter, group, [parameter]) for group in groups for parameter in group["params"])
    elif engine.zero_stage < 3:
        in_bf16 = hasattr(zero, "bf16_groups")  # DeepSpeed's other class for stage 1, where gradient sums are fp32
        flats = zero.fp32_groups_flat_partition if in_bf16 else zero.single_partition_of_fp32_groups
        yield from zip(flats, groups, zero.bf16_groups if in_bf16 else zero.bit16_groups, strict=True)
    else:
        for index, (flat, members) in enumerate(zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True)):
            yield flat, groups[zero.sub_group_to_group_id[index]], members


def _fragments_of(
    engine: Wrapped, flat: torch.Tensor, members: list[nn.Parameter], names: dict[nn.Parameter, str]
) -> Iterator[Fragment]:
    offset = 0
    for parameter in members:
        name, shape = names[parameter], full_shape(parameter)
        if engine.zero_stage == 0:
            yield Fragment(name, shape, 0, 0, flat.numel())
        elif engine.zero_stage < 3:
            part = parameter._hp_mapping
            if part is not None:
                here, there = part.lp_fragment_address, part.hp_fragment_address
                yield Fragment(name, shape, here.start, there.start, here.numel)
        else:  # equal pieces, the last of them padded
            size = parameter.ds_tensor.ds_numel
            start = min(size * torch.distributed.get_rank(_group_of(engine, parameter)), shape.numel())
            count = min(size, shape.numel() - start)
            if count:
                yield Fragment(name, shape, start, offset, count)
            offset += size


def full_state(engine: Wrapped) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Name, whole fp32 "master" and moments of each parameter of this rank.

    `parameter_groups` names the moments.

    Collective: every rank must iterate over all of it, one parameter at a time.
    """
    state, places = optimizer_of(engine).state, _places(engine)
    for name, parameter in engine.parameters():
        index, flat, group, fragment = places[name]
        fragment = fragment or Fragment(name, full_shape(parameter), 0, 0, 0)
        with in_memory(engine, index):
            flats = [flat, *moments_of(state, flat, group).values()]
            pieces = [(fragment, values.detach()) for values in flats]
            wholes = assemble(pieces, _group_of(engine, parameter), engine.device)
        wholes = [engine.tensor_parts.whole(name, part) for part in wholes]
        yield name, dict(zip(("master", *group["moments"]), wholes, strict=True))


def moments_of(state: Any, flat: torch.Tensor, group: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Moments of a flat; zeros before a custom optimizer makes them."""
    held = state[flat]
    return {name: held[name] if name in held else torch.zeros_like(flat) for name in group["moments"]}


def scalars_of(engine: Wrapped) -> dict[str, dict[str, float]] | None:
    """Scalars of a custom optimizer's state, by parameter; None for others.

    With ZeRO, only elementwise optimizers are own ones, whose scalars depend on the steps alone: this rank's are those
    of all.
    """
    optimizer, found = optimizer_of(engine), {}
    if not isinstance(optimizer, OwnOptimizer):
        return None
    names = engine.parameter_names()
    for flat, group, members in flats(engine):
        held = optimizer.state[flat]
        values = {name: float(held[name]) for name in group["scalars"] if name in held}
        found |= {names[member]: values for member in members}
    return found


def restore_scalars(engine: Wrapped, values: dict[str, dict[str, float]] | None) -> None:
    """Set what `scalars_of` returned."""
    optimizer = optimizer_of(engine)
    if values is None or not isinstance(optimizer, OwnOptimizer):
        return
    names = engine.parameter_names()
    for flat, group, members in flats(engine):
        held = values[names[members[0]]]
        kinds = group["scalars"].items()
        optimizer.state[flat] |= {name: restored(held[name], kind, group, flat) for name, kind in kinds if name in held}


def _places(engine: Wrapped) -> dict[str, tuple[int, torch.Tensor, dict[str, Any], Fragment | None]]:
    """Index, flat, group and local fragment of each parameter."""
    names = engine.parameter_names()
    places = {}
    both = zip(fragments(engine), flats(engine), strict=True)
    for index, ((_, _, local), (flat, group, members)) in enumerate(both):
        here = {fragment.name: fragment for fragment in local}
        places |= {names[member]: (index, flat, group, here.get(names[member])) for member in members}
    return places


def prepare_moments(engine: Wrapped, step: int) -> None:
    """Create zero moments as after `step` updates. Collective.

    They are needed at the start of a run too: DeepSpeed links parameters to their moments only once, after the update
    of its *first* parameter group, when those of other groups do not exist yet. Muon learns here how ZeRO cut its
    matrices. A custom optimizer makes its state in the first update; DeepSpeed's link, which only its own formats of
    checkpoints use, is left out then.
    """
    optimizer = optimizer_of(engine)
    own = isinstance(optimizer, OwnOptimizer)
    for index, (flat, group, _) in enumerate(flats(engine)):
        with in_memory(engine, index):
            # DeepSpeed finds moments in files by these very tensors.
            known = optimizer.state[flat] if in_files(engine, index) else {}
            moments = {moment: known.get(moment, torch.zeros_like(flat)).zero_() for moment in group["moments"]}
            if group["kind"] == "adamw":
                moments["step"] = torch.tensor(float(step), dtype=torch.float32, device=flat.device)
            optimizer.state[flat] = {} if own and step == 0 else moments
    if engine.zero_stage in (1, 2):
        engine.deepspeed.optimizer._hp_optimizer_states_linked = own
        engine.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()
    if isinstance(optimizer, Muon) and engine.zero_stage > 0:
        optimizer.share(_sharings(engine))


def _sharings(engine: Wrapped) -> dict[torch.Tensor, Sharing]:
    """Sharing of Muon's matrices among ranks, by flat. Collective."""
    found = {}
    for (flat, group, local), (_, _, members) in zip(fragments(engine), flats(engine), strict=True):
        if group["kind"] == "muon":
            ranks = _group_of(engine, members[0])
            held: list[Any] = [None] * torch.distributed.get_world_size(ranks)
            torch.distributed.all_gather_object(held, local, group=ranks)
            found[flat] = plan(held, torch.distributed.get_rank(ranks), ranks)
    return found


def gradient_norms(engine: Wrapped) -> dict[str, torch.Tensor]:
    """Gradient L2 norm of each group, fp32 scalars on device.

    They are valid between the last backward pass and the update, while DeepSpeed holds the summed gradients. The call
    is collective: one small sum over the ranks, without a host sync.
    """
    # Stages 1 and 2 copy gradients to host memory without waiting, and wait only in their own update.
    getattr(engine.deepspeed.optimizer, "_wait_for_offload_copies", lambda: None)()
    groups = list(dict.fromkeys(group["label"] for group in optimizer_of(engine).param_groups))
    squares = torch.zeros(len(groups), dtype=torch.float64, device=engine.device)
    for group, gradients in _gradients(engine):
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
        if norms:
            squares[groups.index(group["label"])] += torch.stack(norms).to(squares).square().sum()
    for ranks in _ranks_of_norms(engine):
        torch.distributed.all_reduce(squares, group=ranks)
    scale = float(getattr(engine.deepspeed.optimizer, "loss_scale", 1.0))
    return dict(zip(groups, (squares.sqrt() / scale).float().unbind(), strict=True))


def _gradients(engine: Wrapped) -> Iterator[tuple[dict[str, Any], list[torch.Tensor]]]:
    """Gradients, by flat, that this rank updates with and counts in norms."""
    zero = engine.deepspeed.optimizer
    averaged = getattr(zero, "averaged_gradients", {})
    if hasattr(zero, "fp32_groups_gradient_flat_partition"):
        averaged = {index: [flat] for index, flat in enumerate(zero.fp32_groups_gradient_flat_partition)}
    for index, (flat, group, local) in enumerate(fragments(engine)):
        if in_files(engine, index):
            yield group, gradient_norms_of(engine, index)
        elif averaged.get(index) is not None:
            held = [gradient for gradient in averaged[index] if gradient is not None]
            yield group, _counting_gradients(engine, held, local)
        elif flat.grad is not None:  # stage 0, and optimizer state in host memory
            if engine.zero_stage == 0 and engine.expert_parts.rank > 0 and not marked(flat):
                continue  # all expert ranks have it, and it counts on the first
            yield group, _counting_gradients(engine, [flat.grad], local)


def _ranks_of_norms(engine: Wrapped) -> list[Any]:
    """Process groups over which squared norms add up."""
    if engine.tensor_parts.size == 1:
        if engine.zero_stage > 0:
            return [_group(engine)]
        return [engine.expert_parts.group] if engine.expert_parts.size > 1 else []
    if engine.zero_stage == 3:
        return [None]
    return [engine.tensor_parts.group] if engine.zero_stage == 0 else [_group(engine), engine.tensor_parts.group]


def _counting_gradients(engine: Wrapped, gradients: list[torch.Tensor], local: list[Fragment]) -> list[torch.Tensor]:
    """Gradients of a flat that count in sums over all ranks.

    Tensor ranks' duplicates count on the first.

    Stage 3 partitions parameters that tensor ranks hold alike over all ranks, except the biases of matrices cut by
    input: those it partitions over the data ranks, so that each tensor rank holds the same parts of them.
    """
    parts = engine.tensor_parts
    if parts.rank == 0:
        return gradients
    named = dict(engine.parameters())

    def alone(name: str) -> bool:
        among_all = engine.zero_stage == 3 and _group_of(engine, named[name]).size() > engine.gradient_ranks
        return among_all or parts.axis(name) is not None

    own = [fragment for fragment in local if alone(fragment.name)]
    if len(gradients) == 1:
        return [fragment.place(gradients[0]) for fragment in own]
    starts = itertools.accumulate(map(torch.numel, gradients), initial=0)
    offsets = {fragment.offset for fragment in own}
    return [gradient for gradient, start in zip(gradients, starts, strict=False) if start in offsets]


def before_update(engine: Wrapped) -> dict[str, torch.Tensor]:
    """Return `gradient_norms` and clip Muon's AdamW part. Collective."""
    norms, optimizer = gradient_norms(engine), optimizer_of(engine)
    if isinstance(optimizer, Muon):
        optimizer.clip(norms)
    return norms


_ATTRIBUTES = {
    "scale": "cur_scale",
    "step": "cur_iter",
    "last_overflow": "last_overflow_iter",
    "hysteresis": "cur_hysteresis",
}


def loss_scale_of(engine: Wrapped) -> dict[str, float] | None:
    """Loss scale and its counters; None in other precisions."""
    scaler = _scaler(engine)
    return None if scaler is None else {name: getattr(scaler, own) for name, own in _ATTRIBUTES.items()}


def restore_loss_scale(engine: Wrapped, values: dict[str, float] | None) -> None:
    """Restore the scale that `loss_scale_of` returned.

    None leaves it at its initial value.
    """
    scaler = _scaler(engine)
    if scaler is None or values is None:
        return
    for name, own in _ATTRIBUTES.items():
        setattr(scaler, own, values[name])


def _scaler(engine: Wrapped) -> Any:
    """DeepSpeed's dynamic loss scaler, or None.

    Other precisions have a constant one or none.
    """
    scaler = getattr(engine.deepspeed.optimizer, "loss_scaler", None)
    return scaler if getattr(scaler, "dynamic", False) else None
