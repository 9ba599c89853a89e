"""The development share: rows add up to the ledgers exactly, copies count once, lines across roots are followed."""

import json
import shutil
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.cli.main import main
from governance.energy.attribution import add, settle
from governance.energy.development_share import BEFORE, DATA, FINAL, OTHERS, REST, development
from governance.energy.ledger import host_ledger, read_ledger
from governance.errors import ConfigError, ManifestError, MissingInput
from governance.files import append_line
from governance.manifest import Input, Manifest, write_manifest
from tests.governance.test_energy_ledger import write_line


def key(name):
    return (name.encode().hex() * 8)[:64].ljust(64, "0")


def folder(stage, name):
    return f"{stage}/{key(name)[:16]}"


def made(root, stage, name, inputs=(), finished="2026-01-01T00:00:00Z", **config):
    about = {"config": config, "inputs": tuple(inputs), "outputs": (), "stats": {}, "run": {"finished": finished}}
    manifest = Manifest(stage=stage, version=1, key=key(name), **about)
    write_manifest(manifest, root)
    return manifest


def spend(root, interval, stage, at, millijoules, outcome="surviving", artifact=None):
    root.mkdir(parents=True, exist_ok=True)
    path = host_ledger(root / "energy.jsonl", "node1")
    about = {"stage": stage, "marks": {"artifact": artifact} if artifact else {}, "every": 1.0}
    write_line(path, "begin", interval, at, 0 if millijoules is not None else None, **about)
    cause = "" if outcome == "surviving" else "OSError"
    bounds = {} if millijoules is None else {"low": millijoules * 9 // 10, "high": millijoules * 2}
    write_line(path, "end", interval, at + 1, millijoules, **about, **bounds, outcome=outcome, cause=cause)


@pytest.fixture
def two(tmp_path):
    """An experiment's root, and one with a model that was fine-tuned from the experiment's base."""
    lab, final = tmp_path / "lab", tmp_path / "final"
    tokens = made(lab, "encode", "text")
    base = made(lab, "train", "base", [tokens.as_input()])
    made(lab, "train", "trial", [tokens.as_input()], finished="2026-01-03T00:00:00Z")
    own = made(final, "encode", "more")
    start = Input(stage="train", digest=base.digest, path=base.path)
    made(final, "train", "tuned", [own.as_input(), start], finished="2026-01-02T00:00:00Z")
    spend(lab, "a.1", "encode", 0, 100, artifact=folder("encode", "text"))
    spend(lab, "a.2", "train", 2, 1000, artifact=folder("train", "base"))
    spend(lab, "a.3", "train", 4, 300, "wasted", folder("train", "base"))
    spend(lab, "a.4", "train", 6, 2000, artifact=folder("train", "trial"))
    spend(lab, "a.5", "clean", 8, 7, "wasted")
    spend(final, "b.1", "encode", 10, 50, artifact=folder("encode", "more"))
    spend(final, "b.2", "train", 12, 500, artifact=folder("train", "tuned"))
    spend(final, "b.3", "train", 14, 43, "wasted", folder("train", "tuned"))
    return lab, final


def test_each_row_of_two_roots(two, capsys):
    lab, final = two
    found = development([lab, final], final / folder("train", "tuned"))
    assert (found.final, found.root) == (folder("train", "tuned"), final.resolve())
    assert {name: one.measured for name, one in found.rows.items()} == {
        FINAL: 543, BEFORE: 1300, DATA: 150, OTHERS: 2000, REST: 7
    }  # fmt: skip
    assert found.rows[BEFORE].wasted == 300
    assert found.total.measured == 4000
    assert found.share(FINAL).value == Fraction(3457, 4000)
    assert found.share(FINAL, BEFORE, DATA).value == Fraction(2007, 4000)
    share = found.share(FINAL)
    assert share.low < share.value < share.high
    lows = sum(one * 9 // 10 for one in (1000, 300, 100, 50, 2000, 7))
    assert share.low == lows / (lows + 2 * 543)
    alone = development([final], None)
    assert (alone.rows[FINAL].measured, alone.missing) == (543, (folder("train", "base"),))
    assert development([lab, final]).final == folder("train", "trial")  # the one that was finished last
    words = ["governance", "energy", str(lab), str(final), "--final", str(final / folder("train", "tuned"))]
    assert main([*words, "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["millijoules"]["all"]["measured"] == 4000
    assert (output["shares"]["development"]["value"], output["signatures_verified"]) == (3457 / 4000, False)
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "share of development: 86.4 %" in shown
    assert "note: no signature was verified; this does: assay governance verify ROOT --deep" in shown


def test_a_copied_root_counts_once_and_goes_on(two, tmp_path):
    lab, final = two
    shutil.copytree(lab, tmp_path / "copy")
    before = development([lab, final])
    after = development([lab, final, tmp_path / "copy"])
    assert (after.total, after.copied) == (before.total, 5)
    spend(tmp_path / "copy", "c.1", "train", 20, 11, artifact=folder("train", "trial"))
    assert development([lab, final, tmp_path / "copy"]).total.measured == before.total.measured + 11
    text = (tmp_path / "copy" / "energy.jsonl").read_text()
    (tmp_path / "copy" / "energy.jsonl").write_text(text.replace('"millijoules": 2000', '"millijoules": 1000'))
    assert text.count('"millijoules": 2000') == 1
    with pytest.raises(ManifestError, match=r"tell of the interval a\.4 differently"):
        development([lab, final, tmp_path / "copy"])


def test_an_unfinished_final_training_is_named_by_its_checkpoint(two):
    lab, final = two
    tokens = made(final, "encode", "more")
    spend(final, "b.4", "train", 20, 900, artifact=folder("train", "late"))
    made(final, "checkpoint", "late-1", [tokens.as_input()], train_key=key("late"))
    found = development([lab, final], final / folder("checkpoint", "late-1"))
    assert (found.final, found.rows[FINAL].measured, found.rows[DATA].measured) == (folder("train", "late"), 900, 50)
    assert found.missing == ()


def test_bad_input(two, tmp_path):
    lab, final = two
    with pytest.raises(ConfigError, match="is named twice"):
        development([lab, lab / ".." / "lab"])
    with pytest.raises(MissingInput, match=r"no energy\.jsonl here"):
        development([lab, tmp_path / "none"])
    with pytest.raises(ConfigError, match="is below none of the roots"):
        development([lab], final / folder("train", "tuned"))
    with pytest.raises(ConfigError, match="is of the stage encode"):
        development([lab], lab / folder("encode", "text"))
    spend(tmp_path / "data", "d.1", "clean", 0, 5)
    with pytest.raises(MissingInput, match="no finished training"):
        development([tmp_path / "data"])
    spend(tmp_path / "dark", "e.1", "train", 0, None, artifact=folder("train", "dark"))
    made(tmp_path / "dark", "train", "dark")
    found = development([tmp_path / "dark", lab], tmp_path / "dark" / folder("train", "dark"))
    assert found.share(FINAL) is None
    assert found.total.high is None
    append_line(tmp_path / "odd" / "energy.jsonl", '{"kind": "ledger", "schema": 99}')
    with pytest.raises(ManifestError, match="does not begin as an energy ledger"):
        development([tmp_path / "odd"])


work = st.tuples(
    st.integers(0, 2), st.sampled_from(["train", "encode", "clean"]), st.one_of(st.none(), st.integers(0, 10**12)),
    st.sampled_from(["surviving", "wasted"]), st.sampled_from(["base", "tuned", "text", None]),
)  # fmt: skip


@given(st.lists(work, min_size=1, max_size=12))
@settings(max_examples=40)
def test_the_rows_add_up_to_the_ledgers(tmp_path_factory, works):
    """Law: whatever the roots hold, measured, surviving and wasted are the sums of the rows."""
    roots = [tmp_path_factory.mktemp("law") / str(number) for number in range(3)]
    for number, root in enumerate(roots):
        spend(root, f"r.{number}", "clean", 0, number)
        made(root, "train", "tuned" if number else "base", [made(root, "encode", "text").as_input()])
    for number, (root, stage, spent, outcome, name) in enumerate(works):
        artifact = None if name is None else folder("encode" if name == "text" else "train", name)
        spend(roots[root], f"w.{number}", stage, 2 * number, spent, outcome, artifact)
    found = development(roots)
    whole = add(piece for root in roots for piece in settle(read_ledger(root / "energy.jsonl")))
    assert found.total == whole
    for part in ("measured", "surviving", "wasted"):
        assert sum(getattr(one, part) or 0 for one in found.rows.values()) == (getattr(whole, part) or 0)
