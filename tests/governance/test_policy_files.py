"""The two shipped policies, and rules that a file inherits from its parent."""

from __future__ import annotations

from pathlib import Path

import pytest

from governance.errors import ConfigError
from governance.gate.approvals import policy_differences
from governance.gate.policy import load_policy

CONFIGS = Path(__file__).parents[2] / "configs"
FAIRNESS = {"association", "tone", "impact", "privacy", "parity", "drift", "instruments"}
MEASURED = {"association.measured", "tone.sentiment_measured", "tone.toxicity_measured"}
"""Gates of the suite representation on what tone and associations rest on."""
GAPS = {"association.npmi_gap", "tone.sentiment_gap", "tone.toxicity_ratio", "impact.four_fifths"}


def test_the_strict_policy_has_the_default_gates_and_blocks_where_that_warns():
    default, strict = (load_policy(CONFIGS / f"{name}.toml") for name in ("policy", "policy-strict"))
    assert not any(difference.loosened for difference in policy_differences(strict, default))
    fairness = [
        {gate.id: gate for gate in policy.gate if gate.suite in FAIRNESS or gate.id in MEASURED}
        for policy in (default, strict)
    ]
    assert {gate.suite for gate in fairness[0].values()} == FAIRNESS | {"representation"}
    for name, mild in fairness[0].items():
        hard = fairness[1][name]
        assert (mild.severity, mild.on_inconclusive) == ("warning", "show")
        assert hard == mild.model_copy(update={"severity": "critical", "on_inconclusive": "block"})
    assert {name for name, gate in fairness[0].items() if gate.rule == "whole_ci"} == GAPS | MEASURED
    assert all(fairness[0][name].min is not None and fairness[0][name].max is not None for name in GAPS)
    assert (default.strength, strict.strength) == ("warns on fairness", "blocks on fairness, privacy and drift")


PARENT = """
name = "above"
verdict_days = 7
owners = { data = ["ann"] }
licences = { allowed = ["MIT"] }
[[gate]]
id = "a.b"
suite = "sources"
expectation = "between"
column = "lost"
max = 0
owner = "data"
why = "a reason for it"
"""


def write(tmp_path, child):
    (tmp_path / "above.toml").write_text(PARENT)
    path = tmp_path / "below.toml"
    path.write_text(child)
    return path


def test_a_policy_inherits_what_it_does_not_say(tmp_path):
    child = 'name = "below"\nparent = "above.toml"\ninherit = true\nverdict_days = 3\n'
    child += '[[gate]]\nid = "a.b"\nseverity = "warning"\n'
    child += '[[gate]]\nid = "a.c"\nsuite = "sources"\nexpectation = "row_count_between"\nmin = 1\n'
    child += 'owner = "data"\nwhy = "another reason"\n'
    policy = load_policy(write(tmp_path, child))
    assert [(gate.id, gate.severity, gate.max) for gate in policy.gate] == [
        ("a.b", "warning", 0),
        ("a.c", "critical", None),
    ]
    assert (policy.name, policy.verdict_days, policy.licences.allowed) == ("below", 3, ("MIT",))
    assert [item.loosened for item in policy_differences(policy, policy.parent)] == [True, False, False]


def test_a_gate_with_another_expectation_leaves_what_that_one_does_not_read(tmp_path):
    """A file cannot take an inherited `max` back."""
    child = 'name = "below"\nparent = "above.toml"\ninherit = true\n[[gate]]\nid = "a.b"\n'
    [gate] = load_policy(write(tmp_path, child + 'expectation = "not_null"\n')).gate
    assert (gate.expectation, gate.column, gate.max) == ("not_null", "lost", None)
    [gate] = load_policy(write(tmp_path, child + 'expectation = "mean_between"\n')).gate
    assert gate.max == 0
    with pytest.raises(ConfigError, match="read `max`; remove it here"):
        load_policy(write(tmp_path, child + 'expectation = "not_null"\nmax = 1\n'))


@pytest.mark.parametrize(
    ("child", "words"),
    [
        ('name = "x"\ninherit = true\n', "names a parent"),
        ('name = "x"\nparent = "abvoe.toml"\n', "below.toml: parent = 'abvoe.toml': .*Did you mean .*above.toml"),
        ('name = "x"\nparent = "above.toml"\ninherit = "yes"\n', "inherit = 'yes'"),
        ('name = "x"\nparent = "above.toml"\ninherit = true\n' + 2 * '[[gate]]\nid = "a.b"\n', "2 times"),
        ('name = "x"\nparent = "above.toml"\ninherit = true\n[[gate]]\nid = "a.new"\n', "suite"),
    ],
)
def test_what_cannot_be_inherited_is_named(tmp_path, child, words):
    with pytest.raises(ConfigError, match=words):
        load_policy(write(tmp_path, child))
