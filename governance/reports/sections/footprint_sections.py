"""Footprint sections: factors and cost of the last checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from governance.energy.checkpoint_cost import BY_TOKENS
from governance.reports.facts.citations import cite
from governance.reports.html.markup import UNKNOWN, Html, compact, decimal, energy, join, number, share, table, tag

NONE = "–"
_VIEWS = {
    "marginal": ("this checkpoint", "since the previous checkpoint"),
    "training": ("this training", "up to this checkpoint"),
    "cumulative": ("with ancestors", f"ancestors, and data work {BY_TOKENS}"),
    "cumulative_whole": ("with ancestors, all data", "ancestors, and all data work"),
    "fully_loaded": ("fully loaded", "every attempt under this root, wasted work included"),
}


def footprint_section(found: Mapping[str, Any]) -> Html:
    """Footprint figures with low and high scenario."""
    footprint = found["energy"]["footprint"]
    rows = []
    for figure in footprint["figures"].values():
        if figure["value"] is None:
            continue
        write = grams if figure["unit"].startswith("g CO2e") else _in_unit(figure["unit"])
        low, high = (NONE if figure[name] is None else write(figure[name]) for name in ("low", "high"))
        needs = ", ".join(need.replace("energy.factors.", "") for need in figure["needs"])
        rows.append(
            [
                figure["name"],
                _amount(figure["value"], figure["at_least"], write),
                low,
                high,
                (", ".join(figure["factors"]) or "measured") + (f"; not set: {needs}" if needs else ""),
            ]
        )
    cited = cite(found, "/energy/footprint")
    return join([
        table("Footprint of the whole run", ["figure", "central", "low", "high", "factors"], rows,
              numeric=(1, 2, 3), cited=cited),
        tag("p", tag("b", "Basis of CO2e"), f" {footprint['basis']}", class_="note")
        if footprint.get("basis")
        else None,
    ])  # fmt: skip


def factors_table(found: Mapping[str, Any]) -> Html:
    """Factors with source and year, omissions, and the boundary."""
    footprint = found["energy"]["footprint"]
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
                cited=cite(found, "/energy/footprint"),
                shown=20,
            ),
            tag("p", lack, class_="note") if unset else None,
            tag("p", note, class_="note"),
        ]
    )


def views_section(found: Mapping[str, Any]) -> Html | None:
    """Cost of the last checkpoint, per token, document and nat."""
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
    cited = cite(found, "/energy/views")
    gaps = "Not in these figures, as there is no record: " + ", ".join(views["missing"])
    return join([
        table(title, head, rows, numeric=(1, 2, 3, 4, 5), cited=cited),
        tag("p", " ".join(prices), class_="note"),
        tag("p", gaps, class_="note") if views["missing"] else None,
        table("Share of each artifact by tokens used", ["artifact", "kind", "share", "energy", "from"], parts,
              numeric=(2, 3), cited=cited)
        if parts
        else None,
    ])  # fmt: skip


def grams(value: float | None) -> str:
    """Grams, kilograms or tonnes."""
    if value is None:
        return UNKNOWN
    for limit, unit in ((1e6, "t"), (1e3, "kg")):
        if abs(value) >= limit:
            return f"{value / limit:,.3g} {unit}"
    return f"{value:.3g} g"


def _in_unit(unit: str) -> Callable[[float | None], str]:
    return lambda value: UNKNOWN if value is None else f"{decimal(value)} {unit}"


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
