"""Model card: README.md with YAML block for the Hugging Face Hub.

The form is that of arXiv:1810.03993. The block contains only what evidence supports; fields of the Hub without evidence
are remarks for a person to complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from governance.reports.documents.computation import computation_fields
from governance.reports.documents.corpus_facts import findings
from governance.reports.documents.evidence import TO_COMPLETE, Evidence, ancestry_text, kilowatt_hours
from governance.reports.documents.markdown import filled, rows
from governance.reports.html.markup import compact, number, visible

_MOST_ROWS = 12  # of differences between groups, the largest; the report has all


def model_card(evidence: Evidence) -> str:
    """The card; the run must have a training."""
    by_suite = findings(evidence)
    each = max(1, _MOST_ROWS // max(1, len(by_suite)))
    shown = [
        [
            suite,
            str(row["metric"]),
            " ".join(str(row[name]) for name in ("language", "axis", "group") if row.get(name)),
            *(compact(row[name]) for name in ("value", "lower", "upper", "p", "q")),
            number(row["n"]),
        ]
        for suite, found in by_suite.items()
        for row in found[:each]
    ]
    return filled(
        "model_card",
        evidence,
        metadata=metadata_block(evidence),
        hardware=hardware(evidence),
        computation=rows(*computation_fields(evidence)),
        tasks=[
            [task, measure, number(value) if isinstance(value, int) else compact(value)]
            for task, measure, value in _task_measures(evidence)
        ],
        findings=shown,
        listed=f" The {number(each)} largest of each suite:" if len(shown) < sum(map(len, by_suite.values())) else "",
        with_ancestors=ancestry_text(evidence.found),
        kilowatt_hours=kilowatt_hours,
        not_metered=lambda missing: "; ".join(missing) or "not stated",
    )


def metadata_block(evidence: Evidence) -> str:
    """YAML block of the card (`huggingface_hub.ModelCardData`), with remarks for a person.

    Each measure of a task evaluated during training is an `EvalResult`; its data set is local, so its type is "local".
    """
    from huggingface_hub import EvalResult, ModelCardData

    remarks = [f"license: {TO_COMPLETE}"]
    carbon = evidence.at("energy.footprint.figures.carbon_location")
    emissions: dict[str, Any] | None = None
    if carbon["value"] is None:
        remarks.append(f"co2_eq_emissions: unknown; set {', '.join(carbon['needs'])}")
    else:
        emissions = {
            "emissions": float(carbon["value"]),
            "source": f"{'; '.join(evidence.at('energy.total.methods'))}; location-based, failed attempts included:"
            f" {evidence.footprint('carbon_location')}",
            "training_type": "pre-training",
            "geographical_location": evidence.at("energy.footprint.country") or TO_COMPLETE,
            "hardware_used": hardware(evidence) or TO_COMPLETE,
        }
    results = [
        EvalResult("text-generation", "local", visible(task), measure, value)
        for task, measure, value in _task_measures(evidence)
    ]
    data = ModelCardData(
        language=evidence.languages or None,
        pipeline_tag="text-generation",
        tags=["pretraining", "assay"],
        model_name=evidence.at("training.path") if results else None,
        eval_results=results or None,
    )
    if emissions:
        data["co2_eq_emissions"] = {
            name: visible(value) if isinstance(value, str) else value for name, value in emissions.items()
        }
    comments = [f"# {' '.join(visible(remark).split())}" for remark in remarks]
    return "\n".join(["---", data.to_yaml(), *comments, "---"]) + "\n"


def hardware(evidence: Evidence) -> str | None:
    """Recorded hardware of the training."""
    execution = evidence.at("training.execution") or {}
    if not execution.get("device"):
        return None
    processes = execution.get("world_size", 1)
    device = evidence.at("training.device")
    return f"{processes} process(es) on {execution['device']}" + (f" ({device})" if device else "")


def _task_measures(evidence: Evidence) -> list[tuple[str, str, int | float]]:
    """Task, measure and value of the tasks evaluated during training."""
    tasks: Mapping[str, Mapping[str, Any]] = evidence.at("training.stats.tasks") or {}
    return [
        (name, measure, value)
        for name, row in sorted(tasks.items())
        for measure, value in row.items()
        if isinstance(value, (int, float)) and measure not in ("step", "attempt")
    ]
