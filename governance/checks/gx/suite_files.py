"""Suites as Great Expectations' JSON: a policy's gates out, anybody's suite in.

Written suites have GX's own form (`name`, `expectations` with `type`, `kwargs`, `severity` and `meta`), one file for
each suite of the policy. `meta.assay` holds the gate as the policy has it, so a suite that Assay wrote is read back
without loss. The interval rule is Assay's own expectation (`expect_interval_between`), which only Assay evaluates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from governance.checks.gx.named_expectations import RESERVED
from governance.errors import ConfigError
from governance.files import write_json
from governance.gate.policy import Gate, Suite

_DROPPED = {"batch_id", "result_format", "catch_exceptions"}  # how GX reports, which the audit sets
_SEVERITY = {"critical": "critical", "warning": "warning", "info": "warning"}


def write_suites(gates: Sequence[Gate], folder: Path) -> list[Path]:
    """Write one suite file for each suite with gates.

    Raises:
        ConfigError: the folder is not empty, or GX refuses a gate.
    """
    from governance.checks.expectations import build_expectation

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: the folder is not empty. Name a new one.")
    paths = []
    for suite in dict.fromkeys(gate.suite for gate in gates):
        rows = []
        for gate in (gate for gate in gates if gate.suite == suite):
            try:
                known = build_expectation(gate).configuration.to_json_dict()
            except Exception as error:  # GX raises anything
                raise ConfigError(f"gate {gate.id}: Great Expectations refuses it: {error}") from error
            written = gate.model_dump(mode="json", exclude_defaults=True)
            rows.append({**known, "severity": gate.severity, "meta": {"assay": written}})
        paths.append(folder / f"{suite}.json")
        write_json(paths[-1], {"name": suite, "expectations": rows, "meta": {}, "notes": None})
    return paths


def read_suite(path: Path, suite: str, owner: str) -> list[Gate]:
    """Read a suite file of GX as gates of a policy.

    Args:
        path: the suite's JSON.
        suite: table that the gates judge; gates that Assay wrote keep their own.
        owner: owner of the gates; gates that Assay wrote keep their own.

    Raises:
        ConfigError: the file is not a suite of GX, or an expectation has no form as a gate.
    """
    if suite not in get_args(Suite):
        raise ConfigError(f"suite {suite!r}: is not one of {', '.join(get_args(Suite))}")
    try:
        values = json.loads(path.read_bytes())
        rows = [dict(row) for row in values["expectations"]]
        types = [str(row.get("type") or row["expectation_type"]) for row in rows]  # GX before 1.0 has the second
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is not a suite of Great Expectations ({type(error).__name__}: {error})") from error
    gates: list[Gate] = []
    taken: set[str] = set()
    for row, kind in zip(rows, types, strict=True):
        try:
            gate = _gate_of(row, kind, (suite, owner), str(values.get("name") or path.stem), taken)
            taken.add(str(gate.get("id")))
            gates.append(Gate.model_validate(gate))
        except ValueError as error:
            raise ConfigError(f"{path}: {kind}: {error}") from error
    return gates


def _gate_of(
    row: Mapping[str, Any], kind: str, place: tuple[str, str], name: str, taken: Iterable[str]
) -> dict[str, Any]:
    written = (row.get("meta") or {}).get("assay")
    if isinstance(written, Mapping):
        return dict(written)
    given = dict(row.get("kwargs") or {})
    kwargs = {key: value for key, value in given.items() if key not in _DROPPED and value is not None}
    if taken_by_gate := sorted(set(kwargs) & RESERVED):
        raise ValueError(f"{', '.join(taken_by_gate)}: remove it; a gate selects rows with its own field `where`")
    if null := next(_nulls(kwargs), ""):
        raise ValueError(f"kwargs.{null}: is null, which a policy's TOML has no form for; write a value")
    subject = "_".join(str(kwargs[key]) for key in ("column", "column_A") if key in kwargs)
    label = re.sub(r"[^a-z0-9_]+", "_", f"{subject}_{kind.removeprefix('expect_')}".lower()).strip("_")
    ids = (f"{place[0]}.{label}{suffix}" for suffix in ("", *(f"_{number}" for number in range(2, 10**6))))
    why = str(row.get("description") or row.get("notes") or "")
    return {
        "id": next(one for one in ids if one not in taken),
        "suite": place[0],
        "gx": kind,
        "kwargs": kwargs,
        "severity": _SEVERITY.get(str(row.get("severity")), "critical"),
        "owner": place[1],
        "why": why if len(why) >= 10 else f"expected by the suite {name}",
    }


def _nulls(value: Any, place: str = "") -> Iterator[str]:
    """Places of null inside a value, as dotted paths."""
    if value is None:
        yield place
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from _nulls(item, f"{place}.{name}".lstrip("."))


def gates_toml(gates: Iterable[Gate]) -> str:
    """`[[gate]]` tables of a policy file."""
    tables = []
    for gate in gates:
        values = gate.model_dump(mode="json", exclude_defaults=True)
        tables.append("\n".join(["[[gate]]", *(f"{name} = {_toml(value)}" for name, value in values.items())]))
    return "\n\n".join(tables) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(str(name))} = {_toml(item)}" for name, item in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float) and value == int(value):
        return f"{value:.1f}"
    return json.dumps(value, ensure_ascii=False)
