"""Corpora that must not train a model, through the command line; plain Great Expectations (GX) reports success.

One corpus is prepared and let through once. Each test copies it, edits it once, and runs two commands: the audit ends
with 77, and so does the training, before a step is computed.
"""

from __future__ import annotations

import base64
import datetime
import io
import json
import shutil
import traceback
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from assay.cli.main import main
from assay.config import load_run
from governance.checks import expectations
from governance.files import place, write_json
from governance.gate.waivers import REFUSAL, WAIVER
from governance.signing.dsse import create_key, private_key, sign
from tests.governance.attacked import FAILS, NOW, closed, demand, gate, opens, paper, prepare, verdict_of, words_of


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("prepared") / "project")


@pytest.fixture
def project(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "project")
    return tmp_path / "project"


def engine():
    expectations._engine()
    import great_expectations as gx
    import great_expectations.expectations as gxe

    return gx, gxe


def plain(table, *built):
    """Great Expectations' own answer on a table."""
    gx, _ = engine()
    batch = expectations._engine().get_batch(batch_parameters={"dataframe": table})
    return bool(batch.validate(gx.ExpectationSuite(name="plain", expectations=list(built))).success)


def test_what_is_in_order_does_train(project, monkeypatch):
    """The tests below need a sound corpus that trains. Six frames lead from the command to the optimizer."""
    stacks, step = [], torch.optim.AdamW.step

    def seen(*given, **named):
        stacks.append(traceback.extract_stack())
        return step(*given, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", seen)
    assert main(["train", *words_of(project)]) == 0
    top = Path(__file__).parents[2]
    frames = [f"{Path(frame.filename).relative_to(top)}:{frame.name}" for frame in stacks[0]
              if top in Path(frame.filename).parents and ".venv" not in frame.filename]  # fmt: skip
    assert frames[frames.index("assay/cli/main.py:main") : -1] == [
        "assay/cli/main.py:main", "assay/cli/run_commands.py:train", "assay/pipeline.py:training",
        "pretrain/train.py:train", "pretrain/loop.py:train_loop", "pretrain/engine/step.py:update",
    ]  # fmt: skip
    [train] = (project / "root" / "train").glob("*/losses.json")
    assert len(json.loads(train.read_bytes())["losses"]) == 12
    assert list((project / "root" / "checkpoint").glob("*/manifest.json"))


# --- the five ways in which the engine fails open


def test_one_bad_shard_of_several(project, capsys):
    gx, gxe = engine()
    [features] = (project / "root" / "clean").glob("*/features")
    shards = sorted(path.name for path in features.glob("*.parquet"))
    assert len(shards) == 2
    context = gx.get_context(mode="ephemeral")
    asset = context.data_sources.add_pandas_filesystem("files", base_directory=features).add_parquet_asset("shards")
    wish = gxe.ExpectColumnValuesToBeBetween(column="words", max_value=120)
    suite = context.suites.add(gx.ExpectationSuite(name="suite", expectations=[wish]))
    definitions = [
        context.validation_definitions.add(
            gx.ValidationDefinition(name=name, data=asset.add_batch_definition_path(name, path=name), suite=suite)
        )
        for name in sorted(shards, key=lambda name: "stories" not in name)
    ]
    outcome = context.checkpoints.add(gx.Checkpoint(name="all", validation_definitions=definitions)).run()
    assert (outcome.success, len(outcome.run_results)) == (True, 1), "two shards, one result, and it is green"

    demand(project, gate("documents.short", suite="documents", expectation="between", column="words", max=120))
    closed(project, capsys, "documents.short")


def test_an_expectation_that_is_lost(project, capsys, monkeypatch, tmp_path):
    gx, gxe = engine()
    context = gx.get_context(mode="file", project_root_dir=tmp_path / "store")
    wish = gxe.ExpectColumnValuesToBeBetween(column="documents_in", max_value=1)
    context.suites.add(gx.ExpectationSuite(name="suite", expectations=[wish]))
    [stored] = (tmp_path / "store").rglob("expectations/suite.json")
    stored.write_text(stored.read_text().replace(wish.expectation_type, "expect_what_nobody_imported"))
    suite = gx.get_context(mode="file", project_root_dir=tmp_path / "store").suites.get("suite")
    batch = expectations._engine().get_batch(batch_parameters={"dataframe": pd.DataFrame({"documents_in": [160]})})
    assert batch.validate(suite).success, "its only expectation was dropped, and it is green"

    demand(project, FAILS)
    execute = expectations._execute

    def losing(table, built):
        kept = {index: wish for index, wish in built.items() if wish.configuration.kwargs.get("max_value") != 1}
        return execute(table, kept) if kept else {}

    monkeypatch.setattr(expectations, "_execute", losing)
    closed(project, capsys, "0 result(s) came back for this gate")


def test_a_table_without_a_row(project, capsys):
    _, gxe = engine()
    assert plain(
        pd.DataFrame({"documents_in": []}), gxe.ExpectColumnValuesToBeBetween(column="documents_in", min_value=1)
    )
    where = {"stage": "paragraphs"}
    demand(project, gate("sources.some", suite="sources", expectation="between", column="lost", max=0, where=where))
    closed(project, capsys, "the table has no row where stage = paragraphs")


def test_a_column_of_which_nearly_nothing_is_there(project, capsys):
    _, gxe = engine()
    [features] = (project / "root" / "clean").glob("*/features/*tales.parquet")
    column = pq.read_table(features, columns=["opt_out"], partitioning=None).to_pandas().replace("", None)
    assert column["opt_out"].isna().mean() > 0.99
    assert plain(column, gxe.ExpectColumnValuesToBeInSet(column="opt_out", value_set=["none"]))
    demand(
        project, gate("documents.signals", suite="documents", expectation="in_set", column="opt_out", values=["none"])
    )
    closed(project, capsys, "of the values are missing")


def test_a_suite_of_nothing(project, capsys):
    assert plain(pd.DataFrame({"value": [99.0]})), "nothing was asked, and it is green"
    demand(project, gate("tone.gap", suite="tone", expectation="interval_between", max=0.1, rule="lower_ci"))
    closed(project, capsys, "tone.gap")


# --- waivers


def test_a_waiver_that_holds_opens_and_each_that_does_not_closes(project, capsys):
    demand(project, FAILS)
    right = paper(project, WAIVER)
    assert main(["governance", "check", *words_of(project)]) == 0
    assert "verdict WAIVED" in capsys.readouterr().out
    waived = verdict_of(project)[0].read_bytes()

    submitter = ["--set", 'governance.submitter="ann"']
    closed(project, capsys, "ann submitted this run", *submitter)

    right.unlink()
    paper(project, WAIVER, expires=str(NOW.date() - datetime.timedelta(days=1)))
    closed(project, capsys, "it expired on")

    (project / "waivers" / "waiver.json").unlink()
    closed(project, capsys, "sources.few")
    verdict_of(project)[0].write_bytes(waived)
    closed(project, capsys, "an older verdict was restored", checked=None)


def test_a_reviewer_signs_what_opens(project, capsys, monkeypatch):
    demand(project, FAILS)
    closed(project, capsys, "sources.few")
    review = ["governance", "review", *words_of(project), "--key"]
    monkeypatch.setattr("sys.stdin", io.StringIO("q\n"))
    assert main([*review, str(project / "ann.pem"), "--json"]) == 0
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert (found["verdict"], found["signed"]) == ("BLOCK", [])
    assert "row        ingest/(all): 160" in output.err, "a program reads the result alone"
    monkeypatch.setattr("sys.stdin", io.StringIO("w\na person looked at the counts\n\n\n"))
    assert main([*review, str(project / "ann.pem")]) == 0
    output = capsys.readouterr().out
    assert "row        ingest/(all): 160" in output
    assert "waivers/waiver-sources.few-" in output
    assert "next: assay governance check" in output
    assert main(["governance", "check", *words_of(project)]) == 0
    assert "verdict WAIVED" in capsys.readouterr().out
    assert main([*review, str(project / "key.pem")]) == 78, "the verdict's key is no person's"
    assert main([*review, str(project / "nobody.pem")]) == 66


def test_a_refusal_closes_what_was_let_through(project, capsys):
    demand(project, FAILS)
    paper(project, WAIVER)
    assert main(["governance", "check", *words_of(project)]) == 0
    refused = paper(project, REFUSAL)
    closed(project, capsys, "refused by ann", checked=None)
    closed(project, capsys, "refused by ann")
    refused.unlink()
    closed(project, capsys, "the refusal refusal.json by ann was removed or altered; put it back")
    withdraw = ["governance", "review", *words_of(project), "--withdraw", "refusal.json", "--key"]
    assert main([*withdraw, str(project / "ann.pem"), "--reason", "short"]) == 78
    said = ["--reason", "we have read these files since"]
    assert main([*withdraw, str(project / "key.pem"), *said]) == 78
    assert "is not in [people] of the policy" in capsys.readouterr().err
    assert main(["governance", "check", *words_of(project)]) == 77
    assert main([*withdraw, str(project / "ann.pem"), *said]) == 0
    assert "refusals/withdrawal-sources.few-" in capsys.readouterr().out
    assert main(["governance", "check", *words_of(project)]) == 0
    withdraw[withdraw.index("refusal.json")] = "other.json"
    assert main([*withdraw, str(project / "ann.pem"), *said]) == 66
    assert "its refusals: refusal.json" in capsys.readouterr().err


class Interrupted(io.StringIO):
    """Answers, and Ctrl-C at the question after them."""

    def readline(self, *given):
        if line := super().readline(*given):
            return line
        raise KeyboardInterrupt


def test_a_refusal_is_stated_when_it_is_signed(project, capsys, monkeypatch):
    """The review may be interrupted, its file may go unread, and an account that may not state it is warned."""
    demand(project, FAILS + gate("sources.none", suite="sources", expectation="between", column="documents_in", max=0))
    closed(project, capsys, "sources.few")
    create_key(project / "other.pem")
    elsewhere = ["--set", 'governance.trusted_keys=["key.pem.pub"]', "--set", 'governance.signing_key="other.pem"']
    review = ["governance", "review", *words_of(project), "--key", str(project / "ann.pem")]
    for words, stated in ((elsewhere, False), ([], True)):
        before = (project / "root" / "journal.jsonl").read_bytes()
        capsys.readouterr()
        monkeypatch.setattr("sys.stdin", Interrupted("r\nnobody has looked at these\n"))
        assert main([*review, *words]) == 130
        assert ("Have that account run: assay governance check" in capsys.readouterr().err) is not stated
        assert ((project / "root" / "journal.jsonl").read_bytes() != before) is stated
        for path in (project / "root" / "refusals").iterdir():
            path.unlink()
    paper(project, WAIVER)
    closed(project, capsys, "by ann was removed or altered; put it back")


def test_a_refusal_in_the_root_is_read_whatever_the_settings_say(project, capsys):
    demand(project, FAILS)
    paper(project, WAIVER)
    assert main(["governance", "check", *words_of(project)]) == 0
    refused = paper(project, REFUSAL)
    place = project / "root" / "refusals" / refused.name
    place.parent.mkdir()
    refused.rename(place)
    closed(project, capsys, "refused by ann", checked=None)
    (project / "elsewhere").mkdir()
    for path in (project / "waivers").glob("*.json"):
        path.rename(project / "elsewhere" / path.name)
    closed(project, capsys, "refused by ann", "--set", 'governance.waivers="elsewhere"', checked=None)


# --- verdicts


def resign(folder, **changes):
    """The verdict with other times, signed by the key that signs verdicts here."""
    path, _, _ = verdict_of(folder)
    statement = json.loads(base64.b64decode(json.loads(path.read_bytes())["payload"]))
    statement["predicate"] |= {name: moment.strftime("%Y-%m-%dT%H:%M:%SZ") for name, moment in changes.items()}
    write_json(path, sign(statement, private_key(folder / "key.pem")))


def test_results_that_were_altered_give_no_verdict(project, capsys):
    """One letter is exchanged for another, so that the file keeps its size: only its digest differs."""
    demand(project, FAILS)
    assert main(["governance", "check", *words_of(project)]) == 77
    for path in (project / "root" / "audit").glob("*/results.json"):
        path.write_text(path.read_text().replace('"status": "fail"', '"status": "pass"'))
    capsys.readouterr()
    assert main(["governance", "check", *words_of(project)]) == 77
    assert "the audit's results were altered" in capsys.readouterr().err
    closed(project, capsys, "results.json: has sha256", checked=None)


def test_a_torn_line_of_the_journal_does_not_close_for_ever(project, capsys):
    """A line that a killed writer left is passed over until the next one closes it; an altered whole line is not."""
    journal = project / "root" / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole.splitlines()[0][:300])
    demand(project, "\n# another policy has another verdict: one more line\n[[gate]]\n" + _EASY)
    assert main(["governance", "check", *words_of(project)]) == 0
    journal.write_bytes(journal.read_bytes().replace(b'"kind":"verdict"', b'"kind":"vErdict"'))
    closed(project, capsys, "cannot be trusted", checked=None)


_EASY = """
id = "sources.some"
suite = "sources"
expectation = "row_count_between"
min = 1
owner = "data"
why = "Another rule that this corpus keeps."
"""


@pytest.mark.parametrize("whose", ["a stranger with a key", "a stranger without one"])
def test_a_stranger_with_a_home_of_his_own_does_not_train(project, capsys, monkeypatch, whose):
    """The root's key is the default one: whoever has another configuration folder has another key, or makes one."""
    for home in ("owner", "stranger"):
        (project / home / "assay").mkdir(parents=True)
    for ending in ("", ".pub"):
        shutil.copy(project / f"key.pem{ending}", project / "owner" / "assay" / f"signing-key.pem{ending}")
    if whose == "a stranger with a key":
        create_key(project / "stranger" / "assay" / "signing-key.pem")
    run = (project / "run.toml").read_text()
    (project / "run.toml").write_text(run.replace('signing_key = "key.pem"\n', ""))
    assert load_run(project / "run.toml", []).config.governance.signing_key == ""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(project / "owner"))
    assert opens(project) == "PASS"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(project / "stranger"))
    closed(project, capsys, "no trusted key signed this content")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(project / "owner"))
    assert opens(project) == "PASS"


def test_a_verdict_that_ran_out(project, capsys):
    resign(project, signed_at=NOW - datetime.timedelta(days=40), expires=NOW - datetime.timedelta(days=10))
    closed(project, capsys, "it expired on", checked=None)


def test_a_clock_that_was_moved_back(project, capsys):
    resign(project, signed_at=NOW + datetime.timedelta(hours=1), expires=NOW + datetime.timedelta(days=9))
    closed(project, capsys, "a clock was moved", checked=None)
    closed(project, capsys, "a clock was moved")


def test_the_verdict_of_another_policy(project, capsys):
    passed = verdict_of(project)[0]
    demand(project, FAILS)
    closed(project, capsys, "no verdict on this corpus", checked=None)
    place(passed, verdict_of(project)[0])
    closed(project, capsys, "it was given under another policy", checked=None)


def test_a_policy_that_is_looser_than_its_parent(project, capsys):
    policy = project / "policy.toml"
    shutil.copy(policy, project / "parent.toml")
    loose = policy.read_text().replace("max = 0.9\nowner", "max = 0.99\nowner", 1)
    policy.write_text('parent = "parent.toml"\n' + loose)
    closed(project, capsys, "looser than assay-default: max is 0.99, was 0.9")
