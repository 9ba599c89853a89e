"""Training facts from metrics.jsonl and checkpoint manifests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from governance.files import read_lines
from governance.manifest import FILE_NAME, Manifest, read_manifest

Point = tuple[float, float]

_CURVES = {
    "loss": "loss",
    "lr": "learning_rate",
    "grad_norm": "grad_norm",
    "tokens_per_second": "tokens_per_second",
    "mfu": "mfu",
    "mfu_gemm": "mfu_gemm",
    "joules_per_token": "joules_per_token",
}
_MAX_POINTS = 400


def training_facts(train: Manifest, root: Path) -> dict[str, Any]:
    """Figures, curves and checkpoints of a training run.

    Where a step was computed twice (an attempt was killed after its checkpoint), the later attempt's numbers count.
    """
    lines = [line for line in read_lines(root / train.folder / "metrics.jsonl") if isinstance(line, dict)]
    steps = _by_step(lines, "step")
    validations = _by_step(lines, "validation")
    if classifies(train.config):
        validations = [_without_bits(line) for line in validations]
    curves = {name: _curve(steps, key) for key, name in _CURVES.items()}
    for name in ("loss", "bits_per_byte"):
        curves[f"validation_{name}"] = _curve(validations, name)
    starts = [line for line in lines if line.get("event") == "start"]
    flops = starts[-1].get("flops_per_token") if starts else None
    tokens = train.stats.get("tokens")
    return {
        "path": train.folder,
        "digest": train.digest,
        "stats": train.stats,
        "config": train.config,
        "execution": train.run.get("execution", {}),
        "origin": origin_of_weights(train),
        "attempts": len({line.get("attempt") for line in lines}),
        "peak_source": starts[-1].get("peak_source") if starts else None,
        "gemm_source": starts[-1].get("gemm_source") if starts else None,
        "device": starts[-1].get("device") if starts else None,
        "flops_per_token": flops,
        "flops": None if flops is None or tokens is None else flops * tokens,
        "validation": {by: _groups(validations, f"by_{by}") for by in ("source", "language")},
        "curves": {name: thin(points) for name, points in curves.items()},
        "profiles": [
            {name: line.get(name) for name in ("attempt", "first", "step", "time", "seconds", "path", "top")}
            for line in lines
            if line.get("event") == "profile"
        ],
        "checkpoints": checkpoints(train, root),
    }


def origin_of_weights(train: Manifest) -> dict[str, Any] | None:
    """Origin of the first weights; None where they are random."""
    stated = train.run.get("origin")
    if stated or len(train.inputs) < 2:
        return stated
    return {"from": train.inputs[1].path, "verified": False, "why": "an earlier release did not check it"}


def classifies(config: Mapping[str, Any]) -> bool:
    """Return whether a training of these settings learns labels."""
    return bool((config.get("model") or {}).get("num_labels"))


def _without_bits(validation: Mapping[str, Any]) -> dict[str, Any]:
    """A classifier's validation line without bits per byte: a label spells none."""
    line = {name: value for name, value in validation.items() if name != "bits_per_byte"}
    for by in ("by_source", "by_language"):
        groups = line.get(by, {})
        line[by] = {
            name: {field: value for field, value in group.items() if field != "bits_per_byte"}
            for name, group in groups.items()
        }
    return line


def _groups(lines: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """Last validation and curves of each source or language, most tokens first."""
    names = {name for line in lines for name in line.get(key, {})}
    rows = []
    for name in names:
        mine = [{"step": line["step"], **line[key][name]} for line in lines if name in line.get(key, {})]
        curves = {field: thin(_curve(mine, field)) for field in ("loss", "bits_per_byte")}
        last = {field: mine[-1].get(field) for field in ("loss", "loss_stderr", "bits_per_byte", "tokens")}
        rows.append({"name": name, **last, "curves": curves})
    return sorted(rows, key=lambda row: (-(row["tokens"] or 0), row["name"]))


def _by_step(lines: Sequence[Mapping[str, Any]], event: str) -> list[Mapping[str, Any]]:
    """The last line of each step, by step."""
    found = {line["step"]: line for line in lines if line.get("event") == event and isinstance(line.get("step"), int)}
    return [found[step] for step in sorted(found)]


def _curve(lines: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    """Points (step, value) of the finite values."""
    points = [(line["step"], line.get(key)) for line in lines]
    return [
        (float(step), float(value))
        for step, value in points
        if isinstance(value, (int, float)) and math.isfinite(value)
    ]


def thin(points: Sequence[Point]) -> list[Point]:
    """About 400 points at most; each stretch keeps its minimum and maximum."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    width = -(-len(points) // (_MAX_POINTS // 2))
    kept: list[Point] = []
    for start in range(0, len(points), width):
        stretch = points[start : start + width]
        kept += [min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])]
    return sorted({points[0], *kept, points[-1]})


def checkpoints(train: Manifest, root: Path) -> list[dict[str, Any]]:
    """Existing checkpoints of this training, by step.

    Raises:
        ManifestError: a checkpoint's manifest is torn or altered.
    """
    found = []
    for path in sorted(root.glob(f"checkpoint/*/{FILE_NAME}")):
        manifest = read_manifest(path)
        if manifest.config.get("train_key") == train.key:
            found.append(
                {
                    "step": manifest.config.get("step"),
                    "path": manifest.path,
                    "digest": manifest.digest,
                    "bytes": sum(output.bytes for output in manifest.outputs),
                    "finished": manifest.run.get("finished"),
                }
            )
    return sorted(found, key=lambda row: row["step"] or 0)
