"""Word list files (TOML), with counterparts for every term.

Whole example:

    version = 1
    [lists.en]                            # names that terms may use
    person = ["people", "man"]
    a = ["a", "as"]
    [en.ethnicity]                        # [language.heading]: one list per name
    white = ["white {person}", "{caucasian|caucasians}"]

    [es.gender.pairs]                     # a row is a concept, with a cell for each group
    aunt = { female = "tía", male = "tío" }
    child = { none = "niños stands for girls and boys" }

    [es.religion]                         # a row is a group, with a cell for each of its forms
    atheist = { man = "ateo, ateos", woman = "ate{a}", word = "ateísmo" }
    hindu = { man = "hindú, hindúes", woman = "hindú, hindúes", word = "none: its word is not in use" }

    [ja.gender]
    none = ["彼ら"]                        # "they", contains the term for "he": consumes its words, counts for no group

A cell is terms with commas between them. Laws, each a `ConfigError` where a file breaks it:

- Rows of `pairs` name the same groups, and each cell has terms: what cannot be counted for one group is not counted for
  its counterpart, and `none` states the reason. Such a group has no terms outside the pairs.
- Rows of groups name the same forms; a cell without terms states the reason ("none: ..."); where the man's form is not
  counted, the woman's is not either. A row has terms in one cell or more.
"""

from __future__ import annotations

import importlib.resources
import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governance.config import canonical_json
from governance.errors import ConfigError
from governance.files import sha256_bytes
from governance.kernels.word_lookup import split_words

Words = tuple[str, ...]
Headings = Mapping[str, Mapping[str, Sequence[Words]]]
"""Heading -> name -> terms, of one language."""
NamedLists = Mapping[str, Sequence[str]]
PAIRS = "pairs"
NONE = "none"
_BRACES = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class ListFile:
    """A list file as read, or all files of a folder."""

    version: int
    sha256: str
    languages: Mapping[str, Headings]


def read_lists(name: str, path: Path | None = None) -> ListFile:
    """Read a list file or folder; ours if `path` is None.

    Raises:
        ConfigError: it is not such a file, breaks a law above, or a term has no word.
    """
    if path is not None:
        return _read_file(str(path), path)
    ours = importlib.resources.files(__package__)
    if (folder := ours.joinpath(name)).is_dir():
        files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
        read = [_read_file(f"{name}/{file.name}", file) for file in files]
        digests = {file.name: one.sha256 for file, one in zip(files, read, strict=True)}
        languages = {code: headings for one in read for code, headings in one.languages.items()}
        return ListFile(max(one.version for one in read), sha256_bytes(canonical_json(digests)), languages)
    return _read_file(f"{name}.toml", ours.joinpath(f"{name}.toml"))


def _read_file(origin: str, file: Any) -> ListFile:
    try:
        data = file.read_bytes()
        values = tomllib.loads(data.decode("utf-8"))
        version, named = values.pop("version"), values.pop("lists", {})
        languages = {code: headings_of(tables, named.get(code, {})) for code, tables in sorted(values.items())}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"{origin}: is not a word list ({error!r}). It needs `version = n` and [language.heading] tables of lists."
        ) from error
    return ListFile(version, sha256_bytes(data), languages)


def headings_of(tables: Mapping[str, Mapping[str, Any]], named: NamedLists) -> Headings:
    """Expanded terms of one language, in the order of the file.

    Raises:
        ValueError: a law of this module is broken.
    """
    found: dict[str, dict[str, list[Words]]] = {}
    for heading, lists in tables.items():
        names: dict[str, list[str]] = {}
        if PAIRS in lists:
            names |= _of_pairs(heading, lists[PAIRS])
        rows = {name: value for name, value in lists.items() if name != PAIRS}
        forms = [set(value) for value in rows.values() if isinstance(value, Mapping)]
        for name, value in rows.items():
            if name in names:
                raise ValueError(f"{heading}.{name}: has terms outside [{heading}.{PAIRS}], without a counterpart")
            names[name] = _of_forms(f"{heading}.{name}", value, forms) if isinstance(value, Mapping) else list(value)
        for name, terms in names.items():
            expanded = [text for term in terms for text in _expanded(term, named)]
            words = [_words(text, f"{heading}.{name}") for text in expanded]
            found.setdefault(heading, {})[name] = list(dict.fromkeys(words))
    return found


def _of_pairs(heading: str, rows: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """Terms by group, of rows with a cell for every group."""
    counted = {concept: row for concept, row in rows.items() if set(row) != {NONE}}
    groups = {group for row in counted.values() for group in row}
    found: dict[str, list[str]] = {group: [] for group in sorted(groups)}
    for concept, row in counted.items():
        for group in found:
            cell = row.get(group, "")
            if not _cells(cell):
                raise ValueError(
                    f"{heading}.{PAIRS}.{concept}: {group} has no term. Add its counterpart, or write"
                    f' `{concept} = {{ {NONE} = "why" }}`, and the concept counts for no group'
                )
            found[group] += _cells(cell)
    for concept in rows.keys() - counted.keys():
        _reason(f"{heading}.{PAIRS}.{concept}", rows[concept][NONE])
    return found


def _of_forms(place: str, row: Mapping[str, str], forms: Sequence[set[str]]) -> list[str]:
    """Terms of a group, for rows with equal sets of forms."""
    if absent := sorted(set().union(*forms) - set(row)):
        raise ValueError(f'{place}: lacks {", ".join(absent)}, which others have. Add terms, or "{NONE}: why"')
    empty = {form for form, cell in row.items() if cell.startswith(f"{NONE}:")}
    for form in empty:
        _reason(f"{place}.{form}", row[form].removeprefix(f"{NONE}:"))
    if len(empty & {"man", "woman"}) == 1:
        raise ValueError(f"{place}: counts only one of man and woman. Count both or neither")
    terms = [term for form, cell in row.items() if form not in empty for term in _cells(cell)]
    if not terms or not all(_cells(cell) for cell in row.values()):
        raise ValueError(f'{place}: has an empty cell. Add terms, or "{NONE}: why"')
    return terms


def _cells(cell: str) -> list[str]:
    return [term.strip() for term in cell.split(",") if term.strip()]


def _reason(place: str, words: str) -> None:
    if len(words.split()) < 2:
        raise ValueError(f"{place}: states no reason")


def _expanded(term: str, named: NamedLists) -> Iterator[str]:
    """Expand the braces of a term, nested lists included."""
    pieces = _BRACES.split(term)  # text, inside, text, inside, ..., text
    choices = [[piece] if place % 2 == 0 else _chosen(piece, named) for place, piece in enumerate(pieces)]
    return ("".join(chosen) for chosen in itertools.product(*choices))


def _chosen(piece: str, named: NamedLists) -> list[str]:
    if "|" in piece:
        return piece.split("|")
    return [text for term in named[piece] for text in _expanded(term, named)]


def _words(text: str, where: str) -> Words:
    words = tuple(split_words(text))
    if not words:
        raise ValueError(f"{where}: {text!r} has no word")
    return words
