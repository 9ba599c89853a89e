"""Tab-separated external lists: scored words and given names.

Scored words, `word<TAB>score`, further columns ignored, one file per language: the form of VADER (Hutto & Gilbert 2014,
ICWSM) and of AFINN (Nielsen 2011, arXiv:1103.2903). Scores are kept as integers, `SCALE` to the point, so that sums of
any shards add up; a word that is listed with several (VADER has "fav" and "FAV") has their mean. Emoticons and scores
of 0 are dropped.

Given names, `name<TAB>axis<TAB>group[<TAB>language]`, without a language for every one with identity terms, the heading
of the columns optional. They are groups of "AXIS (names)", never of the axis itself: a name is a proxy. A name of two
groups counts for each. Promise: the counts of other axes do not change, so a name that contains the first word of a
term of another list ("Joy", "Christian") is dropped and counted.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path

from governance.checks.bias.crossed import CROSS
from governance.checks.bias.word_lists.list_files import NONE, Words
from governance.errors import ConfigError
from governance.kernels.word_lookup import split_words

SCALE = 1000
"""Integers per point of a scored list: three decimals count."""
MAX_SCORE = 1000
"""The greatest score."""
OF_NAMES = " (names)"
"""Suffix of axes of given names."""
PROXIES = "names are proxies"
"""Note of each row of such an axis."""
Names = dict[str, dict[str, dict[str, list[Words]]]]
"""Language -> axis of names -> group -> names."""
_WITHIN_WORDS = "-'’._·"
_HEADING = ("name", "axis", "group")


def scored_words(path: Path, field: str) -> dict[str, list[Words]]:
    """Scaled score, as text -> its terms.

    Raises:
        ConfigError: the file cannot be read, a line has no word or no number, or no word has a score.
    """
    scores: dict[Words, list[Decimal]] = {}
    for line, columns in _rows(path, field):
        score = _score(columns[1]) if len(columns) > 1 else None
        if score is None or not columns[0].strip():
            expected = f"a word, a tab and a number from -{MAX_SCORE:,} to {MAX_SCORE:,}"
            raise _wrong(path, field, line, f"{' '.join(columns)!r} is not {expected}")
        if words := _plain_words(columns[0]):
            scores.setdefault(words, []).append(score)
    found: dict[str, list[Words]] = {}
    for words, of in sorted(scores.items()):
        if scaled := round(sum(of) / len(of) * SCALE):
            found.setdefault(str(scaled), []).append(words)
    if not found:
        raise ConfigError(f"audit.bias.{field}: {path} has no word with a score other than 0. Name another file.")
    return found


def given_names(path: Path, languages: Collection[str]) -> Names:
    """Read a file of given names.

    Args:
        path: of the file.
        languages: those with identity terms.

    Raises:
        ConfigError: the file cannot be read or is empty, a line has other columns, or a language is not one of these.
    """
    found: Names = {}
    for line, columns in _rows(path, "names"):
        name, axis, group, *more = (column.strip() for column in columns) if len(columns) in (3, 4) else ("",) * 3
        if line == 1 and (name, axis, group) == _HEADING:
            continue
        words, language = tuple(split_words(name)), "".join(more)
        if not words or not _is_label(axis) or not _is_label(group):
            expected = "name, axis, group and optionally language, separated by tabs"
            raise _wrong(path, "names", line, f"{' '.join(columns)!r} is not {expected}")
        if language and language not in languages:
            known = ", ".join(sorted(languages))
            raise _wrong(path, "names", line, f"{language!r} is not a language with identity terms ({known})")
        for code in [language] if language else languages:
            names = found.setdefault(code, {}).setdefault(f"{axis}{OF_NAMES}", {}).setdefault(group, [])
            names.append(words)
    if not found:
        raise ConfigError(f"audit.bias.names: {path} has no name. Name another file, or remove the setting.")
    return {
        code: {axis: {group: sorted(set(names)) for group, names in of.items()} for axis, of in axes.items()}
        for code, axes in sorted(found.items())
    }


def apart_from(names: Names, others: Mapping[str, Iterable[Words]]) -> tuple[Names, int]:
    """Names that collide with no other list, and the number dropped.

    Args:
        names: as `given_names` has them.
        others: language -> the terms of all other lists.

    Raises:
        ConfigError: none is left.
    """
    first = {code: {term[0] for term in others.get(code, ())} for code in names}
    kept = {
        code: {axis: {group: [name for name in of if first[code].isdisjoint(name)] for group, of in groups.items()}
               for axis, groups in axes.items()}
        for code, axes in names.items()
    }  # fmt: skip
    before, after = (
        sum(len(of) for axes in some.values() for groups in axes.values() for of in groups.values())
        for some in (names, kept)
    )
    if not after:
        raise ConfigError("audit.bias.names: each name begins a term of another list. Name a file with other names.")
    return kept, before - after


def _rows(path: Path, field: str) -> Iterator[tuple[int, list[str]]]:
    """Number and columns of each line that is not empty."""
    try:
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise ConfigError(f"audit.bias.{field}: {path} cannot be read ({error}). Name an existing file.") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _wrong(path, field, line, "is not UTF-8; convert the file") from error
    for line, row in enumerate(text.split("\n"), 1):
        if row.strip():
            yield line, row.rstrip("\r").split("\t")


def _wrong(path: Path, field: str, line: int, what: str) -> ConfigError:
    return ConfigError(f"audit.bias.{field}: {path}, line {line}: {what}.")


def _score(text: str) -> Decimal | None:
    try:
        score = Decimal(text.strip())
    except InvalidOperation:
        return None
    return score if score.is_finite() and abs(score) <= MAX_SCORE else None


def _plain_words(text: str) -> Words:
    """Words of a term; none if it contains symbols, as in ":D"."""
    signs = any(unicodedata.category(one)[0] in "PS" and one not in _WITHIN_WORDS for one in text)
    return () if signs else tuple(split_words(text))


def _is_label(text: str) -> bool:
    """Return whether a name is valid for an axis or group."""
    return text not in ("", NONE) and CROSS not in text and all(one.isalnum() or one in " _-'" for one in text)
