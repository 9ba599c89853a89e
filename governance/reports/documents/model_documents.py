"""Model card for the Hugging Face Hub, and the European form.

The card is README.md with a YAML block. Its form is that of arXiv:1810.03993. The block contains only what evidence
supports; fields of the Hub without evidence are remarks for a person to complete.

FLOP of a run = FLOP per token (6 N of every weight that a token multiplies, and attention, as the trainer counts it)
x tokens of the steps that count. Excluded are validation, repeated steps, activation checkpointing and other models
(synthetic data, a parent model): a person adds these where they apply.

The provider's score of SCI for AI (Green Software Foundation) has three units: FLOP, tokens, parameters. Gross FLOP
count repeated steps, gross tokens the raw text (its bytes at the kept text's tokens per byte), gross parameters all;
effective ones the steps that count, the tokens of the corpus, the parameters that a token uses.

The European form is the model documentation form of the general-purpose-AI code of practice. It covers Annexes XI and
XII of the AI Act. Items follow the form's order and are paraphrased; the form itself states the addressee of each (AI
Office, authorities, downstream providers).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from governance.reports.documents.corpus_facts import findings
from governance.reports.documents.evidence import (
    TO_COMPLETE,
    Evidence,
    Field,
    ancestry_text,
    joined,
    kilowatt_hours,
    task_of,
)
from governance.reports.documents.markdown import filled, rows
from governance.reports.html.markup import compact, decimal, duration, number, visible

_MAX_ROWS = 12  # differences between groups; the report has all


def model_card(evidence: Evidence) -> str:
    """The card; the run must have a training."""
    by_suite = findings(evidence)
    each = max(1, _MAX_ROWS // max(1, len(by_suite)))
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
        listed=f" The first {number(each)} of each suite, those on the most text first:"
        if len(shown) < sum(map(len, by_suite.values()))
        else "",
        with_ancestors=ancestry_text(evidence.found),
        kilowatt_hours=kilowatt_hours,
        removed_words=lambda removed: f"{len(removed)}, by a replay of the training without them",
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
        remarks.append(f"co2_eq_emissions: unknown; needs {', '.join(carbon['needs'])}")
    else:
        emissions = {
            "emissions": float(carbon["value"]),
            "source": f"{'; '.join(evidence.at('energy.total.methods'))}; location-based, failed attempts included:"
            f" {evidence.footprint('carbon_location')}",
            "training_type": TO_COMPLETE if evidence.parents else "pre-training",
            "geographical_location": evidence.at("energy.footprint.country") or TO_COMPLETE,
            "hardware_used": hardware(evidence) or TO_COMPLETE,
        }
    task_type = task_of(evidence.at("training.config.model") or {})
    results = [
        EvalResult(task_type, "local", visible(task), measure, value)
        for task, measure, value in _task_measures(evidence)
    ]
    data = ModelCardData(
        language=evidence.languages or None,
        pipeline_tag=task_type,
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


class Threshold(NamedTuple):
    """A legal threshold of computation."""

    flop: int
    meaning: str
    source: str


THRESHOLDS = (
    Threshold(
        10**23,
        "indication that a model which generates text, speech, images or video is of general purpose",
        "European Commission, guidelines on the scope of obligations for providers of general-purpose AI models,"
        " C(2025) 5045, 18 July 2025",
    ),
    Threshold(
        10**25,
        "presumption of high-impact capabilities, and so of systemic risk",
        "Regulation (EU) 2024/1689 (AI Act), Article 51(2)",
    ),
)

METHOD = "FLOP per token (6 N and attention, from the architecture) x tokens of the steps that count"


_CONTINUED = ", those of the parent run included, which it continues"


def computation_fields(evidence: Evidence) -> list[Field]:
    """FLOP per token and in total, against legal thresholds."""
    total, continued = evidence.at("training.flops"), evidence.at("training.stats.continued")
    fields = [
        evidence.field("FLOP per token, forward and backward", "training.flops_per_token", scientific),
        evidence.field("tokens trained on", "summary.tokens_trained"),
        evidence.field("FLOP of the training", "training.flops", scientific),
        Field("method", None if total is None else f"{METHOD}{_CONTINUED if continued else ''}"),
    ]
    for threshold in THRESHOLDS:
        name = f"threshold of {threshold.flop:.0e} FLOP: {threshold.meaning} ({threshold.source})"
        fields.append(Field(name, threshold_ratio(total, threshold), "training.flops" if total is not None else ""))
    return fields


def threshold_ratio(flop: Any, threshold: Threshold) -> str | None:
    """Return whether a count exceeds a threshold, and by how much."""
    if flop is None:
        return None
    word = "above" if flop > threshold.flop else "not above"
    return f"{word}: {flop / threshold.flop:.3g} of the threshold"


def scientific(value: float) -> str:
    """A count as 1.234e+18 FLOP."""
    return f"{value:.4g} FLOP" if value < 1e4 else f"{value:.3e} FLOP"


def model_documentation(evidence: Evidence) -> str:
    """The form; the run must have a training."""
    seconds = (evidence.training_energy or {}).get("seconds")
    classifies = bool(evidence.at("training.config.model.num_labels"))
    joules = evidence.at("energy.total.joules")
    text = None if joules is None else f"{decimal(joules / 3.6e9)} MWh"
    return filled(
        "model_documentation",
        evidence,
        parameters=lambda count: f"{number(count)} ({count:.1e})",
        output="labels of texts" if classifies else "text",
        objective=_objective(evidence),
        kinds=joined(sorted({f"{row['name']} ({row['kind']})" for row in evidence.kept})),
        filters=joined([row["stage"] for row in evidence.found["funnel"]]),
        lasted=None if seconds is None else duration(seconds),
        hardware=hardware(evidence),
        computation=rows(*computation_fields(evidence)),
        megawatt_hours=Field("energy of the run, in MWh", text, "energy.total.joules"),
    )


def _objective(evidence: Evidence) -> str:
    """Training objective in words."""
    if evidence.at("training.config.model.num_labels"):
        return "prediction of a text's label"
    of = " of the target" if evidence.at("training.config.model.encoder_layers") else ""
    teacher = ", and of a teacher's distribution of it" if evidence.at("training.config.train.distillation") else ""
    return f"prediction of the next token{of}{teacher}"


_UNITS = {"10^15 FLOP": 1e15, "10^9 training tokens": 1e9, "10^9 parameters": 1e9}


def sci_for_ai(evidence: Evidence) -> str:
    """The provider's score, its boundary, and the runs that it includes."""
    total = evidence.at("energy.total")
    return filled(
        "sci_for_ai",
        evidence,
        scores=[_score(evidence, *row) for row in _amounts(evidence)],
        adds_up=_adds_up(total),
        causes=[[cause, _joules(value)] for cause, value in evidence.at("energy.wasted_by_cause").items()],
        boundary=list(_boundary(evidence)),
        joules=_joules,
        kilowatt_hours=kilowatt_hours,
        scientific=scientific,
        not_metered=lambda missing: "; ".join(missing) or "not stated",
    )


def _amounts(evidence: Evidence) -> list[tuple[str, str, float | None]]:
    """Unit, kind of value and amount; None is not known."""
    flop, steps = evidence.at("training.flops"), evidence.at("training.stats.steps")
    lost = sum(row["lost"] for row in evidence.at("faults.attempts") or ())
    tokens, parameters = evidence.at("summary.train_tokens"), evidence.at("training.stats.parameters")
    experts = (evidence.at("training.config.model") or {}).get("moe")
    before, after = (evidence.found["funnel"][at][name] for at, name in ((0, "bytes_in"), (-1, "bytes_kept")))
    raw = tokens * before / after if tokens and after else None
    by_flop, by_token, by_parameter = _UNITS
    return [
        (by_flop, "effective: steps that count", flop),
        (by_flop, "gross: repeated steps too", flop * (steps + lost) / steps if flop and steps else None),
        (by_token, "effective: tokens of the corpus", tokens),
        (by_token, "gross: raw text, estimated from its bytes", raw),
        (by_parameter, "effective: used by a token", None if experts else parameters),
        (by_parameter, "gross: all", parameters),
    ]


def _score(evidence: Evidence, unit: str, kind: str, amount: float | None) -> list[str]:
    carbon = evidence.at("energy.footprint.figures.carbon_total")
    bounds = [carbon[name] for name in ("value", "low", "high")]
    unknown = ("not known", "not known", "no known bound")
    scores = [
        word if value is None or not amount else f"{value / (amount / _UNITS[unit]):.4g} g CO2e"
        for value, word in zip(bounds, unknown, strict=True)
    ]
    return [unit, kind, "not known" if amount is None else _amount(amount), *scores]


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value < 1e12 else f"{value:.6g}"


def _joules(value: float) -> str:
    return f"{number(value)} J"


def _adds_up(total: Mapping[str, Any]) -> str | None:
    """Return whether the ledger's parts are its whole; None without a ledger."""
    parts = [total[name] for name in ("surviving", "wasted", "running")]
    if total["joules"] is None or total["from"] != "ledger":
        return None
    millijoules = sum(round(1000 * (part or 0)) for part in parts)
    return "yes" if millijoules == round(1000 * total["joules"]) else f"no: {_joules(millijoules / 1000)}"


_BOUNDARY = {
    "data collection": ("fetch", "ingest"),
    "data preprocessing and cleaning": (
        "lists", "language_model", "clean", "code", "filter", "classifier", "classify", "dedup", "paragraphs",
        "substrings", "evaluation_sets", "decontaminate", "redact", "tokenizer", "mix", "encode", "pack", "bias",
        "audit", "data_docs",
    ),
    "synthetic data generation": ("synthetic", "teacher_logits"),
    "model training, on all machines": ("train",),
    "model evaluation and benchmarking": (
        "model_audit", "memorisation", "generate", "interpret", "evaluate",
    ),
}  # fmt: skip
"""Components of the specification's provider boundary that stages of a run are."""
_OUTSIDE = (
    "project scoping and planning", "optimisation analysis", "system integration and orchestration",
    "testing of the system", "model tools", "retirement",
)  # fmt: skip


def _boundary(evidence: Evidence) -> Iterator[list[str]]:
    """Rows of components with the energy of their stages."""
    spent = {
        row["stage"]: row["all_attempts"] if row["all_attempts"] is not None else row["joules"]
        for row in evidence.at("energy.stages")
    }
    placed = {name for names in _BOUNDARY.values() for name in names}
    for component, names in (*_BOUNDARY.items(), ("other stages", [name for name in spent if name not in placed])):
        there = [name for name in names if name in spent]
        known = [spent[name] for name in there if spent[name] is not None]
        if there or component != "other stages":
            words = _joules(sum(known)) if known else "not measured" if there else "no such stage here"
            yield [component, words, ", ".join(there)]
    for component in _OUTSIDE:
        yield [component, "not measured here", ""]
