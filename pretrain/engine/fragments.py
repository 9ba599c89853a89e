"""Fragments: this rank's part of the training state.

A *fragment* is a stretch of one parameter, flattened row-major: its fp32 "master" and the optimizer's moments. Over all
ranks the fragments of a parameter cover it once. A rank owns, by ZeRO stage (arXiv:1910.02054):

    0       everything; for saving, each rank takes an equal share of every parameter
    1, 2    the overlap of DeepSpeed's flat partition of this rank with the parameter
    3       piece `rank` of equal pieces, without the padding after the last one

Promise: `place_fragments` restores what `copy_to_host` copied bit for bit. Price of a copy: one pass over 12 bytes per
parameter (AdamW), divided by the ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch

from governance.errors import CheckpointError
from governance.files import nameless_memory
from pretrain.engine.expert_groups import marked
from pretrain.engine.nvme import in_memory
from pretrain.engine.state import fragments, full_state, moments_of, optimizer_of, prepare_moments
from pretrain.engine.tensor_parallel import ReadStretch
from pretrain.optim.zero_fragments import Fragment

if TYPE_CHECKING:
    from pretrain.engine.wrapped import Wrapped

MASTER = "master"


@dataclass(frozen=True)
class Owned:
    """Place and state of a fragment."""

    name: str
    start: int
    """Its first element in the flattened parameter."""
    length: int
    tensors: Mapping[str, Any]
    """Flat fp32 tensors (or arrays) of `length` elements: "master", and each moment by its name."""


def local_state(engine: Wrapped) -> Iterator[Owned]:
    """This rank's state, not copied; collective only under tensor parallelism.

    A tensor rank's part of a matrix is not a contiguous stretch of it, so whole matrices are gathered one by one, and
    each rank takes a share. A fragment is valid until the next one is requested, because state in files is read for it.
    """
    if engine.tensor_parts.size > 1:
        yield from (_equal_share(name, tensors) for name, tensors in full_state(engine))
    elif engine.zero_stage == 0:
        named, replicas = dict(engine.parameters()), engine.expert_parts.replicas
        for fragment, tensors in _owned(engine):
            yield _equal_share(fragment.name, tensors, replicas if marked(named[fragment.name]) else None)
    else:
        yield from (Owned(part.name, part.start, part.count, tensors) for part, tensors in _owned(engine))


def host_buffers(fragments: Sequence[Owned], pinned: bool, folder: Path | None) -> list[Owned]:
    """Host memory for a copy of these fragments, already touched.

    `pinned` memory is page-locked, so that a GPU copies into it at the full speed of its bus. With `folder` the system
    may page it out to an unnamed file there, which disappears with the process; it is for state that does not fit in
    memory.

    Raises:
        StorageError: the disk of `folder` is full.
    """
    elements = sum(fragment.length * len(fragment.tensors) for fragment in fragments)
    if folder is not None:
        room = torch.frombuffer(nameless_memory(folder, 4 * elements), dtype=torch.float32, count=elements)
    else:
        room = torch.empty(elements, dtype=torch.float32, pin_memory=pinned).zero_()
    made, used = [], 0
    for fragment in fragments:
        tensors = {}
        for kind in fragment.tensors:
            tensors[kind] = room[used : used + fragment.length]
            used += fragment.length
        made.append(Owned(fragment.name, fragment.start, fragment.length, tensors))
    return made


def copy_to_host(fragments: Iterable[Owned], buffers: Sequence[Owned]) -> None:
    """Copy the fragments into the buffers of `host_buffers`; complete on return.

    Host memory is copied by one thread (10 GB/s), because torch's threads wait for each other on shared cores.
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


def place_fragments(engine: Wrapped, read: ReadStretch, step: int) -> None:
    """Set an engine's state after `step` updates, by ranges. Collective.

    `refresh_parameters` must follow, unless the model holds the same weights already, as it must for those in files.

    Raises:
        CheckpointError: `read` returns other moments than this optimizer keeps.
    """
    prepare_moments(engine, step)
    parameters = dict(engine.parameters())
    for fragment, tensors in _owned(engine):
        values = engine.tensor_parts.read_part(read, fragment)
        if values.keys() != tensors.keys():
            raise CheckpointError(
                f"{fragment.name}: the checkpoint has {sorted(values)}, the optimizer keeps {sorted(tensors)}: another "
                f"optimizer wrote it"
            )
        for kind, tensor in tensors.items():
            tensor.data.copy_(values[kind])
        if engine.zero_stage == 3 and parameters[fragment.name].ds_tensor.numel() >= fragment.count:
            parameters[fragment.name].ds_tensor.data[: fragment.count].copy_(values[MASTER])


def refresh_parameters(engine: Wrapped) -> None:
    """Copy the masters of `place_fragments` to every rank's parameters. Collective."""
    optimizer = engine.deepspeed.optimizer
    if engine.zero_stage in (1, 2):
        optimizer.update_lp_params()
    elif engine.zero_stage == 3:
        _refresh_gathered(optimizer)


def publish_masters(engine: Wrapped) -> None:
    """Copy updated masters to every rank's parameters. Collective."""
    if engine.zero_stage == 3:
        parameters = dict(engine.parameters())
        for fragment, tensors in _owned(engine):
            parameters[fragment.name].ds_tensor.data[: fragment.count].copy_(tensors[MASTER])
    refresh_parameters(engine)


def nudge(engine: Wrapped, share: float) -> None:
    """Change each master by a share of it, up and down. Collective."""
    for fragment, tensors in _owned(engine):
        odd = torch.arange(fragment.start, fragment.start + fragment.count, device=engine.device) % 2
        tensors[MASTER].mul_(1.0 + share * (1.0 - 2.0 * odd))
    publish_masters(engine)


def _refresh_gathered(optimizer: Any) -> None:
    """Discard DeepSpeed's copies of the previous weights.

    Small whole parameters, and hpZ's second copies.

    The order matters: while a second copy exists, partitioning a whole weight leaves it alone; afterwards it is remade.
    """
    small = optimizer.persistent_parameters
    if small:
        small[0].partition(small)
    optimizer.invalidate_secondary_tensor()
    if small:
        small[0].all_gather(small)


def _owned(engine: Wrapped) -> Iterator[tuple[Fragment, dict[str, torch.Tensor]]]:
    """This rank's fragments, with short-lived views of masters and moments."""
    state = optimizer_of(engine).state
    for index, (flat, group, local) in enumerate(fragments(engine)):
        with in_memory(engine, index):
            flats = {MASTER: flat, **moments_of(state, flat, group)}
            for fragment in local:
                yield fragment, {kind: fragment.place(values.detach()) for kind, values in flats.items()}


def _equal_share(name: str, tensors: Mapping[str, torch.Tensor], group: Any = None) -> Owned:
    """This rank's equal share of a parameter that a group holds whole."""
    rank, ranks = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
    elements = tensors[MASTER].numel()
    size = -(-elements // ranks)
    start = min(size * rank, elements)
    length = min(size, elements - start)
    held = {kind: value.reshape(-1)[start : start + length] for kind, value in tensors.items()}
    return Owned(name, start, length, held)
