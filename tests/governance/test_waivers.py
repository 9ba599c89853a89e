"""A waiver holds only when everything about it is right; each wrong part is named, and blocks."""

import base64
import datetime
import json

import pytest

from governance.config import validate
from governance.errors import ConfigError, GateClosed
from governance.files import write_json
from governance.gate.decision import CheckResult, decide
from governance.gate.explanation import explain
from governance.gate.policy import Gate, Policy, load_policy
from governance.gate.signed_statements import signature_fields, signer_id, submitters, write_statement
from governance.gate.verdict import GateContext, GovernanceConfig, Keyring, give_verdict, load_statements, require_open
from governance.gate.waivers import REFUSAL, WAIVER, Refusal, Waiver, deviation
from governance.lineage.attest import open_journal
from governance.manifest import Manifest, Output
from governance.signing.dsse import create_key, key_id, private_key, public_key, public_path
from tests.governance.test_gate import rule

TODAY = datetime.datetime.now(datetime.UTC).date()
LATER = str(TODAY + datetime.timedelta(days=20))
BEFORE = str(TODAY - datetime.timedelta(days=1))


@pytest.fixture
def bench(tmp_path):
    """A root with one corpus, a folder of papers, and the keys of three people."""
    return Bench(tmp_path)


class Bench:
    def __init__(self, root):
        self.root = root
        self.keys = {}
        for name in ("ann", "ben", "eve", "judge"):
            create_key(root / f"{name}.pem")
            self.keys[name] = private_key(root / f"{name}.pem")
        self.config = GovernanceConfig(signing_key="judge.pem", submitter="sue")
        fields = {"version": 1, "key": "0" * 64, "config": {}, "inputs": (), "stats": {}, "run": {}}
        shard = Output(path=f"encode/{'0' * 16}/train/00000.tokens", bytes=1, sha256="1" * 64)
        (root / shard.path).parent.mkdir(parents=True)
        (root / shard.path).write_bytes(b"1")
        self.tokens = Manifest(stage="encode", outputs=(shard,), **fields)
        self.audit = Manifest(stage="audit", outputs=(), **fields)
        self.policy = self.make_policy()
        for manifest in (self.tokens, self.audit):
            self.gate().journal.state_artifact(manifest)

    def make_policy(self, **changes):
        values = {
            "name": "test",
            "owners": {"data": ["ann", "sue"], "legal": ["ben"]},
            "people": {name: signer_id(self.keys[name]) for name in ("ann", "ben")},
            "licences": {"allowed": ["MIT"]},
            "gate": [rule("a.hard"), rule("a.soft", severity="warning"), rule("a.law", owner="legal")],
        }
        return validate({**values, **changes}, Policy, "policy")

    def results(self, status="fail", gate="a.hard", observed=1.25, subject="s"):
        names = ("a.hard", "a.soft", "a.law")
        return [
            CheckResult(name, subject, status if name == gate else "pass", observed if name == gate else 0.5, 9, 1, "x")
            for name in names
        ]

    def paper(self, name="w.json", kind=WAIVER, signer="ann", corpus=None, key=None, **changes):
        """One paper, right in everything except `changes`."""
        own = self.keys[key or signer]
        values = {
            **signature_fields(signer, "two torn records, read by a person", own),
            "gate": "a.hard", "result": "s", "policy": self.policy.digest,
        }  # fmt: skip
        if kind == WAIVER:
            values |= {"observed": 1.25, "max_deviation": 0.25, "expires": LATER}
        content = (Waiver if kind == WAIVER else Refusal)(**{**values, **changes})
        path = self.root / "waivers" / name
        write_statement(path, kind, ("corpus", corpus or self.tokens.digest), content, own)
        return path

    def gate(self):
        keyring = Keyring(self.config, self.root)
        return GateContext(keyring, self.root, open_journal(keyring, self.root))

    def judge(self, results=None, **today):
        papers = load_statements(self.gate())
        return decide(self.policy, results or self.results(), self.tokens.digest, today.get("today", TODAY), papers)

    def give(self, judgement):
        return give_verdict(
            judgement, self.tokens, self.audit, self.policy, self.gate()
        )  # fmt: skip

    def open(self):
        return require_open(self.tokens, self.policy, self.gate())


def test_a_right_waiver_makes_waived_and_opens(bench):
    bench.paper()
    judgement = bench.judge()
    assert judgement.decision == "WAIVED"
    [waiver] = judgement.waivers
    assert (waiver["approver"], waiver["gate"], waiver["file"]) == ("ann", "a.hard", "w.json")
    verdict = bench.give(judgement)
    assert verdict["verdict"] == "WAIVED"
    assert bench.open()["verdict"] == "WAIVED"
    assert "a.hard failed (waived, owner:" in explain(verdict)


def test_nothing_is_waived_where_everything_passed(bench):
    bench.paper()
    assert bench.judge(bench.results("pass", observed=0.5)).decision == "PASS"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"expires": BEFORE}, f"expired on {BEFORE}"),
        ({"corpus": "d" * 64}, "for another corpus (dddd"),
        ({"policy": "d" * 64}, "for another policy (dddd"),
        ({"max_deviation": 0.24}, "covers a deviation of up to 0.24; here it is 0.25"),
        ({"max_deviation": None}, "covers a result without a number"),
        ({"signer": "ben"}, "ben is not an owner of this gate; data is: ann, sue"),
        ({"signer": "eve"}, "eve is not in [people]"),
        ({"key": "eve"}, "which is not ann's own"),
        ({"signed_at": "2999-01-01T00:00:00Z"}, "a clock is wrong"),
    ],
)
@pytest.mark.parametrize("gate", ["a.hard", "a.soft"])
def test_a_waiver_that_does_not_hold_blocks_and_says_why(bench, changes, words, gate):
    bench.paper(gate=gate, **changes)
    judgement = bench.judge(bench.results(gate=gate))
    assert judgement.decision == "BLOCK", "whatever the gate's severity: somebody meant to talk it round"
    [reason] = judgement.reasons
    assert words in reason["detail"]
    assert "waiver w.json does not hold" in reason["detail"]
    bench.give(judgement)
    with pytest.raises(GateClosed, match=r"Decision: data \(ann, sue\)"):
        bench.open()


@pytest.mark.parametrize("changes", [{"gate": "a.law", "signer": "ben"}, {"gate": "a.soft"}, {"result": "t"}])
def test_a_waiver_of_another_gate_or_result_covers_nothing(bench, changes):
    bench.paper(**changes)
    judgement = bench.judge()
    assert (judgement.decision, judgement.waivers) == ("BLOCK", ())
    bench.give(judgement)
    with pytest.raises(GateClosed, match=r"verdict BLOCK"):
        bench.open()


def test_nobody_waives_for_himself(bench, monkeypatch):
    bench.policy = bench.make_policy(people={"ann": signer_id(bench.keys["ann"])})
    bench.paper()
    for config, account in (({"submitter": "ann"}, ""), ({}, "ann")):
        bench.config = GovernanceConfig(signing_key="judge.pem", **config)
        monkeypatch.setenv("SLURM_JOB_USER", account)
        judgement = bench.judge()
        assert judgement.decision == "BLOCK"
        assert "ann submitted this run" in judgement.reasons[0]["detail"]
    monkeypatch.setenv("SLURM_JOB_USER", "")
    bench.config = GovernanceConfig(signing_key="ann.pem")
    assert "signs the verdict as well" in bench.judge().reasons[0]["detail"]


def test_a_name_in_the_configuration_does_not_hide_the_account(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_USER", raising=False)
    account = submitters("")
    assert len(account) == 1
    assert set(submitters("somebody")) == {"somebody", *account}


def test_who_submits_the_training_may_not_have_waived_either(bench, monkeypatch):
    bench.paper()
    bench.give(bench.judge())
    monkeypatch.setenv("SLURM_JOB_USER", "ann")
    with pytest.raises(GateClosed, match="ann submitted this run"):
        bench.open()


def test_each_flipped_byte_of_a_waiver_blocks(bench):
    path = bench.paper()
    whole = path.read_bytes()
    for index in range(0, len(whole), 11):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 4]) + whole[index + 1 :])
        assert bench.judge().decision in ("BLOCK", "ERROR")
    path.write_bytes(whole)
    assert bench.judge().decision == "WAIVED"


def test_an_altered_payload_is_reported_with_its_gate(bench):
    path = bench.paper(max_deviation=0.1)
    envelope = json.loads(path.read_bytes())
    statement = json.loads(base64.b64decode(envelope["payload"]))
    statement["predicate"]["max_deviation"] = 9.0
    envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    write_json(path, envelope)
    [reason] = bench.judge().reasons
    assert (reason["gate"], reason["closes"]) == ("a.hard", True)
    assert "its signature does not hold" in reason["detail"]


@pytest.mark.parametrize("content", [b"no json", b"{}", b'{"payload": "e30="}', b'{"payload": 5}', b"[]"])
def test_what_is_no_paper_is_an_error(bench, content):
    (bench.root / "waivers").mkdir()
    (bench.root / "waivers" / "x.json").write_bytes(content)
    judgement = bench.judge(bench.results("pass", observed=0.5))
    assert judgement.decision == "ERROR"
    assert judgement.reasons[0]["subject"] == "x.json"


def test_an_unknown_gate_is_an_error(bench):
    bench.paper(gate="a.nowhere")
    judgement = bench.judge(bench.results("pass", observed=0.5))
    assert judgement.decision == "ERROR"
    assert "not in the policy" in judgement.reasons[0]["detail"]


@pytest.mark.parametrize("status", ["error", "missing"])
def test_an_error_or_a_missing_result_cannot_be_waived(bench, status):
    bench.paper()
    assert bench.judge(bench.results(status, observed=None)).decision in ("ERROR", "NOT_RUN")


def test_an_inconclusive_result_is_waived_without_a_number(bench):
    bench.paper(max_deviation=None, observed=None)
    assert bench.judge(bench.results("inconclusive", observed=None)).decision == "WAIVED"
    assert bench.judge(bench.results("inconclusive", observed=1.1)).decision == "BLOCK"


def test_a_waiver_is_for_one_result_and_a_renewed_one_replaces_the_expired(bench):
    bench.paper()
    other = bench.judge([*bench.results(), CheckResult("a.hard", "t", "fail", 1.1, 9, 1, "x")])
    assert other.decision == "BLOCK"
    assert [(reason["subject"], reason["waived"]) for reason in other.reasons] == [("s", True), ("t", False)]
    bench.paper("a-older.json", expires=BEFORE)
    assert bench.judge().decision == "WAIVED"


def test_a_waiver_that_is_renewed_gives_another_verdict(bench):
    path = bench.paper(expires=str(TODAY))
    first = bench.give(bench.judge())
    path.unlink()
    bench.paper("renewed.json")
    second = bench.give(bench.judge())
    assert [first["waivers"][0]["expires"], second["waivers"][0]["expires"]] == [str(TODAY), LATER]


def test_a_waiver_that_expires_or_goes_after_the_verdict_closes(bench):
    path = bench.paper()
    bench.give(bench.judge())
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(GateClosed, match="its file is gone"):
        bench.open()
    path.write_bytes(whole)
    assert bench.open()["verdict"] == "WAIVED"
    path.unlink()
    bench.paper(expires=str(TODAY - datetime.timedelta(days=1)))
    judgement = bench.judge(today=TODAY - datetime.timedelta(days=1))
    assert judgement.decision == "BLOCK", "signed today, judged yesterday: a clock is wrong"
    bench.paper(expires=BEFORE, signed_at=f"{BEFORE}T00:00:00Z")
    bench.give(bench.judge(today=TODAY - datetime.timedelta(days=1)))
    with pytest.raises(GateClosed, match=r"the waiver of a\.hard has expired"):
        bench.open()


@pytest.mark.parametrize("signer", ["ann", "eve"])
def test_a_refusal_closes_and_says_how_it_ends(bench, signer):
    bench.paper()
    bench.give(bench.judge())
    assert bench.open()["verdict"] == "WAIVED"
    path = bench.paper("no.json", REFUSAL, signer)
    end = "withdrawn by an owner" if signer == "ann" else "removed"
    with pytest.raises(GateClosed, match=rf"a\.hard \(owner: data\): refused by .*\(until no\.json is {end}\)"):
        bench.open()
    assert bench.judge().decision == "BLOCK"
    assert bench.judge(bench.results("pass", observed=0.5)).decision == "BLOCK", "of a result that passed, too"
    path.unlink()
    if signer == "eve":  # in no [people], so the journal does not state her refusal
        assert bench.open()["verdict"] == "WAIVED"
        return
    with pytest.raises(GateClosed, match=r"the refusal no\.json by ann was removed"):
        bench.open()


def test_a_refused_gate_that_passed_is_explained_by_its_refusal(bench):
    bench.paper("no.json", REFUSAL)
    verdict = bench.give(bench.judge(bench.results("pass", observed=0.5)))
    [line] = [line for line in explain(verdict).splitlines() if line.startswith("  a.hard")]
    assert line.startswith("  a.hard on s failed: refused by ann: two torn records")
    assert "; the check itself passed: x. Decision: data" in line


def test_a_refusal_of_another_corpus_says_nothing_here(bench):
    bench.paper("no.json", REFUSAL, corpus="d" * 64)
    assert bench.judge(bench.results("pass", observed=0.5)).decision == "PASS"


@pytest.mark.parametrize(
    ("fields", "observed", "beyond"),
    [
        ({"max": 1}, 1.25, 0.25),
        ({"min": 1, "max": 2}, 0.25, 0.75),
        ({"min": 1, "max": 2}, 1.5, 0.0),
        ({"max": 1, "mostly": 0.9}, 0.5, 0.4),
        ({"max": None, "expectation": "not_null"}, 0.5, 0.5),
        ({"max": None, "expectation": "columns_present", "column": "", "values": ["a"]}, "a, b", 2.0),
        ({"max": None, "min": 0.8, "expectation": "interval_between", "column": "", "suite": "impact"}, 0.7, 0.1),
        ({"max": 0.001}, None, None),
    ],
)
def test_the_deviation_is_what_is_beyond(fields, observed, beyond):
    gate = validate(rule("a.b", **fields), Gate, "gate")
    found = deviation(gate, observed)
    assert found == beyond if beyond is None else found == pytest.approx(beyond)


def test_the_keys_of_people_are_read_from_files_and_hashed(bench):
    text = """
name = "t"
owners = {{ data = ["ann"] }}
licences = {{ allowed = ["MIT"] }}
[people]
ann = "{key}"
[[gate]]
id = "a.b"
suite = "sources"
expectation = "between"
column = "x"
max = 1
owner = "data"
why = "because it matters"
"""
    path = bench.root / "policy.toml"
    digests = set()
    for name in ("ann", "ben"):
        path.write_text(text.format(key=public_path(bench.root / f"{name}.pem").name))
        policy = load_policy(path)
        assert policy.people == {"ann": key_id(public_key(public_path(bench.root / f"{name}.pem")))}
        digests.add(policy.digest)
    assert len(digests) == 2, "another key under the same name is another policy"
    path.write_text(text.format(key="nowhere.pub"))
    with pytest.raises(ConfigError, match=r"nowhere\.pub"):
        load_policy(path)
