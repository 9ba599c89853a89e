"""What to look at first: the run's problems, the largest first, each computed from what the report holds.

The order is that of consequences: a closed gate (nothing may be trained), critical checks that failed or could not be
judged, failures that were waived, energy that was wasted, faults of the run, differences between groups, checks that
only warn, sources that came to nothing, energy that nobody measured. What stands in one place is not weighed: a reader
judges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from governance.reports.bias_sections import standing_out
from governance.reports.markup import Html, energy, foreign, share, tag

_WASTED_SHARE = 0.05  # of the energy, from which waste is worth a look
_OPEN = ("PASS", "WAIVED")
_NAMED = 3

Finding = dict[str, str]
"""`what` in a few words, `detail` in a line, `at`: where in report.json, `section`: of the page."""


def first_look(found: Mapping[str, Any]) -> list[Finding]:
    """The findings; the first is the largest problem, and there may be none."""
    ways = (_gate, _critical, _waived, _waste, _faults, _bias, _warnings, _sources, _unmeasured)
    return [finding for way in ways for finding in way(found)]


def _finding(what: str, detail: str, at: str, section: str) -> Finding:
    return {"what": what, "detail": detail, "at": at, "section": section}


def _gate(found: Mapping[str, Any]) -> Iterator[Finding]:
    word = found["summary"]["verdict"]
    if word in _OPEN:
        return
    open_ones = [reason for reason in found["verdict"].get("reasons", []) if not reason.get("waived")]
    told = [f"{reason.get('gate')} on {reason.get('subject')} ({reason.get('owner')})" for reason in open_ones[:_NAMED]]
    if len(open_ones) > _NAMED:
        told.append(f"{len(open_ones) - _NAMED:,} more")
    yield _finding(
        f"The gate is closed: {word}", "; ".join(told) or "No verdict names a reason.", "/verdict", "verdict"
    )


def _critical(found: Mapping[str, Any]) -> Iterator[Finding]:
    return _checks(found, "critical", "critical check")


def _warnings(found: Mapping[str, Any]) -> Iterator[Finding]:
    return _checks(found, "warning", "check that only warns", "checks that only warn")


def _checks(found: Mapping[str, Any], severity: str, one: str, many: str = "") -> Iterator[Finding]:
    rows = [row for row in found["checks"] if row["status"] != "pass" and not row["waived"]]
    mine = [row for row in rows if (found["gates"][row["gate"]]["severity"] == "critical") == (severity == "critical")]
    if not mine:
        return
    gates = list(dict.fromkeys(row["gate"] for row in mine))
    counts = {status: sum(row["status"] == status for row in mine) for status in {row["status"] for row in mine}}
    how = ", ".join(f"{count:,} {status}" for status, count in sorted(counts.items(), key=lambda item: -item[1]))
    what = f"{_counted(len(gates), one, many)} did not pass"
    yield _finding(what, f"{_few(gates)}: {how}", "/checks", "checks")


def _counted(count: int, one: str, many: str = "") -> str:
    """1 source, 2 sources."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _few(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")


def _waived(found: Mapping[str, Any]) -> Iterator[Finding]:
    waivers = found["verdict"].get("waivers", [])
    if waivers:
        told = [
            f"{waiver.get('gate')} until {waiver.get('expires')}, by {waiver.get('approver')}" for waiver in waivers
        ]
        yield _finding(f"{_counted(len(waivers), 'failure')} waived", _few(told), "/verdict", "verdict")


def _waste(found: Mapping[str, Any]) -> Iterator[Finding]:
    total = found["energy"]["total"]
    if not total["wasted"] or not total["joules"] or total["wasted"] / total["joules"] < _WASTED_SHARE:
        return
    causes = {cause: value for cause, value in found["energy"]["wasted_by_cause"].items() if value}
    most = max(causes, key=lambda cause: causes[cause], default="")
    detail = (
        f"{energy(total['wasted'])} of {energy(total['joules'])}; most of it by: {most}, {energy(causes.get(most))}"
    )
    yield _finding(f"{share(total['wasted'] / total['joules'])} of the energy was wasted", detail,
                   "/energy/wasted_by_cause", "energy")  # fmt: skip


def _faults(found: Mapping[str, Any]) -> Iterator[Finding]:
    data = found["faults"]
    failed, skipped = sum(row["count"] for row in data["ended"]), sum(row["count"] for row in data["skipped"])
    again = sum(row["lost"] for row in data["attempts"])
    often = [(row, f", {row['count']:,} times" if row["count"] > 1 else "") for row in data["ended"]]
    told = [f"{row['stage']}: {row['cause']}{times}" for row, times in often]
    if data["diverged"]:
        last = data["diverged"][-1]
        detail = f"attempt {last['attempt']}, step {last['step']}: {last['reason']}"
        yield _finding("The training stopped with a verdict", detail, "/faults", "faults")
    if failed:
        more = f"; {_counted(again, 'step')} computed again" if again else ""
        yield _finding(f"{_counted(failed, 'attempt')} failed", f"{_few(told)}{more}", "/faults", "faults")
    if skipped:
        why = ", ".join(f"{row['reason']} {row['count']:,}" for row in data["skipped"])
        yield _finding(f"{_counted(skipped, 'update')} left out", why, "/faults", "faults")
    if data["stragglers"]:
        worst = max(data["stragglers"], key=lambda row: row["ratio"] or 0)
        yield _finding("A rank kept the others waiting", f"rank {worst['rank']}, {worst['ratio']:.3g} times their work",
                       "/faults", "faults")  # fmt: skip


def _bias(found: Mapping[str, Any]) -> Iterator[Finding]:
    out = standing_out(found["bias"])
    if rows := out.get("impact"):
        worst = rows[0]
        group = " · ".join(str(worst[name]) for name in ("language", "axis", "group") if worst[name])
        yield _finding(f"Documents of {_counted(len(rows), 'group')} are removed more often",
                       f"farthest: {group}, kept at {worst['value']:.3g} of the reference's rate, like with like",
                       "/bias/impact", "bias")  # fmt: skip
    rest = {suite: len(rows) for suite, rows in out.items() if suite != "impact"}
    if rest:
        told = ", ".join(f"{suite} {count:,}" for suite, count in rest.items())
        yield _finding(f"{_counted(sum(rest.values()), 'difference')} between groups", told, "/bias", "bias")


def _sources(found: Mapping[str, Any]) -> Iterator[Finding]:
    gone = [f"{row['name']} ({row['fate']})" for row in found["sources"] if row["fate"] != "kept"]
    if gone:
        yield _finding(f"{_counted(len(gone), 'source')} came to nothing", _few(gone), "/sources", "sources")


def _unmeasured(found: Mapping[str, Any]) -> Iterator[Finding]:
    total = found["energy"]["total"]
    if total["joules"] is None:
        yield _finding("The energy is unknown", "no meter could be read; it is not zero", "/energy/total", "energy")
    elif found["energy"]["estimated"]:
        yield _finding("The energy is an estimate", "; ".join(total["methods"]), "/energy/total", "energy")


def look_first(found: Mapping[str, Any], cites: list[Html]) -> Html:
    """The card at the head of the page: the largest problem in large letters."""
    name = "What to look at first"
    if not found["first"]:
        inner = tag("p", f"Nothing stands out: every check passed and {_wasted_in_words(found['energy']['total'])}.")
    else:
        first = found["first"][0]
        inner = tag(
            "p",
            tag("a", tag("strong", foreign(first["what"])), href=f"#{first['section']}"),
            tag("span", foreign(first["detail"]), cites[0], class_="why"),
            class_="top",
        )
    return tag("section", tag("h2", name), inner, class_="first", id="first", aria_label=name)


def _wasted_in_words(total: Mapping[str, Any]) -> str:
    """What was wasted where that is too little to stand out, or not known."""
    if total["wasted"] is None or (total["wasted"] and not total["joules"]):
        return "what was wasted is unknown"
    if total["wasted"]:
        return f"{share(total['wasted'] / total['joules'])} of the energy was wasted"
    return "nothing was wasted"


def look_next(found: Mapping[str, Any], cites: list[Html]) -> Html | None:
    """The other findings, in their order, for below the figures."""
    rest = [
        tag("li", tag("a", foreign(row["what"]), href=f"#{row['section']}"), ": ", foreign(row["detail"]), cited)
        for row, cited in zip(found["first"][1:], cites[1:], strict=True)
    ]
    name = "What to look at next"
    return tag("section", tag("h2", name), tag("ol", rest), class_="next", id="next", aria_label=name) if rest else None
