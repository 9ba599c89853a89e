"""The quick start's promises, measured as a newcomer would: in a fresh clone, with an empty home and caches.

    python benchmarks/quickstart.py [--quick]

Prints a line per goal, `name value goal holds` or `falls short`, and exits 1 when one falls short. `--quick` uses this
checkout's own environment, so that installing is not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measures.goals import Goal

HERE = Path(__file__).resolve().parents[1]
INSTALL_SECONDS, RUN_SECONDS, AGAIN_SECONDS, HELP_SECONDS = 180.0, 300.0, 8.0, 0.5


def main() -> int:
    """Measure each promise; the exit status says whether all hold."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="use this environment; at most 5 minutes")
    quick = arguments.parse_args().quick
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        home = folder / "home"
        home.mkdir()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
        environment["HOME"] = str(home)
        goals = []
        if quick:
            checkout, assay = HERE, Path(sys.executable).with_name("assay")
        else:
            checkout = folder / "clone"
            subprocess.run(["git", "clone", "--quiet", str(HERE), str(checkout)], check=True)
            assay = checkout / ".venv" / "bin" / "assay"
            goals.append(
                ("install_seconds", timed(["make", ".venv/installed"], checkout, environment), INSTALL_SECONDS)
            )
        root = folder / "root"
        words = [str(assay), "run", str(checkout / "configs" / "quickstart.toml"), "--root", str(root)]
        goals.append(("run_seconds", timed(words, checkout, environment), RUN_SECONDS))
        goals.append(("run_again_seconds", timed(words, checkout, environment), AGAIN_SECONDS))
        helps = [timed([str(assay), "--help"], checkout, environment) for _ in range(5)]
        goals.append(("help_seconds", statistics.median(helps), HELP_SECONDS))
        losses = json.loads(next(root.glob("train/*/losses.json")).read_bytes())["losses"]
        share = statistics.mean(losses[-5:]) / statistics.mean(losses[:5])
        goals.append(("last_loss_share_of_first", share, 0.75))
        shutil.rmtree(root)
    found = [Goal(name, value, goal, "<=") for name, value, goal in goals]
    for goal in found:
        print(goal.line())
    return int(not all(goal.holds for goal in found))


def timed(words: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Wall seconds of a command that must succeed."""
    started = time.monotonic()
    subprocess.run(words, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


if __name__ == "__main__":
    raise SystemExit(main())
