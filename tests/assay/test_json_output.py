"""`--json`: every command that prints gives one JSON object, with an error in it where there is one."""

import ast
import inspect
import json
from importlib import import_module
from types import SimpleNamespace

import pytest

from assay.cli import config_commands, run_commands
from assay.cli.command_words import leaves
from assay.cli.main import main
from assay.cli.output import one_object, say
from assay.cli.surface import parser
from governance.stage import Runtime
from pretrain.preflight import node_checks
from tests.assay.test_data_commands import only, prepared  # noqa: F401 # the corpus of that file's tests


def printing_commands():
    """Words, module and function of every command with --json."""
    for words, leaf in leaves(parser()):
        if any("--json" in action.option_strings for action in leaf._actions):
            yield words, f"assay.cli.{leaf.get_default('group') or 'run'}_commands", leaf.get_default("command")


def named_values(module, name, seen):
    """Names of the values that a function of a module, or a function it calls there, passes to `say`."""
    found = set()
    if name in seen or not hasattr(module, name) or not inspect.isfunction(getattr(module, name)):
        return found
    seen.add(name)
    for node in ast.walk(ast.parse(inspect.getsource(getattr(module, name)))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "say":
                found |= {keyword.arg for keyword in node.keywords}
            else:
                found |= named_values(inspect.getmodule(getattr(module, name)), node.func.id, seen)
    return found


@pytest.mark.parametrize(("words", "module", "function"), list(printing_commands()), ids=lambda value: str(value))
def test_every_command_that_prints_names_its_values(words, module, function):
    assert named_values(import_module(module), function, set()), words


def test_commands_print_one_object(prepared, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    root, run = prepared / "made", [str(prepared / "run.toml"), "--root", str(prepared / "made")]
    shard = next((root / only(root, "encode").folder).rglob("*.tokens"))
    clean, encode = (str(root / only(root, stage).path) for stage in ("clean", "encode"))

    def answer(*words, status=0):
        capsys.readouterr()
        assert main([*words, "--json"]) == status
        return json.loads(capsys.readouterr().out)

    assert answer("init", "first")["next"] == "assay run first/quickstart.toml"
    assert {"name", "ok", "found", "fix"} <= answer("doctor")["checks"][0].keys()
    assert answer("config", "show", *run)["train.steps"]["origin"].endswith("run.toml")
    answered = answer("data", "prepare", *run, "--data-workers", "1", "--set", "governance.receipts=true")
    assert only(root, "receipts").inputs[0].digest == only(root, "encode").digest  # the tree, before anybody asks
    made, last = answered["artifacts"], [row for row in answered["counts"] if row["stage"] == "encode"]
    assert last[0]["tokens"] == sum(row["tokens"] for row in last[1:])
    assert made["encode"] == {**made["encode"], "stage": "encode", "digest": only(root, "encode").digest}
    shown = answer("data", "show", *run)["stages"]
    assert [row["stage"] for row in shown] == list(made)
    assert shown[0]["stats"]["documents_in"] == 43
    traced = answer("data", "trace", str(shard), "5")
    assert traced["document"]["source"] == "tales"
    assert "text" not in traced["document"], "a document may hold personal data"
    assert len(answer("data", "export", *run, "out")["files"]) >= 2
    assert answer("governance", "diff", clean, clean)["differences"] == []
    assert answer("governance", "diff", clean, encode, status=1)["differences"]
    assert answer("governance", "trace", encode)["ancestors"]
    assert answer("governance", "verify", str(root))["problems"] == []
    impact = answer("governance", "impact", traced["document"]["id"], "--root", str(root))
    assert impact["shards"][0]["tokens"]["manifest"]["digest"] == only(root, "encode").digest
    assert answer("governance", "site")["sites"] == {}
    assert answer("governance", "clock", *run)["ahead"] == []
    assert answer("governance", "keygen", "key.pem")["public_key"] == "key.pem.pub"
    assert [job["name"] for job in answer("slurm", "render", *run)["jobs"]]
    checks = answer("slurm", "preflight", *run)["checks"]
    assert {"gpus", "ecc", "disk", "root"} <= {check["check"] for check in checks}
    assert not any(check["bad"] for check in checks)
    monkeypatch.setattr(node_checks.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1))
    refused = answer("slurm", "preflight", *run, status=69)
    assert [check["check"] for check in refused["checks"] if check["bad"]] == ["disk"]
    assert refused["error"]["class"] == "ClusterError"
    error = answer("evaluate", *run, "last", status=77)["error"]
    assert error == {"class": "GateClosed", "message": error["message"], "exit_code": 77}
    assert error["message"].startswith("no verdict on this corpus")


@pytest.mark.parametrize(
    ("words", "raised", "error"),
    [
        (["config", "show", "nowhere.toml"], None, {"class": "MissingInput", "exit_code": 66}),
        (["doctor"], KeyboardInterrupt(), {"class": "KeyboardInterrupt", "exit_code": 130}),
        (["doctor"], ValueError("a bug"), {"class": "ValueError", "message": "a bug", "exit_code": 1}),
    ],
)
def test_every_error_is_in_the_object(words, raised, error, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def doctor(arguments):
        raise raised

    monkeypatch.setattr(config_commands, "doctor", doctor)
    try:
        status = main([*words, "--json"])
    except ValueError:
        status = 1  # printed by Python, after the traceback
    found = json.loads(capsys.readouterr().out)["error"]
    assert found == {**found, **error}
    assert found["message"]
    assert status == error["exit_code"]


def test_a_number_that_json_lacks_is_null(capsys):
    with one_object("interrupted", 130):
        say("", loss=float("nan"), rows=[{"share": float("inf")}, (1.5, -float("inf"))])
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "loss": None, "rows": [{"share": None}, [1.5, None]],
    }  # fmt: skip


def test_last_needs_a_run_file(capsys):
    for words in (["evaluate", "last"], ["export", "last", "folder"], ["report", "last"]):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 2
        assert f"name that file: assay {words[0]}" in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_one_of_several_ranks_prints_the_training(tmp_path, monkeypatch, capsys, rank, lines):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("assay.pipeline.corpus", lambda *_: {})
    made = SimpleNamespace(stage="train", digest="a" * 64, folder="train/a")
    monkeypatch.setattr("assay.pipeline.training", lambda *_: made)
    monkeypatch.setattr(run_commands, "load", lambda *_: (None, Runtime(tmp_path)))
    run_commands.train(parser().parse_args(["train", str(tmp_path / "run.toml")]))
    assert len(capsys.readouterr().out.splitlines()) == lines


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_rank_of_a_training_prints_for_all(rank, tmp_path, capsys, monkeypatch):
    for name, value in (("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    assert main(["train", str(tmp_path / "x.toml"), "--json"]) == 66
    printed = capsys.readouterr().out
    assert printed == "" if rank else json.loads(printed)["error"]["exit_code"] == 66
    assert main(["data", "show", str(tmp_path / "x.toml"), "--json"]) == 66  # each task of srun prepares its own
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 66
