"""A policy that is looser than its parent needs two people, one of them an owner by the parent's list."""

import datetime

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from governance.checks.expectations import run_suite
from governance.config import validate
from governance.errors import ConfigError
from governance.gate.approvals import APPROVAL, APPROVALS, Approval, all_differences, policy_differences, unapproved
from governance.gate.decision import CheckResult, SignedStatements, decide
from governance.gate.policy import EnergyBudget, Gate, Licences, Policy, load_policy
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
        (
            {"rule": "whole_ci", "mostly": 0.5},
            {"value": [0.8, 0.95], "lower": [0.7, 0.9], "upper": [0.85, 1.0]},
            {"min": 0.86},
        ),
        (
            {"rule": "whole_ci", "min_rows": 2, "on_inconclusive": "show"},
            {"lower": [0.4, 0.9], "upper": [0.6, 0.98]},
            {"max": 0.96},
        ),
    ],
)
def test_a_change_by_which_a_failure_no_longer_closes_needs_approval(gate, table, changes):
    """Each of these turns a failure into an inconclusive result that is only shown, or into a pass."""
    parent, child = with_gate(INTERVAL, min_n=1, **gate), with_gate(INTERVAL, min_n=1, **gate, **changes)
    rows = len(table.get("lower", [0]))
    frame = pd.DataFrame(
        {"value": [0.5, 0.95][:rows], "lower": [0.4, 0.9][:rows], "upper": [0.6, 1.0][:rows], "n": [40] * rows, **table}
    )
    before, after = closing(frame, [next(one for one in policy.gate if one.id == "i.v") for policy in (parent, child)])
    assert before
    assert not after
    [difference] = policy_differences(child, parent)
    assert difference.loosened, difference.text()


def closing(frame, gates):
    """For each gate, whether its result on the table closes."""
    for gate, result in zip(gates, run_suite(frame, gates, "t"), strict=True):
        policy = make([gate.model_dump(exclude_defaults=True)])
        yield decide(policy, [result], "c" * 64, datetime.date(2027, 1, 2)).decision not in ("PASS", "WAIVED")


BOUNDS = {name: st.sampled_from([None, 0.5, 0.6, 0.7, 0.8]) for name in ("min", "max")}
COMMON = {
    "min_rows": st.sampled_from([1, 3, 9]), "max_missing": st.sampled_from([0.0, 0.3, 1.0]),
    "severity": st.sampled_from(["critical", "warning"]), "on_inconclusive": st.sampled_from(["block", "show"]),
    "where": st.sampled_from([{}, {"s": "a"}]),
}  # fmt: skip
MOSTLY = st.sampled_from([0.4, 0.7, 1.0])
KINDS = {
    "between": BOUNDS | {"column": st.sampled_from(["value", "lower"]), "mostly": MOSTLY},
    "quantile_between": BOUNDS | {"column": st.just("value"), "quantile": st.sampled_from([0.1, 0.5])},
    "mean_between": BOUNDS | {"column": st.sampled_from(["value", "lower"])},
    "unique": {"column": st.sampled_from(["value", "s"]), "mostly": MOSTLY},
    "not_null": {"column": st.sampled_from(["value", "s"]), "mostly": MOSTLY},
    "match_regex": {"column": st.just("s"), "regex": st.sampled_from(["a", "[ab]"]), "mostly": MOSTLY},
    "in_set": {"column": st.just("s"), "values": st.sampled_from([["a"], ["a", "b"], ["b"]]), "mostly": MOSTLY},
    "columns_present": {"values": st.sampled_from([["s"], ["s", "n"], ["none"]])},
    "row_count_between": {name: st.sampled_from([None, 1, 2, 4]) for name in ("min", "max")},
    "interval_between": BOUNDS | {"mostly": MOSTLY, "min_n": st.sampled_from([1, 40]),
                                  "rule": st.sampled_from(["point", "lower_ci", "upper_ci", "whole_ci"])},
}  # fmt: skip


def built(values):
    """A gate of these values, or None where the policy's rules refuse it."""
    fields = {name: value for name, value in values.items() if value not in (None, {})}
    try:
        return make([{**GATE_WORDS, **fields}]).gate[0]
    except ConfigError:
        return None


GATE_WORDS = {"id": "i.v", "suite": "impact", "owner": "fairness", "why": "because it matters"}
ROWS = st.tuples(
    st.sampled_from([0.4, 0.55, 0.65, 0.75, 0.9]), st.sampled_from([0, 0.1, 0.3]), st.sampled_from([30, 50]),
    st.sampled_from(["a", "b", None]), st.sampled_from(["all", "bare", "none"]),
)  # fmt: skip


@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_gate_opens_where_its_parents_closes_unless_the_change_needs_approval(data):
    """A table, a gate, and children that differ from it in one or two fields."""
    rows = data.draw(st.lists(ROWS, min_size=1, max_size=6), "rows")
    frame = pd.DataFrame(
        [
            {
                "value": None if kind == "none" else value,
                "lower": value - width if kind == "all" else None,
                "upper": value + width if kind == "all" else None,
                "n": n,
                "s": word,
            }
            for value, width, n, word, kind in rows
        ]
    )
    kind = data.draw(st.sampled_from(sorted(KINDS)), "kind")
    fields = {"expectation": st.just(kind), **COMMON, **KINDS[kind]}
    parent = data.draw(st.fixed_dictionaries(fields).filter(built), "parent")
    names = st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=2, unique=True)
    drawn = [{name: data.draw(fields[name]) for name in data.draw(names)} for _ in range(15)]
    gates = [built(parent), *filter(None, (built(parent | changes) for changes in drawn))]
    before, *after = closing(frame, gates)
    for gate, closes in zip(gates[1:], after, strict=True):
        child, above = (make([one.model_dump(exclude_defaults=True)]) for one in (gate, gates[0]))
        differences = policy_differences(child, above)
        assert closes or not before or any(one.loosened for one in differences), (parent, gate)


OWN = {"suite": "sources", "gx": "lab.rules:Own", "kwargs": {"least": 1}, "sha256": "a" * 64, "mostly": 0.9}
LOOSER = {
    Gate: {
        "id": (GATE, {"id": "x.y"}),
        "suite": (GATE, {"suite": "tokens"}),
        "expectation": (GATE, {"expectation": "mean_between", "mostly": 1.0}),
        "gx": (OWN, {"gx": "lab.rules:Other"}),
        "kwargs": (OWN, {"kwargs": {"least": 0}}),
        "sha256": (OWN, {"sha256": "b" * 64}),
        "column": (GATE, {"column": "y"}),
        "where": (GATE, {"where": {"s": "a"}}),
        "min": (GATE, {"min": -1}),
        "max": (GATE, {"max": 2}),
        "mostly": (OWN, {"mostly": 0.95}),
        "quantile": ({"expectation": "quantile_between", "column": "x", "min": 1, "quantile": 0.1}, {"quantile": 0.9}),
        "values": ({"expectation": "in_set", "column": "x", "values": ["a"]}, {"values": ["a", "b"]}),
        "regex": ({"expectation": "match_regex", "column": "x", "regex": "a"}, {"regex": "."}),
        "rule": (INTERVAL, {"rule": "upper_ci"}),
        "min_n": (INTERVAL, {"min_n": 60}),
        "min_rows": (GATE, {"min_rows": 1}),
        "max_missing": (GATE, {"max_missing": 1.0}),
        "severity": (GATE, {"severity": "warning"}),
        "on_inconclusive": (GATE, {"on_inconclusive": "show"}),
        "owner": (GATE, {"owner": "legal"}),
    },
    EnergyBudget: {"kilowatt_hours": 3.0, "scope": "training", "bound": "central", "unknown": "allow"},
    Licences: {"allowed": ["MIT", "CC0-1.0", "GPL-3.0"]},
    Policy: {
        "strength": "blocks on sources",
        "verdict_days": 60,
        "owners": {"data": ["eve"], "fairness": ["fay"], "legal": ["leo"]},
        "people": {"ann": "a" * 64},
        "licences": {"allowed": ["MIT", "CC0-1.0", "GPL-3.0"]},
        "energy_budget": None,
        "verified_origin": False,
        "gate": [INTERVAL, LICENCE],
    },
}
"""Section -> field -> a value that asks less (of a gate: the gate, and its change)."""
NEVER = {Gate: {"seconds", "why"}, EnergyBudget: set(), Licences: set(), Policy: {"name", "parent"}}
"""A shorter or longer time ends in an error or changes nothing; words; what is compared itself."""


@pytest.mark.parametrize(
    ("section", "field"), [(section, field) for section in LOOSER for field in section.model_fields]
)
def test_every_field_of_a_policy_can_be_loosened_with_approval_only(section, field):
    """A new field fails here until it has a value that asks less, or a reason why there is none."""
    assert (field in LOOSER[section]) != (field in NEVER[section])
    if field in NEVER[section]:
        return
    looser, budget = LOOSER[section][field], {"kilowatt_hours": 2.0}
    values = {"energy_budget": budget, "verified_origin": True, "strength": "warns on sources"}
    own = {**values, "gate": [{**GATE, "on_inconclusive": "show"}, INTERVAL, LICENCE]}
    if section is Gate:
        gate, changes = looser
        gates = [{**GATE_WORDS, **gate, "id": "a.b"}, {**GATE_WORDS, **gate, "id": "a.b", **changes}]
        parent, child = (make([one, LICENCE]) for one in gates)
    else:
        named = {EnergyBudget: {"energy_budget": {**budget, field: looser}}, Licences: {"licences": {field: looser}}}
        parent, child = make(**own), make(**own | named.get(section, {field: looser}))
    closed = unapproved(child.model_copy(update={"parent": parent}), (), ())
    assert any(closed), f"{field}: {all_differences(child.model_copy(update={'parent': parent}))}"
    assert not any(unapproved(parent.model_copy(update={"parent": parent}), (), ()))


@pytest.mark.parametrize(
    ("before", "gate", "after", "loosened"),
    [
        ("", {}, "blocks on sources", False),
        ("blocks on sources", {}, "warns on sources and impact", False),
        ("warns on sources", {}, "", False),
        ("", {}, "blocks on sources, licences and tokens", True),
        ("", {}, "fair to everybody", True),
        ("", {"severity": "warning"}, "blocks on sources", True),
        ("blocks on sources", {"severity": "warning"}, "blocks on sources", True),
    ],
)
def test_words_on_page_one_need_approval_unless_the_gates_bear_them_out(before, gate, after, loosened):
    child = make([{**GATE, **gate}, INTERVAL, LICENCE], strength=after)
    differences = policy_differences(child, make(strength=before))
    [difference] = [one for one in differences if one.gate == "policy"]
    assert difference.loosened == loosened
    assert f"strength is {after or 'not set'}" in difference.words


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
    return list(unapproved(child, read_statements(folder, APPROVALS), submitters))


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
