"""Instruction tuning as docs/finetuning.md shows it: a checkpoint is exported, and learns from the answers of chats."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest

from assay.cli.main import main
from benchmarks.measures.small_run import SMALL_RUN
from data_pipeline.tokens.token_shards import TokenShard
from governance.manifest import read_manifest
from tests.conftest import tale, write_project

PAGE = Path(__file__).parents[2] / "docs" / "finetuning.md"


def newest(root: Path, stage: str):
    paths = sorted(root.glob(f"{stage}/*/manifest.json"), key=lambda path: path.stat().st_mtime)
    return read_manifest(paths[-1])


def run_file() -> str:
    """The page's run file, at the sizes of the small run and without its `base`."""
    [example] = re.findall(r"```toml\n(base.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    values = tomllib.loads(example)
    assert values["data"]["encode"]["loss_on"] == "answers"
    smaller = example.replace("2048", "256").replace('base = "my.toml"\n', "")
    smaller = re.sub(r"steps = \d+", "steps = 6", re.sub(r"warmup_steps = \d+", "warmup_steps = 1", smaller))
    kept = SMALL_RUN.partition("[governance]")[2].replace(
        "max_position_embeddings = 64", "max_position_embeddings = 256"
    )
    for table, name in re.findall(r"^\[(\w+)\]\n((?:\w+ = .*\n)+)", smaller, re.M):
        del name
        kept = re.sub(rf"\[{table}\]\n(?:\w+ = .*\n)+", "", kept)
    return smaller + "\n[governance]" + kept


@pytest.mark.slow
def test_an_exported_checkpoint_learns_from_answers_under_the_same_gates(tmp_path, capfd):
    folder = write_project(tmp_path / "project")
    before = (folder / "run.toml").read_text().replace("max_position_embeddings = 64", "max_position_embeddings = 256")
    (folder / "run.toml").write_text(before)
    root = folder / "root"
    assert main(["run", str(folder / "run.toml"), "--root", str(root), "--data-workers", "1"]) == 0
    parent = newest(root, "checkpoint")
    exported = ["export", folder / "run.toml", root / parent.folder, folder / "parent", "--root", root]
    assert main(list(map(str, exported))) == 0

    (folder / "chats").mkdir()
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"Tell tale {seed}."},
                {"role": "assistant", "content": tale(seed, 60)},
            ]
        }
        for seed in range(200, 240)
    ]
    chats.append({"messages": [{"role": "user", "content": "No answer."}, {"role": "assistant", "content": ""}]})
    (folder / "chats" / "a.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    (folder / "chats.toml").write_text(run_file())
    assert main(["run", str(folder / "chats.toml"), "--root", str(root), "--data-workers", "1"]) == 0
    tokens, trained = newest(root, "encode"), newest(root, "train")
    shards = [TokenShard.open(path) for path in tokens.files("train", root)]
    assert all(shard.answers is not None for shard in shards if len(shard.document_ends))
    assert trained.run["origin"]["verified"]
    assert [item.stage for item in trained.inputs] == ["pack", "file"]
    assert trained.stats["tokens"] < tokens.stats["train_tokens"] * 6
    losses = json.loads((root / trained.folder / "losses.json").read_bytes())["losses"]
    assert losses[-1] < losses[0]
    shutil.rmtree(folder / "parent")  # the finished run needs the folder for its digest alone
