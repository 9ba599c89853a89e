"""Instruction tuning as docs/finetuning.md shows it: a checkpoint is exported, and learns from the answers of chats."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from assay.cli.main import main
from benchmarks.measures.small_run import SMALL_RUN
from data_pipeline.tokens.chat_template import CHATML
from data_pipeline.tokens.token_shards import TokenShard
from tests.assay.test_classification import newest
from tests.conftest import tale, write_project

PAGE = Path(__file__).parents[2] / "docs" / "finetuning.md"


SMALLER = (
    "data.pack.sequence_length=256", "train.sequence_length=256", "train.steps=6", "train.validate_every_steps=3",
    "optim.warmup_steps=1", "optim.decay_steps=2", "optim.learning_rate=1e-3",
)  # fmt: skip


def words_of_mean(root: Path, run: Path, folder: Path) -> None:
    """The mean of the two checkpoints that are kept: exported, and continuing a text."""
    read, given = [], [str(run), "last", "--root", str(root)]
    for checkpoint in root.glob("checkpoint/*"):
        target = folder / checkpoint.name
        assert main(["export", str(run), str(checkpoint), str(target), *given[2:]]) == 0
        read.append(load_file(target / "model.safetensors"))
    assert len(read) == 2
    mean = folder / "mean"
    assert main(["export", *given[:2], str(mean), *given[2:], "--average", "2"]) == 0
    for name, value in load_file(mean / "model.safetensors").items():
        assert torch.equal(value, torch.stack([one[name] for one in read]).double().mean(0).float())
    assert "| averaged with step 8, digest |" in (mean / "README.md").read_text(encoding="utf-8")
    assert main(["generate", *given, "The", "--max-tokens", "2", "--average", "2"]) == 0
    for words in (["generate", *given, "The", "--average", "3"],
                  ["export", *given[:2], str(folder / "x"), *given[2:], "--average", "2", "--adapter"]):  # fmt: skip
        assert main(words) == 78


@pytest.mark.slow
def test_an_exported_checkpoint_learns_from_answers_under_the_same_gates(tmp_path):
    folder = write_project(tmp_path / "project")
    root, run = folder / "root", folder / "my.toml"
    run.write_text(SMALL_RUN.replace("max_position_embeddings = 64", "max_position_embeddings = 256"))
    assert main(["run", str(run), "--root", str(root), "--data-workers", "1"]) == 0
    parent = newest(root, "checkpoint")
    words = ["export", run, root / parent.folder, folder / "parent", "--root", root]
    assert main(list(map(str, words))) == 0
    words_of_mean(root, run, folder)

    (folder / "chats").mkdir()
    tales = [tale(seed, 60) for seed in range(200, 280)]
    chats = [
        [{"role": "user", "content": f"Tell of a {text.split()[0]}."}, {"role": "assistant", "content": text}]
        for text in tales
    ]
    lines = [json.dumps({"messages": chat}) + "\n" for chat in chats]
    (folder / "chats" / "a.jsonl").write_text("".join(lines))
    [example] = re.findall(r"```toml\n(base.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (folder / "chats.toml").write_text(example)
    settings = [word for setting in SMALLER for word in ("--set", setting)]
    assert main(["run", str(folder / "chats.toml"), "--root", str(root), "--data-workers", "1", *settings]) == 0
    tokens, trained = newest(root, "encode"), newest(root, "train")
    shards = [TokenShard.open(path) for path in tokens.files("train", root)]
    assert all(shard.answers is not None for shard in shards if len(shard.document_ends))
    assert trained.run["origin"]["verified"]
    assert [item.stage for item in trained.inputs] == ["pack", "file"]
    assert trained.stats["tokens"] < tokens.stats["train_tokens"] * 6
    losses = json.loads((root / trained.folder / "losses.json").read_bytes())["losses"]
    assert losses[-1] < losses[0]
    words = ["export", folder / "chats.toml", root / trained.stats["checkpoint"]["path"], folder / "chatting"]
    assert main(list(map(str, [*words, "--root", root, *settings]))) == 0
    assert (folder / "chatting" / "chat_template.jinja").read_text(encoding="utf-8") == CHATML

    # The same chats, learned by adapters: every reader of checkpoints finds the base.
    settings += ["--set", "train.adapter={rank = 4, dropout = 0.1}"]
    given = [str(folder / "chats.toml"), "--root", str(root), "--data-workers", "1", *settings]
    assert main(["run", *given]) == 0
    adapted = newest(root, "train")
    checkpoint = str((root / adapted.stats["checkpoint"]["path"]).parent)
    assert adapted.stats["trained_parameters"] * 5 < adapted.stats["parameters"]
    page = (root / "report" / "latest.html").read_text(encoding="utf-8")
    assert re.search(r"of which [\d,]+ learned \(\S+ %\)", page)
    config, *options = given
    assert main(["evaluate", config, checkpoint, *options]) == 0
    assert main(["generate", config, checkpoint, "Tell", *options, "--max-tokens", "4"]) == 0
    assert main(["governance", "audit-memorisation", config, checkpoint, *options]) == 0
    assert main(["export", config, checkpoint, str(folder / "merged"), *options]) == 0
    assert main(["export", config, checkpoint, str(folder / "adapter"), *options, "--adapter"]) == 0
    written = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (written["peft_type"], written["r"], written["base_model_name_or_path"]) == ("LORA", 4, "parent")
    assert main(["governance", "verify", str(root), "--key", str(folder / "key.pem.pub")]) == 0
