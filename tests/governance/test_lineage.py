"""The graph as lines, as a picture and as PROV; model signatures that the stock tool accepts."""

import json
import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest

from assay.cli.main import main
from governance.gate.verdict import GovernanceConfig, Keyring
from governance.lineage.attest import open_journal
from governance.lineage.lineage_graph import prov_document, read_graph
from governance.lineage.svg import draw
from governance.manifest import FILE_NAME, Input, Manifest, Output, differences, read_manifest
from governance.signing.dsse import create_key, public_path
from governance.signing.journal_lines import FILE_NAME as JOURNAL
from governance.signing.openssf import create_model_key
from tests.altered_files import flip

CONFIG = GovernanceConfig(signing_key="key.pem")
SVG = "{http://www.w3.org/2000/svg}"


def state(journal, stage, inputs, **fields):
    made = Manifest(stage=stage, version=1, key=(stage[0] * 64), config={}, inputs=tuple(inputs), outputs=(),
                    stats=fields, run={})  # fmt: skip
    journal.state_artifact(made)
    return made


@pytest.fixture
def wide(tmp_path):
    """A journal of many sources and of long ways past each other."""
    create_key(tmp_path / "key.pem")
    journal = open_journal(Keyring(CONFIG, tmp_path), tmp_path)
    files = [Input(stage="file", digest=f"{n:064x}", path=f"web/part-{n:03d}.warc.gz") for n in range(40)]
    files += [Input(stage="file", digest=f"{n:063x}f", path=f"books/<{n}>.txt") for n in range(2)]
    ingest = state(journal, "ingest", files)
    lists = state(journal, "lists", [Input(stage="file", digest="d" * 64, path="blocked/domains.txt")])
    clean = state(journal, "clean", [ingest.as_input(), lists.as_input()])
    dedup = state(journal, "dedup", [clean.as_input()])
    redact = state(journal, "redact", [dedup.as_input()])
    tokenizer = state(journal, "tokenizer", [redact.as_input()])
    mix = state(journal, "mix", [redact.as_input()])
    encode = state(journal, "encode", [redact.as_input(), tokenizer.as_input(), mix.as_input()])
    audit = state(journal, "audit", [item.as_input() for item in (ingest, clean, dedup, redact, encode)])
    journal.state("verdict", {"verdicts/v.json": "7" * 64}, [encode.as_input(), audit.as_input()], verdict="PASS")
    pack = state(journal, "pack", [encode.as_input()])
    train = state(journal, "train", [pack.as_input()])
    graph = read_graph(tmp_path)
    return graph, graph.nodes[train.path, train.digest]


def boxes_of(root):
    rects = [rect for group in root.iter(f"{SVG}g") for rect in group.findall(f"{SVG}rect")[:1]]
    return [tuple(float(rect.get(name)) for name in ("x", "y", "width", "height")) for rect in rects]


def test_the_picture_is_whole_and_no_box_or_line_covers_another(wide):
    graph, train = wide
    text = draw(graph, train)
    root = ElementTree.fromstring(text)
    titles = [group.find(f"{SVG}title").text for group in root.iter(f"{SVG}g") if group.find(f"{SVG}title") is not None]
    assert sum(title.startswith("40 files web") for title in titles) == 1
    assert sum("books/<" in title for title in titles) == 2
    stages = {title.split()[0] for title in titles}
    assert {"ingest", "lists", "clean", "encode", "audit", "verdict", "pack", "train"} <= stages
    boxes = boxes_of(root)
    assert len(boxes) == len(titles) == 16
    for (x, y, width, height), (x2, y2, width2, height2) in combinations(boxes, 2):
        assert x + width <= x2 or x2 + width2 <= x or y + height <= y2 or y2 + height2 <= y
    left, _, width, height = map(float, root.get("viewBox").split())
    assert all(left <= x and x + w <= left + width and y + h <= height for x, y, w, h in boxes)
    for path in root.iter(f"{SVG}path"):  # lines pass a layer straight down, beside its boxes
        for x, top, bottom in re.findall(r"([\d.-]+) (\d+) V(\d+)", path.get("d")):
            for bx, by, bw, _ in boxes:
                assert not (bx < float(x) < bx + bw and float(top) <= by <= float(bottom))


def test_prov_reads_the_document_back_with_every_relation(wide, tmp_path):
    prov = pytest.importorskip("prov.model", reason="the dev extra is not installed")
    graph, train = wide
    nodes = [train, *(node for _, node in graph.ancestors(train))]
    document = prov_document(graph, nodes)
    read = prov.ProvDocument.deserialize(content=json.dumps(document))
    records = {kind: len(list(read.get_records(getattr(prov, kind)))) for kind in
               ("ProvEntity", "ProvActivity", "ProvUsage", "ProvGeneration", "ProvDerivation")}  # fmt: skip
    made = [node for node in nodes if node.stage != "file"]
    edges = sum(len(graph.parents.get(node.key, ())) for node in made)
    assert records == {"ProvEntity": len(nodes), "ProvActivity": len(made), "ProvUsage": edges,
                       "ProvGeneration": len(made), "ProvDerivation": edges}  # fmt: skip
    assert prov.ProvDocument.deserialize(content=read.serialize()) == read


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run with model signing switched on."""
    from tests.conftest import CONFIG as RUN
    from tests.conftest import write_run, write_tales

    folder = tmp_path_factory.mktemp("signed")
    signing = '[governance]\nmodel_signing = true\nmodel_key = "model.pem"'
    write_run(folder, RUN.replace("[governance]", signing))
    create_model_key(folder / "model.pem")
    shutil.copy(Path(__file__).parents[2] / "configs" / "policy.toml", folder / "policy.toml")
    write_tales(folder / "a.jsonl", range(60))
    write_tales(folder / "b.jsonl", range(60, 120))
    words = [str(folder / "run.toml"), "--root", str(folder / "root"), "--data-workers", "1"]
    assert main(["run", *words]) == 0
    return folder


def stock(folder, key):
    """The stock tool's exit status and output."""
    pytest.importorskip("model_signing", reason="the dev extra is not installed")
    words = ["verify", "key", str(folder), "--signature", str(folder / "model.sig"), "--public_key", str(key)]
    done = subprocess.run([sys.executable, "-m", "model_signing", *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(("setting", "key"), [("model_key", "model.pem"), ("signing_key", "key.pem")])
def test_a_mistyped_key_is_refused_before_a_step(finished, capsys, setting, key):
    words = ["train", str(finished / "run.toml"), "--root", str(finished / "root"), "--set"]
    assert main([*words, f'governance.{setting}="{key}x"']) == 78
    assert f"{finished / key}x: no such file. Did you mean {finished / key}?" in capsys.readouterr().err
    assert not (finished / f"{key}x").exists()


def test_the_stock_tool_verifies_each_checkpoint_and_finds_what_was_altered(finished, tmp_path):
    checkpoints = sorted((finished / "root" / "checkpoint").glob("*"))
    assert len(checkpoints) >= 2
    for folder in checkpoints:
        status, output = stock(folder, finished / "model.pem.pub")
        assert (status, "Verification succeeded" in output) == (0, True), output
    copy = tmp_path / checkpoints[0].name
    shutil.copytree(checkpoints[0], copy)
    weights = next(copy.rglob("*.safetensors"))
    flip(weights, -1)
    assert stock(copy, finished / "model.pem.pub")[0] != 0
    create_model_key(tmp_path / "other.pem")
    assert stock(checkpoints[0], public_path(tmp_path / "other.pem"))[0] != 0


def test_a_checkpoint_can_be_signed_by_hand_and_again_by_another_key(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "copy")
    root = tmp_path / "copy" / "root"
    folder = sorted(root.glob("checkpoint/*"))[-1]
    create_model_key(tmp_path / "other.pem")
    create_key(tmp_path / "stranger.pem")
    journal = (root / JOURNAL).read_bytes()
    for key in ("stranger.pem", "missing.pem"):
        strange = ["--key", str(tmp_path / "other.pem"), "--signing-key", str(tmp_path / key)]
        assert main(["governance", "sign", str(folder), *strange]) == 78
        assert re.search("Give the key that the run signs with: .*--signing-key PATH", capsys.readouterr().err)
    none = ["--key", str(tmp_path / "othre.pem"), "--signing-key", str(tmp_path / "copy" / "key.pem")]
    assert main(["governance", "sign", str(folder), *none]) == 78
    assert "othre.pem: no such file. Did you mean" in capsys.readouterr().err
    assert not (tmp_path / "othre.pem").exists()
    assert (root / JOURNAL).read_bytes() == journal
    words = ["--key", str(tmp_path / "other.pem"), "--signing-key", str(tmp_path / "copy" / "key.pem")]
    assert main(["governance", "sign", str(folder), *words]) == 0
    assert "model_signing verify key" in capsys.readouterr().out
    assert stock(folder, public_path(tmp_path / "other.pem"))[0] == 0
    verify = ["governance", "verify", str(root), "--deep", "--key", str(tmp_path / "copy" / "key.pem.pub")]
    assert main(verify) == 0
    (folder / "model.sig").write_bytes((folder / "model.sig").read_bytes().replace(b'"keyid": ""', b'"keyid": "k"'))
    assert main(verify) == 65
    assert f"{folder.relative_to(root)}/model.sig" in capsys.readouterr().out
    [train] = root.glob("train/*")
    assert main(["governance", "sign", str(train), *words]) == 65  # no checkpoint


def test_trace_shows_the_verdict_and_what_was_removed_since(finished, tmp_path, capsys):
    root = finished / "root"
    [train] = root.glob("train/*")
    words = ["--svg", str(tmp_path / "t.svg"), "--prov", str(tmp_path / "t.json")]
    assert main(["governance", "trace", str(train), *words]) == 0
    output = capsys.readouterr().out
    for stage in ("encode", "redact", "ingest", "tokenizer", "checkpoint", "verdict", "audit", "file"):
        assert f" {stage} " in output
    assert ElementTree.parse(tmp_path / "t.svg").getroot().tag == f"{SVG}svg"
    assert json.loads((tmp_path / "t.json").read_bytes())["entity"]
    shutil.copytree(root, tmp_path / "root")
    shutil.rmtree(next((tmp_path / "root").glob("clean/*/manifest.json")).parent)
    [train] = (tmp_path / "root").glob("train/*")
    assert main(["governance", "trace", str(train)]) == 0
    output = capsys.readouterr().out
    assert "removed since" in output
    assert "file " in output  # the journal still knows the way
    (tmp_path / "root" / JOURNAL).unlink()
    assert main(["governance", "trace", str(train)]) == 0
    output = capsys.readouterr().out
    assert "removed since" in output
    assert "in another root" not in output  # nothing tells the two apart


def test_found_adds_nothing_and_a_head_is_in_the_run(finished):
    journal = finished / "root" / "journal.jsonl"
    before = journal.read_bytes()
    words = [str(finished / "run.toml"), "--root", str(finished / "root"), "--data-workers", "1"]
    assert main(["run", *words]) == 0
    assert journal.read_bytes() == before
    lines = [json.loads(line) for line in before.splitlines()]
    [train] = (finished / "root" / "train").glob("*")
    number, _, _ = read_manifest(train / FILE_NAME).run["journal"].partition(":")
    assert lines[int(number)]["kind"] == "model-signature"  # of the last checkpoint
    kinds = [line["kind"] for line in lines]
    assert kinds.count("checkpoint") == kinds.count("model-signature") == 3
    assert kinds.count("verdict") == kinds.count("train") == kinds.count("report") == 1


def test_a_difference_is_reported_in_words():
    def made(config, outputs, **fields):
        return Manifest(stage="s", version=1, key="0" * 64, config=config, inputs=(), stats={}, run={},
                        outputs=[Output(path=f"s/{'0' * 16}/{name}", bytes=size, sha256=digest * 64)
                                 for name, size, digest in outputs], **fields)  # fmt: skip

    ours = made({"least": 5, "old": True}, [("kept/0", 10, "a"), ("kept/1", 20, "b"), ("kept/2", 5, "c")])
    theirs = made({"least": 6, "new": None}, [("kept/0", 10, "a"), ("kept/1", 21, "d"), ("kept/3", 5, "c")])
    assert differences(ours, ours) == []
    assert differences(ours, theirs) == [
        "config.least: 5 against 6",
        "config.new: only in the second, None",
        "config.old: only in the first, True",
        "outputs: kept/1 differs, 20 bytes against 21",
        "outputs: kept/2 is only in the first",
        "outputs: kept/3 is only in the second",
        "outputs: 1 file(s) are the same",
    ]
