"""Markdown and YAML builders that escape external text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from governance.reports.documents.evidence import Field
from governance.reports.html.markup import visible

_MARKS = re.compile(r"([\\`*_\[\]|#~$])")
_YAML_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff]")


def plain(text: str) -> str:
    """Text on one line without Markdown or HTML syntax."""
    line = " ".join(visible(text).split())
    return _MARKS.sub(r"\\\1", line).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; of no rows it says so."""
    lines = [f"| {' | '.join(plain(cell) or ' ' for cell in row)} |" for row in rows]
    if not lines:
        return "None.\n"
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines]) + "\n"


def form(fields: Iterable[Field]) -> str:
    """Items with known values and their place in report.json."""
    head = ["| item | entry | evidence (report.json) |", "|---|---|---|"]
    lines = [
        f"| {plain(field.name)} | {plain(field.told)} | {f'`{field.source}`' if field.source else ' '} |"
        for field in fields
    ]
    return "\n".join([*head, *lines]) + "\n"


def section(title: str, *parts: str, level: int = 2) -> str:
    """A heading and what stands below it."""
    return "\n".join([f"{'#' * level} {title}\n", *parts])


def yaml_block(values: dict[str, Any], remarks: Sequence[str] = ()) -> str:
    """A block of YAML between `---`.

    Names as they are, strings quoted as JSON, which YAML 1.2 contains.
    """
    lines = [line for name, value in values.items() for line in _yaml(name, value, "")]
    comments = [f"# {' '.join(visible(remark).split())}" for remark in remarks]
    return "\n".join(["---", *lines, *comments, "---"]) + "\n"


def _yaml(name: str, value: Any, indent: str) -> list[str]:
    if isinstance(value, dict):
        return [f"{indent}{name}:", *(line for key, item in value.items() for line in _yaml(key, item, indent + "  "))]
    if isinstance(value, list):
        return [f"{indent}{name}:", *(f"{indent}- {_scalar(item)}" for item in value)]
    return [f"{indent}{name}: {_scalar(value)}"]


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(_YAML_UNSAFE.sub("\ufffd", visible(value)), ensure_ascii=False)
    if isinstance(value, float):
        return f"{value:.9f}" if 1e-6 <= abs(value) < 1e15 else "0.0" if value == 0 else f"{value:.9e}"
    return json.dumps(value)
