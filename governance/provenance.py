"""Provenance of an artifact: software, machine, time; never in a digest."""

from __future__ import annotations

import functools
import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "assay-pretrain", "torch", "deepspeed", "datasets", "tokenizers", "gigatoken", "tiktoken", "wandb",
    "great-expectations", "pyarrow", "numpy", "numba", "duckdb", "pydantic", "cryptography", "safetensors",
)  # fmt: skip


@functools.cache
def provenance() -> dict[str, Any]:
    """Commit, dirtiness, package versions, host, command line, Slurm job id."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": _git(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "python": platform.python_version(),
        "host": {"name": socket.gethostname(), "system": platform.platform(), "cpus": os.cpu_count()},
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """The commit of this checkout, and whether tracked files differ from it.

    Returns None outside a checkout.
    """
    folder = Path(__file__).parent

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    if commit is None or ask("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return {"commit": commit, "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}
