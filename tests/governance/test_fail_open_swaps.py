"""A verdict's file that is exchanged while the gate reads or writes it: what was checked is what counts.

Each file is a genuine one that this root's key signed, so only its order in the journal tells them apart.
"""

from __future__ import annotations

import pytest

from governance.errors import GateClosed
from governance.gate import verdict
from governance.gate.chain import require_chain
from governance.gate.policy import load_policy
from governance.gate.verdict import verdict_path
from governance.manifest import write_manifest
from tests.governance.yard import Yard

OWN = {"signing_key": "stranger.pem", "trusted_keys": ()}


@pytest.fixture
def yard(tmp_path, monkeypatch):
    monkeypatch.setattr("governance.gate.site_policy.SYSTEM", tmp_path / "nowhere" / "policy.toml")
    return Yard(tmp_path)


def file_of(yard):
    return verdict_path(yard.tokens, load_policy(yard.root / "policy.toml"), yard.root)


def after(monkeypatch, name, attack):
    """Run an attack once, when a function of the gate has done its work."""
    real, done = getattr(verdict, name), []

    def attacked(*given, **named):
        result = real(*given, **named)
        if not done:
            done.append(attack())
        return result

    monkeypatch.setattr(verdict, name, attacked)


def passed_and_blocked(yard):
    """The bytes of a PASS, and of the BLOCK that followed it and is the journal's last."""
    assert yard.judge(**OWN)["verdict"] == "PASS"
    passed = file_of(yard).read_bytes()
    assert yard.judge(status="fail", **OWN)["verdict"] == "BLOCK"
    return passed, file_of(yard).read_bytes()


def test_an_older_pass_that_is_there_while_the_verdict_is_read_opens_nothing(yard, monkeypatch):
    passed, blocked = passed_and_blocked(yard)
    file_of(yard).write_bytes(passed)
    after(monkeypatch, "require_chain", lambda: file_of(yard).write_bytes(blocked))
    with pytest.raises(GateClosed, match="an older verdict was restored"):
        yard.open(**OWN)


def test_an_older_pass_put_in_place_of_a_verdict_that_is_written_is_not_stated(yard, monkeypatch):
    passed, _ = passed_and_blocked(yard)
    yard.judge(**OWN)
    after(monkeypatch, "write_json", lambda: file_of(yard).write_bytes(passed))
    assert yard.judge(status="fail", **OWN)["verdict"] == "BLOCK"
    with pytest.raises(GateClosed, match="an older verdict was restored"):
        yard.open(**OWN)


def test_an_artifact_that_another_process_made_again_is_accepted_and_a_restored_file_is_not(yard):
    """Two equal commands on one root: each holds its own `run` block, and the last one stated is in the file."""
    journal = yard.gate().journal
    first, second, unsigned = (
        yard.audit.model_copy(update={"run": {"started": started}}) for started in ("1", "2", "3")
    )
    for made in (first, second):
        journal.state_artifact(made)
        write_manifest(made, yard.root)
    require_chain((first,), yard.root, journal)
    require_chain((second,), yard.root, journal)
    for held, there in ((first, first), (first, unsigned), (unsigned, second)):
        write_manifest(there, yard.root)
        with pytest.raises(GateClosed, match="its energy, times or host were altered"):
            require_chain((held,), yard.root, journal)


def test_an_artifact_that_another_process_made_with_other_content_is_refused(yard):
    """The chain of the other one is intact, but it is not the one that the caller holds and uses."""
    journal = yard.gate().journal
    mine, other = (yard.audit.model_copy(update={"stats": {**yard.audit.stats, "made": number}}) for number in (1, 2))
    for made in (mine, other):
        journal.state_artifact(made)
        write_manifest(made, yard.root)
    with pytest.raises(GateClosed, match="states digest"):
        require_chain((mine,), yard.root, journal)
    require_chain((other,), yard.root, journal)
