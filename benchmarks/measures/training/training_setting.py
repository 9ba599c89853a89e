"""Setting of the training measurements: a corpus of books, through the whole pipeline and its gate."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measures.children import ending_with_this

HERE = Path(__file__).resolve().parents[3]
THREADS = len(os.sched_getaffinity(0))

DATA = """
[[data.sources]]
type = "jsonl"
name = "books"
paths = ["books.jsonl"]
id_field = "id"
language_field = "lang"
licence = "LicenseRef-Public-Domain"

[data.clean]
languages = ["en"]

[data.tokenizer]
vocabulary_size = 257

[data.encode]
validation_share = 0.03

[governance]
policy = "policy.toml"
"""


def books(folder: Path, most_bytes: int) -> None:
    """Write the first English books of the test data as `books.jsonl`, next to the shipped policy."""
    source = Path(os.environ["ASSAY_TEST_DATA"]) / "corpora" / "books.jsonl.gz"
    written = 0
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(source, "rt", encoding="utf-8") as lines, (folder / "books.jsonl").open("w") as target:
        for line in lines:
            if '"lang": "en"' in line and written < most_bytes:
                written += target.write(line)
    shutil.copy(HERE / "configs" / "policy.toml", folder / "policy.toml")


def assay(*words: object) -> str:
    """Run a command of `assay`; what it printed.

    Raises:
        RuntimeError: it failed; with its messages.
    """
    command = [sys.executable, "-m", "pretrain", *map(str, words)]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False, preexec_fn=ending_with_this())
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-3000:]}")
    return done.stdout


def prepare(folder: Path, config: str, most_bytes: int, vocabulary: int = 257) -> Path:
    """Make the corpus of `config` (without its data sections) and let it pass the gate; the run's file.

    A vocabulary of 257 is that of bytes.
    """
    books(folder, most_bytes)
    path = folder / "run.toml"
    path.write_text(DATA.replace("vocabulary_size = 257", f"vocabulary_size = {vocabulary}") + config)
    assay("data", "prepare", path, "--root", folder / "root")
    assay("governance", "check", path, "--root", folder / "root")
    return path


def tokens_of(path: Path, role: str = "train") -> Any:
    """The `Rows` of a prepared run."""
    from assay.config import load_run
    from assay.pipeline import corpus
    from governance.stage import Runtime
    from pretrain.data.dataset import open_rows

    run = load_run(path, [])
    root = path.parent / "root"
    return open_rows(corpus(run, Runtime(root, make=False))["encode"], role, root, run.config.train.sequence_length)


def stream(rows: Any) -> np.ndarray:
    """All tokens, in the order of the shards."""
    return np.concatenate([np.asarray(shard.tokens) for shard in rows.shards])


def batches_of(path: Path, steps: int) -> np.ndarray:
    """uint16 [steps, rows, length + 1]: the tokens of the run's own first steps, each row with the token after it."""
    from assay.config import load_run
    from pretrain.data.sampler import sampler_of

    train, rows = load_run(path, []).config.train, tokens_of(path)
    length, every = train.sequence_length, np.append(stream(rows), np.zeros(train.sequence_length + 1, np.uint16))
    order = sampler_of(rows, train)
    numbers = [order.rows(step) for step in range(1, steps + 1)]
    at = np.array(numbers)[..., None] * length + np.arange(length + 1)
    return every[at].astype(np.uint16)
