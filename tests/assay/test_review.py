"""The review of open gates: its output, its questions, and signed decisions that hold."""

import datetime
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.cli.review import Bench, kept_tables, review, reviewer_key
from governance.config import validate
from governance.errors import ConfigError, MissingInput
from governance.gate.approvals import APPROVALS, unapproved
from governance.gate.decision import CheckResult, SignedStatements, decide
from governance.gate.policy import Policy
from governance.gate.signed_statements import read_statements, signer_id
from governance.gate.waivers import RULINGS, Case, Waiver
from governance.signing.dsse import create_key, private_key

TODAY = datetime.datetime.now(datetime.UTC).date()
CORPUS = "c" * 64
SHARD = "clean/0000000000000000/features/00000.parquet"
GATES = [
    {"id": "documents.words", "suite": "documents", "expectation": "between", "column": "words", "min": 1,
     "owner": "data", "why": "A kept document has words."},
    {"id": "impact.keep", "suite": "impact", "expectation": "interval_between", "min": 0.8, "rule": "upper_ci",
     "owner": "fairness", "why": "A filter removes no group more than others."},
    {"id": "sources.lost", "suite": "sources", "expectation": "between", "column": "lost", "max": 0, "owner": "data",
     "why": "What one stage kept is what the next one read."},
]  # fmt: skip
IMPACT = [
    {"metric": "keep_ratio", "axis": "gender", "group": "women", "value": 0.6, "lower": 0.5, "upper": 0.7, "n": 812},
    {"metric": "keep_ratio", "axis": "gender", "group": "men", "value": 1.0, "lower": 0.9, "upper": 1.1, "n": 990},
]
RESULTS = [
    CheckResult("documents.words", SHARD, "fail", 0.0, 3, 1, "words is at least 1 in 2 of 3 rows"),
    CheckResult("impact.keep", "impact", "fail", 0.7, 2, 1, "the value is at least 0.8 in 1 of 2 rows"),
    CheckResult("sources.lost", "sources", "error", None, 4, 0, "column 'lost' occurs 0 times in the table"),
]


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


class Desk:
    def __init__(self, root):
        self.root = root
        for name in ("ann", "fay", "judge", "eve"):
            create_key(root / f"{name}.pem")
        people = {name: signer_id(private_key(root / f"{name}.pem")) for name in ("ann", "fay")}
        values = {
            "name": "p", "owners": {"data": ["ann"], "fairness": ["fay"]}, "people": people,
            "licences": {"allowed": ["MIT"]}, "gate": GATES,
        }  # fmt: skip
        self.policy = validate(values, Policy, "policy")
        ids = ["s/0#0", "s/0#1", "s/0#2"]
        texts = ["one two", "", "write to ann@example.org\x1b[2J or 0170 1234567"]
        for role, columns in (
            ("features", {"id": ids, "words": [2, 5, 0], "kept": [True, False, True]}),
            ("documents", {"id": ids[::2], "text": texts[::2]}),
        ):
            path = root / SHARD.replace("features", role)
            path.parent.mkdir(parents=True)
            pq.write_table(pa.table(columns), path)

    def walk(self, name, *answers, policy=None):
        policy = policy or self.policy
        case = Case(policy, CORPUS, TODAY, ("sue",), signer_id(private_key(self.root / "judge.pem")))
        judgement = decide(policy, RESULTS, CORPUS, TODAY, self.papers())
        verdict = {"verdict": judgement.decision, "reasons": list(judgement.reasons), "key_id": case.verdict_key}
        bench = Bench(case, verdict, {"impact": IMPACT}, self.root, self.root / "waivers", self.root / "approvals")
        out = io.StringIO()
        text = "".join(f"{answer}\n" for answer in answers)
        written = review(bench, reviewer_key(self.root / f"{name}.pem"), io.StringIO(text), out)
        return written, out.getvalue()

    def papers(self):
        return SignedStatements(
            (*read_statements(self.root / "waivers", RULINGS), *read_statements(self.root / "refusals", RULINGS)),
            read_statements(self.root / "approvals", APPROVALS),
            ("sue",),
        )


def test_the_evidence_is_shown_with_rows_and_masked_samples(desk):
    written, output = desk.walk("ann")
    assert written == []
    assert "[1/3] fail documents.words on clean/" in output
    assert "A kept document has words." in output
    assert "data: ann" in output
    assert "threshold  between: words at least 1; severity critical" in output
    assert "observed   0 in 3 rows, deviation 1" in output
    assert "row        s/0#2: 0" in output
    assert "sample     s/0#2: write to [e-mail]" in output
    assert "0170" not in output
    assert "\x1b" not in output
    assert output.endswith("stopped; what was signed is kept\n")


def test_a_signed_waiver_holds_and_covers_what_was_shown(desk):
    written, output = desk.walk(
        "ann", "w", "short", "a person read the empty one", "yesterday", str(TODAY), "0.5", "many", "1.5", "s"
    )
    [path] = written
    assert "write ten characters or more" in output
    assert "'yesterday' is not a day" in output
    assert "the deviation is 1; 0.5 would not cover it" in output
    assert "'many' is not a number" in output
    [paper] = read_statements(path.parent, RULINGS)
    assert isinstance(paper.content, Waiver)
    assert (paper.content.expires, paper.content.max_deviation, paper.content.observed) == (str(TODAY), 1.5, 0.0)
    reasons = {reason["gate"]: reason for reason in decide(desk.policy, RESULTS, CORPUS, TODAY, desk.papers()).reasons}
    assert reasons["documents.words"]["waived"]
    assert not reasons["impact.keep"]["waived"]


def test_defaults_are_thirty_days_and_the_deviation_itself(desk):
    [path], _ = desk.walk("ann", "w", "a person read the empty one", "", "", "q")
    [paper] = read_statements(path.parent, RULINGS)
    assert paper.content.expires == str(TODAY + datetime.timedelta(days=30))
    assert paper.content.max_deviation == 1.0


def test_who_is_no_owner_cannot_waive_but_can_refuse(desk):
    [path], output = desk.walk("fay", "w", "r", "nobody looked at this yet", "q")
    assert "your waiver would not hold: fay is not an owner of this gate; data is: ann" in output
    assert "answer with one of r, s, q" in output
    assert path.name.startswith("refusal-documents.words-")
    judgement = decide(desk.policy, RESULTS, CORPUS, TODAY, desk.papers())
    assert "refused by fay: nobody looked at this yet" in judgement.reasons[0]["detail"]


def test_an_interval_gate_shows_the_rows_with_their_intervals(desk):
    written, output = desk.walk("fay", "s", "w", "women write under other names here", "", "", "s")
    assert "keep_ratio/gender/women: 0.6 [0.5, 0.7], n 812" in output
    assert "keep_ratio/gender/men" not in output
    assert "threshold  interval_between: upper end at least 0.8; severity critical" in output
    assert len(written) == 1


def test_a_gate_of_gx_shows_its_arguments(desk):
    named = {"gx": "expect_column_max_to_be_between", "column": "words", "kwargs": {"max_value": 3, "strict_max": True}}
    kept = {name: value for name, value in GATES[0].items() if name not in ("expectation", "column", "min")}
    gates = [{**kept, **named}, *GATES[1:]]
    policy = validate({**desk.policy.model_dump(mode="json"), "gate": gates}, Policy, "policy")
    _, output = desk.walk("ann", "q", policy=policy)
    words = "expect_column_max_to_be_between(column='words', max_value=3, strict_max=True)"
    assert f"threshold  {words}; severity critical" in output


def test_an_error_offers_no_waiver(desk):
    written, output = desk.walk("ann", "s", "s", "w", "q")
    assert output.count("answer with one of r, s, q") == 1
    assert written == []


def test_the_end_of_the_input_in_the_midst_writes_nothing(desk):
    assert desk.walk("ann", "w", "a person read the empty one")[0] == []
    assert not (desk.root / "waivers").exists()


def test_a_strange_key_and_a_missing_one(desk):
    with pytest.raises(ConfigError, match=r"is in \[people\] of none"):
        desk.walk("eve")
    with pytest.raises(MissingInput, match="no such key"):
        reviewer_key(desk.root / "nobody.pem")
    assert not (desk.root / "nobody.pem").exists()


def test_two_reviewers_approve_a_looser_policy(desk):
    parent = desk.policy.model_dump(mode="json")
    gates = [{**gate, "min": 0} if gate["id"] == "documents.words" else gate for gate in parent["gate"]]
    child = validate({**parent, "name": "child", "gate": gates, "parent": parent}, Policy, "policy")
    for name, left in (("ann", 1), ("fay", 0)):
        written, output = desk.walk(name, "a", "we looked at it together", "q", policy=child)
        assert "looser: documents.words: min is 0, was 1" in output
        assert len(written) == 1
        assert len(list(unapproved(child, desk.papers().approvals, ("sue",)))) == left


def test_the_tables_of_an_audit_are_those_that_it_kept(tmp_path):
    audit, bias = tmp_path / "audit", tmp_path / "bias"
    audit.mkdir()
    bias.mkdir()
    for path, content in (
        (audit / "results.json", [{"gate": "a"}]),
        (audit / "sources.json", [{"stage": "clean"}]),
        (audit / "representation.json", {"rows": [{"axis": "gender"}], "terms": {}}),
        (audit / "manifest.json", {"stage": "audit"}),
        (bias / "tables.json", {"impact": IMPACT}),
    ):
        path.write_text(json.dumps(content))
    found = kept_tables(audit, bias)
    assert found == {"sources": [{"stage": "clean"}], "representation": [{"axis": "gender"}], "impact": IMPACT}
