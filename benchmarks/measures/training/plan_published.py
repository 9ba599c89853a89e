"""Published training speeds on H100s against the plan's model of time.

Four factors of `assay/planning/time_calibration.py` are fitted to the rows; each row is predicted by a fit that saw no
row of its source and model. The rows are of other programs, so what only DeepSpeed does is left out: its sums in each
pass and its waits. Pipelines, which Assay has not, are their layers divided and the bubble (p - 1) / (v m) added; their
communication lies beside computation, but for one more fitted share of that within blocks.

A row's published form counts tokens; the micro batches of llm-foundry that do not divide its batch are rounded.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from assay.planning.cluster import read_cluster
from assay.planning.time_calibration import GPU, Calibration
from benchmarks.measures.goals import Goal, figure
from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig
from pretrain.config.training import EngineConfig, TrainConfig, TrainRecipe
from pretrain.distributed.process_group import Ranks
from pretrain.model.flops import parameter_count
from pretrain.preflight.forecast import Forecast, Machine, forecast

ROWS = Path(__file__).parents[2] / "published.toml"
WITHIN = 0.2
"""The goal: predicted time within a fifth of the published."""
_LARGE = 6.5e9
_FITTED = ("products", "attention", "eager", "hidden")


@dataclass(frozen=True)
class PublishedRow:
    """A published speed with the forecast of its layout."""

    name: str
    group: str
    """Source and model: rows that a fit leaves out together."""
    seconds: float
    """Published time of a step."""
    found: Forecast
    once: float
    """Seconds of the optimizer's update."""
    bubble: float
    compiled: bool
    pipelined: bool
    parameters: int
    tokens_a_gpu: float
    """Published tokens per second and GPU."""

    def predicted(self, calibration: Calibration, overlapped: float) -> float:
        """Seconds of a step."""
        parts = calibration.seconds(self.found, self.compiled)
        if self.pipelined:
            parts["communication"] = overlapped * self.found.within
        del parts["waits"], parts["update"]
        return self.bubble * sum(parts.values()) + self.once


def published() -> list[PublishedRow]:
    """All rows."""
    stated = tomllib.loads(ROWS.read_text(encoding="utf-8"))
    machine = read_cluster("h100").machine
    return [_row(row, stated, machine) for row in stated["rows"]]


def _row(row: dict[str, Any], stated: dict[str, Any], machine: Machine) -> PublishedRow:
    source, kind = stated["sources"][row["source"]], stated["models"][row["model"]]
    if "memory_gb_s" in source:
        machine = replace(machine, copies=1e9 * source["memory_gb_s"])
    tensor, context, stages = row.get("tensor", 1), row.get("context", 1), row.get("pipeline", 1)
    whole = ModelConfig(**kind["model"], max_position_embeddings=row["length"])
    model = whole.model_copy(update={"num_hidden_layers": whole.num_hidden_layers // stages})
    copies = row["gpus"] // (tensor * context * stages)
    passes = max(1, round(row["batch"] / (copies * row["rows"])))
    train = TrainConfig(
        sequence_length=row["length"],
        global_batch_size=passes * copies * row["rows"],
        steps=1,
        gradient_reduction="bf16",
    )
    recipe = TrainRecipe(model=model, optim=OptimConfig(learning_rate=1e-3), train=train)
    engine = EngineConfig(
        zero_stage=3 if stages == 1 else 1,
        micro_batch_size=row["rows"],
        activation_checkpointing=row.get("checkpointing", "none"),
        tensor_parallel_size=tensor,
        sequence_parallel_size=context,
    )
    ranks = Ranks(0, row["gpus"] // stages, 0, min(8, row["gpus"]))
    parameters = parameter_count(whole, kind["vocabulary"])
    tokens = train.global_batch_size * row["length"]
    seconds = row["seconds"] if "seconds" in row else tokens / row["tokens_a_gpu"] / row["gpus"]
    compiled = row.get("compiled", False)
    name = f"{row['model']}.{row['gpus']}_gpus.{row['length']}" + ".compiled" * (compiled and stages == 1)
    return PublishedRow(
        name, f"{row['source']}/{row['model']}", seconds, forecast(recipe, engine, kind["vocabulary"], ranks, machine),
        46 * parameters / row["gpus"] / machine.copies, 1 + (stages - 1) / (row.get("virtual", 1) * passes), compiled,
        stages > 1, parameters, tokens / seconds / row["gpus"],
    )  # fmt: skip


def fit(rows: Sequence[PublishedRow]) -> tuple[Calibration, float]:
    """The factors that predict the rows best, and the exposed share of Megatron's communication."""
    from scipy.optimize import least_squares

    def of(values: Sequence[float]) -> tuple[Calibration, float]:
        return replace(GPU, **dict(zip(_FITTED, map(float, values[:4]), strict=True))), float(values[4])

    def errors(values: Sequence[float]) -> list[float]:
        return [float(np.log(row.predicted(*of(values)) / row.seconds)) for row in rows]

    bounds = ([0.8, 0.8, 1.0, 0.0, 0.0], [1.5, 3.0, 4.0, 1.2, 1.2])
    found = least_squares(errors, [1.0, 1.5, 2.0, 0.5, 0.3], bounds=bounds, loss="soft_l1", f_scale=0.1)
    return of(found.x)


def left_out(rows: Sequence[PublishedRow]) -> Iterator[tuple[PublishedRow, float]]:
    """Each row with its predicted time, by a fit without its source and model."""
    for group in dict.fromkeys(row.group for row in rows):
        found = fit([row for row in rows if row.group != group])
        yield from ((row, row.predicted(*found)) for row in rows if row.group == group)


def goals() -> list[Goal]:
    """Goals on the published rows."""
    rows = published()
    whole, overlapped = fit(rows)
    errors = []
    found = []
    for row, seconds in left_out(rows):
        error = seconds / row.seconds - 1
        errors.append((row, error))
        found.append(
            figure(f"plan.published.{row.name}.time_off", error, f"{seconds:.3g} s, published {row.seconds:.3g}")
        )
    large = [abs(error) for row, error in errors if row.parameters >= _LARGE]
    found.append(Goal("plan.published.rows_within_a_fifth", float(sum(error <= WITHIN for error in large)), 8.0,
                      note=f"of {len(large)} of 7B to 405B, source and model left out"))  # fmt: skip
    found.append(Goal("plan.published.median_time_off", float(np.median(large)), WITHIN, "<="))
    found.append(figure("plan.published.largest_time_off", max(large)))
    drift = max(abs(asdict(GPU)[name] / asdict(whole)[name] - 1) for name in _FITTED)
    words = ", ".join(f"{name} {asdict(whole)[name]:.3f}" for name in _FITTED)
    found.append(Goal("plan.published.shipped_factors_off", drift, 0.02, "<=", f"{words}, overlapped {overlapped:.3f}"))
    return found


def plot() -> str:
    """Predicted over published tokens per second and GPU, rows left out, as an SVG on logarithmic axes."""
    side, edge, low, high = 520, 60, np.log(150.0), np.log(70000.0)

    def at(value: float) -> float:
        return float(edge + (side - 2 * edge) * (np.log(value) - low) / (high - low))

    head = f'viewBox="0 0 {side} {side}" font-family="sans-serif" font-size="12"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {head}>']
    parts.append(f'<rect width="{side}" height="{side}" fill="white"/>')
    for mark in (200, 500, 1000, 2000, 5000, 10000, 20000, 50000):
        x, y = f"{at(mark):.1f}", f"{side - at(mark):.1f}"
        parts.append(f'<path d="M{x} {edge}V{side - edge}M{edge} {y}H{side - edge}" stroke="#eee"/>')
        parts.append(f'<text x="{at(mark):.1f}" y="{side - edge + 18}" text-anchor="middle">{mark:,}</text>')
        parts.append(f'<text x="{edge - 6}" y="{side - at(mark) + 4:.1f}" text-anchor="end">{mark:,}</text>')
    ends = (160.0, 60000.0)
    for factor, dash in ((1.0, ""), (1 / (1 - WITHIN), "4 4"), (1 / (1 + WITHIN), "4 4")):
        line = " ".join(f"{at(end):.1f},{side - at(end * factor):.1f}" for end in ends)
        parts.append(f'<polyline points="{line}" fill="none" stroke="#888" stroke-dasharray="{dash}"/>')
    colours = {"llm-foundry": "#17637f", "torchtitan": "#b1540d", "dgxc": "#5a8a00"}
    for row, seconds in left_out(published()):
        speed, found = row.tokens_a_gpu, row.tokens_a_gpu * row.seconds / seconds
        place = (
            f'cx="{at(speed):.1f}" cy="{side - at(found):.1f}" r="3.5" fill="{colours[row.group.partition("/")[0]]}"'
        )
        words = f"{row.name}: {speed:,.0f} published, {found:,.0f} predicted"
        parts.append(f"<circle {place}><title>{words}</title></circle>")
    for number, (name, colour) in enumerate(colours.items()):
        parts.append(f'<text x="{edge + 10}" y="{edge + 16 + 16 * number}" fill="{colour}">{name}</text>')
    middle = 'text-anchor="middle"'
    parts.append(f'<text x="{side / 2}" y="{side - 12}" {middle}>published tokens/s a GPU (H100, bf16)</text>')
    turned = f'transform="rotate(-90 16 {side / 2})"'
    parts.append(f'<text x="16" y="{side / 2}" {middle} {turned}>predicted, source and model left out</text>')
    return "\n".join([*parts, "</svg>", ""])
