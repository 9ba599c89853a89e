"""Growing files: every stated beginning is verified, and only an end without a statement is not."""

import functools
import json
import os
import pickle
import re
import shutil
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance import verification
from governance.config import Section
from governance.energy.ledger import append, host_ledger, read_ledger
from governance.energy.meters import EnergyConfig, meter
from governance.errors import ConfigError, ManifestError
from governance.files import append_line, sha256_bytes, write_bytes
from governance.gate.verdict import GovernanceConfig, Keyring
from governance.hooks import Hooks
from governance.lineage.attest import KeySigner, attest_with, open_journal
from governance.manifest import describe
from governance.signed_notes import write_note
from governance.signing.dsse import private_key
from governance.signing.journal_lines import read_journal
from governance.signing.running_digests import Prefix, RunningDigests, StatedPrefix, growing_files, prefix_faults
from governance.signing.signed_lines import line_signer
from governance.stage import Made, Recipe, Runtime, commit, run_stage
from governance.verification import require_growing, verify_artifact, verify_root
from tests.manifests import manifest_of

CONFIG = GovernanceConfig(signing_key="key.pem")
TRAINING = "train/0123456789abcdef"
FILES = ("energy.jsonl", "energy.node2.jsonl", f"{TRAINING}/metrics.jsonl", f"{TRAINING}/checkpoints.jsonl")
ACTIONS = st.one_of(
    st.tuples(st.sampled_from(FILES), st.text(alphabet="ab1\u00e9", min_size=1, max_size=30)),
    st.tuples(st.sampled_from(FILES), st.just("torn")),
    st.tuples(st.just("state"), st.sampled_from(["first process", "second process", "new process"])),
    st.tuples(st.just("train again"), st.sampled_from(["first process", "second process", "new process"])),
)


ANNOUNCED = {name: Prefix(name, 0, 0, sha256_bytes(b"")) for name in FILES}


def play(root, actions):
    """Append, tear and state in the given order; returns the statements as the journal would hold them."""
    living, last = {name: RunningDigests(root) for name in ("first process", "second process")}, {**ANNOUNCED}
    stated = {name: [StatedPrefix("its announcement", prefix)] for name, prefix in ANNOUNCED.items()}
    for what, word in actions:
        if what in ("state", "train again"):
            running = living.get(word) or RunningDigests(root)
            if what == "train again":
                shutil.rmtree(root / TRAINING)
                (root / TRAINING).mkdir()
            found = running.grown(last) if what == "state" else running.begun(TRAINING, last)
            for prefix in found:
                last[prefix.path] = prefix
                stated.setdefault(prefix.path, []).append(StatedPrefix(f"line {len(stated)}", prefix))
        elif word == "torn":
            write_bytes(root / what, (root / what).read_bytes() + b'{"to' if (root / what).exists() else b'{"to')
        else:
            append_line(root / what, word)
    return stated


def faults_of(root, stated):
    return prefix_faults(root, growing_files(root), stated)


@settings(max_examples=60)
@given(st.lists(ACTIONS, max_size=25), st.data())
def test_no_byte_that_was_stated_can_change_and_nothing_else_is_a_fault(tmp_path_factory, actions, data):
    root = tmp_path_factory.mktemp("root")
    (root / TRAINING).mkdir(parents=True)
    stated = play(root, actions)
    faults, notes = faults_of(root, stated)
    assert faults == []
    sizes = {name: items[-1].prefix.bytes for name, items in stated.items()}
    unsaid = {name for name in FILES if (root / name).exists() and (root / name).stat().st_size > sizes.get(name, 0)}
    again = {name for name, items in stated.items() if any(item.prefix.anew for item in items)}
    assert {note.partition(":")[0] for note in notes if "not stated yet" in note} == unsaid
    assert {note.partition(":")[0] for note in notes if "begun anew" in note} == again
    for name, items in stated.items():
        assert [item.prefix.anew for item in items] == [False, *(not item.prefix.bytes for item in items[1:])]
        if not sizes[name]:
            continue
        whole = (root / name).read_bytes()
        place = data.draw(st.integers(0, sizes[name] - 1))
        edits = {
            "flip": whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :],
            "cut": whole[:place],
            "drop": whole[:place] + whole[place + 1 :],
        }
        for edited in edits.values():
            (root / name).write_bytes(edited)
            if edited[: sizes[name]] != whole[: sizes[name]]:
                assert [fault.partition(":")[0] for fault in faults_of(root, stated)[0]] == [name]
        (root / name).unlink()
        assert "is missing" in faults_of(root, stated)[0][0]
        (root / name).write_bytes(whole)


def test_a_process_that_had_hashed_the_file_before_it_was_begun_anew_states_it_as_it_is(tmp_path):
    metrics = FILES[2]
    state, append = ("state", "second process"), lambda text: (metrics, text)
    actions = [append("a" * 20), state, ("train again", "first process"), append("b" * 40), ("state", "first process")]
    (tmp_path / TRAINING).mkdir(parents=True)
    stated = play(tmp_path, [*actions, append("b"), state])
    assert [item.prefix.anew for item in stated[metrics]] == [False, False, True, False, False]
    assert faults_of(tmp_path, stated)[0] == []


def test_a_break_is_signed_and_stays_a_fault(tmp_path, caplog):
    names = ("energy.jsonl", "train/0123456789abcdef/metrics.jsonl")
    for name in names:
        append_line(tmp_path / name, "12345")
    running, last, stated = RunningDigests(tmp_path), {**ANNOUNCED}, {}
    for prefix in running.grown(last):
        last[prefix.path] = prefix
        stated[prefix.path] = [StatedPrefix("line 0", prefix)]
    for name in names:
        (tmp_path / name).write_text("12344\n")
        append_line(tmp_path / name, "6")
    for prefix in RunningDigests(tmp_path).grown(last):
        assert prefix.anew
        stated[prefix.path].append(StatedPrefix("line 1", prefix))
    assert caplog.text.count("does not continue") == 2
    faults, notes = faults_of(tmp_path, stated)
    assert [line.partition(":")[0] for line in faults] == list(names)
    assert notes == []


def test_a_folder_with_one_of_its_files_left_does_not_begin_anew(tmp_path):
    for name in FILES[2:]:
        append_line(tmp_path / name, "1")
    running = RunningDigests(tmp_path)
    last = {prefix.path: prefix for prefix in running.grown(ANNOUNCED)}
    os.unlink(tmp_path / FILES[2])
    assert running.begun(TRAINING, last) == []
    os.unlink(tmp_path / FILES[3])
    assert [prefix.path for prefix in running.begun(TRAINING, last)] == sorted(FILES[2:])


def test_a_process_hashes_what_was_added_and_nothing_twice(tmp_path, monkeypatch):
    path = tmp_path / "energy.jsonl"
    running, last, read = RunningDigests(tmp_path), {**ANNOUNCED}, []
    whole = RunningDigests._advance

    def counted(self, path, name, known, signers):
        before = self._known[name].bytes if name in self._known else 0
        found = whole(self, path, name, known, signers)
        read.append(found.bytes - before)
        return found

    monkeypatch.setattr(RunningDigests, "_advance", counted)
    for number in range(20):
        append_line(path, "x" * number)
        last = {prefix.path: prefix for prefix in running.grown(last)}
    assert sum(read) == path.stat().st_size
    assert running.grown(last) == []


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """No other meter of this machine holds the lock."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def measured(tmp_path, alone):
    """A root of two stages that were measured, as a run makes it: root, and the two manifests."""
    return measure_stages(tmp_path / "root")


def measure_stages(root):
    private_key(root.parent / "key.pem")
    journal = open_journal(Keyring(CONFIG, root.parent), root)
    theirs = open_journal(Keyring(CONFIG, root.parent), root)
    settings = EnergyConfig(sample_seconds=0.1, cpu_tdp_watts=100.0)
    announce = functools.partial(theirs.state_ledger, signed=True)
    measure = meter(settings, root / "energy.jsonl", announce, theirs.line_signer)
    runtime = Runtime(root, hooks=Hooks(meter=measure, attest=attest_with(journal, Keyring(CONFIG, root.parent), root)))

    def make(folder):
        write_bytes(folder / "documents" / "0.txt", b"text")
        return Made([describe(folder / "documents" / "0.txt", root)], {})

    first = run_stage(Recipe("clean", 1, Section()), [], runtime, make)
    second = run_stage(Recipe("dedup", 1, Section()), [first.as_input()], runtime, make)
    return root, first, second


def problems_of(root):
    return verify_root(root, Keyring(CONFIG, root.parent), deep=True)


def test_a_ledger_divided_by_ten_is_found_with_file_and_figure(measured):
    root, first, _ = measured
    assert problems_of(root)[1:] == ([], [])
    ledger = root / "energy.jsonl"
    whole = ledger.read_text()

    def tenth(match):
        return f'"{match[1]}":{int(match[2]) // 10}'

    ledger.write_text(re.sub(r'"(millijoules|low|high)":(\d+)', tenth, whole))
    output = [line for line in problems_of(root).problems if line.startswith("energy.jsonl: ")]
    assert any("journal.jsonl line 1 states it" in line for line in output)
    joules = first.run["energy"]["joules"]
    assert any(f"for {first.folder}, its manifest states {joules:g} J" in line for line in output)
    alone = verify_artifact(root / first.folder, Keyring(CONFIG, root.parent), deep=True).problems
    assert [line for line in alone if "its manifest states" in line]
    os.unlink(ledger)
    assert any("energy.jsonl: is missing" in line for line in problems_of(root).problems)


def test_an_end_that_is_not_stated_is_reported_and_is_no_problem(measured):
    root, _, _ = measured
    begun = {"kind": "begin", "interval": "1.1", "attempt": "1", "stage": "train", "host": "node", "process": [1, 1],
             "every": 5.0, "method": "RAPL", "at": "2026-01-01T00:00:00.000Z", "millijoules": 0, "low": 0, "high": 0,
             "marks": {}}  # fmt: skip
    signed = open_journal(Keyring(CONFIG, root.parent), root).line_signer(root / "energy.jsonl", "1.1")
    append_line(host_ledger(root / "energy.jsonl"), json.dumps(signed(begun)))
    _, problems, notes = problems_of(root)
    assert problems == []
    [note] = notes
    assert note.startswith("energy.jsonl: its end (")
    assert note.endswith("1 line(s)) is not stated yet")


def added_lines(root):
    """Lines that somebody who may write to the folder, but has no key, could append to the ledger."""
    ledger = (root / "energy.jsonl").read_bytes().splitlines()
    begin, end = (json.loads(line) for line in (ledger[1], ledger[-1]))
    of_another_root = root.parent / "another"
    measure_stages(of_another_root)
    stranger = line_signer("energy.jsonl", "9.9", sha256_bytes(b""), private_key(root.parent / "stranger.pem"))
    bare = {name: value for name, value in end.items() if name not in ("number", "signature")}
    return {
        "unsigned": json.dumps({**bare, "interval": "9.9"}).encode(),
        "a copy": ledger[2],
        "a copy of a begin": ledger[1],
        "another figure": json.dumps({**end, "number": end["number"] + 1, "millijoules": 1}).encode(),
        "another interval": json.dumps({**begin, "interval": "9.9"}).encode(),
        "by a stranger": json.dumps(stranger(bare)).encode(),
        "of another root": (of_another_root / "energy.jsonl").read_bytes().splitlines()[1],
        "in UTF-16": json.dumps(bare).encode("utf-16").replace(b"\n", b""),
        "nothing of it": b'{"kind": "beat"}',
    }


def test_a_line_that_no_run_wrote_is_named_and_nothing_is_stated(measured):
    root, _, _ = measured
    ledger = root / "energy.jsonl"
    whole = ledger.read_bytes()
    journal = open_journal(Keyring(CONFIG, root.parent), root)
    for place, (name, line) in enumerate(added_lines(root).items()):
        ledger.write_bytes(whole + line + b"\n")
        before = journal.head()
        for reader in (journal, open_journal(Keyring(CONFIG, root.parent), root)):
            with pytest.raises(ManifestError, match=rf"energy.jsonl: line {len(whole.splitlines()) + 1}: no process"):
                reader.state("evaluation", {f"evaluation/{place}": "0" * 64}, [])
        assert journal.head() == before, name
        found = [fault for fault in problems_of(root).problems if "no process of a run wrote" in fault]
        assert len(found) == 1, name
        ledger.write_bytes(whole)
        journal.state("evaluation", {f"evaluation/{place}": "0" * 64}, [])
        assert problems_of(root)[1:] == ([], []), name


def test_lines_of_a_process_that_was_killed_are_stated_by_the_next(measured):
    """The killed process' key is lost. No process states a torn line, or one of a kind from a later release."""
    root, _, _ = measured
    ledger, dead = root / "energy.jsonl", open_journal(Keyring(CONFIG, root.parent), root)
    signed = dead.line_signer(ledger, "5.1")
    example = json.loads(ledger.read_bytes().splitlines()[-1])
    about = {name: example[name] for name in ("attempt", "stage", "host", "process", "every", "method")}
    figures = {"millijoules": 5, "low": 5, "high": 5, "marks": {}}
    for kind in ("begin", "beat"):
        append(ledger, kind, {"interval": "5.1", **about}, signed, **figures)
    with ledger.open("ab") as handle:
        handle.write(b'{"kind": "beat", "interval": "5.1", "milli')
    append_line(ledger, '{"kind": "of a later release"}')
    open_journal(Keyring(CONFIG, root.parent), root).state("evaluation", {"evaluation/1": "0" * 64}, [])
    assert problems_of(root)[1:] == ([], [])
    assert [interval.outcome for interval in read_ledger(ledger)] == ["surviving", "surviving", "unknown"]


def test_a_ledger_that_nobody_announced_is_a_fault_and_no_later_line_signs_it(measured):
    """Anybody may write such a file without a key; a run announces its own, of which a kill may leave any part."""
    root, _, _ = measured
    foreign = root / "energy.node2.jsonl"
    shutil.copy(root / "energy.jsonl", foreign)
    journal = open_journal(Keyring(CONFIG, root.parent), root)
    for line in range(2):
        journal.state("evaluation", {f"evaluation/{line}": "0" * 64}, [])
        assert any(line.startswith("energy.node2.jsonl: no line of the journal") for line in problems_of(root).problems)
        with pytest.raises(ManifestError, match=r"as it was signed:\n  energy\.node2\.jsonl: no line"):
            require_growing([], root, journal)
    foreign.unlink()
    journal.state_ledger(foreign)
    assert problems_of(root)[1:] == ([], []), "killed before its first line"
    before = journal.head()
    append_line(host_ledger(root / "energy.jsonl", "node2", journal.state_ledger), '{"kind": "beat", "to')
    _, problems, [note] = problems_of(root)
    assert (journal.head(), problems) == (before, [])
    assert note.startswith("energy.node2.jsonl: its end (")
    require_growing([], root, journal)


@pytest.mark.parametrize("names", [("energy.jsonl",), ("energy.jsonl", "energy.{host}.jsonl")])
def test_a_run_records_in_a_file_of_its_own_next_to_a_ledger_that_nobody_announced(tmp_path, alone, names, caplog):
    """An earlier release, killed before its first statement, leaves one; so does a stranger, who names this host."""
    root, host = tmp_path / "root", socket.gethostname()
    left = [root / name.format(host=host) for name in names]
    for path in left:
        append_line(path, json.dumps({"kind": "ledger", "schema": 1, "host": host}))
    first, second = measure_stages(root)[1:]
    assert [path.read_text().count("\n") for path in left] == [1] * len(left)
    assert caplog.text.count("Move it out of the root") == len(left)
    assert [line.partition(":")[0] for line in problems_of(root).problems] == sorted(path.name for path in left)
    for path in left:
        path.rename(tmp_path / path.name)
    assert problems_of(root)[1:] == ([], [])
    require_growing([], root, open_journal(Keyring(CONFIG, root.parent), root))
    assert [interval.samples[-1].marks["artifact"] for interval in read_ledger(left[0])] == [
        first.folder,
        second.folder,
    ]


def test_a_ledger_announced_while_a_root_is_verified_is_no_fault(measured, monkeypatch):
    root, _, _ = measured
    hosts = iter(("node2", "node3"))

    def begin():
        host_ledger(root / "energy.jsonl", next(hosts), open_journal(Keyring(CONFIG, root.parent), root).state_ledger)

    def read_and_begin(*arguments):
        found = read_journal(*arguments)
        begin()
        return found

    monkeypatch.setattr(verification, "read_journal", read_and_begin)
    assert problems_of(root).problems == []
    journal = open_journal(Keyring(CONFIG, root.parent), root)
    stated = journal.verified()
    monkeypatch.setattr(journal, "verified", lambda: begin() or stated)
    require_growing([], root, journal)
    assert next(hosts, None) is None


def test_a_note_must_be_signed_under_its_own_name_or_be_as_an_artifact_lists_it(measured):
    root, _, _ = measured
    signer = KeySigner(Keyring(CONFIG, root.parent))
    names = ["fetch/digests.json", f"clean/records/{'a' * 64}.json", f"clean/records/{'b' * 64}.json"]
    for name in names:
        write_note(root / name, {"outputs": {}}, root, signer)
    beside = root / "clean" / "records" / f"{'c' * 64}.decisions.arrow"
    write_bytes(beside, b"data")
    facts = {beside.name: {"bytes": 4, "sha256": sha256_bytes(b"data")}}
    write_note(beside.with_name(f"{beside.name}.json"), facts, root, signer)
    assert problems_of(root)[1:] == ([], [])
    write_bytes(beside, b"date")
    os.replace(root / names[1], root / names[2])
    (root / names[0]).write_text((root / names[0]).read_text().replace("payload", "pailoat"))
    output = problems_of(root).problems
    altered = [names[0], names[2], beside.relative_to(root).as_posix()]
    assert sorted(line.partition(":")[0] for line in output) == sorted(altered)
    private_key(root.parent / "stranger.pem")
    stranger = KeySigner(Keyring(GovernanceConfig(signing_key="stranger.pem"), root.parent))
    write_note(root / names[0], {}, root, stranger)
    assert len(problems_of(root).problems) == 3


def test_a_worker_signs_with_the_key_of_the_run_alone(tmp_path):
    """A node that has no key at this path makes none, and another key's notes would not count."""
    keyring = Keyring(GovernanceConfig(signing_key="key.pem"), tmp_path)
    private_key(keyring.own)
    there = pickle.loads(pickled := pickle.dumps(KeySigner(keyring)))
    written = there.sign("note.json", {"a": 1})
    assert KeySigner(keyring).open("note.json", written) == {"a": 1}
    keyring.own.unlink()
    with pytest.raises(ConfigError, match=r"key\.pem"):
        pickle.loads(pickled).sign("note.json", {})
    assert not keyring.own.exists()
    private_key(keyring.own)
    with pytest.raises(ConfigError, match=r"has another key there .*governance.signing_key"):
        pickle.loads(pickled).sign("note.json", {})


def test_foreign_files_are_named_and_what_is_only_being_made_is_not(measured):
    root, first, _ = measured
    fine = [
        f"{first.folder}/documents/.1.txt.tmp~node~4711~0123abcd",  # its writer was killed
        "dedup/fedcba9876543210/documents/0.txt",  # an artifact that is not finished
        "slurm/logs/x-1.log", "slurm/answers.json", "slurm/carbon.json", "slurm/attempts/7_3.made",
        *(f"train/{'a' * 16}/wandb/wandb/offline-run-1-x/run-x.wandb.{mark}" for mark in ("synced", "syncstate")),
    ]  # fmt: skip
    foreign = [
        f"{first.folder}/documents/1.txt", f"{first.folder}/notes.md", "notes.md", "planted/x", "clean/records/x.json",
        "verdicts/readme", f"{first.folder}/more/deep/x.parquet", "slurm/more.json", "slurm/attempts/7/x.made",
    ]  # fmt: skip
    for name in (*fine, *foreign):
        write_bytes(root / name, b"x")
    for deep in (False, True):
        found = verify_root(root, Keyring(CONFIG, root.parent), deep=deep).problems
        assert sorted(line.partition(":")[0] for line in found if "is foreign" in line) == sorted(foreign)
        assert len(found) == len(foreign)
    alone = verify_artifact(root / first.folder, Keyring(CONFIG, root.parent)).problems
    assert sorted(line.partition(":")[0] for line in alone) == sorted(n for n in foreign if n.startswith(first.folder))
    write_bytes(root / "journal.lock", b"held")
    assert any(line.startswith("journal.lock: ") for line in problems_of(root).problems)


def test_what_a_report_rests_on_is_read_from_the_sealed_report_only(measured, monkeypatch):
    """Another report.json that is there for this one check, and gone for the digests, is named."""
    root, first, _ = measured
    page = root / "report" / ("b" * 16) / "report.json"
    write_bytes(page, json.dumps({"evidence": {"entries": [{"path": "energy.jsonl", "bytes": 0}]}}).encode())
    made = manifest_of("report", (describe(page, root),), key="b", inputs=(first.as_input(),))
    journal = open_journal(Keyring(CONFIG, root.parent), root)
    commit(made, root, attest_with(journal, Keyring(CONFIG, root.parent), root))
    assert not [line for line in problems_of(root).problems if "report.json" in line]
    check = verification._rested_on

    def swapped(*given):
        sealed = page.read_bytes()
        page.write_bytes(b'{"evidence": {"entries": []}}')
        yield from check(*given)
        page.write_bytes(sealed)

    monkeypatch.setattr(verification, "_rested_on", swapped)
    [line] = [line for line in problems_of(root).problems if "report.json" in line]
    assert "is not as its manifest states" in line


def test_a_report_rests_on_no_more_of_a_record_than_was_stated_since_the_record_began(measured):
    root, first, _ = measured
    journal = open_journal(Keyring(CONFIG, root.parent), root)
    record = root / "train" / ("a" * 16) / "metrics.jsonl"

    def report(key, gone=False):
        entry = {"path": record.relative_to(root).as_posix(), "bytes": record.stat().st_size}
        page = root / "report" / (key * 16) / "report.json"
        write_bytes(page, json.dumps({"evidence": {"entries": [entry]}}).encode())
        if gone:
            os.unlink(record)
        made = manifest_of("report", (describe(page, root),), key=key, inputs=(first.as_input(),))
        commit(made, root, attest_with(journal, Keyring(CONFIG, root.parent), root))

    def rested():
        return [line for line in problems_of(root).problems if "rests on" in line]

    def write(text):
        append_line(record, json.dumps(sign({"text": text})))

    journal.state_begin(record.parent, [record.name])
    sign = journal.line_signer(record, "first")
    write("of the first period " * 99)
    report("b")
    assert rested() == []
    os.unlink(record)
    journal.state_begin(record.parent, [record.name])
    sign = journal.line_signer(record, "second")
    write("of the second period")
    report("c")
    assert rested() == [], "the first report rests on what was stated when it was written"
    stated = record.stat().st_size
    write("and more")
    size = record.stat().st_size
    report("d", gone=True)
    assert rested() == [
        f"train/{'a' * 16}/metrics.jsonl: report/{'d' * 16} rests on {size} bytes of it, {stated} were stated by then"
    ]
