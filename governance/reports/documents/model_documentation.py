"""Model documentation form of the EU general-purpose-AI code of practice.

Covers Annexes XI and XII of the AI Act. Items follow the form's order and are paraphrased; the form itself states the
addressee of each (AI Office, authorities, downstream providers).
"""

from __future__ import annotations

from governance.reports.documents.computation import computation_fields
from governance.reports.documents.corpus_facts import parents
from governance.reports.documents.evidence import (
    TO_COMPLETE,
    Evidence,
    Field,
    architecture,
    energy_text,
    joined,
)
from governance.reports.documents.markdown import form, section
from governance.reports.documents.model_card import hardware
from governance.reports.html.markup import duration, number


def model_documentation(evidence: Evidence) -> str:
    """The form; the run must have a training."""
    return "\n".join(
        [
            "# Model documentation\n",
            "Items after the model documentation form of the European code of practice for general-purpose AI (10 July"
            " 2025), paraphrased. Filled from the evidence of the run: numbers are those of report.json."
            f" Entries without evidence are marked: {TO_COMPLETE}.\n",
            section("General", form(_general(evidence))),
            section("The model", form(_properties(evidence))),
            section("Distribution and licences", form(_open("channels", "licence, and a link to it", "other assets"))),
            section("Use", form(_use(evidence))),
            section("Training process", form(_process(evidence))),
            section("Data for training, testing and validation", form(_data(evidence))),
            section("Computation", form(_computation(evidence))),
            section("Energy", form(_energy(evidence))),
        ]
    )


def _open(*names: str) -> list[Field]:
    return [Field(name, None) for name in names]


def _general(evidence: Evidence) -> list[Field]:
    return [
        *_open("legal name of the provider", "name of the model"),
        evidence.field(
            "authenticity: digest of the last checkpoint's manifest", "training.stats.checkpoint.digest", str
        ),
        *_open("date of release", "date of placing on the Union market"),
        parents(evidence, "parent models"),
    ]


def _properties(evidence: Evidence) -> list[Field]:
    return [
        evidence.field("architecture", "training.config.model", architecture),
        Field("reasons for the design", None),
        Field("input modalities", "text"),
        evidence.field("maximum input, in tokens", "training.config.model.max_position_embeddings"),
        Field("output modalities", "text"),
        Field("maximum output", None),
        evidence.field("parameters", "training.stats.parameters", parameters),
    ]


def parameters(count: int) -> str:
    """Parameter count, exact and rounded to a power of ten."""
    return f"{number(count)} ({count:.1e})"


def _use(evidence: Evidence) -> list[Field]:
    return [
        *_open("acceptable use policy", "intended or prohibited uses"),
        *_open("systems into which it can be integrated", "technical means of integration"),
        *_open("required hardware", "required software"),
    ]


def _process(evidence: Evidence) -> list[Field]:
    return [
        evidence.field("steps", "summary.steps"),
        evidence.field("tokens trained on", "summary.tokens_trained"),
        evidence.field("rows per batch", "training.config.train.global_batch_size"),
        evidence.field("optimizer", "training.config.optim.optimizer", str),
        evidence.field("schedule", "training.config.optim.schedule", str),
        evidence.field("precision", "training.config.train.precision", str),
        Field("objective", "prediction of the next token"),
        *_open("reasons for these decisions"),
    ]


def _data(evidence: Evidence) -> list[Field]:
    kinds = sorted({f"{row['name']} ({row['kind']})" for row in evidence.kept})
    filters = [row["stage"] for row in evidence.found["funnel"]]
    return [
        Field("kind", "text"),
        Field("sources kept", joined(kinds), "sources" if kinds else ""),
        Field("provenance: public, licensed, crawled, of users, synthetic", None),
        Field("how the data was obtained and selected", None),
        evidence.field("documents", "summary.documents_kept"),
        evidence.field("tokens for training", "summary.train_tokens"),
        evidence.field("tokens for validation", "summary.validation_tokens"),
        Field("languages", joined(evidence.languages), "representation.documents" if evidence.languages else ""),
        Field("stages of cleaning", joined(filters), "funnel" if filters else ""),
        Field("licences of the sources kept", joined(evidence.licences), "sources" if evidence.licences else ""),
        evidence.field("verdict of the corpus's gate on its sources", "summary.verdict", str),
        evidence.field("bias detection: tables measured", "bias", lambda tables: ", ".join(tables) or "none"),
    ]


def _computation(evidence: Evidence) -> list[Field]:
    seconds = (evidence.training_energy or {}).get("seconds")
    text, source = (None, "") if seconds is None else (duration(seconds), "energy.stages")
    return [
        Field("duration of the attempt that finished training", text, source),
        Field("hardware", hardware(evidence), "training.execution" if hardware(evidence) else ""),
        *computation_fields(evidence),
        Field("computation of other models it depends on (synthetic data, parents)", None),
    ]


def _energy(evidence: Evidence) -> list[Field]:
    total, text = evidence.at("energy.total.joules"), energy_text(evidence.found)
    return [
        Field("energy of the run, in MWh", None if total is None else megawatt_hours(total), "energy.total.joules"),
        Field("the same with bounds and method", text, "energy.total" if text else ""),
        Field("computation of an inference benchmark", None),
        Field("its method", None),
    ]


def megawatt_hours(joules: float) -> str:
    """Joules in MWh, to three significant digits."""
    return f"{joules / 3.6e9:.3g} MWh"
