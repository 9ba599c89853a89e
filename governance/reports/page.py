"""The page: verdict and energy at its head, then every section. One file, no script, nothing loaded from anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from governance.reports import corpus_sections as corpus
from governance.reports import run_sections as run
from governance.reports.bias_sections import bias
from governance.reports.cluster import cluster
from governance.reports.document_sections import documents
from governance.reports.evidence_section import evidence
from governance.reports.faults import faults
from governance.reports.first_look import look_first, look_next
from governance.reports.lineage_figure import lineage
from governance.reports.markup import (
    UNKNOWN,
    Child,
    Html,
    compact,
    digest,
    energy,
    foreign,
    join,
    number,
    share,
    size,
    table,
    tag,
)
from governance.reports.origins import cite, cited
from governance.reports.style import CSS

BADGES = {"PASS": "good", "WAIVED": "warn", "INCONCLUSIVE": "warn", "BLOCK": "bad", "ERROR": "bad", "NOT_RUN": "bad"}
_WAIVERS_SHOWN = 4
_MEANINGS = {
    "PASS": "Every critical gate passed. The corpus may be trained on.",
    "WAIVED": "The corpus may be trained on; failures of critical gates were waived by their owners.",
    "BLOCK": "A critical gate failed. The corpus may not be trained on.",
    "INCONCLUSIVE": "A critical gate had too little to judge by, which is not a pass.",
    "ERROR": "A check could not be carried out, which is not a pass.",
    "NOT_RUN": "A gate has no result, which is not a pass.",
}


_FROM = {
    "verdict": ("/verdict",), "corpus": ("/funnel/0", "/summary/documents_kept"), "documents": ("/kept",),
    "sources": ("/sources/0",), "checks": ("/checks",), "representation": ("/representation",), "bias": ("/bias",),
    "training": ("/training",), "energy": ("/energy",), "cluster": ("/cluster",), "environment": ("/environment",),
    "removed": ("/quarantined",), "lineage": ("/environment",), "faults": ("/faults",), "found": ("/environment",),
}  # fmt: skip
"""What a section's numbers are from where neither their row nor their figure says it more closely."""


def page(found: Mapping[str, Any]) -> str:
    """The whole of report.html."""
    sections = [
        ("verdict", "Verdict", verdict(found)),
        ("corpus", "Corpus", corpus.funnel(found)),
        ("documents", "Documents", documents(found)),
        ("found", "Found and cut", corpus.counts(found)),
        ("removed", "Removed", corpus.removed(found)),
        ("sources", "Sources and licences", corpus.sources(found)),
        ("checks", "Checks", corpus.checks(found)),
        ("representation", "Representation", corpus.representation(found)),
        ("bias", "Differences between groups", bias(found)),
        ("training", "Training", run.training(found)),
        ("energy", "Energy", run.energy_section(found)),
        ("faults", "Faults", faults(found)),
        ("cluster", "Cluster", cluster(found)),
        ("lineage", "Lineage", lineage(found)),
        ("environment", "Environment", run.environment(found)),
        ("evidence", "Evidence", evidence(found)),
    ]
    links = [tag("li", tag("a", title, href=f"#{name}")) for name, title, _ in sections]
    body = [
        tag("a", "Skip to the report", href="#main", class_="skip"),
        head(found),
        tag("nav", tag("ol", links), aria_label="Sections"),
        tag(
            "main",
            [
                tag("section", tag("h2", title), cited(found, *_FROM.get(name, ())), inner, id=name, aria_label=title)
                for name, title, inner in sections
            ],
            id="main",
            tabindex="-1",
        ),
        tag(
            "footer",
            tag(
                "p",
                "The same numbers stand in report.json beside this file. Digests are SHA-256. "
                "assay report verify computes every number again from the evidence.",
            ),
        ),
    ]
    return _whole(f"Assay report: {found['summary']['verdict']}", body)


def standing_page(title: str, body: Sequence[Child]) -> str:
    """A page about several runs, in the report's look."""
    inner = [
        tag("a", "Skip to the content", href="#main", class_="skip"),
        tag("header", tag("p", "Assay", class_="eyebrow"), tag("h1", title)),
        tag("main", body, id="main", tabindex="-1"),
        tag("footer", tag("p", "Read from report.json of each run; nothing is loaded from anywhere.")),
    ]
    return _whole(title, inner)


def _whole(title: str, body: Sequence[Child]) -> str:
    metas = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        tag("title", title),
        Html(f"<style>{CSS}</style>"),
    ]
    return f"<!DOCTYPE html>\n{tag('html', tag('head', metas), tag('body', body), lang='en')}\n"


def head(found: Mapping[str, Any]) -> Html:
    """Verdict badge, energy, and the figures that a reader looks for first."""
    word = found["summary"]["verdict"]
    names = ", ".join(row["name"] for row in found["sources"][:6])
    more = len(found["sources"]) - 6
    lead = (
        f"Corpus of {names}{f' and {more} more sources' if more > 0 else ''}." if names else "Corpus without sources."
    )
    badge = tag("span", word, class_=f"badge {BADGES.get(word, 'bad')}")
    meaning = _MEANINGS.get(word, "This verdict is not known here.")
    told_by = found["summary"]
    under = f" Judged under {told_by['policy']}, {told_by['site']}; {told_by['signer']}."
    told = tag("p", tag("strong", meaning), under, cite(found, "/summary/verdict", "/summary/policy"))
    stopped = None if found["training"] else run.not_trained(found)
    cites = [cite(found, f"/first/{index}") for index in range(len(found["first"]))]
    return tag(
        "header",
        tag("p", "Assay report", class_="eyebrow"),
        tag("h1", "What this run is made of"),
        tag("p", foreign(lead), class_="lead"),
        tag("div", badge, told, class_="verdict"),
        stopped,
        _waivers_told(found),
        look_first(found, cites),
        tiles(found),
        look_next(found, cites),
    )


def _waivers_told(found: Mapping[str, Any]) -> Html:
    """The waivers in a line, for the first page."""
    waivers = found["verdict"].get("waivers", [])
    if not waivers:
        return tag("p", "Waivers: none.", class_="note")
    told = [
        [", " if index else "", tag("code", str(waiver.get("gate"))), f" until {waiver.get('expires')}"]
        for index, waiver in enumerate(waivers[:_WAIVERS_SHOWN])
    ]
    rest = len(waivers) - len(told)
    return tag("p", tag("a", f"Waivers: {len(waivers):,}", href="#verdict"), ": ", told,
               f" and {rest:,} more" if rest > 0 else None, cite(found, "/verdict"), class_="note")  # fmt: skip


def tiles(found: Mapping[str, Any]) -> Html:
    """The summary's figures."""
    told, total = found["summary"], found["energy"]["total"]
    kept, came = told["documents_kept"], told["documents_in"]
    rate = f" ({share(kept / came)})" if kept is not None and came else ""
    estimated = found["energy"]["estimated"]
    entries: list[tuple[str, str, Any, Sequence[str]]] = [
        (
            f"Energy{' (estimated)' if estimated else ''}",
            energy(total["joules"]),
            f"{run.exact(total['joules'])}; {run.bounds(total['low'], total['high'])}; "
            f"method: {'; '.join(total['methods']) or UNKNOWN}",
            ["energy_joules"],
        ),
        ("Documents kept", number(kept), f"of {number(came)}{rate}", ["documents_in", "documents_kept"]),
        ("Text kept", size(told["bytes_kept"]), f"{number(told['bytes_kept'])} of {number(told['bytes_in'])} bytes",
         ["bytes_in", "bytes_kept"]),
        ("Tokens to train on", number(told["train_tokens"]), f"and {number(told['validation_tokens'])} to validate",
         ["train_tokens"]),
    ]  # fmt: skip
    if found["training"]:
        trained = f"{number(told['steps'])} steps, {number(told['tokens_trained'])} tokens"
        entries += [
            ("Validation loss", number(told["validation_loss"]), "nats per token", ["validation_loss"]),
            ("Bits per byte", number(told["bits_per_byte"]), "on the validation text", ["bits_per_byte"]),
            ("Training loss", number(told["final_loss"]), trained, ["final_loss", "steps"]),
        ]
    wasted = total["wasted"]
    part = (
        f"{run.exact(wasted)}, {share(wasted / total['joules'])} of all"
        if wasted is not None and total["joules"]
        else ""
    )
    wasted_tile = ("Energy wasted", energy(wasted), part or "no ledger of failed attempts", ["energy_wasted_joules"])
    entries.insert(1, wasted_tile)
    return tag(
        "dl",
        [
            tag("div", tag("dt", name),
                tag("dd", value, tag("small", note, cite(found, *(f"/summary/{field}" for field in fields)))))
            for name, value, note, fields in entries
        ],
        class_="tiles",
    )  # fmt: skip


def verdict(found: Mapping[str, Any]) -> Html:
    """Why the gate decided as it did, what was waived, and who signed until when."""
    given = found["verdict"]
    policy, audit, tokens = (given.get(name) or {} for name in ("policy", "audit", "corpus"))
    names = len(given.get("subjects") or {})
    counts = ", ".join(f"{count} {status}" for status, count in sorted((given.get("summary") or {}).items()))
    pairs = [
        ("Decision", tag("b", found["summary"]["verdict"])),
        ("Results", counts or "none"),
        ("Policy", [str(policy.get("name", UNKNOWN)), " ", digest(str(policy.get("digest", "")))]),
        ("Audit", digest(str(audit.get("digest", ""))) or UNKNOWN),
        (
            "Covers",
            [
                digest(str(tokens.get("digest", ""))),
                f" and its files, {names:,} signed names in all",
            ],
        ),
        ("Signed", str(given.get("signed_at", "not signed"))),
        ("Expires", str(given.get("expires", UNKNOWN))),
        ("Key", tag("code", str(given.get("key_id", UNKNOWN)))),
    ]
    reasons = [
        [
            tag("code", str(reason.get("gate"))),
            corpus.pill("waived" if reason.get("waived") else str(reason.get("status"))),
            str(reason.get("severity")),
            str(reason.get("owner")),
            foreign(str(reason.get("subject"))),
            foreign(str(reason.get("detail"))),
        ]
        for reason in given.get("reasons", [])
    ]
    cited = cite(found, "/verdict")
    looser = policy.get("differences") or []
    waivers = [
        [
            tag("code", str(waiver.get("gate"))),
            foreign(str(waiver.get("result", UNKNOWN))),
            compact(waiver.get("observed")) if isinstance(waiver.get("observed"), (int, float)) else UNKNOWN,
            compact(waiver["max_deviation"]) if waiver.get("max_deviation") is not None else "no number",
            str(waiver.get("approver")),
            str(waiver.get("expires")),
            foreign(str(waiver.get("reason"))),
        ]
        for waiver in given.get("waivers", [])
    ]
    return join([
        run.facts_list(pairs, cited),
        table("What did not pass", ["gate", "status", "severity", "owner", "subject", "detail"], reasons,
              cites=[cited] * len(reasons)),
        table("Waivers", ["gate", "result", "observed", "up to", "approver", "until", "reason"], waivers,
              cites=[cited] * len(waivers)),
        table("Looser than the parent policy", ["difference"], [[foreign(str(line))] for line in looser],
              cites=[cited] * len(looser))
        if looser
        else None,
    ])  # fmt: skip
