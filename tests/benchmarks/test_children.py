"""Children of a benchmark end with it, and a rival's schedule is the one in the recipe of its README."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHILD = """
import os, time
with open({path!r}, "w") as pipe:
    print(os.getpid(), file=pipe, flush=True)
    time.sleep(300)
    print("it went on alone", file=pipe)
"""
# A shell that starts a command in the background lets it ignore SIGINT, and so its children.
PARENT = """
import signal, sys
from benchmarks.measures.children import whole
signal.signal(signal.SIGINT, signal.default_int_handler)
whole([sys.executable, "-c", {child!r}])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_child_ends_with_its_benchmark(number, tmp_path):
    os.mkfifo(path := tmp_path / "pid")
    words = PARENT.format(child=CHILD.format(path=str(path)))
    parent = subprocess.Popen([sys.executable, "-c", words], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        with path.open() as pipe:  # until the child runs; held open for as long as it does
            assert int(pipe.readline()) != parent.pid
            parent.send_signal(number)
            parent.wait()
            assert pipe.read() == ""  # the end of the file: the child has ended
    finally:
        parent.kill()
        parent.wait()


def test_the_rate_of_the_readmes_recipe_is_its_own(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "rivals"))
    import gpt_to_loss

    recipe = gpt_to_loss.RECIPES["readme"]
    assert (recipe.layers, recipe.width, recipe.length, recipe.rows, recipe.steps) == (4, 128, 64, 12, 2000)
    rates = [recipe.rate * gpt_to_loss.factor(recipe, step) for step in range(recipe.steps + 1)]
    assert rates[0] == pytest.approx(1e-3 / 101)
    assert max(rates) == rates[100] == 1e-3
    assert rates[1050] == pytest.approx((1e-3 + 1e-4) / 2)  # half way down the cosine
    assert rates[-1] == pytest.approx(1e-4)
