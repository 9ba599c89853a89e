"""The command line and the whole run: raw corpus to report.

    assay run configs/quickstart.toml

The commands of `cli/` call `pipeline.py`, which finds or makes each part in turn; all other packages are below.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """The Python interface, imported on first use."""
    if name == "open_run":
        from assay.opened_run import open_run

        return open_run
    raise AttributeError(f"module 'assay' has no attribute {name!r}")
