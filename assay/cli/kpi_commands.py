"""Handlers of `assay governance kpi-plan` and `kpi-test`."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from assay.cli.output import artifact, say
from assay.cli.run_commands import Arguments, checkpoint_of, command_line, load
from governance.errors import GateClosed, MissingInput
from governance.gate.chain import require_chain
from governance.kpi.kpi_evidence import KpiRequest, ModelEnergy, find_plan, make_plan, make_test
from governance.kpi.kpi_file import load_kpis
from governance.kpi.other_plans import rival_plans
from governance.manifest import Manifest
from governance.reports.facts.energy_totals import energy_facts
from governance.reports.sections.kpi_section import answer, detectable_words, kpi_line, plan_words
from governance.stage import Runtime, read_artifact


def plan(arguments: Arguments) -> None:
    """Sign a KPI file's plan; print sample size and duration."""
    file = load_kpis(arguments.kpis)
    loaded, runtime = load(arguments, "governance kpi-plan")
    journal = loaded.journal(runtime.root)
    made = make_plan(file, runtime, journal.verified())
    say(plan_words(made.stats, made.config), **artifact(made, runtime.root), **made.stats)
    for row in made.stats["kpis"]:
        say(f"  {row['name']}: {row['groups']:,} needed; {detectable_words(row, made.config)}")
    others = rival_plans(file, made, journal.verified(), runtime.root)
    if others:
        names = ", ".join(f"{other.plan} ({other.experiment})" for other in others)
        say(f"  signed for the same experiment or metric: {names}. Each test has alpha over {len(others) + 1}.")
    line = f"{command_line(arguments, 'governance kpi-test')} {arguments.kpis} OUTCOMES"
    say(f"signed; do not change {arguments.kpis} from now on. When the outcomes are in: {line}", next=line)


def test(arguments: Arguments) -> int:
    """Test outcomes under their plan; print whether the model paid.

    The status is 77 where the test decides nothing.
    """
    from assay.pipeline import corpus, training

    file = load_kpis(arguments.kpis)
    loaded, runtime = load(arguments, "data prepare")
    planning = f"{command_line(arguments, 'governance kpi-plan')} {arguments.kpis}"
    planned = find_plan(file, arguments.kpis, replace(runtime, command=planning))
    journal = loaded.journal(runtime.root)
    require_chain([planned], runtime.root, journal)
    look = replace(runtime, make=False)
    artifacts = corpus(loaded, look)
    model = read_artifact(checkpoint_of(arguments, loaded, artifacts, runtime)[0])
    with contextlib.suppress(MissingInput, GateClosed):  # another run's checkpoint
        artifacts["train"] = training(loaded, artifacts, look)
    energy = model_energy(artifacts, runtime)
    asked = KpiRequest(file, arguments.data, planned, model, energy, arguments.early)
    made = make_test(asked, journal.verified(), runtime)
    say(answer(made.stats), **artifact(made, runtime.root), **made.stats)
    for row in made.stats["kpis"]:
        say(f"  {kpi_line(row, made.stats['confidence'])}")
    line = command_line(arguments, "report")
    say(f"the report shows it: {line}", next=line)
    return GateClosed.exit_code if made.stats["faults"] else 0


def model_energy(artifacts: dict[str, Manifest], runtime: Runtime) -> ModelEnergy:
    """Energy under a root, waste included, and of ancestors elsewhere."""
    found = energy_facts(list(artifacts.values()), runtime.root)
    total = found["total"]
    parts = (found["views"] or {}).get("parts", ())
    inherited = [part["joules"] for part in parts if part["from"] == "manifest"]
    known, complete = sum(joules or 0.0 for joules in inherited), None not in inherited

    def whole(joules: float | None) -> float | None:
        return None if joules is None else joules + known

    low = whole(total["low"])
    return ModelEnergy(whole(total["joules"]), low, whole(total["high"])) if complete else ModelEnergy(None, low, None)
