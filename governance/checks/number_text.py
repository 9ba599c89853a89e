"""Numbers and bounds of check results as text, equal on every machine."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from governance.checks.judgeable import EXACT
from governance.gate.policy import Gate


def limits(gate: Gate) -> str:
    """Bounds as text."""
    low = "" if gate.min is None else f"at least {gate.min:g}"
    high = "" if gate.max is None else f"at most {gate.max:g}"
    return " and ".join(filter(None, (low, high)))


def number(value: Any) -> float | None:
    """A float of 12 significant digits, equal on all processors."""
    if value is None:
        return None
    try:
        plain = float(value)
    except OverflowError:  # an integer beyond the range of floats
        return None
    return float(f"{plain:.12g}") if math.isfinite(plain) else None


def shown(value: Real | float | None) -> str:
    """A number as text; integers that a float would round are exact."""
    if isinstance(value, Integral) and abs(int(value)) > EXACT:
        return str(value)
    return "none" if value is None else f"{float(value):.6g}"
