"""A report verifies against its evidence; one changed number anywhere, or changed evidence, is found and named."""

import base64
import json
import re
import shutil

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from assay.cli.main import main
from data_pipeline.pii.detect import replace_all
from governance.config import canonical_json
from governance.energy.ledger import host_ledger
from governance.errors import ManifestError, MissingInput
from governance.files import append_line, json_text, write_json
from governance.manifest import Manifest, manifest_text, read_manifest, write_manifest
from governance.reports.documents.all_documents import documents
from governance.reports.facts.citations import origin_of
from governance.reports.facts.evidence_ids import as_of, verdict_name
from governance.reports.recompute import newest_report, numbers_of, recompute, report_bytes, rests_on, text_mismatches
from governance.reports.report import report
from governance.signing.dsse import statement
from governance.stage import Runtime
from tests.governance.test_reports_page import corpus, ledger, trained, verdict_of

NUMBER = re.compile(r"\d+")
CARD = "model_card.md"


def sign_off(root, verdict):
    """The verdict's envelope where the gate leaves it (another test checks the signer)."""
    predicate = {key: value for key, value in verdict.items() if key not in ("key_id", "subjects")}
    payload = base64.b64encode(canonical_json(statement(verdict["subjects"], "verdict", predicate))).decode()
    write_json(
        root / verdict_name(verdict), {"payload": payload, "signatures": [{"keyid": verdict["key_id"], "sig": ""}]}
    )


def begin(root, interval, kind="begin", process=(1, 0), **values):
    about = {"interval": interval, "attempt": interval, "stage": "train", "host": "node1", "process": list(process)}
    energy = {"method": "RAPL", "millijoules": 1000, "low": 900, "high": 1100}
    line = {"kind": kind, **about, "at": "2026-01-01T00:02:30.000Z", **energy, **values}
    append_line(host_ledger(root / "energy.jsonl", "node1"), json.dumps(line))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    made = corpus(root)
    made["train"] = trained(root, made)
    ledger(root)
    record = root / made["train"].folder / "metrics.jsonl"
    for step in (40, 55):
        line = {"event": "skipped", "attempt": 1, "step": step, "reason": "spike", "z": 9.5 + step, "loss": 20.25}
        append_line(record, json.dumps(line))
    append_line(
        record, json.dumps({"event": "stragglers", "attempt": 2, "step": 500, "rank": 1, "ratio": 1.7, "windows": 3})
    )
    append_line(root / "slurm" / "jobs.jsonl", json.dumps({"job": "13", "name": "train"}))
    append_line(root / "slurm" / "attempts" / "13.jsonl", json.dumps({"event": "started", "started": "1"}))
    append_line(root / "slurm" / "accounting.jsonl", json.dumps({"asked": "1", "slurm": 4, "core_seconds": 2}))
    verdict = verdict_of(made, "WAIVED")
    sign_off(root, verdict)
    made_report = report(made, verdict, root, Runtime(root), replace_all)
    made_documents = documents(made, made_report, Runtime(root))
    texts = {path.name: path.read_text(encoding="utf-8")
             for folder in (made_report.folder, made_documents.folder) for path in (root / folder).iterdir()
             if path.name != "manifest.json"}  # fmt: skip
    return root, made_report, made_documents, texts


@pytest.fixture
def copied(whole, tmp_path):
    """The run in a place where a test may change it: root, report."""
    root = tmp_path / "moved"
    shutil.copytree(whole[0], root)
    return root, whole[1]


def changed(text, place, digit):
    """The text with one digit of its `place`th number changed."""
    spots = [match.start() for match in NUMBER.finditer(text)]
    at = spots[place % len(spots)]
    assume(text[at] != digit)
    return f"{text[:at]}{digit}{text[at + 1 :]}"


def test_a_report_and_its_documents_are_what_the_evidence_gives_also_of_a_moved_root(copied):
    root, made = copied
    found = recompute(made, root, replace_all)
    assert found.mismatches == ()
    assert {"report.json", "report.html", CARD, "datasheet.md", "spdx.json"} <= set(found.files)
    assert found.numbers > 1000


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_number_of_the_page_or_of_a_document_can_be_changed(whole, data):
    texts = whole[3]
    name = data.draw(st.sampled_from(sorted(set(texts) - {"report.json"})))
    text = changed(texts[name], data.draw(st.integers(0, 10**6)), data.draw(st.sampled_from("0123456789")))
    [fault] = text_mismatches(name, text, texts[name])
    assert fault.stated != fault.evidence
    assert fault.place


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**6), digit=st.sampled_from("0123456789"))
def test_no_number_of_report_json_can_be_changed_nor_of_what_it_says_of_its_evidence(whole, place, digit):
    root, made, _, texts = whole
    path = root / made.folder / "report.json"
    path.write_text(changed(texts["report.json"], place, digit), encoding="utf-8")
    try:
        message = [fault.line() for fault in recompute(made, root, replace_all).mismatches]
    except ManifestError as error:  # it is not JSON any more
        message = [f"report.json: {error}"]
    finally:
        path.write_text(texts["report.json"], encoding="utf-8")
    assert [line for line in message if line.startswith("report.json: ") and "report.json" in line]


@pytest.mark.parametrize(
    ("file", "before", "after", "message"),
    [
        ("report.html", "3,059.750 J", "3,059.751 J", ["3,059.751", "3,059.750", "Energy"]),
        ("report.json", '"energy_joules": 3059.75', '"energy_joules": 3059.76', ["/summary/energy_joules", "3059.76"]),
        (CARD, "4.34", "4.35", ["4.35", "4.34", "line "]),
    ],
)
def test_the_command_names_the_number_and_both_values(copied, capsys, file, before, after, message):
    root, _ = copied
    [path] = [path for path in root.glob(f"*/*/{file}") if path.parts[-3] in ("report", "documents")]
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    assert main(["report", "verify", str(root)]) == ManifestError.exit_code == 65
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{file}: ")]
    assert any(all(word in line for word in message) for line in lines), lines


def test_the_command_takes_a_root_a_report_its_page_or_its_documents(whole, capsys):
    root, made, made_documents, _ = whole
    for path in (root, root / made.folder, root / made.folder / "report.html", root / made_documents.folder):
        assert main(["report", "verify", str(path)]) == 65  # nothing of this evidence was signed
        assert capsys.readouterr().out.startswith("journal.jsonl: cannot be read")
    assert main(["report", "verify", str(root / "clean")]) == MissingInput.exit_code == 66
    assert main(["report", "verify", str(next((root / "clean").iterdir()))]) == 66


def test_what_was_appended_since_is_not_in_it(copied):
    root, made = copied
    begin(root, "later", "end", outcome="surviving", cause="")
    line = {"event": "skipped", "attempt": 2, "step": 599, "reason": "loss"}
    append_line(root / next(root.glob("train/*")).relative_to(root) / "metrics.jsonl", json.dumps(line))
    append_line(root / "slurm" / "attempts" / "13.jsonl", json.dumps({"event": "started", "started": "2"}))
    append_line(root / "slurm" / "accounting.jsonl", json.dumps({"asked": "2", "slurm": 5, "core_seconds": 3}))
    append_line(root / "energy.node9.jsonl", json.dumps({"kind": "ledger", "schema": 1, "host": "node9"}))
    assert recompute(made, root, replace_all).mismatches == ()


def test_all_checks_of_a_report_are_of_the_bytes_that_were_read_once(copied):
    """Whoever can write to the folder could show one list of evidence to one check and another to the next."""
    root, made = copied
    data = report_bytes(made, root)
    whole = rests_on(made, root, data)
    state(root, list.clear)
    altered = report_bytes(made, root)
    assert [one.digest for one in rests_on(made, root, data)] == [one.digest for one in whole]
    assert len(rests_on(made, root, altered)) < len(whole)
    assert recompute(made, root, replace_all, data).mismatches == ()
    path = root / made.folder / "report.json"
    path.write_bytes(data)
    assert any(fault.file == "report.json" for fault in recompute(made, root, replace_all, altered).mismatches)


@pytest.mark.parametrize("swap", [False, True])
def test_the_command_judges_what_it_read_first(copied, monkeypatch, capsys, swap):
    root, made = copied
    path, seen = root / made.folder / "report.json", []
    sound = path.read_bytes()
    state(root, list.clear)

    def verify_evidence(manifests, *given):
        seen.extend(manifests)
        if swap:
            path.write_bytes(sound)
        return []

    monkeypatch.setattr("governance.verification.verify_evidence", verify_evidence)
    assert main(["report", "verify", str(path.parent)]) == ManifestError.exit_code
    assert "report.json: SHA-256 of the file" in capsys.readouterr().out
    assert seen


def test_what_still_ran_when_it_was_written_may_have_ended_since(tmp_path):
    import os

    from governance.energy.node_lock import start_time

    made = corpus(tmp_path)
    ledger(tmp_path)
    host = os.uname().nodename
    begin(tmp_path, "open", process=(os.getpid(), int(start_time(os.getpid()))), host=host)
    written = report(made, {}, tmp_path, Runtime(tmp_path))
    total = json.loads((tmp_path / written.folder / "report.json").read_bytes())["energy"]["total"]
    assert total["running"] == 1.0
    begin(tmp_path, "open", "end", outcome="wasted", cause="KeyError", host=host, millijoules=5000)
    assert recompute(written, tmp_path).mismatches == ()


def test_what_ends_or_begins_while_a_report_is_written_was_not_killed(tmp_path, monkeypatch):
    made = corpus(tmp_path)
    ledger(tmp_path)
    begin(tmp_path, "ends")
    begin(tmp_path, "dies")

    def meanwhile(line):
        if line["interval"] == "ends":
            begin(tmp_path, "ends", "end", outcome="surviving", cause="", millijoules=5000)
            begin(tmp_path, "begins")
        return False

    monkeypatch.setattr("governance.reports.facts.evidence_ids.still_runs", meanwhile)
    written = report(made, {}, tmp_path, Runtime(tmp_path))
    found = json.loads((tmp_path / written.folder / "report.json").read_bytes())
    [running] = [entry["running"] for entry in found["evidence"]["entries"] if entry["kind"] == "ledger"]
    assert running == ["ends"]
    assert found["energy"]["wasted_by_cause"]["killed"] == found["energy"]["total"]["running"] == 1.0
    assert recompute(written, tmp_path).mismatches == ()


def descended(root):
    """A run whose model was started from a checkpoint of a training that is not reported on, and its report."""
    made = corpus(root)
    ledger(root)
    encode = made["encode"].as_input()
    parent = written(root, "train", "a", [encode], {"steps": 8, "tokens": 80})
    middle = written(root, "checkpoint", "b", [encode], {}, {"train_key": parent.key, "step": 4})
    append_line(root / parent.folder / "metrics.jsonl", json.dumps({"event": "step", "step": 4, "tokens": 40}))
    made["train"] = written(root, "train", "c", [encode, middle.as_input()], {"steps": 600, "tokens": 8192 * 600})
    append_line(root / made["train"].folder / "metrics.jsonl", json.dumps({"event": "step", "step": 1, "tokens": 9}))
    marks = {"artifact": made["train"].folder, "resumed_from": 0, "step": 600, "checkpoint": 600}
    begin(root, "child", "end", outcome="surviving", cause="", marks=marks)
    return report(made, {}, root, Runtime(root)), parent, middle, made["train"]


def written(root, stage, key, inputs, stats, config=None):
    made = Manifest(stage=stage, version=1, key=key * 64, config=config or {}, outputs=(), stats=stats,
                    inputs=tuple(inputs), run={})  # fmt: skip
    write_manifest(made, root)
    return made


def test_what_is_behind_a_training_is_evidence_of_its_energy(tmp_path):
    made, parent, middle, child = descended(tmp_path)
    found = json.loads((tmp_path / made.folder / "report.json").read_bytes())
    entries = {entry["path"]: entry for entry in found["evidence"]["entries"]}
    for behind in (parent, middle):
        assert (entries[behind.path]["kind"], entries[behind.path]["digest"]) == ("ancestor", behind.digest)
    records = {f"{manifest.folder}/metrics.jsonl" for manifest in (parent, child)}
    for place in ("/energy/views/rows/cumulative/joules", "/energy/checkpoints/0/with_ancestors"):
        message = set(origin_of(found, place)["from"])
        assert {entries[path]["id"] for path in (parent.path, middle.path, child.path, *records)} <= message
    assert set(origin_of(found, "/training/curves")["from"]) == {entries[f"{child.folder}/metrics.jsonl"]["id"]}
    assert recompute(made, tmp_path).mismatches == ()
    append_line(tmp_path / parent.folder / "metrics.jsonl", json.dumps({"event": "step", "step": 4, "tokens": 44}))
    written(tmp_path, "clean", "d", [], {})
    assert recompute(made, tmp_path).mismatches == ()
    shutil.rmtree(tmp_path / parent.folder)
    lines = [fault.line() for fault in recompute(made, tmp_path).mismatches]
    assert any("/evidence/entries/" in line and parent.path in line for line in lines)


def altered_manifest(root, stage):
    [path] = root.glob(f"{stage}/*/manifest.json")
    manifest = read_manifest(path)
    energy = {**manifest.run["energy"], "joules": 1.0}
    path.write_text(manifest_text(manifest.model_copy(update={"run": {**manifest.run, "energy": energy}})))


def altered_stats(root, stage):
    [path] = root.glob(f"{stage}/*/manifest.json")
    manifest = read_manifest(path)
    path.write_text(manifest_text(manifest.model_copy(update={"stats": {**manifest.stats, "documents_kept": 3}})))


def altered_text(root, pattern, before, after):
    path = min(root.glob(pattern))
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda root: altered_manifest(root, "clean"), "/energy/stages/"),
        (lambda root: altered_text(root, "energy.jsonl", "850000", "850001"), "/energy/total/joules"),
        (lambda root: altered_text(root, "train/*/metrics.jsonl", '"z": 64.5', '"z": 65.5'), "/faults/skipped"),
        (lambda root: altered_text(root, "audit/*/results.json", "0.7312", "0.7313"), "/checks/"),
        (lambda root: (root / "energy.jsonl").unlink(), "/energy/total"),
        (lambda root: shutil.rmtree(root / "checkpoint"), "/training/checkpoints"),
        (lambda root: sign_off(root, {**verdict_of_root(root), "signed_at": "2026-11-25T00:00:00Z"}), "/verdict"),
    ],
)
def test_altered_evidence_is_named(copied, alter, message):
    root, made = copied
    alter(root)
    lines = [fault.line() for fault in recompute(made, root, replace_all).mismatches]
    assert any(message in line for line in lines), lines[:10]


def state(root, change):
    """Change report.json's list of evidence."""
    path = next(root.glob("report/*/report.json"))
    found = json.loads(path.read_bytes())
    change(found["evidence"]["entries"])
    write_json(path, found)


def sealed_faults(root, made):
    return [fault for fault in recompute(made, root, replace_all).mismatches if fault.place == "SHA-256 of the file"]


def test_what_only_the_report_says_cannot_be_changed_either(copied):
    """No evidence covers running intervals and existing checkpoints: the sealed manifest finds a change."""
    root, made = copied
    state(root, lambda entries: next(entry for entry in entries if entry["kind"] == "ledger")["running"].append("z"))
    [fault] = sealed_faults(root, made)
    assert fault.file == "report.json"
    assert made.path in fault.line()
    [page] = [output.sha256 for output in made.outputs if output.path.endswith(".json")]
    assert (fault.evidence, fault.stated != page) == (page, True)


def test_a_dropped_entry_and_an_altered_document_are_found(copied):
    root, made = copied
    state(root, lambda entries: entries.pop(next(i for i, e in enumerate(entries) if e["kind"] == "checkpoint")))
    altered_text(root, f"documents/*/{CARD}", "4.34", "4.35")
    assert {fault.file for fault in sealed_faults(root, made)} == {"report.json", CARD}


@pytest.mark.parametrize("way", ["absolute", "up", "elsewhere"])
def test_stated_evidence_neither_reads_nor_overwrites_a_foreign_file(copied, tmp_path, way):
    root, made = copied
    foreign = tmp_path / "foreign.json"
    foreign.write_text("mine")
    names = {"absolute": str(foreign), "up": "../foreign.json", "elsewhere": "checkpoint/../../foreign.json"}

    def change(entries):
        next(entry for entry in entries if entry["kind"] == "checkpoint").update(path=names[way], bytes=2)

    state(root, change)
    with pytest.raises(ManifestError, match="is not a checkpoint's manifest"):
        recompute(made, root, replace_all)
    for kind in ("checkpoint", "ledger"):
        with (
            pytest.raises(ManifestError, match="points outside the root"),
            as_of(root, [{"path": names[way], "kind": kind, "bytes": 2}]),
        ):
            pass
    assert foreign.read_text() == "mine"


def verdict_of_root(root):
    return json.loads(next(root.glob("report/*/report.json")).read_bytes())["verdict"]


def test_an_artifact_that_was_made_anew_or_is_gone_is_named(copied):
    root, made = copied
    altered_stats(root, "dedup")
    with pytest.raises(ManifestError, match=r"dedup/.*made again"):
        recompute(made, root, replace_all)
    shutil.rmtree(root / "dedup")
    with pytest.raises(MissingInput, match="dedup"):
        recompute(made, root, replace_all)


def test_a_report_of_another_version_is_not_judged(copied):
    root, made = copied
    with pytest.raises(ManifestError, match="version 1 of report"):
        recompute(made.model_copy(update={"version": 1}), root)
    assert newest_report(root).digest == made.digest


def at(value, key):
    for name in filter(None, key):
        value = value[int(name)] if isinstance(value, list) else value[name]
    return value


def test_each_number_of_report_json_has_evidence_that_holds_what_was_copied(whole):
    root, _, _, texts = whole
    found = json.loads(texts["report.json"])
    entries = {entry["id"]: entry for entry in found["evidence"]["entries"]}
    assert list(entries) == [f"E{n}" for n in range(1, len(entries) + 1)]
    compared = 0
    for place, value in numbers_of({name: item for name, item in found.items() if name not in ("evidence", "schema")}):
        origin = origin_of(found, place)
        assert origin["from"], place
        assert set(origin["from"]) <= set(entries), place
        assert not place.startswith("/summary/") or place in found["evidence"]["of"], f"{place}: inherits an origin"
        if origin["how"] != "copied" or entries[origin["from"][0]]["kind"] not in ("manifest", "table"):
            continue
        prefix = place
        while prefix not in found["evidence"]["of"]:
            prefix = prefix.rpartition("/")[0]
        source = json.loads((root / entries[origin["from"][0]]["path"]).read_bytes())
        way = [*origin["key"].split("."), *(part.replace("~1", "/") for part in place[len(prefix) :].split("/"))]
        assert at(source, way) == value, place
        compared += 1
    assert compared > 150


def test_the_same_facts_give_the_same_bytes(whole):
    found = json.loads(whole[3]["report.json"])
    assert json_text(found) == whole[3]["report.json"]
