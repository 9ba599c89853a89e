"""Canonical checkpoints from the fragments of all ranks.

The division of parameters over files, and so every byte, is a function of the model and of what was learned, not of the
ranks, the ZeRO stage or the time of writing. Price: each byte is copied once, from a rank's fragment to its file;
nothing is held in memory.

Every rank has the table of the ranges of each parameter that each rank owns from the start, so a rank that writes a
canonical file reads exactly the ranges of that file's parameters from the other ranks' shards, and of their headers
only the length. Price: 16 bytes in memory for each parameter and rank (6 MB for 70 B parameters in 723 tensors on 512
ranks), gathered once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.errors import CheckpointError
from governance.manifest import Output, describe
from pretrain.checkpoint.format import CheckpointStore
from pretrain.checkpoint.safetensors_files import Shapes, TensorEntry, file_plan, write_tensors

if TYPE_CHECKING:
    from pretrain.engine.fragments import Owned

FILE_BYTES = 1 << 30  # fp32 weights of a file; a larger parameter has a file of its own
_MASTER = "master"


def write_canonical(
    folder: Path, root: Path, shapes: Shapes, fragments: Callable[[list[str]], Iterable[Owned]], ranks: tuple[int, int]
) -> list[Output]:
    """Write this rank's files of the plan, and hash them.

    `fragments(names)` are all ranks' fragments of these parameters, in any order.

    Raises:
        StorageError: the disk is full or failing.
        ValueError: the fragments do not cover a parameter once.
    """
    full = dict(shapes)
    outputs = []
    rank, world_size = ranks
    for number, names in enumerate(file_plan(shapes, FILE_BYTES)):
        if number % world_size != rank:
            continue
        found: dict[str, list[Owned]] = {name: [] for name in names}
        for fragment in fragments(names):
            found[fragment.name].append(fragment)
        entries = {name: _entries(name, full[name], found[name]) for name in names}
        parts = {
            "weights": [TensorEntry(name, full[name], kinds[_MASTER]) for name, kinds in entries.items()],
            "moments": [
                TensorEntry(f"{name}.{kind}", full[name], pieces)
                for name, kinds in entries.items()
                for kind, pieces in kinds.items()
                if kind != _MASTER
            ],
        }
        for role, tensors in parts.items():
            path = folder / role / f"{number:05d}.safetensors"
            write_tensors(path, tensors)
            outputs.append(describe(path, root))
    return outputs


def _entries(name: str, shape: tuple[int, ...], fragments: list[Owned]) -> Mapping[str, list[Any]]:
    """Pieces of a parameter's master and moments, by kind, in order."""
    ordered = sorted((fragment for fragment in fragments if fragment.length), key=lambda fragment: fragment.start)
    end = 0
    for fragment in ordered:
        if fragment.start != end or fragment.tensors.keys() != ordered[0].tensors.keys():
            raise ValueError(f"{name}: the ranks' fragments do not fit together at element {end}")
        end += fragment.length
    if not ordered:
        raise ValueError(f"{name} {shape}: no rank has it")
    return {kind: [fragment.tensors[kind] for fragment in ordered] for kind in ordered[0].tensors}


_ITEM = 4  # bytes of a float32


@dataclass(frozen=True)
class Shares:
    """Table of the ranges that each rank owns."""

    places: Any
    """int64 [ranks, parameters, 2]: first element and length of a rank's range; length 0: it owns nothing."""
    index: dict[str, int]
    """The number of each parameter, by name."""
    entries: Sequence[tuple[str, str]]
    """Parameter and kind of each tensor of a shard, in file order."""

    def owners(self, names: Collection[str]) -> list[int]:
        """Ranks that own a part of these parameters."""
        columns = [self.index[name] for name in names]
        return [int(rank) for rank in self.places[:, columns, 1].any(axis=1).nonzero()[0]]

    def read(self, path: Path, rank: int, names: Collection[str]) -> Iterator[Owned]:
        """Fragments of `rank`'s shard, memory-mapped.

        Raises:
            CheckpointError: it cannot be read, or its length differs from the table's.
        """
        import numpy

        from pretrain.engine.fragments import Owned

        starts, lengths = self.places[rank].T
        sizes = numpy.array([lengths[self.index[name]] for name, _ in self.entries], dtype=numpy.int64)
        ends = _ITEM * sizes.cumsum()
        try:
            mapped = numpy.memmap(path, mode="r")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        begin = len(mapped) - int(ends[-1])  # after the header, whose length is in the first 8 bytes
        if begin < 8 or begin != 8 + int.from_bytes(bytes(memoryview(mapped)[:8]), "little"):
            raise CheckpointError(f"{path}: {len(mapped)} bytes are not what rank {rank} owns, {ends[-1]} and a header")
        found: dict[str, dict[str, Any]] = {}
        for (name, kind), size, end in zip(self.entries, _ITEM * sizes, ends, strict=True):
            if size and name in names:
                found.setdefault(name, {})[kind] = mapped[begin + end - size : begin + end].view("<f4")
        for name, tensors in found.items():
            yield Owned(name, int(starts[self.index[name]]), int(lengths[self.index[name]]), tensors)


def gather_shares(own: Sequence[Owned], names: Sequence[str], store: CheckpointStore) -> Shares:
    """Table of all ranks' fragments, one per parameter at most. Collective."""
    import numpy

    index = {name: number for number, name in enumerate(names)}
    mine = numpy.zeros((len(names), 2), dtype=numpy.int64)
    for fragment in own:
        mine[index[fragment.name]] = fragment.start, fragment.length
    kinds: dict[tuple[str, ...], list[int]] = {}
    for fragment in own:
        kinds.setdefault(tuple(fragment.tensors), []).append(index[fragment.name])
    gathered = store.gather((mine, kinds))
    known = {number: of for _, table in gathered for of, numbers in table.items() for number in numbers}
    pairs = [(names[number], kind) for number, of in known.items() for kind in of]
    entries = sorted(pairs, key=lambda pair: f"{pair[0]}.{pair[1]}")
    return Shares(numpy.stack([places for places, _ in gathered]), index, entries)
