"""The policy: gates on a corpus, their owners and keys.

It is a TOML file of its own (`configs/policy.toml`), so that the people who answer for it can review it alone. The
whole policy is hashed, the keys of its people and its parent with it: a verdict, a waiver and an approval hold only
under the policy that they were given for. A gate names one expectation on one table; `docs/checks.md` lists the tables.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from operator import not_
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from governance.config import Section, canonical_json, read_toml, validate
from governance.errors import ConfigError, near_path
from governance.files import sha256_bytes
from governance.gate.gate_expectations import NEEDS, Expectation, Needs, bound_text
from governance.gate.licence_choices import widened
from governance.signing.dsse import key_id, public_key

Suite = Literal[
    "documents", "sources", "licences", "representation", "tokens", "pii", "association", "tone", "impact", "shares",
    "privacy", "parity", "instruments", "intersections", "raw", "drift", "token_shards", "synthetic",
]  # fmt: skip
Rule = Literal["point", "lower_ci", "upper_ci", "whole_ci"]
_KEY_ID = re.compile(r"[0-9a-f]{64}")


class Gate(Section):
    """One rule: expectation, column, severity, owner, reason.

    A field with `exclude_if` enters no digest while it is unused, so that earlier verdicts hold.
    """

    id: str = Field(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)+$")
    """Its name, for example "raw.quarantined_share"."""
    suite: Suite
    """The table that it judges."""
    expectation: Expectation = "gx"
    """Name of the expectation; not written where `gx` is."""
    gx: str = Field(default="", exclude_if=not_, pattern=r"^([a-z][a-z0-9_]*|[A-Za-z_][\w.]*:[A-Za-z_]\w*)?$")
    """Any expectation of Great Expectations by its own name ("expect_column_value_lengths_to_be_between"), or a
    custom class by its dotted path ("mylab.rules:ExpectIt")."""
    kwargs: dict[str, Any] = Field(default={}, exclude_if=not_)
    """For `gx`: its arguments, as Great Expectations names them."""
    sha256: str = Field(default="", exclude_if=not_, pattern=r"^([0-9a-f]{64})?$")
    """For a custom class: the digest of its source. Another source is an error of the gate, and is not run. On a
    site (`site_policy.py`) it is required. The error of a gate with a wrong one names the right one."""
    seconds: float = Field(default=0, ge=0, exclude_if=not_)
    """For a custom class: time that it may take on a table; 0: 600 seconds. More is an error of the gate."""
    column: str = ""
    """The column; empty for expectations on the whole table and on intervals."""
    where: dict[str, str] = Field(default={})
    """Column -> value: only such rows are judged; "" selects a missing value. No such row: inconclusive."""
    min: float | None = None
    """The least value allowed, in the column's unit."""
    max: float | None = None
    """The greatest value allowed, in the column's unit."""
    mostly: float = Field(default=1.0, gt=0, le=1)
    """The share of rows that must fulfil a row-wise expectation."""
    quantile: float | None = Field(default=None, ge=0, le=1)
    """For `quantile_between`: which quantile."""
    values: tuple[str, ...] = ()
    """For `in_set` and `columns_present`; on the `licences` table, empty means the policy's allowed licences."""
    regex: str = ""
    """For `match_regex`."""
    rule: Rule = "point"
    """For `interval_between`: which number is compared with min and max, the value, an end of its interval, or both."""
    min_n: int = Field(default=1, ge=1)
    """For `interval_between`: a row that rests on fewer units is not judged."""
    min_rows: int = Field(default=1, ge=1)
    """With fewer rows the result is inconclusive, which is never a pass."""
    max_missing: float = Field(default=0.0, ge=0, le=1)
    """A larger share of missing values makes a pass inconclusive."""
    severity: Literal["critical", "warning"] = "critical"
    """A failed critical gate closes; a failed warning is shown."""
    on_inconclusive: Literal["block", "show"] = "block"
    """Effect of an inconclusive result of a critical gate."""
    owner: str
    """Name in `[owners]` of the person who answers for it."""
    why: str = Field(min_length=10)
    """The reason, for the reader of a report."""

    @field_validator("min", "max", mode="before")
    @classmethod
    def _as_written(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool) and not _is_double(value):
            raise ValueError("no 64-bit float holds this integer exactly; write one that it does, such as 2^53")
        return value

    @model_validator(mode="after")
    def _complete(self) -> Gate:
        if self.expectation == "gx":
            return self._named()
        if self.gx or self.kwargs or self.sha256 or self.seconds:
            raise ValueError(f"gate {self.id}: write either `expectation`, or `gx` with `kwargs`")
        needs = NEEDS[self.expectation]
        if needs.bounds and self.min is None and self.max is None:
            raise ValueError(f"gate {self.id}: {self.expectation} needs min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(
                f"gate {self.id}: min {bound_text(self.min)} is above max {bound_text(self.max)}; nothing could pass"
            )
        if needs.column != bool(self.column):
            raise ValueError(f"gate {self.id}: {self.expectation} needs {'a' if needs.column else 'no'} column")
        if needs.field in ("quantile", "regex") and getattr(self, needs.field) in (None, ""):
            raise ValueError(f"gate {self.id}: {self.expectation} needs `{needs.field}`")
        if needs.field == "values" and not self.values and self.suite != "licences":
            raise ValueError(f"gate {self.id}: {self.expectation} needs values")
        return self

    def _named(self) -> Gate:
        if not self.gx:
            raise ValueError(f"gate {self.id}: needs an `expectation`, or `gx`")
        if self.min is not None or self.max is not None or self.values or self.regex or self.quantile is not None:
            raise ValueError(f"gate {self.id}: the arguments of {self.gx} belong in `kwargs`")
        if (self.sha256 or self.seconds) and ":" not in self.gx:
            raise ValueError(f"gate {self.id}: `sha256` and `seconds` belong to a custom class, and only there")
        if self.column and "column" in self.kwargs:
            raise ValueError(f"gate {self.id}: names a column twice, in `column` and in `kwargs`")
        if self.mostly != 1 and "mostly" in self.kwargs:
            raise ValueError(f"gate {self.id}: has `mostly` twice, of its own and in `kwargs`")
        try:
            canonical_json(self.kwargs)
        except (TypeError, ValueError) as error:
            raise ValueError(f"gate {self.id}: kwargs hold a value that JSON has no form for: {error}") from error
        return self

    @model_validator(mode="after")
    def _reads_its_fields(self) -> Gate:
        """Raise for a field that the expectation would ignore.

        Those of `gx` are checked in `_named`.
        """
        for field in _unread(NEEDS[self.expectation]) if self.expectation != "gx" else ():
            if getattr(self, field) != type(self).model_fields[field].default:
                readers = [name for name, one in NEEDS.items() if _READ[field](one)]
                verb = "read" if len(readers) > 1 else "reads"
                raise ValueError(f"gate {self.id}: only {', '.join(readers)} {verb} `{field}`; remove it here")
        return self

    @model_validator(mode="after")
    def _interval(self) -> Gate:
        if NEEDS[self.expectation].judges != "intervals" and (self.rule != "point" or self.min_n != 1):
            raise ValueError(f"gate {self.id}: `rule` and `min_n` belong to interval_between, and only there")
        if "" in self.where:
            raise ValueError(f"gate {self.id}: `where` names a column without a name")
        return self


_READ: Mapping[str, Callable[[Needs], bool]] = {
    "min": lambda one: one.bounds,
    "max": lambda one: one.bounds,
    "quantile": lambda one: one.field == "quantile",
    "regex": lambda one: one.field == "regex",
    "values": lambda one: one.field == "values",
    "mostly": lambda one: one.judges in ("rows", "intervals", "named"),
}
"""Fields of a gate that some expectations read."""


def _unread(needs: Needs) -> list[str]:
    """Fields that an expectation ignores."""
    return [field for field, read in _READ.items() if not read(needs)]


def _is_double(number: int) -> bool:
    try:
        return int(float(number)) == number
    except OverflowError:
        return False


class Licences(Section):
    """Licences that documents may carry."""

    allowed: tuple[str, ...]
    """SPDX identifiers, or expressions compared as written.

    One side of an OR in a document's expression is enough; an exception after WITH changes nothing."""


class EnergyBudget(Section):
    """Energy limits; `governance.energy.budget` enforces them."""

    kilowatt_hours: float = Field(gt=0)
    """The most that may be used, in kWh of electricity at the meters."""
    scope: Literal["root", "training"] = "root"
    """Energy that counts: "root", all of the root's ledger (data, audits, every attempt of every training; reports
    apart), or "training", the attempts of one training; data stages are then not bounded."""
    bound: Literal["upper", "central"] = "upper"
    """Figure of the meters that counts: their upper bound, or their best estimate."""
    unknown: Literal["refuse", "allow"] = "refuse"
    """Energy that no meter measured: "refuse" starts nothing, "allow" counts it as zero."""


class Policy(Section):
    """All rules for a corpus."""

    name: str
    """For people; the digest identifies it."""
    strength: str = Field(default="", exclude_if=not_)
    """Effect on fairness, in a few words for page one: "warns on fairness". Under a parent, other words need approval,
    unless the gates bear them out (`approvals.py`)."""
    verdict_days: int = Field(default=30, ge=1)
    """Days that a verdict holds."""
    owners: dict[str, tuple[str, ...]]
    """Owner (a role) -> the people who may approve for it."""
    people: dict[str, str] = Field(default={})
    """Person -> the id of the key that this person signs with; a file may name a PEM file instead. A person
    who is not listed can sign nothing."""
    licences: Licences
    energy_budget: EnergyBudget | None = Field(default=None, exclude_if=not_)
    """The most energy that may be used; absent: no bound."""
    verified_origin: bool = Field(default=False, exclude_if=not_)
    """True: a training may start only from weights whose origin is verified: a checkpoint that a trusted key stated in
    its own root's journal, its ancestors, too; an export of one by this root; or a model that huggingface.co lists.
    Only such checkpoints may be measured and exported."""
    gate: tuple[Gate, ...] = Field(min_length=1)
    parent: Policy | None = None
    """The policy that this one is compared with; a file names the parent's file. With `inherit = true` in that file,
    what it does not set itself is the parent's: gates and their fields by id, all else but `name` and `strength`."""

    @model_validator(mode="after")
    def _names_agree(self) -> Policy:
        for name, count in Counter(gate.id for gate in self.gate).items():
            if count > 1:
                raise ValueError(f"gate {name} is written {count} times; ids are unique")
        for gate in self.gate:
            if gate.owner not in self.owners:
                raise ValueError(f"gate {gate.id}: owner {gate.owner!r} is not in [owners]: {sorted(self.owners)}")
        for name, key in self.people.items():
            if not _KEY_ID.fullmatch(key):
                raise ValueError(f"people.{name} = {key!r}: is not a key's id (64 hexadecimal digits)")
        for key, count in Counter(self.people.values()).items():
            if count > 1:
                names = sorted(name for name in self.people if self.people[name] == key)
                raise ValueError(f"people {', '.join(names)} have one key; each person needs a key of their own")
        return self

    @property
    def digest(self) -> str:
        """The hash of the whole policy."""
        return sha256_bytes(canonical_json(self))

    def owners_of(self, gate: Gate) -> tuple[str, ...]:
        """The people who may approve for a gate."""
        return self.owners[gate.owner]

    def gates(self) -> tuple[Gate, ...]:
        """The rules as they are checked.

        The allowed licences are put in where a gate on licences names none.
        """
        return tuple(
            gate.model_copy(update={"values": self.licences.allowed})
            if gate.suite == "licences" and NEEDS[gate.expectation].allows_values and not gate.values
            else gate
            for gate in self.gate
        )

    def closed_by_licence(self, source: str, licence: str) -> list[str]:
        """The gates that a document of this source and licence would close."""
        row = {"source": source, "licence": licence}
        return [
            gate.id
            for gate in self.gates()
            if gate.suite == "licences"
            and NEEDS[gate.expectation].allows_values
            and all(row.get(name, value) == value for name, value in gate.where.items())
            and gate.severity != "warning"
            and licence not in widened(gate.values, [licence])
        ]


def load_policy(path: Path) -> Policy:
    """Read a policy file with its public keys and parents.

    Paths are relative to the file that names them.

    Raises:
        ConfigError: a file is missing or breaks a rule above, or the parents lead in a circle.
    """
    return _load(path, ())


def policy_files(path: Path) -> list[Path]:
    """A policy's file and those of its parents, the nearest first."""
    found = [path]
    while isinstance(parent := read_toml(found[-1]).get("parent"), str) and found[-1].parent / parent not in found:
        found.append(found[-1].parent / parent)
    return found


def _load(path: Path, children: tuple[Path, ...]) -> Policy:
    values = read_toml(path)
    children = (*children, path.resolve())
    if isinstance(values.get("people"), Mapping):
        values["people"] = {name: _person(key, path) for name, key in values["people"].items()}
    inherit = values.pop("inherit", False)
    if "parent" in values:
        values["parent"] = _parent(values["parent"], path, children)
    if inherit:
        values = _inherited(values, inherit, path)
    return validate(values, Policy, str(path))


def _parent(name: Any, path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    if not isinstance(name, str):
        raise ConfigError(f"{path}: parent = {name!r}: give the path of the parent's file")
    above = path.parent / name
    if above.resolve() in children:
        raise ConfigError(f"{path}: parent = {name!r}: is this policy itself, or one that it is the parent of")
    if not above.exists():
        hint = (
            near_path(above)
            or " Give the path of the parent's file; assay init FOLDER --from policy writes the shipped one."
        )
        raise ConfigError(f"{path}: parent = {name!r}: {above}: no such file.{hint}")
    return _load(above, children).model_dump(mode="json")


def _inherited(values: dict[str, Any], inherit: Any, path: Path) -> dict[str, Any]:
    """The file's values, and its parent's where it has none.

    A gate with the id of a parent's gate inherits the fields that it leaves out and that its expectation reads.
    """
    parent = values.get("parent")
    if inherit is not True or parent is None:
        raise ConfigError(f"{path}: inherit = {inherit!r}: it is true, and the file names a parent; else leave it out")
    own = values.get("gate", [])
    if not isinstance(own, list) or not all(isinstance(gate, dict) for gate in own):
        return values  # the validator reports what is wrong with it
    above = {gate["id"]: gate for gate in parent["gate"]}
    written: dict[str, list[dict[str, Any]]] = {}
    for gate in own:
        name = str(gate.get("id"))
        made = _with_parent(gate, above.get(name, {}))
        written.setdefault(name, []).append(made)  # twice is refused by the validator
    names = dict.fromkeys([*above, *written])
    gates = [gate for name in names for gate in written.get(name) or [above[name]]]
    taken = {name: value for name, value in parent.items() if name not in ("name", "strength", "parent")}
    return {**taken, **values, "gate": gates}


def _person(key: Any, path: Path) -> Any:
    """The id of a person's key.

    Values other than text are left to the validator.
    """
    if not isinstance(key, str) or _KEY_ID.fullmatch(key):
        return key
    return key_id(public_key(path.parent / key))


def _with_parent(gate: Mapping[str, Any], parent: Mapping[str, Any]) -> dict[str, Any]:
    """A gate's fields, and those of its parent's gate.

    TOML cannot take a field back, so another expectation does not inherit those that it ignores.
    """
    expectation = gate.get("expectation", parent.get("expectation"))
    unread = next((_unread(needs) for name, needs in NEEDS.items() if name == expectation), [])
    return {**{name: value for name, value in parent.items() if name not in unread}, **gate}
