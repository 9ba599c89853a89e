"""Settings of sources of parallel text."""

from __future__ import annotations

from pydantic import Field, model_validator

from governance.config import Section

_CODE = r"^[a-z]{2,3}([-_@][A-Za-z0-9]+)*$"


class PairSettings(Section):
    """Fields of a source whose files hold texts and their translations."""

    source_language: str = Field(pattern=_CODE)
    """The language that is translated: the ending of its aligned files, the `xml:lang` of TMX."""
    target_language: str = Field(pattern=_CODE)
    """The language that is written."""
    most_characters: int = Field(default=0, ge=0)
    """Characters of a side above which a pair is skipped; 0: none is."""

    @model_validator(mode="after")
    def _are_two(self) -> PairSettings:
        if self.source_language == self.target_language:
            raise ValueError(f"source_language and target_language are both {self.source_language!r}; change one")
        return self
