"""Lexicons: word lists read, checked and merged for each language.

Ours are in this folder: `terms/` (a file per language; heading = axis, name = group), `attributes.toml` (family,
category), `sentiment.toml`, `toxicity.toml` (instrument; positive 1, negative -1, listed 1) and `dialects.toml`;
`list_files.py` has their form. Each can be replaced by path, and external lists added (`outside_lists.py`).

Promise: no identity term is a term of an instrument or attribute: such terms of external lists are dropped and counted.
The digest of all lists in use is part of every audit.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from governance.checks.bias.crossed import Crossed, chosen_pairs, crossed_groups, intersections_of_terms
from governance.checks.bias.word_lists.list_files import NONE, Headings, ListFile, Words, read_lists
from governance.checks.bias.word_lists.lists_config import SCORED, ListName, WordListsConfig
from governance.checks.bias.word_lists.tabbed_lists import SCALE, apart_from, given_names
from governance.config import canonical_json
from governance.errors import ConfigError
from governance.files import sha256_bytes
from governance.log import get_logger

if TYPE_CHECKING:
    from governance.kernels.mentions import Packed

Name = tuple[str, str]
"""(axis, group), (family, category), or (instrument, "")."""
OURS: tuple[ListName, ...] = ("terms", "attributes", "sentiment", "toxicity", "dialects")

WEIGHTS = {"positive": 1, "negative": -1, "listed": 1}


@dataclass(frozen=True)
class Lexicon:
    """All terms of one language; numbers are places in the sorted names."""

    groups: tuple[Name, ...]
    """(axis, group)."""
    categories: tuple[Name, ...]
    """(family, category)."""
    dialects: tuple[str, ...]
    identity: Mapping[Words, tuple[int, ...]]
    """Term -> groups."""
    others: Mapping[Words, tuple[tuple[int, int, int], ...]]
    """Term -> labels of `kernels/mentions.py`."""
    crossed: tuple[Crossed, ...] = ()
    """The intersections, numbered after the groups."""

    @property
    def everyone(self) -> tuple[Name, ...]:
        """The groups, then the intersections."""
        return (*self.groups, *(pair.name for pair in self.crossed))

    @functools.cached_property
    def axes(self) -> tuple[str, ...]:
        """The axes, sorted."""
        return tuple(sorted({axis for axis, _ in self.groups}))


@dataclass(frozen=True, eq=False)
class Lexicons:
    """The lexicons of all languages; equal where their lists are."""

    sha256: str
    """Digest of all lists in use."""
    files: Mapping[str, str]
    """List -> SHA-256 of its file."""
    instruments: tuple[str, ...]
    languages: Mapping[str, Lexicon]
    left_out: int
    """Terms of instruments and attributes that are identity terms."""
    left_out_names: int | None = None
    """Dropped given names, with which terms of other lists begin; None: no list of names."""

    @functools.cached_property
    def scored(self) -> dict[str, tuple[str, ...]]:
        """Instrument -> languages in which it has words."""
        from governance.kernels.mentions import WEIGHT

        used = {
            code: {number for labels in lexicon.others.values() for kind, number, _ in labels if kind == WEIGHT}
            for code, lexicon in self.languages.items()
        }
        return {
            name: tuple(code for code in sorted(used) if number in used[code])
            for number, name in enumerate(self.instruments)
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lexicons) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)


_ours = functools.cache(read_lists)


def load_lexicons(config: WordListsConfig, folder: Path = Path()) -> Lexicons:
    """All lexicons of a configuration; relative paths start at `folder`.

    Args:
        config: the lists.
        folder: folder of the run's file.

    Raises:
        ConfigError: a file is invalid.
    """
    from governance.checks.bias.word_lists.outside_lists import outside_lists

    chosen: dict[str, ListFile] = {name: read_lists(name, folder / path) for name, path in config.lists.items()}
    chosen |= outside_lists(config, folder)
    if chosen or config.names:
        return _of_lists(chosen, folder / config.names if config.names else None, config.intersections)
    return _of_our_lists(config.intersections)


@functools.cache
def _of_our_lists(intersections: tuple[str, ...] | None) -> Lexicons:
    """Our lists alone, merged once per process."""
    return _of_lists({}, None, intersections)


def _of_lists(chosen: Mapping[str, ListFile], names_file: Path | None, intersections: Sequence[str] | None) -> Lexicons:
    """Our lists, some of them replaced or joined by a run's own."""
    files: dict[str, ListFile] = {name: _ours(name) for name in OURS}
    files |= chosen
    identity = _merged([files[name] for name in ("terms", "holistic") if name in files])
    attributes = _merged([files[name] for name in ("attributes", "winobias", "winogender") if name in files])
    instruments = tuple(sorted(set(files) - {"terms", "holistic", "attributes", "winobias", "winogender", "dialects"}))
    scored = [(number, files[name].languages, name) for number, name in enumerate(instruments)]
    _require_terms({name: files[name] for name in chosen}, identity)
    own_format = [name for name in (*instruments, "dialects") if not name.startswith(SCORED)]
    _require_headings({name: chosen[name] for name in own_format if name in chosen})
    left_out_names = None
    if names_file is not None:
        files["names"], left_out_names = _names_apart(names_file, files, identity)
        identity = _merged([ListFile(1, "", identity), files["names"]])
    pairs = chosen_pairs(intersections, {axis for axes in identity.values() for axis in axes})
    languages, left_out = {}, 0
    for code in sorted(identity):
        weighed = {number: lists.get(code, {}).get(name, {}) for number, lists, name in scored}
        varieties = files["dialects"].languages.get(code, {}).get("dialect", {})
        lexicon, dropped = _lexicon(identity[code], attributes.get(code, {}), weighed, varieties)
        languages[code] = replace(lexicon, crossed=crossed_groups(lexicon.groups, pairs))
        left_out += dropped
    if left_out:
        get_logger(__name__).warning(
            "bias: %d terms of instruments or attributes are identity terms and were dropped", left_out
        )
    if left_out_names:
        get_logger(__name__).warning("bias: %d given names begin terms of other lists and were dropped", left_out_names)
    digests = {name: file.sha256 for name, file in sorted(files.items())}
    digests["intersections"] = sha256_bytes(canonical_json(pairs))
    return Lexicons(sha256_bytes(canonical_json(digests)), digests, instruments, languages, left_out, left_out_names)


def _names_apart(
    names_file: Path, files: Mapping[str, ListFile], identity: Mapping[str, Headings]
) -> tuple[ListFile, int]:
    """The given names, and how many begin terms of other lists."""
    from governance.checks.bias.word_lists.outside_lists import as_list_file

    terms = _merged([file for name, file in files.items() if name != "dialects"])
    flat = {
        code: [term for of in lists.values() for some in of.values() for term in some] for code, lists in terms.items()
    }
    names, left_out = apart_from(given_names(names_file, identity), flat)
    return as_list_file(names), left_out


def weight_of(name: str) -> int:
    """Weight of a list's terms in an instrument."""
    return WEIGHTS[name] if name in WEIGHTS else int(name)


def scale_of(instrument: str) -> int:
    """The weight of one point of an instrument."""
    return SCALE if instrument.startswith(SCORED) else 1


def _require_headings(files: Mapping[str, ListFile]) -> None:
    """Refuse a list under a wrong heading, which would silently count nothing."""
    for name, file in files.items():
        heading, names = ("dialect", set[str]()) if name == "dialects" else (name, set(WEIGHTS))
        for code, headings in file.languages.items():
            if set(headings) != {heading} or (names and set(headings[heading]) - names):
                names_text = f", with lists named {', '.join(sorted(names))}" if names else ""
                raise ConfigError(
                    f"audit.bias: list {name} has {sorted(headings)} for {code!r}; expected"
                    f" [{code}.{heading}]{names_text}"
                )


def _require_terms(files: Mapping[str, ListFile], identity: Mapping[str, object]) -> None:
    for name, file in files.items():
        if alone := sorted(set(file.languages) - set(identity)):
            raise ConfigError(
                f"audit.bias: the list {name} has the language {alone[0]!r}, which has no identity terms, so"
                " nothing would be counted. Add terms of it with lists.terms, or remove it."
            )


def _merged(files: Sequence[ListFile]) -> dict[str, dict[str, dict[str, list[Words]]]]:
    found: dict[str, dict[str, dict[str, list[Words]]]] = {}
    for file in files:
        for code, headings in file.languages.items():
            for heading, names in headings.items():
                for name, terms in names.items():
                    found.setdefault(code, {}).setdefault(heading, {}).setdefault(name, []).extend(terms)
    return found


def _lexicon(
    axes: Headings,
    families: Headings,
    weighed: Mapping[int, Mapping[str, Sequence[Words]]],
    varieties: Mapping[str, Sequence[Words]],
) -> tuple[Lexicon, int]:
    """One language's lexicon, and the number of dropped terms."""
    from governance.kernels.mentions import CATEGORY, DIALECT, WEIGHT

    groups = tuple(sorted((axis, group) for axis, names in axes.items() for group in names if group != NONE))
    categories = tuple(sorted((family, name) for family, names in families.items() for name in names))
    dialects = tuple(sorted(varieties))
    identity: dict[Words, set[int]] = {term: set() for names in axes.values() for term in names.get(NONE, ())}
    for number, (axis, group) in enumerate(groups):
        for term in axes[axis][group]:
            identity.setdefault(term, set()).add(number)
    of_category = [
        (term, (CATEGORY, number, 0))
        for number, (family, name) in enumerate(categories)
        for term in families[family][name]
    ]
    of_instrument = [
        (term, (WEIGHT, instrument, weight_of(name)))
        for instrument, names in weighed.items()
        for name, terms in names.items()
        for term in terms
    ]
    of_dialect = [(term, (DIALECT, number, 0)) for number, name in enumerate(dialects) for term in varieties[name]]
    # A group's name must not score its own sentence: it loses its category and weights, and keeps its dialect.
    scored = [*of_category, *of_instrument]
    others: dict[Words, set[tuple[int, int, int]]] = {}
    for term, label in (*(pair for pair in scored if pair[0] not in identity), *of_dialect):
        others.setdefault(term, set()).add(label)
    dropped = {(term, label) for term, label in scored if term in identity}
    lexicon = Lexicon(
        groups,
        categories,
        dialects,
        {term: tuple(sorted(numbers)) for term, numbers in sorted(identity.items())},
        {term: tuple(sorted(labels)) for term, labels in sorted(others.items())},
    )
    return lexicon, len(dropped)


def pack_lexicon(lexicon: Lexicon | None, instruments: int) -> Packed:
    """Pack a lexicon for the kernel; None is a language without lists."""
    from governance.kernels.mentions import pack

    if lexicon is None:
        return pack({}, {}, (0, 0, 0, 0))
    numbers = intersections_of_terms(lexicon.identity, lexicon.crossed, len(lexicon.groups))
    identity = {
        term: [(0, group, 0) for group in (*groups, *numbers.get(term, ()))]
        for term, groups in lexicon.identity.items()
    }
    sizes = (len(lexicon.everyone), len(lexicon.categories), instruments, len(lexicon.dialects))
    both = {(pair.one, pair.other): len(lexicon.groups) + number for number, pair in enumerate(lexicon.crossed)}
    return pack(identity, lexicon.others, sizes, both)
