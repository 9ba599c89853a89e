"""The journal: a chain that cannot be edited, that many can append to at once, torn at most at its end."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from governance.errors import GateClosed, ManifestError
from governance.gate.chain import require_stated
from governance.manifest import Input, Manifest
from governance.signing import journal_lines
from governance.signing.dsse import create_job_key, create_key, private_key
from governance.signing.git_anchor import anchor, anchor_faults
from governance.signing.journal import Journal, provenance
from governance.signing.journal_lines import FILE_NAME, read_journal


def open_it(root, after=lambda head: None):
    if not (root / "key.pem").exists():
        create_key(root / "key.pem")
    key = private_key(root / "key.pem")
    return Journal(root, lambda: key, lambda: [key.public_key()], after)


def manifest(number, **fields):
    values = {
        "stage": "made",
        "version": 1,
        "config": {},
        "inputs": (),
        "outputs": (),
        "stats": {"n": number},
        "run": {},
    }
    return Manifest(**{**values, "key": f"{number:064x}"[::-1], **fields})


def whole(root):
    entries, problems = read_journal(root / FILE_NAME, [private_key(root / "key.pem").public_key()])
    assert problems == []
    return entries


def test_what_is_stated_can_be_read_and_is_stated_once(tmp_path):
    heads = []
    journal = open_it(tmp_path, heads.append)
    assert (journal.head(), journal.last_time(), len(heads)) == ("", "", 0)
    made = manifest(1, inputs=(Input(stage="file", digest="f" * 64, path="tales/a.jsonl"),))
    for _ in range(2):
        journal.state_artifact(made)
        open_it(tmp_path).state_artifact(made)
    assert len(heads) == 1
    journal.append("waiver", provenance({"w": "0" * 64}, [], {"gate": "a.b"}))
    [entry, waiver] = whole(tmp_path)
    assert entry.subjects == {made.path: made.digest}
    assert entry.materials == made.inputs
    assert entry.statement["predicate"]["key"] == made.key
    assert [found.statement["predicate"].get("gate") for found in journal.verified()] == [None, "a.b"]
    assert journal.head() == heads[-1] == f"1:{waiver.digest}"
    assert journal.last_time() == waiver.time
    journal.state_artifact(manifest(1, stats={"n": 5}))  # the same key made anew, with other bytes
    assert len(whole(tmp_path)) == 3


def test_a_run_names_the_verdict_and_the_checkpoint_that_it_rests_on(tmp_path):
    journal = open_it(tmp_path)
    tokens = manifest(1, stage="encode")
    packed = manifest(2, stage="pack", inputs=(tokens.as_input(),))
    for made in (tokens, packed):
        journal.state_artifact(made)
    journal.state("verdict", {"verdicts/v.json": "9" * 64}, [tokens.as_input()])
    checkpoint = manifest(3, stage="checkpoint", inputs=(packed.as_input(),))
    journal.state_artifact(checkpoint)
    last = {"path": checkpoint.path, "digest": checkpoint.digest}
    journal.state_artifact(manifest(4, stage="train", inputs=(packed.as_input(),), stats={"checkpoint": last}))
    entries = whole(tmp_path)
    verdict = Input(stage="verdict", path=entries[2].place, digest=entries[2].digest)
    assert entries[3].materials == (packed.as_input(), verdict)
    assert entries[4].materials == (packed.as_input(), Input(stage="checkpoint", **last), verdict)


def test_a_checkpoint_that_another_training_states_meanwhile_closes_no_gate(tmp_path):
    journal, other = open_it(tmp_path), open_it(tmp_path)
    journal.state_artifact(manifest(1))

    def listed():
        yield manifest(1)
        other.state_artifact(manifest(2))
        yield manifest(2)

    require_stated(listed(), tmp_path, journal)
    with pytest.raises(GateClosed, match=manifest(3).path):
        require_stated([manifest(1), manifest(3)], tmp_path, journal)


def test_a_jobs_lines_are_believed_under_the_root_alone(tmp_path):
    create_key(tmp_path / "root.pem")
    create_job_key(tmp_path / "key.pem", private_key(tmp_path / "root.pem"), "nightly", 1)
    open_it(tmp_path).state_artifact(manifest(1))
    path = tmp_path / FILE_NAME
    assert read_journal(path, [private_key(tmp_path / "root.pem").public_key()])[1] == []
    create_key(tmp_path / "other.pem")
    assert "certificate" in read_journal(path, [private_key(tmp_path / "other.pem").public_key()])[1][0]


def _fill(root, first, count):
    journal = open_it(root)
    for number in range(first, first + count):
        journal.state_artifact(manifest(number))


def test_four_processes_make_one_chain(tmp_path):
    open_it(tmp_path)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill, args=(tmp_path, 100 * number, 25)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    entries = whole(tmp_path)
    assert [entry.index for entry in entries] == list(range(100))
    assert len({*(name for entry in entries for name in entry.subjects)}) == 100


def test_a_killed_writer_tears_its_own_last_line_only_which_is_reported_and_closed(tmp_path, caplog):
    journal = open_it(tmp_path)
    for number in range(3):
        journal.state_artifact(manifest(number))
    path = tmp_path / FILE_NAME
    data = path.read_bytes()
    path.write_bytes(data[:-40])
    _, problems = read_journal(path, [private_key(tmp_path / "key.pem").public_key()])
    assert any(problem.startswith(f"{FILE_NAME}: line 2") for problem in problems)
    with caplog.at_level("WARNING", "assay"):
        open_it(tmp_path).state_artifact(manifest(2))
    assert "line 2 was torn" in caplog.text
    entries = whole(tmp_path)
    assert [entry.index for entry in entries] == [0, 1, 3]
    assert path.read_bytes().startswith(data[:-40] + b"\n")  # existing content stays
    path.write_bytes(path.read_bytes().replace(data[-80:-40], data[-80:-41] + b"#"))
    assert read_journal(path, [private_key(tmp_path / "key.pem").public_key()])[1]


_WRITER = """
import sys; from pathlib import Path
from tests.governance.test_journal import _fill
_fill(Path(sys.argv[1]), int(sys.argv[2]), 10000)
"""


def test_random_kills_leave_a_journal_that_verifies_after_the_next_line(tmp_path):
    open_it(tmp_path)
    for attempt in range(4):
        child = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path), str(attempt * 20000)])
        end = time.monotonic() + 300
        size = (tmp_path / FILE_NAME).stat().st_size if (tmp_path / FILE_NAME).exists() else 0
        while time.monotonic() < end and (
            not (tmp_path / FILE_NAME).exists() or (tmp_path / FILE_NAME).stat().st_size < size + 5000 * (attempt + 1)
        ):
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait()
    open_it(tmp_path).state_artifact(manifest(999_999))
    assert len(whole(tmp_path)) > 8


def test_each_line_is_verified_once_and_again_where_keys_or_bytes_differ(tmp_path, monkeypatch):
    counted, verify = [], journal_lines._faults

    def faults(line, entry, *given):
        counted.append(entry.index)
        return verify(line, entry, *given)

    monkeypatch.setattr(journal_lines, "_faults", faults)
    for name in ("key", "stranger"):
        create_key(tmp_path / f"{name}.pem")
    key, stranger = (private_key(tmp_path / f"{name}.pem") for name in ("key", "stranger"))
    trusted = [key.public_key()]
    journal = Journal(tmp_path, lambda: key, lambda: trusted)
    for number in range(4):
        (journal if number % 2 else open_it(tmp_path)).state_artifact(manifest(number))
        assert [entry.index for entry in journal.verified()] == list(range(number + 1))
    assert counted == [0, 1, 2, 3]
    path = tmp_path / FILE_NAME
    written = path.read_bytes()
    path.write_bytes(written.replace(b'"kind":"made"', b'"kind":"mode"', 1))
    for _ in range(2):
        with pytest.raises(ManifestError, match="line 0: its fields differ"):
            journal.verified()
    path.write_bytes(written)
    assert len(journal.verified()) == 4
    trusted[:] = [stranger.public_key()]
    with pytest.raises(ManifestError, match=r"lines 0, 1, 2, 3: its envelope: no trusted key signed[^;]*$"):
        journal.verified()


@pytest.mark.parametrize("edit", ["drop", "swap", "replay", "byte", "kind", "foreign", "rebuilt"])
def test_no_edit_passes(tmp_path, edit):
    journal = open_it(tmp_path)
    for number in range(5):
        journal.state_artifact(manifest(number))
    path, trusted = tmp_path / FILE_NAME, [private_key(tmp_path / "key.pem").public_key()]
    assert len(journal.verified()) == 5
    lines = path.read_bytes().splitlines(keepends=True)
    if edit == "drop":
        del lines[2]
    elif edit == "swap":
        lines[1], lines[3] = lines[3], lines[1]
    elif edit == "replay":
        lines.append(lines[0])
    elif edit == "byte":
        lines[2] = lines[2].replace(b'"sig":"', b'"sig":"A', 1)
    elif edit == "kind":
        lines[-1] = lines[-1].replace(b'"kind":"made"', b'"kind":"mode"')
    elif edit == "foreign":
        (tmp_path / "other").mkdir()
        for number in range(5):
            open_it(tmp_path / "other").state_artifact(manifest(number))
        lines = (tmp_path / "other" / FILE_NAME).read_bytes().splitlines(keepends=True)
    else:  # an account without a key can make hashes fit, but not signatures
        kept = [json.loads(line) for line in lines[:2] + lines[3:]]
        for index, values in enumerate(kept):
            values["index"] = index
        lines = [json.dumps(values, sort_keys=True, separators=(",", ":")).encode() + b"\n" for values in kept]
    path.write_bytes(b"".join(lines))
    _, problems = read_journal(path, trusted)
    assert problems
    assert all(problem.startswith(f"{FILE_NAME}: ") for problem in problems)
    with pytest.raises(ManifestError):
        journal.verified()


def test_a_cut_journal_is_shown_by_its_head(tmp_path):
    journal = open_it(tmp_path)
    for number in range(4):
        journal.state_artifact(manifest(number))
    head = journal.head()
    assert anchor_faults(head, whole(tmp_path)) == []
    path = tmp_path / FILE_NAME
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    assert "lines are gone" in anchor_faults(head, whole(tmp_path))[0]
    open_it(tmp_path).state_artifact(manifest(7))
    assert "was rewritten" in anchor_faults(head, whole(tmp_path))[0]


def test_the_head_goes_into_the_slurm_comment_and_the_git_note(tmp_path, monkeypatch, caplog):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nexit $(cat {tmp_path}/status)\n')
    (tools / "scontrol").chmod(0o755)
    (tmp_path / "status").write_text("0")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    repository = tmp_path / "work"
    repository.mkdir()
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *words], cwd=repository, check=True
        )
    monkeypatch.setenv("GIT_COMMITTER_NAME", "a")
    monkeypatch.setenv("GIT_COMMITTER_EMAIL", "a@example.org")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "a")
    monkeypatch.setenv("GIT_AUTHOR_EMAIL", "a@example.org")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    journal = open_it(tmp_path, anchor(tmp_path, repository))
    journal.state_artifact(manifest(1))
    assert not (tmp_path / "asked").exists()
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    journal.state_artifact(manifest(2))
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["show job 77", f"update JobId=77 Comment=assay journal {journal.head()}"]
    shows = f'[ "$1" != show ] || echo "   Comment=bioassay: 12 ; assay journal 3:ab"; echo "$@" >> {tmp_path}/asked'
    (tools / "scontrol").write_text(f"#!/bin/sh\n{shows}\nexit $(cat {tmp_path}/status)\n")
    journal.state_artifact(manifest(5))  # the site's own text there is kept
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[-1] == f"update JobId=77 Comment=bioassay: 12; assay journal {journal.head()}"
    note = subprocess.run(
        ["git", "notes", "--ref=assay", "show"], cwd=repository, capture_output=True, text=True, check=True
    )
    assert journal.head() in note.stdout
    (tmp_path / "status").write_text("3")
    with caplog.at_level("WARNING", "assay"):
        for number in (3, 4):
            journal.state_artifact(manifest(number))
    assert caplog.text.count("scontrol: the journal's head is not recorded there") == 1
    assert len(whole(tmp_path)) == 5
