"""Consistency of energy ledger and manifests.

A manifest's `run.energy` and the ledger's last line about its making are one reading of one meter, so they are equal to
the millijoule. To alter one unnoticed, the other must be altered, too, and the journal states both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from governance.energy.ledger import FILE_NAME, Interval, files_of, read_ledger
from governance.errors import ManifestError
from governance.manifest import Manifest


def ledger_faults(manifests: Iterable[Manifest], root: Path) -> list[str]:
    """Disagreements between the ledger and manifests, each naming its file."""
    measured = {manifest.folder: manifest for manifest in manifests if _figures(manifest)[0] is not None}
    if not measured:
        return []
    try:
        if not files_of(root / FILE_NAME):
            return [f"{FILE_NAME}: is missing, but {len(measured)} manifests state measured energy"]
        intervals = read_ledger(root / FILE_NAME, lambda line: False)
    except ManifestError as error:
        return [str(error).removeprefix(f"{root}/")]
    made: dict[str, list[Interval]] = {}
    for interval in intervals:
        made.setdefault(str(interval.samples[-1].marks.get("artifact")), []).append(interval)
    return [fault for folder, manifest in measured.items() for fault in _faults(manifest, made.get(folder, []))]


def _faults(manifest: Manifest, intervals: list[Interval]) -> Iterator[str]:
    figures = _figures(manifest)
    last = [(sample.millijoules, sample.low, sample.high) for sample in (one.samples[-1] for one in intervals)]
    if any(all(own in (None, theirs) for own, theirs in zip(figures, line, strict=True)) for line in last):
        return  # the manifest lacks a bound, because a meter began late; the ledger may have one for the rest
    if any(one.unseen_seconds and (one.millijoules or 0) <= (figures[0] or 0) for one in intervals):
        return  # its end could not be written (a full disk): the ledger holds less, and is known to
    listed = ", ".join(f"{_joules(values[0])} J" for values in last) or "nothing"
    yield f"{FILE_NAME}: states {listed} for {manifest.folder}, its manifest states {_joules(figures[0])} J"


def _figures(manifest: Manifest) -> tuple[int | None, int | None, int | None]:
    block = manifest.run.get("energy")
    values: dict[str, Any] = block if isinstance(block, dict) else {}
    joules, low, high = (
        round(value * 1000) if isinstance(value, (int, float)) else None
        for value in (values.get(name) for name in ("joules", "low", "high"))
    )
    return joules, low, high


def _joules(millijoules: int | None) -> str:
    return "unknown" if millijoules is None else f"{millijoules / 1000:g}"
