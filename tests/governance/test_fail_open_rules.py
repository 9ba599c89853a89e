"""Rules that must not be passed by accident: edges of the engine, and the rules that bind a run."""

from __future__ import annotations

import codecs
import decimal
import math
import os
import shutil

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.cli.main import main
from governance.checks.expectations import run_suite
from governance.checks.judgeable import EXACT, anchored
from governance.checks.messages import offending_rows
from governance.config import validate
from governance.errors import ConfigError, GateClosed
from governance.gate.explanation import explain
from governance.gate.policy import Gate, load_policy
from governance.gate.site_policy import VARIABLE, sites
from governance.gate.two_keys import TwoKeys, signer
from governance.gate.verdict import GovernanceConfig
from governance.signing.dsse import private_key, public_key, sign, statement
from governance.stage import now
from tests.governance.attacked import prepare, words_of
from tests.governance.yard import CHILD, SITE_POLICY, Yard

WIDE = EXACT + 1


def gate(expectation, column="x", **fields):
    known = {"id": "a.b", "suite": "documents", "owner": "data", "why": "a reason for the test"}
    return Gate(**{**known, "expectation": expectation, "column": column, **fields})


def judged(values, rule, dtype=object):
    [result] = run_suite(pd.DataFrame({"x": pd.Series(values, dtype=dtype)}), [rule], "table")
    return result


# --- the engine's edges: each of these passed, or broke the audit, before


@pytest.mark.parametrize(
    ("values", "rule", "dtype", "status", "words"),
    [
        ([1.0, -math.inf], gate("between", max=5.0), object, "error", "1 infinite value"),
        ([1.0, math.inf], gate("between", min=0.0), "category", "error", "1 infinite value"),
        ([decimal.Decimal("-Infinity")], gate("between", max=5.0), object, "error", "1 infinite value"),
        ([-1e308] * 20, gate("mean_between", max=5.0), float, "inconclusive", "no finite number was observed"),
        ([10**400], gate("between", min=0.0), object, "inconclusive", "no finite number was observed"),
        ([10**400], gate("between", max=5.0), object, "fail", "in 0 of 1 row,"),
        ([WIDE], gate("between", max=float(EXACT)), "int64", "fail", f"for example {WIDE}"),
        ([-WIDE], gate("between", min=-float(EXACT)), "int64", "fail", f"for example -{WIDE}"),
        ([2**64 - 1], gate("between", max=float(2**63)), "uint64", "fail", f"for example {2**64 - 1}"),
        ([WIDE], gate("mean_between", max=float(EXACT)), "int64", "error", "integers beyond 2^53"),
        ([WIDE], gate("quantile_between", quantile=1.0, max=float(EXACT)), "int64", "error", "integers beyond 2^53"),
        (["a\n"], gate("match_regex", regex="^a+$"), object, "fail", "in 0 of 1 row,"),
        (["a\n"], gate("match_regex", regex="^(a+$|b$)"), "str", "fail", "in 0 of 1 row,"),
    ],
)
def test_an_edge_of_the_engine_does_not_pass(values, rule, dtype, status, words):
    result = judged(values, rule, dtype)
    assert (result.status, words in result.detail) == (status, True), result.detail


@pytest.mark.parametrize("bounds", [{"max": 9.0}, {"min": 0.0}])
def test_an_estimate_outside_its_own_interval_is_an_error(bounds):
    table = pd.DataFrame([{"value": value, "lower": 0.81, "upper": 0.95, "n": 9} for value in (0.9, 99.0, 0.1)])
    for rule in ("point", "lower_ci", "upper_ci"):
        [result] = run_suite(table, [gate("interval_between", column="", rule=rule, **bounds)], "table")
        assert (result.status, "2 row(s) with a value outside" in result.detail) == ("error", True), result.detail
    [result] = run_suite(table[:1], [gate("interval_between", column="", max=1.0)], "table")
    assert result.status == "pass"


_NEAR = st.integers(EXACT - 4, EXACT + 64)


@settings(max_examples=25)
@given(value=_NEAR, bound=_NEAR.filter(lambda number: int(float(number)) == number), sign=st.sampled_from([1, -1]))
def test_integers_are_compared_with_a_bound_as_integers(value, bound, sign):
    """Judged by the engine for the verdict, and by the reader's list of offending rows."""
    value, bound = sign * value, sign * bound
    for rule, kept in (
        (gate("between", max=float(bound)), value <= bound),
        (gate("between", min=bound), value >= bound),
    ):
        assert (judged([value], rule, "int64").status == "pass") == kept
        assert (offending_rows(rule, pd.DataFrame({"x": [value]})) == []) == kept


def test_a_bound_that_no_float_holds_is_refused():
    values = gate("between", max=1.0).model_dump(mode="json")
    with pytest.raises(ConfigError, match="no 64-bit float holds this integer"):
        validate({**values, "max": WIDE}, Gate, "gate")
    assert validate({**values, "max": EXACT}, Gate, "gate").max == EXACT


@pytest.mark.parametrize(
    ("written", "handed"),
    [
        ("^a+$", r"^a+\Z"),
        ("a$|b$", r"a\Z|b\Z"),
        (r"a\$", r"a\$"),
        ("[$]$", r"[$]\Z"),
        ("[]$]$", r"[]$]\Z"),
        ("[^]$]", "[^]$]"),
        (r"[\]$]$", r"[\]$]\Z"),
        (r"\\$", r"\\\Z"),
        ("(?m)^a$", "(?m)^a$"),
    ],
)
def test_the_dollar_is_the_end_of_the_text(written, handed):
    assert anchored(written) == handed


# --- binding rules: a site's policy, and two keys for one verdict


@pytest.fixture
def yard(tmp_path, monkeypatch):
    monkeypatch.setattr("governance.gate.site_policy.SYSTEM", tmp_path / "nowhere" / "policy.toml")
    return Yard(tmp_path)


@pytest.fixture
def bound(yard, monkeypatch):
    """The same on a machine that is under the site's rules, with a verdict that holds."""
    monkeypatch.setattr("governance.gate.site_policy.SYSTEM", yard.site / "policy.toml")
    yard.judge()
    return yard


def test_off_a_site_the_verdict_says_so(yard):
    verdict = yard.judge(signing_key="stranger.pem", trusted_keys=())
    assert (verdict["site"], verdict["people"]["approved"]) == (None, [])
    output = explain(verdict)
    assert "not under a site's policy" in output
    assert "signed by the account that ran it; no person has approved" in output
    assert yard.open(signing_key="stranger.pem", trusted_keys=())["verdict"] == "PASS"


def test_on_a_site_its_own_open(bound):
    verdict = bound.open()
    assert "under the site's policy of Example Institute" in explain(verdict)
    assert "the account that ran it, with the key of audit; no person has approved" in explain(verdict)
    bound.pin(trusted_keys=["root.pem.pub", "ann.pem.pub"])
    keys = ("site/root.pem.pub", "site/ann.pem.pub")
    assert "signed by ann" in explain(bound.judge(signing_key="site/ann.pem", trusted_keys=keys))


_DESCENT = "does not descend from the site's institute"
_OTHER = "neither a key of the site"


@pytest.mark.parametrize(
    ("policy", "changes", "words"),
    [
        ("the site's own", {}, ""),
        ("doctored copy", {}, _DESCENT),
        ("licence added", {}, _DESCENT),
        (CHILD + "[licences]\nallowed = ['MIT', 'NOASSERTION']\n", {}, "looser than institute"),
        (CHILD, {"trusted_keys": ()}, "names no trusted_keys"),
        (CHILD, {"trusted_keys": ("stranger.pem.pub",)}, f"trusts stranger.pem.pub, which is {_OTHER}"),
        (CHILD, {"trusted_keys": ("site/root.pem.pub", "stranger.pem.pub")}, _OTHER),
        (CHILD, {"signing_key": "stranger.pem"}, _OTHER),
        (CHILD, {"signing_key": "forged.pem"}, _OTHER),
        (CHILD, {"signing_key": "late.pem"}, _OTHER),
        (CHILD, {"trusted_keys": ("late.pem.pub",)}, _OTHER),
        (CHILD, {"signing_key": "absent.pem"}, "has no signing key"),
    ],
)
def test_a_site_refuses_the_submitters_own_rules(bound, policy, changes, words):
    alone = SITE_POLICY.replace("ann.pem", "site/ann.pem").replace("ben.pem", "site/ben.pem")
    if policy == "the site's own":
        policy = alone
    if policy == "licence added":
        policy = alone.replace('["MIT"]', '["MIT", "NOASSERTION"]')
    if policy == "doctored copy":
        (bound.root / "parent.toml").write_text(alone.replace("max = 1", "max = 9"))
        policy = CHILD.replace("site/policy.toml", "parent.toml")
    bound.certify("forged", bound.root / "stranger.pem")
    bound.certify("late", bound.site / "root.pem", days=-1)
    (bound.root / "policy.toml").write_text(policy)
    if not words:
        assert bound.judge(**changes)["verdict"] == "PASS"
    elif "looser" in words:
        assert bound.judge(**changes)["verdict"] == "BLOCK"
        with pytest.raises(GateClosed, match=words):
            bound.open(**changes)
    else:
        bound.refused(words, **changes)


def test_a_variable_adds_a_site_and_takes_none_away(bound, monkeypatch, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(bound.site, other)
    (other / "policy.toml").write_text(SITE_POLICY.replace("institute", "lax").replace("max = 1", "max = 9"))
    bound.site, home = other, bound.site
    bound.pin(name="Lax")
    monkeypatch.setenv(VARIABLE, str(other / "policy.toml"))
    assert [site.name for site in sites()] == ["Example Institute", "Lax"]
    bound.refused("Lax decides what opens a gate here")
    (bound.root / "policy.toml").write_text(CHILD.replace("site/", "other/"))
    bound.refused("Example Institute decides what opens a gate here")
    monkeypatch.setenv(VARIABLE, str(home / "policy.toml"))
    assert [site.name for site in sites()] == ["Example Institute"], "the same file twice is one site"


def test_a_variable_alone_binds_and_a_site_that_is_not_whole_lets_nobody_by(yard, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(yard.site / "policy.toml"))
    assert yard.judge()["site"]["name"] == "Example Institute"
    yard.refused("names no trusted_keys", trusted_keys=())
    (yard.site / "policy.toml").write_text(SITE_POLICY.replace("max = 1", "max = 2"))
    with pytest.raises(ConfigError, match=r"site\.toml pins"):
        yard.open()
    (yard.site / "policy.toml").unlink()
    with pytest.raises(ConfigError, match="no such file"):
        yard.open()
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr("governance.gate.site_policy.SYSTEM", yard.site / "policy.toml")
    with pytest.raises(ConfigError, match="no such file"):
        yard.open()
    (yard.site / "site.toml").unlink()
    (yard.site / "policy.toml").symlink_to("gone.toml")
    with pytest.raises(ConfigError, match="no such file"):
        yard.open()


@pytest.mark.parametrize("names", [("policy.toml", "Policy.TOML"), ("site.toml", "SITE.toml")])
def test_a_site_in_other_letters_lets_nobody_by(yard, monkeypatch, names):
    """A site's policy that is named /etc/assay/Policy.TOML is meant to bind, too."""
    other = yard.site / "system"
    other.mkdir()
    (other / names[1]).write_text((yard.site / names[0]).read_text())
    monkeypatch.setattr("governance.gate.site_policy.SYSTEM", other / "policy.toml")
    with pytest.raises(ConfigError, match=r"\.toml: no such file"):
        yard.open()


@pytest.mark.parametrize("name", ["policy.toml", "site.toml"])
@pytest.mark.parametrize("kind", ["pipe", "50 MB", "device", "folder", "a terabyte"])
def test_a_site_of_any_form_lets_nobody_by(yard, monkeypatch, name, kind):
    path = yard.site / name
    text = path.read_bytes()
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "50 MB":
        path.write_bytes(text + b"# comment\n" * 5_000_000)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 1 << 40)
    monkeypatch.setattr("governance.gate.site_policy.SYSTEM", yard.site / "policy.toml")
    with pytest.raises(ConfigError, match=name):
        yard.open()


@pytest.mark.parametrize("edit", ["a mark of order", "ends of lines", "a link", "another spelling of its path"])
def test_a_site_binds_however_its_file_is_written_or_named(yard, monkeypatch, tmp_path, edit):
    system, path = yard.site / "policy.toml", yard.site / "policy.toml"
    if edit == "a mark of order":
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    elif edit == "ends of lines":
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    elif edit == "a link":
        (tmp_path / "elsewhere").mkdir()
        for file in yard.site.iterdir():
            (tmp_path / "elsewhere" / file.name).symlink_to(file)
        system = tmp_path / "elsewhere" / "policy.toml"
    else:
        monkeypatch.setenv(VARIABLE, f"{yard.site}/../{yard.site.name}//policy.toml")
    monkeypatch.setattr("governance.gate.site_policy.SYSTEM", system)
    assert {site.name for site in sites()} == {"Example Institute"}
    yard.refused("names no trusted_keys", trusted_keys=())
    assert yard.judge()["verdict"] == "PASS"


def test_a_later_file_of_the_same_path_binds_from_then_on(bound):
    """A verdict under the site's earlier policy opens nothing under the later one."""
    (bound.site / "policy.toml").write_text(SITE_POLICY.replace("max = 1", "max = 0.5"))
    with pytest.raises(ConfigError, match=r"site\.toml pins"):
        bound.open()
    bound.pin()
    with pytest.raises(GateClosed):
        bound.open()


def test_a_verdict_from_before_the_site_had_rules_is_given_anew(yard, monkeypatch):
    yard.judge()
    monkeypatch.setattr("governance.gate.site_policy.SYSTEM", yard.site / "policy.toml")
    with pytest.raises(GateClosed, match="it was given not under a site's policy"):
        yard.open()
    yard.judge()
    yard.open()
    monkeypatch.undo()
    assert yard.open()["site"]["name"] == "Example Institute", "a node without the site's files asks for less"


@pytest.mark.parametrize("by_site", [True, False])
def test_a_verdict_by_two_keys(bound, by_site):
    """The holder of one key opens nothing, whichever it is; both keys, each in its place, do."""
    wanted = {} if by_site else {"verdict_by": ("audit", "gate")}
    if by_site:
        bound.pin(verdict_by=["audit", "gate"])
    bound.refused("gate must sign it", **wanted)
    assert bound.judge(signing_key="gate.pem", **wanted)["people"]["key"] == "gate"
    assert bound.open(**wanted)["verdict"] == "PASS"
    assert bound.judge(**wanted)["people"]["key"] == "gate", "the job's own check lets the verdict stand"
    with pytest.raises(GateClosed, match="gate must sign it"):  # the standing PASS is not the answer to a BLOCK
        bound.judge(status="fail", **wanted)
    bound.certify("other", bound.site / "root.pem")
    (bound.root / "verdicts").rename(bound.root / "gone")
    with pytest.raises(GateClosed, match="gate must sign it"):
        bound.judge(signing_key="other.pem", **wanted)


@pytest.mark.slow
def test_two_keys_of_commands_in_one_process(tmp_path, capsys):
    """Neither command keeps the other's key: the job states the audit, a person signs, and the whole run goes on."""
    folder = prepare(tmp_path / "project", checked=False)
    policy = folder / "policy.toml"
    people = 'ann = "ann.pem.pub"\n'
    policy.write_text(policy.read_text().replace(people, f'{people}audit = "key.pem.pub"\n'))
    both = ["--set", 'governance.verdict_by=["audit", "ann"]',
            "--set", 'governance.trusted_keys=["key.pem.pub", "ann.pem.pub"]']  # fmt: skip
    by_ann = ["--set", 'governance.signing_key="ann.pem"']
    capsys.readouterr()
    assert main(["run", *words_of(folder), *both]) == 77
    assert "ann must sign it" in capsys.readouterr().err
    assert main(["governance", "check", *words_of(folder), *both, *by_ann]) == 0
    assert main(["run", *words_of(folder), *both]) == 0
    assert "signed by ann" in (folder / "root" / "report" / "latest.html").read_text()


def test_one_key_that_states_the_audit_and_signs_the_verdict_is_not_two(bound):
    bound.pin(verdict_by=["audit", "gate"])
    bound.audit = bound.audit.model_copy(update={"stats": {"another": 1}})
    with pytest.raises(GateClosed, match=r"the audit is stated by the key .* \(gate\); audit must sign it"):
        bound.judge(signing_key="gate.pem")


def test_two_names_of_one_key_are_not_two_keys(bound):
    (bound.site / "policy.toml").write_text(SITE_POLICY.replace("[people]", '[people]\ngate = "../audit.pem.pub"'))
    bound.pin()
    bound.judge()
    bound.pin(verdict_by=["audit", "gate"])
    bound.refused("two are required")


def test_a_name_that_a_key_gives_itself_is_none(bound):
    """`gate.pem` is certified by a root of the attacker's own."""
    bound.pin(verdict_by=["audit", "gate"])
    (bound.root / "gate.pem").unlink()
    bound.certify("gate", bound.root / "stranger.pem")
    bound.refused(_OTHER, signing_key="gate.pem")


def test_a_key_has_no_name_of_another_keys_certificate(bound):
    """Certificates are public: the holder of another job's key adds the gate's to a signature of its own."""
    bound.certify("other", bound.site / "root.pem")
    other, gate = (private_key(bound.root / f"{name}.pem") for name in ("other", "gate"))
    root = public_key(bound.site / "root.pem.pub")
    envelope = sign(statement({"a": "0" * 64}, "urn:x", {"signed_at": now()}), other)
    [own] = envelope["signatures"]
    envelope["signatures"].append({**own, "certificate": gate.certificate})
    assert signer(envelope, TwoKeys("audit", "gate", (root,), {}), "it").names == ("other",)


@pytest.mark.parametrize("on_site", [True, False])
def test_a_key_that_a_job_certified_opens_nothing(yard, on_site, monkeypatch):
    """The run trusts its job's key, and the job's holder makes a key that is to sign for another, or for longer."""
    if on_site:
        monkeypatch.setattr("governance.gate.site_policy.SYSTEM", yard.site / "policy.toml")
    keys = {"trusted_keys": ("audit.pem.pub",)}
    assert yard.judge(**keys)["verdict"] == "PASS"
    (yard.root / "audit.pem.cert").rename(yard.root / "kept")
    yard.certify("eve", yard.root / "audit.pem", days=1000)
    (yard.root / "kept").rename(yard.root / "audit.pem.cert")
    yard.gate(yard.config(signing_key="eve.pem", **keys)).journal.state("eve", {"a": "0" * 64}, ())
    with pytest.raises(GateClosed, match="not by a trusted key"):
        yard.open(**keys)
    (yard.root / "verdicts").rename(yard.root / "gone")
    with pytest.raises(GateClosed, match=_OTHER if on_site else "not by a trusted key"):
        yard.judge(signing_key="eve.pem", **keys)


@pytest.mark.parametrize("names", [["audit"], ["gate", "gate"], ["a", "b", "c"], ["", "gate"]])
def test_two_keys_are_two_names(names):
    with pytest.raises(ConfigError, match="needs two different names"):
        validate({"verdict_by": names}, GovernanceConfig, "governance")


@pytest.mark.parametrize("command", [["run"], ["data", "prepare"], ["slurm", "submit"], ["train", "--dry-run"]])
def test_what_a_site_would_refuse_is_refused_before_the_corpus_is_made(project, bound, capsys, command):
    assert main([*command, str(project / "run.toml"), "--root", str(project / "root")]) == 77
    assert _DESCENT in capsys.readouterr().err
    assert not list((project / "root").glob("*/*/manifest.json"))


def test_the_command_says_whose_rules_bind(bound, capsys, monkeypatch):
    assert main(["governance", "site"]) == 0
    assert "Example Institute: policy institute" in capsys.readouterr().out
    assert main(["governance", "site", str(bound.site / "policy.toml")]) == 0
    assert capsys.readouterr().out.strip() == load_policy(bound.site / "policy.toml").digest
    monkeypatch.undo()
    assert main(["governance", "site"]) == 0
    assert "no site policy applies here" in capsys.readouterr().out
