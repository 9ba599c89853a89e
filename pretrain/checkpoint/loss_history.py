"""Loss history: append-only list shared by all training states.

`longer = series.plus(value)` shares the memory of `series`; both keep their own length. A million steps cost a million
appends, where copying a list each step would cost half of 10^12 copies. A state that is being saved by another thread
does not see what comes after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, overload

T = TypeVar("T")


class LossHistory(Sequence[T]):
    """A value; equal to any sequence of equal items."""

    __slots__ = ("_items", "_length")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, items: Iterable[T] = ()) -> None:
        self._items = list(items)
        self._length = len(self._items)

    def plus(self, value: T) -> LossHistory[T]:
        """These items and `value`."""
        grown: LossHistory[T] = LossHistory()
        # Another series may have grown from this one already; the second branch is a list of its own.
        grown._items = self._items if len(self._items) == self._length else self._items[: self._length]
        grown._items.append(value)
        grown._length = self._length + 1
        return grown

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        places = range(self._length)[index]
        return self._items[places] if isinstance(places, int) else [self._items[place] for place in places]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        return (self._items[place] for place in range(self._length))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"LossHistory({list(self)})"

    def __deepcopy__(self, memo: Any) -> list[T]:
        """A plain list: what `dataclasses.asdict` puts into JSON."""
        return list(self)
