"""A child that begins with an export: lineage and energy go on through its checkpoint, or say that they end."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest

from assay.cli.main import main
from assay.config import load_run
from assay.weights_origin import weights_origin
from governance.energy.ancestry import read_trainings
from governance.energy.attribution import settle
from governance.energy.checkpoint_cost import surviving
from governance.energy.ledger import read_ledger
from governance.errors import ManifestError
from governance.files import sha256_file
from governance.lineage.lineage_graph import read_graph
from governance.manifest import Manifest, read_manifest, write_manifest
from governance.signing.dsse import create_key, private_key, sign
from governance.stage import Runtime
from pretrain.export import huggingface
from pretrain.initial_weights.folder import STATEMENT
from tests.altered_files import flip
from tests.conftest import write_project, write_tales

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


def test_an_export_under_another_runs_file_claims_no_sources(family, capsys):
    """The teacher was not trained on the chats of the child's file."""
    folder, teacher, _, child = family
    for made, own in ((teacher, False), (child, True)):
        checkpoint, target = folder / "root" / made.stats["checkpoint"]["path"], folder / f"card-{own}"
        words = ["export", folder / "child.toml", checkpoint.parent, target, "--root", folder / "root"]
        assert main(list(map(str, words))) == 0
        assert ("was trained on other token shards" in capsys.readouterr().err) != own
        assert ("| text of " in (target / "README.md").read_text(encoding="utf-8")) == own


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


def test_an_export_states_the_weights_that_it_wrote(family, tmp_path, monkeypatch):
    """Whoever can write to the target may replace a file before the command ends."""
    folder, _, _, _ = family
    card = huggingface._card

    def replaced(*given):
        flip(tmp_path / "swapped" / "model.safetensors")
        return card(*given)

    monkeypatch.setattr(huggingface, "_card", replaced)
    words = [folder / "student.toml", "last", tmp_path / "swapped", "--root", folder / "root"]
    assert main(["export", *map(str, words)]) == 0
    signed = json.loads((tmp_path / "swapped" / STATEMENT).read_text())
    [subject] = json.loads(base64.b64decode(signed["payload"]))["subject"]
    assert subject["digest"]["sha256"] == sha256_file(folder / "exported" / "model.safetensors")
    assert subject["digest"]["sha256"] != sha256_file(tmp_path / "swapped" / "model.safetensors")


def elsewhere(folder: Path, place: Path) -> Path:
    """The run's file and the export without the root and the chats' words, for a root of its own."""
    for name in ("chats", "exported", "*.jsonl", "*.toml", "key.pem*"):
        for path in folder.glob(name):
            (shutil.copytree if path.is_dir() else shutil.copy)(path, place / path.name)
    return place / "child.toml"


def origin_of(run: Path, *more: str) -> dict:
    """Origin of the weights that a run would start from, in a root of its own."""
    loaded = load_run(run, more)
    return weights_origin(loaded, Runtime((run.parent / "root").absolute()))


def test_an_export_that_was_pushed_is_a_parent_in_another_root_too(family, tmp_path, serve_hub, monkeypatch, capsys):
    """The statement goes with the weights to the hub and back: sources are found through both roots."""
    from huggingface_hub import constants

    folder, _, student, _ = family
    run, root = elsewhere(folder, tmp_path), tmp_path / "root"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    serve_hub("lab/tiny", {path.name: path.read_bytes() for path in (folder / "exported").iterdir()})
    run.write_text(CHILD.replace('weights = "exported"', 'weights = "hf://lab/tiny"'))
    other = run_of(tmp_path, "child.toml", root)
    last = student.stats["checkpoint"]
    [weights] = [item for item in other.inputs if item.stage == "file"]
    assert other.run["origin"] == {
        "from": "tiny", "verified": True, "why": "stated by its export.statement.json as an export",
        "exports": {weights.digest: [{"stage": "checkpoint", **last}]},
    }  # fmt: skip
    capsys.readouterr()
    assert main(["governance", "trace", str(root / other.folder)]) == 0
    assert f"{last['path']}  (in another root)" in capsys.readouterr().out
    assert main(["governance", "trace", str(folder / "root" / last["path"]).removesuffix("/manifest.json")]) == 0
    assert "tales/a.jsonl" in capsys.readouterr().out
    [shard] = (folder / "root").glob("ingest/*/documents/*-tales.parquet")
    assert main(["governance", "impact", str(shard), "--root", str(folder / "root"), str(root)]) == 0
    assert f"{root}: train {other.digest[:16]}" in capsys.readouterr().out
    found, _ = read_trainings([other], root)
    [start] = found[other.folder].starts
    assert (start.artifact, start.step, found[other.folder].gaps) == (str(Path(last["path"]).parent), None, ())
    missing = json.loads(newest_report(root).read_text())["energy"]["views"]["missing"]
    assert missing == [start.artifact]

    mine = read_manifest(folder / "root" / last["path"])  # keys are deterministic: the same recipe, other weights
    write_manifest(mine.model_copy(update={"stats": {**mine.stats, "loss": 0.5}}), root)
    found, _ = read_trainings([other], root)
    assert {*found} == {other.folder}
    assert (found[other.folder].starts, found[other.folder].gaps) == ((), (last["path"],))
    graph = read_graph(root)
    [parent] = [node for _, node in graph.ancestors(graph.find(other)) if node.path == last["path"]]
    assert (parent.digest, parent.gone) == (last["digest"], "in another root")


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("altered weights", "and export.statement.json states other files"),
        ("an altered statement", "no trusted key signed this content"),
        ("a torn statement", "and export.statement.json cannot be read"),
        ("another signer", "no trusted key signed this content"),
        ("no statement", "states an export of these files"),
        ({"origin": None}, "was written by another version"),
        ({"origin": {"from": "a", "why": "b", "verified": "yes"}}, "was written by another version"),
        ({"origin": {"from": "a", "verified": True}}, "was written by another version"),
        ({"path": "checkpoint/../../there/manifest.json"}, "was written by another version"),
    ],
)
def test_weights_that_no_trusted_statement_names_have_an_unknown_origin(family, tmp_path, case, words):
    folder, *_ = family
    run = elsewhere(folder, tmp_path)
    line = tmp_path / "exported" / "export.statement.json"
    envelope = json.loads(line.read_bytes())
    assert b"energy." not in base64.b64decode(envelope["payload"])  # the growing files that each journal line names
    if case == "altered weights":
        flip(tmp_path / "exported" / "model.safetensors")
    elif case == "an altered statement":
        payload = base64.b64decode(envelope["payload"]).replace(b"checkpoint/", b"checkpoinT/")
        envelope["payload"] = base64.b64encode(payload).decode()
        line.write_text(json.dumps(envelope))
    elif isinstance(case, dict):
        signed = json.loads(base64.b64decode(envelope["payload"]))
        changed = signed["predicate"]["materials"][0] if "path" in case else signed["predicate"]
        changed |= case
        line.write_text(json.dumps(sign(signed, private_key(folder / "key.pem"))))
    elif case == "a torn statement":
        line.write_bytes(line.read_bytes()[:-9])
    elif case == "another signer":
        for name in ("key.pem", "key.pem.pub"):
            (tmp_path / name).rename(tmp_path / f"their-{name}")
        create_key(tmp_path / "key.pem")
    else:
        line.unlink()
    found = origin_of(run)
    assert (found["verified"], "exports" in found) == (False, False)
    assert "no line of this root's journal.jsonl states an export of these files" in found["why"]
    assert words in found["why"]
    if case == "another signer":
        assert origin_of(run, 'governance.parent_keys=["their-key.pem.pub"]')["verified"]


def test_weights_that_the_hub_listed_are_known_and_their_bad_statement_is_named(
    family, tmp_path, serve_hub, monkeypatch
):
    from huggingface_hub import constants

    run = elsewhere(family[0], tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    (tmp_path / "exported" / "export.statement.json").write_text("{}")
    files = {path.name: path.read_bytes() for path in (tmp_path / "exported").iterdir()}
    server = serve_hub("lab/tiny", files)
    for module in ("assay.weights_origin", "pretrain.initial_weights.hub_weights"):
        monkeypatch.setattr(f"{module}.HUB", server.url)
    run.write_text(CHILD.replace('weights = "exported"', 'weights = "hf://lab/tiny"'))
    found = origin_of(run)
    assert found["verified"]
    assert found["why"].startswith(f"listed by {server.url} as hf://lab/tiny@")
    assert ", and export.statement.json: " in found["why"]


def test_the_energy_behind_unknown_weights_is_named_as_missing(family, tmp_path):
    folder, *_ = family
    elsewhere(folder, tmp_path)
    (tmp_path / "exported" / "export.statement.json").unlink()
    child = run_of(tmp_path, "child.toml", tmp_path / "root")
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
