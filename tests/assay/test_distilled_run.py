"""A student from the command line: the teacher's evidence, sources and energy are the student's."""

from __future__ import annotations

import json
import re

from assay.cli.main import main
from governance.energy.attribution import settle
from governance.energy.checkpoint_cost import surviving
from governance.energy.ledger import read_ledger
from governance.lineage.lineage_graph import read_graph
from governance.manifest import read_manifest
from tests.conftest import write_project

STUDENT = """base = "run.toml"

[model]
num_hidden_layers = 1

[train.distillation]
teacher = "{teacher}"
logits = "sampled"
start = "teacher"
"""


def test_a_student_inherits_its_teachers_evidence_sources_and_energy(tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # a meter of its own, whatever else this node measures
    folder = write_project(tmp_path / "project")
    root = folder / "root"
    words = ["--root", str(root), "--data-workers", "1"]
    assert main(["run", str(folder / "run.toml"), *words]) == 0
    [parent] = [read_manifest(path) for path in root.glob("train/*/manifest.json")]
    taught_by = str(parent.stats["checkpoint"]["path"]).removesuffix("/manifest.json")
    (folder / "student.toml").write_text(STUDENT.format(teacher=taught_by))
    assert main(["teacher-logits", str(folder / "run.toml"), *words]) == 78
    assert "does not train on draws" in caplog.text + capsys.readouterr().err
    few = ["--set", "train.steps=1", "--set", "train.validate_every_steps=1"]
    assert main(["teacher-logits", str(folder / "student.toml"), *words, *few]) == 0
    said = caplog.text + capsys.readouterr().err
    assert re.search(r"for all [\d,]+ rows, and this training reads 4 of them: .*'online' costs", said)
    assert main(["teacher-logits", str(folder / "student.toml"), *words, "--json"]) == 0
    drawn = json.loads(capsys.readouterr().out)
    assert drawn["bytes_per_token"] == 32
    for run, kept in (("student.toml", "this run"), ("run.toml", "")):  # no training rests on the draws yet
        assert main(["data", "clean-up", str(folder / run), "--root", str(root), "--json"]) == 0
        listed = {one["artifact"]: one["kept_for"] for one in json.loads(capsys.readouterr().out)["candidates"]}
        assert [why for name, why in listed.items() if name.startswith("teacher_logits/")] == [kept]
    (folder / "online.toml").write_text(STUDENT.format(teacher=taught_by).replace("sampled", "online"))
    dry = ["train", str(folder / "online.toml"), "--root", str(root), "--dry-run"]
    assert main(dry) == 0
    planned = capsys.readouterr().out
    assert f"teacher     {parent.stats['parameters']:,} parameters alongside the student, " in planned
    assert re.search(r"^memory .*[(,] ?teacher 0\.\d GiB", planned, re.MULTILINE)
    assert main([*dry, "--set", 'train.distillation.teacher="checkpoint/none"']) == 0
    assert "teacher     not counted, and refused at the start: train.distillation.teacher" in capsys.readouterr().out
    assert main(["train", str(folder / "student.toml"), "--root", str(root), "--dry-run"]) == 0
    assert "teacher     does not run in this training" in capsys.readouterr().out
    assert main(["run", str(folder / "student.toml"), *words]) == 0
    [student] = [one for path in root.glob("train/*/manifest.json") if (one := read_manifest(path)).key != parent.key]
    assert [item.stage for item in student.inputs] == ["encode", "checkpoint", "teacher_logits"]
    assert student.run["origin"] == {
        "from": f"{taught_by}/manifest.json", "verified": True, "why": "stated by the journal.jsonl of its root",
    }  # fmt: skip

    graph = read_graph(root)
    last = read_manifest(root / student.stats["checkpoint"]["path"])
    behind = [node for _, node in graph.ancestors(graph.find(last))]
    assert {"tales/a.jsonl", "tales/b.jsonl"} <= {node.path for node in behind if node.stage == "file"}
    assert parent.stats["checkpoint"]["digest"] in {node.digest for node in behind}

    pages = sorted(root.glob("report/*/report.json"), key=lambda path: path.stat().st_mtime)
    found = json.loads(pages[-1].read_text())
    views = found["energy"]["views"]
    took = {
        artifact: sum(piece.millijoules or 0 for piece in pieces)
        for artifact, pieces in surviving(settle(read_ledger(root / "energy.jsonl"))).items()
    }
    data = {node.path.removesuffix("/manifest.json") for node in behind if node.manifest is not None}
    data = {path for path in data if not path.startswith(("verdict", "checkpoint", "audit", "bias"))}
    parts = {student.folder, parent.folder, *data}
    drawn_at = next(item.path for item in student.inputs if item.stage == "teacher_logits").removesuffix(
        "/manifest.json"
    )
    assert {drawn_at, parent.folder} <= parts
    assert took[drawn_at] > 0
    whole = round(1000 * views["rows"]["cumulative_whole"]["joules"])
    assert whole == sum(took.get(name, 0) for name in parts)
    assert views["missing"] == []
    assert drawn_at in {part["artifact"] for part in views["parts"]}

    capsys.readouterr()
    assert main(["data", "clean-up", str(folder / "run.toml"), "--root", str(root), "--json"]) == 0
    listed = {one["artifact"]: one["kept_for"] for one in json.loads(capsys.readouterr().out)["candidates"]}
    assert listed[drawn_at].startswith(("train/", "checkpoint/"))

    training = found["training"]["stats"]
    assert training["distillation"]["teacher"]["digest"] == parent.stats["checkpoint"]["digest"]
    page = pages[-1].with_name("report.html").read_text()
    assert "the teacher&#x27;s" in page or "the teacher's" in page
