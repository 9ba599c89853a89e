"""Ranges of each parameter that every rank owns, and their shard offsets.

Every rank has the table from the start, so a rank that writes a canonical file reads exactly the ranges of that file's
parameters from the other ranks' shards, and of their headers only the length. Price: 16 bytes in memory for each
parameter and rank (6 MB for 70 B parameters in 723 tensors on 512 ranks), gathered once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.errors import CheckpointError
from pretrain.checkpoint.format import CheckpointStore

if TYPE_CHECKING:
    from pretrain.engine.fragments import Owned

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
