"""`python -m pretrain` is `assay`, so that torchrun and srun can launch it."""

from pretrain.cli import main

raise SystemExit(main())
