"""The `[train.skip]` section: skipped batches.

Imports no torch.
"""

from __future__ import annotations

from pydantic import Field

from governance.config import Section


class SkipConfig(Section):
    """Conditions for skipped batches and for giving up."""

    z_score: float = Field(default=8.0, ge=0)
    """A loss this many robust standard deviations above the last accepted ones is a spike; 0 looks for none."""
    window: int = Field(default=128, ge=8)
    """How many accepted losses a loss is compared with; also the steps over which skips are counted."""
    warmup_steps: int = Field(default=200, ge=0)
    """Steps before spikes are looked for: a loss that still falls steeply says little about the next one."""
    most_skips: int = Field(default=8, ge=0)
    """More skipped steps than this within `window` steps end the run with a verdict."""
