"""Counts of torch.compile's graphs and recompilations in this process.

`graphs` rises with each compilation, and stays constant over steps of equal shapes. `uncompiled` counts functions that
torch left uncompiled because they were compiled too often for other shapes, which it reports only in a warning of its
logger.
"""

from __future__ import annotations

import logging
import sys

_LOGGER = "torch._dynamo.convert_frame"
_GIVEN_UP = "torch._dynamo hit config."


class GivenUp(logging.Filter):
    """Count torch's warnings about functions left uncompiled."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """True."""
        self.count += str(record.msg).startswith(_GIVEN_UP)
        return True


def watch_compiler() -> GivenUp:
    """Begin to count what is left uncompiled, once per process."""
    logger = logging.getLogger(_LOGGER)
    for known in logger.filters:
        if isinstance(known, GivenUp):
            return known
    given_up = GivenUp()
    logger.addFilter(given_up)
    return given_up


def compiled_graphs() -> int:
    """Graphs that torch.compile made in this process."""
    utils = sys.modules.get("torch._dynamo.utils")
    return 0 if utils is None else int(utils.counters["stats"]["unique_graphs"])
