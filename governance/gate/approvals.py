"""Approvals: differences of a policy from its parent, and required signers.

Each gate that is looser than the parent's needs the approval (`urn:assay:policy-approval:1`, a signed statement about
the policy's digest) of two people, at least one of them an owner of the gate, neither of them the submitter. Owners
and keys are those of the *parent*: a policy cannot appoint its own approvers. Promise: a change that cannot be shown
to be as strict as before counts as loosened: another column, another regex, another owner, another key. A chain of
parents is compared link by link, so that no loose policy can be put between two strict ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from governance.gate.gate_expectations import NEEDS
from governance.gate.policy import EnergyBudget, Gate, Policy
from governance.gate.signed_statements import Signed, SignedStatement, person_fault

APPROVAL = "urn:assay:policy-approval:1"
REQUIRED = 2
"""People who must approve each loosened gate."""
_POLICY = "policy"
_STRENGTH = re.compile("(warns|blocks) on (.+)")
_STRENGTH_SUITES = {"fairness": ("association", "tone", "impact", "parity", "instruments", "intersections")}
"""Word of `strength` -> suites; any other names a suite."""


class Approval(Signed):
    """One person's approval of a policy that is looser than its parent."""

    parent: str
    """The parent's digest; the statement is about the policy's."""
    differences: tuple[str, ...]
    """Approved changes, for the reader: the policy's digest fixes them."""


APPROVALS: dict[str, type[Signed]] = {APPROVAL: Approval}
"""Kinds of statement in the folder of approvals."""


@dataclass(frozen=True)
class Difference:
    """One way in which a policy differs from its parent."""

    gate: str
    """The gate's id; "policy" for what concerns all of them."""
    words: str
    loosened: bool
    owners: tuple[str, ...]
    """People of the parent, at least one of which must approve."""

    def text(self) -> str:
        """One line for the reader of a verdict."""
        return f"{'looser' if self.loosened else 'changed'}: {self.gate}: {self.words}"


@dataclass(frozen=True)
class Unapproved:
    """A loosened gate that lacks approvals."""

    gate: str
    owner: str
    words: str


def policy_differences(policy: Policy, parent: Policy) -> list[Difference]:
    """Differences of a policy from its parent.

    The gates are in the parent's order, the rest after them.
    """
    ours, theirs = {gate.id: gate for gate in policy.gate}, {gate.id: gate for gate in parent.gate}
    found = []
    for name, gate in theirs.items():
        owners = parent.owners_of(gate)
        pairs = _gate(ours[name], gate) if name in ours else [("is gone", True)]
        found += [Difference(name, words, loosened, owners) for words, loosened in pairs]
    found += [Difference(name, "is new", False, ()) for name in ours if name not in theirs]
    return [*found, *_whole(policy, parent)]


def _gate(ours: Gate, theirs: Gate) -> Iterator[tuple[str, bool]]:
    """Changed fields of a gate, and whether they loosen it."""
    for field in Gate.model_fields:
        new, old = getattr(ours, field), getattr(theirs, field)
        if new == old:
            continue
        looser = field not in _LOOSER or _LOOSER[field](ours, theirs)
        yield f"{field} is {_text(new)}, was {_text(old)}", looser


def _text(value: Any) -> str:
    if isinstance(value, float):
        return repr(value).removesuffix(".0")  # two bounds that differ are never written alike
    if isinstance(value, tuple):
        return ", ".join(value) or "empty"
    return "not set" if value is None or value in ("", {}) else str(value)


def _values(ours: Gate, theirs: Gate) -> bool:
    """Looser values: more allowed, or fewer columns required.

    A list of licences that was replaced, or added to, counts as well.
    """
    if not NEEDS[ours.expectation].allows_values:
        return bool(set(theirs.values) - set(ours.values))
    return not (theirs.values and ours.values) or bool(set(ours.values) - set(theirs.values))


_STRICTNESS = {"upper_ci": 0, "point": 1, "lower_ci": 2}  # against a minimum; against a maximum the other way round


def _rule(ours: Gate, theirs: Gate) -> bool:
    """Order of interval ends with one bound.

    Between two bounds a change may open either side.

    `whole_ci` has no place in the order: what a bound cuts is inconclusive there, passed or failed elsewhere. Nor has a
    value without an interval, which `point` alone judges, where the gate lets through what is not judged.
    """
    if "whole_ci" in (ours.rule, theirs.rule):
        return True
    if theirs.rule == "point" and (ours.max_missing > 0 or ours.on_inconclusive == "show"):
        return True
    rise = _STRICTNESS[ours.rule] - _STRICTNESS[theirs.rule]
    if theirs.min is not None and theirs.max is not None:
        return True
    return rise < 0 if theirs.min is not None else rise > 0


def _min(ours: Gate, theirs: Gate) -> bool:
    return _cuts(ours, theirs) or (theirs.min is not None and (ours.min is None or ours.min < theirs.min))


def _max(ours: Gate, theirs: Gate) -> bool:
    return _cuts(ours, theirs) or (theirs.max is not None and (ours.max is None or ours.max > theirs.max))


def _cuts(ours: Gate, theirs: Gate) -> bool:
    """Return whether a narrower bound may open a gate that closed.

    It cuts other rows. One that was cut may become a failure, of which `mostly` allows some; one that was judged may
    leave too few, which is only shown.
    """
    shown = ours.on_inconclusive == "show" and ours.min_rows > 1
    return ours.rule == "whole_ci" and theirs.severity == "critical" and (ours.mostly < 1 or shown)


_LOOSER: dict[str, Callable[[Gate, Gate], bool]] = {
    "min": _min,
    "max": _max,
    "values": _values,
    "rule": _rule,
    # code of one's own may take it for anything
    "mostly": lambda ours, theirs: ours.mostly < theirs.mostly or ":" in ours.gx,
    # more makes a failure inconclusive, and where that is shown alone, nothing closes the gate
    "min_rows": lambda ours, theirs: ours.min_rows < theirs.min_rows or ours.on_inconclusive == "show",
    "max_missing": lambda ours, theirs: ours.max_missing > theirs.max_missing,
    "severity": lambda ours, theirs: ours.severity == "warning",
    "on_inconclusive": lambda ours, theirs: ours.on_inconclusive == "show",
    "sha256": lambda ours, theirs: bool(theirs.sha256),
    "seconds": lambda ours, theirs: False,  # more than it takes is an error, never a pass
    "why": lambda ours, theirs: False,
}
"""Field -> whether its change loosens a gate; a field that is not here always does. `min_n` is not: a lower one judges
on less, a higher one leaves small groups out of what is judged."""


def _whole(policy: Policy, parent: Policy) -> Iterator[Difference]:
    everybody = tuple(sorted({person for people in parent.owners.values() for person in people}))
    yield from _licences(policy, parent, everybody)
    yield from _strength(policy, parent, everybody)
    if policy.verdict_days != parent.verdict_days:
        words = f"verdict_days is {policy.verdict_days}, was {parent.verdict_days}"
        yield Difference(_POLICY, words, policy.verdict_days > parent.verdict_days, everybody)
    if policy.verified_origin != parent.verified_origin:
        words = f"verified_origin is {policy.verified_origin}, was {parent.verified_origin}"
        yield Difference(_POLICY, words, parent.verified_origin, everybody)
    yield from _energy(policy.energy_budget, parent.energy_budget, everybody)
    for role in sorted({*policy.owners, *parent.owners}):
        new, old = policy.owners.get(role), parent.owners.get(role)
        if new != old:
            words = f"owner {role} is {_text(new)}, was {_text(old)}"
            yield Difference(_POLICY, words, True, old or everybody)
    for name in sorted({*policy.people, *parent.people}):
        if policy.people.get(name) != parent.people.get(name):
            change = "another key" if name in policy.people and name in parent.people else "added or taken away"
            yield Difference(_POLICY, f"people: {name}: {change}", True, everybody)


def _strength(policy: Policy, parent: Policy, everybody: tuple[str, ...]) -> Iterator[Difference]:
    """Changed words for page one, or ones no longer borne out.

    Words that the gates bear out, or none, need no approval.
    """
    new, old = policy.strength, parent.strength
    claims_more = bool(new) and not _borne_out(policy)
    if new != old:
        yield Difference(_POLICY, f"strength is {_text(new)}, was {_text(old)}", claims_more, everybody)
    elif claims_more and _borne_out(parent):
        yield Difference(_POLICY, f"strength is {new}, which its gates no longer bear out", True, everybody)


def _borne_out(policy: Policy) -> bool:
    """Return whether the gates do what `strength` says.

    "warns on" asks for a gate of each named suite, "blocks on" that all of its gates block, measured or not.
    """
    if not (found := _STRENGTH.fullmatch(policy.strength)):
        return False
    for name in re.split(", | and ", found[2]):
        gates = [gate for gate in policy.gate if gate.suite in _STRENGTH_SUITES.get(name, (name,))]
        blocking = all((gate.severity, gate.on_inconclusive) == ("critical", "block") for gate in gates)
        if not gates or (found[1] == "blocks" and not blocking):
            return False
    return True


def _energy(new: EnergyBudget | None, old: EnergyBudget | None, everybody: tuple[str, ...]) -> Iterator[Difference]:
    """A budget that is gone, greater, or counts less.

    Scopes are not compared: each holds what the other leaves out.
    """
    if old is None or new is None:
        if new != old:
            yield Difference(_POLICY, f"energy_budget is {'gone' if new is None else 'new'}", new is None, everybody)
        return
    looser = {
        "kilowatt_hours": new.kilowatt_hours > old.kilowatt_hours,
        "scope": True,
        "bound": new.bound == "central",
        "unknown": new.unknown == "allow",
    }
    for field, loosened in looser.items():
        if (value := getattr(new, field)) != (before := getattr(old, field)):
            words = f"energy_budget.{field} is {_text(value)}, was {_text(before)}"
            yield Difference(_POLICY, words, loosened, everybody)


def _licences(policy: Policy, parent: Policy, everybody: tuple[str, ...]) -> Iterator[Difference]:
    new, old = set(policy.licences.allowed), set(parent.licences.allowed)
    judging = [gate for gate in parent.gate if gate.suite == "licences" and not gate.values]
    for licence in sorted(new - old):
        for gate in judging:
            yield Difference(gate.id, f"licence {licence} is allowed", True, parent.owners_of(gate))
        if not judging:
            yield Difference(_POLICY, f"licence {licence} is allowed", True, everybody)
    for licence in sorted(old - new):
        yield Difference(_POLICY, f"licence {licence} is not allowed any more", False, everybody)


def all_differences(policy: Policy) -> list[str]:
    """Every difference along the chain of parents, for the verdict."""
    return [
        f"{difference.text()} (against {parent.name})"
        for child, parent in links(policy)
        for difference in policy_differences(child, parent)
    ]


def links(policy: Policy) -> Iterator[tuple[Policy, Policy]]:
    """Each policy of the chain with its parent."""
    while policy.parent is not None:
        yield policy, policy.parent
        policy = policy.parent


def unapproved(
    policy: Policy, statements: Sequence[SignedStatement], submitters: tuple[str, ...]
) -> Iterator[Unapproved]:
    """Loosened gates that lack approvals, along the chain."""
    for child, parent in links(policy):
        loosened: dict[str, list[Difference]] = {}
        for difference in policy_differences(child, parent):
            if difference.loosened:
                loosened.setdefault(difference.gate, []).append(difference)
        if not loosened:
            continue
        approvers, faults = _approvers(child, parent, statements, submitters)
        for gate, differences in loosened.items():
            if lacking := _lacking(differences, approvers):
                words = "; ".join(difference.words for difference in differences)
                owner = next((item.owner for item in parent.gate if item.id == gate), "every owner")
                words = "; ".join([f"looser than {parent.name}: {words}", lacking, *faults])
                yield Unapproved(gate, owner, words)


def approvers(policy: Policy, statements: Sequence[SignedStatement], submitters: tuple[str, ...]) -> tuple[str, ...]:
    """People whose approval of a policy of the chain counts."""
    found = [_approvers(child, parent, statements, submitters)[0] for child, parent in links(policy)]
    return tuple(sorted(set().union(*found)))


def _approvers(
    policy: Policy, parent: Policy, statements: Sequence[SignedStatement], submitters: tuple[str, ...]
) -> tuple[set[str], list[str]]:
    """Approvers of this policy, and statements that do not count."""
    approvers, faults = set(), []
    for signed in statements:
        if signed.subject != policy.digest or not isinstance(signed.content, Approval):
            continue
        if fault := person_fault(signed, signed.content, parent.people, submitters):
            faults.append(f"approval {signed.name} does not count: {fault}")
        else:
            approvers.add(signed.content.approver)
    return approvers, faults


def _lacking(differences: Sequence[Difference], approvers: set[str]) -> str:
    """Missing approvals of one gate; "" for none."""
    said = ", ".join(sorted(approvers)) or "nobody"
    for difference in differences:
        owners = set(difference.owners)
        if len(approvers) < REQUIRED or not approvers & owners:
            names = ", ".join(sorted(owners)) or "there are none"
            return f"needs the approval of {REQUIRED} people, at least one an owner ({names}); approved by {said}"
    return ""
