"""Configuration: one TOML file, frozen sections, errors with a fix.

A `Section` is validated strictly (the text "5" is not an integer, an unknown key is an error) and never changes.
`load_config` reads the file, applies `--set section.field=VALUE` (VALUE in TOML's own grammar), and turns each
complaint of the validator into a line with file, field, value and fix. `canonical_json` is the one byte form
that is ever hashed.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from governance.errors import ConfigError, near_path
from governance.regular_files import read_whole


class Section(BaseModel):
    """A frozen group of settings.

    An unknown key is an error; a docstring below each field describes it.

    pydantic does not read those (`use_attribute_docstrings`): it would parse each class again at each start, 0.1 s.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


Config = TypeVar("Config", bound=Section)
_SHOWN_CHARACTERS = 200
_LISTED_KEYS = 24
_AS_IS = frozenset((str, int, bool, type(None)))
_MAX_TOML_BYTES = 8 << 20  # tomllib reads some 2 MB per second


def canonical_json(value: Any) -> bytes:
    """The one byte form of a value that is ever hashed.

    Keys are sorted, there are no spaces, and the encoding is UTF-8.

    Raises:
        TypeError: JSON has no certain form for it: a NaN, an infinity, a key that is not a string, a set.
        UnicodeEncodeError: it holds a lone surrogate.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def is_canonical(value: Any, data: bytes) -> bool:
    """Return whether these bytes are the value's one form.

    False also for a foreign value that has none: a NaN, a lone surrogate, brackets in brackets without end.
    """
    try:
        return canonical_json(value) == data
    except (TypeError, ValueError, RecursionError):
        return False


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Settings of nested tables under dotted names."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _plain(value: Any) -> Any:
    if type(value) in _AS_IS or isinstance(value, (str, int)):
        return value
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"canonical JSON has no {value}")
        return value
    if isinstance(value, (dict, Mapping)):  # a dict is met before the slow check of an abstract class
        if set(map(type, value)) - {str} and not all(isinstance(key, str) for key in value):
            raise TypeError("canonical JSON needs text keys")
        return {key: item if type(item) in _AS_IS else _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [item if type(item) in _AS_IS else _plain(item) for item in value]
    raise TypeError(f"canonical JSON has no form for {type(value).__name__}")


def load_config(path: Path, schema: type[Config]) -> Config:
    """Read a TOML file, validate, and freeze.

    Raises:
        ConfigError: with a line for each fault: file, field, value, the fix.
    """
    return validate(read_toml(path), schema, str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """The plain values of a TOML file.

    Raises:
        ConfigError: it cannot be read, or is not TOML in UTF-8.
    """
    try:
        return tomllib.loads(read_whole(path, _MAX_TOML_BYTES).decode("utf-8-sig"))
    except FileNotFoundError as error:
        hint = near_path(path) or " Name a TOML file, or write a run's: assay init"
        raise ConfigError(f"{path}: no such file.{hint}") from error
    except IsADirectoryError as error:
        inside = ", ".join(str(file) for file in sorted(path.glob("*.toml"))[:3])
        hint = f"Name a file in it: {inside}" if inside else "Name a TOML file, or write a run's: assay init"
        raise ConfigError(f"{path}: is a folder. {hint}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    except (ValueError, RecursionError) as error:  # a number of 4,301 digits, brackets in brackets without end
        raise ConfigError(f"{path}: is not valid TOML: {error}.") from error


def validate(values: Mapping[str, Any], schema: type[Config], origin: str) -> Config:
    """Validate plain values strictly against `schema`; `origin` names them in the error."""
    try:
        text = json.dumps(values, allow_nan=False, default=lambda item: item.isoformat())
    except ValueError as error:
        names = ", ".join(_field_name(place, values) for place in _not_finite(values))
        raise ConfigError(f"{origin}: {names}: is not finite (nan or inf). Give a finite number.") from error
    try:
        return schema.model_validate_json(text, strict=True)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        lines = [_explain(fault, schema, values) for fault in faults if not _follows(fault, faults, schema)]
        raise ConfigError(f"{origin}: {len(lines)} fault(s)\n" + "\n".join(f"  {line}" for line in lines)) from None


def _not_finite(value: Any) -> Iterator[tuple[Any, ...]]:
    """Places of the numbers that are infinite or NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        yield ()
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, list | tuple | Mapping):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
    for part, item in items:
        yield from ((part, *place) for place in _not_finite(item))


def with_tuples(value: Any) -> Any:
    """A value with tuples in place of lists.

    Behind a validator of mode "before" pydantic takes the values of a file for Python's, and refuses lists.
    """
    if isinstance(value, Mapping):
        return {name: with_tuples(item) for name, item in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list | tuple) else value


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one value, given as "section.field=VALUE"."""
    name, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override}: needs the form section.field=VALUE, for example --set train.steps=20")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"--set {name}: {_short(repr(text))} is not a TOML value ({error}). Text needs quotes: "
            f"--set '{name}=\"...\"'"
        ) from error
    *parents, field = [part.strip() for part in name.split(".")]
    target = values
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise ConfigError(
                f"--set {override}: {parent} is a {type(target).__name__}, not a section. Set the whole value, or put "
                "the change into a file: --with changes.toml"
            )
    target[field] = value


def _follows(fault: Mapping[str, Any], faults: Iterable[Mapping[str, Any]], schema: type[Section]) -> bool:
    """Return whether a fault only follows from another one.

    A list is too short because an item is wrong, or a field is missing because its name is mistyped.
    """
    where = fault["loc"]
    if fault["type"] == "missing":
        typed = [other["loc"] for other in faults if other["type"] == "extra_forbidden"]
        return any(loc[:-1] == where[:-1] and _nearest(schema, loc) == where[-1] for loc in typed)
    return fault["type"] == "too_short" and any(
        len(other["loc"]) > len(where) and other["loc"][: len(where)] == where for other in faults
    )


def _nearest(schema: type[Section], location: Sequence[Any]) -> str:
    """The known key that an unknown one resembles or means, or ""."""
    word, names = str(location[-1]), _names_at(schema, [*location[:-1]])
    alike = difflib.get_close_matches(word, names, n=1)
    meant = [name for group in _SYNONYMS if word in group for name in group if name in names]
    return next(iter([*meant, *alike]), "")


_SYNONYMS = (
    ("paths", "path", "dataset", "file", "files", "glob", "globs", "pattern", "input", "inputs", "data", "data_files",
     "folder", "dir", "directory", "url", "urls", "uri"),
    ("text_field", "content", "body", "column", "text_column", "text_key", "json_keys"),
    ("type", "format", "kind", "loader"),
    ("licence", "spdx"),
    ("language", "lang", "locale"),
    ("learning_rate", "lr", "max_lr", "peak_lr"),
    ("min_lr_ratio", "min_lr", "final_lr"),
    ("steps", "max_steps", "max_iters", "train_iters", "iterations", "num_train_steps"),
    ("global_batch_size", "batch_size", "bs", "train_batch_size"),
    ("micro_batch_size", "per_device_train_batch_size", "batch_size_per_device"),
    ("sequence_length", "seq_len", "block_size", "context_length", "max_length", "ctx"),
    ("hidden_size", "d_model", "n_embd", "dim", "width"),
    ("num_hidden_layers", "n_layer", "layers", "depth"),
    ("num_attention_heads", "n_head", "heads"),
    ("num_key_value_heads", "n_kv_head", "kv_heads", "num_query_groups"),
    ("max_position_embeddings", "context", "max_seq_len"),
    ("vocabulary_size", "vocab_size", "n_vocab"),
    ("zero_stage", "zero", "stage"),
    ("precision", "dtype", "bf16", "fp16"),
    ("gradient_clipping", "grad_clip", "clip_grad", "max_grad_norm"),
    ("every_steps", "interval", "save_interval", "save_steps"),
)  # fmt: skip
"""Words of one meaning in the field; of a group the first that a section knows is suggested."""


_PLAIN = {
    "string_type": "is not text; put it in quotes",
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_type": "is not a number",
    "bool_type": "is not true or false",
    "list_type": "is not a list; put it in [ ]",
    "tuple_type": "is not a list; put it in [ ]",
    "dict_type": "is not a table",
    "model_type": "is not a section",
    "model_attributes_type": "is not a section",
    "literal_error": "is none of {expected}",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "needs at least {min_length} item(s)",
    "too_long": "has more than {max_length} items",
    "string_too_short": "needs at least {min_length} character(s)",
    "string_too_long": "has more than {max_length} characters",
    "string_pattern_mismatch": "does not match the pattern {pattern}",
    "finite_number": "is not a finite number",
}
"""Type of a validator's fault -> its words, with the fault's own values."""
_EXACT = 2.0**53
"""Whole numbers below it are exact as a float."""


def _explain(fault: Mapping[str, Any], schema: type[Section], values: Any) -> str:
    location = [part for part in fault["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    field = _field_name(location, values)
    if fault["type"] == "extra_forbidden":
        near = _nearest(schema, location)
        return f"{field}: unknown key; " + (f"did you mean {near!r}?" if near else _known_keys(schema, location))
    if fault["type"] == "missing":
        return f"{field}: is missing; add it"
    found, facts = fault["input"], fault.get("ctx", {})
    if fault["type"] == "union_tag_not_found":
        return f"{field}.type: is missing; add it"
    if fault["type"] == "union_tag_invalid":
        known = facts["expected_tags"].replace("'", "").split(", ")
        near = next(iter(difflib.get_close_matches(facts["tag"], known, n=1)), "")
        hint = f"; did you mean {near!r}?" if near else ""
        return f'{field}.type = "{facts["tag"]}": is none of {", ".join(known)}{hint}'
    if str(facts.get("pattern", "")).endswith(r":[A-Za-z_]\w*$"):  # the name of own code
        return f'{field} = "{found}": needs the form package.module:function'
    message = _PLAIN.get(fault["type"], "").format(**facts) or fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error" and isinstance(found, dict):
        return f"{field}: {message}"  # a rule over several fields names its own values
    meant = _number_meant(fault["type"], found)
    return f"{field} = {_short(json.dumps(found, ensure_ascii=False, default=str))}: {message}{meant}"


def _number_meant(fault: str, found: Any) -> str:
    """The number to write, where a value of another type spells it.

    In TOML 1e3 is not a whole number, and "3" is text.
    """
    if fault not in ("int_type", "int_from_float", "float_type") or not isinstance(found, str | float):
        return ""
    try:
        number = float(found)
    except ValueError:
        return ""
    if fault == "float_type":
        return f"; write {number!r}, without quotes" if math.isfinite(number) else ""
    return f"; write {int(number)}" if number.is_integer() and abs(number) < _EXACT else ""


def _known_keys(schema: type[Section], location: Sequence[Any]) -> str:
    names = list(dict.fromkeys(_names_at(schema, [*location[:-1]])))
    if len(names) > _LISTED_KEYS:
        return "remove it; `assay config show` lists the keys"
    return f"remove it, or choose one of {', '.join(names)}"


def _field_name(location: Iterable[Any], values: Any) -> str:
    """A place in the file: `data.sources[entry 2].licence`.

    Entries are counted from 1.
    """
    name, here = "", values
    for part in location:
        if isinstance(part, int):
            name += f"[entry {part + 1}]"
            here = here[part] if isinstance(here, Sequence) and part < len(here) else None
        elif isinstance(here, Mapping) and part not in here and here.get("type") == part:
            pass  # the validator names the member of a union too
        else:
            name += f".{part}" if name else str(part)
            here = here.get(part) if isinstance(here, Mapping) else None
    return name or "(whole file)"


def _short(value: str) -> str:
    """A value as an error shows it, shortened."""
    return value if len(value) <= _SHOWN_CHARACTERS else f"{value[:_SHOWN_CHARACTERS]}…"


def _names_at(schema: Any, location: list[Any]) -> list[str]:
    """Field names allowed at `location`, for suggestions."""
    here: list[Any] = [schema]
    for part in location:
        below = []
        for model in here:
            if part in getattr(model, "model_fields", {}):
                below += _models(model.model_fields[part].annotation)
        tagged = [model for model in here if part in _tags(model)]
        here = below or tagged or here  # an index does not descend; a union's tag chooses
    return [name for model in here for name in getattr(model, "model_fields", {})]


def _tags(model: Any) -> tuple[Any, ...]:
    """Values of the field "type", which chooses a model of a union."""
    field = getattr(model, "model_fields", {}).get("type")
    return typing.get_args(field.annotation) if field is not None else ()


def _models(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.GenericAlias) or typing.get_args(annotation):
        return [model for part in typing.get_args(annotation) for model in _models(part)]
    return []
