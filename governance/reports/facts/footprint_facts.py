"""Views of energy and the footprint as values.

Every figure has an id below `energy.views.rows`, `energy.views.rates` and `energy.footprint.figures` of report.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from governance.energy.ancestry import RECORD, behind, corpus_of, read_trainings, recorded
from governance.energy.attribution import EnergyPiece, Sum, add
from governance.energy.band import Band
from governance.energy.checkpoint_cost import (
    BY_TOKENS,
    WHOLE,
    Cumulative,
    Rate,
    Training,
    cumulative_by_step,
    data_work,
    rate,
    surviving,
    up_to,
)
from governance.energy.factors import Factor, Factors
from governance.energy.footprint import (
    JOULES_PER_KWH,
    Grid,
    Usage,
    carbon,
    factors_used,
    footprint,
    intensity_of,
    node_seconds,
)
from governance.energy.ledger import Interval, joules_of
from governance.files import read_lines
from governance.manifest import Manifest

_UNPRICED = Rate(None, None, None)


@dataclass(frozen=True)
class Ancestry:
    """Ancestors of the root's trainings."""

    trainings: Mapping[str, Training]
    recorded: Mapping[str, Sum]
    corpus: Training | None
    """The tokens with their ancestors; None without token shards."""


def read_ancestry(manifests: Sequence[Manifest], root: Path) -> Ancestry:
    """Read the manifests behind these, and the trainings' records, below `root`."""
    trainings, known = read_trainings(manifests, root)
    corpus = corpus_of(manifests)
    return Ancestry(
        trainings, recorded(known.values()), None if corpus is None else behind(corpus, known.values(), root)
    )


def usage_of(
    measured: Mapping[str, Any], intervals: Sequence[Interval], factors: Factors, tokens: int | None = None
) -> Usage:
    """Measured work as input of the footprint."""
    band = Band(measured["low"], measured["joules"], measured["high"])
    return Usage(band, node_seconds(intervals) if intervals else None, intensity_of(intervals, factors), tokens)


def footprint_facts(root: Usage, training: Usage | None, factors: Factors, whole_nodes: bool) -> dict[str, Any]:
    """The figures, and the factors that each was computed with."""
    figures = footprint(root, training, factors, whole_nodes)
    return {
        "boundary": "every attempt under this root, wasted work included, as far as meters covered it",
        "boundary_of_sci": "every attempt of this training, wasted work included, without data work and other training",
        "country": factors.country,
        "basis": basis(factors, root.grid),
        "defaults": list(factors.defaults),
        "node_seconds": root.seconds,
        "figures": {
            name: {
                "name": figure.name,
                "unit": figure.unit,
                **figure.band._asdict(),
                "at_least": figure.at_least,
                "factors": list(figure.factors),
                "needs": list(figure.needs),
            }
            for name, figure in figures.items()
        },
        "factors": factors_used(factors, root.grid),
    }


def basis(factors: Factors, grid: Grid) -> str:
    """Grid intensity and PUE behind the CO2e figures."""
    parts = []
    if factors.by_hour is not None and "by_hour" in grid.used:
        parts.append(f"grid by the hour: {factors.by_hour.source}, {factors.by_hour.year}")
    if factors.grid is not None and "grid" in grid.used:
        place = f" of {factors.country}" if factors.country else ""
        parts.append(_factor_text(f"grid{place}", factors.grid, "grid" in factors.defaults))
    if factors.pue is not None:
        parts.append(_factor_text(f"PUE {factors.pue.value:g}", factors.pue, "pue" in factors.defaults))
    return "; ".join([*parts, *(["no PUE is set: nodes only"] if factors.pue is None else [])])


def _factor_text(name: str, factor: Factor, default: bool) -> str:
    return f"{name}: {factor.source}" if default else f"{name}: {factor.source}, {factor.year}"


def priced(
    low: float | None, joules: float | None, high: float | None, footing: tuple[Grid, Factors]
) -> dict[str, Any]:
    """Joules as kWh, and their location-based CO2e in grams, with bounds."""
    band = Band(low, joules, high)
    figure = carbon(band, *footing)
    kwh = band.each(JOULES_PER_KWH, "/")._asdict()
    return {"kwh": kwh, "carbon": {**figure.band._asdict(), "at_least": figure.at_least}}


def priced_row(row: Mapping[str, Any], footing: tuple[Grid, Factors]) -> dict[str, Any]:
    """`priced` of a row with joules and their bounds."""
    return priced(row["low"], row["joules"], row["high"], footing)


def view_facts(
    pieces: Sequence[EnergyPiece],
    manifests: Sequence[Manifest],
    root: Path,
    ancestry: Ancestry,
    footing: tuple[Grid, Factors],
) -> dict[str, Any] | None:
    """The last checkpoint's energy in every view.

    It comes with its cost per token, document and nat. The result is None without a ledger.
    """
    if not pieces:
        return None
    survived = surviving(pieces)
    train = next((manifest for manifest in manifests if manifest.stage == "train"), None)
    own = [] if train is None else survived.get(train.folder, [])
    step = max((piece.checkpoint for piece in own if piece.checkpoint is not None), default=None)
    rows: dict[str, tuple[Sum, int | None]] = {}
    line = None
    if train is not None and step is not None:
        rows, line = _of_checkpoint(train.folder, step, survived, ancestry)
    rows["fully_loaded"] = (add(pieces), None if train is None else train.stats.get("tokens"))
    return {
        "artifact": None if train is None else train.folder,
        "step": step,
        "method": BY_TOKENS,
        "rows": {name: _row(*row, footing) for name, row in rows.items()},
        "parts": [
            {
                "artifact": part.artifact,
                "kind": part.kind,
                "step": part.step,
                "share": float(part.share),
                "joules": joules_of(part.sum.measured),
                "from": "ledger" if part.artifact in survived else "manifest",
            }
            for part in (line.parts if line is not None else ())
        ],
        "missing": list(line.missing) if line is not None else [],
        "rates": _rates(survived, manifests, root, ancestry, rows["training"][0] if "training" in rows else None),
    }


def _of_checkpoint(
    folder: str, step: int, survived: Mapping[str, Sequence[EnergyPiece]], ancestry: Ancestry
) -> tuple[dict[str, tuple[Sum, int | None]], Cumulative]:
    """One checkpoint's energy and tokens in four views, and its ancestry.

    "marginal" is from the checkpoint before it, "training" from the start of its training, "cumulative" and
    "cumulative_whole" with all ancestors, by their tokens or whole. Tokens are None where the record lacks them.
    """
    own, training = survived[folder], ancestry.trainings[folder]
    tokens = training.used.get(step)
    before = max((p.checkpoint for p in own if p.checkpoint is not None and p.checkpoint < step), default=0)
    if tokens is None or (before and before not in training.used):
        since = None
    else:
        since = tokens - training.used.get(before, training.before)
    by_tokens, whole = (
        cumulative_by_step(survived, ancestry.trainings, folder, [step], method, ancestry.recorded)[0]
        for method in (BY_TOKENS, WHOLE)
    )
    rows = {
        "marginal": (add(piece for piece in own if piece.checkpoint == step), since),
        "training": (add(up_to(own, step)), None if tokens is None else tokens - training.before),
        "cumulative": (by_tokens.sum, tokens),
        "cumulative_whole": (whole.sum, tokens),
    }
    return rows, by_tokens


def _row(total: Sum, tokens: int | None, footing: tuple[Grid, Factors]) -> dict[str, Any]:
    known = total.measured is not None
    band = Band(*(joules_of(value) if known else None for value in (total.low, total.measured, total.high)))
    return {
        "joules": band.value,
        "low": band.low,
        "high": band.high,
        "at_least": known and total.high is None,
        "surviving": joules_of(total.surviving),
        "wasted": joules_of(total.wasted),
        "running": joules_of(total.unknown),
        "tokens": tokens,
        "per_token": asdict(rate(total, tokens)),
        **priced(*band, footing),
    }


def _rates(
    survived: Mapping[str, Sequence[EnergyPiece]],
    manifests: Sequence[Manifest],
    root: Path,
    ancestry: Ancestry,
    training: Sum | None,
) -> dict[str, Any]:
    """Joules per kept document, and per nat of loss reduction."""
    documents = next((m.stats.get("documents_kept") for m in manifests if m.stage in ("encode", "pack")), None)
    corpus = ancestry.corpus
    price = rate(data_work(survived, corpus, ancestry.recorded).sum, documents) if corpus is not None else _UNPRICED
    nats = _nats_fallen(manifests, root)
    loss_rate = _UNPRICED if training is None else rate(training, nats)
    return {"documents": documents, "per_document": asdict(price), "nats": nats, "per_nat": asdict(loss_rate)}


def _nats_fallen(manifests: Sequence[Manifest], root: Path) -> float | None:
    """First loss less the last, in nats per token.

    The result is None where either is not known.
    """
    train = next((manifest for manifest in manifests if manifest.stage == "train"), None)
    final = None if train is None else train.stats.get("final_loss")
    if train is None or not isinstance(final, (int, float)) or not math.isfinite(final):
        return None
    lines = [line for line in read_lines(root / train.folder / RECORD) if isinstance(line, dict)]
    losses = {line["step"]: line.get("loss") for line in lines if line.get("event") == "step" and "step" in line}
    first = losses[min(losses)] if losses else None
    return first - final if isinstance(first, (int, float)) and math.isfinite(first) else None
