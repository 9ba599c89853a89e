"""Representation: which groups of people the documents mention, by language, with intervals.

    share        = documents that mention the group / documents of the language
    axis_share   = documents that mention the group / documents that mention any group of its axis
    per_million_words = mentions x 10^6 / words of the language

The interval of `share` is a delete-a-group jackknife (Kott 2001, "The Delete-a-Group Jackknife", Journal of Official
Statistics 17(4), 521-526): documents fall into G = 64 groups by a hash of their id, and
v = (G-1)/G x sum over g of (share without group g - share)^2; the interval is share +- t(G-1; 0.975) sqrt(v), cut at 0
and 1. Only integers are counted, per group, so parts add up in any order to the same counts: one pass over the
documents, no second one for the interval. Documents are taken as independent; the interval says nothing of how far a
word list is from what people mean (see the limits in `terms.toml`).

Promise: a share is `None` where no document can carry it, and rows of few documents are marked. One core of an AMD EPYC
counts 6 to 10 MB of text a second.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from governance.checks.bias.lexicons import Headings, Words, read_lists, split_words
from governance.errors import ManifestError

GROUPS = 64
_T_63 = 1.998341  # the 0.975 quantile of Student's t with 63 degrees of freedom

Group = tuple[str, str]
"""(axis, group)"""


@dataclass(frozen=True)
class Lexicon:
    """One language's terms: what each word or phrase is a mention of."""

    words: Mapping[str, tuple[Group, ...]]
    phrases: Mapping[str, tuple[tuple[tuple[str, ...], tuple[Group, ...]], ...]]
    """First word -> the phrases that begin with it (words, groups), the longest first."""
    groups: tuple[Group, ...]
    """All groups, sorted."""


@dataclass(frozen=True)
class Terms:
    """The term lists of all languages, with the version and the digest of their file."""

    version: int
    sha256: str
    languages: Mapping[str, Lexicon]


@dataclass(frozen=True)
class Counts:
    """What one pass counts; `add` merges two parts, in any order."""

    documents: Counter[tuple[str, str, str, int]] = field(default_factory=Counter)
    """(language, axis, group, jackknife group) -> documents that mention the group; with an empty group those that
    mention any group of the axis; with an empty axis all documents of the language."""
    mentions: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """(language, axis, group) -> mentions; with an empty axis the language's words."""

    def add(self, other: Counts) -> Counts:
        """The counts of both parts."""
        return Counts(self.documents + other.documents, self.mentions + other.mentions)


def load_terms(path: Path | None = None) -> Terms:
    """Read a term file (ours when `path` is None): `version`, then `[language.axis]` with one list a group.

    Raises:
        ConfigError: it is no such file, or a term is no sequence of words.
    """
    file = read_lists("terms", path)
    return Terms(file.version, file.sha256, {code: _lexicon(axes) for code, axes in file.languages.items()})


def _lexicon(axes: Headings) -> Lexicon:
    found: dict[Words, set[Group]] = {}
    groups = {(axis, group) for axis, members in axes.items() for group in members}
    for axis, group in groups:
        for term in axes[axis][group]:
            found.setdefault(term, set()).add((axis, group))
    phrases: dict[str, list[tuple[tuple[str, ...], tuple[Group, ...]]]] = {}
    for words in sorted(found, key=lambda item: (-len(item), item)):
        if len(words) > 1:
            phrases.setdefault(words[0], []).append((words, tuple(sorted(found[words]))))
    return Lexicon(
        words={words[0]: tuple(sorted(of)) for words, of in found.items() if len(words) == 1},
        phrases={first: tuple(items) for first, items in phrases.items()},
        groups=tuple(sorted(groups)),
    )


def mentions(words: Sequence[str], lexicon: Lexicon) -> Counter[Group]:
    """How often a text mentions each group; of the terms that begin at a word the longest counts, and it uses it up."""
    singles, phrases = lexicon.words, lexicon.phrases
    found: Counter[Group] = Counter()
    if phrases.keys().isdisjoint(words):  # most documents: no phrase can begin anywhere
        for word, times in Counter([word for word in words if word in singles]).items():
            for group in singles[word]:
                found[group] += times
        return found
    position = 0
    while position < len(words):
        word, length, groups = words[position], 1, singles.get(words[position], ())
        for phrase, of in phrases.get(word, ()):
            if tuple(words[position : position + len(phrase)]) == phrase:
                length, groups = len(phrase), of
                break
        for group in groups:
            found[group] += 1
        position += length
    return found


def jackknife_group(document_id: str) -> int:
    """Which of the 64 groups a document falls into: a function of its id alone."""
    return zlib.crc32(document_id.encode("utf-8")) % GROUPS


def count_documents(rows: Iterable[tuple[str, str, str]], terms: Terms) -> Counts:
    """Count rows (id, language, text) in one pass."""
    counts = Counts()
    for document_id, language, text in rows:
        part = jackknife_group(document_id)
        counts.documents[language, "", "", part] += 1
        lexicon = terms.languages.get(language)
        if lexicon is None:
            continue
        words = split_words(text)
        counts.mentions[language, "", ""] += len(words)
        found = mentions(words, lexicon)
        for (axis, group), times in found.items():
            counts.mentions[language, axis, group] += times
            counts.documents[language, axis, group, part] += 1
        for axis in {axis for axis, _ in found}:
            counts.documents[language, axis, "", part] += 1
    return counts


def count_shard(path: Path, terms: Terms) -> Counts:
    """Count one document shard, a row group at a time.

    Raises:
        ManifestError: it cannot be read.
    """
    return count_documents(_rows(path), terms)


def _rows(path: Path) -> Iterator[tuple[str, str, str]]:
    try:
        with pq.ParquetFile(path) as shard:
            for batch in shard.iter_batches(batch_size=1024, columns=["id", "language", "text"]):
                yield from zip(*(batch.column(name).to_pylist() for name in ("id", "language", "text")), strict=True)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ManifestError(
            f"{path}: cannot be read as a document shard: {error}. Remove its folder and make it again."
        ) from error


def representation_rows(counts: Counts, terms: Terms, min_documents: int) -> list[dict[str, Any]]:
    """The table, one row for each language that has documents and a term list, and each of its groups.

    Columns: `language, axis, group, documents` (that mention it), `mentions, share, share_low, share_high` (95 %),
    `axis_share, per_million_words, conclusive` (whether at least `min_documents` mention it). A share whose
    denominator has fewer than `min_documents` documents is None: so few cannot carry it.
    """
    rows = []
    for language, lexicon in terms.languages.items():
        everyone = _parts(counts, language, "", "")
        if sum(everyone) == 0:
            continue
        words = counts.mentions[language, "", ""]
        for axis, group in lexicon.groups:
            mentioning = _parts(counts, language, axis, group)
            enough = sum(everyone) >= min_documents
            share, low, high = jackknife_share(mentioning, everyone) if enough else (None, None, None)
            on_axis = sum(_parts(counts, language, axis, ""))
            times = counts.mentions[language, axis, group]
            rows.append(
                {
                    "language": language,
                    "axis": axis,
                    "group": group,
                    "documents": sum(mentioning),
                    "mentions": times,
                    "share": share,
                    "share_low": low,
                    "share_high": high,
                    "axis_share": round(sum(mentioning) / on_axis, 9) if on_axis >= min_documents else None,
                    "per_million_words": round(times * 1e6 / words, 3) if words else None,
                    "conclusive": sum(mentioning) >= min_documents,
                }
            )
    return rows


def _parts(counts: Counts, language: str, axis: str, group: str) -> list[int]:
    return [counts.documents[language, axis, group, part] for part in range(GROUPS)]


def jackknife_share(part: Sequence[int], whole: Sequence[int]) -> tuple[float | None, float | None, float | None]:
    """A share with its 95 % interval from the counts of its 64 groups: (share, low, high).

    (None, None, None) where the whole is empty; (share, 0, 1) where one group holds everything, so that nothing is
    known of how the share varies.
    """
    total_part, total = sum(part), sum(whole)
    if total == 0:
        return None, None, None
    share = total_part / total
    if max(whole) == total:
        return round(share, 9), 0.0, 1.0
    squares = [((total_part - a) / (total - b) - share) ** 2 for a, b in zip(part, whole, strict=True)]
    margin = _T_63 * math.sqrt((GROUPS - 1) / GROUPS * math.fsum(squares))
    return round(share, 9), round(max(0.0, share - margin), 9), round(min(1.0, share + margin), 9)


def documents_by_language(counts: Counts) -> dict[str, int]:
    """Documents of each language, those without a term list too."""
    found: Counter[str] = Counter()
    for (language, axis, _, _), number in counts.documents.items():
        if not axis:
            found[language] += number
    return dict(sorted(found.items()))
