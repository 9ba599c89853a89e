"""A rank's work on files does not grow with the number of ranks, and it reads what it needs."""

from __future__ import annotations

import pytest

from benchmarks.measures.training.scale_ranks import figures


def test_a_ranks_work_on_files_does_not_grow_with_the_ranks():
    few, many = figures(4), figures(32)
    for kind in ("opened", "listed", "changed"):
        assert 0 < many[f"save.{kind}_a_rank"] <= few[f"save.{kind}_a_rank"]
    for found, ranks in ((few, 4), (many, 32)):
        others = (ranks - 1) / ranks  # each byte of the state once, but for what a rank has in memory
        assert found["save.bytes_of_others_to_state"] == pytest.approx(others)
        assert found["load.bytes_to_owned"] == 1.0
        assert 0 < found["fence.lists_a_node_and_second"] <= 1.0
