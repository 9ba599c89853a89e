"""The report's sections on the corpus: its funnel, what was removed, sources, checks, representation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from governance.reports.figures import bar, interval
from governance.reports.markup import Html, compact, foreign, join, number, share, size, table, tag
from governance.reports.origins import cite

STYLES = "abcdef"
_MOST_MULTIPLES = 24
_CHECKS_SHOWN = 200  # results of the audit; of more, those that passed are told gate by gate
_OF_A_GATE = 10  # of these, results of one gate and status that are told one by one
_SOURCES_SHOWN = 5  # a bar shows the largest sources and the rest together, as more colours cannot be told apart
OTHERS = "all others"

PILLS = {"pass": "good", "waived": "warn", "inconclusive": "warn", "fail": "bad", "error": "bad", "missing": "bad"}


def pill(word: str) -> Html:
    """A status as a word in its colour."""
    return tag("span", word, class_=f"pill {PILLS.get(word, '')}".strip())


def funnel(found: Mapping[str, Any]) -> Html:
    """How documents and bytes went through the stages, whole and for each source."""
    rows = found["funnel"]
    if not rows:
        return tag("p", "No stage of the corpus has counts.", class_="none")
    names = _largest(rows[0]["by_source"])
    legend = tag("p", [_key(index, name) for index, name in enumerate(names)], class_="legend")
    return join(
        [
            tag("h3", "Documents kept, by stage and source"),
            legend if len(names) > 1 else None,
            _bars(rows, names, "documents_kept", lambda value: number(value)),
            tag("h3", "Bytes of text kept"),
            _bars(rows, names, "bytes_kept", size),
            _funnel_table(found),
            tag("h3", "Each source through the stages") if len(rows[0]["by_source"]) > 1 else None,
            _multiples(rows) if len(rows[0]["by_source"]) > 1 else None,
        ]
    )


def _largest(by_source: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The largest sources by documents, and `OTHERS` where there are more."""
    ordered = sorted(by_source, key=lambda name: (-by_source[name]["documents_in"], name))
    return ordered if len(ordered) <= len(STYLES) else [*ordered[:_SOURCES_SHOWN], OTHERS]


def _key(index: int, name: str) -> Html:
    return tag("span", tag("i", class_=f"key k-{STYLES[index]}"), foreign(name))


def _bars(rows: Sequence[Mapping[str, Any]], names: Sequence[str], field: str, write: Any) -> Html:
    whole = max(rows[0][field.replace("kept", "in")], *(row[field] for row in rows), 1)
    lines = []
    for row in rows:
        amounts = {name: entry[field] for name, entry in row["by_source"].items()} or {"": row[field]}
        parts = []
        for index, name in enumerate(names or [""]):
            if name == OTHERS and name not in amounts:
                amount = sum(value for other, value in amounts.items() if other not in names)
            else:
                amount = amounts.get(name, 0)
            parts.append((STYLES[index], amount))
        label = f"{row['stage']}: {write(row[field])}"
        of = share(row[field] / whole) if whole else ""
        told = tag("span", write(row[field]), tag("span", f"  ({of})", class_="extra unit"))
        lines.append(tag("div", tag("b", row["stage"]), bar(parts, whole, label), told))
    return tag("div", [_wide(line) for line in lines], class_="steps")


def _wide(line: Html) -> Html:
    return Html(str(line).replace("<div>", '<div class="wide">', 1))


def _funnel_table(found: Mapping[str, Any]) -> Html:
    rows = found["funnel"]

    def cells(row: Mapping[str, Any]) -> list[Any]:
        removed = [tag("div", foreign(reason), f" {count:,}") for reason, count in _by_count(row["removed"])]
        return [
            row["stage"],
            number(row["documents_in"]),
            number(row["documents_kept"]),
            number(sum(row["removed"].values())),
            number(row["bytes_in"]),
            number(row["bytes_kept"]),
            removed or "nothing",
        ]

    head = ["stage", "documents in", "kept", "removed", "bytes in", "bytes kept", "removed, by reason"]
    cites = [cite(found, f"/funnel/{index}") for index in range(len(rows))]
    return table("The funnel in numbers", head, map(cells, rows), numeric=(1, 2, 3, 4, 5), cites=cites)


def _by_count(removed: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(((reason, count) for reason, count in removed.items() if count), key=lambda item: (-item[1], item[0]))


def _multiples(rows: Sequence[Mapping[str, Any]]) -> Html:
    """One small funnel a source, each on its own scale."""
    by_source = rows[0]["by_source"]
    ordered = sorted(by_source, key=lambda name: (-by_source[name]["documents_in"], name))
    small = []
    for name in ordered[:_MOST_MULTIPLES]:
        whole = max(by_source[name]["documents_in"], 1)
        lines = []
        for row in rows:
            kept = row["by_source"].get(name, {}).get("documents_kept", 0)
            drawing = bar([("a", kept)], whole, f"{name}, {row['stage']}: {kept:,} documents")
            lines.append(tag("div", tag("b", row["stage"]), drawing, tag("span", number(kept))))
        small.append(tag("div", tag("h4", foreign(name)), tag("div", lines, class_="steps")))
    rest = len(ordered) - len(small)
    more = tag("p", f"{rest:,} smaller sources are in the table of sources.", class_="note") if rest > 0 else None
    return join([tag("div", small, class_="multiples"), more])


def counts(found: Mapping[str, Any]) -> Html:
    """What the stages counted beside the funnel: passed over, cut out, found."""
    parts: list[Any] = []
    for index, one in enumerate(found["counts"]):
        cites = [cite(found, f"/counts/{index}")] * len(one["rows"])
        rows = [[number(cell) if isinstance(cell, int) else foreign(cell) for cell in row] for row in one["rows"]]
        whole = {place for row in one["rows"] for place, cell in enumerate(row) if isinstance(cell, int)}
        parts.append(table(one["title"], one["head"], rows, numeric=sorted(whole), cites=cites))
        parts.append(tag("p", one["note"], cite(found, f"/counts/{index}"), class_="note") if one["note"] else None)
    return join(parts) if parts else tag("p", "No stage has counted more than its funnel.", class_="none")


def removed(found: Mapping[str, Any]) -> Html:
    """Counts of what was removed, with examples; quarantined records; addresses and numbers are masked."""
    parts: list[Any] = [
        tag(
            "p",
            "Up to five examples of each reason, 200 characters each. Personal data, keys and runs of digits are "
            "masked here; the removed shards hold the whole text.",
            class_="note",
        )
    ]
    for index, stage in enumerate(found["funnel"]):
        cited = cite(found, f"/funnel/{index}")
        counts = _by_count(stage["removed"])
        if counts:
            total = stage["documents_in"] or 1
            lines = [[foreign(reason), number(count), share(count / total)] for reason, count in counts]
            head = ["reason", "documents", "share of what came in"]
            parts.append(table(f"Removed by {stage['stage']}", head, lines, numeric=(1, 2),
                               cites=[cited] * len(lines)))  # fmt: skip
        examples = [item["examples"] for item in found["removed"] if item["stage"] == stage["stage"]]
        for of in examples:
            often = sorted(of, key=lambda reason: (-stage["removed"].get(reason, 0), reason))
            parts += [_examples(reason, of[reason], cited, "h3") for reason in often]
    parts.append(tag("h3", "Quarantine"))
    if found["quarantined"]:
        parts.append(tag("p", "Records that could not become documents, with their place.", class_="note"))
        cited = cite(found, "/quarantined")
        parts += [_examples(reason, rows, cited, "h4") for reason, rows in found["quarantined"].items()]
    else:
        parts.append(tag("p", "No record was quarantined.", class_="none"))
    return join(parts)


def _examples(reason: str, rows: Sequence[Mapping[str, str]], cited: Html, level: str) -> Html:
    shown = []
    for row in rows:
        evidence = [" · evidence: ", foreign(row["evidence"])] if row["evidence"] else None
        about = tag("p", tag("code", foreign(row["id"])), evidence, class_="note")
        shown.append(tag("div", about, tag("p", foreign(row["text"]) if row["text"] else "(empty)"), class_="sample"))
    return join([tag(level, "Examples: ", foreign(reason), cited), shown])


def sources(found: Mapping[str, Any]) -> Html:
    """Every source with its licence and what became of it; refused ones first, in words."""
    order = sorted(enumerate(found["sources"]), key=lambda item: (item[1]["fate"] == "kept", item[1]["name"]))
    rows = [row for _, row in order]
    refused = [row for row in rows if row["fate"] != "kept"]
    told = None
    if refused:
        names = [tag("li", foreign(row["name"]), f": {row['fate']} ({row['licence']})") for row in refused]
        told = join([tag("p", tag("b", f"Refused or empty: {len(refused)} of {len(rows)} sources")),
                     tag("ul", names)])  # fmt: skip
    lines = [
        [
            foreign(row["name"]),
            str(row["kind"]),
            row["licence"],
            number(row["documents_in"]),
            number(row["quarantined"]),
            number(row["documents_kept"]),
            size(row["bytes_kept"]),
            tag("span", row["fate"], class_=f"pill {'good' if row['fate'] == 'kept' else 'bad'}"),
        ]
        for row in rows
    ]
    cites = [cite(found, f"/sources/{index}") for index, _ in order]
    head = ["source", "kind", "licence", "records", "quarantined", "documents kept", "text kept", "fate"]
    allowed = ", ".join(found["licences_allowed"]) or "the policy names none"
    return join([
        told,
        table("Every source", head, lines, numeric=(3, 4, 5, 6), cites=cites),
        tag("p", f"Licences that the policy allows: {allowed}.", class_="note"),
    ])  # fmt: skip


def checks(found: Mapping[str, Any]) -> Html:
    """Every result of the audit: what was found, what was demanded, and who answers for it.

    Of many results those that passed are told gate by gate, and of those that did not the first of each gate.
    """
    rows = found["checks"]
    if len(rows) > _CHECKS_SHOWN:
        rows = _fewer(rows)
    lines = []
    for row in rows:
        word = "waived" if row["waived"] else row["status"]
        gate = found["gates"][row["gate"]]
        observed = compact(row["observed"]) if isinstance(row["observed"], (int, float)) else row["observed"]
        lines.append(
            [
                [tag("code", row["gate"]), tag("br"), tag("span", foreign(str(row["subject"])), class_="note")],
                pill(word),
                "–" if observed is None else observed,
                gate["threshold"],
                number(row["rows"]),
                number(row["unexpected"]),
                f"{gate['owner']} · {gate['severity']}",
                [gate["why"], tag("br"), tag("span", row["detail"], class_="note")] if row["detail"] else gate["why"],
            ]
        )
    head = ["gate and subject", "status", "observed", "threshold", "rows", "unexpected", "owner · severity", "why"]
    cites = [cite(found, "/checks")] * len(lines)
    folded = f" ({len(found['checks']):,}, gate by gate; report.json has each)" if rows is not found["checks"] else ""
    return table(f"Results of the audit{folded}", head, lines, numeric=(2, 4, 5), cites=cites)


def _fewer(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A gate's results of one status: the first ones as they are, the rest as one row that adds them up."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["gate"], row["status"], row["waived"]), []).append(row)
    told: list[dict[str, Any]] = []
    for (_, status, _), mine in groups.items():
        shown = 0 if status == "pass" and len(mine) > 1 else min(_OF_A_GATE, len(mine))
        told += [dict(row) for row in mine[:shown]]
        if rest := mine[shown:]:
            told.append(_added_up(rest))
    return told


def _added_up(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    seen = sorted(row["observed"] for row in rows if isinstance(row["observed"], (int, float)))
    ends = f"{compact(seen[0])} – {compact(seen[-1])}" if seen else None
    return {
        **rows[0],
        "subject": f"{len(rows):,} subjects",
        "observed": ends,
        "rows": sum(row["rows"] or 0 for row in rows),
        "unexpected": sum(row["unexpected"] or 0 for row in rows),
        "detail": "",
    }


def representation(found: Mapping[str, Any]) -> Html:
    """How often groups of people are mentioned, with 95 % intervals."""
    data = found["representation"]
    rows = (data.get("rows", []) if isinstance(data, Mapping) else data) or []
    note = (
        "Share: documents of the language that mention the group. The intervals are 95 % jackknife intervals over "
        "documents. A mention is a word of a list, not a judgement of what is said; too few documents are inconclusive."
    )
    top = max((row["share_high"] or 0 for row in rows), default=0)
    lines = [
        [
            f"{row['language']} · {row['axis']} · {row['group']}",
            number(row["documents"]),
            number(row["mentions"]),
            share(row["share"]),
            f"{share(row['share_low'])} – {share(row['share_high'])}" if row["share"] is not None else "–",
            _interval(row, top),
            compact(row["per_million_words"]),
            None if row.get("conclusive", True) else pill("inconclusive"),
        ]
        for row in rows
    ]
    scale = f"interval on a scale from 0 to {share(top)}" if top else "interval"
    head = [
        "language · axis · group",
        "documents",
        "mentions",
        "share",
        "95 % interval",
        scale,
        "per million words",
        "",
    ]
    head[-1] = "note"
    return join(
        [
            tag("p", note, class_="note"),
            table(
                "Mentions of groups",
                head,
                lines,
                numeric=(1, 2, 3, 4, 6),
                cites=[cite(found, "/representation")] * len(lines),
            ),
        ]
    )


def _interval(row: Mapping[str, Any], top: float) -> Html | None:
    low, middle, high = row["share_low"], row["share"], row["share_high"]
    if None in (low, middle, high):
        return None
    return interval(low, middle, high, top, f"{row['group']}: {share(middle)}, from {share(low)} to {share(high)}")
