"""Model card: README.md with YAML block for the Hugging Face Hub.

The form is that of arXiv:1810.03993. The block contains only what evidence supports; fields of the Hub without evidence
are remarks for a person to complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from governance.reports.documents.computation import computation_fields
from governance.reports.documents.corpus_facts import findings, findings_text, parents
from governance.reports.documents.evidence import (
    TO_COMPLETE,
    Evidence,
    Field,
    ancestry_text,
    architecture,
    energy_text,
    joined,
    kilowatt_hours,
)
from governance.reports.documents.markdown import form, section, table
from governance.reports.html.markup import compact, number, visible

_CUMULATIVE = "energy.views.rows.cumulative.joules"
_MOST_ROWS = 12  # of differences between groups, the largest; the report has all


def model_card(evidence: Evidence) -> str:
    """The card; the run must have a training."""
    parts = [
        metadata_block(evidence),
        f"# Model card of {evidence.at('training.path')}\n",
        "Filled from the evidence of the run: numbers are those of report.json."
        f" Entries without evidence are marked: {TO_COMPLETE}.\n",
        section("Model", form(_model(evidence))),
        section("Uses", form(_open("intended uses", "out-of-scope uses", "affected users"))),
        section("Training data", _data(evidence)),
        section("Training", form(_training(evidence)), "### Computation\n", form(computation_fields(evidence))),
        section("Evaluation", _evaluation(evidence)),
        section("Bias, risks and limitations", _bias(evidence)),
        section("Environment", form(environment(evidence))),
        section("Gate of the corpus", form(gate(evidence))),
        section("Contact", form(_open("citation", "authors of this card", "contact"))),
    ]
    return "\n".join(parts)


def _open(*names: str) -> list[Field]:
    return [Field(name, None) for name in names]


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


def _model(evidence: Evidence) -> list[Field]:
    return [
        Field("name", None),
        Field("developed by", None),
        Field("licence", None),
        evidence.field("architecture", "training.config.model", architecture),
        evidence.field("parameters", "training.stats.parameters"),
        evidence.field("vocabulary", "training.stats.vocabulary_size"),
        evidence.field("last checkpoint, digest of its manifest", "training.stats.checkpoint.digest", str),
        evidence.field("last checkpoint, path", "training.stats.checkpoint.path", str),
        parents(evidence, "parent model"),
        Field("languages", joined(evidence.languages), "representation.documents" if evidence.languages else ""),
    ]


def _data(evidence: Evidence) -> str:
    fields = [
        evidence.field("documents read", "summary.documents_in"),
        evidence.field("documents kept", "summary.documents_kept"),
        evidence.field("tokens for training", "summary.train_tokens"),
        evidence.field("tokens for validation", "summary.validation_tokens"),
    ]
    return f"{form(fields)}\nThe datasheet next to this card describes the sources and their processing.\n"


def _training(evidence: Evidence) -> list[Field]:
    return [
        evidence.field("steps", "summary.steps"),
        evidence.field("tokens trained on", "summary.tokens_trained"),
        evidence.field("rows per batch", "training.config.train.global_batch_size"),
        evidence.field("tokens per row", "training.config.train.sequence_length"),
        evidence.field("precision", "training.config.train.precision", str),
        evidence.field("optimizer", "training.config.optim.optimizer", str),
        evidence.field("peak learning rate", "training.config.optim.learning_rate", compact),
        evidence.field("schedule", "training.config.optim.schedule", str),
        evidence.field("weight decay", "training.config.optim.weight_decay", compact),
        evidence.field("attempts", "training.attempts"),
        Field("hardware", hardware(evidence), "training.execution" if hardware(evidence) else ""),
    ]


def _evaluation(evidence: Evidence) -> str:
    fields = [
        evidence.field("loss of the last step", "summary.final_loss", compact),
        evidence.field("validation loss", "summary.validation_loss", compact),
        evidence.field("validation bits per byte", "summary.bits_per_byte", compact),
    ]
    rows = [
        [task, measure, number(value) if isinstance(value, int) else compact(value)]
        for task, measure, value in _task_measures(evidence)
    ]
    results = table(["task", "measure", "value"], rows) if rows else "No task was evaluated during training.\n"
    return f"{form(fields)}\n{results}"


def _task_measures(evidence: Evidence) -> list[tuple[str, str, int | float]]:
    """Task, measure and value of the tasks evaluated during training."""
    tasks: Mapping[str, Mapping[str, Any]] = evidence.at("training.stats.tasks") or {}
    return [
        (name, measure, value)
        for name, row in sorted(tasks.items())
        for measure, value in row.items()
        if isinstance(value, (int, float)) and measure not in ("step", "attempt")
    ]


def _bias(evidence: Evidence) -> str:
    """Significant differences between groups, the largest of each suite."""
    out = findings(evidence)
    each = max(1, _MOST_ROWS // max(1, len(out)))
    rows = [
        [
            suite,
            str(row["metric"]),
            _group(row),
            *(compact(row[name]) for name in ("value", "lower", "upper", "p", "q")),
            number(row["n"]),
        ]
        for suite, found in out.items()
        for row in found[:each]
    ]
    head = ["suite", "measure", "group", "value", "from", "to", "p", "q", "n"]
    listed = "" if len(rows) == sum(map(len, out.values())) else f" The {number(each)} largest of each suite:"
    shown = f"{findings_text(evidence)}{listed}\n\n{table(head, rows)}" if rows else f"{findings_text(evidence)}\n"
    risks = form(_open("risks of the model", "limitations of the model", "recommendations to users"))
    return f"{shown}\n{risks}"


def _group(row: Mapping[str, Any]) -> str:
    return " ".join(str(row[name]) for name in ("language", "axis", "group") if row.get(name))


def environment(evidence: Evidence) -> list[Field]:
    """Energy with its bounds, what of it was wasted, carbon and water."""
    energy, with_ancestors = energy_text(evidence.found), ancestry_text(evidence.found)
    return [
        Field("energy of the run, failed attempts included", energy, "energy.total" if energy else ""),
        evidence.field("of which wasted by failures", "energy.total.wasted", kilowatt_hours),
        evidence.figure("CO2e, location-based", "carbon_location"),
        evidence.figure("CO2e, market-based", "carbon_market"),
        evidence.figure("embodied CO2e of the nodes", "carbon_embodied"),
        evidence.figure("SCI (ISO/IEC 21031:2024)", "sci"),
        evidence.figure("water on site", "water_on_site"),
        evidence.figure("water of the electricity", "water_of_electricity"),
        Field(
            "energy of the last checkpoint with its ancestors", with_ancestors, _CUMULATIVE if with_ancestors else ""
        ),
        evidence.field("not metered", "energy.missing", lambda missing: "; ".join(missing) or "not stated"),
        evidence.field("country of the machines", "energy.footprint.country", str),
    ]


def gate(evidence: Evidence) -> list[Field]:
    """The signed decision on the corpus."""
    return [
        evidence.field("verdict", "summary.verdict", str),
        evidence.field("policy", "verdict.policy.name", str),
        evidence.field("policy, digest", "verdict.policy.digest", str),
        evidence.field("rules", "summary.site", str),
        evidence.field("signature", "summary.signer", str),
        evidence.field("signed at", "verdict.signed_at", str),
        evidence.field("waivers used", "verdict.waivers", lambda waivers: number(len(waivers))),
    ]
