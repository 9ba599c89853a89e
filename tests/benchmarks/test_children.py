"""Children of a benchmark end with it, and the schedule of a rival is the one that its README's recipe has."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHILD = "import os, pathlib, time; pathlib.Path({path!r}).write_text(str(os.getpid())); time.sleep(600)"
PARENT = "import sys; from benchmarks.measures.children import whole; whole([sys.executable, '-c', {child!r}])"


def _state(pid: int) -> str:
    """Of a process, from /proc: "Z" or nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's word to a child is Linux's")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_child_ends_with_its_benchmark(number, tmp_path):
    path = tmp_path / "pid"
    words = PARENT.format(child=CHILD.format(path=str(path)))
    parent = subprocess.Popen([sys.executable, "-c", words], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (path.exists() and path.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        child = int(path.read_text())
        assert _state(child) not in ("", "Z")
    finally:
        parent.send_signal(number)
        parent.wait(timeout=60)
    deadline = time.monotonic() + 60
    while _state(child) not in ("", "Z") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _state(child) in ("", "Z")


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
