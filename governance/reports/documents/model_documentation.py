"""Model documentation form of the EU general-purpose-AI code of practice.

It covers Annexes XI and XII of the AI Act. Items follow the form's order and are paraphrased; the form itself states
the addressee of each (AI Office, authorities, downstream providers).
"""

from __future__ import annotations

from governance.reports.documents.computation import computation_fields
from governance.reports.documents.evidence import Evidence, Field, joined
from governance.reports.documents.markdown import filled, rows
from governance.reports.documents.model_card import hardware
from governance.reports.html.markup import duration, number


def model_documentation(evidence: Evidence) -> str:
    """The form; the run must have a training."""
    seconds = (evidence.training_energy or {}).get("seconds")
    joules = evidence.at("energy.total.joules")
    text = None if joules is None else f"{joules / 3.6e9:.3g} MWh"
    return filled(
        "model_documentation",
        evidence,
        parameters=lambda count: f"{number(count)} ({count:.1e})",
        kinds=joined(sorted({f"{row['name']} ({row['kind']})" for row in evidence.kept})),
        filters=joined([row["stage"] for row in evidence.found["funnel"]]),
        lasted=None if seconds is None else duration(seconds),
        hardware=hardware(evidence),
        computation=rows(*computation_fields(evidence)),
        megawatt_hours=Field("energy of the run, in MWh", text, "energy.total.joules"),
    )
