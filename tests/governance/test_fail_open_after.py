"""After the verdict: writing the root without a key brings no other tokens into training, nor other evidence.

A corpus was let through. Each case copies it, edits the files on disk, and types `assay train`.
"""

from __future__ import annotations

import base64
import datetime
import json
import shutil

import pytest

from assay.cli.main import main
from assay.config import load_run
from governance.files import place, write_json
from governance.gate.verdict import Keyring
from governance.gate.waivers import REFUSAL
from governance.manifest import read_manifest
from governance.signing.dsse import create_key, key_id, private_key, sign
from governance.signing.journal import Journal
from governance.signing.journal_lines import FILE_NAME
from governance.verification import verify_root
from tests.altered_files import flip
from tests.governance.attacked import FAILS, demand, only, opens, paper, prepare, reseal, verdict_of, words_of


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("after") / "project")


@pytest.fixture
def project(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "project")
    assert opens(tmp_path / "project") == "PASS"
    return tmp_path / "project"


def shards(folder):
    return sorted((folder / "root" / "encode").glob("*/train/*.tokens"))


def journal_of(folder):
    return folder / "root" / FILE_NAME


def edited(change):
    """An attack that rewrites the journal's lines."""

    def attack(folder):
        path = journal_of(folder)
        path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))

    return attack


def verdict_line(lines):
    return max(number for number, line in enumerate(lines) if b'"kind":"verdict"' in line)


# --- token shards and feature shards


def truncate(folder):
    shard = shards(folder)[0]
    shard.write_bytes(shard.read_bytes()[:-8])


def swap(folder):
    one, other = shards(folder)
    one.rename(one.with_name("x"))
    other.rename(one)
    one.with_name("x").rename(other)


def link(folder):
    shard = shards(folder)[0]
    shard.rename(folder / "altered.tokens")
    flip(folder / "altered.tokens")
    shard.symlink_to(folder / "altered.tokens")


def altered_and_resealed(folder):
    flip(shards(folder)[0])
    reseal(folder, "encode")


def altered_resealed_and_the_verdict_renamed(folder):
    passed = verdict_of(folder)[0]
    altered_and_resealed(folder)
    passed.rename(verdict_of(folder)[0])


def listed_otherwise(change):
    def attack(folder):
        passed = verdict_of(folder)[0]
        outputs = read_manifest(only(folder, "encode/*/manifest.json")).outputs
        reseal(folder, "encode", outputs=change(outputs))
        passed.rename(verdict_of(folder)[0])

    return attack


# --- verdicts


def verdict_edited(folder):
    path = verdict_of(folder)[0]
    envelope = json.loads(path.read_bytes())
    said = json.loads(base64.b64decode(envelope["payload"]))
    said["predicate"]["expires"] = "2999-01-01T00:00:00Z"
    envelope["payload"] = base64.b64encode(json.dumps(said).encode()).decode()
    write_json(path, envelope)


def verdict_of_a_stranger(folder):
    path, owner = verdict_of(folder)[0], key_id(private_key(folder / "key.pem").public_key())
    create_key(folder / "stranger.pem")
    said = json.loads(base64.b64decode(json.loads(path.read_bytes())["payload"]))
    envelope = sign(said, private_key(folder / "stranger.pem"))
    envelope["signatures"][0]["keyid"] = owner
    write_json(path, envelope)


def verdict_is_a_folder(folder):
    path = verdict_of(folder)[0]
    path.unlink()
    path.mkdir()


def an_older_verdict(folder):
    path, passed = verdict_of(folder)[0], verdict_of(folder)[0].read_bytes()
    refused = paper(folder, REFUSAL, gate="sources.documents_lost")
    assert main(["governance", "check", *words_of(folder)]) == 77
    refused.unlink()
    path.write_bytes(passed)


def a_refusal_removed(folder):
    """One that a training at the door was the first to read."""
    refused = paper(folder, REFUSAL, gate="sources.documents_lost")
    assert main(["train", *words_of(folder)]) == 77
    refused.unlink()


def a_broken_refusal(folder):
    (folder / "root" / "refusals").mkdir()
    (folder / "root" / "refusals" / "r.json").write_text("{")


# --- the journal


def by_another_key(folder):
    """Every line signed again, by an account without a trusted key."""
    create_key(folder / "stranger.pem")
    lines = [json.loads(line) for line in journal_of(folder).read_bytes().splitlines()]
    journal_of(folder).unlink()
    anew = Journal(folder / "root", lambda: private_key(folder / "stranger.pem"))
    for line in lines:
        anew.append(line["kind"], json.loads(base64.b64decode(line["envelope"]["payload"])))


def a_strangers_line(folder):
    """The manifest altered, and a line that states it, but not by a trusted key."""
    create_key(folder / "stranger.pem")
    made = read_manifest(reseal(folder, "encode", run={}))
    Journal(folder / "root", lambda: private_key(folder / "stranger.pem")).state_artifact(made)


def cut_back_after_a_refusal(folder):
    """The fifth way: the refusal removed, the old PASS and the journal of that time put back; all was true once."""
    path, before = verdict_of(folder)[0], journal_of(folder).read_bytes()
    passed = path.read_bytes()
    refused = paper(folder, REFUSAL, gate="sources.documents_lost")
    assert main(["governance", "check", *words_of(folder)]) == 77
    refused.unlink()
    path.write_bytes(passed)
    journal_of(folder).write_bytes(before)


def moved_and_cut_back(folder):
    """The same, with the root replaced by a link to its new place."""
    cut_back_after_a_refusal(folder)
    (folder / "root").rename(folder / "aside")
    (folder / "root").symlink_to(folder / "aside")


# --- evidence


def stats_of(stage):
    def attack(folder):
        made = read_manifest(only(folder, f"{stage}/*/manifest.json"))
        reseal(folder, stage, files=False, stats={**made.stats, "documents_kept": made.stats["documents_kept"] + 1})

    return attack


def energy_of(stage):
    """What a run cost, divided by ten: the digest does not cover it, the stated seal does."""

    def attack(folder):
        made = read_manifest(only(folder, f"{stage}/*/manifest.json"))
        energy = {**made.run["energy"], "joules": (made.run["energy"]["joules"] or 10.0) / 10}
        reseal(folder, stage, files=False, run={**made.run, "energy": energy})

    return attack


def results_and_manifest(folder):
    path = only(folder, "audit/*/results.json")
    path.write_text(path.read_text().replace('"pass"', '"fail"', 1))
    reseal(folder, "audit")


AFTER = {
    "feature shard deleted": (lambda f: only(f, "clean/*/features/*tales*").unlink(), 66, "data prepare"),
    "feature shard emptied": (lambda f: only(f, "clean/*/features/*tales*").write_bytes(b""), 65, "data prepare"),
    "token shard deleted": (lambda f: shards(f)[0].unlink(), 66, "data prepare"),
    "token shard truncated": (truncate, 65, "data prepare"),
    "token shards swapped": (swap, 65, "data prepare"),
    "token shard altered": (lambda f: flip(shards(f)[0]), 65, ".tokens"),
    "token shard a link to an altered copy": (link, 65, ".tokens"),
    "token shard altered, manifest resealed": (altered_and_resealed, 77, "no verdict on this corpus"),
    "... and the verdict renamed": (altered_resealed_and_the_verdict_renamed, 77, "encode/"),
    "shard left out": (listed_otherwise(lambda outputs: outputs[1:]), 77, "encode/"),
    "shard listed twice": (listed_otherwise(lambda outputs: (*outputs, outputs[0])), 77, "encode/"),
    "version changed": (lambda f: reseal(f, "encode", version=99), 77, "no verdict on this corpus"),
    "verdict deleted": (lambda f: verdict_of(f)[0].unlink(), 77, "no verdict on this corpus"),
    "verdict edited": (verdict_edited, 77, "cannot be trusted"),
    "verdict of a stranger": (verdict_of_a_stranger, 77, "cannot be trusted"),
    "verdict a folder": (verdict_is_a_folder, 77, "cannot be trusted"),
    "older verdict": (an_older_verdict, 77, "an older verdict was restored"),
    "refusal removed": (a_refusal_removed, 77, "refusal.json by ann was removed"),
    "broken refusal": (a_broken_refusal, 77, "r.json"),
    "journal deleted": (lambda f: journal_of(f).unlink(), 77, "has no statement of it"),
    "journal emptied": (edited(lambda lines: []), 77, "has no statement of it"),
    "journal cut before the verdict": (edited(lambda lines: lines[: verdict_line(lines)]), 77, "behind its anchor"),
    "journal's last line cut": (edited(lambda lines: lines[:-1]), 77, "behind its anchor"),
    "journal's middle line dropped": (edited(lambda lines: lines[:4] + lines[5:]), 77, "cannot be trusted"),
    "journal by another key": (by_another_key, 77, "cannot be trusted"),
    "a stranger's line": (a_strangers_line, 77, "cannot be trusted"),
    "cut back after a refusal": (cut_back_after_a_refusal, 77, "behind its anchor"),
    "... and moved": (moved_and_cut_back, 77, "behind its anchor"),
    "clean's counts": (stats_of("clean"), 66, "data prepare"),
    "ingest's counts": (stats_of("ingest"), 66, "data prepare"),
    "ingest's energy": (energy_of("ingest"), 77, "another `run` block"),
    "the tokens' energy": (energy_of("encode"), 77, "another `run` block"),
    "audit's results": (lambda f: flip(only(f, "audit/*/results.json")), 77, "results.json"),
    "audit's results and manifest": (results_and_manifest, 77, "audit/"),
    "bias' tables resealed": (lambda f: (flip(only(f, "bias/*/tables.json")), reseal(f, "bias")), 77, "bias/"),
}


@pytest.mark.parametrize("name", AFTER)
def test_an_edit_after_the_verdict_does_not_train(project, capsys, name):
    attack, status, words = AFTER[name]
    attack(project)
    capsys.readouterr()
    assert main(["train", *words_of(project)]) == status
    assert words in capsys.readouterr().err
    assert list((project / "root").glob("checkpoint/*/manifest.json")) == []


@pytest.mark.parametrize("role", ["clean/*/features/*tales*", "redact/*/documents/*tales*"])
def test_documents_altered_after_they_were_judged_are_named_by_verify(project, role):
    """They were hashed when judged, and training reads tokens alone: the verdict holds; `verify` reports it."""
    path = only(project, role)
    flip(path)
    assert opens(project) == "PASS"
    run = load_run(project / "run.toml", [])
    problems = verify_root(project / "root", Keyring(run.config.governance, project))[1]
    assert [problem for problem in problems if path.name in problem]


@pytest.mark.parametrize("settings", [("governance.signing_key", "stranger.pem"), ("governance.policy", "other.toml")])
def test_other_settings_do_not_open_what_exists(project, capsys, settings):
    create_key(project / "stranger.pem")
    shutil.copy(project / "policy.toml", project / "other.toml")
    (project / "other.toml").write_text((project / "other.toml").read_text() + FAILS)
    assert main(["train", *words_of(project), "--set", f'{settings[0]}="{settings[1]}"']) == 77


@pytest.mark.parametrize("days", [31, -1])
def test_a_clock_that_was_moved_closes(project, monkeypatch, days):
    real = datetime.datetime

    class Moved(real):
        @classmethod
        def now(cls, tz=None):
            return real.now(tz) + datetime.timedelta(days=days)

    monkeypatch.setattr(datetime, "datetime", Moved)
    assert main(["train", *words_of(project)]) == 77


@pytest.mark.parametrize("way", ["moved", "linked", "copied", "copied with times"])
def test_a_root_that_is_moved_or_copied_opens(project, way):
    root, other = project / "root", project / "elsewhere"
    if way == "moved":
        root.rename(other)
        other.rename(root)
    elif way == "linked":
        root.rename(other)
        root.symlink_to(other)
    else:
        shutil.copytree(root, other, copy_function=shutil.copy if way == "copied" else shutil.copy2)
        shutil.rmtree(root)
        other.rename(root)
    assert opens(project) == "PASS"
    demand(project, "\n# another check, so that the journal goes on\n")
    assert main(["governance", "check", *words_of(project)]) == 0


def test_verify_names_a_refusal_that_was_removed_in_every_copy_of_the_root(project):
    refused = paper(project, REFUSAL, gate="sources.documents_lost")
    (project / "root" / "refusals").mkdir()
    place(refused, project / "root" / "refusals" / "no.json")
    assert main(["governance", "check", *words_of(project)]) == 77
    config = load_run(project / "run.toml", []).config.governance
    shutil.copytree(project / "root", project / "copied")
    (project / "root").rename(project / "moved")
    for name in ("copied", "moved"):
        root = project / name
        assert verify_root(root, Keyring(config, project), deep=True).problems == []
        flip(root / "refusals" / "no.json")
        problems = verify_root(root, Keyring(config, project), deep=True).problems
        shutil.rmtree(root / "refusals")
        problems += verify_root(root, Keyring(config, project), deep=True).problems
        assert [problem.partition(":")[0] for problem in problems] == ["refusals/no.json"] * 2


def test_lines_that_are_given_up_open_again_and_leave_a_trace(project, capsys):
    edited(lambda lines: lines[:-1])(project)
    words = words_of(project)
    assert main(["governance", "check", *words]) == 77
    assert "governance anchor CONFIG --accept" in capsys.readouterr().err
    assert main(["governance", "anchor", *words]) == 77
    assert main(["governance", "anchor", *words, "--accept", "a backup was restored"]) == 0
    assert "a backup was restored" in capsys.readouterr().out
    assert main(["governance", "check", *words]) == 0
    assert opens(project) == "PASS"


def test_a_manifest_of_an_earlier_making_does_not_count(project):
    """Both were signed; the last statement counts."""
    path = only(project, "encode/*/manifest.json")
    first = path.read_bytes()
    path.unlink()
    assert main(["data", "prepare", *words_of(project)]) == 0
    assert path.read_bytes() != first
    assert opens(project) == "PASS"
    path.write_bytes(first)
    assert main(["train", *words_of(project)]) == 77
