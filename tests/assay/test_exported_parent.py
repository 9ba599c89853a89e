"""A child that begins with an export: lineage and energy go on through its checkpoint, or say that they end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from assay.cli.main import main
from governance.energy.ancestry import read_trainings
from governance.energy.attribution import settle
from governance.energy.checkpoint_cost import surviving
from governance.energy.ledger import read_ledger
from governance.errors import ManifestError
from governance.lineage.lineage_graph import read_graph
from governance.manifest import Manifest, read_manifest, write_manifest
from tests.conftest import write_project, write_tales
from tests.governance.attacked import flip

STUDENT = """base = "run.toml"

[model]
num_hidden_layers = 1

[train.distillation]
teacher = "{teacher}"
"""
CHILD = """base = "run.toml"

[[data.sources]]
type = "jsonl"
name = "chats"
paths = ["chats/*.jsonl"]
licence = "CC0-1.0"

[data.tokenizer]
path = "exported/tokenizer.json"

[model]
num_hidden_layers = 1

[train]
initial_weights = "exported"
"""


def trainings(root: Path) -> list[Manifest]:
    """Those of a root, the oldest first."""
    paths = sorted(root.glob("train/*/manifest.json"), key=lambda path: path.stat().st_mtime)
    return [read_manifest(path) for path in paths]


def newest_report(root: Path) -> Path:
    """The report that was written last."""
    return max(root.glob("report/*/report.json"), key=lambda path: path.stat().st_mtime)


def run_of(folder: Path, name: str, root: Path) -> Manifest:
    """The training of a whole run."""
    assert main(["run", str(folder / name), "--root", str(root), "--data-workers", "1"]) == 0
    return trainings(root)[-1]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A teacher, its student, and a child of the student's export."""
    folder = write_project(tmp_path_factory.mktemp("family") / "project")
    root = folder / "root"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))  # a meter of its own, whatever else this node measures
        teacher = run_of(folder, "run.toml", root)
        taught_by = str(Path(teacher.stats["checkpoint"]["path"]).parent)
        (folder / "student.toml").write_text(STUDENT.format(teacher=taught_by))
        student = run_of(folder, "student.toml", root)
        words = [folder / "student.toml", "last", folder / "exported", "--root", root]
        assert main(["export", *map(str, words)]) == 0
        (folder / "chats").mkdir()
        write_tales(folder / "chats" / "c.jsonl", range(200, 260))
        (folder / "child.toml").write_text(CHILD)
        child = run_of(folder, "child.toml", root)
    return folder, teacher, student, child


def test_a_child_of_an_export_inherits_the_sources_and_energy_of_all_its_ancestors(family, capsys):
    folder, teacher, student, child = family
    root, last = folder / "root", student.stats["checkpoint"]
    [weights] = [item for item in child.inputs if item.stage == "file"]
    behind = [{"stage": "checkpoint", **last}]
    assert child.run["origin"]["exports"] == {weights.digest: behind}
    made = read_manifest(root / child.stats["checkpoint"]["path"])
    assert made.run["origin"] == child.run["origin"]

    capsys.readouterr()
    assert main(["governance", "trace", str(root / made.folder)]) == 0
    shown = capsys.readouterr().out
    for name in ("chats/c.jsonl", "tales/a.jsonl", last["path"], teacher.stats["checkpoint"]["path"]):
        assert name in shown

    page = newest_report(root)
    views = json.loads(page.read_text())["energy"]["views"]
    survived = surviving(settle(read_ledger(root / "energy.jsonl")))
    took = {artifact: sum(piece.millijoules or 0 for piece in pieces) for artifact, pieces in survived.items()}
    found, _ = read_trainings([child], root)
    data = {name for training in found.values() for name in training.data}
    assert set(found) == {teacher.folder, student.folder, child.folder}
    assert took[teacher.folder] > 0 < took[student.folder]
    whole = round(1000 * views["rows"]["cumulative_whole"]["joules"])
    assert whole == sum(took.get(name, 0) for name in {*found, *data})  # each once: both read the teacher's corpus
    assert views["missing"] == []
    assert main(["report", "verify", str(page.parent), "--key", str(folder / "key.pem.pub")]) == 0


def test_lineage_holds_where_the_exported_checkpoint_is_gone_and_its_energy_is_named_as_missing(family, tmp_path):
    folder, _, student, child = family
    root = shutil.copytree(folder / "root", tmp_path / "root")
    gone = student.stats["checkpoint"]["path"]
    shutil.rmtree((root / gone).parent)
    graph = read_graph(root)
    paths = {node.path for _, node in graph.ancestors(graph.find(child))}
    assert {gone, "tales/a.jsonl"} <= paths
    found, _ = read_trainings([child], root)
    [start] = found[child.folder].starts
    assert (start.artifact, start.step) == (str(Path(gone).parent), None)  # no record: the sum is "at least"


@pytest.mark.parametrize("case", ["altered", "of another root"])
def test_weights_that_this_root_did_not_export_have_an_unknown_origin(family, tmp_path, case):
    folder, *_ = family
    for name in ("chats", "exported", "root", "*.jsonl", "*.toml", "key.pem*"):
        for path in folder.glob(name):
            (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    if case == "altered":
        flip(tmp_path / "exported" / "model.safetensors")
    else:
        shutil.rmtree(tmp_path / "root")
    words = ["run", str(tmp_path / "child.toml"), "--root", str(tmp_path / "root"), "--data-workers", "1"]
    assert main(words) == 0
    child = trainings(tmp_path / "root")[-1]
    origin = child.run["origin"]
    assert (origin["verified"], "exports" in origin) == (False, False)
    assert "no line of this root's journal.jsonl states an export of these files" in origin["why"]
    found, _ = read_trainings([child], tmp_path / "root")
    assert (found[child.folder].gaps, found[child.folder].starts) == (("exported",), ())
    assert json.loads(newest_report(tmp_path / "root").read_text())["energy"]["views"]["missing"] == [
        "what is behind exported"
    ]


@pytest.mark.parametrize("exports", [[], {"f": "checkpoint"}, {"f": [{"stage": "checkpoint"}]}])
def test_a_manifest_with_an_unreadable_origin_is_refused(tmp_path, exports):
    made = Manifest(stage="train", version=1, key="a" * 64, config={}, inputs=(), outputs=(), stats={}, run={})
    write_manifest(made.model_copy(update={"run": {"origin": {"exports": exports}}}), tmp_path)
    with pytest.raises(ManifestError, match="is not a schema-1 manifest"):
        read_manifest(tmp_path / made.path)
