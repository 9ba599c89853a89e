"""Before the verdict: a corpus that must be refused stays refused, whatever a writer without a key does to the root.

The second source is under no licence, so the honest verdict is BLOCK. Each case copies the root, edits it, and types
what the operator types next: `assay governance check`, then `assay train`. Both end with 77, and the file is named.
"""

from __future__ import annotations

import base64
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.cli.main import main
from governance.files import sha256_file, write_json
from governance.gate.verdict import GovernanceConfig, Keyring
from governance.lineage.attest import KeySigner
from governance.manifest import read_manifest, write_manifest
from governance.signed_notes import read_note, write_note
from governance.signing.dsse import create_key
from tests.altered_files import flip
from tests.governance.attacked import demand, gate, only, prepare, reseal, words_of

FORBIDDEN = "LicenseRef-Unknown"
SHORT = gate("documents.short", suite="documents", expectation="between", column="words", max=120)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A corpus that was not judged yet."""
    folder = prepare(tmp_path_factory.mktemp("before") / "project", FORBIDDEN, checked=False)
    demand(folder, SHORT)
    return folder


@pytest.fixture(scope="module")
def blocked(prepared, tmp_path_factory):
    """The same, judged: BLOCK."""
    folder = tmp_path_factory.mktemp("blocked") / "project"
    shutil.copytree(prepared, folder)
    assert main(["governance", "check", *words_of(folder)]) == 77
    return folder


def copy_of(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "project")
    return tmp_path / "project"


def refused(folder, capsys, words):
    for command in (["governance", "check"], ["train"]):
        capsys.readouterr()
        assert main([*command, *words_of(folder)]) == 77
        output = capsys.readouterr()
        assert command == ["train"] or words in output.err + output.out
    assert list((folder / "root").glob("checkpoint/*/manifest.json")) == []


# --- evidence that was judged already


def with_passes(path):
    """The same file with each failure changed to a pass, letter for letter."""
    path.write_text(path.read_text().replace('"status": "fail"', '"status": "pass"'))


def results(folder):
    with_passes(only(folder, "audit/*/results.json"))


def results_and_manifest(folder):
    results(folder)
    reseal(folder, "audit")


def bias_and_manifest(folder):
    flip(only(folder, "bias/*/tables.json"))
    reseal(folder, "bias")


def energy(folder):
    """A digest that fits, and another energy: only the stated seal shows it."""
    made = read_manifest(only(folder, "clean/*/manifest.json"))
    reseal(folder, "clean", files=False, run={**made.run, "energy": {**made.run["energy"], "joules": 0.1}})


JUDGED = {
    "results": (results, "results.json"),
    "results and manifest": (results_and_manifest, "audit/"),
    "bias tables and manifest": (bias_and_manifest, "bias/"),
    "energy of a stage": (energy, "clean/"),
}


@pytest.mark.parametrize("name", JUDGED)
def test_judged_evidence_that_was_edited_signs_nothing(blocked, tmp_path, capsys, name):
    attack, words = JUDGED[name]
    project = copy_of(blocked, tmp_path)
    attack(project)
    refused(project, capsys, words)


# --- records of workers: accepted only under the job's key


def plain(folder, record, content, finding):
    write_json(record, content)


def in_the_old_envelope(folder, record, content, finding):
    """The signature is genuine, but of earlier content."""
    envelope = json.loads(record.read_bytes())
    said = json.loads(base64.b64decode(envelope["payload"]))
    said["predicate"]["content"] = content
    envelope["payload"] = base64.b64encode(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).decode()
    write_json(record, envelope)


def by_a_stranger(folder, record, content, finding):
    create_key(folder / "stranger.pem")
    write_note(
        record, content, folder / "root", KeySigner(Keyring(GovernanceConfig(signing_key="stranger.pem"), folder))
    )


def of_another_shard(folder, record, content, finding):
    """A genuine record under another name: the finding of a shard that passed."""
    root, signer = folder / "root", KeySigner(Keyring(GovernanceConfig(signing_key="key.pem"), folder))
    for other in record.parent.glob("*.json"):
        found = read_note(other, root, signer)
        if other != record and found is not None and "documents" in found["outputs"]:
            shutil.copy(other, record)
            shutil.copy(root / found["outputs"]["documents"]["path"], finding)


FORGED = [plain, in_the_old_envelope, by_a_stranger, of_another_shard]


@pytest.mark.parametrize("forged", FORGED, ids=lambda way: way.__name__)
def test_a_finding_with_its_record_is_found_again(blocked, tmp_path, capsys, forged):
    project = copy_of(blocked, tmp_path)
    root, finding = project / "root", only(project, "audit/*/documents/*stories.json")
    signer = KeySigner(Keyring(GovernanceConfig(signing_key="key.pem"), project))
    named = finding.relative_to(root).as_posix()
    records = {path: read_note(path, root, signer) for path in root.glob("audit/records/*.json")}
    [(record, content)] = [item for item in records.items() if named in json.dumps(item[1])]
    before = finding.read_bytes()
    with_passes(finding)
    content["outputs"]["documents"]["sha256"] = sha256_file(finding)
    forged(project, record, content, finding)
    assert finding.read_bytes() != before
    only(project, "audit/*/manifest.json").unlink()
    capsys.readouterr()
    assert main(["governance", "check", *words_of(project)]) == 77
    output = capsys.readouterr()
    assert f"{record}: no trusted key signed this note" in output.err
    assert "documents.short" in output.out + output.err
    assert finding.read_bytes() == before, "made again, and it says what it said"


def test_a_decision_for_all_that_was_forged_is_made_again(blocked, tmp_path, caplog):
    """One worker's decision for all (on duplicates), with its note: without the manifest both would be accepted."""
    project = copy_of(blocked, tmp_path)
    manifest, decided = only(project, "dedup/*/manifest.json"), only(project, "dedup/records/*.decisions.arrow")
    digest, before = read_manifest(manifest).digest, decided.read_bytes()
    manifest.unlink()
    note = only(project, "dedup/records/*.decisions.arrow.json")
    content = read_note(note, project / "root", KeySigner(Keyring(GovernanceConfig(signing_key="key.pem"), project)))
    flip(decided)
    content[decided.name]["sha256"] = sha256_file(decided)
    write_json(note, content)
    assert main(["data", "prepare", *words_of(project)]) == 0
    assert (read_manifest(manifest).digest, decided.read_bytes()) == (digest, before)


def test_remembered_digests_of_sources_are_not_taken_from_others(prepared, tmp_path, capsys):
    """Another source file under the digest of the old one: it is read again, and gives another corpus (66)."""
    project = copy_of(prepared, tmp_path)
    source, digests = project / "stories.jsonl", project / "root" / "fetch" / "digests.json"
    old = sha256_file(source)
    source.write_text(source.read_text().replace("river", "RIVER"))
    state = source.stat()
    facts = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    write_json(digests, {str(source.absolute()): [*facts, old]})
    assert main(["governance", "check", *words_of(project)]) == 66
    assert "ingest: not made yet" in capsys.readouterr().err


# --- files that the checks read


def same_size(path, change):
    """A Parquet file with other columns and the old size: no reader uses bytes between the pages and the footer."""
    size, table = path.stat().st_size, pq.read_table(path, partitioning=None)
    pq.write_table(change(table), path, compression="zstd", compression_level=19, store_schema=False)
    data = path.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little") + 8
    assert len(data) <= size
    path.write_bytes(data[:-footer] + bytes(size - len(data)) + data[-footer:])
    assert path.stat().st_size == size


def licensed(table):
    """Under an allowed licence; the texts are a little shorter, so that all fits."""
    for name, values in (
        ("licence", ["CC0-1.0"] * table.num_rows),
        ("text", [text[: len(text) // 2] for text in table["text"].to_pylist()]),
    ):
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, table.schema.field(place).type))
    return table


def test_a_shard_of_the_same_size_under_a_better_licence_is_named(blocked, tmp_path, capsys):
    project = copy_of(blocked, tmp_path)
    for stage in ("audit", "bias"):
        shutil.rmtree(project / "root" / stage)
    shard = only(project, "redact/*/documents/*stories.parquet")
    same_size(shard, licensed)
    assert set(pq.read_table(shard, partitioning=None)["licence"].to_pylist()) == {"CC0-1.0"}
    refused(project, capsys, shard.name)


READ = {
    "ingest/*/documents/*stories*": ("audit",),
    "clean/*/features/*stories*": ("audit",),
    "encode/*/train/*stories*": ("audit",),
    "redact/*/documents/*stories*": ("audit", "bias"),
    "clean/*/removed/*stories*": ("audit", "bias"),
}


@pytest.mark.parametrize("role", READ)
def test_every_file_that_a_check_reads_is_hashed(blocked, tmp_path, capsys, role):
    project = copy_of(blocked, tmp_path)
    for stage in READ[role]:
        shutil.rmtree(project / "root" / stage)
    flip(only(project, role))
    refused(project, capsys, f"{only(project, role)}: has sha256")


def test_counts_of_ingest_are_those_that_were_stated(prepared, tmp_path, capsys):
    """Other counts of quarantined records, and the run typed again: later stages are made from the false manifest."""
    project = copy_of(prepared, tmp_path)
    made = read_manifest(only(project, "ingest/*/manifest.json"))
    write_manifest(made.model_copy(update={"stats": {**made.stats, "quarantined": 1}}), project / "root")
    assert main(["data", "prepare", *words_of(project)]) == 0
    refused(project, capsys, f"{made.path}: journal.jsonl line ")


BETWEEN = {
    "clean": "ingest/*/documents/*stories*",
    "tokenizer": "redact/*/documents/*stories*",
    "encode": "tokenizer/*/tokenizer.json",
}


@pytest.mark.parametrize("stage", BETWEEN)
def test_a_file_altered_between_two_stages_is_not_passed_on(prepared, tmp_path, capsys, stage):
    """Altered, used by the next stage, and put back: nothing would show it afterwards."""
    project = copy_of(prepared, tmp_path)
    shutil.rmtree(project / "root" / stage)
    altered = only(project, BETWEEN[stage])
    flip(altered)
    assert main(["data", "prepare", *words_of(project)]) == 65
    assert f"{altered.name}: has sha256" in capsys.readouterr().err
