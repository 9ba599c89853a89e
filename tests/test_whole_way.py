"""The whole way on a small corpus, as a user types it, its documents, and what a fault or an alteration does."""

import base64
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import safe_open

from assay.cli.main import main
from assay.config import load_run
from assay.pipeline import corpus
from assay.training_recipe import training_folder
from governance.manifest import describe, read_manifest, write_manifest
from governance.stage import Runtime
from tests.altered_files import flip
from tests.conftest import write_project
from tests.governance.upload_server import TOKEN, running_hub
from tests.signal_hook import hooked
from tests.test_wrong_runs import run


def assay(*words, cwd=None, timeout=1200):
    """Run the command in a separate process."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "RANK": ""}
    environment.pop("RANK")
    return subprocess.run(
        [sys.executable, "-m", "pretrain", *map(str, words)],
        capture_output=True, text=True, timeout=timeout, env=environment, check=False, cwd=cwd,
    )  # fmt: skip


def digests(root):
    """Stage -> digest of its finished artifact."""
    stages = ("ingest", "clean", "dedup", "redact", "tokenizer", "encode", "audit", "train")
    return {
        stage: read_manifest(path).digest for stage in stages for path in sorted(root.glob(f"{stage}/*/manifest.json"))
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished project, made once for this file; tests copy it before they change it."""
    folder = write_project(tmp_path_factory.mktemp("finished") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder.parent))  # no other meter of this machine holds the lock
        assert main(["run", str(folder / "run.toml"), "--root", str(folder / "root"), "--data-workers", "2"]) == 0
    return folder


@pytest.fixture
def project_copy(finished, tmp_path):
    """The finished project in a separate folder: a moved root."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def test_the_loss_falls_and_the_report_exists(finished):
    [train] = (finished / "root" / "train").glob("*/losses.json")
    losses = json.loads(train.read_bytes())["losses"]
    assert sum(losses[-3:]) / 3 < sum(losses[:3]) / 3
    [report] = (finished / "root" / "report").glob("*/report.html")
    text = report.read_text()
    assert "PASS" in text
    assert not re.search(r"""(src|href)\s*=\s*["']?https?:""", text)


def test_again_it_makes_nothing(project_copy):
    before = {path: path.stat().st_mtime_ns for path in (project_copy / "root").rglob("*") if path.is_file()}
    assert run(project_copy) == 0
    after = {path: path.stat().st_mtime_ns for path in (project_copy / "root").rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed <= {"digests.json"}


@pytest.mark.slow
def test_a_report_verifies_after_a_clean_up_of_another_corpus(project_copy):
    root, run_file = project_copy / "root", project_copy / "run.toml"
    words = [str(run_file), "--root", str(root)]
    made = {path.parent for path in root.glob("*/*/manifest.json")}
    assert main(["data", "prepare", *words, "--set", "data.clean.min_words=1"]) == 0
    assert len({path.parent for path in root.glob("*/*/manifest.json")}) > len(made)
    assert main(["data", "clean-up", *words, "--execute"]) == 0
    assert {path.parent for path in root.glob("*/*/manifest.json")} == made
    for verify in (["report", "verify"], ["governance", "verify", "--deep"]):
        assert main([*verify, str(root), "--key", str(project_copy / "key.pem.pub")]) == 0


def test_an_altered_ledger_is_found_and_no_report_is_written_on_it(project_copy, capsys):
    root, run = project_copy / "root", project_copy / "run.toml"
    of_root = [str(root), "--key", str(project_copy / "key.pem.pub")]
    assert main(["report", "verify", *of_root]) == 0
    text = (root / "energy.jsonl").read_text()
    (root / "energy.jsonl").write_text(re.sub(r'("millijoules"|"low"|"high"):(\d+)', r"\1:1", text))
    for words in (["report", "verify"], ["governance", "verify", "--deep"]):
        capsys.readouterr()
        assert main([*words, *of_root]) == 65
        output = [line for line in capsys.readouterr().out.splitlines() if line.startswith("energy.jsonl: ")]
        assert any("is not as journal.jsonl line" in line for line in output), output
        assert any(re.search(r"for train/\w+, its manifest states [\d.]+ J", line) for line in output), output
    shutil.rmtree(root / "report")
    assert main(["report", "write", str(run), "--root", str(root)]) == 65
    assert "energy.jsonl" in capsys.readouterr().err
    assert not list(root.glob("report/*/report.html"))


def test_a_training_made_again_is_no_alteration_and_an_altered_record_is_one(project_copy, capsys):
    root, run = project_copy / "root", project_copy / "run.toml"
    verify = ["governance", "verify", "--deep", str(root), "--key", str(project_copy / "key.pem.pub")]

    def trained():
        assert main(["train", str(run), "--root", str(root)]) == 0
        return capsys.readouterr().err

    for made in ("train", "checkpoint", "report"):
        shutil.rmtree(root / made)
    assert "does not continue" not in trained()
    assert main(verify) == 0
    output = capsys.readouterr().out
    assert re.search(r"metrics\.jsonl: was begun anew, as journal\.jsonl line \d+ states", output), output
    [record] = root.glob("train/*/metrics.jsonl")
    record.with_name("manifest.json").unlink()  # as if killed before its end
    record.write_text(record.read_text().replace('"attempt": 1', '"attempt": 3', 1))
    assert "does not continue" in trained()
    assert main(verify) == 65
    assert f"{record.relative_to(root)}: does not continue" in capsys.readouterr().out


def test_random_edits_of_every_file_of_a_root_are_found_and_named(project_copy):
    from benchmarks.measures.governance.governance_edits import check, edits

    root = project_copy / "root"
    assert check(root)[1:] == ([], [])
    assert edits(root, 25, seed=7).missed == []
    assert check(root)[1:] == ([], [])


def test_a_licence_that_leaves_the_policy_closes_the_gate(project_copy, capsys):
    policy = project_copy / "policy.toml"
    policy.write_text(policy.read_text().replace('  "CC0-1.0",\n', ""))
    assert run(project_copy) == 77
    output = capsys.readouterr().err
    assert "licences.allowed" in output
    assert "Decision: legal" in output
    assert "Traceback" not in output
    assert main(["train", str(project_copy / "run.toml"), "--root", str(project_copy / "root")]) == 77
    reports = sorted((project_copy / "root" / "report").glob("*/report.html"), key=lambda path: path.stat().st_mtime)
    assert "BLOCK" in reports[-1].read_text()


def test_an_altered_token_shard_is_never_trained_on(project_copy, capsys):
    root = project_copy / "root"
    shutil.rmtree(root / "train")
    shutil.rmtree(root / "checkpoint")
    [shard, *_] = sorted(root.glob("encode/*/train/*.tokens"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert main(["train", str(project_copy / "run.toml"), "--root", str(root)]) == 65
    assert shard.name in capsys.readouterr().err
    assert not list(root.glob("checkpoint/*"))


def test_a_checkpoint_that_the_journal_never_stated_is_not_resumed(project_copy, capsys):
    """Other weights, listed and sealed as anyone can; the training was killed before its end."""
    root, words = project_copy / "root", [str(project_copy / "run.toml"), "--root", str(project_copy / "root")]
    next(root.glob("train/*/manifest.json")).unlink()
    for path in root.glob("checkpoint/*/manifest.json"):
        made = read_manifest(path)
        weights = next(root / output.path for output in made.outputs if "weights" in output.path)
        flip(weights, -1)
        outputs = tuple(describe(root / output.path, root) for output in made.outputs)
        write_manifest(made.model_copy(update={"outputs": outputs}), root)
    for command, *more in (["train"], ["evaluate", path.parent], ["export", path.parent, project_copy / "exported"]):
        assert main([command, *words, *map(str, more)]) == 77
        errors = capsys.readouterr().err
        assert "has no statement of these artifacts as they are" in errors
        assert f"\n  {path.relative_to(root).as_posix()}\n" in errors
    assert not list(root.glob("train/*/manifest.json"))
    outside = project_copy / "outside" / "checkpoint"
    outside.mkdir(parents=True)
    path.parent.symlink_to(shutil.move(path.parent, outside))
    assert main(["evaluate", *words, str(path.parent)]) == 77


def test_a_checkpoint_of_another_training_stops_only_what_continues_from_it(project_copy, capsys):
    root, words = project_copy / "root", [str(project_copy / "run.toml"), "--root", str(project_copy / "root")]
    [path, *_] = sorted(root.glob("checkpoint/*/manifest.json"))
    made = read_manifest(path)
    odd = made.model_copy(update={"key": "0" * 64, "config": {**made.config, "train_key": "0" * 64}})
    (root / odd.folder).mkdir()
    write_manifest(odd, root)
    assert main(["train", *words]) == 0
    capsys.readouterr()
    assert main(["train", *words, "--set", f"train.continue_from='{odd.folder}'"]) == 77
    assert f"\n  {odd.path}\n" in capsys.readouterr().err


def test_trace_reaches_the_source_files_and_diff_speaks(project_copy, capsys):
    root = project_copy / "root"
    [train] = root.glob("train/*")
    assert main(["governance", "trace", str(train)]) == 0
    output = capsys.readouterr().out
    assert "file " in output
    assert "tales/a.jsonl" in output
    [clean], [dedup] = root.glob("clean/*/manifest.json"), root.glob("dedup/*/manifest.json")
    assert main(["governance", "diff", str(clean), str(clean)]) == 0
    assert main(["governance", "diff", str(clean), str(dedup)]) == 1
    output = capsys.readouterr().out
    assert "stage: 'clean' against 'dedup'" in output
    assert output.count("no signature was verified") == 2


def test_evaluate_and_export(project_copy, capsys, monkeypatch):
    from huggingface_hub import constants

    root = project_copy / "root"
    config = [str(project_copy / "run.toml"), "--root", str(root)]
    newest = max(root.glob("checkpoint/*/manifest.json"), key=lambda p: json.loads(p.read_bytes())["config"]["step"])
    assert main(["evaluate", *config, str(newest.parent)]) == 0
    assert "bits/byte" in capsys.readouterr().out
    (project_copy / "asked").mkdir()  # next to the sources it would be a source
    (project_copy / "asked" / "pairs.jsonl").write_text('{"good": "The cat sat.", "bad": "Cat the sat."}\n' * 3)
    task = 'evaluation.tasks=[{name = "order", format = "pairs", path = "asked/pairs.jsonl"}]'
    assert main(["evaluate", *config, str(newest.parent), "--json", "--set", task]) == 0
    output = json.loads(capsys.readouterr().out)
    assert sum(row["tokens"] for row in output["by_source"].values()) == output["tokens"] > 0
    assert output["tasks"][0]["questions"] == 3
    assert main(["train", *config, "--set", task]) == 0
    run = load_run(project_copy / "run.toml", [task])
    looked = Runtime(root, make=False)
    trained = training_folder(run, corpus(run, looked), looked)  # where a launcher looks for progress
    assert (trained / "manifest.json").exists()
    target = project_copy / "exported"
    with running_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert main(["export", *config, str(newest.parent), str(target), "--push", "tiny"]) == 78
        assert not target.exists()
        hub.files["model-00001-of-00009.safetensors"] = b"of an earlier export"
        assert main(["export", *config, str(newest.parent), str(target), "--push", "lab/tiny"]) == 0
    assert hub.files == {path.name: path.read_bytes() for path in target.iterdir()}
    lines = [json.loads(line) for line in (root / "journal.jsonl").read_text().splitlines()]
    stated = [base64.b64decode(line["envelope"]["payload"]).decode() for line in lines]
    assert any("hub/lab/tiny/model.safetensors" in text and "/lab/tiny/commit/" in text for text in stated)
    with safe_open(target / "model.safetensors", framework="pt") as file:
        assert "model.layers.1.self_attn.q_proj.weight" in set(file.keys())
    assert json.loads((target / "config.json").read_bytes())["model_type"] == "llama"
    assert (target / "tokenizer.json").exists()
    assert json.loads(newest.read_bytes())["config"]["train_key"] in (target / "README.md").read_text()
    assert main(["export", *config, str(newest.parent), str(target)]) == 78
    weights = next(newest.parent.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-3])
    assert main(["evaluate", *config, str(newest.parent)]) == 65


def test_generate_continues_prompts_and_records_its_energy(project_copy, capsys, tmp_path):
    root = project_copy / "root"
    config = [str(project_copy / "run.toml"), "--root", str(root)]
    words = ["generate", *config, "last"]
    assert main([*words, "The cat sat", "--max-tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("The cat sat")
    (prompts := tmp_path / "prompts.jsonl").write_text('{"prompt": "One\\ntwo"}\n\n{"prompt": "A dog"}\n')
    drawn = ["--temperature", "0.7", "--top-p", "0.9", "--seed", "3", "--max-tokens", "6", "--json"]
    found = []
    for more in ("--set=engine.micro_batch_size=1", "--set=engine.micro_batch_size=4", "--stop=e"):
        assert main([*words, "The cat", *drawn, "--prompts", str(prompts), more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert [row["prompt"] for row in found[0]["generations"]] == ["The cat", "One\ntwo", "A dog"]
    assert found[0]["generations"] == found[1]["generations"]
    assert all(row["tokens"] == 6 or row["finish"] != "length" for row in found[0]["generations"])
    made = sum(row["tokens"] for row in found[0]["generations"])
    assert (found[0]["sampling"]["top_p"], found[0]["tokens"]) == (0.9, made)
    whole, stopped = ([row["text"] for row in one["generations"]] for one in found[1:])
    assert stopped == [text.partition("e")[0] for text in whole] != whole
    lines = [json.loads(line) for line in (root / "energy.jsonl").read_text().splitlines()]
    ends = [line["outcome"] for line in lines if (line.get("stage"), line["kind"]) == ("generate", "end")]
    assert ends == ["surviving"] * 4
    for more, status, message in (
        (["x", "--temperature", "-1"], 78, "temperature = -1.0"), (["x", "--top-p", "0"], 78, "top_p = 0.0"),
        ([""], 1, "prompt 1: is empty"), (["fine", "word " * 90], 1, "prompt 2: has"), ([], 78, "no prompt: give"),
    ):  # fmt: skip
        assert main([*words, *more]) == status, more
        assert message in capsys.readouterr().err
    (weights := next(root.glob("checkpoint/*/weights/*.safetensors"))).write_bytes(b"torn")
    assert main(["generate", *config, str(weights.parents[1]), "x"]) == 65


def test_interpret_shows_texts_and_heads_and_leaves_evidence(project_copy, capsys, tmp_path):
    root, page = project_copy / "root", tmp_path / "page.html"
    words = ["interpret", str(project_copy / "run.toml"), "--root", str(root), "last"]
    assert main([*words, "The cat <b>sat</b>", "--html", str(page), "--prune-heads", "--rows", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    [text] = found["texts"]
    assert "".join(token["text"] for token in text["tokens"]) == text["text"] == "The cat <b>sat</b>"
    assert len(text["heads"]) == 4
    for layer in text["patterns"]:
        assert all(len(row) == place + 1 for head in layer for place, row in enumerate(head))
    assert text["attribution"]["completeness_error"] <= 1e-3
    assert [row["removed"] for row in found["head_pruning"]["rows"]] == [0, 1, 2, 3, 4]
    assert found["energy"]["method"]
    assert "<b>sat" not in page.read_text()
    assert main([*words, "The cat", "A dog"]) == 0
    assert "text 2: " in capsys.readouterr().out
    assert main(["governance", "verify", "--deep", str(root), "--key", str(project_copy / "key.pem.pub")]) == 0
    lines = [json.loads(line) for line in (root / "energy.jsonl").read_text().splitlines()]
    ends = [line["outcome"] for line in lines if (line.get("stage"), line["kind"]) == ("interpret", "end")]
    assert ends == ["surviving"] * 2
    stated = [json.loads(line)["envelope"]["payload"] for line in (root / "journal.jsonl").read_text().splitlines()]
    assert sum("interpretation/page.html" in base64.b64decode(one).decode() for one in stated) == 1
    capsys.readouterr()
    for more, status, message in (
        ([""], 78, "text 1: is empty"), (["fine", "word " * 90], 1, "text 2: has"), ([], 78, "no text: give"),
        (["\ud800"], 78, "text 1: is not UTF-8"), (["--prune-heads", "--rows", "1"], 1, "needs 2 validation rows"),
        (["x", "--rows", "4"], 78, "--rows requires --prune-heads"),
    ):  # fmt: skip
        assert main([*words, *more]) == status, more
        assert message in capsys.readouterr().err
    shard = next(root.glob("encode/*/validation/*.tokens"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert main([*words, "fine"]) == 0  # reads no shard
    assert main([*words, "--prune-heads"]) == 77


_STAGES = ("ingest", "clean", "dedup", "redact", "tokenizer", "encode", "audit", "train", "report")


@pytest.mark.slow
def test_kill_in_each_stage_then_the_same_command_ends_the_same(finished, tmp_path):
    reference = digests(finished / "root")
    losses = next((finished / "root" / "train").glob("*/losses.json")).read_bytes()
    project = tmp_path / "killed"
    shutil.copytree(finished, project, ignore=shutil.ignore_patterns("root"))
    words = [sys.executable, "-m", "pretrain", "run", str(project / "run.toml"), "--root", str(project / "root")]
    words += ["--data-workers", "1"]  # each start would begin two workers anew
    chance = random.Random(3)
    left = list(_STAGES)
    while True:  # each start is killed at the next stage that no start was killed at yet; the last one ends by itself
        settings = {"TEST_KILL_AT": " ".join(left), "TEST_KILL_AFTER": str(chance.uniform(0, 0.3))}
        child = subprocess.run(words, capture_output=True, text=True, env=hooked(tmp_path, **settings), check=False)
        if child.returncode == 0:
            break
        assert child.returncode == -signal.SIGKILL, child.stderr
        begun = [stage for stage in left if re.search(rf"\b{stage}( \(\d+ of \d+\))?: making", child.stderr)]
        left.remove(begun[0] if begun else "train")
    assert len(left) <= 5  # a start may reach the next stages before it is killed: then none is killed at them
    assert digests(project / "root") == reference
    assert next((project / "root" / "train").glob("*/losses.json")).read_bytes() == losses
    assert main(["governance", "verify", str(project / "root"), "--deep", "--key", str(project / "key.pem.pub")]) == 0


def untrained(project):
    """The project, without what its training made."""
    for made in ("train", "checkpoint"):
        shutil.rmtree(project / "root" / made)
    return project


@pytest.mark.slow
def test_sigterm_in_training_leaves_with_75_and_goes_on(finished, tmp_path):
    losses = next((finished / "root" / "train").glob("*/losses.json")).read_bytes()
    project = untrained(shutil.copytree(finished, tmp_path / "preempted"))
    words = [sys.executable, "-m", "pretrain", "train", str(project / "run.toml"), "--root", str(project / "root")]
    environment = hooked(tmp_path, TEST_SIGNAL="SIGTERM")
    child = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert child.returncode == 75, child.stderr
    assert main(["train", str(project / "run.toml"), "--root", str(project / "root")]) == 0
    assert next((project / "root" / "train").glob("*/losses.json")).read_bytes() == losses


@pytest.mark.slow
def test_two_processes_are_preempted_with_75_and_end_near_one_process(finished, tmp_path):
    project = untrained(shutil.copytree(finished, tmp_path / "two"))
    words = ["train", str(project / "run.toml"), "--root", str(project / "root"), "--nproc", "2"]
    words += ["--set", "engine.micro_batch_size=2", "--set", "engine.zero_stage=2", "--set", 'train.precision="fp32"']
    environment = hooked(tmp_path, TEST_SIGNAL="SIGUSR1", TEST_SIGNAL_TO_PARENT="yes")
    command = [sys.executable, "-m", "pretrain", *words]
    child = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert child.returncode == 75, child.stderr
    done = assay(*words, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stage"] == "train"  # the ranks print nothing there
    found = [json.loads(next((project / "root" / "train").glob("*/losses.json")).read_bytes())["losses"]]
    untrained(project)
    alone = ["train", *words[1:4], "--set", 'train.precision="fp32"']
    assert main(alone) == 0
    found.append(json.loads(next((project / "root" / "train").glob("*/losses.json")).read_bytes())["losses"])
    assert found[0] == pytest.approx(found[1], abs=1e-4)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_others_and_the_command(finished, tmp_path):
    project = untrained(shutil.copytree(finished, tmp_path / "dead"))
    words = ["train", str(project / "run.toml"), "--root", str(project / "root"), "--nproc", "2"]
    words += ["--set", "engine.micro_batch_size=2", "--set", "engine.restarts=0"]
    words += ["--set", "train.steps=100000"]  # so that it is not over before the kill
    child = subprocess.Popen([sys.executable, "-m", "pretrain", *words], stderr=subprocess.PIPE, text=True)
    for line in child.stderr:
        if "checkpoint: made" in line:
            break
    ranks = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    child.stderr.read()
    assert child.wait(timeout=600) not in (0, 75)
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


# --- documents, energy views, footprint and faults: their numbers are found again


@pytest.fixture
def typed(capsys):
    """`typed(*words)`: run a command in this process; its exit status and output."""

    def run(*words):
        capsys.readouterr()
        status = main([*map(str, words)])
        output, errors = capsys.readouterr()
        return SimpleNamespace(returncode=status, stdout=output, stderr=errors)

    return run


@pytest.mark.slow
def test_the_documents_report_the_numbers_of_the_run(project_copy, typed):
    root, own_key = project_copy / "root", ("--key", project_copy / "key.pem.pub")
    config = (project_copy / "run.toml", "--root", root)
    done = typed("report", *config, "--documents")
    assert done.returncode == 0, done.stderr
    [folder] = (root / "documents").iterdir()
    assert done.stdout.strip().endswith(f"documents: {folder}")
    [record] = (root / "train").glob("*/metrics.jsonl")
    [start] = [row for row in map(json.loads, record.read_text().splitlines()) if row["event"] == "start"]
    [manifest] = (root / "train").glob("*/manifest.json")
    flops = start["flops_per_token"] * json.loads(manifest.read_bytes())["stats"]["tokens"]
    components = json.loads((folder / "cyclonedx.json").read_bytes())["components"]
    [model] = [part for part in components if part["type"] == "machine-learning-model"]
    assert {"name": "assay:flops", "value": str(flops)} in model["properties"]
    assert f"{flops:.3e} FLOP" in (folder / "model_card.md").read_text()
    before = (folder / "manifest.json").read_bytes()
    assert typed("report", *config, "--documents").returncode == 0
    assert (folder / "manifest.json").read_bytes() == before
    assert typed("governance", "verify", root, "--deep", *own_key).returncode == 0
    (folder / "datasheet.md").write_text((folder / "datasheet.md").read_text().replace("120", "121"))
    done = typed("governance", "verify", root, *own_key)
    assert done.returncode == 65
    assert f"{folder.relative_to(root)}/datasheet.md" in done.stdout + done.stderr


@pytest.mark.slow
def test_a_real_run_names_all_that_is_behind_its_checkpoint(project_copy, typed):
    root = project_copy / "root"
    grid = 'energy.factors.grid={value=100, source="the operator", year=2025}'
    pue = 'energy.factors.pue={value=1.25, source="the operator", year=2025}'
    done = typed("report", project_copy / "run.toml", "--root", root, "--set", grid, "--set", pue)
    assert done.returncode == 0, done.stderr
    found = json.loads((Path(done.stdout.split("report: ")[1].strip()).parent / "report.json").read_bytes())["energy"]
    views, figure = found["views"], found["footprint"]["figures"]["carbon_location"]
    rows = views["rows"]
    assert views["missing"] == []
    stages = {part["artifact"].partition("/")[0]: part for part in views["parts"]}
    assert {"train", "encode", "tokenizer", "clean", "ingest"} <= set(stages)
    assert {part["from"] for part in views["parts"]} == {"ledger"}
    if found["total"]["unmeasured_seconds"]:  # another run of this node held the meter: then nothing may look complete
        assert all(row["joules"] is None or row["at_least"] for row in (rows["cumulative"], rows["fully_loaded"]))
        pytest.skip("another run's meter had this node while the run was made")
    joules = [rows[n]["joules"] for n in ("marginal", "training", "cumulative", "cumulative_whole", "fully_loaded")]
    assert joules == sorted(joules)
    assert joules[0] > 0
    for row in rows.values():
        assert sum(row[name] for name in ("surviving", "wasted", "running")) == pytest.approx(row["joules"])
    assert figure["value"] == pytest.approx(found["total"]["joules"] / 3.6e6 * 1.25 * 100)
    assert figure["needs"] == []
    assert views["rates"]["per_document"]["joules"] > 0
    assert views["rates"]["per_nat"]["joules"] > 0


@pytest.mark.slow
def test_a_csv_that_is_not_there_is_reported_before_the_first_stage(project_copy, typed):
    by_hour = 'energy.factors.by_hour={path="nowhere.csv", source="the operator", year=2025}'
    done = typed("run", project_copy / "run.toml", "--root", project_copy / "other", "--set", by_hour)
    assert done.returncode == 78
    assert "nowhere.csv" in done.stderr
    assert not (project_copy / "other").exists()


REPORT = """
import sys
from assay.cli.main import main
status = main(sys.argv[1:])
print("heavy:", sorted({name.split(".")[0] for name in sys.modules} & {"torch", "great_expectations"}), status)
"""


@pytest.mark.slow
def test_the_report_of_a_run_verifies_and_no_report_command_needs_a_heavy_library(project_copy):
    def command(*words, code=0):
        done = subprocess.run(
            [sys.executable, "-c", REPORT, "report", *map(str, words)], capture_output=True, text=True, check=True
        )
        assert f"heavy: [] {code}" in done.stdout, done.stdout + done.stderr
        return done.stdout

    root, config = project_copy / "root", project_copy / "run.toml"
    shutil.rmtree(root / "report")
    command(config, "--root", root, "--documents")
    output = command("verify", config, "--root", root)
    assert "all equal to the evidence" in output
    assert "model_card.md" in output
    assert "Settings that differ: 0" in command("compare", root, root, "--html", project_copy / "two.html")
    assert "PASS" in command("index", project_copy)
    [card] = root.glob("documents/*/model_card.md")
    steps = json.loads(next(root.glob("report/*/report.json")).read_bytes())["summary"]["steps"]
    card.write_text(card.read_text().replace(f"| {steps} |", f"| {steps + 1} |", 1))
    output = command("verify", root, code=65)
    assert "model_card.md: line " in output
    assert f"states {steps + 1}, the evidence gives {steps} in" in output


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["1", "2"])
def test_a_run_that_diverges_is_reported_with_its_verdict(project_copy, typed, ranks):
    root = project_copy / "root"
    known = {path.parent for path in root.glob("train/*/metrics.jsonl")} | set((root / "report").iterdir())
    settings = ("optim.learning_rate=1e30", "optim.weight_decay=0")
    config = (project_copy / "run.toml", "--root", root, "--set", settings[0], "--set", settings[1])
    done = typed("run", *config, "--nproc", ranks, "--set", "engine.micro_batch_size=2")
    assert done.returncode == 76, done.stderr
    assert "the loss or the gradient is not finite" in done.stderr
    assert "Traceback" not in done.stderr
    [record] = [path for path in root.glob("train/*/metrics.jsonl") if path.parent not in known]
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    [verdict] = [line for line in lines if line["event"] == "diverged"]
    [folder] = set((root / "report").iterdir()) - known
    found = json.loads((folder / "report.json").read_bytes())
    assert found["begun"] == record.parent.relative_to(root).as_posix()
    [output] = found["faults"]["diverged"]
    assert output == {name: verdict[name] for name in output}
    assert "Training diverged and was stopped" in (folder / "report.html").read_text()
    done = typed("report", "verify", folder, "--key", project_copy / "key.pem.pub")
    assert done.returncode == 0, done.stdout + done.stderr
    assert typed("report", *config).stdout.strip() == f"report: {folder / 'report.html'}"  # found: no file has grown
