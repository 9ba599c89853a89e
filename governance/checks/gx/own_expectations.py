"""Own expectations by dotted path, with the digest of their source.

    gx = "mylab.rules:ExpectNoShouting"

The module is imported as Python does: installed, or on PYTHONPATH. The class derives from one of Great Expectations',
so it may bring its own metric. The digest covers every file of the module's top-level package that Python can import
(or the one file). It is part of the audit's key: changed code gives another audit, and no result of the old one is
reused. The verdict names it, and a gate may pin it (`sha256`), as it must on a site. Code that is not the pinned one,
or that no digest names, is not run: the gate is in error.

Time: a custom expectation may take the gate's `seconds` (600) on a table; more is an error of the gate. Python code is
interrupted; a call of a compiled library that never returns is not.

Limits: the digest does not cover other packages that the code imports, nor data files, nor Python's own cache.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from importlib.machinery import all_suffixes
from pathlib import Path
from typing import Any

from governance.config import canonical_json
from governance.files import sha256_bytes, sha256_file
from governance.gate.policy import Gate
from governance.gate.site_policy import site_binds

_SECONDS = 600.0


def own_seconds(gate: Gate) -> float:
    """Seconds that a gate's own class may take on a table.

    Returns 0 for a class of GX, which has no limit.
    """
    return (gate.seconds or _SECONDS) if ":" in gate.gx else 0.0


def own_class(gate: Gate) -> Any:
    """Import a gate's class "package.module:Class", derived from GX's `Expectation`.

    Raises:
        ValueError: the module cannot be imported or is not the pinned one, or the name is not such a class.
    """
    from great_expectations.expectations.expectation import Expectation

    path = gate.gx
    module, _, name = path.partition(":")
    if not (digest := _digest(module)):
        raise ValueError(f"{path}: cannot be imported from files; set PYTHONPATH, or install it, not as an archive")
    if not gate.sha256 and site_binds():
        raise ValueError(f'{path}: a site requires a pin of its source; review it, then write sha256 = "{digest}"')
    if gate.sha256 and digest != gate.sha256:
        raise ValueError(f"{path}: was not run: its source has the SHA-256 {digest}; the gate pins {gate.sha256}")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as error:  # code of others may raise anything
        raise ValueError(f"{path}: cannot be imported ({type(error).__name__}: {error}); correct the module") from error
    if not isinstance(found, type) or not issubclass(found, Expectation):
        raise ValueError(f"{path}: is not a class of expectations")
    return found


def source_digests(gates: Iterable[Gate]) -> dict[str, str]:
    """Dotted path of each own expectation -> SHA-256 of its source.

    The digest is empty where a gate is in error because no digest names the source, or because it lacks the pin that a
    site requires: such an audit has another key than one that ran the code.
    """
    own = [gate for gate in gates if ":" in gate.gx]
    unpinned = {gate.gx for gate in own if not gate.sha256} if site_binds() else set()
    return {gate.gx: "" if gate.gx in unpinned else _digest(gate.gx.partition(":")[0]) for gate in own}


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
                 for number, folder in enumerate(folders) for path in sorted(folder.rglob("*"))
                 if path.name.endswith(tuple(all_suffixes())) and "__pycache__" not in path.parts}  # fmt: skip
        return sha256_bytes(canonical_json(files)) if files else ""
    return sha256_file(Path(spec.origin)) if spec.origin and Path(spec.origin).is_file() else ""
