"""Memory of each stage, in a process of its own; prints the input of `data_sameness.memory`.

python memory_probe.py stages RUN.toml ROOT     a line per stage: name, peak in MB
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path


def main(words: list[str]) -> None:
    """Run every stage in a process of its own, or one stage in this process."""
    if words[0] == "stages":
        for place in itertools.count():
            done = subprocess.run(
                [sys.executable, __file__, "stage", *words[1:], str(place)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            if not done.stdout:
                return
            print(done.stdout.strip(), flush=True)
    else:
        stage(Path(words[1]), Path(words[2]), int(words[3]))


def stage(config: Path, root: Path, place: int) -> None:
    """Make the stage at this position; earlier ones exist already and are only looked up."""
    from assay.config import load_run
    from benchmarks.measures.goals import peak_mb
    from data_pipeline.prepare import stages
    from governance.stage import Runtime

    run = load_run(config, [])
    for number, manifest in enumerate(stages(run.config.data, run.folder, Runtime(root))):
        if number == place:
            print(manifest.stage, f"{peak_mb():.0f}")
            return


if __name__ == "__main__":
    main(sys.argv[1:])
