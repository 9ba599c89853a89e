"""The set of commands and options is a promise: a change of it changes this file."""

import argparse
import subprocess
import sys

import pytest

from assay.cli import (
    check_commands,
    data_commands,
    governance_commands,
    report_commands,
    review_commands,
    slurm_commands,
)
from assay.cli import run_commands as commands
from assay.cli.main import parser, whole_words

COMMON = ["--help", "--root", "--set", "--workers", "CONFIG"]
SURFACE = {
    "data export": [*COMMON, "PREFIX"],
    "data import": ["--end-of-document", "--help", "--root", "--vocabulary-size", "PREFIX"],
    "data prepare": [*COMMON, "--engine", "--join", "--share", "--worker"],
    "data show": ["--help", "--root", "--set", "--workers", "CONFIG|ARTIFACT"],
    "data trace": ["--help", "OFFSET", "SHARD"],
    "data train-classifier": COMMON,
    "evaluate": [*COMMON, "--json", "CHECKPOINT"],
    "export": [*COMMON, "--dtype", "CHECKPOINT", "FOLDER"],
    "governance anchor": [*COMMON, "--accept"],
    "governance audit-model": [*COMMON, "CHECKPOINT"],
    "governance check": [*COMMON, "--data-docs"],
    "governance clock": [*COMMON, "--accept", "--reason"],
    "governance diff": ["--help", "A", "B"],
    "governance freeze": [*COMMON, "FILE"],
    "governance impact": ["--help", "--root", "DOCUMENT|URL|SHARD"],
    "governance keygen": ["--days", "--help", "--job", "--model", "--name", "--root", "--root-key", "PATH"],
    "governance review": [*COMMON, "--key"],
    "governance sign": ["--help", "--key", "--signing-key", "CHECKPOINT"],
    "governance site": ["--help", "POLICY"],
    "governance trace": ["--help", "--prov", "--svg", "ARTIFACT"],
    "governance verify": ["--deep", "--help", "--key", "ARTIFACT|ROOT"],
    "report compare": ["--help", "--html", "A", "B"],
    "report index": ["--help", "--html", "FOLDER"],
    "report verify": ["--help", "--key", "--root", "CONFIG|ROOT|REPORT"],
    "report write": [*COMMON, "--documents"],
    "run": [*COMMON, "--from-scratch", "--processes"],
    "slurm cancel": COMMON,
    "slurm logs": [*COMMON, "--attempt", "--follow", "--job", "--rank"],
    "slurm preflight": COMMON,
    "slurm render": [*COMMON, "--job"],
    "slurm retry": [*COMMON, "--local", "--take-edits"],
    "slurm status": [*COMMON, "--watch"],
    "slurm submit": [*COMMON, "--carbon-aware", "--expected", "--fetch", "--latest", "--local", "--take-edits"],
    "train": [*COMMON, "--device", "--dry-run", "--from-scratch", "--gpu-memory", "--processes", "--ranks"],
}


def surface(top, prefix=""):
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from surface(command, f"{prefix} {name}".strip())
            return
    options = [action.option_strings[-1] if action.option_strings else action.metavar for action in top._actions]
    yield prefix, sorted(options), (top.get_default("group"), top.get_default("command"))


def test_surface_is_pinned_and_each_command_exists():
    found = list(surface(parser()))
    assert {name: options for name, options, _ in found} == {name: sorted(words) for name, words in SURFACE.items()}
    modules = {
        "check": check_commands, "data": data_commands, "governance": governance_commands, "report": report_commands,
        "review": review_commands, "slurm": slurm_commands, "": commands,
    }  # fmt: skip
    assert all(callable(getattr(modules[group], function)) for _, _, (group, function) in found)
    assert {group for name, _, (group, _) in found if name.startswith("data ")} == {"data"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["report", "x.toml"], ["report", "write", "x.toml"]),
        (["-v", "report", "--root", "r", "x.toml"], ["-v", "report", "write", "--root", "r", "x.toml"]),
        (["report", "verify", "x.toml"], None), (["report", "write", "x.toml"], None), (["report", "--help"], None),
        (["report"], None), (["train", "report"], None), ([], None), (["report", "./verify"],
                                                                     ["report", "write", "./verify"]),
    ],
)  # fmt: skip
def test_a_report_of_a_configuration_needs_no_word_more(words, told):
    assert whole_words(words) == (told or words)


def test_what_a_worker_and_an_engine_are():
    words = ["data", "prepare", "run.toml"]
    plain = parser().parse_args(words)
    assert (plain.worker, plain.engine) == ((0, 1), "duckdb")
    chosen = parser().parse_args([*words, "--worker", "2/3", "--engine", "daft"])
    assert (chosen.worker, chosen.engine) == ((2, 3), "daft")
    assert (plain.share, plain.join, chosen.share) == (None, False, None)
    assert parser().parse_args([*words, "--share", "0/7"]).share == (0, 7)
    assert parser().parse_args([*words, "--join"]).join is True


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "x.toml", "--workers", "0"], "no whole number from 1 up"),
        *((["train", "x.toml", f"--gpu-memory={word}"], "no size above 0 with its unit, such as 80GiB")
          for word in ("80", "0GiB", "-1GiB", "80 GiB", "80gib", "\N{ARABIC-INDIC DIGIT ONE}GiB")),
        (["train", "x.toml", "--device", "tpu"], "invalid choice: 'tpu'"),
        *((["data", "prepare", "x.toml", f"--worker={word}"], "I from 0 to N - 1")
          for word in ("3/3", "1", "-1/2", "1/0", "a/b", "1/2/3", "\N{ARABIC-INDIC DIGIT ONE}/2", "")),
        (["data", "prepare", "x.toml", "--engine", "spark"], "invalid choice"),
        (["data", "prepare", "x.toml", "--share", "7/7"], "I from 0 to N - 1"),
        *((["data", "prepare", "x.toml", *two], "not allowed with argument")
          for two in (("--share=0/2", "--join"), ("--worker=0/2", "--join"), ("--share=0/2", "--worker=0/2"))),
        (["data", "trace", "x.tokens", "-1"], "OFFSET"),
        (["data", "trace", "x.tokens", "1.5"], "no whole number from 0 up"),
        (["data", "export", "x.toml", "/"], "names no file"),
        (["data", "export", "x.toml", "folder/"], "names no file"),
        (["data", "import", "x", "--root", "r", "--vocabulary-size", "9"], "--end-of-document"),
        (["data", "show"], "CONFIG|ARTIFACT"),
    ],
)  # fmt: skip
def test_wrong_words_are_refused(words, told, capsys):
    with pytest.raises(SystemExit) as left:
        parser().parse_args(words)
    assert left.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["train"], ["run"]])
def test_help_tells_the_exit_codes(words, capsys):
    with pytest.raises(SystemExit) as left:
        parser().parse_args([*words, "--help"])
    assert left.value.code == 0
    told = capsys.readouterr().out
    assert all(
        f"{code} " in told.partition("exit codes:")[2] for code in (0, 1, 65, 66, 69, 70, 71, 73, 74, 75, 77, 78)
    )


def test_wrong_words_explain_themselves():
    done = subprocess.run(
        [sys.executable, "-m", "pretrain", "run", "x.toml", "--workers", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no whole number from 1 up" in done.stderr
