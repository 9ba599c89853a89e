"""`assay governance takedown`: the plan against a count by hand, a replay, and everything that must know of it."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from assay.cli.main import main
from assay.config import load_run
from governance.errors import ConfigError
from governance.manifest import read_manifest
from governance.receipts.verify_receipt import faults
from governance.signing.dsse import public_key
from pretrain.config.training import TrainConfig
from tests.altered_files import flip
from tests.conftest import CONFIG, write_run, write_tales

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of twelve steps whose checkpoints of steps 4, 8 and 12 are kept; one text is too short for it."""
    folder = tmp_path_factory.mktemp("takedown")
    write_run(folder, CONFIG.replace("every_steps = 4", "every_steps = 4\nkeep_every_steps = 4"))
    shutil.copy(ROOT / "configs" / "policy.toml", folder / "policy.toml")
    write_tales(folder / "a.jsonl", range(60))
    write_tales(folder / "b.jsonl", range(60, 120))
    with (folder / "a.jsonl").open("a") as file:
        file.write(json.dumps({"text": "too short"}) + "\n")
    assert main(["run", str(folder / "run.toml"), "--root", str(folder / "root"), "--data-workers", "1"]) == 0
    return folder


@pytest.fixture
def ask(trained, capsys):
    """`ask(words)`: a command on the run, its JSON object."""

    def answer(*words, status=0, more=()):
        capsys.readouterr()
        typed = ["governance", "takedown", str(trained / "run.toml"), *words, "--root", str(trained / "root"), *more]
        assert main([*typed, "--json"]) == status
        return json.loads(capsys.readouterr().out)

    return answer


@pytest.fixture(scope="module")
def by_step(trained):
    """Documents by the first step that reads each, without a plan for each of them."""
    from data_pipeline.tokens.token_shards import document_identity
    from pretrain.data.dataset import open_rows
    from pretrain.data.sampler import sampler_of

    root = trained / "root"
    [tokens] = [read_manifest(path) for path in root.glob("encode/*/manifest.json")]
    rows = open_rows(tokens, "train", root, 64)
    order = sampler_of(rows, TrainConfig(sequence_length=64, global_batch_size=4, steps=12))
    read = {}
    for step in range(12, 0, -1):
        for identity in rows.documents_of(order.rows(step)):
            read[identity] = step
    names = [f"tales/{file}.jsonl#{number}" for file in "ab" for number in range(60)]
    found = {}
    for name in names:
        found.setdefault(read.get(document_identity(name).hex(), 0), []).append(name)
    return found


def test_the_plan_counts_what_is_affected(trained, ask, by_step, capsys):
    """Each first step by a look at every row; the clean checkpoint is the last one before it."""
    kept = {4, 8, 12}
    for step in (1, 3, 6, 9, 12):
        if step not in by_step:
            continue
        plan = ask(by_step[step][0], "--plan")
        clean = max((at for at in kept if at < step), default=0)
        assert (plan["first_step"], plan["last_step"]) == (step, 12)
        assert (plan["clean"] or {"step": 0})["step"] == clean
        assert plan["steps_to_replay"] == 12 - clean
        assert {item["step"] for item in plan["checkpoints"]} == {at for at in kept if at >= step}
        assert plan["hours"] > 0
        assert plan["usd"]["value"] is None
    everything = ask(by_step[1][0])
    part = ask(by_step[12][0])
    assert 0 < part["hours"] < everything["hours"]
    if everything["kwh"]["value"] is not None:
        assert 0 < part["kwh"]["value"] < everything["kwh"]["value"]
    priced = ask(by_step[9][0], "--cluster", "h100")
    assert 0 < priced["usd"]["low"] <= priced["usd"]["value"] <= priced["usd"]["high"]
    two = ask(by_step[9][0], by_step[12][0])
    assert len(two["documents"]) == 2
    assert two["first_step"] == 9
    assert any(child.startswith("report") for child in two["children"])
    main(["governance", "takedown", str(trained / "run.toml"), by_step[10][0], "--root", str(trained / "root")])
    example = re.search(r"```text\n(documents .*?)\n```", (ROOT / "docs" / "takedown.md").read_text(), re.DOTALL)
    shown = capsys.readouterr().out.splitlines()
    assert [line[:22] for line in example[1].splitlines() if line[0] != " "] == [
        line[:22] for line in shown if line[0] != " "
    ]


def test_contested_sources_are_read_last_and_change_no_byte_of_the_corpus(project):
    plain = load_run(project / "run.toml", [])
    text = (project / "run.toml").read_text()
    (project / "run.toml").write_text(text.replace('name = "tales"', 'name = "tales"\ncontested = true'))
    late = load_run(project / "run.toml", [])
    assert plain.config.train.late_sources == ()
    assert late.config.train.late_sources == ("tales",)
    assert late.config.data.model_dump() == plain.config.data.model_dump()
    assert "late_sources" not in plain.config.train.model_dump()
    with pytest.raises(ConfigError, match=r"contested = true of tales does so, too"):
        load_run(project / "run.toml", ["train.mixture=[{from_step = 1, weights = {tales = 1}}]"])
    with pytest.raises(ValueError, match="both order the rows"):
        TrainConfig.model_validate({"sequence_length": 8, "global_batch_size": 1, "steps": 1, "late_sources": ["a"],
                                    "mixture": [{"from_step": 1, "weights": {"a": 1}}]})  # fmt: skip


def test_wrong_requests_are_refused_in_words(trained, ask, by_step, tmp_path, monkeypatch):
    removed = ask("tales/a.jsonl#60", status=78)["error"]["message"]
    assert "trains on none of these documents" in removed
    assert "removed by clean for too_few_words" in removed
    unknown = ask("tales/aa.jsonl#1", status=66)["error"]["message"]
    assert "'tales/aa.jsonl#1': no document, URL or shard of that name" in unknown
    assert "the nearest is tales/a.jsonl#1" in unknown
    partly = ask("tales/a.jsonl#60", by_step[9][0])
    assert len(partly["documents"]) == 1
    assert partly["fates"][0].startswith("tales/a.jsonl#60: removed by clean")
    if 0 in by_step:  # in the corpus, and its turn never came; or held out
        never = ask(by_step[0][0])
        assert (never["first_step"], never["steps_to_replay"], never["clean"]) == (0, 0, None)
        assert "there is nothing to replay" in ask(by_step[0][0], "--execute", status=78)["error"]["message"]
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    elsewhere = tmp_path / "cut"
    shutil.copytree(trained, elsewhere)
    words = ["governance", "takedown", str(elsewhere / "run.toml"), by_step[9][0], "--root", str(elsewhere / "root")]
    assert main(words) == 0  # whose end is known from now on
    lines = (elsewhere / "root" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (elsewhere / "root" / "journal.jsonl").write_bytes(b"".join(lines[:-2]))
    assert main(words) == 77
    (elsewhere / "root" / "journal.jsonl").write_bytes(b"".join([*lines[:3], *lines[4:]]))
    assert main(words) == 65


def test_a_run_that_continues_another_goes_back_into_it(trained, by_step, tmp_path, capsys, monkeypatch):
    """The clean checkpoint of step 4 is the parent's; without one the replay begins at step 1, of both."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # two roots grow from one journal
    shutil.copytree(trained, tmp_path / "copy")
    root = tmp_path / "copy" / "root"
    made = {(one := read_manifest(path)).config["step"]: one for path in root.glob("checkpoint/*/manifest.json")}
    words = [str(tmp_path / "copy" / "run.toml"), "--root", str(root), "--set", "train.steps=14"]
    words += ["--set", f"train.continue_from='{made[4].folder}'"]
    assert main(["train", *words]) == 0

    def answer(name, *more):
        capsys.readouterr()
        assert main(["governance", "takedown", words[0], name, *words[1:], *more, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    plan = answer(by_step[6][0])
    assert (plan["clean"], plan["steps_to_replay"]) == ({"path": made[4].path, "step": 4}, 10)
    early = answer(by_step[3][0], "--execute")
    assert (early["clean"], early["steps_to_replay"], early["replay"]["clean"]) == (None, 14, None)
    assert early["replay"]["recomputed"] == {"steps": 2, "equal": 2}
    assert 'continue_from = ""' in Path(early["settings"]).read_text()
    # The report's line has the settings of the run, without those that the replay's file sets.
    assert early["next"] == f"assay report {words[0]} {early['settings']} --root {root} --set train.steps=14"
    assert main(shlex.split(early["next"])[1:]) == 0


def test_a_replay_is_certified_and_known_everywhere(trained, ask, by_step, tmp_path, capsys):
    root, run, name = trained / "root", str(trained / "run.toml"), by_step[10][0]
    old = read_manifest(next(root.glob("train/*/manifest.json")))
    last = root / old.stats["checkpoint"]["path"]
    written = ask(name, "--settings")  # for a job, whose training the last command would find and sign
    assert written["next"] == f"assay slurm submit {run} {written['settings']} --root {root}"
    made = ask(name, "--execute")
    assert made["settings"] == written["settings"]
    facts, settings = made["replay"], made["settings"]
    assert facts["clean"]["step"] == 8
    assert (facts["first_step"], facts["steps"]) == (10, 12)
    assert facts["recomputed"] == {"steps": 1, "equal": 1}
    new = read_manifest(root / facts["replayed"]["path"])
    assert new.stats["steps"] == 12
    assert new.stats["losses_sha256"] != old.stats["losses_sha256"]
    assert ask(name, "--execute")["replay"] == facts  # found, stated once
    lines = [json.loads(line)["kind"] for line in (root / "journal.jsonl").read_bytes().splitlines()]
    assert lines.count("replay") == 1
    example = re.search(r"```text\n(replayed: .*?)\n```", (ROOT / "docs" / "takedown.md").read_text(), re.DOTALL)
    main(["governance", "takedown", run, name, "--root", str(root), "--execute"])
    shown = capsys.readouterr().out
    pattern = re.sub(r"[0-9a-f]*\\?\d[0-9a-f]*", "[0-9a-f]+", re.escape(example[1].strip()))
    assert re.search(pattern, shown), shown
    # What knows of it: receipts of both checkpoints, impact, trace, verification, report and model card.
    for number, (checkpoint, answer) in enumerate(
        [(last.parent, "used"), (root / facts["checkpoint"]["path"], "not used")]
    ):
        file = tmp_path / f"{number}.json"
        folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
        words = ["governance", "prove", name, "--checkpoint", str(folder), "--receipt", str(file)]
        assert main([*words, "--signing-key", str(trained / "key.pem")]) == 0
        receipt = json.loads(file.read_bytes())
        assert faults(receipt, public_key(trained / "key.pem.pub"), name, (root / "journal.jsonl").read_bytes()) == []
        assert receipt["statement"]["answer"] == answer
        assert receipt["statement"]["removed"].startswith(f"takedown: {Path(facts['replayed']['path']).parent} repeats")
    capsys.readouterr()
    assert main(["governance", "impact", name, "--root", str(root), "--json"]) == 0
    exposed = {
        item["checkpoint"]["digest"]: item["times"] for item in json.loads(capsys.readouterr().out)["checkpoints"]
    }
    assert exposed[facts["checkpoint"]["digest"]] == 0 < exposed[read_manifest(last).digest]
    assert main(["governance", "trace", str((root / facts["replayed"]["path"]).parent)]) == 0
    assert "(without 1 document(s), by takedown)" in capsys.readouterr().out
    keys = ["--key", str(trained / "key.pem.pub")]
    assert main(["governance", "verify", str(root), "--deep", *keys]) == 0
    assert main(["report", run, "--with", settings, "--root", str(root), "--documents"]) == 0
    [card] = [path for path in root.rglob("model_card.md")]
    assert "| documents removed by takedown | 1, by a replay" in card.read_text()
    assert (
        "Removed by takedown"
        in max(root.glob("report/*/report.html"), key=lambda path: path.stat().st_mtime).read_text()
    )
    assert main(["report", run, "--root", str(root), "--documents"]) == 0
    [card] = [path for path in root.rglob("model_card.md") if path != card]  # of the training that read the document
    assert f"| repeated without documents that were taken down, as | {new.folder} |" in card.read_text()
    assert main(["governance", "verify", str(root), "--deep", *keys]) == 0
    # A second request, on the replay itself.
    second = ask(by_step[12][0], "--execute", more=("--with", settings))
    again = read_manifest(root / second["replay"]["replayed"]["path"])
    assert len(again.config["train"]["removed_documents"]) == 2
    assert second["replay"]["training"] == new.folder
    assert "names them already" in ask(name, more=("--with", settings), status=78)["error"]["message"]
    # A falsified replay is named.
    weights = next((root / facts["checkpoint"]["path"]).parent.glob("weights/*"))
    flip(weights, -1)
    assert main(["governance", "verify", str(root), "--deep", *keys]) == 65
