"""A refusal that a check or the door has read closes until an owner withdraws it, whatever becomes of its file."""

import shutil

import pytest

from governance.errors import GateClosed
from governance.files import sha256_file
from governance.gate.policy import load_policy
from governance.gate.refusals import REFUSALS, refusals_of, removal_faults
from governance.gate.signed_statements import signature_fields, write_statement
from governance.gate.verdict import Keyring, load_statements, statements_in_effect
from governance.gate.waivers import REFUSAL, WITHDRAWAL, Refusal, Withdrawal
from governance.lineage.attest import open_journal
from governance.signing.dsse import private_key
from tests.governance.yard import Yard

GONE = (
    r"the refusal no\.json by ann was removed or altered; put it back, or have an owner withdraw it: assay governance"
)


@pytest.fixture
def yard(tmp_path):
    made = Yard(tmp_path)
    assert made.judge()["verdict"] == "PASS"
    assert made.open()["verdict"] == "PASS"
    return made


def key_of(yard, name):
    return private_key((yard.root if name == "stranger" else yard.site) / f"{name}.pem")


def refuse(yard, by="ann", folder=REFUSALS, corpus=None):
    """Write `no.json`, a refusal of the gate that passes."""
    fields = signature_fields(by, "nobody has read these files", key_of(yard, by))
    policy = load_policy(yard.root / "policy.toml").digest
    content = Refusal(**fields, gate="a.hard", result="sources", policy=policy)
    path = yard.root / folder / "no.json"
    write_statement(path, REFUSAL, ("corpus", corpus or yard.tokens.digest), content, key_of(yard, by))
    return path


def withdraw(yard, refusal, by="ann", approver=None, about=None, corpus=None):
    fields = signature_fields(approver or by, "we have read these files now", key_of(yard, by))
    content = Withdrawal(**fields, refusal="no.json", gate="a.hard", corpus=corpus or yard.tokens.digest)
    path = yard.root / REFUSALS / "yes.json"
    write_statement(path, WITHDRAWAL, ("refusal", about or refusal), content, key_of(yard, by))
    return path


def blocked(yard, words):
    """The check gives BLOCK, and the door the reason."""
    assert yard.judge()["verdict"] == "BLOCK"
    with pytest.raises(GateClosed, match=words):
        yard.open()


def entries(yard):
    return open_journal(Keyring(yard.config(), yard.root), yard.root).verified()


def lines(yard, kind):
    return [entry for entry in entries(yard) if entry.kind == kind]


@pytest.mark.parametrize("folder", [REFUSALS, "waivers"])
def test_a_refusal_that_a_check_has_read_closes_without_its_file(yard, folder):
    path = refuse(yard, folder=folder)
    assert yard.judge()["verdict"] == "BLOCK"
    assert yard.judge()["verdict"] == "BLOCK"
    [line] = lines(yard, "refusal")
    assert list(line.subjects.values()) == [sha256_file(path)]
    content = path.read_bytes()
    path.unlink()
    blocked(yard, GONE)
    path.write_bytes(content)
    blocked(yard, r"until no\.json is withdrawn by an owner")


def test_a_refusal_that_the_door_has_read_closes_without_its_file(yard):
    path = refuse(yard)
    with pytest.raises(GateClosed, match="refused by ann"):
        yard.open()
    path.unlink()
    with pytest.raises(GateClosed, match=GONE):
        yard.open()
    blocked(yard, GONE)


def test_one_that_nobody_has_read_is_not_known(yard):
    """The limit that SECURITY.md states; and a look-up states nothing, so it does not count as read."""
    path = refuse(yard)
    before = (yard.root / "journal.jsonl").read_bytes()
    with pytest.raises(GateClosed, match="refused by ann"):
        yard.open(record=False)
    assert (yard.root / "journal.jsonl").read_bytes() == before
    path.unlink()
    assert yard.open()["verdict"] == "PASS"


def test_a_certified_key_of_the_reviewers_account_states_it_at_once(yard):
    """The way past that limit; under `verdict_by` this key gives no verdict that opens (`test_fail_open_rules.py`)."""
    two = {"verdict_by": ("audit", "gate")}
    yard.judge(signing_key="gate.pem", **two)
    assert yard.open(**two)["verdict"] == "PASS"
    yard.certify("reviewer", yard.site / "root.pem")
    path, account = refuse(yard), yard.config(signing_key="reviewer.pem", **two)
    statements_in_effect(yard.gate(account), load_policy(yard.root / "policy.toml"), yard.tokens.digest)
    path.unlink()
    with pytest.raises(GateClosed, match=GONE):
        yard.open(**two)


def test_an_altered_or_exchanged_refusal_closes_as_the_first(yard):
    path = refuse(yard)
    yard.judge()
    refuse(yard, by="ben")
    blocked(yard, GONE)
    withdraw(yard, sha256_file(path), by="ben")
    blocked(yard, GONE)


@pytest.mark.parametrize("by", ["stranger", "ben"])
def test_a_strangers_refusal_closes_only_while_it_is_there(yard, by):
    """Nobody could withdraw it where [people] is empty; anyone who writes the root could lock it for good."""
    path = refuse(yard, by)
    assert yard.judge()["verdict"] == "BLOCK"
    assert len(lines(yard, "refusal")) == (by == "ben")
    path.unlink()
    assert yard.judge()["verdict"] == ("BLOCK" if by == "ben" else "PASS")


def test_a_key_that_readers_do_not_trust_states_nothing(yard):
    path = refuse(yard)
    with pytest.raises(GateClosed, match="refused by ann"):
        yard.open(signing_key="stranger.pem")
    assert lines(yard, "refusal") == []
    path.unlink()
    assert yard.open()["verdict"] == "PASS"


@pytest.mark.parametrize("removed", [True, False])
def test_a_withdrawn_refusal_no_longer_closes(yard, removed):
    path = refuse(yard, by="ben")
    assert yard.judge()["verdict"] == "BLOCK"
    withdrawal = withdraw(yard, sha256_file(path), by="ann")  # the owner; ben only refused
    if removed:
        path.unlink()
    assert yard.judge()["verdict"] == "PASS"
    assert yard.open()["verdict"] == "PASS"
    assert len(lines(yard, "withdrawal")) == 1
    assert removal_faults(yard.root, entries(yard)) == []
    withdrawal.unlink()
    with pytest.raises(GateClosed, match=r"no\.json"):
        yard.open()
    [fault] = removal_faults(yard.root, entries(yard))
    assert fault.startswith("refusals/yes.json: is missing")


BAD = {
    "a bad signature": ({"by": "stranger", "approver": "ann"}, "which is not ann's own"),
    "a stranger": ({"by": "stranger"}, r"stranger is not in \[people\] of the policy"),
    "no owner": ({"by": "ben"}, "ben may not withdraw it; these may: ann"),
    "another refusal": ({"about": "d" * 64}, "it belongs to another refusal"),
    "another corpus": ({"corpus": "e" * 64}, "it is for another corpus"),
    "the submitter": ({}, "ann submitted this run"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("removed", [True, False])
def test_a_withdrawal_that_does_not_hold_is_named_and_changes_nothing(yard, name, removed):
    fields, words = BAD[name]
    changes = {"submitter": "ann"} if name == "the submitter" else {}
    path = refuse(yard)
    yard.judge(**changes)
    withdraw(yard, sha256_file(path), **fields)
    if removed:
        path.unlink()
    assert yard.judge(**changes)["verdict"] == "BLOCK"
    with pytest.raises(GateClosed, match=rf"the withdrawal of the refusal no\.json does not hold: .*{words}"):
        yard.open(**changes)
    assert lines(yard, "withdrawal") == []


def test_an_edited_withdrawal_does_not_hold(yard):
    path = refuse(yard)
    yard.judge()
    withdrawal = withdraw(yard, sha256_file(path))
    text = withdrawal.read_text()
    at = text.index('"sig": "') + 9
    withdrawal.write_text(text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :])
    assert yard.judge()["verdict"] == "BLOCK"
    with pytest.raises(GateClosed, match="does not hold: its signature does not hold"):
        yard.open()


def test_a_refusal_of_another_corpus_is_not_stated_here(yard):
    refuse(yard, corpus="d" * 64).parent.mkdir(exist_ok=True)
    assert yard.judge()["verdict"] == "PASS"
    shutil.rmtree(yard.root / REFUSALS)
    assert yard.open()["verdict"] == "PASS"
    assert refusals_of("d" * 64, load_statements(yard.gate()), entries(yard)) == []
