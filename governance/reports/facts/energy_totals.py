"""Energy totals from manifests and ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from governance.energy.attribution import (
    EnergyPiece,
    Sum,
    add,
    added_by,
    by_checkpoint,
    settle,
    unmetered,
    wasted_by_cause,
)
from governance.energy.checkpoint_cost import BY_TOKENS, cumulative_by_step, surviving
from governance.energy.factors import Factors, FactorsConfig, resolve
from governance.energy.footprint import Grid, Usage
from governance.energy.ledger import FILE_NAME, Interval, joules_of, read_ledger
from governance.manifest import Manifest
from governance.reports.facts.footprint_facts import (
    Ancestry,
    footprint_facts,
    priced,
    priced_row,
    read_ancestry,
    usage_of,
    view_facts,
)

_REPORTS = ("report", "documents")


def energy_facts(
    manifests: Sequence[Manifest],
    root: Path,
    factors: Factors | None = None,
    alive: Callable[[Mapping[str, Any]], bool] | None = None,
) -> dict[str, Any]:
    """Total energy with bounds, and its breakdowns.

    These are energy by stage, waste by cause, checkpoints, views and footprint.

    The total is the ledger's, which holds failed attempts as well; without a ledger it is the sum over the manifests.
    Writing reports and documents is not counted.

    Args:
        manifests: the reported artifacts.
        root: folder of the ledger, of the trainings' records and of the ancestors' manifests.
        factors: conversion of energy into carbon and water; None: unknown.
        alive: as `read_ledger` takes it.

    Raises:
        ManifestError: the ledger is of another schema.
    """
    intervals = _measured(root, alive)
    pieces = settle(intervals)
    measured = [piece for piece in pieces if piece.millijoules is not None]
    total = _summed(add(pieces), bool(measured)) if pieces else _recorded(manifests)
    trained = next((manifest for manifest in manifests if manifest.stage == "train"), None)
    scopes = sorted({str(_block(manifest).get("scope")) for manifest in manifests if _block(manifest).get("scope")})
    ancestry = read_ancestry(manifests, root)
    factors = factors or Factors()
    lacking = unmetered(intervals) if intervals else None
    total |= {
        "before_seconds": lacking.seconds if lacking else None,
        "before_joules_at_most": joules_of(lacking.millijoules) if lacking else None,
    }
    everything = usage_of(total, intervals, factors)
    footing = (everything.grid, factors)
    own = _training_use(trained, intervals, pieces, factors) if trained else None
    return {
        "total": {**total, **priced_row(total, footing), **_waste(total, footing)},
        "estimated": any("estimated" in method for method in total["methods"]),
        "stages": [{**row, **priced_row(row, footing)} for row in _stages(manifests, pieces)],
        "scopes": scopes,
        "phases": [_phase(phase, spent, footing) for phase, spent in added_by("phase", pieces).items()],
        "wasted_by_cause": {cause: joules_of(value) for cause, value in wasted_by_cause(pieces).items()},
        "checkpoints": _checkpoints(pieces, trained.folder, ancestry, footing) if trained else [],
        "views": view_facts(pieces, manifests, root, ancestry, footing),
        "footprint": footprint_facts(everything, own, factors, scopes == ["node"]),
        "missing": sorted({text for manifest in manifests for text in _block(manifest)["coverage"].get("missing", [])}),
    }


def _stages(manifests: Sequence[Manifest], pieces: Sequence[EnergyPiece]) -> Iterator[dict[str, Any]]:
    """Rows of the artifacts, then of stages with attempts alone."""
    attempts = added_by("stage", pieces)
    artifacts = {manifest.stage for manifest in manifests}
    for manifest in manifests:
        yield _stage(manifest, attempts.get(manifest.stage))
    for stage, spent in attempts.items():
        if stage not in artifacts:
            yield _only_attempts(stage, spent)


def _training_use(
    trained: Manifest, intervals: Sequence[Interval], pieces: Sequence[EnergyPiece], factors: Factors
) -> Usage:
    """All attempts of one training, and the tokens that they showed it.

    A root without a ledger has its manifest's.
    """
    own = [piece for piece in pieces if piece.artifact == trained.folder]
    shown = trained.stats.get("tokens")
    tokens = None if shown is None else shown - trained.stats.get("continued", {}).get("tokens", 0)
    if not own:
        block = _block(trained)
        return usage_of(block, [], factors, tokens)
    mine = [one for one in intervals if one.samples[-1].marks.get("artifact") == trained.folder]
    return usage_of(_summed(add(own), any(piece.millijoules is not None for piece in own)), mine, factors, tokens)


def _waste(total: Mapping[str, Any], footing: tuple[Grid, Factors]) -> dict[str, Any]:
    joules = total["wasted"]
    wasted = priced(joules, joules, joules, footing)
    return {"wasted_kwh": wasted["kwh"]["value"], "wasted_carbon": wasted["carbon"]}


def _phase(phase: str, spent: Sum, footing: tuple[Grid, Factors]) -> dict[str, Any]:
    row = {"phase": phase, **_bounds(spent, spent.measured is not None), "wasted": joules_of(spent.wasted)}
    return {**row, **priced_row(row, footing)}


def _bounds(spent: Sum, known: bool) -> dict[str, float | None]:
    figures = {"joules": spent.measured, "low": spent.low, "high": spent.high}
    return {name: joules_of(value) if known else None for name, value in figures.items()}


def look_up(config: FactorsConfig, folder: Path, root: Path) -> Factors:
    """The factors for the energy measured under a root.

    `folder` is the configuration's.

    Raises:
        ConfigError: a file of intensities cannot be read.
        ManifestError: the ledger is of another schema.
    """
    intervals = _measured(root) if config.by_hour is not None else []
    times = [datetime.fromisoformat(text) for one in intervals for text in (one.started, one.finished)]
    return resolve(config, folder, (min(times), max(times)) if times else None)


def _measured(root: Path, alive: Callable[[Mapping[str, Any]], bool] | None = None) -> list[Interval]:
    return [interval for interval in read_ledger(root / FILE_NAME, alive) if interval.stage not in _REPORTS]


def _block(manifest: Manifest) -> dict[str, Any]:
    """A manifest's energy block; missing fields are unknown."""
    block = manifest.run.get("energy")
    known = block if isinstance(block, dict) else {}
    empty = {"joules": None, "low": None, "high": None, "method": "unknown", "seconds": None}
    coverage = known.get("coverage")
    return {**empty, **known, "coverage": coverage if isinstance(coverage, dict) else {}}


def _summed(total: Sum, known: bool) -> dict[str, Any]:
    return {
        "from": "ledger",
        **_bounds(total, known),
        "surviving": joules_of(total.surviving),
        "wasted": joules_of(total.wasted),
        "running": joules_of(total.unknown),
        "unmeasured_seconds": total.unmeasured_seconds,
        "unseen_seconds": total.unseen_seconds,
        "methods": list(total.methods),
    }


def _recorded(manifests: Sequence[Manifest]) -> dict[str, Any]:
    blocks = [_block(manifest) for manifest in manifests]
    known = [block for block in blocks if block["joules"] is not None]

    def summed(name: str) -> float | None:
        values = [block[name] for block in known]
        return None if not values or None in values else sum(values)

    complete = len(known) == len(blocks)
    return {
        "from": "manifests",
        "joules": summed("joules"),
        "low": summed("low"),
        "high": summed("high") if complete else None,
        "surviving": None,
        "wasted": None,
        "running": None,
        "unmeasured_seconds": None,
        "unseen_seconds": None,
        "methods": sorted({str(block["method"]) for block in blocks}),
    }


def _stage(manifest: Manifest, attempts: Sum | None) -> dict[str, Any]:
    block = _block(manifest)
    return {
        "stage": manifest.stage,
        **{name: block[name] for name in ("joules", "low", "high", "method", "seconds")},
        "all_attempts": joules_of(attempts.measured) if attempts else None,
        "wasted": joules_of(attempts.wasted) if attempts else None,
    }


def _only_attempts(stage: str, attempts: Sum) -> dict[str, Any]:
    """A stage that only the ledger knows."""
    known = {"all_attempts": joules_of(attempts.measured), "wasted": joules_of(attempts.wasted)}
    empty = {"joules": None, "low": None, "high": None, "seconds": None}
    return {"stage": stage, **empty, "method": " + ".join(attempts.methods), **known}


def _checkpoints(
    pieces: Sequence[EnergyPiece], artifact: str, ancestry: Ancestry, footing: tuple[Grid, Factors]
) -> list[dict[str, Any]]:
    """Energy and carbon of each checkpoint, with ancestors."""
    own = by_checkpoint(pieces, artifact)
    steps = [row["step"] or 0 for row in own]
    lines = cumulative_by_step(surviving(pieces), ancestry.trainings, artifact, steps, BY_TOKENS, ancestry.recorded)
    return [
        {
            "step": row["step"],
            "marginal": joules_of(row["marginal_millijoules"]),
            "cumulative": joules_of(row["cumulative_millijoules"]),
            "with_ancestors": joules_of(line.sum.measured),
            "with_ancestors_high": joules_of(line.sum.high),
            **priced(joules_of(line.sum.low), joules_of(line.sum.measured), joules_of(line.sum.high), footing),
        }
        for row, line in zip(own, lines, strict=True)
    ]
