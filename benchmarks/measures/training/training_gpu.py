"""On a CUDA card: MFU of two sizes, and what DeepSpeed costs against a bare loop. Elsewhere it says: not run.

The models are those of `configs/125m.toml` and `configs/1b.toml`. Token shards are random, of GPT-2's vocabulary: only
time is measured. MFU counts 6 N + 12 layers x width x length operations per token against the card's data sheet.

The tax is that of a whole `train` (loader, guard, record, energy and all) against the bare loop of `bare_loop.py`: the
same model, rows, arithmetic and optimizer, no wait for the device within a step in either. So it bounds DeepSpeed's own
from above. Each figure is measured in a process of its own, on a card that holds nothing else, after the estimate of
`pretrain/preflight/memory.py` says that it fits.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measures.goals import Goal, figure
from governance.errors import PipelineError
from governance.files import read_lines
from governance.manifest import Manifest, describe, write_manifest
from governance.stage import Runtime
from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig
from pretrain.config.training import CheckpointConfig, EngineConfig, Settings, TrackingConfig, TrainConfig, TrainRecipe
from pretrain.distributed.process_group import Ranks
from pretrain.preflight.hardware import Hardware
from pretrain.preflight.memory_room import fits, in_words, needed_memory

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
WARM_UP = 10  # steps of compiling and of a cold card


@dataclass(frozen=True)
class Setting:
    """A run whose steps are timed."""

    model: ModelConfig
    length: int
    """Tokens of a row."""
    rows: int
    """Of a step."""
    micro_rows: int
    """Of a pass."""
    steps: int
    vocabulary: int = 50_257

    @property
    def recipe(self) -> TrainRecipe:
        """Recipe of the training run."""
        return TrainRecipe(
            model=self.model,
            optim=OptimConfig(learning_rate=3e-4, warmup_steps=min(10, self.steps)),
            train=TrainConfig(
                sequence_length=self.length, global_batch_size=self.rows, steps=self.steps, validate_every_steps=0
            ),
        )

    def engine(self, zero_stage: int, device: str) -> EngineConfig:
        """Engine settings; compiled on CUDA."""
        values = {"zero_stage": zero_stage, "device": device, "micro_batch_size": self.micro_rows}
        return EngineConfig.model_validate({**values, "compile": device == "cuda"})


@dataclass(frozen=True)
class Timed:
    """Result of a loop."""

    seconds: float
    """Median of a step, without those of the warm-up."""
    losses: list[float]
    """Nats per token of every step."""
    tokens_per_second: float
    mfu: float | None = None
    memory_peak: int = 0
    """Bytes, where the loop writes them down."""


def settings(quick: bool) -> dict[str, Setting]:
    """Both sizes; rows of a pass are such that 80 GB suffice by the estimate, with no activation computed again."""
    steps = 30 if quick else 100
    return {
        "124m": Setting(_preset("125m"), 1024, 64, 64, steps),
        "1_3b": Setting(_preset("1b"), 2048, 16, 8, steps),
    }


def _preset(name: str) -> ModelConfig:
    from assay.config import load_run

    return load_run(CONFIGS / f"{name}.toml", [], needs="model").config.model


def goals_on(quick: bool) -> list[Goal]:
    """The goals on this machine's first card."""
    import torch

    if not torch.cuda.is_available():
        return [
            figure("training_gpu_not_run", 0.0, note="no CUDA device here; the goals on one H100 were not measured")
        ]
    return _on_card(settings(quick), torch.cuda.get_device_name())


def _on_card(sizes: dict[str, Setting], card: str) -> list[Goal]:
    hardware = _alone(_free)
    for setting in sizes.values():
        for stage in (1, 3):
            refuse(setting, stage, hardware)
    goals = []
    for name, goal in (("124m", 0.48), ("1_3b", 0.50)):
        found = _alone(measured, sizes[name])
        if found.mfu is None:
            raise PipelineError(f"no data sheet is known for {card}, so MFU cannot be computed")
        goals.append(Goal(f"training_gpu_mfu_{name}", found.mfu, goal, note=card))
        goals.append(figure(f"training_gpu_tokens_per_second_{name}", found.tokens_per_second, note=card))
    return goals + taxes(sizes["124m"], "cuda", card)


def taxes(setting: Setting, device: str, note: str) -> list[Goal]:
    """Time of runs at stages 1 and 3 against the bare loop, and the differences of their losses.

    The bare loop runs before and after; the faster one counts, and the difference of the two is the noise.
    """
    first = _alone(bare, setting, device)
    engines = {stage: _alone(measured, setting, stage, device) for stage in (1, 3)}
    second = _alone(bare, setting, device)
    seconds = min(first.seconds, second.seconds)
    goals = [
        Goal(f"training_gpu_engine_tax_zero_{stage}", engines[stage].seconds / seconds - 1, goal, "<=", note=note)
        for stage, goal in ((1, 0.02), (3, 0.05))
    ]
    goals += [
        figure(f"training_gpu_loss_difference_zero_{stage}", difference(found, first))
        for stage, found in engines.items()
    ]
    return [*goals, figure("training_gpu_bare_noise", max(first.seconds, second.seconds) / seconds - 1, note=note)]


def difference(one: Timed, other: Timed) -> float:
    """Largest difference of a step's losses, nats per token, which shows that both loops computed the same."""
    return max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True))


def refuse(setting: Setting, zero_stage: int, hardware: Hardware) -> None:
    """Raise unless the estimate is within what there is, without the trainer's tolerance.

    Raises:
        PipelineError: what is needed, and what there is.
    """
    engine = setting.engine(zero_stage, "cuda")
    needed = needed_memory(setting.recipe, engine, setting.vocabulary, hardware)
    if not fits(needed, hardware):
        raise PipelineError(f"the benchmark does not fit: {in_words(needed, hardware)}")


def _free() -> Hardware:
    """Hardware of the first card, with its free memory and the host's."""
    import torch

    from pretrain.preflight.hardware import hardware_of

    return hardware_of(Ranks(), torch.device("cuda", 0))


def _alone(work: Callable[..., Any], *given: Any) -> Any:
    """Result of `work` in a separate process, whose memory on the card is freed with it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def measured(setting: Setting, zero_stage: int = 1, device: str = "cuda") -> Timed:
    """A whole training run, by its own record."""
    from pretrain.train import train

    engine = setting.engine(zero_stage, device)
    kept = Settings(CheckpointConfig(every_steps=setting.steps), engine, TrackingConfig(mode="disabled"))
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        made = train(write_tokens(root, setting), setting.recipe, kept, Runtime(root))
        lines = [line for line in read_lines(root / made.folder / "metrics.jsonl") if line["event"] == "step"]
    mfu = None if lines[-1]["mfu"] is None else _median([line["mfu"] for line in lines])
    losses = [line["loss"] for line in lines]
    found = _timed(setting, [line["seconds"] for line in lines], losses, mfu)
    return replace(found, memory_peak=max(line["memory_peak"] or 0 for line in lines))


def bare(setting: Setting, device: str = "cuda") -> Timed:
    """The same rows under torch alone."""
    import torch

    from benchmarks.measures.training.bare_loop import bare_steps
    from pretrain.data.dataset import open_rows
    from pretrain.train import _arithmetic

    seconds: list[float] = []
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as scratch, _arithmetic(Ranks(), setting.engine(1, device)):
        root = Path(scratch)
        rows = open_rows(write_tokens(root, setting), "train", root, setting.length)
        before, last = None, time.perf_counter()
        for read in bare_steps(setting.recipe, rows, setting.micro_rows, torch.device(device)):
            if before is not None:
                losses += before()  # of the step before: on CUDA nobody waits for the one that was just launched
            before, now = read, time.perf_counter()
            seconds.append(now - last)
            last = now
        losses += before() if before is not None else []
    return _timed(setting, seconds, losses, None)


def _timed(setting: Setting, seconds: list[float], losses: list[float], mfu: float | None) -> Timed:
    step = _median(seconds)
    return Timed(step, losses, setting.rows * setting.length / step, mfu)


def _median(values: list[float]) -> float:
    return statistics.median(values[min(WARM_UP, len(values) // 2) :])


def write_tokens(root: Path, setting: Setting) -> Manifest:
    """A shard of random tokens, four steps' rows and more: documents of one to four rows, so that rows hold two."""
    from data_pipeline.tokens.token_shards import EncodedDocument, write_token_shard

    generator = np.random.default_rng(0)
    path = root / "encode" / ("e" * 16) / "train" / "00000.tokens"
    documents = []
    for number in range(4 * setting.rows):
        tokens = generator.integers(1, setting.vocabulary, int(generator.integers(setting.length, 4 * setting.length)))
        tokens[-1] = 0
        documents.append(EncodedDocument(str(number), tokens, 4 * len(tokens)))
    write_token_shard(path, documents, setting.vocabulary, 0)
    manifest = Manifest(
        stage="encode", version=1, key="e" * 64, config={}, inputs=(), outputs=(describe(path, root),), stats={}, run={}
    )
    write_manifest(manifest, root)
    return manifest
