"""The original Transformer against joeynmt's: strings of LibreOffice's interface, Bokmål to Nynorsk.

The strings are those of Debian's packages, paired by message, without mnemonic marks; sources are distinct, also by
case, and held-out pairs are chosen by the source. Both learn tokens of one BPE vocabulary, tied tables, sizes, dropout,
label smoothing, initial weights' law, optimizer and schedule, as many updates and pairs an update, each in a process of
its own with one thread, whose CPU-seconds count from start to end. Neither averages checkpoints. Both search with a
beam of 4 and alpha 0.6; sacrebleu scores the texts. Differences are of the seeds' mean, over resamples of the segments,
the same for both.
"""

from __future__ import annotations

import gettext
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measures.children import whole
from benchmarks.measures.goals import Goal, figure

if TYPE_CHECKING:
    from data_pipeline.tokens.encoder import Encoder

PACKAGES = ("libreoffice-l10n-nb", "libreoffice-l10n-nn")
VOCABULARY, LENGTH, ROWS, UPDATES = 2000, 128, 6, 600
MODEL = {
    "hidden_size": 64, "intermediate_size": 256, "encoder_layers": 2, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": LENGTH,
    "position_embedding": "sinusoidal", "norm": "layernorm", "norm_position": "post", "feed_forward": "relu",
    "bias": True, "tie_word_embeddings": True, "initialisation": "xavier", "embedding_range": 64**-0.5,
    "dropout": 0.1, "label_smoothing": 0.1,
}  # fmt: skip
RATE = 4e-3
"""At the end of the warm-up."""
RESAMPLES = 1000
Pairs = list[tuple[str, str]]


def interface_strings(folder: Path) -> tuple[Pairs, str]:
    """Pairs of short strings with distinct sources, and the packages' versions."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(["apt-get", "download", "-qq", *PACKAGES], cwd=folder, check=True, **quiet)
    sides, versions = [], []
    for name in PACKAGES:
        [package] = folder.glob(f"{name}_*.deb")
        subprocess.run(["dpkg", "-x", str(package), str(folder / name)], check=True)
        versions.append(package.name.split("_")[1].replace("%3a", ":"))
        sides.append(dict(_messages(folder / name)))
    found: dict[str, tuple[str, str]] = {}
    for key in sorted(sides[0].keys() & sides[1].keys()):
        source, target = sides[0][key], sides[1][key]
        if _is_text(source) and _is_text(target):
            found.setdefault(source.lower(), (source, target))
    return list(found.values()), ", ".join(sorted(set(versions)))


def _messages(folder: Path) -> Iterator[tuple[tuple[str, str], str]]:
    """Translations by catalogue and message, without mnemonic marks."""
    for path in sorted(folder.rglob("*.mo")):
        with path.open("rb") as file:
            catalog: dict[Any, str] = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        for key, value in catalog.items():
            text = re.sub(r"[_~](?=\w)|(?<=\w)[_~]", "", value).strip()
            yield (path.name, str(key)), text


def _is_text(text: str) -> bool:
    return 8 <= len(text) <= 80 and " " in text and "\n" not in text


def is_held_out(source: str) -> bool:
    """Return whether the source is of the test."""
    return zlib.crc32(source.lower().encode()) % 12 == 0


def translation(quick: bool) -> Iterator[Goal]:
    """BLEU and chrF of both, and their CPU-seconds."""
    with tempfile.TemporaryDirectory() as name:
        yield from measured(Path(name), *((1, 150, 100) if quick else (3, UPDATES, 1000)))


def measured(folder: Path, seeds: int, updates: int, most_segments: int) -> Iterator[Goal]:
    """`translation` in a folder."""
    pairs, version = interface_strings(folder)
    made = _prepared(folder, pairs, updates, most_segments)
    yield figure(
        "translation.pairs", made["pairs"], f"LibreOffice {version}, nb to nn; {made['segments']} segments held out"
    )
    found: dict[str, list[dict[str, Any]]] = {"assay": [], "joeynmt": []}
    for seed in range(seeds):
        for system, runs in found.items():
            runs.append(_run(folder, system, seed, made))
    yield from _scores(found, made["references"], f"{seeds} seeds, {updates} updates of {made['batch']} pairs")
    for part in ("training", "translating"):
        ours, theirs = (statistics.median(one[part] for one in found[system]) for system in found)
        note = f"CPU-seconds, median: {ours:.1f} and {theirs:.1f}"
        name = f"translation.cpu_of_joeynmt.{part}"
        yield Goal(name, ours / theirs, 1.0, "<=", note) if part == "training" else figure(name, ours / theirs, note)


def _run(folder: Path, system: str, seed: int, made: dict[str, Any]) -> dict[str, Any]:
    """Train and translate, each in a process of its own."""
    from benchmarks.measures.rivals import joeynmt

    words = [sys.executable, "-m", __name__] if system == "assay" else joeynmt()
    os.environ["OMP_NUM_THREADS"] = "1"
    train, translate = (whole([*words, part, str(folder), str(seed)]) for part in ("train", "translate"))
    texts = texts_of(folder, system, seed, made)
    return {"training": train.cpu_seconds, "translating": translate.cpu_seconds, "texts": texts}


def texts_of(folder: Path, system: str, seed: int, made: dict[str, Any]) -> list[str]:
    """Translations of a system, whose ids it wrote."""
    from data_pipeline.tokens.tokenizer import load_encoder
    from governance.manifest import read_manifest

    encoder = load_encoder(read_manifest(folder / "root" / made["tokenizer"] / "manifest.json"), folder / "root")
    written = json.loads((folder / f"{system}-{seed}.json").read_bytes())
    return [encoder.decode_after(prompt, ids) for prompt, ids in zip(made["prompts"], written, strict=True)]


def _scores(found: dict[str, list[dict[str, Any]]], references: list[str], note: str) -> Iterator[Goal]:
    """Scores, and the paired bootstrap of the difference of the means over seeds."""
    import numpy as np
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    draws = np.random.default_rng(0).integers(0, len(references), (RESAMPLES, len(references)))
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        scores, drawn = {}, {}
        for system, runs in found.items():
            scores[system] = [metric.corpus_score(one["texts"], [references]).score for one in runs]
            parts = [np.array(metric._extract_corpus_statistics(one["texts"], [references])) for one in runs]
            drawn[system] = np.array(
                [
                    np.mean([metric._compute_score_from_stats(part[rows].sum(0).tolist()).score for part in parts])
                    for rows in draws
                ]
            )
            each = ", ".join(f"{score:.2f}" for score in scores[system])
            yield figure(f"translation.{name}.{system}", statistics.mean(scores[system]), f"{each}; {note}")
        mean = statistics.mean(scores["assay"]) - statistics.mean(scores["joeynmt"])
        low, high = np.quantile(drawn["assay"] - drawn["joeynmt"], (0.025, 0.975))
        interval = f"95 % interval {low:.2f} to {high:.2f} by {RESAMPLES} paired resamples; {metric.get_signature()}"
        yield figure(f"translation.{name}.assay_less_joeynmt", mean, interval)
        if name == "bleu":
            yield Goal("translation.bleu.assay_less_joeynmt_at_least", float(low), -0.3)


def _prepared(folder: Path, pairs: Pairs, updates: int, most_segments: int) -> dict[str, Any]:
    """Tokens of both: ours as shards, joeynmt's as lines of the same ids; what both processes read."""
    from data_pipeline.ingest import IngestConfig, ingest
    from data_pipeline.readers.file_types.pair_text import pair_text, prompt_of
    from data_pipeline.readers.sources import ParallelSource
    from data_pipeline.tokens.encode import EncodeConfig, encode
    from data_pipeline.tokens.pack import PackConfig, pack
    from data_pipeline.tokens.tokenizer import TokenizerConfig, load_encoder, train_tokenizer
    from governance.stage import Runtime

    train = [pair for pair in pairs if not is_held_out(pair[0])]
    test = [pair for pair in pairs if is_held_out(pair[0])][:: max(1, len(pairs) // 12 // most_segments)]
    test = test[:most_segments]
    for side, language in enumerate(("nb", "nn")):
        (folder / f"strings.{language}").write_text("".join(f"{pair[side]}\n" for pair in train), encoding="utf-8")
    runtime = Runtime(folder / "root")
    source = ParallelSource(
        type="parallel", name="strings", licence="MPL-2.0", paths=("strings.nb", "strings.nn"), language="nb",
        source_language="nb", target_language="nn",
    )  # fmt: skip
    documents = ingest((source,), IngestConfig(), folder, runtime)
    tokenizer = train_tokenizer(documents, TokenizerConfig(vocabulary_size=VOCABULARY), runtime)
    tokens = encode(documents, tokenizer, EncodeConfig(validation_share=0.0, loss_on="targets"), runtime)
    packed = pack(tokens, PackConfig(sequence_length=LENGTH, min_used_share=0), runtime)
    encoder = load_encoder(tokenizer, runtime.root)
    mark = len(encoder.encode(prompt_of("a"))) - len(encoder.encode("a"))
    lines: tuple[list[str], list[str]] = ([], [])
    prompts = _ids(encoder, [prompt_of(source) for source, _ in train])
    for prompt, ids in zip(prompts, _ids(encoder, [pair_text(*pair) or "" for pair in train]), strict=True):
        assert ids[: len(prompt)] == prompt
        for side, values in zip(lines, (prompt[:-mark], ids[len(prompt) :]), strict=True):
            side.append(" ".join(map(str, values)))
    for language, side in zip(("src", "trg"), lines, strict=True):
        (folder / f"train.{language}").write_text("\n".join(side) + "\n")
    rows = packed.stats["train_rows"]
    made = {
        "pairs": len(train), "segments": len(test), "updates": updates, "batch": round(ROWS * len(train) / rows),
        "warmup": updates // 5, "rate": RATE, "model": MODEL, "vocabulary": encoder.vocabulary_size, "mark": mark,
        "packed": packed.folder, "tokenizer": tokenizer.folder,
        "prompts": _ids(encoder, [prompt_of(source) for source, _ in test]),
        "references": [target for _, target in test],
    }  # fmt: skip
    (folder / "setting.json").write_text(json.dumps(made))
    return made


def _ids(encoder: Encoder, texts: list[str]) -> list[list[int]]:
    """Ids of each text, without the end."""
    import pyarrow as pa

    ids, ends = encoder.encode_column(pa.array(texts, pa.large_string()))
    return [ids[first : last - 1].tolist() for first, last in itertools.pairwise(ends.tolist())]


def _train(folder: Path, seed: int) -> None:
    from governance.manifest import read_manifest
    from governance.stage import Runtime
    from pretrain.config.model import ModelConfig
    from pretrain.config.optim import OptimConfig
    from pretrain.config.training import (
        CheckpointConfig,
        EngineConfig,
        Settings,
        TrackingConfig,
        TrainConfig,
        TrainRecipe,
    )
    from pretrain.train import train

    setting = json.loads((folder / "setting.json").read_bytes())
    steps, root = setting["updates"], folder / "root"
    recipe = TrainRecipe(
        model=ModelConfig(**MODEL),
        optim=OptimConfig(
            optimizer="adamw", learning_rate=RATE, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0,
            gradient_clipping=0.0, schedule="inverse_sqrt", warmup_steps=setting["warmup"],
        ),
        train=TrainConfig(
            sequence_length=LENGTH, global_batch_size=ROWS, steps=steps, precision="fp32", seed=seed,
            validate_every_steps=0,
        ),
    )  # fmt: skip
    engine = EngineConfig(micro_batch_size=ROWS, device="cpu", zero_stage=0, threads=1)
    settings = Settings(CheckpointConfig(every_steps=steps), engine, TrackingConfig(mode="disabled"))
    made = train(read_manifest(root / setting["packed"] / "manifest.json"), recipe, settings, Runtime(root))
    (folder / f"checkpoint-{seed}").write_text(made.stats["checkpoint"]["path"])


def _translate(folder: Path, seed: int) -> None:
    from data_pipeline.tokens.tokenizer import load_encoder
    from governance.manifest import read_manifest
    from pretrain.checkpoint.format import read_checkpoint
    from pretrain.config.training import EngineConfig
    from pretrain.inference.beam_search import Beam, open_translator

    setting, root = json.loads((folder / "setting.json").read_bytes()), folder / "root"
    encoder = load_encoder(read_manifest(root / setting["tokenizer"] / "manifest.json"), root)
    checkpoint = read_checkpoint((root / (folder / f"checkpoint-{seed}").read_text()).parent, root)
    translator = open_translator([checkpoint], EngineConfig(device="cpu", threads=1), root)
    found = translator(setting["prompts"], encoder.end_of_document, Beam(), lambda sources: None)
    (folder / f"assay-{seed}.json").write_text(json.dumps([one.ids for one in found]))


if __name__ == "__main__":
    {"train": _train, "translate": _translate}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
