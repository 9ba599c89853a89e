"""Views of energy and the footprint as the report tells them, and its two tables on them.

Every figure has an id below `energy.views.rows`, `energy.views.rates` and `energy.footprint.figures` of report.json.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from governance.energy.ancestry import RECORD, behind, corpus_of, read_trainings, recorded
from governance.energy.attribution import Piece, Sum, add
from governance.energy.factors import Factor, Factors
from governance.energy.footprint import (
    JOULES_PER_KWH,
    Band,
    Grid,
    Usage,
    carbon,
    factors_used,
    footprint,
    intensity_of,
    node_seconds,
)
from governance.energy.ledger import Interval
from governance.energy.views import BY_TOKENS, WHOLE, Rate, Training, cumulative, data_work, rate, surviving, up_to
from governance.files import read_lines
from governance.manifest import Manifest
from governance.reports.markup import UNKNOWN, Html, compact, energy, join, number, share, table, tag
from governance.reports.origins import cite

_VIEWS = {
    "marginal": ("this checkpoint", "since the checkpoint before"),
    "training": ("this training", "up to this checkpoint"),
    "cumulative": ("with ancestors", f"their work, and data work {BY_TOKENS}"),
    "cumulative_whole": ("with ancestors, data whole", "their work, and all of the data work"),
    "fully_loaded": ("fully loaded", "every attempt under this root, wasted work too"),
}
NONE = "–"
_UNPRICED = Rate(None, None, None)


@dataclass(frozen=True)
class Ancestry:
    """What the root's trainings were made from."""

    trainings: Mapping[str, Training]
    recorded: Mapping[str, Sum]
    corpus: Training | None
    """What the tokens are and what is behind them; None without token shards."""


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
    """Measured work as the footprint takes it; `measured` has joules with low and high."""
    band = Band(measured["low"], measured["joules"], measured["high"])
    return Usage(band, node_seconds(intervals) if intervals else None, intensity_of(intervals, factors), tokens)


def footprint_facts(root: Usage, training: Usage | None, factors: Factors, whole_nodes: bool) -> dict[str, Any]:
    """The figures, and the factors that each was computed with."""
    figures = footprint(root, training, factors, whole_nodes)
    return {
        "boundary": "every attempt under this root, wasted work too; of what the meters cover",
        "boundary_of_sci": "every attempt of this training, wasted work too; no data work, no other training",
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
    """Grid and PUE behind the figures of CO2e, in words; a default's own source says that it is an average."""
    told = []
    if factors.by_hour is not None and "by_hour" in grid.used:
        told.append(f"grid by the hour: {factors.by_hour.source}, {factors.by_hour.year}")
    if factors.grid is not None and "grid" in grid.used:
        place = f" of {factors.country}" if factors.country else ""
        told.append(_told(f"grid{place}", factors.grid, "grid" in factors.defaults))
    if factors.pue is not None:
        told.append(_told(f"PUE {factors.pue.value:g}", factors.pue, "pue" in factors.defaults))
    return "; ".join([*told, *(["no PUE is set: of the nodes alone"] if factors.pue is None else [])])


def _told(name: str, factor: Factor, default: bool) -> str:
    return f"{name}: {factor.source}" if default else f"{name}: {factor.source}, {factor.year}"


def priced(
    low: float | None, joules: float | None, high: float | None, footing: tuple[Grid, Factors]
) -> dict[str, Any]:
    """Joules as kWh, and their location-based CO2e in grams, with bounds."""
    band = Band(low, joules, high)
    figure = carbon(band, *footing)
    kwh = {name: None if value is None else value / JOULES_PER_KWH for name, value in band._asdict().items()}
    return {"kwh": kwh, "carbon": {**figure.band._asdict(), "at_least": figure.at_least}}


def view_facts(
    pieces: Sequence[Piece],
    manifests: Sequence[Manifest],
    root: Path,
    ancestry: Ancestry,
    footing: tuple[Grid, Factors],
) -> dict[str, Any] | None:
    """The last checkpoint's energy in every view; prices of a token, a document and a nat. None without a ledger."""
    if not pieces:
        return None
    survived, rows, line = surviving(pieces), {}, None
    train = next((manifest for manifest in manifests if manifest.stage == "train"), None)
    own = [] if train is None else survived.get(train.folder, [])
    step = max((piece.checkpoint for piece in own if piece.checkpoint is not None), default=None)
    if train is not None and step is not None:
        used, not_own = ancestry.trainings[train.folder].used, ancestry.trainings[train.folder].before
        before = max((p.checkpoint for p in own if p.checkpoint is not None and p.checkpoint < step), default=0)
        line = cumulative(survived, ancestry.trainings, train.folder, step, BY_TOKENS, ancestry.recorded)
        whole = cumulative(survived, ancestry.trainings, train.folder, step, WHOLE, ancestry.recorded)
        tokens = used.get(step)
        since = None if tokens is None or (before and before not in used) else tokens - used.get(before, not_own)
        rows = {
            "marginal": (add(piece for piece in own if piece.checkpoint == step), since),
            "training": (add(up_to(own, step)), None if tokens is None else tokens - not_own),
            "cumulative": (line.sum, tokens),
            "cumulative_whole": (whole.sum, tokens),
        }
    last_tokens = None if train is None else train.stats.get("tokens")
    rows["fully_loaded"] = (add(pieces), last_tokens)
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
                "joules": _joules(part.sum.measured),
                "from": "ledger" if part.artifact in survived else "manifest",
            }
            for part in (line.parts if line is not None else ())
        ],
        "missing": list(line.missing) if line is not None else [],
        "rates": _rates(survived, manifests, root, ancestry, rows["training"][0] if "training" in rows else None),
    }


def _row(told: Sum, tokens: int | None, footing: tuple[Grid, Factors]) -> dict[str, Any]:
    known = told.measured is not None
    band = Band(*(_joules(value) if known else None for value in (told.low, told.measured, told.high)))
    return {
        "joules": band.value,
        "low": band.low,
        "high": band.high,
        "at_least": known and told.high is None,
        "surviving": _joules(told.surviving),
        "wasted": _joules(told.wasted),
        "running": _joules(told.unknown),
        "tokens": tokens,
        "per_token": asdict(rate(told, tokens)),
        **priced(*band, footing),
    }


def _rates(
    survived: Mapping[str, Sequence[Piece]],
    manifests: Sequence[Manifest],
    root: Path,
    ancestry: Ancestry,
    training: Sum | None,
) -> dict[str, Any]:
    """Joules of data work for a document that was kept, and of training for a nat that its loss fell."""
    documents = next((m.stats.get("documents_kept") for m in manifests if m.stage in ("encode", "pack")), None)
    corpus = ancestry.corpus
    price = rate(data_work(survived, corpus, ancestry.recorded).sum, documents) if corpus is not None else _UNPRICED
    nats = _nats_fallen(manifests, root)
    of_loss = _UNPRICED if training is None else rate(training, nats)
    return {
        "documents": documents,
        "per_document": asdict(price),
        "nats": nats,
        "per_nat": asdict(of_loss),
    }


def _nats_fallen(manifests: Sequence[Manifest], root: Path) -> float | None:
    """First loss less the last, in nats per token; None where either is not known."""
    train = next((manifest for manifest in manifests if manifest.stage == "train"), None)
    final = None if train is None else train.stats.get("final_loss")
    if train is None or not isinstance(final, (int, float)) or not math.isfinite(final):
        return None
    lines = [line for line in read_lines(root / train.folder / RECORD) if isinstance(line, dict)]
    losses = {line["step"]: line.get("loss") for line in lines if line.get("event") == "step" and "step" in line}
    first = losses[min(losses)] if losses else None
    return first - final if isinstance(first, (int, float)) and math.isfinite(first) else None


def _joules(millijoules: int | None) -> float | None:
    return None if millijoules is None else millijoules / 1000


def views_section(found: Mapping[str, Any]) -> Html | None:
    """The last checkpoint in every view, its ancestors, and prices of a token, a document and a nat."""
    views = found["energy"]["views"]
    if views is None:
        return None
    rows = [
        [
            _VIEWS[name][0],
            _amount(row["joules"], row["at_least"], energy),
            _between(row["low"], row["high"], energy),
            energy(row["wasted"]),
            UNKNOWN if row["per_token"]["joules"] is None else f"{compact(row['per_token']['joules'])} J",
            _amount(row["carbon"]["value"], row["at_least"] or row["carbon"]["at_least"], grams),
            _VIEWS[name][1],
        ]
        for name, row in views["rows"].items()
    ]
    head = ["view", "energy", "from, to", "of that wasted", "a token", "CO2e, location-based", "what is in it"]
    title = "What it cost" if views["step"] is None else f"What the checkpoint of step {number(views['step'])} cost"
    parts = [
        [tag("code", part["artifact"]), part["kind"], share(part["share"]), energy(part["joules"]), part["from"]]
        for part in views["parts"]
    ]
    rates = views["rates"]
    prices = [
        f"Data work for each of {number(rates['documents'])} documents kept: {_price(rates['per_document'])}.",
        f"Training for each nat that its loss fell ({compact(rates['nats'])} nats): {_price(rates['per_nat'])}.",
    ]
    cited = cite(found, "/energy/views")
    gaps = "Not in these figures, for there is no record of it: " + ", ".join(views["missing"])
    return join([
        table(title, head, rows, numeric=(1, 2, 3, 4, 5), cites=[cited] * len(rows)),
        tag("p", " ".join(prices), class_="note"),
        tag("p", gaps, class_="note") if views["missing"] else None,
        table("What is in it, by tokens used", ["artifact", "kind", "share", "energy", "from"], parts, numeric=(2, 3),
              cites=[cited] * len(parts))
        if parts
        else None,
    ])  # fmt: skip


def footprint_section(found: Mapping[str, Any]) -> Html:
    """Each figure in three scenarios, with the sources and years of its factors, or what to set."""
    told = found["energy"]["footprint"]
    rows = []
    known = [figure for figure in told["figures"].values() if figure["value"] is not None]
    for figure in known:
        write = grams if figure["unit"].startswith("g CO2e") else _in_unit(figure["unit"])
        low, high = (NONE if figure[name] is None else write(figure[name]) for name in ("low", "high"))
        needs = ", ".join(need.replace("energy.factors.", "") for need in figure["needs"])
        rows.append([
            figure["name"], _amount(figure["value"], figure["at_least"], write), low, high,
            [", ".join(figure["factors"]), tag("b", f" not set: {needs}") if needs else None],
        ])  # fmt: skip
    factors = [
        [
            tag("code", name),
            UNKNOWN if factor["value"] is None else f"{compact(factor['value'])} {factor['unit']}",
            _between(factor["low"], factor["high"], compact) if factor["low"] is not None else NONE,
            str(factor["year"]),
            factor["source"],
        ]
        for name, factor in told["factors"].items()
    ]
    unset = [figure for figure in told["figures"].values() if figure["value"] is None]
    lacking = "; ".join(f"{figure['name']} ({', '.join(figure['needs'])})" for figure in unset)
    place = f" Country: {told['country']}." if told["country"] else ""
    note = (
        f"CO2e rests on {told['basis']}. Boundary: {told['boundary']}. Of SCI: {told['boundary_of_sci']}. Low and high"
        f" multiply the meter's bounds and those of each factor: scenarios, no confidence interval. Location-based,"
        f" market-based: GHG Protocol, Scope 2 Guidance (2015). What is not set is unknown, not zero; it is set in"
        f" [energy.factors] of the configuration.{place}"
    )
    cited = cite(found, "/energy/footprint")
    head = ["factor", "value", "from, to", "year", "source"]
    return join([
        table("Footprint", ["figure", "central", "low", "high", "reckoned with"], rows, numeric=(1, 2, 3),
              cites=[cited] * len(rows)),
        table("Factors of the footprint", head, factors, numeric=(1, 2), cites=[cited] * len(factors))
        if factors
        else None,
        tag("p", f"Not computed, for want of a factor: {lacking}.", class_="note") if unset else None,
        tag("p", note, class_="note"),
    ])  # fmt: skip


def _in_unit(unit: str) -> Callable[[float | None], str]:
    return lambda value: UNKNOWN if value is None else f"{compact(value)} {unit}"


def grams(value: float | None) -> str:
    """Grams, kilograms or tonnes."""
    if value is None:
        return UNKNOWN
    for limit, unit in ((1e6, "t"), (1e3, "kg")):
        if abs(value) >= limit:
            return f"{value / limit:,.3g} {unit}"
    return f"{value:.3g} g"


def _amount(value: float | None, at_least: bool, write: Callable[[float | None], str]) -> str:
    if value is None:
        return UNKNOWN
    return f"at least {write(value)}" if at_least else write(value)


def _between(low: float | None, high: float | None, write: Callable[[float | None], str]) -> str:
    if low is None:
        return UNKNOWN
    return f"{write(low)} to {write(high)}" if high is not None else f"at least {write(low)}"


def _price(price: Mapping[str, float | None]) -> str:
    if price["joules"] is None:
        return UNKNOWN
    return f"{compact(price['joules'])} J ({_between(price['low'], price['high'], compact)})"
