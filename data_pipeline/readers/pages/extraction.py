"""Settings of how an HTML page becomes text, and the result."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, NamedTuple

from governance.errors import ConfigError

Extractor = Literal["assay", "trafilatura", "resiliparse"]
Structure = Literal["plain", "markdown"]


class Extraction(NamedTuple):
    """The extractor of a source's pages and the form of their text."""

    extractor: Extractor | Literal["wikitext", "pdf"] = "assay"
    structure: Structure = "plain"


MARK = "\x02"
"""Begins each mark that `main_text` sets in a page.

HTML allows no such character in a text, so that taking it out of a page loses nothing."""
ASSAY = Extraction()
"""The default."""
WIKITEXT = Extraction("wikitext")
"""For pages of MediaWiki's dumps, which are not HTML."""
PDF = Extraction("pdf")
"""The text layer of a PDF file, whose pages are not HTML."""


@dataclass(frozen=True)
class HtmlPage:
    """Extracted content of a page."""

    text: str
    fallback: bool
    """The main text was not found, so trafilatura's, or all visible text, was taken."""
    signals: tuple[str, ...]
    """The rights holder's reservations in its `meta` elements, as `opt_out` writes them."""


def check_installed(extraction: Extraction) -> None:
    """Refuse an extractor whose package is not installed.

    Raises:
        ConfigError: it is not.
    """
    name = extraction.extractor
    if extraction not in (ASSAY, WIKITEXT) and name != ASSAY.extractor and find_spec(name) is None:
        raise ConfigError(
            f'extractor = "{name}" needs the package {name}, which is not installed. Install it (pip install {name}), '
            f'or set extractor = "{ASSAY.extractor}".'
        )
