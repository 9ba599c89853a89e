"""Synthetic count tables with a known truth: domains of unequal size, whose documents resemble each other."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

KEYS = {
    "documents": ("language", "source", "bucket"),
    "axes": ("language", "bucket", "axis"),
    "groups": ("language", "source", "bucket", "axis", "group"),
    "categories": ("language", "source", "bucket", "family", "category"),
    "pairs": ("language", "source", "bucket", "axis", "group", "family", "category"),
    "scores": ("language", "source", "bucket", "axis", "group", "instrument"),
    "fates": ("stage", "reason", "source", "site", "language", "length_bin", "bucket", "axis", "group"),
    "shares": ("dimension", "value", "bucket"),
}
COUNTS = {
    "documents": ("documents", "words", "sentences", "bytes"),
    "axes": ("documents",),
    "groups": ("documents", "mentions", "sentences"),
    "categories": ("sentences",),
    "pairs": ("sentences",),
    "scores": ("sentences", "total", "squares", "hits"),
    "fates": ("documents",),
    "shares": ("documents", "bytes", "words"),
}
INTEGERS = {"bucket", "length_bin"}


def table_of(name, rows):
    """A count table of rows (keys..., counts...), zeros left out."""
    names = (*KEYS[name], *COUNTS[name])
    kept = [row for row in rows if any(row[len(KEYS[name]) :])]
    columns = list(zip(*kept, strict=True)) if kept else [()] * len(names)
    whole = {*INTEGERS, *COUNTS[name]}
    arrays = [
        pa.array([int(v) for v in column] if field in whole else column, pa.int64() if field in whole else pa.string())
        for field, column in zip(names, columns, strict=True)
    ]
    return pa.table(arrays, names=list(names))


def per_bucket(name, keys, *counts):
    """Rows of one key: `keys` has None in the place of the bucket; each count is [64]."""
    return [
        (*(bucket if key is None else key for key in keys), *(int(count[bucket]) for count in counts))
        for bucket in range(64)
    ]


class Domains:
    """Domains with log-normal sizes, in 64 buckets; draws that resemble each other within a domain."""

    def __init__(self, seed, number=600, sigma=1.0, mean=20):
        self.rng = np.random.default_rng(seed)
        self.sizes = 1 + self.rng.poisson(mean * self.rng.lognormal(-(sigma**2) / 2, sigma, number))
        self.buckets = self.rng.integers(0, 64, number)

    def rates(self, rate, likeness=0.05):
        """A rate for each domain, of mean `rate` and intra-class correlation `likeness` (beta)."""
        spread = (1 - likeness) / likeness
        return self.rng.beta(rate * spread, (1 - rate) * spread, len(self.sizes))

    def draw(self, of, rate, likeness=0.05):
        """Binomial counts for each domain, out of `of`; `rate` is a number or one for each domain."""
        rates = self.rates(rate, likeness) if np.isscalar(rate) else rate
        return self.rng.binomial(of, np.clip(rates, 0, 1))

    def into(self, counts):
        """[domains] -> [64]."""
        return np.bincount(self.buckets, counts, 64).astype(np.int64)
