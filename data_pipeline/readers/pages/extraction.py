"""Settings of how an HTML page becomes text."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, NamedTuple

from governance.errors import ConfigError

Extractor = Literal["assay", "trafilatura", "resiliparse"]
Structure = Literal["plain", "markdown"]


class Extraction(NamedTuple):
    """The extractor of a source's pages and the form of their text."""

    extractor: Extractor | Literal["mwparserfromhell", "pdf"] = "assay"
    structure: Structure = "plain"


ASSAY = Extraction()
"""The default."""
WIKITEXT = Extraction("mwparserfromhell")
"""For pages of MediaWiki's dumps, which are not HTML."""
PDF = Extraction("pdf")
"""The text layer of a PDF file, whose pages are not HTML."""


def check_installed(extraction: Extraction) -> None:
    """Refuse an extractor whose package is not installed.

    Raises:
        ConfigError: it is not.
    """
    name = extraction.extractor
    if name != ASSAY.extractor and find_spec(name) is None:
        raise ConfigError(
            f'extractor = "{name}" needs the package {name}, which is not installed. Install it (pip install {name}), '
            f'or set extractor = "{ASSAY.extractor}".'
        )
