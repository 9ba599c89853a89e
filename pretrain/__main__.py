"""`python -m pretrain` is `assay`, so that torchrun and srun can launch it."""

from pretrain.cli import program

raise SystemExit(program())
