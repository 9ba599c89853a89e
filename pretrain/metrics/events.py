"""Chart names of metrics for W&B and TensorBoard.

    step        train/loss  train/lr  train/grad_norm  data/tokens  data/epoch  speed/mfu  memory/peak  energy/joules
                gradient/<group>            of `gradient_norms`
                loss/<source>/<language>    of `by_origin`
    validation  validation/loss  validation/<source>/loss  validation/<source>/<language>/loss  ...
    task        task/<task>/<field>
    ranks       ranks/seconds/<rank>        of `seconds`, for the first 64 ranks: a chart has no room for more lines
    others      <event>/<field>

A field that is not listed here is drawn as well, below its event's name: every number has a chart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

_STEP_FIELDS = {
    "train": ("loss", "lr", "grad_norm"),
    "data": ("tokens", "rows", "rows_read", "epoch", "epoch_share"),
    "speed": (
        "seconds",
        "seconds_data",
        "seconds_callbacks",
        "tokens_per_second",
        "targets_per_second",
        "mfu",
        "mfu_gemm",
        "gemm_flops_per_second",
    ),
    "energy": ("joules", "joules_per_token"),
}
_STEP_CHARTS = {field: f"{section}/{field}" for section, fields in _STEP_FIELDS.items() for field in fields} | {
    "memory": "memory/used",
    "memory_peak": "memory/peak",
    "memory_reserved": "memory/reserved",
    "gradient_norms": "gradient",
    "by_origin": "loss",
}
_CHARTS = {"step": _STEP_CHARTS, "validation": {"by_origin": "validation", "by_source": "validation"}}
_UNNAMED = {"step": "train"}
_PLACE = ("event", "step", "attempt")
_BY_RANK = ("ranks", "seconds")
_RANKS_DRAWN = 64


def chart_values(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record's line, by chart.

    Text, truth values, lists and unknown values have no chart, except the list of ranks' seconds, which has one line a
    rank.
    """
    event = str(line["event"])
    charts, rest = _CHARTS.get(event, {}), _UNNAMED.get(event, event)
    if "task" in line:  # one event for each task
        rest = f"{event}/{line['task']}"
    values: dict[str, float] = {}
    for field, value in line.items():
        if (event, field) == _BY_RANK:
            value = {str(rank): seconds for rank, seconds in enumerate(value[:_RANKS_DRAWN])}
        if field not in _PLACE:
            values.update(_leaves(charts.get(field) or f"{rest}/{field}", value))
    return values


def _leaves(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for part, inner in value.items():
            yield from _leaves(f"{name}/{part}", inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, value


def summary_of(chart: str) -> Literal["min", "max", "mean", "last"]:
    """Summary of a chart: least loss, greatest memory, mean speed."""
    section, _, name = chart.partition("/")
    if section == "loss" or name.rpartition("/")[2] in ("loss", "bits_per_byte"):
        return "min"
    if section == "memory":
        return "max"
    return "mean" if section == "speed" or chart.startswith("ranks/seconds") else "last"
