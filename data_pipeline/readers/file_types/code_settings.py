"""Settings of sources of code."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from governance.config import Section

Fact = Literal["repository", "path", "programming_language", "licence_from"]
FACTS: tuple[Fact, ...] = ("repository", "path", "programming_language", "licence_from")
"""Facts of a source file that its document keeps in `columns`."""


class LicenceLists(Section):
    """Licences whose files stay."""

    allow_licences: tuple[str, ...] = ()
    """SPDX identifiers of licences that stay, if one of an OR and all of an AND are among them; none: all. Older names
    and case are understood, unknown ones refused."""
    deny_licences: tuple[str, ...] = ()
    """SPDX identifiers of licences that are removed, unless the other side of an OR stays."""


class CodeRows(LicenceLists):
    """Names of the values that describe a row's source file."""

    path_field: str = Field(min_length=1)
    """The name of the value that is the file's path within its repository."""
    repository_field: str = ""
    """The name of the value that is its repository, OWNER/NAME; "": none is known."""
    programming_language_field: str = ""
    """The name of the value that is its language, where neither path nor content decides one; "": such rows are
    skipped."""

    def read(self, licence_field: str) -> tuple[str, ...]:
        """Names of the values of a row that are read."""
        names = (self.path_field, self.repository_field, self.programming_language_field, licence_field)
        return tuple(filter(None, names))
