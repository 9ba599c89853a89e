"""The gate fails closed: only a believed, fitting, unexpired PASS or WAIVED opens it."""

import datetime
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance import gate as gate_module
from governance.config import validate
from governance.errors import ConfigError, GateClosed
from governance.files import write_json
from governance.gate import (
    CheckResult,
    GovernanceConfig,
    decide,
    give_verdict,
    read_verdict,
    require_open,
    verdict_path,
)
from governance.manifest import Manifest, Output
from governance.policy import Policy
from governance.signing import create_key, public_path

TODAY = datetime.date(2026, 1, 15)
CORPUS = "c" * 64


def rule(name, **fields):
    return {
        "id": name, "suite": "sources", "expectation": "between", "column": "x", "max": 1, "owner": "data",
        "why": "because it matters", **fields,
    }  # fmt: skip


def make_policy(waivers=(), **changes):
    values = {
        "name": "test",
        "owners": {"data": ["ann"], "legal": ["bob"]},
        "licences": {"allowed": ["MIT"]},
        "gate": [
            rule("a.hard"),
            rule("a.soft", severity="warning"),
            rule("a.law", owner="legal", suite="licences", expectation="in_set", max=None, column="licence"),
        ],
        "waiver": list(waivers),
        **changes,
    }
    return validate(values, Policy, "policy")


def waiver(**fields):
    return {
        "gate": "a.hard", "subject": CORPUS, "reason": "known and accepted", "approver": "ann", "expires": "2026-01-31",
        **fields,
    }  # fmt: skip


def result(name, status="pass", subject="s"):
    return CheckResult(name, subject, status, 0.5, 10, 0, f"{name} {status}")


ALL_PASS = [result("a.hard"), result("a.soft"), result("a.law")]


def with_status(status, name="a.hard"):
    return [result(r.gate, status if r.gate == name else "pass") for r in ALL_PASS]


@pytest.mark.parametrize(
    ("results", "waivers", "decision"),
    [
        (ALL_PASS, [], "PASS"),
        (with_status("fail"), [], "BLOCK"),
        (with_status("inconclusive"), [], "INCONCLUSIVE"),
        (with_status("error"), [], "ERROR"),
        (with_status("missing"), [], "NOT_RUN"),
        ([], [], "NOT_RUN"),
        (ALL_PASS[:2], [], "NOT_RUN"),
        (with_status("fail", "a.soft"), [], "PASS"),
        (with_status("error", "a.soft"), [], "ERROR"),
        ([*ALL_PASS, result("a.unknown")], [], "ERROR"),
        ([*ALL_PASS, result("a.hard", "fail", "t")], [], "BLOCK"),
        (with_status("fail"), [waiver()], "WAIVED"),
        (with_status("fail"), [waiver(expires="2026-01-14")], "BLOCK"),
        (with_status("fail"), [waiver(subject="d" * 64)], "BLOCK"),
        (with_status("error"), [waiver()], "ERROR"),
        (with_status("missing"), [waiver()], "NOT_RUN"),
        (ALL_PASS, [waiver()], "PASS"),
    ],
)
def test_decisions(results, waivers, decision):
    judgement = decide(make_policy(waivers), results, CORPUS, TODAY)
    assert judgement.decision == decision
    if decision == "WAIVED":
        assert judgement.waivers[0]["approver"] == "ann"


_STATUS = st.sampled_from(["pass", "fail", "inconclusive", "error", "missing"])


@given(
    results=st.lists(st.builds(result, st.sampled_from(["a.hard", "a.soft", "a.law", "zz.zz"]), _STATUS), max_size=8)
)
def test_open_only_when_every_critical_gate_passed_everywhere(results):
    decision = decide(make_policy(), results, CORPUS, TODAY).decision
    by_gate = {name: [r.status for r in results if r.gate == name] for name in ("a.hard", "a.law", "a.soft", "zz.zz")}
    sound = (
        all(by_gate[name] and set(by_gate[name]) == {"pass"} for name in ("a.hard", "a.law"))
        and by_gate["a.soft"]
        and not set(by_gate["a.soft"]) & {"error", "missing"}
        and not by_gate["zz.zz"]
    )
    assert (decision == "PASS") == bool(sound)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"waiver": [waiver(gate="a.nowhere")]}, "not in this policy"),
        ({"waiver": [waiver(approver="bob")]}, "may not approve"),
        ({"waiver": [waiver(expires="soon")]}, "YYYY-MM-DD"),
        ({"gate": [rule("a.b"), rule("a.b")]}, "unique"),
        ({"gate": [rule("a.b", owner="nobody")]}, "not in"),
        ({"gate": [rule("a.b", max=None)]}, "wants min, max or both"),
        ({"gate": [rule("a.b", min=2)]}, "nothing could pass"),
        ({"gate": [rule("a.b", column="")]}, "wants a column"),
        ({"gate": []}, "at least 1"),
    ],
)
def test_a_wrong_policy_is_a_config_error(changes, words):
    with pytest.raises(ConfigError, match=words):
        make_policy(**changes)


@pytest.fixture
def corpus(tmp_path):
    """An encoded corpus, its audit, and a signed PASS."""
    fields = {"version": 1, "key": "0" * 64, "config": {}, "inputs": (), "stats": {}, "run": {}}
    shard = Output(path="encode/0000000000000000/train/00000.tokens", bytes=1, sha256="1" * 64)
    tokens = Manifest(stage="encode", outputs=(shard,), **fields)
    audit = Manifest(stage="audit", outputs=(), **fields)
    config = GovernanceConfig(signing_key="key.pem")
    return tokens, audit, config, tmp_path


def sign_for(corpus, policy, results):
    tokens, audit, config, root = corpus
    return give_verdict(decide(policy, results, tokens.digest, TODAY), tokens, audit, policy, (config, root), root)


def test_pass_opens_and_is_given_once(corpus):
    tokens, _, config, root = corpus
    policy = make_policy()
    sign_for(corpus, policy, ALL_PASS)
    before = verdict_path(tokens, policy, root).read_bytes()
    assert require_open(tokens, policy, config, root, root)["verdict"] == "PASS"
    sign_for(corpus, policy, ALL_PASS)
    assert verdict_path(tokens, policy, root).read_bytes() == before


def test_no_verdict_and_block_close_with_reasons_and_owners(corpus):
    tokens, _, config, root = corpus
    policy = make_policy()
    with pytest.raises(GateClosed, match="NOT_RUN"):
        require_open(tokens, policy, config, root, root)
    sign_for(corpus, policy, with_status("fail", "a.law"))
    with pytest.raises(GateClosed, match=r"BLOCK(.|\n)*a\.law \(critical, owner: legal\)") as caught:
        require_open(tokens, policy, config, root, root)
    assert caught.value.exit_code == 77


def test_other_shards_other_policy_and_expiry_close(corpus, monkeypatch):
    tokens, _, config, root = corpus
    policy = make_policy()
    sign_for(corpus, policy, ALL_PASS)
    path = verdict_path(tokens, policy, root)
    other = tokens.model_copy(update={"stats": {"altered": 1}})
    os.link(path, verdict_path(other, policy, root))
    with pytest.raises(GateClosed, match="other token shards"):
        require_open(other, policy, config, root, root)
    looser = make_policy(gate=[rule("a.hard", max=2)])
    os.link(path, verdict_path(tokens, looser, root))
    with pytest.raises(GateClosed, match="another policy"):
        require_open(tokens, looser, config, root, root)

    real = datetime.datetime

    class Later(real):
        @classmethod
        def now(cls, tz=None):
            return real.now(tz) + datetime.timedelta(days=policy.verdict_days + 1)

    monkeypatch.setattr(gate_module.datetime, "datetime", Later)
    with pytest.raises(GateClosed, match="expired"):
        require_open(tokens, policy, config, root, root)


def test_every_flipped_byte_of_a_verdict_closes(corpus):
    tokens, _, config, root = corpus
    policy = make_policy()
    sign_for(corpus, policy, ALL_PASS)
    path = verdict_path(tokens, policy, root)
    content = path.read_bytes()
    for index in range(0, len(content), 7):
        path.write_bytes(content[:index] + bytes([content[index] ^ 4]) + content[index + 1 :])
        with pytest.raises(GateClosed):
            require_open(tokens, policy, config, root, root)


def test_an_untrusted_signer_is_not_believed(corpus):
    tokens, _, _, root = corpus
    policy = make_policy()
    sign_for(corpus, policy, ALL_PASS)
    create_key(root / "other.pem")
    stricter = GovernanceConfig(signing_key="key.pem", trusted_keys=(public_path(root / "other.pem").name,))
    with pytest.raises(GateClosed, match="no trusted key"):
        require_open(tokens, policy, stricter, root, root)
    trusted = GovernanceConfig(signing_key="other.pem", trusted_keys=("key.pem.pub",))
    assert require_open(tokens, policy, trusted, root, root)["verdict"] == "PASS"


def test_an_envelope_of_another_kind_is_no_verdict(corpus):
    tokens, _, config, root = corpus
    policy = make_policy()
    sign_for(corpus, policy, ALL_PASS)
    path = verdict_path(tokens, policy, root)
    envelope = json.loads(path.read_bytes())
    write_json(path, {**envelope, "payloadType": "text/plain"})
    with pytest.raises(GateClosed, match="cannot be believed"):
        require_open(tokens, policy, config, root, root)


def test_keys_are_never_overwritten_and_bad_keys_are_explained(tmp_path):
    create_key(tmp_path / "k.pem")
    with pytest.raises(ConfigError, match="a key already"):
        create_key(tmp_path / "k.pem")
    (tmp_path / "bad.pem").write_text("nonsense")
    with pytest.raises(ConfigError, match="no readable private key"):
        read_verdict(tmp_path / "v.json", GovernanceConfig(signing_key="bad.pem"), tmp_path)
