"""Requests to a teacher: a template filled with seeds or rows.

A field of the template is a name in two braces: `Rewrite as a dialogue: {{text}}`. For a seed document the names are
text, id, url, language, licence and what `columns` of its source keeps; for a row of a prompts file they are its keys.
Other braces are text. An unknown name is refused before anything is sent.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.readers.archive import archive_items
from data_pipeline.readers.items import SourceFiles
from data_pipeline.readers.local import LocalFile, find_files
from data_pipeline.readers.parts import Reading
from data_pipeline.readers.reading import read_items
from data_pipeline.readers.record import Record, encodable
from data_pipeline.readers.sources import PackageSource, Source, SyntheticSource
from governance.config import canonical_json
from governance.errors import ConfigError, MissingInput
from governance.files import sha256_bytes

_FIELD = re.compile(r"\{\{\s*([\w.-]+)\s*\}\}")
_OF_DOCUMENTS = ("text", "id", "url", "language", "licence")
_BYTES_PER_TOKEN = 4
_FORM_TOKENS = 64  # most tokens that an endpoint's chat template adds


@dataclass(frozen=True, slots=True)
class TokenBounds:
    """Tokens that one request may use."""

    most_in: int
    """Bytes of the prompt and of its form: no prompt has more tokens."""
    most_out: int

    @property
    def expected_in(self) -> int:
        """Tokens of the prompt, at four bytes each."""
        return -(-(self.most_in - _FORM_TOKENS) // _BYTES_PER_TOKEN)


@dataclass(frozen=True)
class Request:
    """A request to the teacher, for one seed."""

    key: str
    """SHA-256 of the API's name and the body: equal requests are sent once."""
    seed: str
    """The document's id, or file and number of the row."""
    prompt_sha256: str
    choices: int
    body: Mapping[str, Any]
    bounds: TokenBounds


@dataclass(frozen=True, slots=True)
class Listed:
    """Facts of a request that stay in memory."""

    bounds: TokenBounds
    seeds: list[str]
    """Every seed that makes this request: those with an equal prompt."""


def read_template(source: SyntheticSource, folder: Path) -> str:
    """The template's text.

    Raises:
        MissingInput: its file is missing.
        ConfigError: it is not UTF-8, or has no field.
    """
    if not source.template:
        return "{{prompt}}"
    path = folder / source.template
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise MissingInput(f"source {source.name}: template {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"source {source.name}: template {path} is not UTF-8. Save it as UTF-8.") from error
    if not _FIELD.search(text):
        raise ConfigError(
            f"source {source.name}: template {path} has no field, so all its prompts would be equal. Add {{{{text}}}}"
        )
    return text


def check_fields(source: SyntheticSource, template: str, seeds: Source | None) -> None:
    """Refuse a template with a field that no seed document has.

    Raises:
        ConfigError: it names the field, and those that there are.
    """
    known = {*_OF_DOCUMENTS, *getattr(seeds, "columns", ())}
    unknown = sorted({name for name in _FIELD.findall(template) if name not in known})
    if seeds is not None and unknown:
        raise ConfigError(
            f"source {source.name}: template {source.template} has the field {{{{{unknown[0]}}}}}, which documents of "
            f"{seeds.name} do not have; they have {', '.join(sorted(known))}. Correct it, or keep the column: "
            f'columns = ["{unknown[0]}"] in the source {seeds.name}'
        )


def prompt_files(source: SyntheticSource, folder: Path) -> list[LocalFile]:
    """Files of prompts.

    Raises:
        MissingInput: a pattern names none.
    """
    return find_files(source.prompts, folder, f"source {source.name}") if source.prompts else []


def requests(
    source: SyntheticSource, template: str, seeds: SourceFiles | None, files: list[LocalFile]
) -> Iterator[Request]:
    """Every request of every seed, in order.

    Seeds with an equal prompt have equal requests.

    Raises:
        ConfigError: a row of a prompts file is not an object with the template's fields.
    """
    found = _documents(seeds) if seeds is not None else _rows(source, template, files)
    for number, (seed, values) in enumerate(found):
        if source.limit and number >= source.limit:
            return
        if source.seed_characters and "text" in values:
            values["text"] = values["text"][: source.seed_characters]
        prompt = _filled(template, values)
        for place in range(source.n // source.choices):
            yield _request(source, seed, prompt, place)


def listed(found: Iterable[Request]) -> dict[str, Listed]:
    """Each request once, in order, with all its seeds."""
    known: dict[str, Listed] = {}
    for request in found:
        known.setdefault(request.key, Listed(request.bounds, [])).seeds.append(request.seed)
    return known


def _filled(template: str, values: Mapping[str, str]) -> str:
    """The prompt; braces in a value are text."""
    return _FIELD.sub(lambda field: values.get(field[1], ""), template)


def _request(source: SyntheticSource, seed: str, prompt: str, place: int) -> Request:
    body: dict[str, Any] = {
        "model": source.model,
        "temperature": source.temperature,
        "max_tokens": source.max_tokens,
        "n": source.choices,
    }
    if source.api == "chat":
        system = [{"role": "system", "content": source.system}] if source.system else []
        body["messages"] = [*system, {"role": "user", "content": prompt}]
    else:
        body["prompt"] = prompt
    if source.seed is not None:
        body["seed"] = source.seed + place
    # Without the API's seed, `place` tells further requests of one prompt apart.
    key = sha256_bytes(canonical_json({"api": source.api, "place": place, "body": body}))
    data = prompt.encode("utf-8")
    size = len(data) + len(source.system.encode("utf-8")) + _FORM_TOKENS
    bounds = TokenBounds(size, source.max_tokens * source.choices)
    return Request(key, seed, sha256_bytes(data), source.choices, body, bounds)


def _documents(seeds: SourceFiles) -> Iterator[tuple[str, dict[str, str]]]:
    """Id and values of each document as read."""
    source = seeds.source
    items = archive_items(source, seeds.items[0]) if isinstance(source, PackageSource) else seeds.items
    for piece in read_items(Reading(source, tuple(items), beside=tuple(seeds.beside)), Counter()):
        if isinstance(piece, Record):
            seed = f"{source.name}/{piece.id or f'{piece.file}#{piece.position}'}"
            yield (
                seed,
                {
                    "text": piece.text,
                    "id": seed,
                    "url": piece.url,
                    "language": piece.language or source.language,
                    "licence": piece.licence or source.licence,
                    **{name: _written(value) for name, value in json.loads(piece.columns or "{}").items()},
                },
            )


def _rows(source: SyntheticSource, template: str, files: list[LocalFile]) -> Iterator[tuple[str, dict[str, str]]]:
    names = _FIELD.findall(template)
    for file in files:
        with file.path.open("rb") as stream:
            for number, line in enumerate(stream):
                if line.isspace():
                    continue
                place = f"source {source.name}: {file.path}, line {number + 1}"
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ConfigError(f"{place}: is not JSON. Correct it; nothing was sent") from error
                if absent := [name for name in names if not isinstance(row, dict) or row.get(name) is None]:
                    raise ConfigError(
                        f"{place}: lacks the value {absent[0]!r}, which the template needs. Correct it; nothing was "
                        "sent"
                    )
                values = {name: _written(row[name]) for name in names}
                if halves := [name for name, value in values.items() if encodable(value) != value]:
                    raise ConfigError(
                        f"{place}: {halves[0]!r} has half of a surrogate pair, such as \\ud800, which is not a "
                        "character. Correct it; nothing was sent"
                    )
                yield f"{source.name}/prompts/{file.name}#{number}", values


def _written(value: Any) -> str:
    """Text of a value in a prompt."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
