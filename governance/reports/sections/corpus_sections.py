"""Corpus sections: funnel, removals, sources, checks, examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from governance.gate.explanation import counted
from governance.reports.facts.citations import cite, cite_each
from governance.reports.facts.stage_counts import (
    COPIES_BY_QUALITY,
    came_in,
    licence_words,
    removals,
    removed_in,
    source_outcome,
)
from governance.reports.facts.synthetic_facts import energy_words
from governance.reports.html.markup import (
    ROWS_SHOWN,
    UNKNOWN,
    Html,
    alike,
    compact,
    fold,
    foreign,
    join,
    number,
    share,
    size,
    table,
    tag,
)
from governance.reports.html.svg_figures import STYLES, Bar, Curve, bars, chart, key

_CHECKS_SHOWN = 200  # results of the audit; of more, those that passed are shown gate by gate
_DETAIL = 140  # characters of a check's detail
_SHOWN_PER_GATE = 10  # most results of one gate and status that are shown one by one
_SOURCES_SHOWN = 5  # a bar shows the largest sources and the rest together, as more colours cannot be distinguished
_LANGUAGES_SHOWN = 10
OTHERS = "all others"

PILLS = {"pass": "good", "waived": "warn", "inconclusive": "warn", "fail": "bad", "error": "bad", "missing": "bad"}


def pill(word: str) -> Html:
    """A status as a word in its colour."""
    return tag("span", word, class_=f"pill {PILLS.get(word, '')}".strip())


def funnel(facts: Mapping[str, Any]) -> Html:
    """Documents through the stages, by source, language and reason."""
    rows = facts["funnel"]
    if not rows:
        return tag("p", "No stage has document counts.", class_="none")
    names = _largest(rows[0]["by_source"])
    citation = cite_each(facts, "/funnel", len(rows))
    keys = [key(STYLES[index], name) for index, name in enumerate(names)]
    whole = rows[0]["documents_in"] or 1
    stages = [
        Bar(row["stage"], _parts(row, names, "documents_kept"),
            f"{number(row['documents_kept'])} ({share(row['documents_kept'] / whole)})")
        for row in rows
    ]  # fmt: skip
    by_source = bars("Documents kept after each stage, by source", stages, keys, citation)
    by_language = _stages_by_language(facts)
    return join([
        tag("div", by_source, by_language, class_="pair") if by_language else by_source,
        tag(
            "div",
            tag("div", _source_bars(facts, citation), _removed_table(facts)),
            _language_bars(facts),
            class_="pair",
        ),
    ])  # fmt: skip


def funnel_folded(facts: Mapping[str, Any]) -> Iterator[Html]:
    """The funnel in bytes, in numbers, and each source through the stages."""
    rows = facts["funnel"]
    if not rows:
        return
    names = _largest(rows[0]["by_source"])
    citation = cite_each(facts, "/funnel", len(rows))
    keys = [key(STYLES[index], name) for index, name in enumerate(names)]
    stages = [Bar(row["stage"], _parts(row, names, "bytes_kept"), size(row["bytes_kept"])) for row in rows]
    head = ["stage", "documents in", "kept", "removed", "bytes in", "bytes kept"]
    lines = [
        [
            row["stage"],
            number(came_in(row, rows)[0]),
            number(row["documents_kept"]),
            number(sum(removed_in(row, rows).values())),
            number(came_in(row, rows)[1]),
            number(row["bytes_kept"]),
        ]
        for row in rows
    ]
    by_source = [
        [foreign(name), *(number(row["by_source"].get(name, {}).get("documents_kept", 0)) for row in rows)]
        for name in sorted(rows[0]["by_source"])
    ]
    stages_named = [row["stage"] for row in rows]
    yield fold("Funnel in documents, bytes and by source",
               bars("Bytes of text kept", stages, keys, citation),
               table("Documents and bytes", head, lines, numeric=(1, 2, 3, 4, 5), citation=citation),
               table("Documents kept by source", ["source", *stages_named], by_source,
                     numeric=tuple(range(1, len(rows) + 1)), citation=citation))  # fmt: skip


def _largest(by_source: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The largest sources by documents, and `OTHERS` where there are more."""
    ordered = sorted(by_source, key=lambda name: (-by_source[name]["documents_in"], name))
    return ordered if len(ordered) <= len(STYLES) else [*ordered[:_SOURCES_SHOWN], OTHERS]


def _parts(row: Mapping[str, Any], names: Sequence[str], field: str) -> list[tuple[str, float]]:
    amounts = {name: entry[field] for name, entry in row["by_source"].items()} or {"": row[field]}
    parts = []
    for index, name in enumerate(names or [""]):
        if name == OTHERS and name not in amounts:
            amount = sum(value for other, value in amounts.items() if other not in names)
        else:
            amount = amounts.get(name, 0)
        parts.append((STYLES[index], amount))
    return parts


def _source_bars(facts: Mapping[str, Any], citation: Html) -> Html:
    """Share of each source that was kept."""
    rows = facts["funnel"]
    first, last = rows[0]["by_source"], rows[-1]["by_source"]
    ordered = sorted(first, key=lambda name: (-first[name]["documents_in"], name))[:_LANGUAGES_SHOWN]
    lines = [_own(name, last.get(name, {}).get("documents_kept", 0), first[name]["documents_in"]) for name in ordered]
    rest = len(first) - len(ordered)
    return bars(f"Share kept by source{f' (the {len(ordered)} largest)' if rest else ''}", lines, citation=citation)


def _stages_by_language(facts: Mapping[str, Any]) -> Html | None:
    """Documents of each language after each stage.

    Ingested ones are counted by the language that `clean` found.
    """
    rows = sorted((row for row in facts["languages"] if row["documents_in"]), key=lambda row: -row["documents_in"])
    if not rows:
        return None
    after = [("ingest", [row["documents_in"] for row in rows])]
    after += [(stage, [row["documents_after"][stage] for row in rows]) for stage in rows[0]["documents_after"]]
    most = len(rows) if len(rows) <= len(STYLES) else _SOURCES_SHOWN
    names = [row["language"] for row in rows[:most]] + ([OTHERS] if len(rows) > most else [])
    whole = sum(after[0][1]) or 1
    stages = [
        Bar(stage, list(zip(STYLES, [*counts[:most], sum(counts[most:])], strict=False)),
            f"{number(sum(counts))} ({share(sum(counts) / whole)})")
        for stage, counts in after
    ]  # fmt: skip
    keys = [key(style, name) for style, name in zip(STYLES, names, strict=False)]
    return bars("Documents kept after each stage, by language", stages, keys, cite(facts, "/languages"))


def _language_bars(facts: Mapping[str, Any]) -> Html | None:
    """Share of each language that is in the corpus."""
    known = [row for row in facts["languages"] if row["documents_in"]]
    if not known:
        return None
    shown = known[:_LANGUAGES_SHOWN]
    lines = [_own(row["language"], _last(row), row["documents_in"]) for row in shown]
    rest = sum(row["documents_in"] for row in known[_LANGUAGES_SHOWN:])
    note = f" {len(known) - len(shown)} more languages: {number(rest)} documents" if rest else ""
    title = "Share kept by language"
    if any(row["stage"] == "mix" for row in facts["funnel"]):
        title += ", before the mixture"
    return bars([title, tag("span", note, class_="unit")], lines, citation=cite(facts, "/languages"))


def _last(row: Mapping[str, Any]) -> int:
    """Documents of a language after the last stage that was counted."""
    return int([row["documents_kept"], *row["documents_after"].values()][-1])


def _own(name: str, kept: int, came: int) -> Bar:
    return Bar(name, [("a", kept / came if came else 0), ("faint", 1 - kept / came if came else 1)],
               f"{number(kept)} of {number(came)}")  # fmt: skip


def _removed_table(facts: Mapping[str, Any]) -> Html:
    rows = facts["funnel"]
    lines = [
        (
            count,
            [
                foreign(reason.replace("_", " ")),
                row["stage"],
                number(count),
                share(count / (came_in(row, rows)[0] or 1)),
            ],
        )
        for row, reason, count in removals(rows)
        if count
    ]
    lines.sort(key=lambda line: -line[0])
    head = ["reason", "removed by", "documents", "of those that came in"]
    return table("Removed documents by reason", head, [line for _, line in lines], numeric=(2, 3),
                 citation=cite_each(facts, "/funnel", len(rows)), shown=5)  # fmt: skip


def counts_folded(facts: Mapping[str, Any]) -> Iterator[Html]:
    """Counts of the stages other than the funnel."""
    for index, one in enumerate(facts["counts"]):
        citation = cite(facts, f"/counts/{index}")
        rows = [[number(cell) if isinstance(cell, int) else foreign(cell) for cell in row] for row in one["rows"]]
        whole = {place for row in one["rows"] for place, cell in enumerate(row) if isinstance(cell, int)}
        note = tag("p", one["note"], citation if not rows else None, class_="note") if one["note"] else None
        stage, _, name = one["title"].partition(": ")
        title = f"{name[:1].upper()}{name[1:]} ({stage})"
        summed = not whole or (len(whole) == 1 and one["head"][min(whole)] != "count")  # "count": of several units
        total = [tag("span", f" {number(sum(row[min(whole)] for row in one['rows']) if whole else 0)}", class_="unit")]
        drawn = _copies_curve(one, citation) if one["title"] == COPIES_BY_QUALITY else None
        yield fold([title, *(total * summed)], drawn,
                   table(one["title"], one["head"], rows, numeric=sorted(whole), citation=citation), note)  # fmt: skip


def _copies_curve(counts: Mapping[str, Any], citation: Html) -> Html:
    """Copies of a byte over its rank, level within a bucket."""
    sums: dict[str, list[int]] = {}
    for bucket, _, size_in, _, size_got in counts["rows"]:
        of = sums.setdefault(bucket.rpartition(" ")[2], [0, 0])  # all topics; their names are in front
        of[0], of[1] = of[0] + size_in, of[1] + size_got
    points = [
        (float(end), got / size) for ranks, (size, got) in sorted(sums.items()) if size for end in ranks.split("-")
    ]
    return chart("Copies by quality", [Curve("copies", points)], "rank by score, percent of the bytes",
                 "copies of a byte", citation=citation) if points else join([])  # fmt: skip


def examples_folded(facts: Mapping[str, Any]) -> Iterator[Html]:
    """Examples of removed documents by reason and of quarantined records."""
    note = tag("p", "Up to five examples of each reason, 200 characters each. Personal data, keys and runs of digits "
                    "are masked; the shards of removed documents have the whole text.", class_="note")  # fmt: skip
    parts: list[Any] = []
    for index, stage in enumerate(facts["funnel"]):
        for of in (item["examples"] for item in facts["removed"] if item["stage"] == stage["stage"]):
            often = sorted(of, key=lambda reason: (-stage["removed"].get(reason, 0), reason))
            citation = cite(facts, f"/funnel/{index}")
            parts += [_examples(f"{stage['stage']}: {reason}", of[reason], citation) for reason in often]
    if parts:
        yield fold(f"Examples of removed documents ({len(parts)} reasons)", note, *parts)
    if facts["quarantined"]:
        citation = cite(facts, "/quarantined")
        note = tag("p", "Records that could not be read as documents, with their place.", class_="note")
        yield fold("Examples of quarantined records", note,
                   *(_examples(reason, rows, citation) for reason, rows in facts["quarantined"].items()))  # fmt: skip


def _examples(reason: str, rows: Sequence[Mapping[str, str]], citation: Html) -> Html:
    shown = []
    for row in rows:
        evidence = [" · evidence: ", foreign(row["evidence"])] if row["evidence"] else None
        about = tag("p", tag("code", foreign(row["id"])), evidence, class_="note")
        shown.append(tag("div", about, tag("p", foreign(row["text"]) if row["text"] else "(empty)"), class_="sample"))
    return join([tag("h4", foreign(reason), citation), shown])


def sources(facts: Mapping[str, Any]) -> Html:
    """Sources with licence and outcome, refused ones first."""
    order = sorted(facts["sources"], key=lambda row: (row["fate"] == "kept", row["name"]))
    lines = [
        [
            foreign(row["name"]),
            foreign(licence_words(row["licences"])),
            number(row["documents_in"]),
            number(row["documents_kept"]),
            size(row["bytes_kept"]),
            tag("span", source_outcome(row), class_=f"pill {'good' if row['fate'] == 'kept' else 'bad'}"),
        ]
        for row in order
    ]
    citation = cite_each(facts, "/sources", len(order))
    head = ["source", "licence", "documents", "kept", "text kept", "outcome"]
    allowed = ", ".join(facts["licences_allowed"])
    words = f"Licences allowed by the policy: {allowed}." if allowed else "The policy has no list of allowed licences."
    note = tag("p", words, class_="note") if lines else None
    return tag(
        "div", table("Sources", head, lines, numeric=(2, 3, 4), citation=citation, shown=5), note, class_="alongside"
    )


def synthetic(facts: Mapping[str, Any]) -> Html | None:
    """Synthetic sources with share, teacher, terms, tokens and energy; None without any."""
    lines = [
        [
            foreign(row["source"]),
            foreign(row["teacher"]),
            foreign(row["terms"]) if row["terms"] else UNKNOWN,
            number(row["documents"]),
            number(row["tokens"]),
            share(row["token_share"]),
            number(row["tokens_in"]),
            number(row["tokens_out"]),
            foreign(energy_words(row)),
        ]
        for row in facts["synthetic"]["sources"]
    ]
    if not lines:
        return None
    head = ["source", "teacher", "terms", "documents", "tokens", "share of tokens", "prompt tokens", "answer tokens"]
    citation = cite(facts, "/synthetic")
    return table("Synthetic text", [*head, "teacher's energy"], lines, numeric=range(3, 8), citation=citation, shown=5)


def checks(facts: Mapping[str, Any]) -> Html:
    """Table of checks that did not pass; passed ones folded."""
    rows = facts["checks"]
    if len(rows) > _CHECKS_SHOWN:
        rows = list(_fewer(rows))
    passed = [row for row in rows if row["status"] == "pass" and not row["waived"]]

    def weight(row: Mapping[str, Any]) -> tuple[bool, bool]:
        """Sort key: critical gates first, then failures."""
        return facts["gates"][row["gate"]]["severity"] != "critical", row["status"] != "fail"

    others = sorted((row for row in rows if row not in passed), key=weight)
    count = sum(row["status"] == "pass" and not row["waived"] for row in facts["checks"])
    gates = len({row["gate"] for row in passed})
    title = f"{counted(count, 'check')} of {counted(gates, 'gate')} passed"
    return join([
        _checks_table(facts, "Checks that did not pass", others, shown=3) if others else None,
        fold(title, _checks_table(facts, "Checks that passed", passed)) if passed else None,
    ])  # fmt: skip


def _checks_table(
    facts: Mapping[str, Any], title: str, rows: Sequence[Mapping[str, Any]], shown: int = ROWS_SHOWN
) -> Html:
    lines = []
    for row in rows:
        gate = facts["gates"][row["gate"]]
        observed = compact(row["observed"]) if isinstance(row["observed"], (int, float)) else row["observed"]
        subject = tag("span", foreign(str(row["subject"])), class_="note")
        detail = [tag("br"), tag("span", foreign(_cut(row["detail"])), class_="note")] if row["detail"] else None
        lines.append([
            [tag("code", row["gate"]), tag("br"), subject],
            pill("waived" if row["waived"] else row["status"]),
            "–" if observed is None else observed,
            gate["threshold"],
            f"{number(row['unexpected'])} of {number(row['rows'])}",
            f"{gate['owner']}, {gate['severity']}",
            [gate["why"], detail],
        ])  # fmt: skip
    head = ["gate and subject", "status", "observed", "threshold", "rows outside", "owner, severity", "why"]
    return table(title, head, lines, numeric=(2,), citation=cite(facts, "/checks"), shown=shown)


def _cut(detail: str) -> str:
    """Truncate a detail; report.json has all of it."""
    return detail if len(detail) <= _DETAIL else f"{detail[:_DETAIL].rstrip()}…"


def _fewer(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """First results by gate and status, the rest merged."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["gate"], row["status"], row["waived"]), []).append(row)
    for (_, status, _), mine in groups.items():
        shown = 0 if status == "pass" and len(mine) > 1 else min(_SHOWN_PER_GATE, len(mine))
        yield from map(dict, mine[:shown])
        if rest := mine[shown:]:
            yield _merged_row(rest)


def _merged_row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    seen = sorted(row["observed"] for row in rows if isinstance(row["observed"], (int, float)))
    ends = " – ".join(alike(seen[0], seen[-1])) if seen else None
    return {
        **rows[0],
        "subject": f"{len(rows):,} subjects",
        "observed": ends,
        "rows": sum(row["rows"] or 0 for row in rows),
        "unexpected": sum(row["unexpected"] or 0 for row in rows),
        "detail": "",
    }
