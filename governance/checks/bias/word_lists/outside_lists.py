"""External word lists, read by path, each in its own format.

HolisticBias (Smith et al. 2022, arXiv:2205.09209): `descriptors.json` is axis -> bucket -> descriptors, a descriptor a
text or {"descriptor": ...}; `nouns.json` is gender -> [[singular, plural], ...]. A mention is a descriptor before a
noun, as in the paper's sentences, since a descriptor alone ("slow", "poor") is mostly not one. Axes are named
"holistic.AXIS"; the group is the bucket, or the descriptor where the axis has but one bucket, "all"; the made-up words
of the axis "nonce" are left out.

LDNOOBW ("List of Dirty, Naughty, Obscene and Otherwise Bad Words"): one word or phrase a line. A line without a word
(an emoji) is dropped.

WinoBias (Zhao et al. 2018, arXiv:1804.06876): one occupation a line, in one file those that more women hold in US
labour statistics, in the other those that more men hold. Winogender (Rudinger et al. 2018, arXiv:1804.09301):
tab-separated, `occupation` and `bls_pct_female`. Both become a family of two categories, "female" and "male" (by half
of the share).

Words with scores (VADER, AFINN) and given names are `tabbed_lists.py`'s.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from governance.checks.bias.word_lists.list_files import ListFile, Words
from governance.checks.bias.word_lists.lists_config import SCORED, WordListsConfig
from governance.checks.bias.word_lists.tabbed_lists import scored_words
from governance.config import canonical_json
from governance.errors import ConfigError
from governance.files import sha256_bytes
from governance.kernels.word_lookup import split_words

Lists = dict[str, dict[str, list[Words]]]


def outside_lists(config: WordListsConfig, folder: Path) -> dict[str, ListFile]:
    """The configured external lists, by name: holistic, bad_words, winobias, winogender, sentiment:NAME.

    Raises:
        ConfigError: a file is not of its form, or one of a pair is not named.
    """
    lists: dict[str, ListFile] = {}
    if _pair(config, "holistic_descriptors", "holistic_nouns"):
        lists["holistic"] = as_list_file(
            {"en": _holistic(folder / config.holistic_descriptors, folder / config.holistic_nouns)}
        )
    if config.bad_words:
        read = {code: _lines(folder / path, "bad_words") for code, path in sorted(config.bad_words.items())}
        lists["bad_words"] = as_list_file({code: {"bad_words": {"listed": terms}} for code, terms in read.items()})
    if _pair(config, "winobias_female", "winobias_male"):
        paths = {"female": folder / config.winobias_female, "male": folder / config.winobias_male}
        jobs = {name: _with_plurals(_lines(path, f"winobias_{name}")) for name, path in paths.items()}
        lists["winobias"] = as_list_file({"en": {"winobias": jobs}})
    if config.winogender:
        lists["winogender"] = as_list_file({"en": {"winogender": _winogender(folder / config.winogender)}})
    for name, files in sorted(config.sentiment.items()):
        instrument, field = f"{SCORED}{name}", f"sentiment.{name}"
        if not files:
            raise ConfigError(f"audit.bias.{field}: names no file. Name one for each language, or remove it.")
        scores = {code: scored_words(folder / path, f"{field}.{code}") for code, path in sorted(files.items())}
        lists[instrument] = as_list_file({code: {instrument: terms} for code, terms in scores.items()})
    return lists


def _pair(config: WordListsConfig, one: str, other: str) -> bool:
    """Return whether both are named."""
    named = [name for name in (one, other) if getattr(config, name)]
    if len(named) == 1:
        raise ConfigError(f"audit.bias: {named[0]} is set without its counterpart. Set {one} and {other}, or neither.")
    return len(named) == 2


def as_list_file(languages: Mapping[str, Lists]) -> ListFile:
    """External lists as a list file, with the digest of its terms."""
    plain = {
        code: {
            heading: {name: [list(term) for term in terms] for name, terms in names.items()}
            for heading, names in of.items()
        }
        for code, of in languages.items()
    }
    return ListFile(1, sha256_bytes(canonical_json(plain)), languages)


def _read(path: Path, field: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"audit.bias.{field}: {path} is not such a file ({error!r}). Name the unmodified file."
        ) from error


def _lines(path: Path, field: str) -> list[Words]:
    def parse(text: str) -> list[Words]:
        terms = sorted({tuple(split_words(line)) for line in text.splitlines()} - {()})
        if not terms or max(map(len, terms)) > _MAX_WORDS:
            raise ValueError("not a list of one word or phrase a line")
        return terms

    found: list[Words] = _read(path, field, parse)
    return found


_MAX_WORDS = 12


def _holistic(descriptors: Path, nouns: Path) -> Lists:
    known = _read(descriptors, "holistic_descriptors", lambda text: list(_descriptors(json.loads(text))))
    after = _read(nouns, "holistic_nouns", lambda text: [tuple(split_words(form)) for form in _forms(json.loads(text))])
    lists: Lists = {}
    for axis, group, words in known:
        terms = lists.setdefault(f"holistic.{axis}", {}).setdefault(group, [])
        terms += [(*words, *noun) for noun in after if noun]
    if not lists or not after:
        raise ConfigError(f"audit.bias: {descriptors} and {nouns} hold no descriptor, or no noun.")
    return lists


def _descriptors(values: dict[str, dict[str, Sequence[Any]]]) -> Iterator[tuple[str, str, Words]]:
    """(axis, group, words) of each descriptor."""
    for axis, buckets in values.items():
        for bucket, entries in () if axis == "nonce" else buckets.items():
            for entry in entries:
                words = tuple(split_words(entry["descriptor"] if isinstance(entry, dict) else entry))
                if words:
                    yield axis, bucket if list(buckets) != ["all"] else " ".join(words), words


def _forms(values: dict[str, Sequence[Sequence[str]]]) -> list[str]:
    return sorted({form for pairs in values.values() for pair in pairs for form in pair})


def _with_plurals(terms: Iterable[Words]) -> list[Words]:
    """English nouns with their plurals."""
    return sorted({form for term in terms for form in (term, (*term[:-1], _plural(term[-1])))})


def _plural(word: str) -> str:
    if word.endswith("man"):
        return f"{word[:-3]}men"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(("s", "x", "ch", "sh")) else f"{word}s"


def _winogender(path: Path) -> dict[str, list[Words]]:
    def parse(text: str) -> dict[str, list[Words]]:
        occupations: dict[str, list[Words]] = {"female": [], "male": []}
        for row in csv.DictReader(text.splitlines(), delimiter="\t"):
            name = "female" if float(row["bls_pct_female"]) >= 50 else "male"
            occupations[name].append(tuple(split_words(row["occupation"])))
        if not all(occupations.values()) or () in occupations["female"] + occupations["male"]:
            raise ValueError("no occupations")
        return {name: _with_plurals(terms) for name, terms in occupations.items()}

    table: dict[str, list[Words]] = _read(path, "winogender", parse)
    return table
