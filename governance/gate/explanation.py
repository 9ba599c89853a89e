"""A verdict in words: decision, rules, signer, reasons, owners."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

IN_CORPUS = "in the corpus under licence"
"""Words of a detail that is a sentence of its own (`governance/checks/messages.py`)."""
_DID = {
    "fail": "failed",
    "error": "could not be evaluated",
    "missing": "has no result",
    "inconclusive": "is inconclusive",
}
_NAMED = 8  # gates of the line on warnings

Owners = Mapping[str, Sequence[str]]
"""Owner (a role) -> people."""


def explain(verdict: Mapping[str, Any], owners: Owners | None = None) -> str:
    """The verdict for a terminal.

    It has the decision and the rules, then what closes the gate in the report's sentences, waivers, one line on gates
    that only warn, the signer, and the next step.
    """
    rows: Sequence[Mapping[str, Any]] = verdict["reasons"]
    closing = [row for row in rows if row["closes"]]
    lines = [f"verdict {verdict['verdict']} under {policy_words(verdict)}, {site_words(verdict)}"]
    for gate, sentence in closing_sentences(closing, owners or {}):
        lines.append(f"  {sentence}" if sentence.startswith(gate) else f"  {gate}: {sentence}")
    lines += [f"  {reason_words(row)}" for row in rows if row["waived"]]
    warned = list(dict.fromkeys(str(row["gate"]) for row in rows if not row["closes"] and not row["waived"]))
    if warned:
        names = ", ".join(warned[:_NAMED]) + (f" and {len(warned) - _NAMED} more" if len(warned) > _NAMED else "")
        lines.append(
            f"  {counted(len(warned), 'gate')} that cannot block did not pass: {names} (details in the report)"
        )
    lines += [f"  {difference}" for difference in verdict["policy"]["differences"]]
    lines.append(f"  {signer_words(verdict)}")
    if not verdict.get("anchored", True):
        lines.append("  no head of this journal was kept here before: lines cut from its end would not have been seen")
    if closing:
        lines.append(f"  next: {_next(closing)}")
    return "\n".join(lines)


def _next(closing: Sequence[Mapping[str, Any]]) -> str:
    again = "then repeat the command"
    if any(row["status"] in ("error", "missing") for row in closing):
        return f"a gate without a result cannot be waived; correct what its line names, {again}"
    return f"change the corpus or its settings, {again}; or the owner decides: assay governance review CONFIG"


def closing_sentences(closing: Sequence[Mapping[str, Any]], owners: Owners) -> Iterator[tuple[str, str]]:
    """Gate and sentence of each gate that closes: result, detail, decision."""
    by_gate: dict[str, list[Mapping[str, Any]]] = {}
    for row in closing:
        by_gate.setdefault(str(row.get("gate")), []).append(row)
    for gate, rows in by_gate.items():
        first, more = rows[0], f" and {counted(len(rows) - 1, 'more result')}" if len(rows) > 1 else ""
        detail = "; ".join(part for part in str(first.get("detail") or "").split("; ") if part)
        words = detail or str(first.get("status"))
        if IN_CORPUS not in detail:
            words = f"{gate} on {first.get('subject')}{more} {_DID.get(str(first.get('status')), 'failed')}: {words}"
        owner = str(first.get("owner"))
        people = ", ".join(map(str, owners.get(owner, ())))
        yield gate, f"{words}. Decision: {owner}{f' ({people})' if people else ''}."


def counted(count: int, one: str, many: str = "") -> str:
    """1 source, 2 sources."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def reason_words(reason: Mapping[str, Any]) -> str:
    """A reason of a verdict, in one line."""
    weight = "waived, " if reason["waived"] else "" if reason["closes"] else "cannot block, "
    return (
        f"{reason['gate']} {_DID.get(str(reason['status']), reason['status'])} ({weight}owner: {reason['owner']}): "
        f"{reason['detail']} [{reason['subject']}]"
    )


def policy_words(verdict: Mapping[str, Any]) -> str:
    """The policy of a verdict with its strength.

    An example is "policy assay-default (warns on fairness)".
    """
    policy = verdict["policy"]
    strength = policy.get("strength")
    return f"policy {policy['name']} ({strength})" if strength else f"policy {policy['name']}"


def site_words(verdict: Mapping[str, Any]) -> str:
    """Site policy of a verdict, in words."""
    site = verdict.get("site")
    return f"under the site's policy of {site['name']}" if site else "not under a site's policy"


def signer_words(verdict: Mapping[str, Any]) -> str:
    """Signer of a verdict, and whether a person approved, in words."""
    people = verdict.get("people") or {}
    approved = ", ".join(people.get("approved") or [])
    if person := people.get("signer"):
        return f"signed by {person}" + (f"; approved by {approved}" if approved else "")
    key = f", with the key of {people['key']}" if people.get("key") else ""
    return (
        f"signed by the account that ran it{key}; {f'approved by {approved}' if approved else 'no person has approved'}"
    )
