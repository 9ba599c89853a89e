"""The `[profile]` section.

Imports no torch.
"""

from __future__ import annotations

from pydantic import Field

from governance.config import Section


class ProfileConfig(Section):
    """Steps to profile; enters no key."""

    from_step: int = Field(default=0, ge=0)
    """The first optimizer step that is profiled; 0: none is."""
    steps: int = Field(default=3, gt=0)
    """Steps that are profiled."""
    warmup: int = Field(default=1, ge=0)
    """Steps before these in which the profiler runs and keeps nothing: starting it distorts the first one."""
    ranks: tuple[int, ...] = (0,)
    """Ranks that are profiled; the report has the table of rank 0."""
    record_shapes: bool = False
    """Tell operators on tensors of different shapes apart."""
    memory: bool = False
    """Bytes that operators allocate; on CUDA also a snapshot of the allocator, for https://pytorch.org/memory_viz."""
    stacks: bool = False
    """The lines of Python in which operators were called, in the trace."""
