from __future__ import annotations

import ast
from pathlib import Path

from pretrain.metrics import peak_flops as peaks

SIZES = peaks._SIZES["cpu"]  # of the program; while tests run, the products are small
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "rivals" / "products.py"


def test_the_benchmark_multiplies_what_the_run_s_own_meter_multiplies():
    """The script runs in a rival's environment and imports nothing of ours, so it repeats the sizes."""
    assigned = [node for node in ast.parse(SCRIPT.read_text()).body if isinstance(node, ast.Assign)]
    assert [ast.literal_eval(node.value) for node in assigned] == [SIZES]
