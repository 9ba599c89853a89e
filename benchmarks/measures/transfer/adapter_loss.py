"""Adapters against full fine-tuning, by number of examples, on one blog; and their logits against PEFT's.

A decoder pretrained by Assay on novels and on news of other sources learns passages of 60 words from one blog: all of
its parameters, or at most 3 % as many: adapters of the blocks and of the tied embedding, and the norms. Both arms have
the same examples, batches and seeds. Each arm has its own learning rate and number of epochs: those of the least loss
on validation passages, found once, on examples of a seed that is not counted. The loss that counts is that of a test;
training, validation and test have articles of their own. A ratio near 1 says little where full fine-tuning gains
little: hence the share of its gain that adapters reach.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measures.corpora import rows, write_jsonl
from benchmarks.measures.goals import Goal, figure
from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.readers.sources import JsonlSource
from data_pipeline.tokens.encode import EncodeConfig, encode
from data_pipeline.tokens.pack import PackConfig, pack
from data_pipeline.tokens.tokenizer import TokenizerConfig, train_tokenizer
from governance.manifest import Manifest
from governance.stage import Runtime
from pretrain.config.optim import GroupConfig
from pretrain.config.training import AdapterConfig

WORDS, LENGTH, BATCH = 60, 128, 8
Choice = tuple[float, int]
"""Learning rate and epochs."""
_SLOWER = (
    GroupConfig(pattern="embed_tokens", learning_rate_scale=0.2),
    GroupConfig(pattern="norm", learning_rate_scale=0.3),
)
ARMS: dict[str, dict[str, Any]] = {
    "full": {},
    "adapters": {
        "adapter": AdapterConfig(rank=4, alpha=8.0, embedding_rank=3),
        "trained": ("norm",),
        "optim": {"groups": _SLOWER},
    },
    "of PEFT": {"adapter": AdapterConfig(rank=5, alpha=10.0)},
}
"""Settings of `[train]` by arm; those of `[optim]` under `optim`."""
CHOICES: dict[int, dict[str, Choice]] = {
    100: {"full": (3e-4, 4), "adapters": (5e-3, 2)},
    400: {"full": (1e-3, 3), "adapters": (5e-3, 3)},
    1600: {"full": (1e-3, 3), "adapters": (1e-2, 6)},
}
"""By number of examples and arm; RESULTS.md has the others that were tried."""
SEEDS = {100: 5, 400: 3, 1600: 3}
"""Seeds by number of examples: losses of small samples differ most."""
_BLOG = "18f-blog"
_NOVELS = 4_000_000  # characters, as many as of the other news


def lora(quick: bool) -> Iterator[Goal]:
    """Loss of adapters over that of full fine-tuning, and the difference of logits from PEFT's."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if quick:
            yield from measured(folder, {100: CHOICES[100]}, {100: 1}, 200)
        else:
            yield from measured(folder, CHOICES, SEEDS, 800)


def measured(
    folder: Path, choices: Mapping[int, Mapping[str, Choice]], seeds: Mapping[int, int], pretraining_steps: int
) -> Iterator[Goal]:
    """Goals of `lora`; a folder that holds some of the trainings gives them again."""
    arms = _Runs(folder, pretraining_steps)
    before = arms.loss_of(arms.parent, arms.test)
    for size, best in choices.items():
        made = {
            arm: [arms.tuned(arm, size, seed, choice) for seed in range(seeds[size])] for arm, choice in best.items()
        }
        found = {arm: [arms.loss_of(one, arms.test) for one in some] for arm, some in made.items()}
        ratios = [one / every for one, every in zip(found["adapters"], found["full"], strict=True)]
        means = {arm: statistics.mean(losses) for arm, losses in found.items()}
        chosen = ", ".join(f"{arm} {means[arm]:.4f} at {rate:g} x {epochs}" for arm, (rate, epochs) in best.items())
        note = (
            f"{min(ratios):.4f} to {max(ratios):.4f} in {len(ratios)} seeds; before {before:.4f} nats, {chosen} epochs"
        )
        yield Goal(f"lora_loss_over_full_{size}", statistics.median(ratios), 1.01, "<=", note)
        reached = (before - means["adapters"]) / (before - means["full"])
        yield figure(f"lora_share_of_gain_{size}", reached, f"of {before - means['full']:.4f} nats")
    stats = made["adapters"][0].stats
    yield Goal("lora_share_of_parameters", stats["trained_parameters"] / stats["parameters"], 0.03, "<=")
    held = {arm: arms.bytes_of(some[0]) for arm, some in made.items()}
    yield figure("lora_checkpoint_over_full", held["adapters"] / held["full"], f"{held['adapters']:,} bytes")
    yield from arms.against_peft(arms.tuned("of PEFT", 100, 0, (3e-3, 1)))


class _Runs:
    """The parent, the test, and both arms' trainings."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.runtime = folder, Runtime(folder / "root")
        general, size = [], 0
        for row in rows("corpora/books.jsonl.gz"):
            if row["lang"] == "en" and size < _NOVELS:
                general.append({"id": row["id"], "text": row["text"]})
                size += len(row["text"])
        news = list(rows("corpora/news.jsonl.gz"))
        general += [{"id": row["id"], "text": row["text"]} for row in news if row["source"] != _BLOG]
        documents = self._ingested("general", general)
        self.tokenizer = train_tokenizer(documents, TokenizerConfig(vocabulary_size=2048), self.runtime)
        sides: tuple[list[dict[str, str]], ...] = ([], [], [])  # training, validation, test: by article
        for number, row in enumerate(row for row in news if row["source"] == _BLOG):
            words = row["text"].split()
            for first in range(0, len(words) - WORDS, WORDS):
                passage = {"id": f"{number}-{first}", "text": " ".join(words[first : first + WORDS])}
                sides[{0: 2, 4: 1}.get(number % 8, 0)].append(passage)
        for side in sides:
            random.Random(0).shuffle(side)
        self.train = sides[0]
        self.test = self._tokens("held-2", sides[2][:400], 0.999)
        self.parent = self._trained(self._tokens("general", general, 0.0), self._recipe("", 3e-3, steps, 0))
        if not (folder / "parent").exists():  # a folder that holds some of the trainings gives them again
            self._export(self.parent)

    def _export(self, made: Manifest) -> None:
        from pretrain.export.huggingface import export

        export(self._checkpoint(made), self.tokenizer, self.folder / "parent", self.runtime.root)

    def _ingested(self, name: str, found: Sequence[dict[str, Any]]) -> Manifest:
        write_jsonl(self.folder / name / "all.jsonl", found)
        source = JsonlSource(type="jsonl", name=name, paths=(f"{name}/*.jsonl",), licence="CC0-1.0", id_field="id")
        return ingest((source,), IngestConfig(), self.folder, self.runtime)

    def _tokens(self, name: str, found: Sequence[dict[str, Any]], validation: float) -> Manifest:
        tokens = encode(
            self._ingested(name, found), self.tokenizer, EncodeConfig(validation_share=validation), self.runtime
        )
        return pack(tokens, PackConfig(sequence_length=LENGTH), self.runtime)

    def _recipe(self, arm: str, rate: float, steps: int, seed: int) -> Any:
        from pretrain.config.model import ModelConfig
        from pretrain.config.optim import OptimConfig
        from pretrain.config.training import TrainConfig, TrainRecipe

        model = ModelConfig(
            hidden_size=192, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
            max_position_embeddings=LENGTH, tie_word_embeddings=True,
        )  # fmt: skip
        changes = dict(ARMS[arm]) if arm else {}
        optim = OptimConfig(
            optimizer="adamw" if arm else "muon", learning_rate=rate, warmup_steps=steps // 10, decay_steps=steps // 2,
            **changes.pop("optim", {}),
        )  # fmt: skip
        train = TrainConfig(
            sequence_length=LENGTH, global_batch_size=BATCH if arm else 16, steps=steps, precision="fp32", seed=seed,
            validate_every_steps=0, initial_weights=str(self.folder / "parent") if arm else "", **changes,
        )  # fmt: skip
        return TrainRecipe(model=model, train=train, optim=optim)

    def _trained(self, tokens: Manifest, recipe: Any) -> Manifest:
        from pretrain.config.training import CheckpointConfig, EngineConfig, Settings, TrackingConfig
        from pretrain.train import train

        self.engine = EngineConfig(micro_batch_size=8, device="cpu", zero_stage=0, threads=1)
        checkpoint = CheckpointConfig(every_steps=recipe.train.steps)
        return train(tokens, recipe, Settings(checkpoint, self.engine, TrackingConfig(mode="disabled")), self.runtime)

    def tuned(self, arm: str, size: int, seed: int, choice: Choice) -> Manifest:
        """Training on `size` passages."""
        tokens = self._tokens(f"set-{size}-{seed}", random.Random(seed).sample(self.train, size), 0.0)
        steps = max(1, round(choice[1] * tokens.stats["train_rows"] / BATCH))
        return self._trained(tokens, self._recipe(arm, choice[0], steps, seed))

    def loss_of(self, made: Manifest, rows: Manifest) -> float:
        """Nats per token of these validation rows."""
        from pretrain.evaluation.validation import evaluate

        return evaluate(self._checkpoint(made), rows, self.engine, self.runtime.root)[0].loss

    def bytes_of(self, made: Manifest) -> int:
        """Bytes of a training's last checkpoint."""
        from pretrain.checkpoint.format import open_checkpoint

        return sum(output.bytes for output in open_checkpoint(self._checkpoint(made)).outputs)

    def _checkpoint(self, made: Manifest) -> Path:
        return (self.runtime.root / made.stats["checkpoint"]["path"]).parent

    def against_peft(self, made: Manifest) -> Iterator[Goal]:
        """Our merged export against our adapter in PEFT, merged there and not.

        In fp64, so that weights are compared: in fp32 PEFT's own merge differs from its adapter by the order of sums.
        """
        import peft
        import torch
        from transformers import AutoModelForCausalLM

        from pretrain.export.huggingface import export
        from pretrain.export.peft_folder import export_adapter

        checkpoint, merged, adapter = self._checkpoint(made), self.folder / "merged", self.folder / "adapter"
        export(checkpoint, self.tokenizer, merged, self.runtime.root)
        export_adapter(checkpoint, adapter, self.runtime.root)
        ids = torch.randint(0, 2048, (4, LENGTH), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            theirs = peft.PeftModel.from_pretrained(
                AutoModelForCausalLM.from_pretrained(self.folder / "parent"), adapter
            ).double()
            beside = theirs.eval()(ids).logits
            joined = theirs.merge_and_unload()(ids).logits
            ours = AutoModelForCausalLM.from_pretrained(merged).double().eval()(ids).logits
        scale = float(beside.abs().max())
        for name, value in (("merge", joined), ("unmerged", beside)):
            difference = float((ours - value).abs().max()) / scale
            yield Goal(f"lora_logits_from_peft_{name}", difference, 1e-6, "<=", f"peft {peft.__version__}")
