"""Bands of low, central and high values: scenarios, no confidence interval."""

from __future__ import annotations

from typing import NamedTuple, Self

from pydantic import Field, model_validator

from governance.config import Section


class Band(NamedTuple):
    """Three scenarios; None is unknown."""

    low: float | None
    value: float | None
    high: float | None

    def each(self, other: Band | float, operation: str) -> Band:
        """`+`, `*` or `/` of each scenario.

        A number is the same in all three. A division takes the other's bounds crosswise, so the band holds both.
        """
        terms = other if isinstance(other, Band) else Band(other, other, other)
        right = reversed(terms) if operation == "/" else terms
        return Band(*(_apply(one, two, operation) for one, two in zip(self, right, strict=True)))


MOST = 1e15
"""Largest figure of a configuration file: products of several stay finite."""

UNKNOWN = Band(None, None, None)


def _apply(one: float | None, two: float | None, operation: str) -> float | None:
    if one is None or two is None:
        return None
    return one + two if operation == "+" else one * two if operation == "*" else one / two


class Bounded(Section):
    """A figure of a configuration file.

    It is exact where no bounds are given.
    """

    value: float = Field(ge=0, le=MOST, allow_inf_nan=False)
    low: float | None = Field(default=None, ge=0, le=MOST, allow_inf_nan=False)
    """The least that is plausible."""
    high: float | None = Field(default=None, ge=0, le=MOST, allow_inf_nan=False)
    """The most that is plausible."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        low, value, high = self.bounds
        if not low <= value <= high:
            raise ValueError(f"low {low:g}, value {value:g} and high {high:g} must go upwards")
        return self

    @property
    def bounds(self) -> tuple[float, float, float]:
        """Low, value, high."""
        low = self.value if self.low is None else self.low
        return low, self.value, self.value if self.high is None else self.high

    @property
    def band(self) -> Band:
        """Low, value and high as a band."""
        return Band(*self.bounds)
