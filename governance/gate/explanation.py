"""A verdict in words: decision, rules, signer, reasons, owners."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def explain(verdict: Mapping[str, Any]) -> str:
    """The verdict for a terminal.

    Decision, rules, signer, what is looser than in the parent, then each reason.
    """
    lines = [f"verdict {verdict['verdict']} under {policy_words(verdict)}, {site_words(verdict)}"]
    lines.append(f"  {signer_words(verdict)}")
    if not verdict.get("anchored", True):
        lines.append("  no head of this journal was kept here before: lines cut from its end would not have been seen")
    lines += [f"  {difference}" for difference in verdict["policy"]["differences"]]
    lines += [f"  {reason_words(reason)}" for reason in verdict["reasons"]]
    return "\n".join(lines)


def reason_words(reason: Mapping[str, Any]) -> str:
    """A reason of a verdict, in one line."""
    mark = "waived " if reason["waived"] else "" if reason["closes"] else "shown "
    return (
        f"{mark}{reason['status']} {reason['gate']} ({reason['severity']}, owner: {reason['owner']}): "
        f"{reason['detail']} [{reason['subject']}]"
    )


def policy_words(verdict: Mapping[str, Any]) -> str:
    """The policy of a verdict with its strength.

    "policy assay-default (warns on fairness)".
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
