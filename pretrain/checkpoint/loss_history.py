"""Loss history: append-only list shared by all training states.

`longer = history.plus(value)` shares the memory of `history`; both keep their own length. A million steps cost a
million appends, where copying a list each step would cost 5 x 10^11 copies. A state that another thread saves does
not see later values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, overload

T = TypeVar("T")


class LossHistory(Sequence[T]):
    """Immutable sequence, equal to any sequence of equal items."""

    __slots__ = ("_items", "_length")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, items: Iterable[T] = ()) -> None:
        self._items = list(items)
        self._length = len(self._items)

    def plus(self, value: T) -> LossHistory[T]:
        """These items and `value`."""
        grown: LossHistory[T] = LossHistory()
        # If another history has grown from this one already, this branch needs a list of its own.
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
