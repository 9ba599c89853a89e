"""The policy: what a corpus must fulfil, who answers for each rule, and which failures were waived.

It is a TOML file of its own (`configs/policy.toml`), so that the people who answer for it can review it alone. The
whole policy is hashed: a verdict holds only under the policy that it was decided by. A gate names one expectation on
one column of one table; `docs/policy.md` lists the tables. An unknown gate id, owner or approver is an error.
"""

from __future__ import annotations

import datetime
from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from governance.config import Section, canonical_json, load_config
from governance.files import sha256_bytes

Suite = Literal[
    "documents", "sources", "licences", "representation", "tokens", "pii", "association", "tone", "impact", "shares",
    "privacy", "parity", "instruments", "raw", "drift", "token_shards",
]  # fmt: skip
Expectation = Literal[
    "between", "quantile_between", "mean_between", "not_null", "in_set", "unique", "match_regex", "row_count_between",
    "columns_present",
]  # fmt: skip
_WITH_BOUNDS = {"between", "quantile_between", "mean_between", "row_count_between"}
_WITHOUT_COLUMN = {"row_count_between", "columns_present"}


class Gate(Section):
    """One rule: an expectation on a column of a table, its severity, its owner and its reason."""

    id: str = Field(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)+$")
    """Its name, for example "raw.quarantined_share"."""
    suite: Suite
    """The table that it judges."""
    expectation: Expectation
    """What is expected of it."""
    column: str = ""
    """The column; empty for expectations on the whole table."""
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
    min_rows: int = Field(default=1, ge=1)
    """With fewer rows the result is inconclusive, which is never a pass."""
    max_missing: float = Field(default=0.0, ge=0, le=1)
    """A larger share of missing values makes a pass inconclusive."""
    severity: Literal["critical", "warning"] = "critical"
    """A failed critical gate closes; a failed warning is shown."""
    owner: str
    """Who answers for it: a name in `[owners]`."""
    why: str = Field(min_length=10)
    """The reason, for the reader of a report."""

    @model_validator(mode="after")
    def _complete(self) -> Gate:
        if self.expectation in _WITH_BOUNDS and self.min is None and self.max is None:
            raise ValueError(f"gate {self.id}: {self.expectation} wants min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"gate {self.id}: min {self.min:g} is above max {self.max:g}; nothing could pass")
        if (self.expectation in _WITHOUT_COLUMN) == bool(self.column):
            wants = "no column" if self.expectation in _WITHOUT_COLUMN else "a column"
            raise ValueError(f"gate {self.id}: {self.expectation} wants {wants}")
        if (self.expectation == "quantile_between") != (self.quantile is not None):
            raise ValueError(f"gate {self.id}: `quantile` belongs to quantile_between, and only there")
        if (self.expectation == "match_regex") != bool(self.regex):
            raise ValueError(f"gate {self.id}: `regex` belongs to match_regex, and only there")
        if self.expectation in {"in_set", "columns_present"} and not self.values and self.suite != "licences":
            raise ValueError(f"gate {self.id}: {self.expectation} wants values")
        return self


class Licences(Section):
    """Which licences a document may carry."""

    allowed: tuple[str, ...]
    """SPDX identifiers or expressions, compared as written."""


class Waiver(Section):
    """An owner's signed-for exception to one gate for one corpus, until a day."""

    gate: str
    """The gate's id."""
    subject: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The digest of the encoded corpus (`assay data show`) that it is for: another corpus needs another waiver."""
    reason: str = Field(min_length=10)
    """Why the failure is acceptable."""
    approver: str
    """One of the people of the gate's owner."""
    expires: str
    """The last day that it holds, YYYY-MM-DD."""

    @field_validator("expires")
    @classmethod
    def _is_day(cls, value: str) -> str:
        try:
            datetime.date.fromisoformat(value)
        except ValueError:
            raise ValueError("is no day; write it as YYYY-MM-DD") from None
        return value


class Policy(Section):
    """All rules for a corpus."""

    name: str
    """For people; the digest identifies it."""
    verdict_days: int = Field(default=30, ge=1)
    """Days that a verdict holds."""
    owners: dict[str, tuple[str, ...]]
    """Owner (a role) -> the people who may approve for it."""
    licences: Licences
    gate: tuple[Gate, ...] = Field(min_length=1)
    waiver: tuple[Waiver, ...] = ()

    @model_validator(mode="after")
    def _names_agree(self) -> Policy:
        for name, count in Counter(gate.id for gate in self.gate).items():
            if count > 1:
                raise ValueError(f"gate {name} is written {count} times; ids are unique")
        by_id = {gate.id: gate for gate in self.gate}
        for gate in self.gate:
            if gate.owner not in self.owners:
                raise ValueError(f"gate {gate.id}: owner {gate.owner!r} is not in [owners]: {sorted(self.owners)}")
        for waiver in self.waiver:
            if waiver.gate not in by_id:
                raise ValueError(f"a waiver names the gate {waiver.gate!r}, which is not in this policy")
            approvers = self.owners[by_id[waiver.gate].owner]
            if waiver.approver not in approvers:
                raise ValueError(
                    f"waiver of {waiver.gate}: {waiver.approver!r} may not approve; its owner has {list(approvers)}"
                )
        return self

    @property
    def digest(self) -> str:
        """The hash of the whole policy."""
        return sha256_bytes(canonical_json(self))

    def gates(self) -> tuple[Gate, ...]:
        """The rules as they are checked: the allowed licences put in where a gate on licences names none."""
        return tuple(
            gate.model_copy(update={"values": self.licences.allowed})
            if gate.suite == "licences" and gate.expectation == "in_set" and not gate.values
            else gate
            for gate in self.gate
        )


def load_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        ConfigError: the file is not there or breaks a rule above.
    """
    return load_config(path, Policy)
