"""Freeze a reference, compare with it, and write the engine's pages, as a user types it."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import shutil

import pytest
from huggingface_hub import DatasetCard

from assay.cli.main import main
from governance.files import write_text
from governance.manifest import Manifest, describe, read_manifest, write_manifest
from tests.altered_files import flip
from tests.governance.attacked import reseal


@pytest.fixture
def typed(project, capsys):
    """`typed(*words)`: run a command on the project; its exit status and output."""

    def run(command, *words):
        root = ["--root", str(project / "root"), "--data-workers", "1"]
        status = main([*command.split(), str(project / "run.toml"), *map(str, words), *root])
        return status, "".join(capsys.readouterr())

    return run


def forged_data_docs(root):
    """Data Docs of the audit with a whole manifest, as anyone can write them without a key; their folder."""
    [audit] = root.glob("audit/*/manifest.json")
    key = "0" * 64
    page = root / "data_docs" / key[:16] / "index.html"
    write_text(page, "<p>all pass</p>")
    inputs, outputs = (read_manifest(audit).as_input(),), (describe(page, root),)
    write_manifest(
        Manifest(stage="data_docs", version=1, key=key, config={}, inputs=inputs, outputs=outputs, stats={}, run={}),
        root,
    )
    return page.parent


WRONG_GATE = """
[[gate]]
id = "documents.wrong"
suite = "documents"
owner = "data"
why = "An expectation that cannot be evaluated."
"""
WRONG = [
    ("expect_no_such_thing", "{}", "Great Expectations has no expectation 'expect_no_such_thing'"),
    ("expect_column_to_exist", '{ column = "language", column_name = "x" }', "column_name"),
]
REFERENCE = ("--set", 'audit.reference="reference.json"', "--set", "audit.min_drift_documents=50")


def test_a_run_file_for_data_alone_is_checked_reported_and_passed_on(project, typed, hub):
    parts = re.split(r"(?m)^(?=\[)", (project / "run.toml").read_text())
    write_text(project / "run.toml", "".join(part for part in parts if re.match(r"\[+(data|governance|audit)\b", part)))
    assert typed("data prepare")[0] == 0
    status, said = typed("governance check")
    assert status == 0, said
    assert typed("governance freeze", project / "reference.json")[0] == 0
    for words in (["report write", "--documents"], ["data export", project / "tokens"], ["data index"]):
        status, said = typed(*words)
        assert (status, "no training" in said) == (0, False), said
    assert (project / "tokens_train.bin").exists()
    assert main(["report", "verify", str(project / "root"), "--key", str(project / "key.pem.pub")]) == 0
    assert (typed("data push", "lab/tales")[0], [*hub.repositories]) == (0, ["lab/tales"])
    assert typed("train")[0] == 78


def test_a_corpus_that_was_let_through_goes_to_the_hub_and_is_frozen_once_as_a_reference(
    project, typed, hub, monkeypatch
):
    assert typed("data prepare")[0] == 0
    file = project / "reference.json"
    status, said = typed("governance freeze", file)
    assert (status, file.exists()) == (77, False), said
    assert typed("data push", "lab/tales")[0] == 77
    assert typed("data push", "tales")[0] == 78
    assert hub.repositories == {}, "nothing was sent"
    docs = project / "docs"
    status, said = typed("governance check", "--data-docs", docs)
    assert status == 0, said
    assert "need no network" in said
    assert list(docs.glob("validations/drift/**/*.html")) == []
    assert len(list(docs.glob("validations/token_shards/**/*.html"))) == 1
    run_file = project / "run.toml"
    latest = project / "root" / "report" / "latest.html"
    assert typed("report write")[0] == 0
    assert "Data Docs" not in latest.read_text()
    foreign = forged_data_docs(project / "root")
    status, said = typed("report write")
    assert (status, "Data Docs" in latest.read_text()) == (0, False), "no statement of the journal names them"
    shutil.rmtree(foreign)
    [audited], [results] = (list((project / "root").glob(f"audit/*/{name}.json")) for name in ("manifest", "results"))
    sound = audited.read_bytes(), results.read_bytes()
    write_text(results, results.read_text().replace('"pass"', '"fail"', 1))
    status, said = typed("report write")
    assert (status, f"{results.parent.name}/results.json" in said) == (77, True), said
    reseal(project, "audit")
    status, said = typed("report write")
    assert (status, f"{results.parent.name}/manifest.json: journal.jsonl line" in said) == (77, True), said
    audited.write_bytes(sound[0])
    results.write_bytes(sound[1])
    assert typed("governance check", "--data-docs")[0] == 0
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    assert typed("report write", "--documents", "--open")[0] == 0
    [page] = [path for path in latest.parent.glob("*/report.html") if "Data Docs" in path.read_text()]
    assert opened == [page.as_uri()]
    for place in (page, latest):
        [link] = re.findall(r'href="([^"]+)">Data Docs of Great Expectations', place.read_text())
        assert "token_shards" in (place.parent / link).read_text()
    of_root = [str(project / "root"), "--key", str(project / "key.pem.pub")]
    assert main(["report", "verify", *of_root]) == 0
    assert main(["governance", "verify", *of_root]) == 0
    flip(docs := next((project / "root").glob("data_docs/*/index.html")))
    status, said = typed("report write")
    assert (status, "the report leaves out data_docs" in said, "Data Docs" in latest.read_text()) == (0, True, False)
    flip(docs)
    text = run_file.read_text()
    for wrong in (
        text + "\n[data.mix]\nweights = { tales = 1.0 }\n",
        text.replace("licence =", 'columns = ["date"]\nlicence ='),
    ):
        run_file.write_text(wrong)
        status, said = typed("data push", "lab/tales")
        assert (status, "Push the corpus of a run without" in said, hub.repositories) == (78, True, {}), said
    run_file.write_text(text)
    hub.repositories["lab/open"] = {"type": "dataset", "private": False}
    status, said = typed("data push", "lab/open")
    assert (status, "it exists and is public; nothing was sent" in said, hub.files) == (1, True, {}), said
    hub.files["data/train-00000-of-00002.parquet"] = b"of an earlier push"
    status, said = typed("data push", "lab/tales")
    assert (status, "lab/tales: 1 shard(s) of documents" in said) == (0, True), said
    assert hub.repositories["lab/tales"]["type"] == "dataset"
    card = DatasetCard(hub.files.pop("README.md").decode())
    assert (card.data.license, card.data.language) == (["cc0-1.0"], ["en"])
    assert "# Datasheet of encode/" in card.text
    [(name, data)] = hub.files.items()
    assert fnmatch.fnmatch(name, card.data.configs[0]["data_files"][0]["path"])
    [made] = (project / "root" / "redact").glob("*/documents/*.parquet")
    assert data == made.read_bytes()
    stated = json.loads((project / "root" / "journal.jsonl").read_text().splitlines()[-1])["envelope"]["payload"]
    subjects = {item["name"]: item["digest"]["sha256"] for item in json.loads(base64.b64decode(stated))["subject"]}
    assert subjects[f"hub/lab/tales/{name}"] == hashlib.sha256(data).hexdigest()
    assert subjects.keys() == {f"hub/lab/tales/{name}", "hub/lab/tales/README.md"}
    assert typed("governance freeze", file)[0] == 0
    whole = file.read_bytes()
    assert typed("governance freeze", file)[0] == 78
    assert file.read_bytes() == whole

    policy = project / "policy.toml"
    policy.write_text(policy.read_text() + GATE)
    status, said = typed("governance check")
    assert status == 77, "a gate on drift without a reference"
    assert "drift.reference on drift is inconclusive: there is no reference to compare with" in said
    with_reference = policy.read_text()
    for gx, kwargs, words in WRONG:
        policy.write_text(f'{with_reference}\n{WRONG_GATE}gx = "{gx}"\nkwargs = {kwargs}\n')
        status, said = typed("governance check", *REFERENCE)
        assert (status, "could not be evaluated: " in said, words in said) == (77, True, True), said
    status, said = typed("train", *REFERENCE)
    assert (status, list((project / "root").glob("train/*"))) == (77, []), said
    policy.write_text(with_reference)
    status, said = typed("governance check", *REFERENCE)
    assert status == 0, said
    newest = max((project / "root").glob("audit/*/drift.json"), key=lambda path: path.stat().st_mtime_ns)
    rows = json.loads(newest.read_bytes())
    assert {row["psi"] for row in rows if row["n"]} == {0.0}
    assert {"words", "duplicate_line_share"} <= {row["feature"] for row in rows}

    envelope = json.loads(whole)
    envelope["payload"] = envelope["payload"][:-8] + "AAAA" + envelope["payload"][-4:]
    file.write_text(json.dumps(envelope))
    status, said = typed("governance check", *REFERENCE)
    assert status == 65, said
    file.unlink()
    assert typed("governance check", *REFERENCE)[0] == 66


def test_a_reference_that_is_not_there_is_reported_before_anything_is_made(project, typed):
    status, said = typed("run", *REFERENCE)
    assert status == 66
    assert "reference.json" in said
    assert not (project / "root").exists()


GATE = """
[[gate]]
id = "drift.reference"
suite = "drift"
expectation = "between"
column = "psi"
max = 0.25
max_missing = 0.5
owner = "data"
why = "Features far from the accepted corpus mean another source."
"""
