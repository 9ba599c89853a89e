"""Fates: counts of documents by outcome, group, stratum and bucket.

A stratum is a source, a language, a length bin and a site. A site is a host; the source, where documents have no URL;
and a bucket of hosts, for those beyond the largest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from governance.checks.bias.provenance_columns import SMALL_SITES
from governance.checks.bias.statistics import BUCKETS, Integers
from governance.errors import ManifestError
from governance.stage_order import CORPUS_STAGES

ORDER = (*(row.name for row in CORPUS_STAGES), "kept")
"""Possible outcomes of a document, in the order of a run."""
_COLUMNS = ("axis", "group", "language", "stage", "reason", "source", "site", "length_bin", "bucket", "documents")


@dataclass(frozen=True)
class AxisFates:
    """Documents of one axis, in the languages in which any mentions it."""

    axis: str
    languages: list[str]
    stages: list[str]
    """Stages that removed a document, in order, and "kept"."""
    outcomes: list[tuple[str, str]]
    """Stage and reason."""
    strata: Integers
    """[cells]"""
    buckets: Integers
    """[cells]"""
    language: npt.NDArray[np.object_]
    """[cells]"""
    groups: Mapping[str, Integers]
    """Group -> [outcomes, cells] documents; "" is not a group of the axis."""


@dataclass(frozen=True)
class Crowding:
    """Mean units per site, by unit; NaN is unknown."""

    own: Mapping[str, float]
    """Means of each group."""
    others: Mapping[str, float]
    """Means of the other groups of its axis, pooled."""
    unmentioned: float


def axes_of(fates: pa.Table) -> Iterator[AxisFates]:
    """Each axis that a document mentions, in order.

    Raises:
        ManifestError: the table lacks a column, or a document ended at a stage that is not in ORDER.
    """
    if absent := sorted(set(_COLUMNS) - set(fates.column_names)):
        raise ManifestError(f"fates: a table of {fates.column_names} lacks {absent}. Make the stage `bias` again.")
    found = set(pc.unique(fates["stage"]).to_pylist())
    if unknown := sorted(found - set(ORDER)):
        raise ManifestError(f"fates: documents ended at {unknown}, which are not among the known stages {list(ORDER)}.")
    stages = [stage for stage in ORDER if stage in found or stage == "kept"]
    mentioned = fates.filter(pc.not_equal(fates["group"], ""))
    for axis in sorted(pc.unique(mentioned["axis"]).to_pylist()):
        present = pc.unique(mentioned.filter(pc.equal(mentioned["axis"], axis))["language"])
        chosen = pc.and_(pc.equal(fates["axis"], axis), pc.is_in(fates["language"], value_set=present))
        yield _axis(axis, sorted(present.to_pylist()), stages, fates.filter(chosen))


def _axis(axis: str, languages: list[str], stages: list[str], rows: pa.Table) -> AxisFates:
    code = {name: _codes(rows[name]) for name in ("group", "language", "stage", "reason", "source", "site")}
    bucket = rows["bucket"].to_numpy().astype(np.int64)
    site, names = code["site"]
    small = np.array([name == SMALL_SITES for name in names], bool)
    site = np.where(small[site], len(names) + bucket, site)
    length = rows["length_bin"].to_numpy().astype(np.int64)
    stratum = code["source"][0] * len(code["language"][1]) + code["language"][0]
    stratum = (stratum * (int(length.max()) + 1) + length) * (len(names) + BUCKETS) + site
    _, stratum = np.unique(stratum, return_inverse=True)
    cells, first, cell = np.unique(stratum * BUCKETS + bucket, return_index=True, return_inverse=True)
    outcomes, outcome = _outcomes(code["stage"], code["reason"])
    documents = rows["documents"].to_numpy()
    groups = {}
    for number, group in sorted(enumerate(code["group"][1]), key=lambda item: item[1]):
        mine = code["group"][0] == number
        sums = np.zeros((len(outcomes), len(cells)), np.int64)
        np.add.at(sums, (outcome[mine], cell[mine]), documents[mine])
        groups[group] = sums
    language = np.array(code["language"][1], object)[code["language"][0][first]]
    return AxisFates(axis, languages, stages, outcomes, cells // BUCKETS, cells % BUCKETS, language, groups)


def crowding(fates: pa.Table, language: str, axis: str, units: Mapping[str, int], unmentioned: int) -> Crowding:
    """Mean units per site, by unit (sum of squares / sum).

    Units are spread over sites as the kept documents are. Documents without a URL, and those of small sites, are known
    by bucket. Without a named site the mean is unknown.

    Args:
        fates: the count table.
        language: whose documents are read.
        axis: of the groups.
        units: sentences of each group, all groups of the axis.
        unmentioned: sentences without a mention, spread as the documents that mention no group of the axis.
    """
    chosen = pc.and_(pc.equal(fates["axis"], axis), pc.equal(fates["language"], language))
    rows = fates.filter(pc.and_(chosen, pc.equal(fates["stage"], "kept")))
    site, names = _codes(rows["site"])
    named = ~np.array([name in (SMALL_SITES, "") for name in names], bool)[site]
    site = np.where(named, site, len(names) + rows["bucket"].to_numpy())
    (group, groups), documents = _codes(rows["group"]), rows["documents"].to_numpy().astype(np.float64)
    sizes = np.array([*units.values(), unmentioned], np.float64)
    spread = np.full((len(sizes), len(names) + BUCKETS), np.nan)
    for place, name in enumerate([*units, ""] if named.any() else []):
        mine = group == (groups.index(name) if name in groups else -1)
        if mine.any():
            sums = np.bincount(site[mine], documents[mine], spread.shape[1])
            spread[place] = sums * sizes[place] / sums.sum()
    with np.errstate(all="ignore"):
        own = (spread**2).sum(axis=1) / sizes
        rest, left = spread[:-1].sum(axis=0) - spread[:-1], sizes[:-1].sum() - sizes[:-1]
        others = (rest**2).sum(axis=1) / left
    return Crowding(dict(zip(units, own[:-1], strict=True)), dict(zip(units, others, strict=True)), float(own[-1]))


def _codes(column: pa.ChunkedArray) -> tuple[Integers, list[str]]:
    encoded = pc.dictionary_encode(column).combine_chunks()
    encoded = encoded if isinstance(encoded, pa.Array) else pa.concat_arrays(encoded.chunks)
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def _outcomes(
    stage: tuple[Integers, list[str]], reason: tuple[Integers, list[str]]
) -> tuple[list[tuple[str, str]], Integers]:
    found, code = np.unique(stage[0] * len(reason[1]) + reason[0], return_inverse=True)
    named = [(stage[1][one // len(reason[1])], reason[1][one % len(reason[1])]) for one in found.tolist()]
    order = sorted(range(len(named)), key=lambda place: (ORDER.index(named[place][0]), named[place][1]))
    places = np.empty(len(named), np.int64)
    places[order] = np.arange(len(named))
    return [named[place] for place in order], places[code]
