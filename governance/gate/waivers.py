"""Waivers, refusals and withdrawals: signed decisions on one result.

A waiver (`urn:assay:waiver:1`) lets a result through that did not pass; a refusal (`urn:assay:refusal:1`) closes the
gate on it until an owner withdraws it. Both are signed statements (`governance.gate.signed_statements`) about the
encoded corpus' digest; a withdrawal (`urn:assay:withdrawal:1`, `refusals.py`) is one about the refusal's SHA-256. A
whole predicate of a waiver:

    {"gate": "sources.quarantined_share", "result": "sources", "policy": "...64 hex", "approver": "ann",
     "key": "...64 hex", "reason": "Two torn records of the 1990 debates were read by a person.",
     "observed": 0.0013, "max_deviation": 0.0005, "expires": "2027-01-31", "signed_at": "2027-01-01T09:00:00Z"}

Promise: a waiver holds only when `ruling_faults` and `_cover_fault` find nothing. One that does not hold, for a result
that did not pass, closes whatever the gate's severity, and gives the reason: it was an attempt to pass the gate.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator

from governance.gate.gate_expectations import NEEDS, bound_text
from governance.gate.policy import Gate, Policy
from governance.gate.signed_statements import Signed, SignedStatement, person_fault

WAIVER = "urn:assay:waiver:1"
REFUSAL = "urn:assay:refusal:1"
WITHDRAWAL = "urn:assay:withdrawal:1"
WAIVABLE = ("fail", "inconclusive")
"""Statuses that can be waived; of an error or a missing result nothing is known."""


class Refusal(Signed):
    """An owner's refusal of one result of one corpus."""

    gate: str
    """The gate's id."""
    result: str
    """The subject of the check result: a file or a table."""
    policy: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The digest of the policy that it was judged by."""


class Waiver(Refusal):
    """An owner's exception to one result, limited in time and size."""

    observed: float | str | None
    """Value that was observed when it was signed, for the reader."""
    max_deviation: float | None = Field(ge=0)
    """The greatest deviation (`deviation`) that it covers; None covers only a result without a number."""
    expires: str
    """The last day that it holds, YYYY-MM-DD, in UTC."""

    @field_validator("expires")
    @classmethod
    def _is_day(cls, value: str) -> str:
        try:
            if datetime.date.fromisoformat(value).isoformat() != value:  # "2030-W01-1" and "20300101" are days, too
                raise ValueError
        except ValueError:
            raise ValueError("is not a day; write it as YYYY-MM-DD") from None
        return value


class Withdrawal(Signed):
    """An owner's withdrawal of one refusal, about its SHA-256."""

    refusal: str
    """The refusal's file name, for the reader."""
    gate: str
    """The gate's id."""
    corpus: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The digest of the encoded corpus."""


RULINGS: dict[str, type[Signed]] = {WAIVER: Waiver, REFUSAL: Refusal, WITHDRAWAL: Withdrawal}
"""Kinds of statement in the folder of waivers."""


@dataclass(frozen=True)
class Case:
    """The corpus to judge, its policy, and the people involved."""

    policy: Policy
    corpus: str
    """The digest of the encoded corpus."""
    today: datetime.date
    submitters: tuple[str, ...] = ()
    verdict_key: str = ""
    """The id of the key that signs the verdict."""


@dataclass(frozen=True)
class Ruled:
    """Ruling of signed statements on a failed result."""

    waiver: dict[str, Any] | None
    """The waiver that holds."""
    faults: tuple[str, ...]
    """Reasons why others do not hold, and refusals; each closes."""


def deviation(gate: Gate, observed: float | str | None) -> float | None:
    """Distance of a result beyond its gate's limit; None without number.

    For a share of rows that fulfil the gate it is the difference from `mostly`; for a value the distance beyond the
    nearer bound; for missing columns their number.
    """
    needs = NEEDS[gate.expectation]
    if needs.observes == "names":
        return float(len(str(observed).split(", "))) if observed else 0.0
    if observed is None or isinstance(observed, str) or not needs.observes:
        return None
    if needs.observes == "share" or (needs.judges == "rows" and gate.mostly < 1):
        return max(0.0, _rounded(gate.mostly - observed))
    below = 0.0 if gate.min is None else gate.min - observed
    above = 0.0 if gate.max is None else observed - gate.max
    return max(0.0, _rounded(below), _rounded(above))


def _rounded(number: float) -> float:
    """A number with 12 significant digits, as observed numbers have.

    A person copies the deviation that is shown.
    """
    return float(f"{number:.12g}")


def rule_on(
    case: Case, gate: Gate, result: tuple[str, str, float | str | None], statements: Sequence[SignedStatement]
) -> Ruled:
    """Ruling on a result by subject, status and observed value.

    A waiver that holds wins over others that do not; a refusal wins over every waiver.
    """
    subject, status, observed = result
    held: dict[str, Any] | None = None
    faults: list[str] = []
    refusals: list[str] = []
    for signed in statements:
        ruling = signed.content
        if not isinstance(ruling, Refusal) or ruling.gate != gate.id or _on_another_result(case, signed, subject):
            continue
        if signed.kind == REFUSAL:
            refusals += [refusal_words(signed, ruling, case.policy.people)] if signed.subject == case.corpus else []
            continue
        if status not in WAIVABLE or not isinstance(ruling, Waiver):
            continue
        found = [*ruling_faults(case, gate, signed), *filter(None, [_cover_fault(gate, ruling, observed)])]
        if found:
            faults.append(f"waiver {signed.name} does not hold: {'; '.join(found)}")
        else:
            held = {**ruling.model_dump(mode="json"), "file": signed.name, "sha256": signed.sha256}
    if refusals:
        return Ruled(None, (*refusals, *faults))
    return Ruled(held, () if held else tuple(faults))


def _on_another_result(case: Case, signed: SignedStatement, subject: str) -> bool:
    """Statements on this corpus about another file or table."""
    return signed.subject == case.corpus and isinstance(signed.content, Refusal) and signed.content.result != subject


def refusal_words(signed: SignedStatement, ruling: Refusal, people: Mapping[str, str]) -> str:
    """A refusal for the reader.

    It closes even when its signature does not hold or no person signed it: in doubt the gate stays closed.
    """
    fault = person_fault(signed, ruling, people, ())
    doubt, end = (f" ({fault})", "removed") if fault else ("", "withdrawn by an owner")
    return f"refused by {ruling.approver}{doubt}: {ruling.reason} (until {signed.name} is {end})"


def ruling_faults(case: Case, gate: Gate, signed: SignedStatement) -> list[str]:
    """Reasons why a waiver does not hold; empty if it does."""
    waiver = signed.content
    if not isinstance(waiver, Waiver):
        return [signed.fault or "is not a waiver"]
    faults = [person_fault(signed, waiver, case.policy.people, case.submitters)]
    if waiver.approver not in case.policy.owners_of(gate):
        owners = ", ".join(case.policy.owners_of(gate)) or "nobody"
        faults.append(f"{waiver.approver} is not an owner of this gate; {gate.owner} is: {owners}")
    if signed.signer and signed.signer == case.verdict_key:
        faults.append("the key that signed it signs the verdict as well: another person must give the verdict")
    if signed.subject != case.corpus:
        faults.append(f"it is for another corpus ({signed.subject[:16]}…)")
    if waiver.policy != case.policy.digest:
        faults.append(f"it is for another policy ({waiver.policy[:16]}…)")
    if case.today > datetime.date.fromisoformat(waiver.expires):
        faults.append(f"it expired on {waiver.expires}")
    if waiver.signed_at[:10] > case.today.isoformat():
        faults.append(f"it was signed on {waiver.signed_at[:10]}, which is not yet: a clock is wrong")
    return [fault for fault in faults if fault]


def _cover_fault(gate: Gate, waiver: Waiver, observed: float | str | None) -> str:
    found, most = deviation(gate, observed), waiver.max_deviation
    if found is None:
        return "" if most is None else f"it covers a deviation of up to {bound_text(most)}; this result has no number"
    if most is None:
        return f"it covers a result without a number; here the deviation is {bound_text(found)}"
    return "" if found <= most else f"it covers a deviation of up to {bound_text(most)}; here it is {bound_text(found)}"
