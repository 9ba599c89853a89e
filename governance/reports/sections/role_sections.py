"""Sections by role: officer, data reviewer, engineer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from governance.reports.facts.citations import cite, cite_each
from governance.reports.facts.cluster_jobs import cluster
from governance.reports.facts.distributions import write_edge
from governance.reports.facts.faults import faults
from governance.reports.html.markup import (
    UNKNOWN,
    Child,
    Html,
    compact,
    digest,
    fold,
    foreign,
    join,
    number,
    table,
    tag,
)
from governance.reports.html.svg_figures import histogram, key
from governance.reports.sections import corpus_sections as corpus
from governance.reports.sections.energy_sections import energy_folded, energy_section
from governance.reports.sections.group_sections import groups, groups_folded
from governance.reports.sections.kpi_section import paid, paid_folded
from governance.reports.sections.lineage_figure import lineage
from governance.reports.sections.memorisation_section import memorisation
from governance.reports.sections.run_sections import environment_folded, facts_list, training, training_folded


def officer(facts: Mapping[str, Any]) -> Html:
    """Section for the officer: verdict, sources, energy, lineage."""
    return _reader("officer", "Officer", "May the corpus be used, who decided, and what did it cost?", [
        _part("verdict", "Verdict and checks", [verdict(facts), tag("div", corpus.checks(facts), id="checks")]),
        _part("sources", "Sources and licences", join([corpus.sources(facts), corpus.synthetic(facts)])),
        _part("paid", "Did it pay", paid(facts), *paid_folded(facts)) if facts["kpi"] else None,
        _part("energy", "Energy and carbon", energy_section(facts), *energy_folded(facts)),
        _part("lineage", "Lineage", lineage(facts)),
    ])  # fmt: skip


def data_reviewer(facts: Mapping[str, Any]) -> Html:
    """Section for the data reviewer: corpus, removals, affected groups."""
    return _reader("data", "Data reviewer", "What is in the corpus, what was removed, and who is affected?", [
        _part("corpus", "Corpus", corpus.funnel(facts), *corpus.funnel_folded(facts), *corpus.counts_folded(facts),
              *documents_folded(facts), *corpus.examples_folded(facts)),
        _part("bias", "Groups of people", groups(facts), *groups_folded(facts)),
        _part("memorisation", "Memorisation", memorisation(facts)),
    ])  # fmt: skip


def engineer(facts: Mapping[str, Any]) -> Html:
    """Section for the engineer: training, faults, environment."""
    return _reader("engineer", "Engineer", "How did training go, how fast was it, and what went wrong?", [
        _part("training", "Training", training(facts), *training_folded(facts)),
        _part("faults", "Faults", faults(facts),
              fold("Cluster jobs, attempts and accounting", cluster(facts)) if facts["cluster"] else None),
        _part("environment", "Environment", None, *environment_folded(facts)),
    ])  # fmt: skip


def _reader(name: str, title: str, question: str, parts: list[Html | None]) -> Html:
    head = tag("h2", title, tag("small", question))
    return tag("section", head, parts, id=name, class_="reader", aria_label=title)


def _part(name: str, title: str, shown: Child, *folds: Child) -> Html:
    inner = tag("div", folds, class_="folds") if any(folds) else None
    return tag("section", tag("h3", title), shown, inner, id=name, aria_label=title)


def verdict(facts: Mapping[str, Any]) -> Html:
    """The signed decision, waivers, and relaxations of the parent policy."""
    signed = facts["verdict"]
    policy, audit, tokens = (signed.get(name) or {} for name in ("policy", "audit", "corpus"))
    counts = ", ".join(f"{count:,} {status}" for status, count in sorted((signed.get("summary") or {}).items()))
    pairs: list[tuple[str, Child]] = [
        ("Decision", tag("b", facts["summary"]["verdict"])),
        ("Results", counts or "none"),
        ("Policy", [str(policy.get("name", UNKNOWN)), " ", digest(str(policy.get("digest", "")))]),
        *([("Strength", str(policy["strength"]))] if policy.get("strength") else []),
        ("Signature", str(facts["summary"]["signer"])),
        ("Expires", str(signed.get("expires", UNKNOWN))),
        ("Key", tag("code", str(signed.get("key_id", UNKNOWN))[:24], title=str(signed.get("key_id", "")))),
        ("Submitted by", ", ".join(map(str, signed.get("submitters", []))) or UNKNOWN),
        ("Covers", [digest(str(tokens.get("digest", ""))), f" and {number(len(signed.get('subjects') or {}))} files"]),
        *([] if signed.get("waivers") else [("Waivers", "none")]),
        ("Audit", digest(str(audit.get("digest", ""))) or UNKNOWN),
    ]
    citation = cite(facts, "/verdict")
    checked = {(row["gate"], row["subject"]) for row in facts["checks"]}
    waivers = [_waiver_cells(waiver) for waiver in signed.get("waivers", [])]
    reasons = [
        _reason_cells(reason)
        for reason in signed.get("reasons", [])
        if (reason.get("gate"), reason.get("subject")) not in checked
    ]
    looser = [[foreign(str(line))] for line in policy.get("differences") or []]
    return join(
        [
            facts_list(pairs, citation),
            table(
                "Other reasons",
                ["gate", "status", "owner, severity", "subject", "detail"],
                reasons,
                citation=citation,
                shown=5,
            )
            if reasons
            else None,
            table(
                "Waivers",
                ["gate", "result", "observed", "limit", "approver", "until", "reason"],
                waivers,
                citation=citation,
            )
            if waivers
            else None,
            table("Relaxations of the parent policy", ["difference"], looser, citation=citation) if looser else None,
        ]
    )


def _waiver_cells(waiver: Mapping[str, Any]) -> list[Child]:
    observed, limit = waiver.get("observed"), waiver.get("max_deviation")
    return [
        tag("code", str(waiver.get("gate"))),
        foreign(str(waiver.get("result", UNKNOWN))),
        compact(observed) if isinstance(observed, (int, float)) else UNKNOWN,
        "no number" if limit is None else compact(limit),
        str(waiver.get("approver")),
        str(waiver.get("expires")),
        foreign(str(waiver.get("reason"))),
    ]


def _reason_cells(reason: Mapping[str, Any]) -> list[Child]:
    return [
        tag("code", str(reason.get("gate"))),
        corpus.pill("waived" if reason.get("waived") else str(reason.get("status"))),
        f"{reason.get('owner')}, {reason.get('severity')}",
        foreign(str(reason.get("subject"))),
        foreign(str(reason.get("detail"))),
    ]


def documents_folded(facts: Mapping[str, Any]) -> Iterator[Html]:
    """Histograms with medians, and examples of kept documents."""
    shown = facts["distributions"]
    if shown:
        cites = [cite(facts, f"/distributions/{index}") for index in range(len(shown))]
        drawn = [histogram(one, write_edge, citation) for one, citation in zip(shown, cites, strict=True)]
        rows = [[one["name"].replace("_", " "), one["stage"], *_medians(one)] for one in shown]
        head = ["measure", "stage", "kept", "median between", "removed", "median between"]
        note = "Sizes in bins of twice the width of the one before; shares and scores in twentieths."
        yield fold(
            f"Distributions of {len(shown)} measures",
            tag("p", key("a", "kept by the stage"), key("gone", "removed by it"), class_="legend"),
            tag("p", note, class_="note"),
            tag("div", drawn, class_="multiples"),
            table("Medians", head, rows, numeric=(2, 3, 4, 5), citation=cite_each(facts, "/distributions", len(shown))),
        )
    examples = [
        tag("div", tag("p", tag("code", foreign(row["id"])), class_="note"), tag("p", foreign(row["text"])),
            class_="sample")
        for row in facts["kept"]
    ]  # fmt: skip
    if examples:
        yield fold("Examples of kept documents", tag("p", "Masked as the removed ones are.", cite(facts, "/kept"),
                                                     class_="note"), *examples)  # fmt: skip


def _medians(one: Mapping[str, Any]) -> Iterator[str]:
    for side in ("kept", "removed"):
        counts = one[side]
        total = sum(counts)
        seen = list(itertools.accumulate(counts))
        place = next((place for place, count in enumerate(seen) if 2 * count >= total), 0)
        yield f"{total:,}"
        yield f"{write_edge(one['edges'][place])} and {write_edge(one['edges'][place + 1])}" if total else ""
