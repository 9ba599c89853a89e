"""Own tasks: a function yields the records, in place of a file.

    [[evaluation.tasks]]
    name = "arithmetic"
    format = "choices"
    task = "mylab.tasks:arithmetic"

The function takes nothing, and yields mappings as a line of a file has them (`tasks.py`). It must be deterministic: it
is called twice in a process, and refused where the records differ, because every rank must score the same questions.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governance.config import canonical_json
from governance.errors import ConfigError
from governance.files import sha256_bytes
from governance.own_code import OwnCode, find_code, first_line, load
from governance.processes import time_limit
from pretrain.config.training import TaskConfig

Record = Mapping[str, Any]


@dataclass(frozen=True)
class OwnRecords:
    """Records of a function, with the digests that enter the key."""

    records: tuple[Record, ...]
    sha256: str
    """SHA-256 of the records, one JSON object a line."""
    code_sha256: str


def own_records(task: TaskConfig, folder: Path) -> OwnRecords:
    """Call a task's function, once per process and source.

    Raises:
        MissingInput: there is no such module.
        ConfigError: the function cannot be imported, raises, takes too long, yields nothing or no JSON object, or
            yields other records when it is called again.
    """
    where = f"evaluation.tasks, {task.name}"
    code = find_code(task.task, folder, f"{where}: task")
    return _called(code, code.digest, where, task.seconds)


@functools.lru_cache(maxsize=64)
def _called(code: OwnCode, digest: str, where: str, seconds: float) -> OwnRecords:
    first, again = (_lines(code, digest, where, seconds) for _ in range(2))
    if first != again:
        raise ConfigError(
            f"{where} ({code.dotted}): yields other records when it is called again. Make it deterministic, for "
            "example with random.Random(0)."
        )
    if not first:
        raise ConfigError(f"{where} ({code.dotted}): yields no record. Correct the function.")
    return OwnRecords(tuple(json.loads(line) for line in first), sha256_bytes(b"\n".join(first)), digest)


def _lines(code: OwnCode, digest: str, where: str, seconds: float) -> list[bytes]:
    lines: list[bytes] = []
    try:
        function = load(code, digest)
        with time_limit(seconds):
            for record in function():
                if not isinstance(record, Mapping):
                    raise TypeError(f"it is {type(record).__name__}, not a mapping")
                lines.append(canonical_json(record))
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # own code may raise anything
        raise ConfigError(
            f"{where} ({code.dotted}), record {len(lines) + 1}: {first_line(error)}. No step was trained. Correct the "
            "function."
        ) from error
    return lines
