"""The estimate of memory is within a tenth of the peak of real trainings.

A part that it leaves out lets a run begin that is killed; a part that it invents refuses one that fits.
"""

from __future__ import annotations

import pytest

from benchmarks.measures.training.training_memory import CASES, measured
from pretrain.preflight.memory_room import _TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autocast_stage_2", "soft_cap", "documents", "experts", "pairs"])
def test_the_estimate_of_a_real_run_is_within_its_tolerance(name):
    peak, estimate = measured(name)
    assert peak / _TOLERANCE < estimate < peak * _TOLERANCE
    assert name in CASES
