"""The bare loop on the rows of a prepared run, on a CPU; its steps wait for their turn.

python bare_in_turn.py RUN.toml
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(HERE), str(HERE / "benchmarks" / "rivals")]

import torch  # noqa: E402
import turns  # noqa: E402

from assay.config import load_run  # noqa: E402
from benchmarks.measures.training.bare_loop import bare_steps  # noqa: E402
from benchmarks.measures.training.training_setting import tokens_of  # noqa: E402
from pretrain.distributed.process_group import Ranks  # noqa: E402
from pretrain.train import _arithmetic  # noqa: E402


def main() -> None:
    """Steps in turn."""
    path = Path(sys.argv[1])
    config = load_run(path, []).config
    micro_rows = config.engine.micro_batch_size
    with _arithmetic(Ranks(), config.engine):
        steps = bare_steps(config.recipe, tokens_of(path), micro_rows, torch.device("cpu"))
        turns.take(lambda number: next(steps)()[0])


if __name__ == "__main__":
    main()
