"""Masked examples of removed and unreadable documents.

The caller passes the masking function (`Mask`): personal-data rules belong to the data pipeline, which this package
does not import. Addresses and runs of digits in texts are always masked as well, validated or not. In evidence, which a
filter wrote, they are not: a document's id or an item's number there must stay readable.

Narrow columns of a shard are read first and texts only for the rows shown, so a report on a terabyte needs the memory
of one row group. A shard is read only while it matches its manifest (`intact`), so an example is what the corpus holds.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from governance.errors import read_errors
from governance.log import get_logger
from governance.manifest import Manifest, Output
from governance.verified_files import intact

EXAMPLES = 5
CHARACTERS = 200
_MAX_SHARDS = 50  # examples come from the first shards; counts come from the manifests

_READ = 16_384  # characters of a text that are masked, so that a key of many lines is seen whole

Mask = Callable[[str], str]
"""Text -> the same text with personal data masked."""

_EMAIL = re.compile(r"[^\s@<>\"']{1,64}@[^\s@<>\"']{1,255}")
_PLAIN = re.compile(r"(?<!\S)(\w{1,60}=\d{1,3}(?:\.\d{1,20})?|kept=\S+)(?!\S)")
_DIGITS = re.compile(r"\d(?:[\s().+/-]{0,3}\d){4,}")


def mask(text: str) -> str:
    """Mask e-mail addresses and runs of five or more digits."""
    return _DIGITS.sub("[digits]", _EMAIL.sub("[e-mail]", text))


def _masked_evidence(evidence: str, rules: Mask = mask) -> str:
    """Mask a filter's evidence, except measured shares and document ids.

    `name=0.1234567` is a share, `kept=` an id. The text around them is masked by the rules, an id as every id is.
    """
    parts = _PLAIN.split(evidence)
    shown = [_id(part) if place % 2 else _short(part, rules) for place, part in enumerate(parts)]
    return " ".join(filter(None, shown))


def _id(name: str) -> str:
    return _EMAIL.sub("[e-mail]", name)


def shorten(text: str, rules: Mask = mask) -> str:
    """The first 200 characters of the masked text on one line."""
    return _short(text, lambda begin: mask(rules(begin)))


def _short(text: str, masking: Mask) -> str:
    """First 200 characters after `masking`, on one line.

    More text is masked than is shown, and a word that the first cut may have split is dropped, so that no half of an
    address or number escapes the mask.
    """
    begin = text[:_READ]
    if len(text) > len(begin) and not text[len(begin)].isspace():
        begin = begin[: max(begin.rfind(" "), begin.rfind("\n"))] if any(map(str.isspace, begin)) else begin
    masked = " ".join(masking(begin).split())
    return masked if len(masked) <= CHARACTERS else masked[:CHARACTERS] + "…"


def removed_samples(manifest: Manifest, root: Path, rules: Mask = mask) -> dict[str, list[dict[str, str]]]:
    """Up to five removed documents for each reason."""
    found: dict[str, list[dict[str, str]]] = {}
    reasons = {reason for reason, number in manifest.stats.get("removed", {}).items() if number}
    for row in _rows(manifest.listed("removed"), root, ["id", "text", "reason", "evidence"], "reason"):
        examples = found.setdefault(str(row["reason"]), [])
        if len(examples) < EXAMPLES:
            origin = {"id": _id(str(row["id"])), "evidence": _masked_evidence(str(row["evidence"] or ""), rules)}
            examples.append({**origin, "text": shorten(str(row["text"]), rules)})
        if reasons and reasons <= {reason for reason, rows in found.items() if len(rows) >= EXAMPLES}:
            break
    return dict(sorted(found.items()))


def kept_samples(manifest: Manifest, root: Path, rules: Mask = mask) -> list[dict[str, str]]:
    """Up to five kept documents from many sources, masked."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in _rows(manifest.listed("documents"), root, ["id", "text", "source"], "source"):
        examples = found.setdefault(str(row["source"]), [])
        if len(examples) < EXAMPLES:
            examples.append({"id": _id(str(row["id"])), "text": shorten(str(row["text"]), rules)})
        if len(found) >= EXAMPLES:
            break
    turns = itertools.chain.from_iterable(itertools.zip_longest(*found.values()))
    return [example for example in turns if example is not None][:EXAMPLES]


def masked_example(example: Mapping[str, str], rules: Mask) -> dict[str, str]:
    """Mask and shorten an example sentence of a finding."""
    return {**example, "id": _id(example["id"]), "text": shorten(example["text"], rules)}


def quarantine_samples(manifest: Manifest, root: Path, rules: Mask) -> dict[str, list[dict[str, str]]]:
    """Reason -> up to five records that could not become documents.

    Each comes with its place and the beginning of its text.
    """
    found: dict[str, list[dict[str, str]]] = {}
    columns = ["source", "file", "position", "reason", "sample"]
    for row in _rows(manifest.listed("quarantine"), root, columns, "reason"):
        examples = found.setdefault(str(row["reason"]), [])
        if len(examples) < EXAMPLES:
            place = f"{row['source']}/{row['file']}#{row['position']}"
            examples.append({"id": place, "evidence": "", "text": shorten(str(row["sample"]), rules)})
    return dict(sorted(found.items()))


def _rows(shards: list[Output], root: Path, columns: list[str], by: str) -> Iterator[dict[str, Any]]:
    """First rows of each value of column `by`, by shard.

    Raises:
        ManifestError: a shard is not a Parquet file or lacks a column, or differs from its manifest.
    """
    import pyarrow.parquet as pq

    if len(shards) > _MAX_SHARDS:
        get_logger(__name__).info("report: examples from the first %d of %d shards", _MAX_SHARDS, len(shards))
    for shard in shards[:_MAX_SHARDS]:
        with intact(shard, root) as path, read_errors(path), pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                chosen = _first(file.read_row_group(group, columns=[by]).column(0).to_pylist())
                if chosen:
                    yield from file.read_row_group(group, columns=columns).take(chosen).to_pylist()


def _first(values: list[Any]) -> list[int]:
    """The positions of the first five of each value."""
    seen: dict[Any, int] = {}
    chosen = []
    for position, value in enumerate(values):
        seen[value] = seen.get(value, 0) + 1
        if seen[value] <= EXAMPLES:
            chosen.append(position)
    return chosen
