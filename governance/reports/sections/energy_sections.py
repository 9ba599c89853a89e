"""Energy sections: bars by stage and phase, footprint, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from governance.energy.checkpoint_cost import BY_TOKENS
from governance.phases import UNTOLD
from governance.reports.facts.citations import cite, cite_each
from governance.reports.html.markup import (
    UNKNOWN,
    Html,
    compact,
    decimal,
    duration,
    energy,
    fold,
    foreign,
    join,
    meters,
    number,
    share,
    table,
    tag,
    with_unit,
)
from governance.reports.html.svg_figures import Bar, bars, key
from governance.reports.sections.run_sections import facts_list

_WHOLE_NODE = "the whole node, other processes included"


def bounds(low: float | None, high: float | None) -> str:
    """Bounds as text; an unknown upper bound is stated."""
    if low is None:
        return "bounds unknown"
    return f"{energy(low)} to {energy(high)}" if high is not None else f"at least {energy(low)}, no upper bound"


def energy_section(facts: Mapping[str, Any]) -> Html:
    """Energy by stage and phase, and its footprint."""
    data = facts["energy"]
    total = data["total"]
    wasted = any(row["wasted"] for row in data["stages"])
    keys = [key("a", "in reported artifacts"), key("gone", "wasted")] if wasted else []
    stages = [
        Bar(row["stage"], _used(row["all_attempts"], row["wasted"], row["joules"]),
            energy(row["all_attempts"] if row["all_attempts"] is not None else row["joules"]))
        for row in data["stages"]
    ]  # fmt: skip
    phases = [
        Bar(_PHASES.get(row["phase"], row["phase"]), _used(row["joules"], row["wasted"], None), energy(row["joules"]))
        for row in data["phases"]
    ]
    known = [line for line in stages if line.parts]
    figures = [
        bars("Energy by stage, all attempts", known, keys, cite_each(facts, "/energy/stages", len(data["stages"])))
        if known
        else None,
        bars("Energy by phase", phases, keys, cite(facts, "/energy/phases")) if phases else None,
    ]
    between = "" if total["joules"] is None else f" ({bounds(total['low'], total['high'])})"
    used = f"{energy(total['joules'])}{between}"
    summary = f"{used}; {meters(total['methods']) or UNKNOWN}; {_ORIGINS[total['from']]}"
    return join([
        tag("p", summary, cite(facts, "/energy/total"), class_="note"),
        tag("div", [one for one in figures if one is not None], class_="pair"),
        footprint_section(facts),
    ])  # fmt: skip


_PHASES = {UNTOLD: "not recorded"}
_ORIGINS = {
    "ledger": "it covers everything that ran under this root, failed attempts included, but not this report",
    "manifests": "sum over the artifacts; there is no ledger of failed attempts",
}


def _used(whole: float | None, wasted: float | None, alone: float | None) -> list[tuple[str, float]]:
    """The parts of a bar: surviving and wasted energy."""
    total = whole if whole is not None else alone
    if not total:
        return []
    lost = wasted or 0.0
    return [("a", total - lost), ("gone", lost)]


def energy_folded(facts: Mapping[str, Any]) -> Iterator[Html]:
    """Exact figures, waste, checkpoint cost, factors and unmetered time."""
    data = facts["energy"]
    lines = [
        [row["stage"], energy(row["joules"]), bounds(row["low"], row["high"]), duration(row["seconds"]),
         energy(row["all_attempts"]), energy(row["wasted"]), row["method"]]
        for row in data["stages"]
    ]  # fmt: skip
    head = ["stage", "this artifact", "bounds", "time", "all attempts", "of which wasted", "method"]
    wasted = [[foreign(cause), exact(value)] for cause, value in data["wasted_by_cause"].items()]
    phases = [
        [_PHASES.get(row["phase"], row["phase"]), exact(row["joules"]), exact(row["wasted"])] for row in data["phases"]
    ]
    missing = [tag("li", text) for text in data["missing"]]
    yield fold(
        "Energy in joules by stage, phase and cause",
        facts_list(list(_totals(data)), cite(facts, "/energy/total")),
        table(
            "Energy by stage",
            head,
            lines,
            numeric=(1, 3, 4, 5),
            shown=20,
            citation=cite_each(facts, "/energy/stages", len(lines)),
        ),
        table(
            "Energy by phase",
            ["phase", "all attempts", "of which wasted"],
            phases,
            numeric=(1, 2),
            citation=cite(facts, "/energy/phases"),
        ),
        table(
            "Wasted energy by cause",
            ["cause", "energy"],
            wasted,
            numeric=(1,),
            citation=cite(facts, "/energy/wasted_by_cause"),
        ),
        [tag("h4", "Not metered"), tag("ul", missing, class_="note")] if missing else None,
    )
    if data["views"] is not None:
        yield fold("Energy of the last checkpoint", views_section(facts))
    yield fold("Conversion factors and omitted figures", factors_table(facts))


def _totals(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Energy in total, wasted and running, and time without a meter."""
    total = data["total"]
    yield "Total", exact(total["joules"])
    yield "Bounds", f"{exact(total['low'])} to {exact(total['high'])}"
    yield "Scope", "; ".join({"node": _WHOLE_NODE}.get(scope, scope) for scope in data["scopes"]) or _WHOLE_NODE
    yield "In reported artifacts", exact(total["surviving"])
    yield "Wasted", exact(total["wasted"])
    if total["running"]:
        yield "Still running", exact(total["running"])
    if total["unmeasured_seconds"]:
        yield "Not measured", f"{duration(total['unmeasured_seconds'])} while another run metered the node"
    if total["before_seconds"]:
        lasted, most = duration(total["before_seconds"]), energy(total["before_joules_at_most"])
        yield (
            "Before meters opened",
            f"{lasted}, at most {most}: program start and time between stages; in no figure here",
        )
    if total["unseen_seconds"]:
        yield "Lost to kills", f"at most {duration(total['unseen_seconds'])} before kills, in no figure here"


def exact(joules: float | None) -> str:
    """Joules to the millijoule."""
    return UNKNOWN if joules is None else f"{number(joules)} J"


NONE = "–"
_VIEWS = {
    "marginal": ("this checkpoint", "since the previous checkpoint"),
    "training": ("this training", "up to this checkpoint"),
    "cumulative": ("with ancestors", f"ancestors, and data work {BY_TOKENS}"),
    "cumulative_whole": ("with ancestors, all data", "ancestors, and all data work"),
    "fully_loaded": ("fully loaded", "every attempt under this root, wasted work included"),
}


def footprint_section(facts: Mapping[str, Any]) -> Html:
    """Footprint figures with low and high scenario."""
    footprint = facts["energy"]["footprint"]
    rows = []
    for figure in footprint["figures"].values():
        if figure["value"] is None:
            continue
        write = grams if figure["unit"].startswith("g CO2e") else _unit_writer(figure["unit"])
        low = NONE if figure["low"] is None else write(figure["low"])
        high = "no bound" if figure["high"] is None else write(figure["high"])
        needs = ", ".join(need.replace("energy.factors.", "") for need in figure["needs"])
        rows.append(
            [
                figure["name"],
                write(figure["value"]),
                low,
                high,
                (", ".join(figure["factors"]) or "none") + (f"; not set: {needs}" if needs else ""),
            ]
        )
    citation = cite(facts, "/energy/footprint")
    if not rows and facts["energy"]["total"]["joules"] is None:
        return tag("p", "Footprint of the whole run: unknown, as the energy is.", class_="none")
    return join([
        table("Footprint of the whole run", ["figure", "central", "low", "high", "factors"], rows,
              numeric=(1, 2, 3), citation=citation),
        tag("p", tag("b", "Basis of CO2e:"), f" {footprint['basis']}", class_="note")
        if footprint.get("basis")
        else None,
    ])  # fmt: skip


def factors_table(facts: Mapping[str, Any]) -> Html:
    """Factors with source and year, omissions, and the boundary."""
    footprint = facts["energy"]["footprint"]
    factors = [
        [
            tag("code", name),
            UNKNOWN if factor["value"] is None else f"{compact(factor['value'])} {factor['unit']}",
            _between(factor["low"], factor["high"], compact) if factor["low"] is not None else NONE,
            str(factor["year"]),
            factor["source"],
        ]
        for name, factor in footprint["factors"].items()
    ]
    unset = [figure for figure in footprint["figures"].values() if figure["value"] is None]
    lacking = ", ".join(
        dict.fromkeys(need.replace("energy.factors.", "") for figure in unset for need in figure["needs"])
    )
    lack = f"Not computed because {lacking} is not set: " + ", ".join(figure["name"] for figure in unset) + "."
    place = f" Country: {footprint['country']}." if footprint["country"] else ""
    sci = f" SCI: {footprint['boundary_of_sci']}." if footprint.get("boundary_of_sci") else ""
    note = (
        f"Boundary: {footprint['boundary']}.{sci} Low and high multiply the meter's bounds by those of each factor:"
        f" they are scenarios, not a confidence interval. Location-based, market-based: GHG Protocol, Scope 2 Guidance"
        f" (2015). A factor that is not set is unknown, not zero; set it in [energy.factors] of the"
        f" configuration.{place}"
    )
    head = ["factor", "value", "from, to", "year", "source"]
    return join(
        [
            table(
                "Factors of the footprint",
                head,
                factors,
                numeric=(1, 2),
                citation=cite(facts, "/energy/footprint"),
                shown=20,
            ),
            tag("p", lack, class_="note") if unset else None,
            tag("p", note, class_="note"),
        ]
    )


def views_section(facts: Mapping[str, Any]) -> Html | None:
    """Cost of the last checkpoint, per token, document and nat."""
    views = facts["energy"]["views"]
    if views is None:
        return None
    rows = [
        [
            _VIEWS[name][0],
            energy(row["joules"]),
            _between(row["low"], row["high"], energy),
            energy(row["wasted"]),
            UNKNOWN if row["per_token"]["joules"] is None else f"{compact(row['per_token']['joules'])} J",
            grams(row["carbon"]["value"]),
            _VIEWS[name][1],
        ]
        for name, row in views["rows"].items()
    ]
    head = ["view", "energy", "from, to", "of which wasted", "per token", "CO2e", "includes"]
    title = "Cost of the run" if views["step"] is None else f"Cost of the checkpoint at step {number(views['step'])}"
    parts = [
        [tag("code", part["artifact"]), part["kind"], share(part["share"]), energy(part["joules"]), part["from"]]
        for part in views["parts"]
    ]
    rates = views["rates"]
    prices = [
        f"Data work per document kept ({number(rates['documents'])}): {_price(rates['per_document'])}.",
        f"Training per nat of loss reduction ({compact(rates['nats'])} nats): {_price(rates['per_nat'])}.",
    ]
    citation = cite(facts, "/energy/views")
    gaps = "Not in these figures, as there is no record: " + ", ".join(views["missing"])
    return join([
        table(title, head, rows, numeric=(1, 2, 3, 4, 5), citation=citation),
        tag("p", " ".join(prices), class_="note"),
        tag("p", gaps, class_="note") if views["missing"] else None,
        table("Share of each artifact by tokens used", ["artifact", "kind", "share", "energy", "from"], parts,
              numeric=(2, 3), citation=citation)
        if parts
        else None,
    ])  # fmt: skip


def grams(value: float | None) -> str:
    """Grams, kilograms or tonnes."""
    if value is None:
        return UNKNOWN
    return with_unit(value, ("g", "kg", "t")) if abs(value) >= 1 else f"{value:.3g} g"


def _unit_writer(unit: str) -> Callable[[float | None], str]:
    return lambda value: UNKNOWN if value is None else f"{decimal(value)} {unit}"


def _between(low: float | None, high: float | None, write: Callable[[float | None], str]) -> str:
    if low is None:
        return UNKNOWN
    return f"{write(low)} to {write(high)}" if high is not None else f"{write(low)}, no upper bound"


def _price(price: Mapping[str, float | None]) -> str:
    if price["joules"] is None:
        return UNKNOWN
    return f"{compact(price['joules'])} J ({_between(price['low'], price['high'], compact)})"
