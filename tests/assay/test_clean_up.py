"""Clean-up: what nothing rests on goes, the rest stays and verifies, also after a kill at any step."""

import contextlib
import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest

import assay.clean_up
from assay.clean_up import clean_up, named_in, plan_clean_up
from assay.cli.main import main
from governance.errors import Occupied, StorageError
from governance.files import held, write_text
from governance.gate.verdict import GovernanceConfig, Keyring
from governance.manifest import Manifest, read_manifest, write_manifest
from governance.parallel import close_pool
from governance.signing.dsse import create_key, private_key
from governance.signing.journal import Journal
from governance.signing.journal_lines import read_journal
from tests.conftest import CONFIG, write_run, write_tales


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """A corpus made, audited, and made again under another bound, and the way back."""
    folder = tmp_path_factory.mktemp("twice") / "project"
    folder.mkdir()
    write_run(folder, f"{CONFIG}\n[data.mix]\nmax_epochs = 2\n")  # its record is named by the artifact
    shutil.copy(Path(__file__).parents[2] / "configs" / "policy.toml", folder / "policy.toml")
    write_tales(folder / "a.jsonl", range(40))
    write_tales(folder / "b.jsonl", range(40, 44))
    for bound in (20, 21, 22):
        assert run(folder, "data", "prepare", bound) == 0
    return folder


def run(folder, group, command, bound=22, *more):
    words = [group, command, folder / "run.toml", "--root", folder / "made", "--data-workers", "1"]
    return command_in(folder, [*words, "--set", f"data.clean.min_words={bound}", *more])


def command_in(folder, words):
    """The exit status of a command; each copy of the project is a machine of its own to the journal's anchor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        status = main([str(word) for word in words])
    close_pool()
    return status


@pytest.fixture
def copy(twice, tmp_path):
    shutil.copytree(twice, tmp_path / "copy")
    return tmp_path / "copy"


def artifacts(folder):
    return {path.parent.relative_to(folder / "made").as_posix() for path in (folder / "made").glob("*/*/manifest.json")}


def records(folder):
    return {path.relative_to(folder / "made").as_posix() for path in (folder / "made").glob("*/records/*")}


def disk(folder):
    """Bytes of a root's files, each once."""
    states = [path.stat() for path in (folder / "made").rglob("*") if path.is_file()]
    return sum({state.st_ino: state.st_size for state in states}.values())


def verified(folder, capsys):
    """The exit status of a deep verification, and what it prints."""
    words = ["governance", "verify", "--deep", folder / "made", "--key", folder / "key.pem.pub"]
    status = command_in(folder, words)
    return status, capsys.readouterr().out


def test_a_dry_run_lists_and_changes_nothing(copy, capsys):
    before = sorted(path for path in (copy / "made").rglob("*"))
    capsys.readouterr()
    assert main(["data", "clean-up", str(copy / "run.toml"), "--root", str(copy / "made"), "--json",
                 "--set", "data.clean.min_words=22"]) == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert sorted(path for path in (copy / "made").rglob("*")) == before
    kept = {one["artifact"] for one in found["candidates"] if one["kept_for"] == "this run"}
    stages = {"ingest", "clean", "dedup", "redact", "tokenizer", "mix", "encode"}
    assert {name.partition("/")[0] for name in kept} == stages
    assert kept | {one["artifact"] for one in found["candidates"] if not one["kept_for"]} == artifacts(copy)
    assert found["free"] == 12, "six stages of each of two superseded corpora"
    assert found["bytes"] > 0


def test_what_is_free_goes_and_the_rest_verifies(copy, capsys):
    size = disk(copy)
    earlier = artifacts(copy)
    capsys.readouterr()
    assert run(copy, "data", "clean-up", 22, "--json") == 0
    listed = json.loads(capsys.readouterr().out)["candidates"]
    named = next(
        copy / "made" / one["artifact"] for one in listed if not one["kept_for"] and "encode" in one["artifact"]
    )
    assert run(copy, "data", "clean-up", 22, "--execute", "--keep", named, "--json") == 0
    freed = json.loads(capsys.readouterr().out)["bytes"]
    left = artifacts(copy)
    assert len(earlier - left) == 6, "one of the two superseded corpora"
    assert named.relative_to(copy / "made").as_posix() in left
    after = disk(copy)
    assert abs(size - after - freed) < 20_000, "what is freed is what was promised; the journal has grown"
    assert verified(copy, capsys)[0] == 0
    entries, _ = read_journal(copy / "made" / "journal.jsonl", ())
    removed = {one["path"].rpartition("/")[0] for one in entries[-1].statement["predicate"]["removed"]}
    assert (entries[-1].kind, removed) == ("clean-up", earlier - left)
    assert run(copy, "data", "prepare") == 0
    assert artifacts(copy) == left, "this run is whole"
    assert run(copy, "data", "prepare", 20) == 0, "a removed corpus can be made again"
    assert run(copy, "data", "prepare", 21) == 0
    assert artifacts(copy) == earlier
    assert verified(copy, capsys)[0] == 0


@pytest.mark.slow
def test_an_audited_corpus_stays_with_all_that_it_rests_on(copy, capsys):
    assert run(copy, "governance", "check", 20) in (0, 77)
    judged = {path for path in artifacts(copy)}
    assert run(copy, "data", "clean-up", 22, "--execute") == 0
    left = artifacts(copy)
    assert len(judged - left) == 6, "of three corpora one has neither a verdict nor is this run's"
    assert {name for name in left if name.startswith(("audit", "bias"))}
    assert verified(copy, capsys)[0] == 0


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_a_kill_at_any_step_leaves_a_root_that_verifies_and_is_continued(copy, tmp_path, capsys, monkeypatch):
    whole = artifacts(copy)
    done = tmp_path / "done"
    shutil.copytree(copy, done)
    assert run(done, "data", "clean-up", 22, "--execute") == 0
    for step in (0, 1, 4, 9, 11, 13):
        folder = tmp_path / f"killed-{step}"
        shutil.copytree(copy, folder)
        left = [step]

        def counted(function, left=left):
            def call(*arguments):
                if not left[0]:
                    raise Killed
                left[0] -= 1
                return function(*arguments)

            return call

        with monkeypatch.context() as patched:
            for name in ("remove_tree", "remove_file", "move_folder"):
                patched.setattr(assay.clean_up, name, counted(getattr(assay.clean_up, name)))
            with pytest.raises(Killed):
                run(folder, "data", "clean-up", 22, "--execute")
        assert artifacts(done) <= artifacts(folder) <= whole
        assert verified(folder, capsys)[0] == 0, f"killed at step {step}"
        assert run(folder, "data", "clean-up", 22, "--execute") == 0
        assert artifacts(folder) == artifacts(done)
        assert records(folder) == records(done)
        assert not (folder / "made" / ".clean-up").exists()
        assert verified(folder, capsys)[0] == 0
        shutil.rmtree(folder)


@pytest.mark.parametrize("user", ["worker", "writer", "training"])
def test_a_root_in_use_is_left_alone(copy, user, capsys):
    root = copy / "made"
    whole = artifacts(copy)
    process = os.fork() if user == "worker" else 0
    if user == "worker" and process == 0:  # a lock of another process, which ends with it
        with (root / "share-0-of-2.lock").open("w") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            write_text(root / "holds.txt", "")
            os.read(os.open("/dev/zero", os.O_RDONLY), 1)
            import time

            time.sleep(300)
        os._exit(0)
    try:
        if user == "worker":
            while not (root / "holds.txt").exists():
                pass
            (root / "holds.txt").unlink()
        elif user == "writer":
            host = os.uname().nodename
            (root / "clean" / f".x.parquet.tmp~{host}~{os.getppid()}~01234567").write_text("")
        else:
            holders = root / "train" / "0123456789abcdef" / "holders"
            holders.mkdir(parents=True)
            (holders / "000001.json").write_text(
                json.dumps({"host": "elsewhere", "pid": 7, "since": "2026", "job": "", "restart": 0, "number": 1})
            )
        assert run(copy, "data", "clean-up", 22, "--execute") == 73
        assert "Nothing was removed" in capsys.readouterr().err
        assert artifacts(copy) == whole
    finally:
        if process:
            os.kill(process, 9)
            os.waitpid(process, 0)


def test_a_configuration_without_artifacts_removes_nothing(copy, capsys):
    (copy / "a.jsonl").write_text(json.dumps({"text": "changed"}) + "\n")
    whole = artifacts(copy)
    assert run(copy, "data", "clean-up", 22, "--execute") == 66
    assert artifacts(copy) == whole


@pytest.mark.parametrize("fault", ["damaged", "mistyped"])
def test_a_run_that_is_not_whole_removes_only_on_request(copy, fault, capsys):
    whole, bound = artifacts(copy), 22
    if fault == "damaged":  # the first of the run's cleaned shards
        listed = [read_manifest(path) for path in sorted((copy / "made").glob("clean/*/manifest.json"))]
        made = next(one for one in listed if one.config["min_words"] == 22)
        made.files("documents", copy / "made")[0].unlink()
    else:
        bound = 2222
    assert run(copy, "data", "clean-up", bound, "--execute") == 66
    assert "has no clean of this run" in capsys.readouterr().err
    assert artifacts(copy) == whole
    assert run(copy, "data", "clean-up", bound) == 0
    assert "has no clean yet" in capsys.readouterr().out
    assert run(copy, "data", "clean-up", bound, "--execute", "--incomplete") == 0
    assert artifacts(copy) < whole


def test_a_journal_that_is_gone_altered_or_cut_refuses(copy, capsys):
    journal, whole = copy / "made" / "journal.jsonl", artifacts(copy)
    lines = journal.read_bytes().splitlines(keepends=True)
    for data in (b"", b"".join([*lines[:-1], lines[-1][:-40], b"\n"])):
        journal.write_bytes(data)
        assert run(copy, "data", "clean-up", 22, "--execute") == 77
    journal.unlink()
    assert run(copy, "data", "clean-up", 22, "--execute") == 77
    assert "Restore the journal" in capsys.readouterr().err
    assert artifacts(copy) == whole


def test_an_unreadable_manifest_stops_the_plan(copy, capsys):
    path = next((copy / "made").glob("clean/*/manifest.json"))
    assert read_manifest(path).stage == "clean"
    path.write_text("torn")
    assert run(copy, "data", "clean-up", 22, "--execute") == 65
    assert len(artifacts(copy)) == 19


RUN, OLD, OTHER = "a" * 16, "f" * 16, "b" * 16


class Yard:
    """A root with artifacts that hold nothing, each stated in the journal."""

    def __init__(self, folder):
        self.root = folder / "root"
        create_key(folder / "key.pem")
        key = private_key(folder / "key.pem")
        self.journal = Journal(self.root, lambda: key, lambda: [key.public_key()])
        self.run = self.make("redact", RUN)

    def make(self, stage, key, inputs=(), beside=(), stated=True):
        made = Manifest(stage=stage, version=1, key=key * 4, config={}, inputs=tuple(one.as_input() for one in inputs),
                        outputs=(), stats={}, run={"beside": list(beside)})  # fmt: skip
        (self.root / made.folder).mkdir(parents=True)
        if stated:
            self.journal.state_artifact(made)
        write_manifest(made, self.root)
        return made

    def plan(self):
        return plan_clean_up(
            self.root, [("this run", self.run.path)], Keyring(GovernanceConfig(), self.root), self.journal
        )

    def free(self):
        return {one.path for one in self.plan().free}

    def clean_up(self):
        return clean_up(self.root, self.plan, self.journal)


@pytest.fixture
def yard(tmp_path):
    return Yard(tmp_path)


def test_downloads_and_classifiers_are_never_free(yard):
    old = yard.make("redact", OLD)
    yard.make("fetch", RUN)
    yard.make("classifier", RUN)
    assert yard.free() == {old.folder}


@pytest.mark.parametrize("stated", [True, False])
def test_a_path_of_a_manifest_leads_nowhere_else(yard, tmp_path, stated):
    """Neither a planted manifest nor one of a trusted key removes a file that is not a record."""
    record, other = f"clean/records/{'1' * 64}.json", f"clean/records/{'2' * 64}.json"
    victim = tmp_path / "victim.txt"
    far = tmp_path / "far" / "records" / f"{'3' * 64}.json"
    names = [record, other, "clean/records/../../../victim.txt", str(victim), "clean/records/notes.txt", str(far),
             f"encode/records/{'3' * 64}.json"]  # fmt: skip
    yard.make("clean", OLD, beside=[{"path": name, "bytes": 0, "sha256": ""} for name in names], stated=stated)
    (yard.root / "clean" / "records").mkdir()
    (yard.root / record).write_text("")
    (yard.root / "clean" / "records" / "notes.txt").write_text("")
    (yard.root / other).symlink_to(victim)
    victim.write_text("precious")
    far.parent.mkdir(parents=True)
    far.write_text("precious")
    (yard.root / "encode").mkdir()
    (yard.root / "encode" / "records").symlink_to(far.parent)
    assert yard.clean_up().records == ((record,) if stated else ())
    assert (victim.read_text(), far.read_text()) == ("precious", "precious")
    assert (yard.root / "clean" / OLD).exists() is not stated


def test_a_folder_for_removal_that_is_a_link_is_refused(yard, tmp_path):
    old, other = yard.make("redact", OLD), tmp_path / "other"
    (other / old.folder).mkdir(parents=True)
    (other / old.path).write_text("precious")
    (yard.root / ".clean-up").symlink_to(other)
    with pytest.raises(StorageError, match="is a link"):
        yard.clean_up()
    (yard.root / ".clean-up").unlink()
    (yard.root / ".clean-up").mkdir()
    (yard.root / ".clean-up" / "redact").symlink_to(other / "redact")
    yard.clean_up()
    assert (other / old.path).read_text() == "precious"
    assert not (yard.root / old.folder).exists()


@pytest.mark.parametrize("linked", ["artifact", "stage"])
def test_an_artifact_behind_a_link_is_kept(yard, tmp_path, linked):
    old = yard.make("encode", OLD)
    folder = (yard.root / old.folder) if linked == "artifact" else (yard.root / "encode")
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert "link" in {one.path: one.kept_for for one in yard.clean_up().candidates}[old.folder]
    assert (yard.root / old.path).exists()


def test_an_artifact_that_differs_from_its_statement_is_kept(yard):
    yard.make("redact", OLD, stated=False)
    assert yard.free() == set()


@pytest.mark.parametrize("kind", ["export", "push", "evaluation", "report", "checkpoint"])
def test_lines_of_the_journal_and_manifests_both_count(yard, kind):
    """Inputs of a line are kept, also where its manifest names fewer or more of them than its statement."""
    source, old = yard.make("clean", OLD), yard.make("redact", OLD)
    tokens = yard.make("encode", OLD, [old], stated=False)
    yard.journal.state("encode", {tokens.path: "0" * 64}, [source.as_input()])
    other = yard.make("redact", OTHER)
    yard.journal.state(kind, {"elsewhere/model": "0" * 64}, [tokens.as_input()])
    assert yard.free() == {other.folder}


@pytest.mark.parametrize("more", [(), ("classifier",)])
def test_an_audit_stays_with_its_corpus_whatever_the_order(yard, more):
    tokens = yard.make("encode", RUN, [yard.run])
    shared = [yard.make(stage, OTHER) for stage in more]
    counts = yard.make("bias", OTHER, [yard.run, tokens, *shared])
    yard.make("audit", OTHER, [tokens, counts])
    yard.run = tokens
    assert yard.free() == set()


def test_a_plan_is_made_anew_once_nothing_else_runs(yard):
    old = yard.make("redact", OLD)
    assert yard.free() == {old.folder}
    yard.make("checkpoint", OTHER, [yard.make("encode", OTHER, [old])])
    assert yard.clean_up().free == []
    late = yard.make("redact", OTHER)

    def plan():
        found = yard.plan()
        yard.make("checkpoint", RUN, [late])
        return found

    with pytest.raises(Occupied, match="Nothing was removed"):
        clean_up(yard.root, plan, yard.journal)
    assert (yard.root / late.path).exists()


def test_a_worker_that_begins_while_the_plan_is_made_is_seen(yard):
    """It reads artifacts, and has appended nothing to the journal yet."""
    old = yard.make("redact", OLD)
    with contextlib.ExitStack() as stack:

        def plan():
            stack.enter_context(held(yard.root / "share-0-of-2.lock"))
            return yard.plan()

        with pytest.raises(Occupied, match=r"is used by a worker that holds share-0-of-2\.lock\. Nothing was removed"):
            clean_up(yard.root, plan, yard.journal)
    assert (yard.root / old.path).exists()


def test_artifacts_that_a_configuration_names_are_kept(yard, tmp_path):
    tokenizer, earlier = yard.make("tokenizer", OLD), yard.make("dedup", OLD)
    yard.make("dedup", OTHER)
    config = GovernanceConfig(signing_key=f"root/{tokenizer.folder}/tokenizer.json", waivers="*.jsonl")
    found = {path for _, path in named_in(config, (earlier.folder,), tmp_path, yard.root)}
    assert found == {tokenizer.path, earlier.path}
    pattern = GovernanceConfig(policy="root/dedup/b*/*.parquet")
    assert [path for _, path in named_in(pattern, (), tmp_path, yard.root)] == [f"dedup/{OTHER}/manifest.json"]
