"""The gate fails closed: only a trusted, fitting, unexpired PASS or WAIVED opens it."""

import datetime
import hashlib
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.config import validate
from governance.errors import ConfigError, GateClosed
from governance.files import write_json
from governance.gate.decision import CheckResult, decide
from governance.gate.policy import Policy
from governance.gate.verdict import (
    GateContext,
    GovernanceConfig,
    Keyring,
    give_verdict,
    read_verdict,
    require_open,
    verdict_path,
)
from governance.lineage.attest import open_journal
from governance.manifest import Manifest, Output, write_manifest
from governance.signing.dsse import create_key, public_path
from tests.governance.yard import move_clock

TODAY = datetime.date(2026, 1, 15)
CORPUS = "c" * 64


def rule(name, **fields):
    return {
        "id": name, "suite": "sources", "expectation": "between", "column": "x", "max": 1, "owner": "data",
        "why": "because it matters", **fields,
    }  # fmt: skip


def make_policy(**changes):
    values = {
        "name": "test",
        "owners": {"data": ["ann"], "legal": ["bob"]},
        "licences": {"allowed": ["MIT"]},
        "gate": [
            rule("a.hard"),
            rule("a.soft", severity="warning"),
            rule("a.law", owner="legal", suite="licences", expectation="in_set", max=None, column="licence"),
        ],
        **changes,
    }
    return validate(values, Policy, "policy")


def result(name, status="pass", subject="s"):
    return CheckResult(name, subject, status, 0.5, 10, 0, f"{name} {status}")


ALL_PASS = [result("a.hard"), result("a.soft"), result("a.law")]


def with_status(status, name="a.hard"):
    return [result(r.gate, status if r.gate == name else "pass") for r in ALL_PASS]


@pytest.mark.parametrize(
    ("results", "decision"),
    [
        (ALL_PASS, "PASS"),
        (with_status("fail"), "BLOCK"),
        (with_status("inconclusive"), "INCONCLUSIVE"),
        (with_status("error"), "ERROR"),
        (with_status("missing"), "NOT_RUN"),
        ([], "NOT_RUN"),
        (ALL_PASS[:2], "NOT_RUN"),
        (with_status("fail", "a.soft"), "PASS"),
        (with_status("error", "a.soft"), "ERROR"),
        ([*ALL_PASS, result("a.unknown")], "ERROR"),
        ([*ALL_PASS, result("a.hard", "fail", "t")], "BLOCK"),
    ],
)
def test_decisions(results, decision):
    assert decide(make_policy(), results, CORPUS, TODAY).decision == decision


@pytest.mark.parametrize(("status", "decision"), [("inconclusive", "PASS"), ("fail", "BLOCK"), ("error", "ERROR")])
def test_an_inconclusive_result_is_only_shown_where_the_gate_says_so(status, decision):
    policy = make_policy(gate=[rule("a.hard", on_inconclusive="show"), rule("a.soft"), rule("a.law")])
    judgement = decide(policy, with_status(status), CORPUS, TODAY)
    assert judgement.decision == decision
    [reason] = judgement.reasons
    assert reason["closes"] == (decision != "PASS")


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


_PLAIN = {
    "id": "a.b", "suite": "sources", "gx": "expect_column_values_to_not_be_null",
    "kwargs": {"column": "x", "mostly": 0.5}, "owner": "data", "why": "because it matters",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"waiver": [{"gate": "a.hard"}]}, "unknown key"),
        ({"people": {"ann": "no key"}}, "is not a key's id"),
        ({"people": {"ann": "a" * 64, "bob": "a" * 64}}, "ann, bob have one key"),
        ({"gate": [rule("a.b", where={"": "x"})]}, "without a name"),
        ({"gate": [rule("a.b", rule="lower_ci")]}, "belong to interval_between"),
        ({"gate": [rule("a.b", min_n=9)]}, "belong to interval_between"),
        ({"gate": [rule("a.b", expectation="not_null", max=0.9)]}, "read `max`; remove"),
        ({"gate": [rule("a.b", values=["MIT"])]}, "only in_set, columns_present read `values`"),
        ({"gate": [rule("a.b", regex="a")]}, "only match_regex reads `regex`"),
        ({"gate": [rule("a.b", expectation="mean_between", mostly=0.9)]}, "read `mostly`; remove"),
        ({"gate": [rule("a.b", expectation="row_count_between", column="", mostly=0.9)]}, "read `mostly`; remove"),
        ({"gate": [{**_PLAIN, "mostly": 0.9}]}, "has `mostly` twice"),
        ({"gate": [rule("a.b", expectation="interval_between")]}, "needs no column"),
        ({"gate": [rule("a.b", expectation="interval_between", column="", max=None)]}, "needs min, max or both"),
        ({"gate": [rule("a.b"), rule("a.b")]}, "unique"),
        ({"gate": [rule("a.b", owner="nobody")]}, "not in"),
        ({"gate": [rule("a.b", max=None)]}, "needs min, max or both"),
        ({"gate": [rule("a.b", min=2)]}, "nothing could pass"),
        ({"gate": [rule("a.b", column="")]}, "needs a column"),
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
    (tmp_path / shard.path).parent.mkdir(parents=True)
    (tmp_path / shard.path).write_bytes(b"1")
    audit = Manifest(stage="audit", outputs=(), **fields)
    config = GovernanceConfig(signing_key="key.pem")
    create_key(tmp_path / "key.pem")
    return tokens, audit, config, tmp_path


def sign_for(corpus, policy, results):
    """State the corpus and its audit, and sign a verdict."""
    tokens, audit, config, root = corpus
    for manifest in (tokens, audit):
        gate_of(config, root).journal.state_artifact(manifest)
    return give_verdict(decide(policy, results, tokens.digest, TODAY), tokens, audit, policy, gate_of(config, root))


def test_pass_opens_and_is_given_once(corpus):
    tokens, _, config, root = corpus
    policy = make_policy()
    sign_for(corpus, policy, ALL_PASS)
    before = verdict_path(tokens, policy, root).read_bytes()
    opened = require_open(tokens, policy, gate_of(config, root))
    assert (opened["verdict"], opened["file_sha256"]) == ("PASS", hashlib.sha256(before).hexdigest())
    sign_for(corpus, policy, ALL_PASS)
    assert verdict_path(tokens, policy, root).read_bytes() == before


def test_no_verdict_and_block_close_with_reasons_and_owners(corpus):
    tokens, _, config, root = corpus
    policy = make_policy()
    with pytest.raises(GateClosed, match="NOT_RUN"):
        require_open(tokens, policy, gate_of(config, root))
    sign_for(corpus, policy, with_status("fail", "a.law"))
    with pytest.raises(GateClosed, match=r"BLOCK(.|\n)*a\.law on .* failed: .*Decision: legal") as caught:
        require_open(tokens, policy, gate_of(config, root))
    assert caught.value.exit_code == 77


def test_other_shards_other_policy_and_expiry_close(corpus, monkeypatch):
    tokens, _, config, root = corpus
    policy = make_policy()
    sign_for(corpus, policy, ALL_PASS)
    path = verdict_path(tokens, policy, root)
    other = tokens.model_copy(update={"stats": {"altered": 1}})
    os.link(path, verdict_path(other, policy, root))
    journal = gate_of(config, root).journal
    journal.state_artifact(other)
    with pytest.raises(GateClosed, match="other token shards"):
        require_open(other, policy, gate_of(config, root))
    journal.state_artifact(tokens)
    looser = make_policy(gate=[rule("a.hard", max=2)])
    os.link(path, verdict_path(tokens, looser, root))
    with pytest.raises(GateClosed, match="another policy"):
        require_open(tokens, looser, gate_of(config, root))

    move_clock(monkeypatch, datetime.timedelta(days=policy.verdict_days + 1))
    with pytest.raises(GateClosed, match="expired"):
        require_open(tokens, policy, gate_of(config, root))


def gate_of(config, root, journal=None):
    return GateContext(Keyring(config, root), root, journal or open_journal(Keyring(config, root), root))


def test_a_clock_that_was_moved_back_closes_and_signs_nothing(corpus, monkeypatch):
    tokens, _, config, root = corpus
    policy = make_policy()
    sign_for(corpus, policy, ALL_PASS)
    with monkeypatch.context() as patch:
        move_clock(patch, -datetime.timedelta(minutes=4))
        assert require_open(tokens, policy, gate_of(config, root))["verdict"] == "PASS"
    move_clock(monkeypatch, -datetime.timedelta(minutes=6))
    with pytest.raises(GateClosed, match="a clock was moved"):
        require_open(tokens, policy, gate_of(config, root))
    with pytest.raises(GateClosed, match="no verdict is given"):
        sign_for(corpus, policy, ALL_PASS)


@pytest.fixture
def journal(corpus):
    """The journal of the root, which states the corpus and its audit."""
    tokens, audit, config, root = corpus
    opened = open_journal(Keyring(config, root), root)
    for manifest in (tokens, audit):
        write_manifest(manifest, root)
        opened.state_artifact(manifest)
    return opened


def test_the_journal_carries_each_verdict_once_and_finds_an_older_one_put_back(corpus, journal, monkeypatch):
    tokens, audit, config, root = corpus
    policy, stated = make_policy(), journal.head()
    path = verdict_path(tokens, policy, root)

    def give(results, log=journal):
        judgement = decide(policy, results, tokens.digest, TODAY)
        return give_verdict(judgement, tokens, audit, policy, gate_of(config, root, log))

    assert give(ALL_PASS)["journal_head"] == stated
    old, head = path.read_bytes(), journal.head()
    assert head.startswith("2:")
    give(ALL_PASS)
    assert journal.head() == head, "a verdict that stands is stated once"
    assert require_open(tokens, policy, gate_of(config, root, journal))["verdict"] == "PASS"
    assert give(with_status("fail"))["journal_head"] == head
    assert len(journal.verified()) == 4
    path.write_bytes(old)
    with pytest.raises(GateClosed, match="an older verdict was restored"):
        require_open(tokens, policy, gate_of(config, root, journal))
    assert give(ALL_PASS)["verdict"] == "PASS"
    assert require_open(tokens, policy, gate_of(config, root, journal))["verdict"] == "PASS"
    monkeypatch.setattr(journal, "last_time", lambda: "2999-01-01T00:00:00Z")
    with pytest.raises(GateClosed, match="the journal's last line is dated 2999"):
        require_open(tokens, policy, gate_of(config, root, journal))


def test_a_broken_or_a_missing_journal_closes_both_doors(corpus, journal):
    tokens, audit, config, root = corpus
    policy = make_policy()
    judgement = decide(policy, ALL_PASS, tokens.digest, TODAY)
    give_verdict(judgement, tokens, audit, policy, gate_of(config, root, journal))
    whole = journal.path.read_bytes()
    for rest, words in (
        (whole.replace(b'"index":1', b'"index":7'), "cannot be trusted"),
        (b"".join(whole.splitlines(keepends=True)[1:]), "cannot be trusted"),
        (b"", "has no statement of it"),
    ):
        journal.path.write_bytes(rest)
        with pytest.raises(GateClosed, match=words):
            require_open(tokens, policy, gate_of(config, root, open_journal(Keyring(config, root), root)))
        with pytest.raises(GateClosed, match=words):
            give_verdict(
                judgement, tokens, audit, policy, gate_of(config, root, open_journal(Keyring(config, root), root))
            )


def outputs(*shards):
    return tuple(
        Output(path=f"encode/{'0' * 16}/train/{name}.tokens", bytes=size, sha256=digest * 64)
        for name, size, digest in shards
    )


@pytest.mark.parametrize(
    ("shards", "files", "words"),
    [
        (outputs(("a", 100, "1"), ("b", 100, "2")), {"a": 100}, "b.tokens is missing"),
        (outputs(("a", 100, "1")), {"a": 99}, "has 99 bytes"),
        (outputs(("a", 100, "1"), ("a", 100, "1")), {"a": 100}, "is listed 2 times"),
        (outputs(("a", 100, "1"), ("b", 100, "1")), {"a": 100, "b": 100}, "are one shard, 2 times"),
        (outputs(), {}, "no token shard"),
        (outputs(("a", 64, "1"), ("b", 64, "1")), {"a": 64, "b": 64}, ""),
    ],
)
def test_a_missing_and_a_doubled_shard_close(corpus, shards, files, words):
    tokens, audit, config, root = corpus
    tokens = tokens.model_copy(update={"outputs": shards})
    for name, size in files.items():
        (root / f"encode/{'0' * 16}/train/{name}.tokens").write_bytes(b"x" * size)
    policy = make_policy()
    sign_for((tokens, audit, config, root), policy, ALL_PASS)
    if not words:
        assert require_open(tokens, policy, gate_of(config, root))["verdict"] == "PASS"
        return
    with pytest.raises(GateClosed, match=words):
        require_open(tokens, policy, gate_of(config, root))


def test_every_flipped_byte_of_a_verdict_closes(corpus):
    tokens, _, config, root = corpus
    policy = make_policy()
    sign_for(corpus, policy, ALL_PASS)
    path = verdict_path(tokens, policy, root)
    content = path.read_bytes()
    for index in range(0, len(content), 7):
        path.write_bytes(content[:index] + bytes([content[index] ^ 4]) + content[index + 1 :])
        with pytest.raises(GateClosed):
            require_open(tokens, policy, gate_of(config, root))


def test_an_untrusted_signer_is_not_believed(corpus):
    tokens, _, _, root = corpus
    policy = make_policy()
    sign_for(corpus, policy, ALL_PASS)
    create_key(root / "other.pem")
    stricter = GovernanceConfig(signing_key="key.pem", trusted_keys=(public_path(root / "other.pem").name,))
    with pytest.raises(GateClosed, match="no trusted key"):
        require_open(tokens, policy, gate_of(stricter, root))
    trusted = GovernanceConfig(signing_key="other.pem", trusted_keys=("key.pem.pub",))
    assert require_open(tokens, policy, gate_of(trusted, root))["verdict"] == "PASS"


def test_an_envelope_of_another_kind_is_no_verdict(corpus):
    tokens, _, config, root = corpus
    policy = make_policy()
    sign_for(corpus, policy, ALL_PASS)
    path = verdict_path(tokens, policy, root)
    envelope = json.loads(path.read_bytes())
    write_json(path, {**envelope, "payloadType": "text/plain"})
    with pytest.raises(GateClosed, match="cannot be trusted"):
        require_open(tokens, policy, gate_of(config, root))


def test_keys_are_never_overwritten_and_bad_keys_are_explained(tmp_path):
    create_key(tmp_path / "k.pem")
    with pytest.raises(ConfigError, match="a key exists already"):
        create_key(tmp_path / "k.pem")
    (tmp_path / "bad.pem").write_text("nonsense")
    with pytest.raises(ConfigError, match="not a readable private key"):
        read_verdict(tmp_path / "v.json", Keyring(GovernanceConfig(signing_key="bad.pem"), tmp_path))
