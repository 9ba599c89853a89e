"""The set of commands and options is a promise: a change of it changes this file."""

import argparse
import subprocess
import sys

from pretrain import commands
from pretrain.cli import parser

COMMON = ["--help", "--root", "--set", "--workers", "CONFIG"]
SURFACE = {
    "data prepare": COMMON,
    "data show": COMMON,
    "evaluate": [*COMMON, "CHECKPOINT"],
    "export": [*COMMON, "CHECKPOINT", "FOLDER"],
    "governance check": COMMON,
    "governance diff": ["--help", "A", "B"],
    "governance keygen": ["--help", "PATH"],
    "governance trace": ["--help", "ARTIFACT"],
    "governance verify": ["--help", "--key", "ROOT"],
    "report": COMMON,
    "run": [*COMMON, "--processes"],
    "slurm render": COMMON,
    "slurm status": COMMON,
    "slurm submit": COMMON,
    "train": [*COMMON, "--processes"],
}


def surface(top, prefix=""):
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from surface(command, f"{prefix} {name}".strip())
            return
    options = [action.option_strings[-1] if action.option_strings else action.metavar for action in top._actions]
    yield prefix, sorted(options), top.get_default("command")


def test_surface_is_pinned_and_each_command_exists():
    found = list(surface(parser()))
    assert {name: options for name, options, _ in found} == {name: sorted(words) for name, words in SURFACE.items()}
    assert all(callable(getattr(commands, function)) for _, _, function in found)


def test_wrong_words_explain_themselves():
    done = subprocess.run(
        [sys.executable, "-m", "pretrain", "run", "x.toml", "--workers", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no whole number from 1 up" in done.stderr
