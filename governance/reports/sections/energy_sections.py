"""Energy sections: bars by stage and phase, footprint, tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from governance.phases import UNTOLD
from governance.reports.facts.citations import cite, cite_each
from governance.reports.html.markup import UNKNOWN, Html, duration, energy, fold, foreign, join, number, table, tag
from governance.reports.html.svg_figures import Bar, bars, key
from governance.reports.sections.footprint_sections import factors_table, footprint_section, views_section
from governance.reports.sections.run_sections import facts_list

_WHOLE_NODE = "the whole node, other processes included"


def bounds(low: float | None, high: float | None) -> str:
    """Bounds as text; an unknown upper bound is stated."""
    if low is None:
        return "bounds unknown"
    return f"{energy(low)} to {energy(high)}" if high is not None else f"at least {energy(low)}, no upper bound"


def energy_section(found: Mapping[str, Any]) -> Html:
    """Energy by stage and phase, and its footprint."""
    data = found["energy"]
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
        bars("Energy by stage, all attempts", known, keys, cite_each(found, "/energy/stages", len(data["stages"])))
        if known
        else None,
        bars("Energy by phase", phases, keys, cite(found, "/energy/phases")) if phases else None,
    ]
    used = f"{energy(total['joules'])} ({bounds(total['low'], total['high'])})"
    summary = f"{used}; {'; '.join(total['methods']) or UNKNOWN}; {_ORIGINS[total['from']]}"
    return join([
        tag("p", summary, cite(found, "/energy/total"), class_="note"),
        tag("div", [one for one in figures if one is not None], class_="pair"),
        footprint_section(found),
    ])  # fmt: skip


_PHASES = {UNTOLD: "not recorded"}
_ORIGINS = {
    "ledger": "everything that ran under this root, failed attempts included, this report excluded",
    "manifests": "sum over the artifacts; there is no ledger of failed attempts",
}


def _used(whole: float | None, wasted: float | None, alone: float | None) -> list[tuple[str, float]]:
    """The parts of a bar: what survived and what was wasted."""
    total = whole if whole is not None else alone
    if not total:
        return []
    lost = wasted or 0.0
    return [("a", total - lost), ("gone", lost)]


def energy_folded(found: Mapping[str, Any]) -> Iterator[Html]:
    """Exact figures, waste, checkpoint cost, factors and unmetered time."""
    data = found["energy"]
    total = data["total"]
    pairs = [
        ("Total", exact(total["joules"])),
        ("Bounds", f"{exact(total['low'])} to {exact(total['high'])}"),
        ("Scope", "; ".join({"node": _WHOLE_NODE}.get(scope, scope) for scope in data["scopes"]) or _WHOLE_NODE),
        ("In reported artifacts", exact(total["surviving"])),
        ("Wasted", exact(total["wasted"])),
    ]
    if total["running"]:
        pairs.append(("Still running", exact(total["running"])))
    if total["unmeasured_seconds"]:
        pairs.append(("Not measured", f"{duration(total['unmeasured_seconds'])} while another run metered the node"))
    if total["before_seconds"]:
        most = energy(total["before_joules_at_most"])
        lasted = duration(total["before_seconds"])
        text = f"{lasted}, at most {most}: program start and time between stages; in no figure here"
        pairs.append(("Before meters opened", text))
    if total["unseen_seconds"]:
        lost = f"at most {duration(total['unseen_seconds'])} before kills, in no figure here"
        pairs.append(("Lost to kills", lost))
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
        facts_list(pairs, cite(found, "/energy/total")),
        table(
            "Energy by stage",
            head,
            lines,
            numeric=(1, 3, 4, 5),
            shown=20,
            cited=cite_each(found, "/energy/stages", len(lines)),
        ),
        table(
            "Energy by phase",
            ["phase", "all attempts", "of which wasted"],
            phases,
            numeric=(1, 2),
            cited=cite(found, "/energy/phases"),
        ),
        table(
            "Wasted energy by cause",
            ["cause", "energy"],
            wasted,
            numeric=(1,),
            cited=cite(found, "/energy/wasted_by_cause"),
        ),
        [tag("h4", "Not metered"), tag("ul", missing, class_="note")] if missing else None,
    )
    if data["views"] is not None:
        yield fold("Energy of the last checkpoint", views_section(found))
    yield fold("Conversion factors and omitted figures", factors_table(found))


def exact(joules: float | None) -> str:
    """Joules to the millijoule."""
    return UNKNOWN if joules is None else f"{number(joules)} J"
