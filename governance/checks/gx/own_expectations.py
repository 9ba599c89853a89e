"""Own expectations by dotted path, with the digest of their source.

    gx = "mylab.rules:ExpectNoShouting"

The module is imported as Python does: installed, or on PYTHONPATH. The class derives from one of Great Expectations',
so it may bring its own metric. The digest covers every `.py` file of the module's top-level package (or the one file)
and is part of the audit's key: changed code gives another audit, and no result of the old one is reused.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from governance.config import canonical_json
from governance.files import sha256_bytes, sha256_file
from governance.gate.policy import Gate


def own_class(path: str) -> Any:
    """Import a class "package.module:Class" that derives from GX's `Expectation`.

    Raises:
        ValueError: the module cannot be imported, or the name is not such a class.
    """
    from great_expectations.expectations.expectation import Expectation

    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # code of others may raise anything
        raise ValueError(f"{path}: cannot be imported ({type(error).__name__}: {error}); set PYTHONPATH") from error
    if not isinstance(found, type) or not issubclass(found, Expectation):
        raise ValueError(f"{path}: is not a class of expectations")
    return found


def source_digests(gates: Iterable[Gate]) -> dict[str, str]:
    """Dotted path of each own expectation -> SHA-256 of its source."""
    return {gate.gx: _digest(gate.gx.partition(":")[0]) for gate in gates if ":" in gate.gx}


def _digest(module: str) -> str:
    package = module.partition(".")[0]
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return ""  # the gate is in error, which needs no key
    if spec.submodule_search_locations:
        folders = [Path(folder) for folder in spec.submodule_search_locations]
        files = {f"{number}/{path.relative_to(folder).as_posix()}": sha256_file(path)
                 for number, folder in enumerate(folders) for path in sorted(folder.rglob("*.py"))}  # fmt: skip
        return sha256_bytes(canonical_json(files))
    return sha256_file(Path(spec.origin)) if spec.origin and Path(spec.origin).is_file() else ""
