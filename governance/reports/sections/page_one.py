"""Page one: model, verdict, energy, waste, three findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from governance.gate.explanation import closing_sentences, counted
from governance.lineage.unlisted_files import TO_ROOT
from governance.reports.facts.citations import cite
from governance.reports.facts.problems import closing, uncovered
from governance.reports.html.markup import (
    UNKNOWN,
    Child,
    Html,
    duration,
    foreign,
    kilowatt_hours,
    number,
    share,
    size,
    tag,
)
from governance.reports.sections.energy_sections import grams
from governance.reports.sections.kpi_section import tile as kpi_tile
from governance.reports.sections.model_words import loss_unit, model_line, unverified_origin
from governance.reports.sections.run_sections import not_trained

BADGES = {"PASS": "good", "WAIVED": "warn", "INCONCLUSIVE": "warn", "BLOCK": "bad", "ERROR": "bad", "NOT_RUN": "bad"}
CARDS = 3
_NEXT = 6
_SOURCES = 6
_IN_VERDICT = ("/verdict",)


def front(facts: Mapping[str, Any]) -> Html:
    """The whole of page one."""
    run = facts["run"]
    when = run["finished"].replace("T", " ").replace("Z", " UTC")
    line = model_line(facts)
    return tag(
        "header",
        tag("p", "Assay report", tag("span", f" · {when}") if when else None, class_="eyebrow"),
        tag("h1", foreign(run["name"] or "Unnamed run")),
        tag("p", line or None, tag("span", foreign(_sources(facts))), class_="lead"),
        _verdict(facts),
        not_trained(facts),
        _tiles(facts),
        _findings(facts),
    )


def _sources(facts: Mapping[str, Any]) -> str:
    """Sources in the corpus, and those that are not."""
    names: dict[str, list[str]] = {}
    for row in facts["sources"]:
        names.setdefault("kept" if row["documents_kept"] else row["fate"], []).append(row["name"])
    heads = {"kept": "Corpus of", "refused: licence": "Refused for their licence:", "nothing left": "Nothing left of"}
    sentences = [
        f"{head} {', '.join(names[fate][:_SOURCES])}"
        + (f" and {len(names[fate]) - _SOURCES} more" if len(names[fate]) > _SOURCES else "")
        for fate, head in heads.items()
        if fate in names
    ]
    return f"{'. '.join(sentences)}." if sentences else "No sources."


def _verdict(facts: Mapping[str, Any]) -> Html:
    word = facts["summary"]["verdict"]
    sentences = [tag("li", foreign(sentence)) for sentence in reasons(facts)]
    small = [tag("span", signer(facts)), " ", tag("span", rules(facts)), " ",
             tag("span", f"Valid {expiry(facts)}." if facts["verdict"].get("expires") else "")]  # fmt: skip
    if "data_docs" in facts:
        small += [" ", tag("a", "Data Docs of Great Expectations", href=f"{TO_ROOT}{facts['data_docs']}")]
    origin = unverified_origin(facts)
    if origin:
        sentences.append(tag("li", tag("strong", "Parent's origin not verified"), foreign(f": {origin}."),
                             cite(facts, "/training/origin")))  # fmt: skip
    return tag(
        "div",
        tag("span", word, class_=f"badge {BADGES.get(word, 'bad')}"),
        tag("div", tag("p", tag("strong", meaning(facts)), cite(facts, "/summary/verdict")),
            tag("ul", sentences, class_="why"), tag("p", small, class_="note")),
        class_=f"verdict {BADGES.get(word, 'bad')}",
    )  # fmt: skip


def _tiles(facts: Mapping[str, Any]) -> Html:
    summary = facts["summary"]
    kept = summary["documents_kept"]
    tiles = [
        _tile(facts, f"Energy{', estimated' if facts['energy']['estimated'] else ''}",
              kilowatt_hours(summary["energy_joules"]), _between(summary), "energy_joules"),
        _carbon(facts),
        _tile(facts, "Wasted by failed attempts", kilowatt_hours(summary["energy_wasted_joules"]), _wasted(facts),
              "energy_wasted_joules"),
        _tile(facts, "Corpus", f"{number(kept)} documents", _corpus(facts), "documents_kept", "train_tokens"),
    ]  # fmt: skip
    if facts["training"]:
        loss, bits = f"{number(summary['validation_loss'])} {loss_unit(facts['training'])}", summary["bits_per_byte"]
        head, more = (loss, "") if bits is None else (f"{number(bits)} bits per byte", f"loss {loss}; ")
        note = f"{more}training loss {number(summary['final_loss'])}"
        tiles.append(_tile(facts, "Validation", head, note, "validation_loss"))
    return tag("dl", tiles, kpi_tile(facts), class_="tiles", id="figures")


def _tile(facts: Mapping[str, Any], name: str, value: Child, note: Child, *fields: str) -> Html:
    value, _, unit = value.partition(" ") if isinstance(value, str) else (value, "", "")
    citation = cite(facts, *(f"/summary/{field}" for field in fields))
    big = [value, tag("span", f" {unit}")] if unit else value
    return tag("div", tag("dt", name, citation), tag("dd", big, tag("small", note)))


def _corpus(facts: Mapping[str, Any]) -> str:
    summary = facts["summary"]
    kept, came = summary["documents_kept"], summary["documents_in"]
    part = f" ({share(kept / came)})" if kept is not None and came else ""
    tokens = (
        f"{number(summary['train_tokens'])} training tokens, {number(summary['validation_tokens'])} validation tokens"
    )
    return f"of {number(came)}{part}, {size(summary['bytes_kept'])}; {tokens}{_synthetic(facts['synthetic'])}"


def _synthetic(synthetic: Mapping[str, Any]) -> str:
    """Share of synthetic text; "" without any source of it."""
    if not synthetic["sources"]:
        return ""
    return (
        f"; synthetic: {share(synthetic['token_share'])} of tokens, {share(synthetic['document_share'])} of documents"
    )


def _between(summary: Mapping[str, Any]) -> str:
    low, high = summary["energy_low_joules"], summary["energy_high_joules"]
    if low is None:
        return "bounds unknown"
    if high is None:
        return f"at least {kilowatt_hours(low)}, no upper bound"
    return f"{kilowatt_hours(low).removesuffix(' kWh')} to {kilowatt_hours(high)}"


def _carbon(facts: Mapping[str, Any]) -> Html:
    summary = facts["summary"]
    value, low, high = (summary.get(f"carbon_{name}grams") for name in ("", "low_", "high_"))
    basis = str(summary.get("carbon_basis") or "")
    if value is None:
        missing = (
            "the energy is unknown" if summary["energy_joules"] is None else "no grid intensity: set energy.factors"
        )
        return _tile(facts, "CO2e", UNKNOWN, missing, "energy_joules")
    between = f"{grams(low)} to {grams(high)}" if high is not None else f"at least {grams(low)}"
    short = ": ".join(basis.partition("; ")[0].split(": ")[:2])  # without source and year
    short += next((f"; {part.partition(':')[0]}" for part in basis.split("; ")[1:] if part.startswith("PUE ")), "")
    return _tile(
        facts, "CO2e, location-based", grams(value), [between, f"; {short}" if short else None], "carbon_grams"
    )


def _wasted(facts: Mapping[str, Any]) -> str:
    total, wasted = facts["energy"]["total"], facts["summary"]["energy_wasted_joules"]
    if wasted is None:
        return "no ledger of failed attempts" if total["from"] == "manifests" else "a failed attempt was not measured"
    part = f"{share(wasted / total['joules'])} of all" if total["joules"] else "nothing was measured"
    carbon = facts["summary"].get("carbon_wasted_grams")
    cost = f", {grams(carbon)} CO2e" if carbon else ""
    attempts = sum(row["count"] for row in facts["faults"]["ended"])
    unseen = total["unseen_seconds"]
    lost = f"; at most {duration(unseen)} before a kill is unmetered" if unseen else ""
    return f"{part}{cost}; {counted(attempts, 'failed attempt')}{lost}"


def _findings(facts: Mapping[str, Any]) -> Html:
    """Three findings as cards with n and example, the others as links."""
    rows = [row for row in facts["first"] if row["at"] not in _IN_VERDICT]
    inner: Child
    if rows:
        cards = [_card(facts, row) for row in rows[:CARDS]]
        rest = [
            tag("li", tag("a", foreign(row["what"]), href=f"#{row['section']}")) for row in rows[CARDS : CARDS + _NEXT]
        ]
        inner = [tag("div", cards, class_="cards"),
                 tag("ul", tag("li", "Also:"), rest, class_="next") if rest else None]  # fmt: skip
    else:
        inner = tag("p", f"No findings: every check passed and {waste_clause(facts['energy']['total'])}.")
    name = "Main findings"
    return tag("section", tag("h2", name), inner, class_="first", id="first", aria_label=name)


def _card(facts: Mapping[str, Any], row: Mapping[str, str]) -> Html:
    citation = cite(facts, f"/first/{facts['first'].index(row)}")
    return tag(
        "article",
        tag("h3", tag("a", foreign(row["what"]), href=f"#{row['section']}")),
        tag("p", foreign(row["detail"])),
        tag("p", f"n: {row['n']}" if row["n"] else None, citation, class_="note"),
        tag("blockquote", foreign(row["example"])) if row["example"] else None,
    )


def waste_clause(total: Mapping[str, Any]) -> str:
    """Wasted energy as a clause."""
    if total["wasted"] is None or (total["wasted"] and not total["joules"]):
        return "the wasted energy is unknown"
    if total["wasted"]:
        return f"{share(total['wasted'] / total['joules'])} of the energy was wasted"
    return "no energy was wasted"


_SHOWN = 3  # reasons
_DID = {"fail": "failed", "error": "could not be carried out", "missing": "without a result"}
_PLAIN = {
    "PASS": "Every critical gate passed. The corpus may be trained on.",
    "WAIVED": "The corpus may be trained on: the owners of the failed gates have waived them.",
    "BLOCK": "A critical gate failed. The corpus may not be trained on.",
    "INCONCLUSIVE": "A critical gate had too little data to judge, which does not count as a pass.",
    "ERROR": "A check could not be carried out, which does not count as a pass.",
    "NOT_RUN": "A gate has no result, which does not count as a pass.",
}


def meaning(facts: Mapping[str, Any]) -> str:
    """Meaning of the verdict for the corpus."""
    word = facts["summary"]["verdict"]
    text = _PLAIN.get(word, "This release does not know this verdict.")
    untouched = word not in ("PASS", "WAIVED") and not facts["training"] and not facts["begun"]
    return f"{text} Nothing was trained." if untouched else text


def reasons(facts: Mapping[str, Any]) -> list[str]:
    """Reasons of a closed gate, or exceptions of an open one."""
    word = facts["summary"]["verdict"]
    if word in ("PASS", "WAIVED"):
        return list(_open_reasons(facts))
    sentences = [sentence for _, sentence in closing_sentences(closing(facts), facts["owners"])]
    more = [f"{counted(len(sentences) - _SHOWN, 'more reason')} below."] if len(sentences) > _SHOWN else []
    return [*(sentences[:_SHOWN] or ["The verdict gives no reason."]), *more]


def _open_reasons(facts: Mapping[str, Any]) -> Iterator[str]:
    counts = facts["verdict"].get("summary") or {}
    others = [f"{count:,} {_DID.get(status, status)}" for status, count in sorted(counts.items())
              if status != "pass" and count]  # fmt: skip
    only = ", in non-blocking gates" if facts["summary"]["verdict"] == "PASS" else ""
    rest = f"{' and '.join(others)}{only}" if others else "none failed"
    yield f"{counted(counts.get('pass', 0), 'check')} passed; {rest}."
    for words, unmeasured, _ in uncovered(facts):
        yield f"{words}; {unmeasured}."
    for waiver in facts["verdict"].get("waivers", [])[:_SHOWN]:
        yield f"Waived: {waiver.get('gate')} by {waiver.get('approver')} until {waiver.get('expires')}."


def signer(facts: Mapping[str, Any]) -> str:
    """Signer, time and approval."""
    when = str(facts["verdict"].get("signed_at") or "").replace("T", " ").replace("Z", " UTC")
    return f"The verdict{f' of {when}' if when else ''} is {facts['summary']['signer']}."


def rules(facts: Mapping[str, Any]) -> str:
    """Policy, its strength, and the site policy."""
    return f"Judged by {facts['summary']['policy']}, {facts['summary']['site']}."


def expiry(facts: Mapping[str, Any]) -> str:
    """Expiry and scope of the verdict."""
    verdict = facts["verdict"]
    names = len(verdict.get("subjects") or {})
    return f"until {str(verdict.get('expires', 'unknown'))[:10]}, for {number(names)} signed files"
