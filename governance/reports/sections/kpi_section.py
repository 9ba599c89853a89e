"""Section "Did it pay": sentence, figure and picture; the test folded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from governance.reports.facts.citations import cite
from governance.reports.html.markup import UNKNOWN, Child, Html, chance, decimal, fold, foreign, join, share, table, tag
from governance.reports.html.svg_figures import interval_about

_BADGES = {"paid": ("Yes", "good"), "lost": ("No", "bad"), "open": ("Not shown", "warn"),
           "undecided": ("Not decided", "warn")}  # fmt: skip
_FINDINGS = {
    "reached": ("improved by what matters", "good"),
    "improved": ("improved, perhaps too little", "good"),
    "small": ("improved too little", "warn"),
    "none": ("no improvement that matters", "warn"),
    "open": ("nothing shown", "warn"),
    "worse": ("got worse", "bad"),
}


def paid(facts: Mapping[str, Any]) -> Html:
    """Answer, net value and picture of a planned KPI; or its plan."""
    kpi = facts["kpi"]
    citation = cite(facts, "/kpi")
    if kpi["test"] is None:
        return tag(
            "p", foreign(plan_words(kpi["plan"]["stats"], kpi["plan"]["config"])), " Not measured yet.", citation
        )
    test = kpi["test"]
    word, style = _BADGES[test["decision"]]
    sentence = tag("p", tag("strong", foreign(_sentence(test))), citation)
    head = tag("div", tag("span", word, class_=f"badge {style}"), sentence, class_=f"verdict {style}")
    money = test["money"]
    if money is None:
        return join([head, _kpi_picture(test)])
    units = f"{money['served_units']:,} {test['unit']}s served"
    note = tag("small", f"{share(1 - test['alpha'])} interval {_money_range(money)}; {units}")
    net: list[Child] = [UNKNOWN, note]
    if money["net"] is not None:
        net = [_amount(money["net"]), tag("span", f" {money['currency']}"), note]
    figure = tag("dl", tag("div", tag("dt", "Net value", citation), tag("dd", net)), class_="tiles")
    return join([head, figure, None if None in (money["net"], money["net_low"]) else _money_picture(money)])


def paid_folded(facts: Mapping[str, Any]) -> Iterator[Html]:
    """KPIs, value and cost, and the validity of the test."""
    kpi = facts["kpi"]
    if kpi is None or kpi["test"] is None:
        return
    test, citation = kpi["test"], cite(facts, "/kpi")
    rows = [
        [foreign(row["name"]), *_values(row), _interval(row),
         _change(row, row["smallest_effect"], signed=False), chance(row["holm_p"]),
         tag("span", _FINDINGS[row["finding"]][0], class_=f"pill {_FINDINGS[row['finding']][1]}")]
        for row in test["kpis"]
    ]  # fmt: skip
    interval = f"{share(test['confidence'])} interval"
    head = ["KPI", "without", "with", "change", interval, "smallest that matters", "p", "finding"]
    several = " The p values are corrected for their number (Holm), and the intervals hold together."
    note = f"Compared: {_arms(test)}.{several if len(rows) > 1 else ''}"
    shown = [
        tag("p", foreign(note), class_="note"),
        table("KPIs", head, rows, numeric=(1, 2, 3, 4, 5, 6), citation=citation),
    ]
    yield fold("KPIs: values, change, chance", *([] if test["money"] is None else [_kpi_picture(test)]), *shown)
    if test["money"] is not None:
        table_ = table(
            "Value and cost", ["part", "amount", "basis"], _money_rows(test), numeric=(1,), citation=citation
        )
        yield fold("Value and cost", table_)
    yield fold("Validity of the test", table("Validity", ["check", "result"], _checks(test), citation=citation))


def tile(facts: Mapping[str, Any]) -> Html | None:
    """Tile of page one; None where nothing was tested."""
    test = facts["kpi"] and facts["kpi"]["test"]
    if not test:
        return None
    money = test["money"]
    small = f"net value {_money_range(money)}" if money else _moved(test["kpis"][0])
    note = test["faults"][0] if test["faults"] else small
    head = tag("dt", tag("a", "Did it pay", href="#paid"), cite(facts, "/kpi"))
    return tag("div", head, tag("dd", _BADGES[test["decision"]][0], tag("small", foreign(note))))


def answer(test: Mapping[str, Any]) -> str:
    """Answer in a sentence: "Did it pay? Yes. ..."."""
    return f"Did it pay? {_BADGES[test['decision']][0]}. {_sentence(test)}"


def plan_words(stats: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Plan in a sentence."""
    experiment, columns = config["experiment"], config["columns"]
    word = (
        "clusters" if columns["cluster"] else "pairs" if experiment["design"] == "paired" else f"{experiment['unit']}s"
    )
    days = f", about {stats['days']:,} days" if stats["days"] else ""
    arms = "" if experiment["design"] == "paired" else f" ({stats['treatment_groups']:,} with the model)"
    return (
        f"{experiment['name']}: {stats['groups']:,} {word}{arms} decide{days}, with power {experiment['power']:g} at "
        f"alpha {experiment['alpha']:g}."
    )


def detectable_words(row: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Detectable effects of a KPI after some days."""
    kpi = next(kpi for kpi in config["kpi"] if kpi["name"] == row["name"])
    scaled = {**kpi, "lower": 0, "upper": row["detectable"] or kpi["smallest_effect"]}
    parts = [f"{_change(scaled, one['detectable'], signed=False)} in {one['days']} days"
             for one in row["by_days"] if one["detectable"] is not None]  # fmt: skip
    whole = f"detects a change of {_change(scaled, row['detectable'], signed=False)}"
    return f"{whole}; of {', '.join(parts)}" if parts else whole


def kpi_line(row: Mapping[str, Any], confidence: float) -> str:
    """A KPI's result in a line."""
    before, after, change = _values(row)
    interval = f"{share(confidence)} interval {_interval(row)}, p {chance(row['holm_p'])}"
    return (
        f"{row['name']}: {before} without, {after} with the model; change {change}, {interval}; "
        f"smallest that matters {_change(row, row['smallest_effect'], signed=False)}: {_FINDINGS[row['finding']][0]}"
    )


def _sentence(test: Mapping[str, Any]) -> str:
    money, first = test["money"], test["kpis"][0]
    if test["decision"] == "undecided":
        return f"This test decides nothing: {'; '.join(test['faults'])}."
    others = test.get("other_plans", ())
    worse = [row["name"] for row in test["kpis"] if row["finding"] == "worse"]
    but = f" But {' and '.join(worse)} got worse." if worse and test["decision"] != "lost" else ""
    if others:
        but += f" {len(others) + 1} signed plans could decide this, so each has its part of the false alarms."
    if money is None:
        return f"{_moved(first)}: {_FINDINGS[first['finding']][0]}.{but}"
    if money["net_low"] is None:
        but += " The energy of the model has no known upper bound, so the net value has no lower one."
    elif money["energy"] is None and money["energy_high"] is None:  # a test of an earlier version
        but += " The energy of the model is unknown, and not counted."
    units = f"Over {money['served_units']:,} {test['unit']}s the model"
    if test["decision"] == "open":
        why = "its net value is" if money["net_low"] is None else "the interval of its net value is"
        return f"{units} may gain or lose: {why} {_money_range(money)}.{but}"
    nearest = money["net_low" if test["decision"] == "paid" else "net_high"]  # the end next to 0
    surely = f"at least {_amount(abs(nearest))}" if money["net"] is None else _amount(abs(money["net"]))
    amount = f"{surely} {money['currency']}"
    word = "brings {} more than it costs" if test["decision"] == "paid" else "costs {} more than it brings"
    return f"{units} {word.format(amount)}. {_moved(first)}.{but}"


def _moved(row: Mapping[str, Any]) -> str:
    before, after, change = _values(row)
    return f"{row['name'][:1].upper()}{row['name'][1:]} went from {before} to {after} ({change})"


def _values(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Values without and with the model, and the change."""
    if row["kind"] == "share":
        digits = _digits(row, 100)
        before, after = (f"{100 * row[arm]:.{digits}f} %" for arm in ("control", "treatment"))
    else:
        before, after = (f"{row[arm]:,.{_digits(row)}f}" for arm in ("control", "treatment"))
    return before, after, _change(row, row["effect"])


def _change(row: Mapping[str, Any], value: float | None, signed: bool = True) -> str:
    if value is None:
        return UNKNOWN
    scale, unit = (100, " points") if row["kind"] == "share" else (1, "")
    return f"{scale * value:{'+' if signed else ''},.{_digits(row, scale)}f}{unit}"


def _interval(row: Mapping[str, Any]) -> str:
    return f"{_change(row, row['lower']).removesuffix(' points')} to {_change(row, row['upper'])}"


def _digits(row: Mapping[str, Any], scale: float = 1) -> int:
    """Decimals that give the half width of the interval two digits."""
    half = scale * min((row["upper"] - row["lower"]) / 2, row["smallest_effect"])
    return min(max(0, 1 - math.floor(math.log10(half))), 9) if half > 0 else 2


def _amount(value: float) -> str:
    return decimal(float(f"{value:.3g}"))


def _money_range(money: Mapping[str, Any]) -> str:
    if money["net_low"] is None:
        return f"at most {_amount(money['net_high'])} {money['currency']}"
    return f"{_amount(money['net_low'])} to {_amount(money['net_high'])} {money['currency']}"


def _arms(test: Mapping[str, Any]) -> str:
    parts = [f"{arm['groups']:,} {test['group_words']} in {arm['name']}" for arm in test["arms"]]
    return f"{test['groups']:,} pairs" if test["group_words"] == "pairs" else " and ".join(parts)


def _money_picture(money: Mapping[str, Any]) -> Html:
    ends = (money["net_low"], money["net"], money["net_high"])
    low, high = min(0.0, ends[0]), max(0.0, ends[2])
    space = 0.08 * (high - low)
    scale = (low - space, high + space)
    label = f"Net value {_amount(ends[1])}, interval {_money_range(money)}"
    apart = [(ends[0], _amount(ends[0])), (ends[2], _amount(ends[2]))]
    if all(abs(end) > 0.15 * (high - low) for end, _ in apart):
        apart.append((0.0, "0"))
    drawn = interval_about(ends, scale, 0.0, label, hit=ends[2] < 0)
    title = [
        tag("b", "Net value with its interval"),
        " ",
        tag("span", f"{money['currency']}; the mark is 0", class_="unit"),
    ]
    return tag("figure", tag("figcaption", title), drawn, _marks(apart, scale), class_="chart")


def _marks(places: Sequence[tuple[float, str]], scale: tuple[float, float]) -> Html:
    """Labels below an interval, each at its place."""
    spans = [tag("span", text, class_="at", style=f"left:{100 * (place - scale[0]) / (scale[1] - scale[0]):.1f}%")
             for place, text in places]  # fmt: skip
    return tag("div", tag("span", Html("&nbsp;")), spans, class_="ends")


def _kpi_picture(test: Mapping[str, Any]) -> Html:
    """Changes in units of the smallest that matters, better to the right."""
    rows = []
    for row in test["kpis"]:
        sign = 1 if row["direction"] == "up" else -1
        low, value, high = sorted(sign * row[name] / row["smallest_effect"] for name in ("lower", "effect", "upper"))
        rows.append((row, (low, value, high)))
    scale = (min([-1.0, *(row[1][0] for row in rows)]), max([2.0, *(row[1][2] for row in rows)]))
    lines: list[Child] = []
    for row, ends in rows:
        label = f"{row['name']}: {_change(row, row['effect'])}, {_interval(row)}"
        drawn = interval_about(ends, scale, 0.0, label, hit=row["finding"] == "worse", goal=1.0)
        lines.append(tag("div", tag("span", foreign(row["name"])), drawn))
    axis = tag("div", tag("span"), _marks(((0.0, "no change"), (1.0, "matters")), scale), class_="axis")
    title = "Change of each KPI against the smallest that matters, better to the right"
    return tag("figure", tag("figcaption", tag("b", title)), tag("div", lines, axis, class_="dots"), class_="chart")


def _money_rows(test: Mapping[str, Any]) -> list[list[Child]]:
    money, unit = test["money"], test["unit"]
    each = f"{decimal(money['gain_per_unit'])} a {unit}, {decimal(money['gain_per_unit_low'])} to "
    kwh = (
        UNKNOWN if money["kwh"] is None else f"{decimal(money['kwh'])} kWh of corpus and training, failed attempts too"
    )
    if money["energy_high"] is None and money["energy"] is not None:
        kwh += "; no upper bound is known"
    rows: list[tuple[str, float | None, str]] = [
        ("value of the change", money["gain"], f"{each}{decimal(money['gain_per_unit_high'])}"),
        ("serving", -money["serving"], f"{money['served_units']:,} {unit}s"),
        ("energy of the model", None if money["energy"] is None else -money["energy"], kwh),
        ("other cost of the model", -money["one_off"], "as the KPI file states"),
        ("net value", money["net"], f"interval {_money_range(money)}"),
    ]
    return [[name, UNKNOWN if value is None else f"{_amount(value or 0.0)} {money['currency']}", basis]
            for name, value, basis in rows]  # fmt: skip


def _others(test: Mapping[str, Any]) -> Child:
    """Other plans that could decide, each with the decision of its test."""
    found = [
        f"{other['plan']} ({other['experiment'] or 'gone or altered'}): {other['decision'] or 'no test decided'}"
        for other in test.get("other_plans", ())
    ]
    return foreign("; ".join([*found, "the error probability is shared"])) if found else "none"


def _checks(test: Mapping[str, Any]) -> list[list[Child]]:
    ratio = test["sample_ratio_p"]
    rows: list[list[Child]] = [
        ["plan", f"signed {test['planned_at'].replace('T', ' ').replace('Z', ' UTC')}, unchanged since"],
        ["sample", f"{test['groups']:,} {test['group_words']}, of {test['planned_groups']:,} planned"],
        [
            "sizes of the arms",
            "a pair has both arms" if ratio is None else f"{_arms(test)}; p {chance(ratio)} against the plan",
        ],
        ["first outcome", test["first_day"] or "the outcomes have no days, so that they follow the plan is not shown"],
        [
            "earlier looks",
            f"{test['earlier_looks']:,}, none of which could decide" if test["earlier_looks"] else "none",
        ],
        ["other plans of this experiment or metric", _others(test)],
        ["error rates", f"false alarm {share(test['alpha'])} over all KPIs, power {share(test['power'])} each"],
    ]
    if test["few_groups"]:
        rows.append(["few groups", "an arm has fewer than ten, so the intervals rest on normally distributed means"])
    rows += [["decides nothing", foreign(fault)] for fault in test["faults"]]
    return rows
