"""`[engine.deepspeed]`: keys passed through to DeepSpeed.

No torch is imported here.

    [engine.deepspeed]
    wall_clock_breakdown = true
    [engine.deepspeed.zero_optimization]
    reduce_bucket_size = 200_000_000

Promise: a key that a setting of ours decides is refused, and both are named, so nothing is said twice. What we choose
without a setting (sizes of buckets, overlap) is replaced. Keys that DeepSpeed does not know are named before the corpus
is made (`start_preflight.py`), since it would ignore those of its first level without a warning.

What is passed enters no key of an artifact: it is for speed and memory. The record of a training states it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from governance.files import shipped_table

OWNED = shipped_table(__package__, "deepspeed_keys.toml")
"""DeepSpeed's key, with its table before a dot -> what says the same in a run's file."""


def keys_of(values: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """The dotted names of all tables and keys."""
    for key, value in values.items():
        yield f"{before}{key}"
        if isinstance(value, Mapping):
            yield from keys_of(value, f"{before}{key}.")


def conflict(passed: Mapping[str, Any]) -> str | None:
    """The fault of keys that settings of ours decide, or None."""
    taken = [f"{key} (set {OWNED[key]})" for key in keys_of(passed) if key in OWNED]
    table = passed.get("zero_optimization", {})
    if not isinstance(table, Mapping):
        taken.append("zero_optimization, which is not a table")
    if not taken:
        return None
    return f"engine.deepspeed sets what a setting of Assay decides: {', '.join(taken)}; remove it from engine.deepspeed"


def with_passed(ours: Mapping[str, Any], passed: Mapping[str, Any]) -> dict[str, Any]:
    """Our dictionary with the keys that are passed through.

    Tables are merged; the passed value of a key wins.
    """
    joined = dict(ours)
    for key, value in passed.items():
        held = joined.get(key)
        both = isinstance(held, Mapping) and isinstance(value, Mapping)
        joined[key] = with_passed(held, value) if both else value
    return joined
