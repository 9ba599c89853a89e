"""Reference pages of the site, from the program itself: every setting of a run's file, every command with its options.

A hook of MkDocs (`mkdocs.yml`). The pages are made at each build and kept nowhere, so they cannot be out of date.

    python docs/site_reference.py settings|commands
"""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

_HEAD = "Made from the program when the site is built; `{}` prints the same.\n"


def settings() -> str:
    """Markdown: a table for each section of a run's file and of a policy."""
    from assay.config import RunConfig
    from governance.gate.policy import Policy

    lines = ["# Settings", "", _HEAD.format("python docs/site_reference.py settings"), "## A run's file", ""]
    for path, section in _sections("", RunConfig):
        lines += _table(path, section)
    lines += ["## A policy", ""]
    for path, section in _sections("", Policy):
        lines += _table(path, section)
    return "\n".join(lines)


def commands() -> str:
    """Markdown: usage, arguments and options of each command."""
    from assay.cli.surface import parser

    lines = ["# Command line", "", _HEAD.format("assay COMMAND --help")]
    for name, command in _leaves("assay", parser()):
        lines += [f"## `{name}`", "", (command.description or "").strip(), "", "| argument | effect |", "|---|---|"]
        for action in command._actions:
            if action.help == argparse.SUPPRESS or action.dest == "help":
                continue
            names = action.option_strings or [str(action.metavar or action.dest)]
            words = ", ".join(f"`{_cell(name)}`" for name in names)
            value = "" if action.nargs == 0 or not action.option_strings else f" {_value(action)}"
            lines.append(f"| {words}{value} | {_cell(action.help or '')} |")
        lines.append("")
    return "\n".join(lines)


def _leaves(name: str, command: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    groups = [action for action in command._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield name, command
    for group in groups:
        shown = {action.dest for action in group._choices_actions if action.help != argparse.SUPPRESS}
        for word, below in group.choices.items():
            if word in shown:
                yield from _leaves(f"{name} {word}", below)


def _value(action: argparse.Action) -> str:
    if action.choices:
        return "\\|".join(map(str, action.choices))
    return str(action.metavar or action.dest.upper())


def _sections(path: str, section: Any) -> Iterator[tuple[str, Any]]:
    """The section and those below it, depth first; a list of sections has its name in double brackets."""
    yield path, section
    for name, field in section.model_fields.items():
        below = f"{path}.{name}".strip(".")
        found = [model for model in _models(field.annotation) if model is not section]
        many = _is_many(field.annotation)
        for model in found:
            label = f"[[{below}]]" if many else below
            kind = _literal(model, "type") if len(found) > 1 else ""
            yield from _sections(f"{label} {kind}".strip() if many else label, model)


def _models(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
        yield annotation
    else:
        for part in typing.get_args(annotation):
            yield from _models(part)


def _is_many(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (tuple, list) or any(
        _is_many(part) for part in typing.get_args(annotation) if typing.get_origin(annotation) is typing.Annotated
    )


def _literal(model: Any, name: str) -> str:
    field = model.model_fields.get(name)
    return f'type = "{typing.get_args(field.annotation)[0]}"' if field is not None else model.__name__


def _table(path: str, section: Any) -> list[str]:
    notes = _field_notes(section)
    rows = []
    for name, field in section.model_fields.items():
        if list(_models(field.annotation)):
            continue
        default = "required" if field.is_required() else f"`{_toml(field.get_default(call_default_factory=True))}`"
        rows.append(f"| `{name}` | {_type(field.annotation)} | {default} | {_cell(notes.get(name, ''))} |")
    if not rows:
        return []
    title = path if path.startswith("[[") else f"[{path}]" if path else "(top level)"
    first = (inspect.getdoc(section) or "").split("\n")[0]
    return [f"### `{title}`", "", first, "", "| setting | type | default | meaning |", "|---|---|---|---|", *rows, ""]


def _field_notes(section: Any) -> dict[str, str]:
    """The docstring below each field, of base classes too."""
    notes: dict[str, str] = {}
    for parent in reversed(section.__mro__):
        if not hasattr(parent, "model_fields") or parent.__module__.startswith("pydantic"):
            continue
        [body] = ast.parse(textwrap.dedent(inspect.getsource(parent))).body
        assert isinstance(body, ast.ClassDef)
        for field, note in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(note, ast.Expr) and isinstance(note.value, ast.Constant):
                notes[ast.unparse(field.target)] = inspect.cleandoc(str(note.value.value))
    return notes


def _type(annotation: Any) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " \\| ".join(f"`{_toml(part)}`" for part in parts)
    if origin is typing.Annotated:
        return _type(parts[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(part) for part in parts if part is not type(None))
    if origin in (tuple, list):
        return f"list of {_type(parts[0])}" if parts else "list"
    if origin is not None:
        return f"table of {_type(parts[-1])}" if parts else "table"
    return {int: "integer", float: "number", bool: "true or false", str: "text"}.get(
        annotation, getattr(annotation, "__name__", "value")
    )


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }" if value else "{}"
    return "none" if value is None else str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("%%", "%")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site."""
    from mkdocs.structure.files import File

    for name, text in (("reference_settings.md", settings()), ("reference_commands.md", commands())):
        files.append(File.generated(config, name, content=text))
    return files


if __name__ == "__main__":
    sys.stdout.write({"settings": settings, "commands": commands}[sys.argv[1]]() + "\n")
