"""Page-one problems of a run, the largest first.

They are ordered by consequence: a closed gate (training is refused), critical checks that failed or could not be
judged, waived failures, wasted energy, faults of the run, significant differences between groups, non-blocking checks,
languages without word lists, sources that were removed whole, unmeasured energy, the largest cut of the funnel. There
is no other weighting: the reader judges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from governance.gate.explanation import counted
from governance.reports.facts.stage_counts import licence_words, removals
from governance.reports.html.markup import chance, energy, meters, share
from governance.reports.sections.bias_sections import significant_rows
from governance.reports.sections.group_words import bounds, detailed, headline, language_of, named, spaced, written

_WASTED_SHARE = 0.05  # share of the energy from which waste is reported
_CUT_SHARE = 0.5  # share of the documents from which the funnel's loss is reported
_OPEN = ("PASS", "WAIVED")
_NAMED = 3
_LISTS = {"sentiment": "tone", "toxicity": "insults", "attributes": "associations"}
"""List of the audit -> the quantity that is not measured without it."""
_EXAMPLE = 150  # characters

Finding = dict[str, str]
"""`what` (headline), `detail` (one line), `n` (sample size), `example` ("" for none), `at` (place in report.json),
`section` (of the page)."""


def first_look(facts: Mapping[str, Any]) -> list[Finding]:
    """Problems of the run, the largest first."""
    critical = partial(_checks, severity="critical", one="critical check")
    others = partial(_checks, severity="warning", one="non-blocking check", many="non-blocking checks")
    ways = (_gate, critical, _waived, _waste, _faults, _bias, others, _uncovered, _sources, _unmeasured, _cut)
    return [finding for way in ways for finding in way(facts)]


def _finding(what: str, detail: str, at: str, section: str, n: str, example: str = "") -> Finding:
    shown = example if len(example) <= _EXAMPLE else f"{example[:_EXAMPLE].rstrip()}…"
    return {"what": what, "detail": detail, "n": n, "example": shown, "at": at, "section": section}


def closing(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The reasons of the verdict that close the gate.

    Verdicts of older releases have no `closes`.
    """
    reasons = facts["verdict"].get("reasons", [])
    return [row for row in reasons if row.get("closes", not row.get("waived") and row.get("severity") == "critical")]


def _gate(facts: Mapping[str, Any]) -> Iterator[Finding]:
    word = facts["summary"]["verdict"]
    if word in _OPEN:
        return
    reasons = closing(facts)
    lines = [f"{reason.get('gate')} on {reason.get('subject')} ({reason.get('owner')})" for reason in reasons[:_NAMED]]
    if len(reasons) > _NAMED:
        lines.append(f"{len(reasons) - _NAMED:,} more")
    example = str(reasons[0].get("detail") or "") if reasons else ""
    yield _finding(f"The gate is closed: {word}", "; ".join(lines) or "The verdict gives no reason.", "/verdict",
                   "verdict", counted(len(reasons), "reason"), example)  # fmt: skip


def _checks(facts: Mapping[str, Any], severity: str, one: str, many: str = "") -> Iterator[Finding]:
    closed = {row.get("gate") for row in closing(facts)} if facts["summary"]["verdict"] not in _OPEN else set()
    rows = [
        row for row in facts["checks"] if row["status"] != "pass" and not row["waived"] and row["gate"] not in closed
    ]
    mine = [row for row in rows if (facts["gates"][row["gate"]]["severity"] == "critical") == (severity == "critical")]
    if not mine:
        return
    gates = list(dict.fromkeys(row["gate"] for row in mine))
    counts = {status: sum(row["status"] == status for row in mine) for status in {row["status"] for row in mine}}
    how = ", ".join(
        f"{count:,} {status}" for status, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
    worst = mine[0]
    example = f"{worst['gate']} on {worst['subject']}: {worst['detail'] or worst['status']}"
    yield _finding(f"{counted(len(gates), one, many)} did not pass", f"{_few(gates)}: {how}", "/checks", "checks",
                   counted(len(mine), "result"), example)  # fmt: skip


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")


def _waived(facts: Mapping[str, Any]) -> Iterator[Finding]:
    waivers = facts["verdict"].get("waivers", [])
    if waivers:
        lines = [
            f"{waiver.get('gate')} until {waiver.get('expires')}, by {waiver.get('approver')}" for waiver in waivers
        ]
        yield _finding(f"{counted(len(waivers), 'failure')} waived", _few(lines), "/verdict", "verdict",
                       counted(len(waivers), "waiver"), f"reason given: {waivers[0].get('reason')}")  # fmt: skip


def _waste(facts: Mapping[str, Any]) -> Iterator[Finding]:
    total = facts["energy"]["total"]
    if not total["wasted"] or not total["joules"] or total["wasted"] / total["joules"] < _WASTED_SHARE:
        return
    causes = {cause: value for cause, value in facts["energy"]["wasted_by_cause"].items() if value}
    most = max(causes, key=lambda cause: causes[cause], default="")
    yield _finding(
        f"{share(total['wasted'] / total['joules'])} of the energy was wasted",
        f"{energy(total['wasted'])} of {energy(total['joules'])} went into work that no result uses",
        "/energy/wasted_by_cause",
        "energy",
        counted(sum(row["count"] for row in facts["faults"]["ended"]), "failed attempt"),
        f"largest cause: {most}, {energy(causes.get(most))}" if most else "",
    )


def _faults(facts: Mapping[str, Any]) -> Iterator[Finding]:
    data = facts["faults"]
    failed, skipped = sum(row["count"] for row in data["ended"]), sum(row["count"] for row in data["skipped"])
    again = sum(row["lost"] for row in data["attempts"])
    often = [(row, f", {row['count']:,} times" if row["count"] > 1 else "") for row in data["ended"]]
    ends = [f"{row['stage']}: {row['cause']}{times}" for row, times in often]
    if data["diverged"]:
        last = data["diverged"][-1]
        yield _finding("Training diverged and was stopped", f"attempt {last['attempt']}, step {last['step']}",
                       "/faults", "faults", f"step {last['step']:,}", f"cause: {last['reason']}")  # fmt: skip
    if failed:
        detail = f"{counted(again, 'step')} repeated" if again else "no step was repeated"
        yield _finding(f"{counted(failed, 'attempt')} failed", detail, "/faults", "faults",
                       counted(failed, "attempt"), _few(ends))  # fmt: skip
    if skipped:
        why = ", ".join(f"{row['reason']} {row['count']:,}" for row in data["skipped"])
        first = min((row.get("first") for row in data["skipped"] if row.get("first") is not None), default=None)
        yield _finding(f"{counted(skipped, 'update')} skipped", why, "/faults", "faults", counted(skipped, "step"),
                       "" if first is None else f"first at step {first:,}")  # fmt: skip
    if data["stragglers"]:
        worst = max(data["stragglers"], key=lambda row: row["ratio"] or 0)
        detail = f"rank {worst['rank']}: {worst['ratio']:.3g} times the median"
        yield _finding("A rank was slower than the others", detail,
                       "/faults", "faults", counted(len(data["stragglers"]), "report"))  # fmt: skip


def _bias(facts: Mapping[str, Any]) -> Iterator[Finding]:
    """The first significant and precise difference of each suite (`checks/bias/findings.py`)."""
    for suite, rows in _differences(facts).items():
        worst = next((row for row in detailed(facts, rows) if row.get("precise", True)), None)
        if worst is None:
            continue
        examples, effect = worst.get("examples") or [], worst.get("effect") or {}
        where = ", ".join(filter(None, (language_of(worst), spaced(worst["axis"]))))
        size = f"{effect['words']}; " if effect.get("words") else ""
        unit = "document" if suite == "impact" else "sentence"
        size += f"{named(worst['metric'])} {written(worst)}"
        interval = f"95 % interval {bounds(worst)}"
        more = f"; {counted(len(rows) - 1, 'more difference')} of this kind" if len(rows) > 1 else ""
        yield _finding(
            headline(worst),
            f"{where}: {size}, {interval}{more}",
            f"/bias/{suite}",
            "bias",
            f"{counted(worst['n'] or 0, unit)}, q {chance(worst['q'])}",
            str(examples[0]["text"]) if examples else "",
        )


def _differences(facts: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Suite -> significant rows."""
    out = significant_rows(facts["bias"])
    tested = {suite: [row for row in rows if row["q"] is not None] for suite, rows in out.items()}
    return {suite: rows for suite, rows in tested.items() if rows}


def uncovered(facts: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Documents without lists: clause, unmeasured quantity, coverage row.

    Identity terms come first. Lists of the audit without the same languages are one sentence; a run's own lists and
    classifiers are further instruments, which need not cover what these do.
    """
    rows = {row["instrument"]: row for of in facts["bias"].values() for row in of if row["metric"] == "coverage"}
    by_note: dict[str, list[str]] = {}
    for name in _LISTS:
        if name in rows and rows[name]["note"]:
            by_note.setdefault(str(rows[name]["note"]).partition(": ")[2], []).append(name)
    mentions = rows.get(None)
    if mentions is not None and mentions["note"]:
        by_note.pop(str(mentions["note"]).partition(": ")[2], None)  # without these terms nothing else is counted
        yield str(mentions["note"]), "the groups they mention were not measured", mentions
    for languages, names in by_note.items():
        row = rows[names[0]]
        share_of = str(row["note"]).partition(" are in languages")[0]
        what = f"{share_of} are in languages without a list for {_and(names)}: {languages}"
        yield what, f"their {_and([_LISTS[name] for name in names])} were not measured", row


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _uncovered(facts: Mapping[str, Any]) -> Iterator[Finding]:
    for clause, unmeasured, row in uncovered(facts):
        what, _, languages = clause.partition(": ")
        yield _finding(what, unmeasured, "/bias/representation", "bias", counted(row["n"] or 0, "document"), languages)


def _sources(facts: Mapping[str, Any]) -> Iterator[Finding]:
    gone = [row for row in facts["sources"] if row["fate"] != "kept" and not row["documents_kept"]]
    if gone:
        lines = [
            f"{row['name']} ({row['fate']}{' ' + licence_words(row['licences']) if 'licence' in row['fate'] else ''})"
            for row in gone
        ]
        documents = sum(row["documents_in"] for row in gone)
        yield _finding(
            f"{len(gone):,} of {counted(len(facts['sources']), 'source')} {'is' if len(gone) == 1 else 'are'} not in "
            "the corpus",
            _few(lines),
            "/sources",
            "sources",
            counted(documents, "document"),
            _removed_example(facts, gone),
        )


def _removed_example(facts: Mapping[str, Any], gone: Sequence[Mapping[str, Any]]) -> str:
    """Sample text of a removed source."""
    names = tuple(f"{row['name']}/" for row in gone)
    for stage in facts["removed"]:
        for rows in stage["examples"].values():
            for row in rows:
                if row["id"].startswith(names) and row["text"]:
                    return str(row["text"])
    return ""


def _unmeasured(facts: Mapping[str, Any]) -> Iterator[Finding]:
    total = facts["energy"]["total"]
    why = (facts["energy"]["missing"] or [""])[0]
    if total["joules"] is None:
        yield _finding("The energy is unknown", "no meter could be read; unknown, not zero", "/energy/total", "energy",
                       counted(len(facts["energy"]["stages"]), "stage"), why)  # fmt: skip
    elif facts["energy"]["estimated"]:
        yield _finding("The energy is estimated", meters(total["methods"]), "/energy/total", "energy",
                       counted(len(facts["energy"]["stages"]), "stage"), why)  # fmt: skip


def _cut(facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Most frequent reason of removal, if less than half is kept."""
    summary = facts["summary"]
    came, kept = summary["documents_in"], summary["documents_kept"]
    if not came or kept is None or 1 - kept / came < _CUT_SHARE:
        return
    reasons = [(count, reason, row["stage"]) for row, reason, count in removals(facts["funnel"])]
    count, reason, stage = max(reasons, default=(0, "", ""))
    samples = [item["examples"].get(reason, []) for item in facts["removed"] if item["stage"] == stage]
    example = next((row["text"] for rows in samples for row in rows if row["text"]), "")
    yield _finding(f"{share(1 - kept / came)} of the documents were removed",
                   f"{count:,} of them by {stage}: {reason.replace('_', ' ')}", "/funnel/0", "corpus",
                   counted(came - kept, "document"), example)  # fmt: skip
