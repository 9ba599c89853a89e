"""Layouts around a plan: ZeRO stages, numbers of nodes, micro batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from assay.config import LoadedRun
from assay.planning.plan import PlanInputs, StepPlan, step_plan
from governance.errors import ConfigError

_NODES = (0.25, 0.5, 1, 2, 4)
_MAX_ROWS = 64


def layouts(run: LoadedRun, inputs: PlanInputs) -> list[StepPlan]:
    """All layouts around the number of nodes whose ranks divide the batch."""
    found: list[StepPlan] = []
    for nodes in sorted({max(1, int(inputs.nodes * factor)) for factor in _NODES}):
        for stage in (0, 1, 2, 3):
            found += _of(run, replace(inputs, nodes=nodes), stage)
    return found


def _of(run: LoadedRun, inputs: PlanInputs, stage: int) -> Iterator[StepPlan]:
    settings = run.settings
    changes: dict[str, object] = {"zero_stage": stage}
    if stage < 3:  # stage 3's own settings
        changes |= {"hpz_partition_size": 1, "offload_parameters": "none"}
    if stage == 0:
        changes["offload_optimizer"] = "none"
    rows = 1
    while rows <= _MAX_ROWS:
        engine = settings.engine.model_copy(update={**changes, "micro_batch_size": rows})
        try:
            yield step_plan(run.config.recipe, replace(settings, engine=engine), inputs)
        except ConfigError:  # these rows do not divide the batch, and more do not either
            return
        rows *= 2


def fastest(found: list[StepPlan]) -> list[StepPlan]:
    """Fastest layouts that fit, by number of nodes and stage.

    Where none fits it is the leanest.
    """

    def order(one: StepPlan) -> tuple[bool, bool, float]:
        return bool(one.refusal), one.tight, one.memory.device_bytes if one.refusal or one.tight else one.seconds

    best: dict[tuple[int, int], StepPlan] = {}
    for one in found:
        key = (one.nodes, one.engine.zero_stage)
        if key not in best or order(one) < order(best[key]):
            best[key] = one
    return list(best.values())
