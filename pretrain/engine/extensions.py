"""Builds of DeepSpeed's C++ extensions, with a time limit.

A killed build leaves a lock file for which the next start would wait endlessly, and concurrent builds break each other.
So one process per node builds, before any rank needs the result, in a folder for this torch and Python, under an
operating-system lock that ends with its owner, with a time limit. A lock file found under that lock belongs to a dead
builder and is removed.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from governance.errors import PipelineError
from governance.files import held
from governance.log import get_logger
from pretrain.distributed.process_group import Ranks, gather

SHARED_MEMORY_OP = "deepspeed_shm_comm"
ASYNC_IO_OP = "async_io"
_BUILDERS = {SHARED_MEMORY_OP: "ShareMemCommBuilder", ASYNC_IO_OP: "AsyncIOBuilder"}
_LOCK_FILE = "assay.lock"
_BUILD = """
from deepspeed.accelerator import get_accelerator
get_accelerator().create_op_builder("{builder}").load(verbose=False)
"""


def build_shared_memory(ranks: Ranks, limit_seconds: float) -> bool:
    """Build shared-memory collectives once per node; return success. Collective.

    A failure only costs speed, so it is a warning.
    """
    folder = extension_folder()
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    built = build(folder, limit_seconds) if ranks.local_rank == 0 else True
    if not (everywhere := all(gather(built))):
        get_logger(__name__).warning(
            "training continues without shared-memory collectives: slower, with the same result"
        )
    return everywhere


def build_async_io(ranks: Ranks, limit_seconds: float, device: str) -> None:
    """Build asynchronous file I/O once per node. Collective.

    Raises:
        PipelineError: it cannot be built, most often because libaio is not installed.
    """
    folder = extension_folder()
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    built = build(folder, limit_seconds, ASYNC_IO_OP, device) if ranks.local_rank == 0 else True
    if not all(gather(built)):
        raise PipelineError(
            "engine.offload_optimizer or offload_parameters = 'nvme' needs DeepSpeed's extension async_io, which could "
            "not be built (the log says why). Install libaio with its headers (libaio-dev or libaio-devel) and a C++ "
            "compiler, or offload to 'cpu'."
        )


def extension_folder() -> Path:
    """This node's folder of compiled extensions, for this user, torch and Python."""
    import torch

    if folder := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(folder)
    name = f"assay-extensions-{os.getuid()}-torch{torch.__version__}-python{platform.python_version()}"
    return Path(tempfile.gettempdir()) / name


def build(folder: Path, limit_seconds: float, op: str = SHARED_MEMORY_OP, device: str = "cpu") -> bool:
    """Build an extension in `folder`, or find it built.

    The result is False if that fails or exceeds the time limit.
    """
    log = get_logger(__name__)
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with held(folder / _LOCK_FILE, f"process {os.getpid()}", limit_seconds) as builder:
        if builder is not None:
            log.warning("another process (%s) has been building in %s for %.0f s", builder, folder, limit_seconds)
            return False
        for lock in sorted(folder.glob("*/lock")):
            log.warning("%s: removed; a build that died left it", lock)
            lock.unlink(missing_ok=True)
        log.info("building DeepSpeed's extension %s in %s (minutes, the first time)", op, folder)
        environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(folder), "DS_ACCELERATOR": device}
        left = max(1.0, limit_seconds - (time.monotonic() - started))
        try:
            command = [sys.executable, "-c", _BUILD.replace("{builder}", _BUILDERS[op])]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=left, check=False)
        except subprocess.TimeoutExpired:
            log.warning("the build took longer than engine.extension_build_seconds = %.0f s", limit_seconds)
            return False
    if done.returncode:
        log.warning("the build failed: %s", (done.stderr.strip().splitlines() or ["no message"])[-1])
    return done.returncode == 0
