"""Card of a run in six lines."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any


def card(found: Mapping[str, Any], page: Path, seconds: float) -> list[str]:
    """Lines about a run, from its report's summary.

    `page` is the report; `seconds` is the duration of the whole run.
    """
    known = {name: value for name, value in found.items() if value is not None}
    lines = [f"verdict     {found['verdict']} under {found['policy']}"]
    if "documents_kept" in known:
        tokens = f", {known['train_tokens']:,} training tokens" if "train_tokens" in known else ""
        lines.append(f"corpus      {known['documents_kept']:,} of {known['documents_in']:,} documents kept{tokens}")
    if "steps" in known:
        figures = [
            f"{words} {known[name]:.4g}"
            for name, words in (("validation_loss", "validation loss"), ("bits_per_byte", "bits per byte"))
            if name in known
        ]
        lines.append(", ".join([f"training    {known['steps']:,} steps", *figures]))
    if "energy_kwh" in known:
        low, high = (known.get(f"energy_{bound}_kwh") for bound in ("low", "high"))
        bounds = [
            "no lower bound" if low is None else f"at least {_decimal(low)}",
            "no upper bound" if high is None else f"at most {_decimal(high)}",
        ]
        lines.append(f"energy      {_decimal(known['energy_kwh'])} kWh ({', '.join(bounds)})")
    return [*lines, f"time        {seconds / 60:.1f} minutes", f"report: {page}"]


def _decimal(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{Decimal(f'{value:.3g}'):f}"
