"""Reader of rows that are source files, as in The Stack.

A row of any type of source becomes the record that its file in a source tree would become (`source_trees.py`): the same
facts in `columns`, the same language, the same rows passed over (`empty_file`, `binary_file`, `licence_file`,
`no_programming_language`). Two things differ. A row has no folder with licence files; in their place counts the
row's own licence (`licence_field`): an SPDX expression, or a list of licences found in the repository, all of which
count; one that lacks the value's name is a fault (`no_licence_field`), as the source's licence may not be its own. And
where path and content decide no language, the row may name one that Pygments knows.

Path and repository are spelt as an opt-out list names them: without host, `.git`, `./` and backslashes. A row without a
path within its repository, or without the repository that `repository_field` promises, is a fault (`no_path`,
`no_repository`): no opt-out list would find it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from data_pipeline.code.languages import known_language, programming_language
from data_pipeline.code.licences import UNKNOWN, is_licence_file, joined, licence_of_header, normalised
from data_pipeline.code.opt_out_lists import plain_path, repository_name
from data_pipeline.code.source_trees import BINARY_CHARACTERS
from data_pipeline.documents import CODE_LANGUAGE
from data_pipeline.readers.file_types.code_settings import CodeRows
from data_pipeline.readers.parts import Reading
from data_pipeline.readers.reading import read_items
from data_pipeline.readers.record import Record, RecordFault, sample
from data_pipeline.readers.sources import kept_columns

_BYTE_ORDER_MARK = "\ufeff"
_QUOTED = re.compile(r"'([^'\\]*)'|\"([^\"\\]*)\"")
_LIST = re.compile(rf"\s*\[\s*(({_QUOTED.pattern})[\s,]*)*\]\s*")
"""A list in CSV, as JSON, pandas and NumPy write it."""


def read_code_rows(work: Reading, passed: Counter[str]) -> Iterator[Record | RecordFault]:
    """The records and faults of consecutive files of rows of code.

    `passed` counts the rows that are not records, by reason.
    """
    rows: CodeRows | None = getattr(work.source, "code", None)
    assert rows is not None, "the reader of rows of code"
    licence_field = getattr(work.source, "licence_field", "")
    kept = kept_columns(work.source)
    for piece in read_items(work, passed):
        found = _source_file(rows, licence_field, kept, piece) if isinstance(piece, Record) else piece
        if isinstance(found, str):
            passed[found] += 1
        else:
            yield found


def _source_file(
    rows: CodeRows, licence_field: str, kept: tuple[str, ...], record: Record
) -> Record | RecordFault | str:
    """Record or fault of a row's file, or a reason against it."""
    values: dict[str, Any] = json.loads(record.columns)
    path, repository = values[rows.path_field], values[rows.repository_field] if rows.repository_field else ""
    text = record.text.removeprefix(_BYTE_ORDER_MARK)
    path = plain_path(path) if isinstance(path, str) else ""
    repository = repository_name(repository) if isinstance(repository, str) else ""
    if not path or (rows.repository_field and not repository):
        return RecordFault(record.file, record.position, "no_repository" if path else "no_path", sample(text))
    if is_licence_file(path):
        return "licence_file"
    if not text or "\0" in text[:BINARY_CHARACTERS]:
        return "binary_file" if text else "empty_file"
    language = programming_language(path, text)
    if not language and rows.programming_language_field:
        named = values[rows.programming_language_field]
        language = known_language(named) if isinstance(named, str) else ""
    if not language:
        return "no_programming_language"
    licence, where = licence_of_header(text), "header"
    if not licence and licence_field:
        licence, where = licence_of_value(values[licence_field]), licence_field
    values |= {
        "repository": repository,
        "path": path,
        "programming_language": language,
        "licence_from": where if licence else "source",
    }
    columns = json.dumps({name: values[name] for name in kept}, ensure_ascii=False, separators=(",", ":"))
    return replace(record, text=text, language=CODE_LANGUAGE, licence=licence, columns=columns)


def licence_of_value(value: Any) -> str:
    """The licence that a row's value states, a text or a list.

    The result is "" if it states none (null, blank or empty), `UNKNOWN` if any part of it is not an SPDX expression.
    """
    if value is None:
        return ""
    stated = [value] if isinstance(value, str) else value
    if isinstance(value, str) and _LIST.fullmatch(value):
        stated = [one or other for one, other in _QUOTED.findall(value)]
    if not isinstance(stated, list) or not all(isinstance(one, str) for one in stated):
        return UNKNOWN
    return joined(sorted({normalised(one) for one in stated if one.strip()}))
