"""Entry point of `python -m assay`, for torchrun and srun."""

from assay.cli.main import program

raise SystemExit(program())
