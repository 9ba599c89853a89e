"""Attacks by somebody who may write to the root, but has no key: races, links, and files of another form.

Each ends with the exit code and words of its error, and nothing is trained or signed on what was altered.
"""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
import torch

from assay.cli.main import main
from assay.config import load_run
from assay.slurm_folders import freeze_run
from governance.config import validate
from governance.energy.ledger import append, read_ledger
from governance.energy.ledger_tail import Spending
from governance.errors import AlteredFile, ConfigError, ManifestError, MissingInput, StorageError
from governance.files import append_line, held, locked, read_lines, read_steps, remove_tree, sha256_file
from governance.gate.signed_statements import read_statements
from governance.gate.verdict import Keyring
from governance.gate.waivers import REFUSAL, RULINGS, Waiver
from governance.manifest import describe, output_fault, read_manifest
from governance.signing.dsse import open_envelope
from governance.signing.journal import Journal
from governance.signing.journal_lines import parse_line
from governance.signing.running_digests import JOB_RECORDS
from governance.signing.signed_lines import LEDGERS, without_signature
from governance.verification import verify_root
from governance.verified_files import intact
from pretrain.checkpoint.format import STEPS_FILE, CheckpointStore
from pretrain.checkpoint.native import remove_native
from pretrain.metrics.run_identity import METRICS_FILE
from slurm.config import SlurmConfig
from slurm.frozen import VARIABLE as SUBMITTED_VARIABLE
from tests.governance.attacked import paper, prepare, verdict_of, words_of

DEEP = b"[" * 100_000
LONG = b'{"step": ' + b"9" * 5_000 + b"}"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("races") / "project")


@pytest.fixture
def project(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "project")
    return tmp_path / "project"


def shards(folder):
    return sorted((folder / "root").glob("encode/*/train/*.tokens"))


def checkpoints(folder):
    return list((folder / "root").glob("checkpoint/*/manifest.json"))


def at_first_step(monkeypatch, attack):
    """Run an attack in the first step of a training."""
    step, done = torch.optim.AdamW.step, []

    def attacked(*given, **named):
        if not done:
            done.append(attack())
        return step(*given, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", attacked)


@pytest.mark.parametrize("way", ["written over", "with its times put back", "cut", "replaced", "its folder a link"])
def test_a_shard_altered_while_it_is_read_is_in_no_checkpoint(project, capsys, monkeypatch, way):
    """The shards are mapped: what is written over after their verification is what the next step would train."""
    [shard, *_] = shards(project)

    def attack():
        times = shard.stat()
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        if way == "its folder a link":
            aside = shutil.copytree(shard.parent, project / "aside")
            (aside / shard.name).write_bytes(data)
            shard.parent.rename(project / "was")
            shard.parent.symlink_to(aside)
        elif way == "replaced":
            shard.unlink()
            shard.write_bytes(data)
        elif way == "cut":
            os.truncate(shard, len(data) - 1)
        else:
            with shard.open("r+b") as file:
                file.write(data)
        if way == "with its times put back":
            os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))

    at_first_step(monkeypatch, attack)
    assert main(["train", *words_of(project)]) == 65
    assert f"{shard}: " in capsys.readouterr().err
    assert checkpoints(project) == []


def test_a_second_name_for_a_shard_that_is_read_stops_nothing(project, monkeypatch):
    """A copy of the root by hard links, made while a training runs."""
    [shard, *_] = shards(project)
    at_first_step(monkeypatch, lambda: os.link(shard, project / "copy"))
    assert main(["train", *words_of(project)]) == 0
    assert checkpoints(project)


def test_bytes_that_were_altered_and_put_back_are_recorded_and_signed(project, monkeypatch, capsys):
    """Size, bytes and time of modification are as they were; the file system's own time of change is not."""
    [shard, *_] = shards(project)

    def attack():
        times, data = shard.stat(), shard.read_bytes()
        for written in (bytes(len(data)), data):
            with shard.open("r+b") as file:
                file.write(written)
        os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))

    at_first_step(monkeypatch, attack)
    assert main(["train", *words_of(project)]) == 0
    assert f"{shard}: was touched while it was read" in capsys.readouterr().err
    [record] = (project / "root").glob(f"train/*/{METRICS_FILE}")
    saves = [line for line in read_lines(record) if line["event"] == "save"]
    assert [line.get("touched") for line in saves] == [[shard.relative_to(project / "root").as_posix()]] + [None] * (
        len(saves) - 1
    )
    assert verified(project).problems == []


@pytest.mark.parametrize(
    "kind", ["pipe", "device", "folder", "nothing", "deep", "long", "a name that is not UTF-8", "an end in capitals"]
)
def test_a_statement_of_any_form_is_named_and_closes(tmp_path, kind):
    """None may be passed over, since it may be a refusal; reading a pipe or /dev/zero would never end."""
    name = {"a name that is not UTF-8": "no\udcff.json", "an end in capitals": "no.JSON"}.get(kind, "no.json")
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "nothing":
        path.symlink_to(tmp_path / "gone")
    else:
        path.write_bytes({"deep": DEEP, "long": LONG}.get(kind, b"{}"))
    [found] = read_statements(tmp_path, RULINGS)
    assert found.fault.startswith("cannot be read")
    assert found.content is None
    found.name.encode("utf-8")


@pytest.mark.parametrize(
    "data", [DEEP, LONG, b'{"envelope": {"payload": "' + b"W1tb" * 30_000 + b'", "signatures": 1}}']
)
def test_json_that_python_cannot_hold_is_refused_as_what_it_is(tmp_path, data):
    path = tmp_path / "manifest.json"
    path.write_bytes(data)
    with pytest.raises(ManifestError):
        read_manifest(path)
    with pytest.raises(ManifestError):
        open_envelope(path, [])
    assert parse_line(data, 0) is None
    append_line(path, '{"step": 1}')
    assert read_lines(path)[-1] == {"step": 1}


@pytest.mark.parametrize(
    "line",
    ['{"kind": "beat"}', '{"kind": ["end"]}', "[]", DEEP.decode(), '{"kind": "end", "interval": 1, "at": "x"}',
     '{"kind": "begin", "interval": "1", "attempt": "1", "stage": "x", "host": "x", "method": "x", "millijoules": 0, '
     '"low": 0, "high": 0, "at": "2026-01-01T00:00:00", "process": 1}'],
)  # fmt: skip
def test_a_line_of_another_form_ends_no_reader_of_the_ledger(tmp_path, line):
    ledger = tmp_path / "energy.jsonl"
    append_line(ledger, '{"kind": "ledger", "schema": 1, "host": "node"}')
    about = {"interval": "1.1", "attempt": "1", "stage": "x", "host": "node", "process": [1, 1], "method": "RAPL"}
    append(ledger, "begin", about, millijoules=0, low=0, high=0, marks={})
    append_line(ledger, line)
    append(ledger, "end", about, millijoules=5, low=5, high=5, marks={}, outcome="surviving", cause="")
    assert [(one.millijoules, one.outcome) for one in read_ledger(ledger)] == [(5, "surviving")]
    spending = Spending(ledger)
    spending.read()
    assert spending.use("upper", lambda line: True).millijoules == 5


def test_no_line_is_appended_through_a_link(tmp_path):
    """Whoever may write to a root would choose which file of the run's account is written to."""
    (tmp_path / "energy.jsonl").symlink_to(tmp_path / "victim")
    with pytest.raises(StorageError, match=r"energy\.jsonl"):
        append_line(tmp_path / "energy.jsonl", "{}")
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("expires", "20300101"), ("expires", "2030-W01-1"), ("expires", "\uff12030-01-01"),
     ("signed_at", "\uff12026-01-01T09:00:00Z"), ("signed_at", "2026-01-01T09:00:00Z\n"), ("key", "\uff10" * 64)],
)  # fmt: skip
def test_a_date_is_written_in_one_way(field, value):
    """Dates are compared as text: digits of another script, or of another form of ISO 8601, would sort elsewhere."""
    whole = {"approver": "ann", "key": "0" * 64, "reason": "because it is so", "signed_at": "2026-01-01T09:00:00Z",
             "gate": "a.hard", "result": "x", "policy": "0" * 64, "observed": None, "max_deviation": None,
             "expires": "2030-01-01"}  # fmt: skip
    validate(whole, Waiver, "waiver.json")
    with pytest.raises(ConfigError):
        validate({**whole, field: value}, Waiver, "waiver.json")


def swap(path, kind):
    """Put a pipe, or a file of 1 TB without a block on the disk, in place of a file."""
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.touch()
        os.truncate(path, 1 << 40)


@pytest.mark.parametrize("kind", ["pipe", "sparse"])
@pytest.mark.parametrize("name", ["encode/*/manifest.json", "audit/*/manifest.json", "encode/*/train/*.tokens",
                                  "verdicts/*.json", "journal.jsonl"])  # fmt: skip
def test_a_pipe_or_a_file_of_a_terabyte_ends_nothing_and_opens_nothing(project, capsys, name, kind):
    """Reading a pipe never ends; hashing a terabyte takes ten minutes, and no memory holds it."""
    path = sorted((project / "root").glob(name))[0]
    swap(path, kind)
    assert main(["train", *words_of(project)]) in (65, 66, 74, 77)
    assert path.name in capsys.readouterr().err
    assert checkpoints(project) == []
    try:
        faults = verified(project).problems
    except ManifestError as error:  # of the journal
        faults = [str(error)]
    assert [line for line in faults if path.name in line]


@pytest.mark.parametrize("kind", ["pipe", "sparse"])
def test_a_listed_file_is_not_read_where_its_size_differs(tmp_path, kind):
    path = tmp_path / "shard.parquet"
    path.write_bytes(b"x" * 100)
    output = describe(path, tmp_path)
    swap(path, kind)
    with pytest.raises(AlteredFile, match="bytes, its manifest states 100"), intact(output, tmp_path):
        pass
    assert output_fault(output, tmp_path)
    swap(path, "pipe")
    with pytest.raises(MissingInput, match="a pipe"):
        sha256_file(path)


def verified(folder):
    return verify_root(folder / "root", Keyring(load_run(folder / "run.toml", []).config.governance, folder), deep=True)


FOREIGN_LINES = {
    METRICS_FILE: '{"attempt": 1, "event": "step", "loss": 0.01, "step": 1}',
    STEPS_FILE: '{"step": 999, "native": "0123456789abcdef"}',
}


@pytest.mark.parametrize("name", FOREIGN_LINES)
def test_a_line_that_no_training_wrote_is_named_and_nothing_is_stated(project, capsys, monkeypatch, name):
    def attack():
        [record] = (project / "root").glob(f"train/*/{METRICS_FILE}")
        append_line(record.with_name(name), FOREIGN_LINES[name])

    at_first_step(monkeypatch, attack)
    assert main(["train", *words_of(project)]) == 65
    assert re.search(rf"train/[0-9a-f]{{16}}/{name}: line \d+: no process of a run wrote", capsys.readouterr().err)
    assert checkpoints(project) == []
    [record] = (project / "root").glob(f"train/*/{name}")
    kept = [line for line in record.read_text().splitlines() if line != FOREIGN_LINES[name]]
    record.write_text("".join(f"{line}\n" for line in kept))
    assert main(["train", *words_of(project)]) == 0, "the line is removed, as the error says"
    append_line(record, kept[-1] if kept else FOREIGN_LINES[name])
    found = verified(project).problems
    assert [one for one in found if re.match(rf"train/[0-9a-f]{{16}}/{name}: line \d+: no process", one)], found


def test_a_record_that_was_there_before_the_training_is_refused(project):
    """The lines of such a record would be stated as they are, since a file is announced before its first line."""
    assert main(["train", *words_of(project)]) == 0
    [record] = (project / "root").glob(f"train/*/{METRICS_FILE}")
    lines = read_lines(record)
    assert all({"writer", "number", "signature"} <= set(line) for line in lines)
    assert [line["number"] for line in lines] == list(range(1, len(lines) + 1))
    assert [bool(line.get("by")) for line in lines] == [True] + [False] * (len(lines) - 1)
    folder, journal = record.parents[1] / "new", load_run(project / "run.toml", []).journal(project / "root")
    append_line(folder / METRICS_FILE, FOREIGN_LINES[METRICS_FILE])
    journal.state("evaluation", {"evaluation/1": "0" * 64}, [])  # does not make the file one of an earlier release
    with pytest.raises(ManifestError, match=r"train/new/metrics\.jsonl: has \d+ bytes, and no line"):
        journal.state_begin(folder, [METRICS_FILE, STEPS_FILE])
    [fault] = verified(project).problems
    assert fault.startswith("train/new/metrics.jsonl: no line of the journal announced this file")


def test_records_of_an_earlier_release_stay_readable_and_are_named(project, monkeypatch):
    """They were stated without an announcement, line by line unsigned; a training goes on with them."""
    more = ["--set", "train.steps=4", "--set", "checkpoint.every_steps=2"]
    signer, saved, fails = Journal.line_signer, CheckpointStore.note, iter([False, True])

    def ledger_only(journal, path, writer):
        return signer(journal, path, writer) if path.name == "energy.jsonl" else dict

    def killed(store, step, **facts):
        if next(fails):
            raise StorageError("killed")
        saved(store, step, **facts)

    with monkeypatch.context() as earlier:
        earlier.setattr(Journal, "state_records", lambda journal, paths: None)
        earlier.setattr("governance.signing.running_digests.SIGNED", LEDGERS)
        earlier.setattr(Journal, "line_signer", ledger_only)
        earlier.setattr(CheckpointStore, "note", killed)
        assert main(["train", *words_of(project), *more]) != 0
    assert len(checkpoints(project)) == 1
    assert main(["train", *words_of(project), *more]) == 0
    assert verified(project).problems == []
    notes = [note.partition(": ")[2] for note in verified(project).notes]
    assert notes.count("its lines are not signed one by one: an earlier release began it") == 2


def test_a_line_of_another_training_is_not_one_of_this(project, monkeypatch, capsys):
    """Genuine, with the key of its writer and the signature of the run's key: but of another file."""
    assert main(["train", *words_of(project)]) == 0
    [record] = (project / "root").glob(f"train/*/{METRICS_FILE}")
    first = record.read_text().splitlines()[0]
    more = [*words_of(project), "--set", "optim.learning_rate=0.02"]

    def attack():
        [other] = set((project / "root").glob(f"train/*/{METRICS_FILE}")) - {record}
        append_line(other, first)

    at_first_step(monkeypatch, attack)
    capsys.readouterr()
    assert main(["train", *more]) == 65
    assert "it was written for another writer, file or root" in capsys.readouterr().err


@pytest.mark.parametrize(
    "lock", ["journal.lock", "commit.lock", "train/0123456789abcdef/lease.lock", "slurm/submitting"]
)
def test_a_lock_writes_into_no_file_of_the_account(tmp_path, lock):
    """Whoever may write to a root would empty a file of the run's account, and put the lock's note into it."""
    victim = tmp_path / "key.pem"
    victim.write_text("secret")
    (tmp_path / lock).parent.mkdir(parents=True, exist_ok=True)
    for target in (victim, tmp_path / "gone"):
        (tmp_path / lock).symlink_to(target)
        for take in (locked, held):
            with pytest.raises(StorageError, match="it is a symbolic link"), take(tmp_path / lock):
                pass
        (tmp_path / lock).unlink()
    assert (victim.read_text(), (tmp_path / "gone").exists()) == ("secret", False)
    os.mkfifo(tmp_path / lock)
    for take in (locked, held):
        with pytest.raises(StorageError), take(tmp_path / lock):
            pass


@pytest.mark.parametrize("name", ["train/0123456789abcdef/metrics.jsonl", "slurm/jobs.jsonl", "slurm/attempts/1.jsonl"])
def test_a_pipe_in_place_of_a_record_is_not_waited_for(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True)
    os.mkfifo(tmp_path / name)
    for use in (read_lines, lambda path: append_line(path, "{}")):
        with pytest.raises(StorageError, match=re.escape(name)):
            use(tmp_path / name)


def test_a_forged_submission_lets_no_edited_run_by(project, monkeypatch, capsys):
    """A line says that the edit of the run's file was submitted: it names the file as it is now."""
    root, run = project / "root", load_run(project / "run.toml", [])
    freeze_run(run, root, SlurmConfig(), take_edits=False)
    frozen = without_signature(read_lines(root / JOB_RECORDS[1])[-1])
    edited = (project / "run.toml").read_text().replace("steps = 12", "steps = 13")
    (project / "run.toml").write_text(edited)
    monkeypatch.setenv(SUBMITTED_VARIABLE, str(root))
    assert main(["train", *words_of(project)]) == 78
    assert "run.toml: was edited since" in capsys.readouterr().err
    append_line(root / JOB_RECORDS[1], json.dumps({**frozen, "edits": "taken"}))
    assert main(["train", *words_of(project)]) == 65
    assert f"{JOB_RECORDS[1]}: line 2: no process of a run wrote" in capsys.readouterr().err
    assert checkpoints(project) == []


def test_a_verdict_of_another_root_on_the_same_corpus_opens_nothing(prepared, project, tmp_path, capsys):
    """The same corpus, policy and key, let through there and refused here: the file is genuine."""
    other, here = shutil.copytree(prepared, tmp_path / "other"), verdict_of(project)[0]
    verdict_of(other)[0].unlink()
    (other / "root" / "journal.jsonl").rename(other / "was.jsonl")
    shutil.rmtree(other / "root" / "audit")
    for manifest in (other / "root").glob("*/*/manifest.json"):
        manifest.unlink()
    for command in (["data", "prepare"], ["governance", "check"]):
        assert main([*command, *words_of(other)]) == 0
    refused = paper(project, REFUSAL, gate="sources.documents_lost")
    assert main(["governance", "check", *words_of(project)]) == 77
    refused.unlink()
    assert verdict_of(other)[0].name == here.name
    shutil.copy(verdict_of(other)[0], here)
    capsys.readouterr()
    assert main(["train", *words_of(project)]) == 77
    assert f"the verdict at {here} does not hold" in capsys.readouterr().err
    assert checkpoints(project) == []


def test_a_folder_of_refusals_that_became_a_link_opens_nothing(project, capsys):
    """An empty folder in place of that of the refusals: the journal states what was in it."""
    folder = project / "root" / "refusals"
    folder.mkdir()
    paper(project, REFUSAL, gate="sources.documents_lost").rename(folder / "no.json")
    assert main(["governance", "check", *words_of(project)]) == 77
    folder.rename(project / "aside")
    (project / "empty").mkdir()
    folder.symlink_to(project / "empty")
    for command in (["governance", "check"], ["train"]):
        capsys.readouterr()
        assert main([*command, *words_of(project)]) == 77
        output = capsys.readouterr()
        assert "no.json by ann was removed" in output.err + output.out


def test_a_record_names_no_folder_to_remove(tmp_path):
    """A training removes the native shards that its record names; a line of another writer may name any folder."""
    victim, root = tmp_path / "victim", tmp_path / "root"
    (victim / "papers").mkdir(parents=True)
    (victim / "manifest.json").write_text("{}")
    store = CheckpointStore(root, "0" * 64, 10, None, ())
    ours, link = (root / "checkpoint-native" / name for name in ("0" * 16, "1" * 16))
    ours.mkdir(parents=True)
    link.symlink_to(victim)
    for step, name in enumerate((str(victim), "../../victim", "..", ".", ours.name, link.name)):
        append_line(root / "train" / ("0" * 16) / STEPS_FILE, f'{{"step": {step}, "native": "{name}"}}')
    remove_native(store, None)
    assert (victim / "papers").is_dir()
    assert (victim / "manifest.json").exists()
    assert not ours.exists()
    remove_tree(root / "checkpoint-native" / "gone")
    assert store.steps() == list(range(6))


def test_a_record_of_another_form_is_passed_over(tmp_path):
    lines = [
        "[]",
        "1",
        '{"step": "1"}',
        '{"step": true}',
        '{"native": "x"}',
        '{"step": 1, "attempt": []}',
        LONG.decode(),
    ]
    for line in (*lines, '{"step": 3}'):
        append_line(tmp_path / "metrics.jsonl", line)
    assert read_steps(tmp_path / "metrics.jsonl") == [{"step": 3}]
