"""Attacks by somebody who may write to the root, but has no key: races, links, and files of another form.

Each ends with the exit code and words of its error, and nothing is trained or signed on what was altered.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch

from assay.cli.main import main
from tests.governance.attacked import closed, opens, paper, prepare, words_of


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("races") / "project")


@pytest.fixture
def project(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "project")
    return tmp_path / "project"


def shards(folder):
    return sorted((folder / "root").glob("encode/*/train/*.tokens"))


def checkpoints(folder):
    return list((folder / "root").glob("checkpoint/*/manifest.json"))


def at_first_step(monkeypatch, attack):
    """Run an attack in the first step of a training."""
    step, done = torch.optim.AdamW.step, []

    def attacked(*given, **named):
        if not done:
            done.append(attack())
        return step(*given, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", attacked)


@pytest.mark.parametrize("way", ["written over", "with its times put back", "cut", "replaced"])
def test_a_shard_altered_while_it_is_read_is_in_no_checkpoint(project, capsys, monkeypatch, way):
    """The shards are mapped: what is written over after their verification is what the next step would train."""
    [shard, *_] = shards(project)

    def attack():
        times = shard.stat()
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        if way == "replaced":
            shard.unlink()
            shard.write_bytes(data)
        elif way == "cut":
            os.truncate(shard, len(data) - 1)
        else:
            with shard.open("r+b") as file:
                file.write(data)
        if way == "with its times put back":
            os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))

    at_first_step(monkeypatch, attack)
    assert main(["train", *words_of(project)]) == 65
    assert f"{shard}: " in capsys.readouterr().err
    assert checkpoints(project) == []


def test_a_second_name_for_a_shard_that_is_read_stops_nothing(project, monkeypatch):
    """A copy of the root by hard links, made while a training runs."""
    [shard, *_] = shards(project)
    at_first_step(monkeypatch, lambda: os.link(shard, project / "copy"))
    assert main(["train", *words_of(project)]) == 0
    assert checkpoints(project)
