"""Labels of documents and the sides of their split (`data.encode.classification`).

A token shard of labelled documents has the number of each document's label beside its tokens. Only the label is
predicted: the model, whose head has a row for each label, reads it off the last token of the text, or, of a text that
is longer than a row, off the row's last token. Labels, groups and dates are kept columns of the source.

A document is on one of three sides. *test* is in no token shard; `assay classify evaluate` reads it from the documents.
*validation* stops the training and fits the temperature. *train* is the rest. The unit of a split is the group, or,
without groups, the text's content, so equal texts never part:

- `test_from`: documents of that date or later are the test side.
- `test_share`: a unit's digest decides.
- `folds`: the test side is one of k parts. Groups go, largest first, to the part with the fewest documents, as
  scikit-learn's GroupKFold has it; without groups each label is dealt evenly (StratifiedKFold).

Price: texts, columns and 160 bytes of MinHash keys of all documents in memory; a set for fine-tuning is small.
"""

from __future__ import annotations

import datetime
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from data_pipeline.documents import DOCUMENT_SCHEMA, KEPT_COLUMNS, read_groups
from governance.config import Section
from governance.errors import PipelineError
from governance.files import sha256_bytes

Integers = npt.NDArray[np.int64]
SIDES = ("train", "validation", "test")
_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2}([T ].*)?)?)?")
_READ = pa.schema([DOCUMENT_SCHEMA.field("id"), DOCUMENT_SCHEMA.field("text"), KEPT_COLUMNS])
_NGRAM, _BANDS, _ROWS = 5, 20, 6  # the defaults of the stage `dedup`
_SIMILARITY = 0.8


class ClassificationConfig(Section):
    """`[data.encode.classification]`: labels to learn, and the test side."""

    label: str = "label"
    """Kept column with a document's label."""
    labels: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=2)
    """All labels, in the order of the head's outputs."""
    group: str = ""
    """Kept column (author, patient, site); documents of one group stay on one side. Empty: each text by itself."""
    date: str = ""
    """Kept column with a date (2024, 2024-05, 2024-05-01, or with a time)."""
    test_from: str = Field(default="", pattern=r"^(\d{4}(-\d{2}(-\d{2})?)?)?$")
    """Time split: documents of this date or later are the test side."""
    test_share: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Expected share of groups (or texts) on the test side."""
    folds: int = Field(default=0, ge=0)
    """Parts of a cross-validation; 0: none."""
    fold: int = Field(default=0, ge=0)
    """Number, from 0, of the part that is the test side."""

    @model_validator(mode="after")
    def _check(self) -> ClassificationConfig:
        if twice := [name for name, count in Counter(self.labels).items() if count > 1]:
            raise ValueError(f"labels names {twice[0]!r} twice; remove one")
        if sum(map(bool, (self.test_from, self.test_share, self.folds))) > 1:
            raise ValueError("test_from, test_share and folds are three ways to split; keep one")
        if self.test_from and not self.date:
            raise ValueError(f"test_from = {self.test_from!r} splits by time; set date to the column with the dates")
        if self.test_from and not is_date(self.test_from):
            raise ValueError(
                f"test_from = {self.test_from!r} is not a calendar date; write YYYY, YYYY-MM or YYYY-MM-DD"
            )
        if self.test_from and self.group:
            raise ValueError(f"test_from would split a group of {self.group!r} in time; remove group or test_from")
        if self.folds == 1 or self.fold >= max(self.folds, 1):
            raise ValueError(f"fold = {self.fold} of folds = {self.folds}: take at least 2 folds, and fold below folds")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Kept columns that every source must have."""
        return tuple(name for name in (self.label, self.group, self.date) if name)


@dataclass(frozen=True)
class Labelled:
    """Labels, sides and units of documents, in order."""

    numbers: Integers
    """[documents], place in `labels`."""
    sides: npt.NDArray[np.str_]
    """[documents], of `SIDES`."""
    units: npt.NDArray[np.str_]
    """[documents], digest of the group or the text."""

    def at(self, places: slice | npt.NDArray[Any]) -> Labelled:
        """Those of some documents."""
        return Labelled(self.numbers[places], self.sides[places], self.units[places])

    @property
    def digest(self) -> str:
        """Digest of labels and sides."""
        return sha256_bytes(self.numbers.astype("<i8").tobytes() + "\n".join(self.sides.tolist()).encode())


def content_digests(texts: pa.Array | pa.ChunkedArray) -> list[str]:
    """The SHA-256, in hexadecimal, of the letters of each text.

    Case is folded, and ASCII white space is left out.
    """
    from data_pipeline.kernels.content_hash_text import folded_letters
    from governance.kernels.buffers import text_buffers

    letters, ends = folded_letters(*text_buffers(texts))
    return [sha256_bytes(letters[first:last].data) for first, last in pairwise(ends.tolist())]


def split_documents(paths: Sequence[Path], config: ClassificationConfig, validation_share: float) -> list[Labelled]:
    """Labels and sides of the documents of each shard.

    Raises:
        PipelineError: a document lacks its label, group or date, or has another label; a side is empty; training has
            documents of one label only; a test document is, nearly, one of training. Names the documents.
    """
    tables = [pa.concat_tables([_READ.empty_table(), *read_groups(path, _READ)]) for path in paths]
    found = _split(pa.concat_tables(tables).combine_chunks(), config, validation_share)
    starts = np.cumsum([0, *(table.num_rows for table in tables)]).tolist()
    return [found.at(slice(first, last)) for first, last in pairwise(starts)]


def count_labels(found: Sequence[Labelled | None], labels: Sequence[str]) -> dict[str, Any]:
    """The labels, and the documents of each side by label."""
    shards = [zip(one.sides.tolist(), one.numbers.tolist(), strict=True) for one in found if one is not None]
    counts = Counter(pair for shard in shards for pair in shard)
    sides = {side: {name: counts[side, number] for number, name in enumerate(labels)} for side in SIDES}
    return {"labels": list(labels), "label_counts": sides}


def _split(table: pa.Table, config: ClassificationConfig, validation_share: float) -> Labelled:

    ids = table["id"].to_pylist()
    facts = [json.loads(columns or "{}") for columns in table["columns"].to_pylist()]
    numbers = np.array([number_of_label(one, row, config) for one, row in zip(ids, facts, strict=True)], np.int64)
    if config.group:
        units = [group_of(one, row, config) for one, row in zip(ids, facts, strict=True)]
    else:
        units = content_digests(table["text"])
    if config.test_from:
        tested = np.array([_is_later(one, row, config) for one, row in zip(ids, facts, strict=True)], bool)
    elif config.folds:
        if len(set(units)) < config.folds:
            what = f"groups in {config.group!r}" if config.group else "distinct texts"
            raise PipelineError(
                f"encode: folds = {config.folds}, and there are {len(set(units))} {what}; take fewer folds"
            )
        tested = assign_folds(units, numbers, config.folds, grouped=bool(config.group)) == config.fold
    else:
        tested = np.array([_share(unit[16:32]) < config.test_share for unit in units], bool)
    held = np.array([_share(unit[:16]) < validation_share for unit in units], bool)
    sides = np.where(tested, "test", np.where(held, "validation", "train"))
    _refuse_empty(Counter(zip(sides.tolist(), numbers.tolist(), strict=True)), config, validation_share)
    if tested.any():
        texts = table["text"].combine_chunks()
        mine, theirs = np.flatnonzero(tested), np.flatnonzero(~tested)
        refuse_overlap(
            ([ids[place] for place in mine], texts.take(pa.array(mine))),
            ([ids[place] for place in theirs], texts.take(pa.array(theirs))),
        )
    return Labelled(numbers, sides, np.array(units))


def _share(digits: str) -> float:
    return int(digits, 16) / 2**64


def _value(document: str, facts: Mapping[str, Any], column: str) -> str:
    value = facts.get(column)
    if value is None or value == "":
        raise PipelineError(
            f"document {document} has no {column!r} in its kept columns; add it to the row, or leave the row out"
        )
    return value if isinstance(value, str) else json.dumps(value)


def number_of_label(document: str, facts: Mapping[str, Any], config: ClassificationConfig) -> int:
    """Place of a document's label.

    Raises:
        PipelineError: it has none, or one that is not in `labels`.
    """
    value = _value(document, facts, config.label)
    if value not in config.labels:
        raise PipelineError(
            f"document {document} has the label {value!r}; data.encode.classification.labels has "
            f"{', '.join(map(repr, config.labels))}. Correct the row, or add the label."
        )
    return config.labels.index(value)


def group_of(document: str, facts: Mapping[str, Any], config: ClassificationConfig) -> str:
    """Digest of a document's group.

    Raises:
        PipelineError: it has none.
    """
    return sha256_bytes(_value(document, facts, config.group).encode())


def _is_later(document: str, facts: Mapping[str, Any], config: ClassificationConfig) -> bool:
    date, wanted = _value(document, facts, config.date), config.test_from
    if not is_date(date) or len(date) < len(wanted):
        raise PipelineError(
            f"document {document} has the {config.date} {date!r}, which does not tell whether it is before "
            f"{wanted}; write dates as {'YYYY-MM-DD'[: len(wanted)]}, or leave the row out"
        )
    return date[: len(wanted)] >= wanted


def is_date(text: str) -> bool:
    """Return whether a text is a date of the calendar.

    It is a year, a month or a day, or begins with a day and goes on with a time.
    """
    if not _DATE.fullmatch(text):
        return False
    try:
        datetime.date.fromisoformat(text[:10] + "0001-01-01"[len(text[:10]) :])
    except ValueError:
        return False
    return True


def assign_folds(units: Sequence[str], labels: Integers, folds: int, *, grouped: bool) -> Integers:
    """Fold of each document.

    Documents of one unit share it. Neither order nor process decides: ties are broken by the units' digests.
    """
    sizes = Counter(units)
    fold_of: dict[str, int] = {}
    if grouped:
        loads = [0] * folds
        for unit in sorted(sizes, key=lambda unit: (-sizes[unit], unit)):
            fold_of[unit] = lightest = loads.index(min(loads))
            loads[lightest] += sizes[unit]
    else:
        first = dict(zip(reversed(units), reversed(labels.tolist()), strict=True))
        ordered = sorted(sizes, key=lambda unit: (first[unit], unit))
        fold_of = {unit: place % folds for place, unit in enumerate(ordered)}
    return np.array([fold_of[unit] for unit in units], np.int64)


def _refuse_empty(counts: Mapping[tuple[str, int], int], config: ClassificationConfig, validation_share: float) -> None:
    trained = {number for side, number in counts if side == "train"}
    if absent := [name for number, name in enumerate(config.labels) if number not in trained]:
        have = ", ".join(repr(config.labels[number]) for number in sorted(trained)) or "none"
        raise PipelineError(
            f"encode: no training document has the label {absent[0]!r} (there are: {have}). A class that is not seen "
            f"cannot be learned: add documents, split otherwise, or take it out of labels."
        )
    wanted = [*(["validation"] if validation_share else [])]
    wanted += ["test"] if config.test_from or config.test_share or config.folds else []
    if empty := [side for side in wanted if not any(one == side for one, _ in counts)]:
        raise PipelineError(
            f"encode: the {empty[0]} side has no document. Split otherwise (test_from, test_share, folds, "
            f"data.encode.validation_share), or add documents."
        )


Texts = tuple[Sequence[str], "pa.Array"]
"""Ids and texts of documents."""


def refuse_overlap(test: Texts, train: Texts) -> None:
    """Raise if a test text is, or nearly is, a training text.

    Nearly: four fifths of all distinct 5-grams of words of the two are in both.

    Raises:
        PipelineError: names the first pairs, and their number.
    """
    if pairs := list(_overlaps(test, train)):
        shown = "\n  ".join(f"{mine} is in training as {theirs}{how}" for mine, theirs, how in pairs[:5])
        raise PipelineError(
            f"{len(pairs)} test document(s) are in the training set, so the test would measure memory:\n  {shown}\n"
            f"  Remove them from one of the two; [data.dedup] keeps one of each in a corpus."
        )


def _overlaps(test: Texts, train: Texts) -> Iterator[tuple[str, str, str]]:
    """Test documents with a training document each, and how alike."""
    from data_pipeline.kernels.minhash import band_keys, shingle_sets

    contents = dict(zip(reversed(content_digests(train[1])), reversed(train[0]), strict=True))
    keys, words = band_keys(train[1], _NGRAM, _BANDS, _ROWS)
    holders: dict[tuple[int, int], list[int]] = {}
    for row in np.flatnonzero(words).tolist():
        for band, key in enumerate(keys[row].tolist()):
            holders.setdefault((band, key), []).append(row)
    keys, words = band_keys(test[1], _NGRAM, _BANDS, _ROWS)
    for row, digest in enumerate(content_digests(test[1])):
        if digest in contents:
            yield test[0][row], contents[digest], ""
            continue
        near = {one for place in enumerate(keys[row].tolist()) for one in holders.get(place, ())} if words[row] else ()
        for one in sorted(near):
            shingles, ends = shingle_sets(pa.concat_arrays([test[1][row : row + 1], train[1][one : one + 1]]), _NGRAM)
            ours, theirs = shingles[: ends[1]], shingles[ends[1] :]
            shared = len(np.intersect1d(ours, theirs, assume_unique=True))
            if (alike := shared / (len(ours) + len(theirs) - shared)) >= _SIMILARITY:
                yield test[0][row], train[0][one], f" (similarity {alike:.2f})"
                break
