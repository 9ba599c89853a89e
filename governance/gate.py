"""Checks record, the gate decides; only PASS and WAIVED open it.

A verdict is an in-toto statement in a signed envelope at `<root>/verdicts/<corpus>-<policy>.json`. Its subjects are the
encoded corpus and each of its token shards; its predicate is the decision with every reason, the policy's digest, the
audit's digest, and an expiry. `require_open` is the one door into training: it re-checks signature, subjects, policy,
expiry and waivers each time. Whatever is unknown, empty, missing, stale, altered or in error closes the gate.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from governance.config import Section
from governance.errors import GateClosed, ManifestError
from governance.files import write_json
from governance.log import get_logger
from governance.manifest import Manifest
from governance.policy import Gate, Policy
from governance.signing import default_key_path, open_envelope, private_key, public_key, sign, statement

PREDICATE_TYPE = "urn:assay:verdict:1"
Status = Literal["pass", "fail", "inconclusive", "error", "missing"]
Decision = Literal["PASS", "WAIVED", "BLOCK", "INCONCLUSIVE", "ERROR", "NOT_RUN"]
_OPEN = ("PASS", "WAIVED")


class GovernanceConfig(Section):
    """Who decides: the policy, the key that signs verdicts, the keys that are believed."""

    policy: str = "policy.toml"
    """The policy's path, relative to the run's file."""
    signing_key: str = ""
    """Path of the private key; empty: the user's own, made on first use."""
    trusted_keys: tuple[str, ...] = ()
    """Public key files whose verdicts open the gate; empty: the signing key's own."""

    def key_path(self, folder: Path) -> Path:
        """Where the signing key lies; relative paths are taken from the run's file."""
        return folder / self.signing_key if self.signing_key else default_key_path()


@dataclass(frozen=True)
class CheckResult:
    """What one gate found in one subject; never an exception, never left out."""

    gate: str
    subject: str
    """The file or table that was checked, relative to the root."""
    status: Status
    observed: float | str | None
    """The telling number: a share, a mean, a quantile, a worst value."""
    rows: int
    unexpected: int
    """Rows that did not fulfil a row-wise expectation."""
    detail: str
    """In words, with the threshold."""


@dataclass(frozen=True)
class Judgement:
    """The decision on one corpus under one policy, before it is signed."""

    decision: Decision
    reasons: tuple[dict[str, Any], ...]
    """One for each result that is no pass: gate, subject, status, severity, owner, detail, waived."""
    summary: dict[str, int]
    waivers: tuple[dict[str, Any], ...]


def decide(policy: Policy, results: Sequence[CheckResult], corpus: str, today: datetime.date) -> Judgement:
    """Judge the results of one corpus (its digest) under a policy.

    A failed or inconclusive critical gate can be waived; an error or a missing result cannot: there is nothing to
    waive where nothing is known. A result for a gate that the policy does not know is an error too.
    """
    gates = {gate.id: gate for gate in policy.gates()}
    seen = {result.gate for result in results}
    absent = [CheckResult(name, "-", "missing", None, 0, 0, "no result") for name in gates if name not in seen]
    used: dict[str, dict[str, Any]] = {}
    reasons = []
    for result in sorted([*results, *absent], key=lambda item: (item.gate, item.subject)):
        if result.status == "pass" and result.gate in gates:
            continue
        gate = gates.get(result.gate)
        waiver = _waiver(policy, result, corpus, today) if gate is not None else None
        if waiver is not None:
            used[result.gate] = waiver
        reasons.append(_reason(result, gate, waiver is not None))
    decision = _decision(reasons)
    summary: dict[str, int] = dict(sorted(Counter(str(result.status) for result in [*results, *absent]).items()))
    return Judgement(decision, tuple(reasons), summary, tuple(used.values()))


def _waiver(policy: Policy, result: CheckResult, corpus: str, today: datetime.date) -> dict[str, Any] | None:
    if result.status not in ("fail", "inconclusive"):
        return None
    for waiver in policy.waiver:
        fits = waiver.gate == result.gate and waiver.subject == corpus
        if fits and today <= datetime.date.fromisoformat(waiver.expires):
            return waiver.model_dump(mode="json")
    return None


def _reason(result: CheckResult, gate: Gate | None, waived: bool) -> dict[str, Any]:
    known = {"severity": "critical", "owner": "unknown", "why": "no such gate in the policy"}
    if gate is not None:
        known = {"severity": gate.severity, "owner": gate.owner, "why": gate.why}
    status = result.status if gate is not None else "error"
    return {**asdict(result), **known, "status": status, "waived": waived}


def _decision(reasons: Sequence[Mapping[str, Any]]) -> Decision:
    standing = {
        reason["status"]
        for reason in reasons
        if not reason["waived"] and (reason["severity"] == "critical" or reason["status"] in ("error", "missing"))
    }
    for status, decision in _CLOSING:
        if status in standing:
            return decision
    return "WAIVED" if any(reason["waived"] for reason in reasons) else "PASS"


_CLOSING: tuple[tuple[Status, Decision], ...] = (
    ("fail", "BLOCK"),
    ("error", "ERROR"),
    ("missing", "NOT_RUN"),
    ("inconclusive", "INCONCLUSIVE"),
)


def verdict_path(tokens: Manifest, policy: Policy, root: Path) -> Path:
    """Where the verdict on this corpus under this policy lies."""
    return root / "verdicts" / f"{tokens.digest[:16]}-{policy.digest[:16]}.json"


def give_verdict(
    judgement: Judgement,
    tokens: Manifest,
    audit: Manifest,
    policy: Policy,
    governance: tuple[GovernanceConfig, Path],
    root: Path,
) -> dict[str, Any]:
    """Sign the judgement; an unexpired verdict that says the same of the same audit stands as it is.

    Args:
        judgement: what `decide` found.
        tokens: the encoded corpus.
        audit: the artifact that holds the results.
        policy: what it was judged by.
        governance: the section and the folder that its paths are relative to.
        root: the artifacts' root.
    """
    config, folder = governance
    path = verdict_path(tokens, policy, root)
    today = datetime.datetime.now(datetime.UTC)
    if path.exists():
        try:
            standing = read_verdict(path, config, folder)
        except ManifestError as error:
            get_logger(__name__).warning("%s; it is given anew", error)
        else:
            same = standing["audit"]["digest"] == audit.digest and standing["verdict"] == judgement.decision
            if same and standing["expires"] > _stamp(today):
                return standing
    predicate = {
        "verdict": judgement.decision,
        "policy": {"name": policy.name, "digest": policy.digest},
        "audit": {"path": audit.path, "digest": audit.digest},
        "corpus": {"path": tokens.path, "digest": tokens.digest},
        "summary": judgement.summary,
        "reasons": list(judgement.reasons),
        "waivers": list(judgement.waivers),
        "signed_at": _stamp(today),
        "expires": _stamp(today + datetime.timedelta(days=policy.verdict_days)),
    }
    subjects = {tokens.path: tokens.digest, **{output.path: output.sha256 for output in tokens.outputs}}
    write_json(path, sign(statement(subjects, PREDICATE_TYPE, predicate), private_key(config.key_path(folder))))
    return read_verdict(path, config, folder)


def read_verdict(path: Path, config: GovernanceConfig, folder: Path) -> dict[str, Any]:
    """The predicate of a verdict whose signature holds, with `key_id` and `subjects` (name -> digest) added.

    Raises:
        ManifestError: it was altered, is of another kind, or its signer is not trusted.
    """
    content, signer = open_envelope(path, trusted(config, folder))
    if content.get("predicateType") != PREDICATE_TYPE:
        raise ManifestError(f"{path}: is a {content.get('predicateType')!r}, not a verdict")
    subjects = {item["name"]: item["digest"]["sha256"] for item in content["subject"]}
    return {**content["predicate"], "key_id": signer, "subjects": subjects}


def trusted(config: GovernanceConfig, folder: Path) -> list[Any]:
    """The public keys that are believed: those that the section names, else the own one, if there is one."""
    keys = [public_key(folder / name) for name in config.trusted_keys]
    own = config.key_path(folder)
    return keys or ([private_key(own).public_key()] if own.exists() else [])


def require_open(
    tokens: Manifest, policy: Policy, config: GovernanceConfig, folder: Path, root: Path
) -> dict[str, Any]:
    """The verdict that lets exactly these token shards through, now, under exactly this policy.

    Raises:
        GateClosed: there is none, it is stale, altered or about something else, or it does not open: reasons, owners.
    """
    path = verdict_path(tokens, policy, root)
    if not path.exists():
        raise GateClosed(
            f"no verdict on this corpus ({tokens.digest[:16]}) under this policy ({policy.digest[:16]}): NOT_RUN.\n"
            f"  Audit it first: assay governance check CONFIG"
        )
    try:
        verdict = read_verdict(path, config, folder)
    except ManifestError as error:
        raise GateClosed(f"the verdict cannot be believed: {error}") from error
    moment = datetime.datetime.now(datetime.UTC)
    stale = _staleness(verdict, tokens, policy, moment)
    if stale:
        raise GateClosed(f"the verdict at {path} does not hold: {stale}.\n  Audit again: assay governance check CONFIG")
    if verdict["verdict"] not in _OPEN:
        raise GateClosed(explain(verdict))
    return verdict


def _staleness(verdict: Mapping[str, Any], tokens: Manifest, policy: Policy, moment: datetime.datetime) -> str:
    wanted = {tokens.path: tokens.digest, **{output.path: output.sha256 for output in tokens.outputs}}
    if verdict["subjects"] != wanted:
        return "it was given for other token shards"
    if verdict["policy"]["digest"] != policy.digest:
        return "it was given under another policy"
    if verdict["expires"] <= _stamp(moment):
        return f"it expired on {verdict['expires']}"
    lapsed = [
        item["gate"] for item in verdict["waivers"] if moment.date() > datetime.date.fromisoformat(item["expires"])
    ]
    return f"the waiver of {', '.join(lapsed)} has expired" if lapsed else ""


def explain(verdict: Mapping[str, Any]) -> str:
    """The verdict for a terminal: decision, then each reason with its owner."""
    lines = [f"verdict {verdict['verdict']} under policy {verdict['policy']['name']}"]
    for reason in verdict["reasons"]:
        mark = "waived " if reason["waived"] else ""
        lines.append(
            f"  {mark}{reason['status']} {reason['gate']} ({reason['severity']}, owner: {reason['owner']}): "
            f"{reason['detail']} [{reason['subject']}]"
        )
    return "\n".join(lines)


def _stamp(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
