"""Finder of names and places: the files of its model, and windows.

Promises: nothing is fetched and no code of the folder runs; the digests of its files enter the stage's key; texts are
read in overlapping windows, so that no length is cut off; the windows and batches depend on the shard alone, never on
the number of workers. A score that is not a number stops the run. On a GPU the last digits of scores may differ from
those of a CPU, and so may a finding whose score is that near `min_score`.

Price: that of the model. Everything else of the stage is a thousand times cheaper.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from data_pipeline.pii.detections import Detection
from data_pipeline.pii.entities.finder_settings import Finder, FinderConfig
from data_pipeline.transformers_models import require_safetensors
from governance.errors import MissingInput, hub_hint

_WINDOW, _OVERLAP = 1_000, 100  # characters
_NEEDED = {
    "transformers": (
        {"config.json", "tokenizer.json", "tokenizer_config.json"},
        "save_pretrained of model and tokenizer in transformers",
    ),
    "presidio": ({"config.cfg", "meta.json"}, "nlp.to_disk of spaCy"),
}
_LIBRARIES = {"transformers": ("transformers", "torch"), "presidio": ("presidio-analyzer", "spacy")}


def finder_files(config: FinderConfig, folder: Path) -> tuple[Path, list[Path]]:
    """The model's folder and its files.

    Raises:
        MissingInput: the folder, or a file that such a model needs, is missing; or its library is.
    """
    path = folder / config.path
    where = f"data.pii.finder: path = {config.path!r}"
    if not path.is_dir():
        raise MissingInput(f"{where}: no such folder. Paths start at the folder of the run's file.{hub_hint(path)}")
    files = sorted(file for file in path.rglob("*") if file.is_file() and ".git" not in file.parts)
    names = {file.relative_to(path).as_posix() for file in files}
    needed, writer = _NEEDED[config.kind]
    if missing := sorted(needed - names):
        raise MissingInput(f"{where}: has no {' and no '.join(missing)}. Give a folder that {writer} wrote.")
    if config.kind == "transformers":
        require_safetensors(where, names)
    library_versions(config)
    return path, files


def library_versions(config: FinderConfig) -> tuple[str, ...]:
    """The libraries that run the model, with their versions.

    Raises:
        MissingInput: one is not installed.
    """
    versions = []
    for library in _LIBRARIES[config.kind]:
        try:
            versions.append(f"{library} {metadata.version(library)}")
        except metadata.PackageNotFoundError as error:
            raise MissingInput(
                f"data.pii.finder: kind = {config.kind!r}, but {library} is not installed. "
                f"Install it with: pip install {library}"
            ) from error
    return tuple(versions)


def open_finder(config: FinderConfig, path: Path) -> Finder:
    """The finder of the model in this folder, loaded once per process.

    Raises:
        ConfigError: none of the model's labels means a name or a place.
        ManifestError: the model cannot be loaded.
    """
    return _opened(config.model_dump_json(), path)


@functools.lru_cache(maxsize=2)
def _opened(written: str, path: Path) -> Finder:
    from data_pipeline.pii.entities import presidio, token_classifier

    config = FinderConfig.model_validate_json(written)
    opened = presidio.open_windows if config.kind == "presidio" else token_classifier.open_windows
    find_in_windows = opened(config, path)

    def find(texts: Sequence[str]) -> list[list[Detection]]:
        windows = [(number, start, end) for number, text in enumerate(texts) for start, end in windows_of(text)]
        found = find_in_windows([texts[number][start:end] for number, start, end in windows])
        marks: list[list[Detection]] = [[] for _ in texts]
        for (number, start, _), spans in zip(windows, found, strict=True):
            marks[number] += [Detection(start + mark.start, start + mark.end, mark.type) for mark in spans]
        return [merged(text, spans) for text, spans in zip(texts, marks, strict=True)]

    return find


def windows_of(text: str) -> Iterator[tuple[int, int]]:
    """Overlapping windows that cover the text.

    They begin and end at blanks where there are some.
    """
    start = 0
    while start < len(text):
        end = min(len(text), start + _WINDOW)
        if end < len(text):
            blank = max(text.rfind(sign, start + _WINDOW - _OVERLAP, end) for sign in " \n")
            end = blank if blank > 0 else end
        yield start, end
        if end == len(text):
            return
        blank = text.find(" ", end - _OVERLAP, end)
        start = blank + 1 if blank >= 0 else end - _OVERLAP


def merged(text: str, marks: Sequence[Detection]) -> list[Detection]:
    """The marks grown to whole words, those of one type joined.

    Marks of one type are one finding where only a blank, a hyphen, a dot or an apostrophe is between them.
    """
    found: list[Detection] = []
    for mark in sorted(marks):
        start, end = mark.start, mark.end
        while start > 0 and text[start - 1].isalnum() and text[start].isalnum():
            start -= 1
        while end < len(text) and text[end].isalnum() and text[end - 1].isalnum():
            end += 1
        while start < end and not text[start].isalnum():
            start += 1
        while start < end and not text[end - 1].isalnum():
            end -= 1
        if start == end:
            continue
        last = found[-1] if found else None
        if last is None or start >= last.end + 3:
            found.append(Detection(start, end, mark.type))
        elif start < last.end or (last.type == mark.type and not text[last.end : start].strip(" -.'’\u00a0")):
            found[-1] = Detection(last.start, max(last.end, end), last.type)
        else:
            found.append(Detection(start, end, mark.type))
    return found
