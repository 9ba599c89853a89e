"""The settings of word lists: `[audit.bias]`, in part."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from governance.config import Section

ListName = Literal["terms", "attributes", "sentiment", "toxicity", "dialects"]


SCORED = "sentiment:"
"""Prefix of instruments of scored word lists, whose list names are the weights."""


class WordListsConfig(Section):
    """Word lists in use; paths are relative to the run's file."""

    lists: dict[ListName, str] = Field(default={})
    """Files in our own format that replace ours."""
    holistic_descriptors: str = ""
    """`descriptors.json` of HolisticBias (Smith et al. 2022): before nouns, as identity terms of English."""
    holistic_nouns: str = ""
    """`nouns.json` of HolisticBias; required with the descriptors."""
    bad_words: dict[str, str] = Field(default={})
    """Language -> a word list, one word per line (LDNOOBW); scored as the instrument "bad_words"."""
    sentiment: dict[Annotated[str, StringConstraints(pattern="^[a-z0-9_.-]+$")], dict[str, str]] = Field(default={})
    """NAME -> language -> words with scores, `word<TAB>score` a line (VADER, AFINN); instrument "sentiment:NAME"."""
    winobias_female: str = ""
    """Occupations of WinoBias (Zhao et al. 2018) held by more women, one per line."""
    winobias_male: str = ""
    """Those held by more men."""
    winogender: str = ""
    """`occupations-stats.tsv` of Winogender (Rudinger et al. 2018)."""
    names: str = ""
    """Given names, `name<TAB>axis<TAB>group[<TAB>language]` a line: proxies, on axes of their own, "AXIS (names)"."""
    intersections: tuple[str, ...] | None = None
    """Pairs of axes whose groups are counted together where one sentence mentions both, such as "ethnicity x gender";
    empty: none; not set: ethnicity, religion and age with gender, as far as the lists have them."""
