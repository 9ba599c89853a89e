"""Outcomes of an experiment, read from a file and checked.

A row is one unit in one arm: CSV with a header, JSON Lines, or Parquet.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from governance.errors import ConfigError, MissingInput, near_path
from governance.files import sha256_bytes
from governance.kpi.kpi_file import Kpi, KpiFile

Floats = npt.NDArray[np.float64]
SKETCH = 64
"""Digests of units that stand for all of them."""
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}([T ].*)?")


@dataclass(frozen=True)
class Outcomes:
    """Checked outcomes, one entry of each array per row."""

    treated: npt.NDArray[np.bool_]
    """True for rows of the treatment arm."""
    groups: npt.NDArray[np.int64]
    """Number of the independent group: unit, cluster or pair."""
    columns: Mapping[str, Floats]
    """Values of each column that a KPI names."""
    first_day: str = ""
    """Earliest day, YYYY-MM-DD; "" where no column of days is named."""
    unit_sketch: tuple[str, ...] = ()
    """The smallest digests of units' names, cut to 12 digits: two samples of the same units share them."""
    sha256: str = ""
    """Digest of the bytes that were read."""

    @property
    def count(self) -> int:
        """Number of groups."""
        return int(self.groups.max()) + 1


def read_outcomes(path: Path, file: KpiFile) -> Outcomes:
    """Outcomes of an experiment.

    Raises:
        MissingInput: the file is missing.
        ConfigError: it cannot be read, or its rows do not fit the experiment; names the first fault and the fix.
    """
    named = file.columns
    table, sha256 = _read(path, (named.unit, named.arm, named.pair, named.cluster))
    where = f"{path}: "

    def column(name: str, asked_by: str) -> Any:
        if name not in table.column_names:
            raise ConfigError(
                f"{where}has no column {name!r}, which {asked_by} names; it has: {_few(table.column_names)}"
            )
        return table[name]

    if table.num_rows == 0:
        raise ConfigError(f"{where}has no rows. Give the outcomes of both arms.")
    arms = _texts(column(file.columns.arm, "columns.arm"), file.columns.arm, where)
    treated = _arms(arms, file, where)
    units = _texts(column(file.columns.unit, "columns.unit"), file.columns.unit, where)
    groups = units
    if file.experiment.design == "paired":
        groups = _texts(column(file.columns.pair, "columns.pair"), file.columns.pair, where)
        _refuse_unequal_pairs(groups, treated, file, where)
    else:
        _refuse_repeated(units, treated, file, where)
    if file.columns.cluster:
        clusters = _texts(column(file.columns.cluster, "columns.cluster"), file.columns.cluster, where)
        if file.experiment.design == "paired":
            _refuse_split_pairs(groups, clusters, file.columns.cluster, where)
        groups = clusters
    values = {}
    for kpi in file.kpi:
        for name in filter(None, (kpi.column, kpi.denominator, kpi.covariate)):
            values[name] = _numbers(column(name, f"kpi {kpi.name}"), name, where)
        _refuse_values(kpi, values, treated, where)
    first = _first_day(column(file.columns.day, "columns.day"), where) if file.columns.day else ""
    sketch = sorted(sha256_bytes(name.encode())[:12] for name in np.unique(units).tolist())[:SKETCH]
    codes = np.unique(groups, return_inverse=True)[1].reshape(-1)
    return Outcomes(treated, codes, values, first, tuple(sketch), sha256)


def _read(path: Path, names: Sequence[str]) -> tuple[Any, str]:
    """The table, and the digest of its bytes.

    `names` are texts in CSV too: 01 is not 1.
    """
    import pyarrow as pa
    from pyarrow import csv, json, parquet

    if not path.is_file():
        raise MissingInput(f"{path}: no such file.{near_path(path)} Give the outcomes as CSV, JSON Lines or Parquet.")
    texts = csv.ConvertOptions(column_types=dict.fromkeys(filter(None, names), pa.string()))
    readers = {
        ".csv": partial(csv.read_csv, convert_options=texts),
        ".jsonl": json.read_json,
        ".ndjson": json.read_json,
        ".parquet": parquet.read_table,
    }
    if path.suffix not in readers:
        raise ConfigError(f"{path}: ends in {path.suffix!r}; give outcomes as .csv, .jsonl or .parquet")
    try:
        data = path.read_bytes()  # once: a test signs the digest of what it has tested
        return readers[path.suffix](pa.BufferReader(data)), sha256_bytes(data)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as {path.suffix[1:]}: {str(error).splitlines()[0]}") from error


def _few(names: list[str]) -> str:
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")


def _refuse_gaps(column: Any, name: str, where: str) -> None:
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0]) + 1
        raise ConfigError(
            f"{where}row {row}: {name} is empty, of {column.null_count:,} such rows. Fill them in, or leave out the "
            "units by a rule that does not look at the arm"
        )


def _texts(column: Any, name: str, where: str) -> npt.NDArray[np.str_]:
    import pyarrow as pa

    try:
        texts = column.cast(pa.string())
    except pa.ArrowException as error:
        raise ConfigError(f"{where}column {name!r}: holds no names: {error}") from error
    import pyarrow.compute as pc

    blank = pc.equal(pc.utf8_trim_whitespace(texts), "")
    _refuse_gaps(pc.if_else(blank, None, texts), name, where)
    return np.asarray(texts.to_pylist(), dtype=np.str_)


def _numbers(column: Any, name: str, where: str) -> Floats:
    import pyarrow as pa

    _refuse_gaps(column, name, where)
    try:
        numbers = column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column
        values = np.asarray(numbers.cast(pa.float64()).to_numpy(), dtype=np.float64)
    except (pa.ArrowException, ValueError) as error:
        raise ConfigError(f"{where}column {name!r}: holds no numbers: {error}") from error
    if (bad := np.flatnonzero(~np.isfinite(values))).size:
        raise ConfigError(
            f"{where}row {bad[0] + 1}: {name} = {values[bad[0]]}, which is not a finite number. Correct the row"
        )
    return values


def _arms(arms: npt.NDArray[np.str_], file: KpiFile, where: str) -> npt.NDArray[np.bool_]:
    wanted = (file.experiment.control, file.experiment.treatment)
    if strange := sorted(set(np.unique(arms).tolist()) - set(wanted)):
        raise ConfigError(
            f"{where}arm {strange[0]!r} is neither {wanted[0]!r} (experiment.control) nor {wanted[1]!r} "
            "(experiment.treatment)"
        )
    for name in wanted:
        if name not in arms:
            raise ConfigError(f"{where}has no row of arm {name!r}; without both arms nothing can be compared")
    return np.equal(arms, wanted[1])


def _refuse_repeated(units: npt.NDArray[np.str_], treated: npt.NDArray[np.bool_], file: KpiFile, where: str) -> None:
    """Refuse units of both arms, and several rows of a unit."""
    if both := sorted(set(units[treated].tolist()) & set(units[~treated].tolist())):
        raise ConfigError(
            f"{where}unit {both[0]!r} is in both arms, of {len(both):,} such units. Leave them out, or compare each "
            'with itself: experiment.design = "paired"'
        )
    names, counts = np.unique(units, return_counts=True)
    if (counts > 1).any():
        place = int(counts.argmax())
        raise ConfigError(
            f"{where}unit {str(names[place])!r} has {counts[place]} rows; give one row per unit: add its values up, or "
            f"name the rows in {file.columns.unit!r} and the units in a column of their own, [columns] cluster"
        )


def _refuse_unequal_pairs(
    pairs: npt.NDArray[np.str_], treated: npt.NDArray[np.bool_], file: KpiFile, where: str
) -> None:
    names, codes = np.unique(pairs, return_inverse=True)
    counts = np.stack([np.bincount(codes[mask], minlength=len(names)) for mask in (~treated, treated)])
    if (bad := np.flatnonzero((counts != 1).any(axis=0))).size:
        control, treatment = counts[:, bad[0]]
        raise ConfigError(
            f"{where}pair {str(names[bad[0]])!r} has {control} row(s) of {file.experiment.control!r} and {treatment} "
            f"of {file.experiment.treatment!r}; a pair has one of each. Complete or leave out these {bad.size:,} pairs"
        )


def _refuse_split_pairs(pairs: npt.NDArray[np.str_], clusters: npt.NDArray[np.str_], name: str, where: str) -> None:
    """Refuse pairs whose two rows are in two clusters."""
    order = np.argsort(pairs, kind="stable")
    first, second = order[::2], order[1::2]
    if (bad := np.flatnonzero(clusters[first] != clusters[second])).size:
        one = first[bad[0]]
        raise ConfigError(
            f"{where}pair {str(pairs[one])!r} is in two clusters of {name!r}, of {bad.size:,} such pairs, so the "
            "clusters are not independent. Give both rows of a pair one cluster"
        )


def _refuse_values(kpi: Kpi, values: Mapping[str, Floats], treated: npt.NDArray[np.bool_], where: str) -> None:
    found = values[kpi.column]
    if kpi.kind == "share" and (bad := np.flatnonzero((found != 0) & (found != 1))).size:
        raise ConfigError(
            f'{where}row {bad[0] + 1}: {kpi.column} = {found[bad[0]]:g}; a share counts 0 and 1. Use kind = "mean" for '
            "other values"
        )
    if kpi.denominator:
        below = values[kpi.denominator]
        if (bad := np.flatnonzero(below < 0)).size:
            raise ConfigError(
                f"{where}row {bad[0] + 1}: {kpi.denominator} = {below[bad[0]]:g} is below 0. Correct the row"
            )
        if not (below[treated].sum() > 0 and below[~treated].sum() > 0):
            raise ConfigError(f"{where}{kpi.denominator} is 0 in a whole arm; the ratio has no value there")


def _first_day(column: Any, where: str) -> str:
    days = np.unique(_texts(column, "day", where)).tolist()
    for day in days:
        try:
            datetime.date.fromisoformat(day[:10])
        except ValueError as error:
            raise ConfigError(f"{where}{day!r} is not a day, written YYYY-MM-DD: {error}. Correct the row") from error
        if not _DAY.fullmatch(day):
            raise ConfigError(f"{where}day {day!r} is not written YYYY-MM-DD. Correct the row")
    return str(min(days))[:10]
