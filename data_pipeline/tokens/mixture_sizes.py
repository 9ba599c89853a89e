"""Mixture sizes: bytes of each (source, language), in exact arithmetic.

Words: a *cell* is one (source, language), or with `quality` one (source, language, topic); its *size* is the UTF-8
bytes of its documents, each once. An *epoch* is one copy of every document of a cell. With `by`, the values of a column
take the place of sources, here and in all settings.

    share wanted    with weights, a source has weight / sum of weights; within it, languages as they are.
                    Without, cells share in proportion to their size.
                    A temperature T bends the proportions of sources (or of languages) to size^(1/T): T = 1 leaves
                    them, a higher T evens them out (Devlin et al. 2019 for multilingual BERT, alpha = 1/T = 0.7;
                    Conneau et al. 2020, arXiv:1911.02116, alpha = 0.3).
    bytes wanted    share wanted x total
    bytes got       as many as the epoch cap and the quotas leave of them

What a cap or a quota refuses is not given to another: the rest keeps its bytes, the mixture is smaller than wanted, and
`Allocation.notes` states that in words. A quota of a share is a share of what was *got*, so that it holds in the
mixture (to a byte here; to one document where whole documents are chosen). Four epochs is the cap that Muennighoff et
al. 2023 (arXiv:2305.16264) found to be nearly as good as fresh text.

Shares are fractions of integers. Only size^(1/T) for T other than 1 is rounded, to 28 decimal digits, by rules that do
not depend on the machine (Python's `decimal`). Bytes are rounded down, so no cap and no quota of bytes is passed.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from operator import not_
from typing import Literal

from pydantic import Field, model_validator

from data_pipeline.tokens.mix_quality import QualityConfig
from governance.config import Section
from governance.errors import ConfigError

_MAX_ROUNDS = 1000  # rounds of shrinking; quotas that can be met need far fewer: their distance falls by a share each

Cell = tuple[str, ...]
Sizes = Mapping[Cell, int]


class Quota(Section):
    """The most that a source or a language may have."""

    bytes: int | None = Field(default=None, ge=0)
    """UTF-8 bytes, copies counted."""
    share: float | None = Field(default=None, gt=0, le=1)
    """Share of the bytes of the whole mixture."""

    @model_validator(mode="after")
    def _check(self) -> Quota:
        if self.bytes is None and self.share is None:
            raise ValueError("a quota needs bytes, share, or both")
        return self


SOURCE = "source"


class MixConfig(Section):
    """Weights, quotas and epochs of the mixture."""

    by: str = Field(default=SOURCE, min_length=1, exclude_if=SOURCE.__eq__)
    """The parts that the other settings name: "source", or a value that every source keeps in `columns`, whose values
    then take the place of sources; "" is the part of documents without one."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Relative weight of each source in the mixture's bytes; 0 leaves it out. None named: by size; else name all."""
    temperature: float = Field(default=1.0, ge=1.0)
    """Shares in proportion to size^(1/temperature); 1: to size."""
    temperature_over: Literal["source", "language"] = "language"
    """Kind of group whose shares the temperature evens out."""
    total_bytes: int | None = Field(default=None, gt=0)
    """UTF-8 bytes to mix, copies counted; none: as many as come in."""
    max_epochs: int = Field(default=4, ge=1)
    """The most copies of a document."""
    max_epochs_of: dict[str, int] = Field(default_factory=dict)
    """The same for single sources; 0 leaves one out."""
    source_quotas: dict[str, Quota] = Field(default_factory=dict)
    """The most that a source may have, or a value of `by`."""
    language_quotas: dict[str, Quota] = Field(default_factory=dict)
    """The most that a language (its code) may have."""
    quality: QualityConfig | None = Field(default=None, exclude_if=not_)
    """Repeat documents by their score, up to `max_epochs` times; absent: all documents of a cell equally often."""

    @model_validator(mode="after")
    def _check(self) -> MixConfig:
        if any(weight < 0 for weight in self.weights.values()):
            raise ValueError("weights must not be negative")
        if self.weights and not any(self.weights.values()):
            raise ValueError("weights needs at least one source above 0")
        if any(epochs < 0 for epochs in self.max_epochs_of.values()):
            raise ValueError("max_epochs_of must not be negative")
        if self.weights and self.temperature > 1 and self.temperature_over == "source":
            raise ValueError(
                'weights already say the shares of sources; drop them, or set temperature_over = "language"'
            )
        return self

    def ranked_by(self, classifiers: Iterable[str]) -> bool:
        """Return whether `quality` reads the score of one of these classifiers."""
        return self.quality is not None and not set(self.quality.names).isdisjoint(classifiers)


@dataclass(frozen=True)
class Allocation:
    """Bytes of each cell, and the limits that reduced others."""

    wanted: dict[Cell, int]
    got: dict[Cell, int]
    notes: list[str] = field(default_factory=list)


def allocate(sizes: Sizes, config: MixConfig) -> Allocation:
    """The bytes of each cell; see the module.

    Raises:
        ConfigError: `weights` leaves out a source that is there, nothing is left, or no cell's documents above
            `quality.drop` reach its bytes.
    """
    _check_names(sizes, config)
    parts = _proportions(sizes, config)
    whole = sum(parts.values(), Fraction(0))
    total = config.total_bytes if config.total_bytes is not None else sum(sizes.values())
    wanted = {cell: int(total * part / whole) if whole else 0 for cell, part in sorted(parts.items())}
    _check_shares(wanted, config)
    kept = 1 - Fraction(str(config.quality.drop)) if config.quality else Fraction(1)
    capped = {cell: min(bytes_, int(sizes[cell] * epochs_of(cell, config) * kept)) for cell, bytes_ in wanted.items()}
    if (
        config.quality
        and sum(capped.values())
        and all(capped[cell] < bytes_ for cell, bytes_ in wanted.items() if bytes_)
    ):
        sources = {cell[0] for cell, bytes_ in wanted.items() if bytes_}
        limits = {"max_epochs": config.max_epochs} if sources - set(config.max_epochs_of) else {}
        limits |= {f"max_epochs_of.{name}": config.max_epochs_of[name] for name in sources & set(config.max_epochs_of)}
        given = ", ".join(f"{name} = {limits[name]}" for name in sorted(limits))
        raise ConfigError(
            f"mix: the curve of data.mix.quality cannot give the wanted bytes: {sum(wanted.values())} are wanted, and "
            f"the documents above drop = {config.quality.drop:g} give {sum(capped.values())} with {given}. "
            f"Raise {' or '.join(sorted(limits))}, lower drop, or lower total_bytes."
        )
    got = _within_quotas(capped, config)
    left = sum(got.values())
    only_rounding = max(got.values(), default=0) <= 1 and left < sum(capped.values())
    if any(sizes.values()) and (not left or only_rounding):
        raise ConfigError("mix: nothing is left: total_bytes, max_epochs and the quotas of [data.mix] allow no byte")
    return Allocation(wanted, got, _notes(sizes, (wanted, capped, got), config))


def _check_names(sizes: Sizes, config: MixConfig) -> None:
    sources = {cell[0] for cell in sizes}
    if config.weights and (unnamed := sorted(sources - set(config.weights))):
        raise ConfigError(
            f"mix: data.mix.weights does not name the {config.by}(s) {_named(unnamed)}; give each a weight, 0 to leave "
            f"it out. The corpus has: {_named(sorted(sources))}"
        )


def _named(parts: Iterable[str]) -> str:
    return ", ".join(part or '""' for part in parts)


def _check_shares(wanted: Mapping[Cell, int], config: MixConfig) -> None:
    for axis, what, quotas in ((0, SOURCE, config.source_quotas), (1, "language", config.language_quotas)):
        names = {cell[axis] for cell, value in wanted.items() if value}
        if fault := fault_of_shares(what, names, quotas):
            raise ConfigError(f"mix: nothing is left: data.{fault}")


def fault_of_shares(what: str, names: Collection[str], quotas: Mapping[str, Quota]) -> str:
    """Fault of quotas that all parts together cannot meet; or ""."""
    shares = {name: quotas[name].share if name in quotas else None for name in sorted(names)}
    if not names or sum(Fraction(str(1 if share is None else share)) for share in shares.values()) >= 1:
        return ""
    given = ", ".join(f"{name} {share:g}" for name, share in shares.items())
    return (
        f"mix.{what}_quotas give every {what} a share ({given}), and they add up to less than 1. "
        "Raise one, or leave one out."
    )


def epochs_of(cell: Cell, config: MixConfig) -> int:
    """The most copies of a document of a cell."""
    return config.max_epochs_of.get(cell[0], config.max_epochs)


def _proportions(sizes: Sizes, config: MixConfig) -> dict[Cell, Fraction]:
    """Weights by which each cell's share is proportional."""
    axis = 0 if config.temperature_over == "source" else 1
    group_sizes = _sums(sizes, axis)
    bent = {name: _bend(size, config.temperature) for name, size in group_sizes.items()}
    parts = {
        cell: size * bent[cell[axis]] / group_sizes[cell[axis]] if size else Fraction(0) for cell, size in sizes.items()
    }
    if not config.weights:
        return parts
    sums: dict[str, Fraction] = {}
    for cell, part in parts.items():
        sums[cell[0]] = sums.get(cell[0], Fraction(0)) + part
    return {
        cell: Fraction(str(config.weights[cell[0]])) * part / sums[cell[0]] if part else part
        for cell, part in parts.items()
    }


def _bend(size: int, temperature: float) -> Fraction:
    if temperature == 1 or not size:
        return Fraction(size)
    with decimal.localcontext(decimal.Context(prec=28)):
        return Fraction(decimal.Decimal(size) ** (1 / decimal.Decimal(str(temperature))))


def _sums(values: Mapping[Cell, int], axis: int) -> dict[str, int]:
    sums: dict[str, int] = {}
    for cell, value in values.items():
        sums[cell[axis]] = sums.get(cell[axis], 0) + value
    return sums


def _within_quotas(bytes_: Mapping[Cell, int], config: MixConfig) -> dict[Cell, int]:
    """Shrink whatever is above a quota until none is.

    Bytes only fall, so it ends; but shares of sources and of languages that contradict one another pull each other down
    without a floor, by as little as a byte a round.

    Raises:
        ConfigError: they are so.
    """
    got = dict(bytes_)
    quotas = [(0, *item) for item in sorted(config.source_quotas.items())]
    quotas += [(1, *item) for item in sorted(config.language_quotas.items())]
    for _ in range(_MAX_ROUNDS):
        settled = True
        for axis, name, quota in quotas:
            mine = {cell: value for cell, value in got.items() if cell[axis] == name}
            allowed = _allowed(quota, sum(mine.values()), sum(got.values()))
            if allowed < sum(mine.values()):
                settled = False
                got |= _shrink(mine, allowed)
        if settled:
            return got
    raise ConfigError(
        "mix: nothing is left: data.mix.source_quotas and data.mix.language_quotas contradict each other: the shares "
        "that they allow add up to less than 1. Raise one, or leave one out."
    )


def _allowed(quota: Quota, mine: int, total: int) -> int:
    """Largest value of `mine` under the quota, given the others."""
    allowed = mine
    if quota.share is not None and quota.share < 1:
        share = Fraction(str(quota.share))
        # Rounded up: shares that add up to 1 would else shrink each other to nothing, a byte at a time.
        allowed = min(allowed, math.ceil((total - mine) * share / (1 - share)))
    return allowed if quota.bytes is None else min(allowed, quota.bytes)


def _shrink(values: Mapping[Cell, int], total: int) -> dict[Cell, int]:
    """Scale values to `total` by the largest remainders."""
    before = sum(values.values())
    shrunk = {cell: value * total // before for cell, value in values.items()}
    left = total - sum(shrunk.values())
    for cell in sorted(values, key=lambda cell: (-(values[cell] * total % before), cell))[:left]:
        shrunk[cell] += 1
    return shrunk


def _notes(
    sizes: Sizes, steps: tuple[Mapping[Cell, int], Mapping[Cell, int], Mapping[Cell, int]], config: MixConfig
) -> list[str]:
    """Notes on unused quotas and unmet weights."""
    wanted, capped, got = steps
    notes = []
    for axis, what, named in (
        (0, config.by, {*config.weights, *config.max_epochs_of, *config.source_quotas}),
        (1, "language", set(config.language_quotas)),
    ):
        names = {cell[axis] for cell in sizes}
        notes += [f"{what} {_named([name])}: is configured, and not in the corpus" for name in sorted(named - names)]
        for name in sorted(names):
            want, cap, have = (_sums(step, axis)[name] for step in (wanted, capped, got))
            if have < want:
                cause = "max_epochs and drop" if config.quality else "max_epochs"
                why = [f"{cause} allow {cap}"] * (cap < want) + [f"quotas allow {have}"] * (have < cap)
                notes.append(f"{what} {_named([name])}: wanted {want} bytes, got {have}: {', '.join(why)}")
    total, have = sum(wanted.values()), sum(got.values())
    if have < total:
        notes.append(f"the mixture: wanted {total} bytes, got {have}; no other {config.by} was raised to replace them")
    return notes
