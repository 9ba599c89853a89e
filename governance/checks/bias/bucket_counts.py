"""Count tables as arrays: 64 buckets for each key.

A count table has key columns, `bucket`, and counts; rows of the same keys add up, in any order and partition. What is
made of them is made of sums of integers, so it does not depend on either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from governance.checks.bias.statistics import BUCKETS, Integers
from governance.errors import ManifestError

Counts = Mapping[tuple[Any, ...], Integers]
"""key -> [buckets]; sorted by key."""
NOTHING: Integers = np.zeros(BUCKETS, np.int64)


def by_bucket(table: pa.Table, keys: Sequence[str], count: str) -> dict[tuple[Any, ...], Integers]:
    """Sum one count over all rows of the same keys and bucket.

    The result maps each key to its [buckets] and is sorted by key.

    Raises:
        ManifestError: the table lacks a column, or has a bucket outside 0 .. 63.
    """
    if absent := sorted({*keys, "bucket", count} - set(table.column_names)):
        raise ManifestError(f"a count table of {table.column_names} lacks {absent}. Make the stage `bias` again.")
    if table.num_rows == 0:
        return {}
    codes = np.zeros(table.num_rows, np.int64)
    dictionaries = []
    for key in keys:
        encoded = pc.dictionary_encode(table[key]).combine_chunks()
        dictionaries.append(encoded.dictionary.to_pylist())
        codes = codes * len(dictionaries[-1]) + encoded.indices.to_numpy()
    buckets = table["bucket"].to_numpy().astype(np.int64)
    if buckets.min() < 0 or buckets.max() >= BUCKETS:
        raise ManifestError(f"a count table has the bucket {buckets.max()} of {BUCKETS}. Make the stage `bias` again.")
    present, rows = np.unique(codes, return_inverse=True)
    sums = np.zeros((len(present), BUCKETS), np.int64)
    np.add.at(sums, (rows, buckets), table[count].to_numpy())
    columns = []
    for values in reversed(dictionaries):
        columns.append([values[place] for place in (present % len(values)).tolist()])
        present = present // len(values)
    labels = zip(*reversed(columns), strict=True)
    return dict(sorted(zip(labels, sums, strict=True), key=lambda item: item[0]))


def stacked(counts: Counts, keys: Iterable[tuple[Any, ...]]) -> npt.NDArray[np.int64]:
    """Counts as an array [keys, buckets], in the order of the keys.

    A key without counts has zeros.
    """
    return np.array([counts.get(key, NOTHING) for key in keys], np.int64).reshape(-1, BUCKETS)
