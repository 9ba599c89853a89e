"""The program that a job's script runs."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # where `slurm` and `governance` are; -I leaves all else out
from slurm.attempt.attempt_start import main  # noqa: E402

if __name__ == "__main__":
    main(sys.argv[1:])
