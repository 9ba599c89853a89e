"""Plans in words, and as a page with drawn layouts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from assay.planning.cluster import ClusterFigure
from assay.planning.layouts import fastest
from assay.planning.plan import Plan, StepPlan
from governance.energy.band import Band
from governance.reports.html.markup import Html, decimal, size, table, tag, with_unit
from governance.reports.html.svg_figures import Curve, chart
from governance.reports.sections.page import runs_page

_NAMES = (
    "@media (min-width:60rem){tbody th,tbody td:first-child{white-space:nowrap}}"
    "section:first-of-type tbody th{overflow-wrap:normal}"
)
"""Names of parts and figures in one line each; those of parts also on a telephone."""
_HEAD = (
    "nodes", "ZeRO", "rows per pass", "GiB per rank", "s per step", "tokens/s per rank", "MFU %", "time", "USD", "note",
)  # fmt: skip
_LABEL = 12
"""Characters of the label that begins a line."""
_STYLES = ("a", "b", "c", "d")
_TIME = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
_KWH = ((1e3, "MWh"), (1, "kWh"), (1e-3, "Wh"))
_CO2E = ((1e3, "t CO2e"), (1, "kg CO2e"), (1e-3, "g CO2e"))
_WATER = ((1e3, "m3 of water"), (1, "litres of water"))
_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"))
"""Units of a figure, from the largest, by their size in that of the plan."""


def lines(plan: Plan) -> Iterator[str]:
    """Lines of a plan."""
    step, found, checkpoint = plan.step, plan.failures, plan.checkpoint
    engine, costs = step.engine, plan.costs
    yield (
        f"layout      {step.nodes} node(s) of {plan.cluster.name}: {step.ranks} ranks, ZeRO stage {engine.zero_stage}, "
        f"{engine.micro_batch_size} row(s) per pass, tensor {engine.tensor_parallel_size}, sequence "
        f"{engine.sequence_parallel_size}"
    )
    memory = step.memory
    yield (
        f"memory      {_gib(memory.device_bytes)} of {plan.cluster.memory_gib.value:g} GiB per rank: "
        + _largest(memory.device)
    )
    if memory.host:
        yield f"host        {_gib(memory.host_bytes)} GiB per rank: {_largest(memory.host)}"
    parts = ", ".join(f"{name} {decimal(part)}" for name, part in step.parts.items() if part > 0.002 * step.seconds)
    yield f"step        {decimal(step.seconds)} s: {parts}"
    yield f"speed       {step.tokens_per_rank:,.0f} tokens/s per rank, MFU {100 * step.mfu:.1f} %"
    yield (
        f"duration    {_in_units(plan.wall, _TIME)} for {_counted_tokens(plan.tokens)} in "
        f"{plan.steps:,} steps" + f" after the {plan.begun:,} of train.continue_from" * bool(plan.begun)
    )
    every = found.interval / step.seconds
    yield (
        f"checkpoint  {size(int(checkpoint['bytes']))} each, {size(int(checkpoint['kept_bytes']))} kept; training "
        f"waits {decimal(checkpoint['stall_seconds'])} s, durable {decimal(checkpoint['write_seconds'])} s later; "
        f"every {every:,.0f} steps, and every {max(1.0, found.best / step.seconds):,.0f} would lose least"
    )
    yield (
        f"failures    {_number(found.count)} expected, one in {decimal(found.mtbf / 3600)} h; each costs "
        f"{decimal(found.restart / 60)} min and the steps since the last checkpoint; {100 * found.lost:.2f} % of the "
        "time is lost"
    )
    spare = f", {plan.spare_nodes} spare node(s) included" * bool(plan.spare_nodes)
    yield f"money       USD {_band(costs['usd'])} for {_band(costs['device_hours'])} device hours{spare}"
    yield (
        f"energy      {_in_units(costs['kwh'], _KWH)} at the nodes, {_in_units(costs['kwh_building'], _KWH)} of the "
        f"building; {_in_units(costs['kg_co2e'], _CO2E)}; {_in_units(costs['litres'], _WATER)}"
        + "; without the draw of the idle spare nodes"
        * bool(plan.spare_nodes)
    )
    without = f"; not included, as not measured: {', '.join(plan.data.unmeasured)}" if plan.data.unmeasured else ""
    disk = _in_units(plan.data.disk_bytes, _BYTES)
    yield f"data        {_band(plan.data.core_hours)} core hours, {disk} on disk{without}"
    words = plan.correction.words or "published and measured runs (docs/planning.md); correct it with --from RUN"
    yield f"calibrated  by {words}"
    if plan.unlike:
        yield f"left out    {plan.unlike}"


def summary(plan: Plan) -> str:
    """The plan in a line, for a submission."""
    return (
        f"plan: {_in_units(plan.wall, _TIME)} on {plan.step.nodes} node(s)"
        + f" and {plan.spare_nodes} spare" * bool(plan.spare_nodes)
        + f", MFU {100 * plan.step.mfu:.0f} %, USD "
        f"{_band(plan.costs['usd'])}, {_in_units(plan.costs['kwh'], _KWH)}" + f" ({plan.unlike})" * bool(plan.unlike)
    )


def layout_rows(plan: Plan, found: list[StepPlan]) -> list[tuple[str, ...]]:
    """The fastest layouts as rows of a table."""
    price = plan.cluster.price_hour.value
    rows: list[tuple[str, ...]] = []
    for one in fastest(found):
        seconds = one.seconds * plan.tokens / one.tokens
        same = one.nodes == plan.step.nodes and one.engine.zero_stage == plan.step.engine.zero_stage
        fault = "does not fit" if _lacks_memory(one) else "see below"
        note = f"refused: {fault}" if one.refusal else "tight" if one.tight else ""
        rows.append(
            (
                str(one.nodes), str(one.engine.zero_stage), str(one.engine.micro_batch_size),
                _gib(one.memory.device_bytes), decimal(one.seconds), f"{one.tokens_per_rank:,.0f}",
                f"{100 * one.mfu:.1f}", _in_units(Band(seconds, seconds, seconds), _TIME),
                _number(seconds / 3600 * one.ranks * price),
                ", ".join(filter(None, ("this stage and these nodes" if same else "", note))),
            )
        )  # fmt: skip
    return rows


def refusals(found: list[StepPlan]) -> list[str]:
    """Refused settings of the table, each reason once."""
    stages: dict[str, list[int]] = {}
    for one in fastest(found):
        if one.refusal and not _lacks_memory(one):
            stages.setdefault(one.refusal, []).append(one.engine.zero_stage)
    return [f"stage {', '.join(map(str, sorted(set(of))))} refused: {why}" for why, of in stages.items()]


def _lacks_memory(one: StepPlan) -> bool:
    return one.refusal.startswith("this model")


def as_text(rows: list[tuple[str, ...]]) -> list[str]:
    """Aligned rows under their head."""
    widths = [max(map(len, column)) for column in zip(_HEAD, *rows, strict=True)]
    *numbers, _ = widths
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, numbers, strict=False)) + f"  {row[-1]}".rstrip()
        for row in (_HEAD, *rows)
    ]


def as_page(plan: Plan, found: list[StepPlan], title: str, more: Iterable[str] = ()) -> str:
    """A page that needs no network.

    `more` are lines after those of the plan.
    """
    parts: list[Html] = [tag("p", title, class_="lead")]
    if plan.step.refusal:
        parts.append(tag("p", f"A start would be refused: {plan.step.refusal}", class_="lead"))
    predictions = [(line[:_LABEL].strip(), line[_LABEL:]) for line in (*lines(plan), *more)]
    parts.append(tag("section", table("The run", ("part", "prediction"), predictions, shown=20)))
    named = [(f"{nodes} node{'s' * (nodes != '1')}", *rest) for nodes, *rest in layout_rows(plan, found)]
    parts.append(
        tag(
            "section",
            table("Layouts: the fastest micro batch of each, without failures", _HEAD, named, range(1, 9), shown=30),
            *(tag("p", reason, class_="note") for reason in refusals(found)),
        )
    )
    parts += [tag("section", drawing) for drawing in _drawings(plan, found)]
    sources = [
        (name, _bounded(figure), figure.source)
        for name, figure in plan.cluster if isinstance(figure, ClusterFigure)
    ]  # fmt: skip
    parts.append(
        tag("section", table(f"Figures of {plan.cluster.name}", ("figure", "value", "source"), sources, (1,), shown=40))
    )
    return runs_page("Plan", parts, "A prediction: docs/planning.md; the page loads no external resources.", _NAMES)


def _drawings(plan: Plan, found: list[StepPlan]) -> Iterator[Html]:
    """Days over nodes and memory over micro batches, by stage."""
    fits = [one for one in fastest(found) if not one.refusal]
    if fits:
        curves = [
            Curve(f"ZeRO {stage}", [(one.nodes, one.seconds * plan.tokens / one.tokens / 86400) for one in fits
                                    if one.engine.zero_stage == stage], _STYLES[stage], dots=True)
            for stage in sorted({one.engine.zero_stage for one in fits})
        ]  # fmt: skip
        yield chart("Days over nodes", curves, "nodes", "days")
    here = [one for one in found if one.nodes == plan.step.nodes]
    curves = [
        Curve(f"ZeRO {stage}", [(one.engine.micro_batch_size, one.memory.device_bytes / 2**30) for one in here
                                if one.engine.zero_stage == stage], _STYLES[stage], dots=True)
        for stage in sorted({one.engine.zero_stage for one in here})
    ]  # fmt: skip
    if curves:
        yield chart("Memory over micro batches", curves, "rows per pass", "GiB per rank")


def _band(band: Band, scale: float = 1.0) -> str:
    low, value, high = ("unknown" if part is None else _number(part * scale) for part in band)
    return value if low == value == high else f"{value} ({low} to {high})"


def _counted_tokens(count: int) -> str:
    """A number of tokens: 512 tokens, 8.19 million tokens, 1,200 billion tokens."""
    return f"{count:,} tokens" if count < 10**6 else with_unit(count / 1e6, ("million tokens", "billion tokens"))


def _number(value: float) -> str:
    """Three digits, also of a run that failures hardly let advance."""
    return "endless" if value == math.inf else f"{value:.2e}" if value >= 1e12 else decimal(value)


def _in_units(figure: Band, units: Sequence[tuple[float, str]]) -> str:
    """A figure and its bounds in the largest unit that fits."""
    size_of, unit = next((row for row in units if row[0] <= (figure.value or 0)), units[-1])
    if figure.value is None:
        return f"an unknown amount of {unit.rpartition(' ')[2]}"
    return f"{_band(figure, 1 / size_of)} {unit}"


def _bounded(figure: ClusterFigure) -> str:
    """The exact figure, with its bounds where they differ."""
    low, value, high = figure.bounds
    return f"{value:g}" + f" ({low:g} to {high:g})" * (low < high)


def _gib(count: float) -> str:
    return f"{count / 2**30:,.1f}"


def _largest(parts: Mapping[str, float]) -> str:
    """Parts of the memory that are not rounded to 0.0 GiB."""
    shown = [f"{name} {_gib(count)}" for name, count in sorted(parts.items(), key=lambda part: -part[1])]
    return ", ".join(words for words in shown if not words.endswith(" 0.0")) or "each part is below 0.1"
