"""Evaluation sets of `assay inspect`: fields, and their overlap with documents.

A set is searched for as the stage `decontaminate` does. Its fields are chosen by their usual names; where a set has
none of them, the field with the longest texts is taken, and the table says which.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from glob import escape
from pathlib import Path
from typing import Any

from assay.inspect.inspection_page import InspectTable
from data_pipeline.decontamination.evaluation_sets import EvaluationSet, read_rows, texts_of
from governance.errors import ConfigError, MissingInput
from governance.manifest import Manifest

_ALONE = (
    "question", "query", "prompt", "problem", "context", "ctx", "passage", "sentence", "goal", "article", "story",
    "premise",
)  # fmt: skip
_ANSWERS = ("choices", "answer", "answers", "endings", "solution", "options", "hypothesis", "completion", "target")
_FIRST_ITEMS = 50
_ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", ".parquet")


def find_sets(paths: Sequence[Path]) -> list[EvaluationSet]:
    """An evaluation set for each path.

    Fields are chosen from the first items.

    Raises:
        MissingInput: a file does not exist or cannot be read.
        ConfigError: no field of a set holds text, or two paths have one name.
    """
    found = [_set_of(path) for path in paths]
    names = [one.name for one in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"--eval-set: two paths have the name {twice[0]!r}. Rename one of them.")
    return found


def _set_of(path: Path) -> EvaluationSet:
    if not path.exists():
        raise MissingInput(f"--eval-set {path}: no such file or folder. Give JSON Lines or Parquet files of items.")
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.name.endswith(_ENDINGS)]
    if not files:
        raise MissingInput(f"--eval-set {path}: holds no file that ends in {', '.join(_ENDINGS)}.")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.name.partition(".")[0]).strip("-._") or "set"
    lengths: dict[str, int] = {}
    for row in itertools.islice(read_rows(files[0], name), _FIRST_ITEMS):
        for field, value in row.items():
            lengths[field] = lengths.get(field, 0) + sum(len(text) for _, _, text in texts_of(value, field))
    texts = {field: length for field, length in lengths.items() if length}
    if not texts:
        raise ConfigError(f"--eval-set {path}: no field of its first items holds text; they have: "
                          f"{', '.join(sorted(lengths)) or 'none'}.")  # fmt: skip
    alone = [field for field in _ALONE if field in texts] or [max(texts, key=lambda field: texts[field])]
    answers = [field for field in _ANSWERS if field in texts and field not in alone]
    patterns = tuple(escape(str(file.absolute())) for file in files)
    return EvaluationSet(name=name, paths=patterns, fields=tuple(alone), answer_fields=tuple(answers))


def overlap_table(sets: Sequence[EvaluationSet], found: Manifest) -> InspectTable:
    """Documents that hold items of each set, from the artifact of `decontaminate`."""
    of: dict[str, Any] = found.stats
    rows = tuple(
        (
            one.name,
            ", ".join((*one.fields, *one.answer_fields)),
            of["items_sought_by_set"].get(one.name, 0),
            of["hits_by_set"].get(one.name, 0),
            of["documents_by_set"].get(one.name, 0),
        )
        for one in sets
    )
    head = ("set", "fields", "items searched for", "passages found", "documents")
    note = "Items of a few words are not searched for. Documents with a passage are removed as `contaminated`."
    return InspectTable("Overlap with evaluation sets", head, rows, note)
