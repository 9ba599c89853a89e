"""The part of the training state that this rank owns: read without asking the other ranks, and put back.

A *fragment* is a stretch of one parameter, flattened row-major: its fp32 "master" and the optimizer's moments. Over all
ranks the fragments of a parameter cover it once. What a rank owns at each ZeRO stage (arXiv:1910.02054):

    0       all of it on every rank; for saving each takes an equal share of every parameter
    1, 2    where DeepSpeed's flat partition of this rank overlaps the parameter
    3       piece `rank` of equal pieces, without the padding behind the last one

Promise: what `copy_to_host` took, `load_fragments` restores bit for bit. Price of a copy: one pass over 12 bytes a
parameter (AdamW), divided by the ranks. DeepSpeed's own attributes that this needs stand in the functions `_owned_*`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import nn

from governance.errors import CheckpointError
from pretrain.engine_state import full_shape, prepare_moments

if TYPE_CHECKING:
    from pretrain.engine import Engine

MASTER = "master"

ReadFragment = Callable[[str, int, int], Mapping[str, torch.Tensor]]
"""(name, start, length) -> that stretch of the parameter's master and moments."""


@dataclass(frozen=True)
class Fragment:
    """A stretch of one parameter's state."""

    name: str
    start: int
    """Its first element in the flattened parameter."""
    length: int
    tensors: Mapping[str, Any]
    """Flat fp32 tensors (or arrays) of `length` elements: "master", and each moment by its name."""


def local_state(engine: Engine) -> list[Fragment]:
    """This rank's fragments as they stand, not copied, in the order of the parameters; no other rank is asked."""
    return list(_owned(engine, shared=True))


def host_buffers(fragments: Sequence[Fragment], pinned: bool) -> list[Fragment]:
    """Room in host memory for a copy of these fragments, its pages touched so that the first copy costs no faults.

    `pinned`: page-locked, so that a GPU copies into it at the full speed of its bus.
    """
    elements = sum(fragment.length * len(fragment.tensors) for fragment in fragments)
    room = torch.empty(elements, dtype=torch.float32, pin_memory=pinned).zero_()
    made, used = [], 0
    for fragment in fragments:
        tensors = {}
        for kind in fragment.tensors:
            tensors[kind] = room[used : used + fragment.length]
            used += fragment.length
        made.append(Fragment(fragment.name, fragment.start, fragment.length, tensors))
    return made


def copy_to_host(fragments: Sequence[Fragment], buffers: Sequence[Fragment]) -> None:
    """Copy the fragments into the room that `host_buffers` made of them; when it returns all is there.

    In host memory by one thread: 10 GB/s, where torch's threads wait for each other as soon as cores are shared.
    """
    on_device = False
    for fragment, buffer in zip(fragments, buffers, strict=True):
        if fragment.tensors.keys() != buffer.tensors.keys():
            raise RuntimeError(f"{fragment.name}: has {sorted(fragment.tensors)}, had {sorted(buffer.tensors)}")
        for kind, tensor in fragment.tensors.items():
            if tensor.is_cpu and tensor.dtype is torch.float32:
                numpy.copyto(buffer.tensors[kind].numpy(), tensor.numpy())
            else:
                buffer.tensors[kind].copy_(tensor, non_blocking=True)
                on_device = True
    if on_device and torch.cuda.is_available():
        torch.cuda.synchronize()


def load_fragments(engine: Engine, read: ReadFragment, step: int) -> None:
    """Give a fresh engine this rank's state after `step` updates, then bring every rank's parameters up to it.

    Collective only in that last act. At stage 0, where a rank owns all, `read` is asked for whole parameters.

    Raises:
        CheckpointError: `read` gives other moments than this optimizer keeps.
    """
    prepare_moments(engine, step)
    parameters = dict(engine.parameters())
    for fragment in _owned(engine, shared=False):
        values = read(fragment.name, fragment.start, fragment.length)
        if values.keys() != fragment.tensors.keys():
            raise CheckpointError(
                f"{fragment.name}: the checkpoint has {sorted(values)}, the optimizer keeps "
                f"{sorted(fragment.tensors)}: another optimizer wrote it"
            )
        if engine.zero_stage == 3:
            _set_3(parameters[fragment.name], values)
            continue
        for kind, tensor in fragment.tensors.items():
            tensor.data.copy_(values[kind])
    optimizer = engine.deepspeed.optimizer
    if engine.zero_stage in (1, 2):
        optimizer.update_lp_params()
    elif engine.zero_stage == 3 and optimizer.persistent_parameters:
        # Small parameters are kept whole on every rank, and are stale now.
        optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def _owned(engine: Engine, shared: bool) -> Iterator[Fragment]:
    for name, parameter in engine.parameters():
        if engine.zero_stage == 0:
            yield _owned_0(engine, name, parameter, shared)
        elif engine.zero_stage < 3:
            yield from _owned_1_2(name, parameter)
        else:
            yield from _owned_3(name, parameter)


def _owned_0(engine: Engine, name: str, parameter: nn.Parameter, shared: bool) -> Fragment:
    optimizer = engine.deepspeed.optimizer
    state = getattr(optimizer, "optimizer", optimizer).state[parameter]
    moments = {kind: value for kind, value in state.items() if _like(value, parameter)}
    tensors = {kind: value.detach().reshape(-1) for kind, value in {MASTER: parameter, **moments}.items()}
    start, length = 0, parameter.numel()
    if shared:
        start, length = _share(parameter.numel())
    return Fragment(name, start, length, {kind: value.narrow(0, start, length) for kind, value in tensors.items()})


def _share(elements: int) -> tuple[int, int]:
    """Start and length of this rank's equal share of a parameter of so many elements."""
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    size = -(-elements // ranks)
    start = min(size * rank, elements)
    return start, min(size, elements - start)


def _like(value: Any, parameter: torch.Tensor) -> bool:
    return torch.is_tensor(value) and value.shape == parameter.shape and value.dim() > 0


def _owned_1_2(name: str, parameter: Any) -> Iterator[Fragment]:
    mapping = parameter._hp_mapping
    if mapping is None:
        return  # it lies in other ranks' partitions
    address = mapping.lp_fragment_address
    tensors = {MASTER: mapping.hp_fragment, **mapping.optim_fragment}
    yield Fragment(name, address.start, address.numel, {kind: value.detach() for kind, value in tensors.items()})


def _owned_3(name: str, parameter: Any) -> Iterator[Fragment]:
    optimizer = parameter._z3_optimizer
    elements, size = full_shape(parameter).numel(), parameter.ds_tensor.numel()
    start = min(size * torch.distributed.get_rank(), elements)
    length = min(size, elements - start)
    if not length:
        return
    group, _, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
    flat = optimizer.fp32_partitioned_groups_flat[group]
    moments = [kind for kind, value in optimizer.optimizer.state[flat].items() if _like(value, flat)]
    tensors = {MASTER: optimizer.get_local_fp32_param(parameter)}
    tensors |= {kind: optimizer.get_local_fp32_param(parameter, kind) for kind in moments}
    yield Fragment(name, start, length, {kind: value.detach()[:length] for kind, value in tensors.items()})


def _set_3(parameter: Any, values: Mapping[str, torch.Tensor]) -> None:
    size = parameter.ds_tensor.numel()
    for kind, value in values.items():
        piece = nn.functional.pad(value, (0, size - value.numel()))
        parameter._z3_optimizer.set_local_hp_param(piece, parameter, None if kind == MASTER else kind)
        if kind == MASTER:
            parameter.ds_tensor.data.copy_(piece)
