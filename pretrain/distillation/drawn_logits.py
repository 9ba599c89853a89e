"""Draws from a teacher's distributions over the training rows.

    <root>/teacher_logits/<key>/draws/00000.draws    little-endian uint16 (uint32 above 65,536 ids) [rows, L, samples]
                                manifest.json        stats: rows, rows_per_shard, samples, bytes_per_token, targets

Row r of the training shards (or of their packed rows) is row r modulo `rows_per_shard` of file r // `rows_per_shard`.
Element [i, j] is the j-th token that was drawn for position i, from the teacher's softmax at `temperature`; zeros where
nothing is predicted. The key holds the digests of the rows (with their packing plan) and of the teacher.

One pass serves any number of students. The likeliest tokens alone give a biased gradient; drawn ones do not
(arXiv:2503.16870). The draws of a position are systematic: with one uniform number u, the quantiles (u + j) / samples.
A token of probability p is drawn samples x p times on average, as by independent draws, and never a whole time more or
less, so the variance is smaller. u follows from the seed and the row's number.

A finished file is found again, so a pass that was stopped continues. The teacher computes in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from governance.config import Section
from governance.errors import CheckpointError, MissingInput
from governance.files import atomic_file
from governance.manifest import Manifest, verify
from governance.parallel import Shard, ShardMade, map_shards
from governance.stage import Made, Recipe, Runtime, run_stage
from pretrain.config.distillation import DistillationConfig
from pretrain.config.training import EngineConfig
from pretrain.data.dataset import Rows, open_rows
from pretrain.distillation.teacher import FIELD, Teacher
from pretrain.distributed.process_group import lone_device
from pretrain.evaluation.validation import placed
from pretrain.model.flops import piece_tokens

VERSION = 1
STAGE = "teacher_logits"
SHARD_BYTES = 16 << 20
_PASS_TOKENS = 2048
_ROLE = "draws"


class DrawConfig(Section):
    """Settings that decide the draws of given rows and teacher."""

    sequence_length: int
    temperature: float
    samples: int
    seed: int


Draw = Callable[[list[int]], npt.NDArray[np.int64]]
"""Draws [rows, L, samples] of the rows of these numbers."""


def draw_logits(
    teacher: Teacher,
    tokens: Manifest,
    settings: tuple[DistillationConfig, int],
    runtime: Runtime,
    engine: EngineConfig | None = None,
) -> Manifest:
    """Make or find the draws for these rows.

    `settings` are the section and the row length.

    Raises:
        CheckpointError: the teacher's files are altered, or it has another vocabulary.
        MissingInput: they are not made, and `runtime.make` is False.
    """
    config, length = settings
    section = DrawConfig(
        sequence_length=length, temperature=config.temperature, samples=config.samples, seed=config.seed
    )
    recipe, inputs = Recipe(STAGE, VERSION, section), [tokens.as_input(), teacher.source]

    def make(target: Path) -> Made:
        rows = open_rows(tokens, "train", runtime.root, length)
        kind = np.dtype("<u2" if rows.vocabulary_size <= 1 << 16 else "<u4")
        each = max(1, SHARD_BYTES // (length * config.samples * kind.itemsize))
        drawing = _DrawPass(rows, section, kind, _opened(teacher, rows.vocabulary_size, engine or EngineConfig()))
        shards = [
            Shard(f"{number:05d}", (*(item.digest for item in inputs), f"{first}+{each}"), (drawing, first, each))
            for number, first in enumerate(range(0, rows.count, each))
        ]
        here = replace(runtime, workers=1, engine="duckdb")  # the teacher is in this process
        done = map_shards(recipe, _draw_shard, shards, target, here, ".draws")
        return Made(
            [output for one in done for output in one.outputs.values()],
            {
                "rows": rows.count,
                "rows_per_shard": each,
                "samples": config.samples,
                "bytes_per_token": config.samples * kind.itemsize,
                "targets": rows.targets,
            },
        )

    return run_stage(recipe, inputs, runtime, make)


@dataclass(frozen=True)
class _DrawPass:
    rows: Rows
    section: DrawConfig
    kind: np.dtype[Any]
    decoder: Callable[[], Any]
    """Opens the teacher, once."""


def _opened(teacher: Teacher, vocabulary_size: int, engine: EngineConfig) -> Callable[[], Any]:
    @cache
    def decoder() -> Any:
        if (held := teacher.checkpoint) is not None and (problems := verify(held.manifest, held.root)):
            raise CheckpointError(f"{FIELD}: {teacher.source.path} was altered:\n  " + "\n  ".join(problems))
        return placed(teacher.decoder(vocabulary_size), "fp32", lone_device(engine))

    return decoder


def _draw_shard(section: Section, payload: tuple[_DrawPass, int, int], path_of: Callable[[str], Path]) -> ShardMade:
    """Write the draws of some rows."""
    drawing, first, count = payload
    numbers = list(range(first, min(first + count, drawing.rows.count)))
    each = max(1, _PASS_TOKENS // drawing.section.sequence_length)
    path = path_of(_ROLE)
    with atomic_file(path) as file:
        for start in range(0, len(numbers), each):
            file.write(_draw(drawing, numbers[start : start + each]).astype(drawing.kind).tobytes())
    return ShardMade({_ROLE: path}, {})


def _draw(drawing: _DrawPass, numbers: list[int]) -> npt.NDArray[np.int64]:
    import torch

    from pretrain.distillation.student import probabilities

    teacher, section = drawing.decoder(), drawing.section
    uniform = np.stack([np.random.default_rng([section.seed, row]).random(section.sequence_length) for row in numbers])
    place = teacher.device
    batch = drawing.rows.batch(numbers)
    counted = batch.targets >= 0
    found = torch.zeros((*counted.shape, section.samples), dtype=torch.int64)
    with torch.no_grad():
        rows = batch.to(place)
        states = teacher.model(rows.tokens, rows.segments, rows.positions)[0][counted.to(place)]
        offsets = torch.from_numpy(uniform)[counted].to(place)
        size, step = drawing.rows.vocabulary_size, piece_tokens(teacher.lm_head.out_features, place.type)
        drawn = [
            systematic(probabilities(teacher, part, size, section.temperature), offset, section.samples)
            for part, offset in zip(states.split(step), offsets.split(step), strict=True)
        ]
        if drawn:
            found[counted] = torch.cat(drawn).cpu()
    return found.numpy()


def systematic(probabilities: Any, uniform: Any, samples: int) -> Any:
    """Tokens [N, samples] drawn from [N, V] by systematic sampling.

    `uniform` [N] are numbers in [0, 1).
    """
    import torch

    levels = probabilities.double().cumsum(-1)
    quantiles = (uniform[:, None] + torch.arange(samples, device=uniform.device)) / samples
    found = torch.searchsorted(levels, quantiles * levels[:, -1:], right=True)
    return found.clamp_(max=probabilities.shape[1] - 1)


def find_draws(
    teacher: Teacher, tokens: Manifest, settings: tuple[DistillationConfig, int], runtime: Runtime
) -> Manifest:
    """The finished draws for these rows.

    Raises:
        MissingInput: there are none; names the command, and draws for other rows, teachers or settings.
    """
    look = replace(runtime, make=False, command="assay teacher-logits CONFIG")
    try:
        return draw_logits(teacher, tokens, settings, look)
    except MissingInput as error:
        raise MissingInput(
            f"train.distillation.logits = 'sampled': {error}\n  Draws are of one teacher, one packing of the rows and "
            f"one temperature; those of others do not count."
        ) from error


def open_draws(drawn: Manifest, rows: Rows, root: Path) -> Draw:
    """Reader of the draws of each row."""
    stats = drawn.stats
    kind = np.dtype(f"<u{stats['bytes_per_token'] // stats['samples']}")
    shape = (-1, rows.sequence_length, stats["samples"])
    files = [np.memmap(path, kind, "r").reshape(shape) for path in drawn.files(_ROLE, root)]
    each = stats["rows_per_shard"]

    def draws_of(numbers: list[int]) -> npt.NDArray[np.int64]:
        return np.stack([files[number // each][number % each] for number in numbers]).astype(np.int64)

    return draws_of
