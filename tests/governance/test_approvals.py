"""A policy that is looser than its parent needs two people, one of them an owner by the parent's list."""

import datetime

import pandas as pd
import pytest

from governance.checks.expectations import run_suite
from governance.config import validate
from governance.errors import ConfigError
from governance.gate.approvals import APPROVAL, APPROVALS, Approval, all_differences, policy_differences, unapproved
from governance.gate.decision import CheckResult, SignedStatements, decide
from governance.gate.policy import Policy, load_policy
from governance.gate.signed_statements import read_statements, signature_fields, signer_id, write_statement
from governance.signing.dsse import create_key, private_key

GATE = {
    "id": "a.b", "suite": "sources", "expectation": "between", "column": "x", "min": 0, "max": 1, "mostly": 0.9,
    "min_rows": 5, "max_missing": 0.1, "owner": "data", "why": "because it matters",
}  # fmt: skip
INTERVAL = {
    "id": "i.v", "suite": "impact", "expectation": "interval_between", "min": 0.8, "rule": "point", "min_n": 30,
    "owner": "fairness", "why": "because it matters",
}  # fmt: skip
LICENCE = {
    "id": "l.l", "suite": "licences", "expectation": "in_set", "column": "licence", "owner": "legal",
    "why": "because it matters",
}  # fmt: skip


def make(gates=(GATE, INTERVAL, LICENCE), **changes):
    values = {
        "name": "child",
        "owners": {"data": ["ann"], "fairness": ["fay"], "legal": ["leo"]},
        "licences": {"allowed": ["MIT", "CC0-1.0"]},
        "gate": list(gates),
    }
    return validate({**values, **changes}, Policy, "policy")


def with_gate(base, **changes):
    return make([{**gate, **changes} if gate["id"] == base["id"] else gate for gate in (GATE, INTERVAL, LICENCE)])


@pytest.mark.parametrize(
    ("child", "gate", "loosened"),
    [
        (with_gate(GATE, max=2), "a.b", True),
        (with_gate(GATE, max=0.5), "a.b", False),
        (with_gate(GATE, max=None), "a.b", True),
        (with_gate(GATE, min=-1), "a.b", True),
        (with_gate(GATE, min=0.5), "a.b", False),
        (with_gate(GATE, severity="warning"), "a.b", True),
        (with_gate(GATE, mostly=0.8), "a.b", True),
        (with_gate(GATE, mostly=1.0), "a.b", False),
        (with_gate(GATE, min_rows=1), "a.b", True),
        (with_gate(GATE, max_missing=0.5), "a.b", True),
        (with_gate(GATE, max_missing=0.0), "a.b", False),
        (with_gate(GATE, on_inconclusive="show"), "a.b", True),
        (with_gate(GATE, column="y"), "a.b", True),
        (with_gate(GATE, where={"stage": "clean"}), "a.b", True),
        (with_gate(GATE, owner="legal"), "a.b", True),
        (with_gate(GATE, why="another reason for it"), "a.b", False),
        (make(energy_budget={"kilowatt_hours": 2.0}), "policy", False),
        (with_gate(INTERVAL, rule="upper_ci"), "i.v", True),
        (with_gate(INTERVAL, rule="lower_ci"), "i.v", False),
        (with_gate(INTERVAL, min_n=5), "i.v", True),
        (with_gate(INTERVAL, min_n=50), "i.v", True),
        (with_gate(LICENCE, values=["MIT"]), "l.l", True),
        (make([INTERVAL, LICENCE]), "a.b", True),
        (make([GATE, INTERVAL, LICENCE, {**GATE, "id": "n.n"}]), "n.n", False),
        (make(licences={"allowed": ["MIT", "CC0-1.0", "GPL-3.0"]}), "l.l", True),
        (make(licences={"allowed": ["MIT"]}), "policy", False),
        (make(verdict_days=60), "policy", True),
        (make(verdict_days=7), "policy", False),
        (make(verified_origin=True), "policy", False),
        (make(owners={"data": ["bob"], "fairness": ["fay"], "legal": ["leo"]}), "policy", True),
        (make(people={"ann": "a" * 64}), "policy", True),
    ],
)
def test_each_difference_is_reported_and_known_to_loosen_or_not(child, gate, loosened):
    [difference] = policy_differences(child, make(name="parent"))
    assert (difference.gate, difference.loosened) == (gate, loosened), difference.text()


def test_a_policy_that_no_longer_demands_the_origin_of_weights_needs_approval():
    [difference] = policy_differences(make(), make(verified_origin=True))
    assert (difference.loosened, difference.words) == (True, "verified_origin is False, was True")


@pytest.mark.parametrize(
    ("changes", "loosened"),
    [
        ({"kilowatt_hours": 3.0}, True),
        ({"kilowatt_hours": 1.0}, False),
        ({"scope": "training"}, True),
        ({"bound": "central"}, True),
        ({"unknown": "allow"}, True),
        (None, True),
    ],
)
def test_a_looser_energy_budget_needs_approval(changes, loosened):
    budget = {"kilowatt_hours": 2.0}
    parent = make(energy_budget=budget)
    child = make(energy_budget=None if changes is None else {**budget, **changes})
    [difference] = policy_differences(child, parent)
    assert (difference.gate, difference.loosened) == ("policy", loosened)
    assert "energy_budget" in difference.words
    assert set(difference.owners) == {"ann", "fay", "leo"}


def test_against_a_maximum_the_ends_of_an_interval_are_exchanged():
    def rules(rule):
        return make([{**INTERVAL, "min": None, "max": 2, "rule": rule}])

    assert policy_differences(rules("lower_ci"), rules("point"))[0].loosened
    assert not policy_differences(rules("upper_ci"), rules("point"))[0].loosened
    both = make([{**INTERVAL, "max": 2}])
    assert policy_differences(make([{**INTERVAL, "max": 2, "rule": "lower_ci"}]), both)[0].loosened
    for other in ("lower_ci", "point", "upper_ci"):
        assert policy_differences(rules("whole_ci"), rules(other))[0].loosened
        assert policy_differences(rules(other), rules("whole_ci"))[0].loosened


@pytest.mark.parametrize(
    ("gate", "table", "changes"),
    [
        ({"on_inconclusive": "show"}, {}, {"min_rows": 100}),
        ({"on_inconclusive": "show"}, {"lower": [None], "upper": [None]}, {"rule": "lower_ci"}),
        ({"max_missing": 0.5}, {"lower": [None, 0.9], "upper": [None, 1.0]}, {"rule": "lower_ci"}),
    ],
)
def test_a_change_by_which_a_failure_no_longer_closes_needs_approval(gate, table, changes):
    """Each of these turns a failure into an inconclusive result that is only shown, or into a pass."""
    parent, child = with_gate(INTERVAL, min_n=1, **gate), with_gate(INTERVAL, min_n=1, **gate, **changes)
    rows = len(table.get("lower", [0]))
    frame = pd.DataFrame(
        {"value": [0.5, 0.95][:rows], "lower": [0.4, 0.9][:rows], "upper": [0.6, 1.0][:rows], "n": [40] * rows, **table}
    )

    def closes(policy):
        of_gate = [one for one in policy.gates() if one.id == "i.v"]
        others = [CheckResult(one.id, "t", "pass", 1.0, 1, 0, "") for one in policy.gates() if one.id != "i.v"]
        results = [*run_suite(frame, of_gate, "t"), *others]
        return decide(policy, results, "c" * 64, datetime.date(2027, 1, 2)).decision not in ("PASS", "WAIVED")

    assert closes(parent)
    assert not closes(child)
    [difference] = policy_differences(child, parent)
    assert difference.loosened, difference.text()


def test_an_equal_policy_differs_in_nothing():
    assert policy_differences(make(), make(name="other")) == []


@pytest.fixture
def desk(tmp_path):
    """Keys of four people, a parent that knows them, and a child that is looser on one gate."""
    keys = {}
    for name in ("ann", "bob", "sue", "eve"):
        create_key(tmp_path / f"{name}.pem")
        keys[name] = private_key(tmp_path / f"{name}.pem")
    people = {name: signer_id(keys[name]) for name in ("ann", "bob", "sue")}
    parent = make(name="parent", people=people)
    child = make([{**GATE, "max": 2}, INTERVAL, LICENCE], people=people, parent=parent.model_dump(mode="json"))
    return tmp_path / "approvals", keys, child


def approve(desk, name, policy=None, key=None):
    folder, keys, child = desk
    about = policy or child
    fields = signature_fields(name, "we looked at this together", keys[key or name])
    content = Approval(**fields, parent=child.parent.digest, differences=tuple(all_differences(child)))
    write_statement(folder / f"{name}-{key}.json", APPROVAL, ("policy", about.digest), content, keys[key or name])


def lacking(desk, *submitters):
    folder, _, child = desk
    return unapproved(child, read_statements(folder, APPROVALS), submitters)


def test_two_people_one_an_owner_open_a_loosened_gate(desk):
    [missing] = lacking(desk)
    assert (missing.gate, missing.owner) == ("a.b", "data")
    assert "max is 2, was 1" in missing.words
    assert "approved by nobody" in missing.words
    approve(desk, "ann")
    assert "approved by ann" in lacking(desk)[0].words
    approve(desk, "bob")
    assert lacking(desk) == []


@pytest.mark.parametrize(
    ("papers", "submitter", "words"),
    [
        ([("bob", None), ("sue", None)], "", "at least one an owner (ann)"),
        ([("ann", None), ("sue", None)], "sue", "sue submitted this run"),
        ([("ann", None), ("bob", "eve")], "", "which is not bob's own"),
        ([("ann", None), ("eve", None)], "", "eve is not in [people]"),
        ([("ann", None), ("ann", "bob")], "", "which is not ann's own"),
    ],
)
def test_what_does_not_count_is_reported(desk, papers, submitter, words):
    for name, key in papers:
        approve(desk, name, key=key)
    [missing] = lacking(desk, submitter)
    assert words in missing.words


def test_an_approval_of_another_policy_does_not_count(desk):
    for name in ("ann", "bob"):
        approve(desk, name, policy=desk[2].parent)
    assert "approved by nobody" in lacking(desk)[0].words


def test_a_policy_cannot_appoint_its_own_approvers(desk):
    folder, keys, child = desk
    own = {"eve": signer_id(keys["eve"]), "bob": signer_id(keys["bob"])}
    values = {**child.model_dump(mode="json"), "people": own, "owners": {**child.owners, "data": ("eve",)}}
    usurped = validate(values, Policy, "policy")
    approve((folder, keys, usurped), "eve")
    approve((folder, keys, usurped), "bob")
    missing = lacking((folder, keys, usurped))
    assert {item.gate for item in missing} == {"a.b", "policy"}
    assert all("approved by bob" in item.words for item in missing)


def test_a_loose_policy_between_two_does_not_hide_the_loosening(desk):
    _, _, child = desk
    own = validate({**child.model_dump(mode="json"), "parent": child.model_dump(mode="json")}, Policy, "policy")
    assert [item.gate for item in unapproved(own, (), ())] == ["a.b"]


def test_an_unapproved_policy_blocks_a_corpus_that_passes_everything(desk):
    folder, _, child = desk
    results = [CheckResult(gate.id, "s", "pass", 0.5, 9, 0, "x") for gate in child.gates()]
    today = datetime.datetime.now(datetime.UTC).date()

    def judge():
        return decide(child, results, "c" * 64, today, SignedStatements(approvals=read_statements(folder, APPROVALS)))

    closed = judge()
    assert closed.decision == "BLOCK"
    assert closed.reasons[0]["owner"] == "data"
    assert closed.differences == ("looser: a.b: max is 2, was 1 (against parent)",)
    approve(desk, "ann")
    approve(desk, "bob")
    assert judge().decision == "PASS"


def test_the_parent_is_read_from_its_file_and_hashed(tmp_path):
    text = """
name = "{name}"
{parent}
owners = {{ data = ["ann"] }}
licences = {{ allowed = ["MIT"] }}
[[gate]]
id = "a.b"
suite = "sources"
expectation = "between"
column = "x"
max = {most}
owner = "data"
why = "because it matters"
"""
    child = tmp_path / "child.toml"
    child.write_text(text.format(name="child", parent='parent = "above/parent.toml"', most=2))
    (tmp_path / "above").mkdir()
    digests = []
    for most in (1, 2):
        (tmp_path / "above" / "parent.toml").write_text(text.format(name="parent", parent="", most=most))
        policy = load_policy(child)
        digests.append(policy.digest)
        assert len(all_differences(policy)) == 2 - most
    assert digests[0] != digests[1], "another parent is another policy: what was approved no longer holds"
    child.write_text(text.format(name="child", parent='parent = "child.toml"', most=2))
    with pytest.raises(ConfigError, match="is this policy itself"):
        load_policy(child)
    child.write_text(text.format(name="child", parent="parent = 5", most=2))
    with pytest.raises(ConfigError, match="give the path"):
        load_policy(child)
