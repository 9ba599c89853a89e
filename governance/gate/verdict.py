"""The gate: signed verdicts, and the check that training may start.

A verdict is an in-toto statement in a signed envelope at `<root>/verdicts/<corpus>-<policy>.json`. Its subjects are the
encoded corpus and each of its token shards; its predicate is the decision with every reason, the policy's digest and
what it loosens against its parent, the audit's digest, the digests of custom expectations' sources, the waivers, the
journal's head, and an expiry.
`require_open` is the one door into training: it re-checks signature, subjects, files, policy, clock, expiry, journal,
waivers, refusals and approvals each time. Signing and training both call `require_chain` first:
every manifest of the corpus and of its audit is the one that the journal states last. Anything unknown, empty, missing,
stale, altered or in error closes the gate.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import not_
from pathlib import Path
from typing import Any

from pydantic import Field

from governance.config import Section
from governance.errors import GateClosed, ManifestError
from governance.files import json_text, locked, sha256_bytes, write_json
from governance.gate.approvals import APPROVALS, links, unapproved
from governance.gate.chain import require_chain
from governance.gate.decision import Judgement, SignedStatements, statement_reasons
from governance.gate.explanation import explain, site_words
from governance.gate.freshness import clock_fault, correction_fault, last_stated, replay_fault, shard_faults, staleness
from governance.gate.gate_actions import GateAction
from governance.gate.policy import Policy
from governance.gate.refusals import REFUSALS, apply_withdrawals, state_refusals
from governance.gate.signed_statements import read_statements, signer_id, submitters
from governance.gate.site_policy import Site, TwoNames, described, require_site, site_keys, sites
from governance.gate.two_keys import TwoKeys, two_key_faults
from governance.gate.waivers import REFUSAL, RULINGS, Case, Refusal, refusal_words, ruling_faults
from governance.log import get_logger
from governance.manifest import Manifest, read_manifest, verify
from governance.signing.dsse import (
    SigningKey,
    certified,
    default_key_path,
    key_bytes,
    private_key,
    read_envelope,
    sign,
    statement,
    trusted_key,
    verify_envelope,
)
from governance.signing.journal import VERDICT, Journal
from governance.signing.journal_lines import stamp
from governance.stage import COMMIT_LOCK, now

PREDICATE_TYPE = "urn:assay:verdict:1"
_OPEN = ("PASS", "WAIVED")


class GovernanceConfig(Section):
    """The `[governance]` section: policy, signing key, trusted keys."""

    policy: str = "policy.toml"
    """The policy's path, relative to the run's file."""
    signing_key: str = ""
    """Path of the private key, which must exist; empty: the user's own, made on first use."""
    trusted_keys: tuple[str, ...] = ()
    """Public key files whose verdicts open the gate; empty: the signing key's own."""
    parent_keys: tuple[str, ...] = ()
    """Public key files whose journals are trusted, too, for checkpoints of other roots; they open no gate."""
    verdict_by: TwoNames = ()
    """Two names, of certificates or of `[people]`: the signer of the audit's statement and the signer of the verdict;
    empty: one key may do both. A site's policy may demand it, too."""
    waivers: str = "waivers"
    """The folder of signed waivers and refusals, relative to the run's file."""
    approvals: str = "approvals"
    """The folder of signed approvals of a policy that is looser than its parent, relative to the run's file."""
    submitter: str = ""
    """Submitter of the run, in addition to the account that runs it: neither may waive or approve."""
    git_note: bool = False
    """Leave the journal's head in a git note (refs/notes/assay) on the commit of the run's file."""
    model_signing: bool = False
    """Sign each checkpoint as OpenSSF's model_signing does (`model.sig` next to its files)."""
    model_key: str = ""
    """Path of the EC key that signs them, which must exist; empty: the user's own, made on first use."""

    receipts: bool = Field(default=False, exclude_if=not_)
    """Make the tree over the corpus's names right after its tokens, so that its root is signed before anybody asks."""
    actions: tuple[GateAction, ...] = ()
    """Messages that report a closed gate (`gate_actions.py`); none of them can change it."""


@dataclass(frozen=True)
class Keyring:
    """Keys of a run: its section, and the folder of its paths."""

    config: GovernanceConfig = field(default_factory=GovernanceConfig)
    folder: Path = Path()

    @property
    def own(self) -> Path:
        """Path of the signing key."""
        return self.folder / self.config.signing_key if self.config.signing_key else default_key_path()

    def signer(self) -> SigningKey:
        """The signing key; the user's own is made on first use.

        Raises:
            ConfigError: the run names a key that does not exist (a typing error would sign with a new one), or the file
                is not a key.
        """
        return private_key(self.own, make=not self.config.signing_key)

    def trusted(self) -> list[Any]:
        """Trusted public keys; without any, the own one.

        Raises:
            ConfigError: a key file cannot be read, as in `own_trusted`.
        """
        keys = [trusted_key(self.folder / name) for name in self.config.trusted_keys] or site_keys(sites())
        return keys or self.own_trusted()

    def own_trusted(self) -> list[Any]:
        """The own public key; empty if the user's own was never made.

        Raises:
            ConfigError: the run names a key that does not exist: every signature would be by an unknown signer.
        """
        if self.config.signing_key:
            key_bytes(self.own, " Give the key that the run signs with: governance.signing_key, or --signing-key PATH")
        return [private_key(self.own).trusted()] if self.own.exists() else []


@dataclass(frozen=True)
class GateContext:
    """A gate's place: its section, the root, the journal."""

    keyring: Keyring
    root: Path
    """The artifacts' root."""
    journal: Journal
    """Records the verdict, which carries its head."""


def load_statements(gate: GateContext) -> SignedStatements:
    """Read signed statements and refusals, and the running account.

    A reviewer's refusal is in the root, so that no other run file and no other setting leaves it unread.
    """
    config, folder, own = gate.keyring.config, gate.keyring.folder, gate.keyring.own
    return SignedStatements(
        rulings=(*read_statements(folder / config.waivers, RULINGS), *read_statements(gate.root / REFUSALS, RULINGS)),
        approvals=read_statements(folder / config.approvals, APPROVALS),
        submitters=submitters(config.submitter),
        verdict_key=signer_id(private_key(own)) if own.exists() else "",  # a missing key belongs to no person
    )


def statements_in_effect(gate: GateContext, policy: Policy, corpus: str, *, record: bool = True) -> SignedStatements:
    """Signed statements on one corpus, less the refusals that were withdrawn.

    A refusal that the journal states and whose file is gone is a fault (`refusals.py`). Refusals and withdrawals that
    are read for the first time are recorded in the journal, unless `record` is false (a look-up) or readers do not
    trust our key.
    """
    statements = load_statements(gate)
    in_effect, withdrawals = apply_withdrawals(statements, policy, corpus, gate.journal.verified())
    if record and _may_state(gate.keyring):
        state_refusals(statements, withdrawals, policy, corpus, gate.root, gate.journal)
    return in_effect


def _may_state(keyring: Keyring) -> bool:
    """Return whether our key is one that readers of the verdict trust.

    A line signed by any other key would close the journal for all of them.
    """
    if not keyring.own.exists():
        return False
    probe = sign(statement({}, PREDICATE_TYPE, {"signed_at": now()}), keyring.signer())
    try:
        verify_envelope(probe, keyring.trusted(), "the signing key")
    except ManifestError:
        return False
    return True


def _intact_audit(verdict: Mapping[str, Any], root: Path) -> list[Manifest]:
    """The audit behind a verdict, as first written; empty if removed.

    Raises:
        GateClosed: the folder holds another audit, or one of its files was altered.
    """
    path = root / verdict["audit"]["path"]
    if not path.exists():
        return []
    try:
        audit = read_manifest(path)
        faults = verify(audit, root)
    except ManifestError as error:
        raise GateClosed(f"the audit of the verdict cannot be trusted: {error}") from error
    if audit.digest != verdict["audit"]["digest"]:
        faults = [f"{audit.path}: is not the audit that the verdict rests on"]
    if faults:
        raise GateClosed(
            f"the audit of the verdict was altered: {'; '.join(faults)}. Remove {path.parent}, then:"
            " assay governance check CONFIG"
        )
    return [audit]


def verdict_path(tokens: Manifest, policy: Policy, root: Path) -> Path:
    """Path of the verdict on this corpus under this policy."""
    return root / "verdicts" / f"{tokens.digest[:16]}-{policy.digest[:16]}.json"


def give_verdict(
    judgement: Judgement, tokens: Manifest, audit: Manifest, policy: Policy, gate: GateContext
) -> dict[str, Any]:
    """Sign the judgement.

    An unexpired verdict with the same decision on the same audit is returned instead.

    Args:
        judgement: what `decide` found.
        tokens: the encoded corpus.
        audit: the artifact that holds the results.
        policy: the policy of the judgement.
        gate: signs and records it.

    Raises:
        GateClosed: this machine's clock is behind an earlier signature; a manifest of the chain differs from its
            statement in the journal.
    """
    keyring, root, journal = gate.keyring, gate.root, gate.journal
    sites_here = binding_sites(policy, keyring)
    require_chain((tokens, audit), root, journal)
    path = verdict_path(tokens, policy, root)
    signing_key = keyring.signer()
    keys = keyring.trusted()  # after the signing key, which may be made now
    content = {
        **_content(judgement, tokens, audit, policy),
        "site": described(sites_here),
        "people": _signers(judgement, policy, signing_key, keys),
    }
    demands = _demands(policy, keyring.config, keys, sites_here)
    current, envelope, digest = _current(path, keys, root, journal)
    today = datetime.datetime.now(datetime.UTC)
    if fault := clock_fault(today, str(current.get("signed_at", "")), journal):
        raise GateClosed(
            f"no verdict is given: {fault}. Correct this clock; if it is right, void what is dated ahead of it"
        )
    valid = (
        bool(current)
        and not [*two_key_faults(demands, envelope, (audit.path, audit.digest), root)]
        and current["expires"] > stamp(today)
        and not replay_fault(path, digest, root, journal)
    )
    if valid and all(current.get(name) == value for name, value in content.items()):
        return current
    predicate = {
        **content,
        "journal_head": journal.head(),
        "anchored": journal.anchored(),
        "signed_at": stamp(today),
        "expires": stamp(today + datetime.timedelta(days=policy.verdict_days)),
    }
    subjects = {tokens.path: tokens.digest, **{output.path: output.sha256 for output in tokens.outputs}}
    envelope = sign(statement(subjects, PREDICATE_TYPE, predicate), signing_key)
    if fault := _signature_fault(envelope, keys, demands, audit, root):
        # A job whose key may not decide never replaces a verdict of one that may.
        if valid and all(current[name] == content[name] for name in ("audit", "verdict")):
            return current
        raise GateClosed(
            f"no verdict is given: {fault}. Let someone whose key may sign it run: assay governance check CONFIG"
        )
    with locked(root / COMMIT_LOCK):  # if two checks run, the last file and the last statement come from the same one
        write_json(path, envelope)
        _record_in_journal(path, sha256_bytes(json_text(envelope).encode("utf-8")), root, predicate, journal)
    return _predicate(envelope, keys, path)


def _signature_fault(
    envelope: Mapping[str, Any], keys: Sequence[Any], demands: Sequence[TwoKeys], audit: Manifest, root: Path
) -> str:
    """Reason to distrust a new verdict's signature; "" for none."""
    try:
        verify_envelope(envelope, keys, "the verdict of this signing key")
    except ManifestError as error:
        return str(error)
    return "; ".join(two_key_faults(demands, envelope, (audit.path, audit.digest), root))


def _content(judgement: Judgement, tokens: Manifest, audit: Manifest, policy: Policy) -> dict[str, Any]:
    """Content of a verdict, without its times."""
    parents = [{"name": parent.name, "digest": parent.digest} for _, parent in links(policy)]
    sources = audit.config.get("own_sources")  # only where a gate runs custom code
    return {
        "verdict": judgement.decision,
        "policy": {
            "name": policy.name,
            "strength": policy.strength,
            "digest": policy.digest,
            "parents": parents,
            "differences": list(judgement.differences),
        },
        "audit": {"path": audit.path, "digest": audit.digest},
        **({"own_sources": dict(sources)} if sources else {}),
        "corpus": {"path": tokens.path, "digest": tokens.digest},
        "summary": judgement.summary,
        "reasons": list(judgement.reasons),
        "waivers": list(judgement.waivers),
        "submitters": list(judgement.submitters),
    }


def _current(path: Path, keys: Sequence[Any], root: Path, journal: Journal) -> tuple[dict[str, Any], Any, str]:
    """The current verdict with its envelope and digest.

    The verdict is {} if it is missing or untrusted, or precedes a correction of the clock.
    """
    if not path.exists():
        return {}, None, ""
    try:
        envelope, digest = read_envelope(path)
        if correction_fault(path, digest, root, journal):
            return {}, envelope, digest
        return _predicate(envelope, keys, path), envelope, digest
    except ManifestError as error:
        get_logger(__name__).warning("%s; it is given again", error)
        return {}, None, ""


def _record_in_journal(path: Path, digest: str, root: Path, predicate: Mapping[str, Any], journal: Journal) -> None:
    """State the verdict's file and inputs in the journal, once.

    `digest` is that of the bytes that were written.
    """
    if last_stated(path, root, journal) == digest:
        return
    materials = [{"stage": Path(predicate[name]["path"]).parts[0], **predicate[name]} for name in ("corpus", "audit")]
    facts = {name: predicate[name] for name in ("verdict", "policy", "waivers", "expires")}
    subject = {path.relative_to(root).as_posix(): digest}
    content = {"stage": VERDICT, **facts, "materials": materials}
    journal.append(VERDICT, statement(subject, "urn:assay:provenance:1", content))


def read_verdict(path: Path, keyring: Keyring) -> dict[str, Any]:
    """Predicate of a verdict with valid signature, `key_id` and `subjects`.

    Raises:
        ManifestError: it was altered, is of another kind, or its signer is not trusted.
    """
    keys = keyring.trusted()
    return _predicate(read_envelope(path)[0], keys, path)


def _predicate(envelope: Any, keys: Sequence[Any], path: Path) -> dict[str, Any]:
    """`read_verdict` of an envelope that was read from, or written to, `path`."""
    content, signer = verify_envelope(envelope, keys, str(path))
    if content.get("predicateType") != PREDICATE_TYPE:
        raise ManifestError(f"{path}: is a {content.get('predicateType')!r}, not a verdict")
    subjects = {item["name"]: item["digest"]["sha256"] for item in content["subject"]}
    return {**content["predicate"], "key_id": signer, "subjects": subjects}


def binding_sites(policy: Policy, keyring: Keyring) -> tuple[Site, ...]:
    """Sites whose rules bind this run.

    Raises:
        GateClosed: the run breaks a rule of a site that binds on this machine.
    """
    config = keyring.config
    names = (*config.trusted_keys, *config.parent_keys) if config.trusted_keys else ()
    return require_site(policy, names, keyring.own, keyring.folder)


def _demands(policy: Policy, config: GovernanceConfig, keys: Sequence[Any], binding: Sequence[Site]) -> list[TwoKeys]:
    """Required signers, by the run's file and each site."""
    demands = [(config.verdict_by, tuple(keys), policy.people)]
    demands += [(site.verdict_by, site.keys, site.policy.people) for site in binding]
    return [TwoKeys(names[0], names[1], roots, people) for names, roots, people in demands if names]


def _signers(judgement: Judgement, policy: Policy, own: SigningKey, roots: list[Any]) -> dict[str, Any]:
    """Signers behind a verdict, and approvers."""
    certificate = certified(own.certificate, roots)
    waived = {waiver["approver"] for waiver in judgement.waivers}
    return {
        "named": len(policy.people),
        "signer": next((name for name, key in policy.people.items() if key == signer_id(own)), ""),
        "key": "" if certificate is None else certificate.name,
        "approved": sorted(waived | set(judgement.approvers)),
    }


def require_open(
    tokens: Manifest, policy: Policy, gate: GateContext, packed: Sequence[Manifest] = (), *, record: bool = True
) -> dict[str, Any]:
    """The valid verdict on exactly these shards and policy, or raise.

    Its `file_sha256` is the digest of the verdict's file as it was read. With `record` false (a look-up) no line is
    added to the journal.

    Raises:
        GateClosed: the verdict is missing, stale, altered, replayed, about something else, or not a pass; a shard is
            missing or listed twice; a manifest of the chain, or a file of the audit, was altered; a clock was moved
            back; a waiver or an approval no longer holds; or an owner refused. It names reasons and owners.
    """
    keyring, root, journal = gate.keyring, gate.root, gate.journal
    sites_here = binding_sites(policy, keyring)
    path = verdict_path(tokens, policy, root)
    if not path.exists():
        raise GateClosed(
            f"no verdict on this corpus ({tokens.digest[:16]}) under this policy ({policy.digest[:16]}): NOT_RUN.\n"
            f"  Audit it first: assay governance check CONFIG"
        )
    try:
        keys = keyring.trusted()
        envelope, digest = read_envelope(path)
        verdict = _predicate(envelope, keys, path)
    except ManifestError as error:
        raise GateClosed(f"the verdict cannot be trusted: {error}") from error
    require_chain((tokens, *_intact_audit(verdict, root), *packed), root, journal)
    if shards := shard_faults(tokens, root):
        raise GateClosed(f"the token shards are not those of the verdict: {shards}. Make it again with data prepare")
    moment = datetime.datetime.now(datetime.UTC)
    demands, audit = _demands(policy, keyring.config, keys, sites_here), verdict["audit"]
    stale = (
        staleness(verdict, tokens, policy.digest, moment)
        or _other_site(verdict, sites_here)
        or "; ".join(two_key_faults(demands, envelope, (audit["path"], audit["digest"]), root))
        or correction_fault(path, digest, root, journal)
        or clock_fault(moment, verdict["signed_at"], journal)
        or replay_fault(path, digest, root, journal)
    )
    if stale:
        raise GateClosed(f"the verdict at {path} does not hold: {stale}.\n  Audit again: assay governance check CONFIG")
    if verdict["verdict"] not in _OPEN:
        closed = GateClosed(explain(verdict, policy.owners))
        closed.by_verdict = True
        raise closed
    statements = statements_in_effect(gate, policy, tokens.digest, record=record)
    if since := list(_faults_since(verdict, policy, tokens.digest, moment.date(), statements)):
        raise GateClosed(
            "\n  ".join(
                [f"the verdict at {path} no longer holds:", *since, "Audit again: assay governance check CONFIG"]
            )
        )
    return verdict | {"file_sha256": digest}


def _other_site(verdict: Mapping[str, Any], binding: Sequence[Site]) -> str:
    """Fault of a verdict given under other site rules; "" for none."""
    if not binding or verdict.get("site") == described(binding):
        return ""
    here = " and ".join(site.name for site in binding)
    return f"it was given {site_words(verdict)}, and here the policy of {here} decides"


def _faults_since(
    verdict: Mapping[str, Any], policy: Policy, corpus: str, today: datetime.date, statements: SignedStatements
) -> Iterator[str]:
    """Changes since the verdict that close the gate."""
    gates = {gate.id: gate for gate in policy.gates()}
    case = Case(policy, corpus, today, statements.submitters, verdict["key_id"])
    for signed in statements.rulings:
        if signed.kind == REFUSAL and signed.subject == corpus and isinstance(signed.content, Refusal):
            gate = gates.get(signed.content.gate)
            owner = gate.owner if gate is not None else "unknown"
            yield f"{signed.content.gate} (owner: {owner}): {refusal_words(signed, signed.content, policy.people)}"
    by_digest = {signed.sha256: signed for signed in statements.rulings}
    for waiver in verdict["waivers"]:
        gate, paper_of = gates[waiver["gate"]], by_digest.get(waiver["sha256"])
        faults = ruling_faults(case, gate, paper_of) if paper_of else ["its file is gone or was altered"]
        if faults:
            yield f"waiver {waiver['file']} of {gate.id} (owner: {gate.owner}): {'; '.join(faults)}"
    for reason in statement_reasons(statements, gates):
        yield f"{reason['gate']}: {reason['subject']}: {reason['detail']}"
    for item in unapproved(policy, statements.approvals, statements.submitters):
        yield f"{item.gate} (owner: {item.owner}): {item.words}"
