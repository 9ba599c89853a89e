"""Plans against the policy's energy budget, and a submission's line."""

from __future__ import annotations

from dataclasses import dataclass

from assay.config import LoadedRun
from assay.planning.cluster import cluster_of_job
from assay.planning.plan import Correction, Plan, PlanInputs, make_plan
from assay.planning.plan_page import summary
from governance.gate.policy import EnergyBudget
from governance.reports.html.markup import decimal
from pretrain.config.model import ModelConfig
from slurm.config import SlurmConfig


@dataclass(frozen=True)
class OverBudget:
    """A plan that a budget may not cover."""

    words: str
    certain: bool
    """True where the expected figure is above it, and not only the upper bound."""


def over_budget(plan: Plan, budget: EnergyBudget | None) -> OverBudget | None:
    """Compare a training with the policy's budget; None: it is within."""
    _, value, high = plan.costs["kwh"]
    if budget is None or value is None or high is None:
        return None
    if budget.scope == "root":  # the ledger has those of train.continue_from, too
        value, high = (one * (plan.begun + plan.steps) / plan.steps for one in (value, high))
    if high <= budget.kilowatt_hours:
        return None
    certain = value > budget.kilowatt_hours
    words = (
        f"energy budget: the policy allows {budget.kilowatt_hours:,g} kWh, and the plan's training takes "
        f"{decimal(value)} kWh (up to {decimal(high)}), so it would be stopped before its end. Raise kilowatt_hours in "
        "[energy_budget], or plan fewer steps or a smaller model"
    )
    return OverBudget(words if certain else words.replace("would", "may"), certain)


def submission_lines(
    run: LoadedRun,
    vocabulary: int,
    section: SlurmConfig,
    teacher: ModelConfig | None,
    document_tokens: float | None,
    begun: int = 0,
) -> tuple[str, list[str]]:
    """A submission's line and its warnings.

    A warning says that the run does not fit the nodes, or that it may exceed the energy budget. Documents count as of
    their mean length, and the steps `begun` by another run cost nothing, as in `assay plan`.

    Raises:
        ConfigError: the cluster file is wrong, its nodes have too few GPUs, or the batch does not divide.
    """
    cluster = cluster_of_job(section, run.folder)
    correction = Correction(document_tokens=document_tokens)
    inputs = PlanInputs(vocabulary, cluster, section.nodes, teacher, correction, section.spare_nodes, begun)
    found = make_plan(run, inputs)
    over = over_budget(found, run.policy.energy_budget)
    refused = [f"on {section.cluster} nodes the start would end with: {found.step.refusal}"] * bool(found.step.refusal)
    return summary(found), [*refused, *([over.words] if over else [])]
